//! What fcntl and ioctl tell of an open description, and pipe contents without taking them.
//!
//! # Safety
//! Pointers lead to live objects of the size that each command writes.
#![allow(unsafe_code)]

use super::check;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `fcntl` with a number.
fn fcntl(fd: BorrowedFd<'_>, command: i32, argument: i32) -> nix::Result<i32> {
    // SAFETY: callers use commands that take a number or nothing.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) })
}

/// F_GETPIPE_SZ.
///
/// # Errors
/// EBADF when it is no pipe.
pub fn capacity(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    Ok(u32::try_from(fcntl(fd, libc::F_GETPIPE_SZ, 0)?).unwrap_or(0))
}

/// F_SETPIPE_SZ.
///
/// # Errors
/// EPERM above the user's limit, EBUSY when the contents need more.
pub fn set_capacity(fd: BorrowedFd<'_>, bytes: u32) -> nix::Result<()> {
    fcntl(fd, libc::F_SETPIPE_SZ, i32::try_from(bytes).unwrap_or(i32::MAX)).map(drop)
}

/// FIONREAD: bytes that a read would find.
///
/// # Errors
/// Whatever the file type answers.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// tee(2) without blocking: copies what is in one pipe to another.
///
/// # Errors
/// EAGAIN when the source is empty or the destination full.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> nix::Result<usize> {
    // SAFETY: no pointers.
    let n = check(unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), bytes, libc::SPLICE_F_NONBLOCK) })?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// splice(2) without blocking between two pipes: moves what is in one to another, whole buffers as long as they fit.
///
/// # Errors
/// EAGAIN when the source is empty or the destination full.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> nix::Result<usize> {
    let (from, to, no_offset) = (from.as_raw_fd(), to.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: pipes have no offsets, and none are given.
    let n = check(unsafe { libc::splice(from, no_offset, to, no_offset, bytes, libc::SPLICE_F_NONBLOCK) })?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// A further descriptor of what a number leads to, beyond the standard files, close-on-exec.
///
/// # Errors
/// EBADF when it leads to nothing.
pub fn duplicate(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the command takes a number.
    let fd = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just handed it out.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
