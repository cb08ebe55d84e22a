//! File systems that nobody sees: mounted nowhere, gone with the last descriptor.
//!
//! # Safety
//! The calls take numbers and strings that live as long as the call; the descriptors that they return are new and ours.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// The root directory of an empty tmpfs.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOSYS before 5.2.
pub fn private_tmpfs() -> nix::Result<OwnedFd> {
    const TMPFS: &CStr = c"tmpfs";
    // SAFETY: the name lives; no other pointers.
    let context = own(unsafe { libc::syscall(libc::SYS_fsopen, TMPFS.as_ptr(), FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: the command takes no value.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0)
    })?;
    // SAFETY: no pointers.
    own(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

fn own(fd: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = i32::try_from(check(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
