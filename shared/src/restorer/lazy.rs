//! Pages that come from outside, if only when the task runs: who is to bring them gets a userfaultfd of this address space.
//!
//! # Safety
//! See the parent module.

use super::receive::send_fd;
use super::{Failure, Session};
use crate::proto::{Report, Stage};
use crate::sys::{self, nr};
use core::ffi::c_int;

/// Makes the descriptor, and sends it. Where faults of the kernel are to be stopped too, that takes CAP_SYS_PTRACE. The
/// coordinator says which areas it is for. What sits in the socket keeps it.
pub(super) fn hand_over(session: &Session, flags: u32) -> Result<(), Failure> {
    const O_CLOEXEC: usize = 0o2_000_000;
    const O_NONBLOCK: usize = 0o4000;
    // SAFETY: no memory is involved.
    let fd = unsafe { sys::call(nr::__NR_userfaultfd, &[O_CLOEXEC | O_NONBLOCK | flags as usize]) }
        .map_err(|errno| Failure::new(errno, 0))?;
    let report = Report { stage: Stage::Lazy as u32, pid: session.pid, ..Report::default() };
    let sent = send_fd(session.socket, &report, fd as c_int);
    sys::close(fd as c_int);
    sent
}
