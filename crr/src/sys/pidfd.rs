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

/// pidfd_open for a task, by its pid or by a thread that does not lead it ([`open_thread`]).
///
/// # Errors
/// ESRCH when gone, ENOSYS before 5.3, EINVAL for another thread before 6.9.
pub fn open(tid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    match check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, 0) }) {
        Err(Errno::EINVAL | Errno::ENOENT) => open_thread(tid),
        fd => own(fd?),
    }
}

/// pidfd_open for one thread, which need not be a leader (PIDFD_THREAD): its files are those of its task.
///
/// # Errors
/// ESRCH when gone, EINVAL before 6.9.
pub fn open_thread(tid: Pid) -> nix::Result<OwnedFd> {
    /// PIDFD_THREAD of include/uapi/linux/pidfd.h.
    const THREAD: i32 = libc::O_EXCL;
    // SAFETY: no pointers.
    own(check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, THREAD) })?)
}

/// pidfd_getfd: our own descriptor on the same open file description.
///
/// # Errors
/// EBADF, EPERM, ESRCH, ENOSYS before 5.6.
pub fn get_fd(pidfd: BorrowedFd<'_>, fd: u32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    own(check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?)
}
