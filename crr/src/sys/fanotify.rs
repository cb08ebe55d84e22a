//! fanotify: groups, and what they are told of.
//!
//! # Safety
//! Pointers lead to live names that end with their NUL; descriptors that a successful call returns are new and ours.
#![allow(unsafe_code)]

use super::check;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// fanotify_init(2); FAN_CLOEXEC, which fdinfo shows as it was given, is for the caller to ask for.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL for flags that the kernel does not know, EMFILE: too many groups of this user.
pub fn create(flags: u32, event_flags: u32) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fanotify_mark(2).
///
/// # Errors
/// As fanotify_mark(2).
pub fn mark(group: BorrowedFd<'_>, flags: u32, mask: u32, path: &CStr) -> nix::Result<()> {
    let (fd, here) = (group.as_raw_fd(), libc::AT_FDCWD);
    // SAFETY: the path ends with its NUL.
    check(unsafe { libc::fanotify_mark(fd, flags, mask.into(), here, path.as_ptr()) }).map(drop)
}
