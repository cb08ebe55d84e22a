//! Filters of seccomp, and the moment before them at which the coordinator takes hold of all threads.
//!
//! # Safety
//! See the parent module.

use super::{Failure, Session, calls, send};
use crate::abi::native::{SockFprog, Word};
use crate::proto::{Report, Stage};
use crate::sys::{self, nr};
use core::sync::atomic::Ordering;

/// Bytes of `struct sock_filter`.
const INSTRUCTION: u32 = 8;

/// Notes where the programs lie: in the plan, which stays mapped as long as there are threads to ask for it.
pub(super) fn programs(session: &Session, bytes: &[u8]) {
    session.programs.store(bytes.as_ptr() as usize, Ordering::Release);
}

/// The leader, when all threads exist.
pub(super) fn hold(session: &Session) -> Result<(), Failure> {
    send(session.socket, &Report { stage: Stage::Hold as u32, pid: session.pid, ..Report::default() });
    let mut go = [0u8];
    let at = go.as_mut_ptr() as usize;
    // SAFETY: the kernel writes one byte to it.
    let read = unsafe { sys::call(nr::__NR_read, &[session.socket as usize, at, go.len()]) };
    match read {
        Ok(1) => {}
        Ok(other) => return Err(Failure::wrong(other as u64)),
        Err(errno) => return Err(Failure::new(errno, 0)),
    }
    session.held.store(1, Ordering::Release);
    sys::futex_wake(&session.held);
    Ok(())
}

/// Any other thread.
pub(super) fn wait_until_held(session: &Session) {
    while session.held.load(Ordering::Acquire) == 0 {
        sys::futex_wait(&session.held, 0);
    }
}

/// Adds a filter to the calling thread.
pub(super) fn install(session: &Session, flags: u32, at: u32, len: u32) -> Result<(), Failure> {
    const SET_MODE_FILTER: usize = 1;
    let wrong = || Failure::wrong(u64::from(at));
    let first = session.programs.load(Ordering::Acquire).checked_add(at as usize).ok_or_else(wrong)?;
    let program = SockFprog {
        len: u16::try_from(len / INSTRUCTION).map_err(|_| wrong())?,
        filter: first as Word,
        ..SockFprog::default()
    };
    calls::plain(
        nr::__NR_seccomp,
        u64::from(at),
        &[SET_MODE_FILTER, flags as usize, calls::address(&program)],
    )
}
