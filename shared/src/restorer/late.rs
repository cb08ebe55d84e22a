//! Files that are opened when all tasks exist: they come over the sockets that hold their places.
//!
//! # Safety
//! See the parent module.

use super::receive::message;
use super::{Failure, Session, calls, send};
use crate::proto::{FDS_PER_MESSAGE, Report, Stage};
use crate::sys::{self, nr};
use core::ffi::c_int;

/// The leader, when all threads exist.
pub(super) fn there(session: &Session) {
    send(session.socket, &Report { stage: Stage::There as u32, pid: session.pid, ..Report::default() });
}

/// Takes a file from the socket that has its number, and the number from the socket. Others who are to have the file read from the
/// same socket: each takes one message, and all are alike.
pub(super) fn receive(fd: u32, close_on_exec: bool) -> Result<(), Failure> {
    const O_CLOEXEC: usize = 0o2_000_000;
    let (mut byte, mut fds) = (0u8, [0; FDS_PER_MESSAGE]);
    let got = message(fd as c_int, core::ptr::from_mut(&mut byte) as usize, 1, &mut fds)?;
    if got != 1 {
        return Err(Failure::wrong(got as u64));
    }
    let flags = if close_on_exec { O_CLOEXEC } else { 0 };
    calls::plain(nr::__NR_dup3, u64::from(fd), &[fds[0] as usize, fd as usize, flags])?;
    sys::close(fds[0]);
    Ok(())
}
