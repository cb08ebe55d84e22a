//! Process file descriptors: copies of a task's open files.
//!
//! # Safety
//! Both calls take numbers only; the descriptor that a successful call returns is new and ours.
#![allow(unsafe_code)]

use super::check;
use images::Pid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn own(fd: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_open for a task.
///
/// # Errors
/// ESRCH when gone, ENOSYS before 5.3.
pub fn open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    own(check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?)
}

/// pidfd_getfd: our own descriptor on the same open file description.
///
/// # Errors
/// EBADF, EPERM, ESRCH, ENOSYS before 5.6.
pub fn get_fd(pidfd: BorrowedFd<'_>, fd: u32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    own(check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?)
}
