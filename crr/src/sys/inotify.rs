//! inotify: watches by number.
//!
//! # Safety
//! Pointers lead to live objects of the size that each call reads or writes; descriptors that a successful call
//! returns are new and ours.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// inotify_init1(2), close-on-exec.
///
/// # Errors
/// EMFILE: too many files, or groups of this user.
pub fn create() -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// inotify_add_watch(2): the number of the watch.
///
/// # Errors
/// As inotify_add_watch(2).
pub fn watch(group: BorrowedFd<'_>, path: &CStr, mask: u32) -> nix::Result<u32> {
    // SAFETY: the path ends with its NUL.
    let wd = check(unsafe { libc::inotify_add_watch(group.as_raw_fd(), path.as_ptr(), mask) })?;
    u32::try_from(wd).map_err(|_| Errno::EINVAL)
}

/// inotify_rm_watch(2).
///
/// # Errors
/// EINVAL for a number that no watch has.
pub fn unwatch(group: BorrowedFd<'_>, wd: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::inotify_rm_watch(group.as_raw_fd(), wd.cast_signed()) }).map(drop)
}

/// INOTIFY_IOC_SETNEXTWD: the number of the next watch, if it is free.
///
/// # Errors
/// ENOTTY without CONFIG_CHECKPOINT_RESTORE.
pub fn set_next(group: BorrowedFd<'_>, wd: u32) -> nix::Result<()> {
    // _IOW('I', 0, __s32), include/uapi/linux/inotify.h; the number itself is the argument.
    const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(group.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, libc::c_ulong::from(wd)) }).map(drop)
}

/// FIONREAD: bytes of events that are not read yet.
///
/// # Errors
/// ENOTTY if it is no such file.
pub fn unread(group: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: writes one int.
    check(unsafe { libc::ioctl(group.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    usize::try_from(bytes).map_err(|_| Errno::EINVAL)
}
