//! POSIX message queues, by their system calls: the C library hides the descriptor.
//!
//! # Safety
//! Pointers lead to live objects of the size that each call reads or writes; the descriptor that a successful call returns is new and
//! ours.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// mq_open(2) of a queue that exists, by its name without the slash. It closes on exec, whatever the flags.
///
/// # Errors
/// ENOENT, EACCES.
pub fn open(name: &CStr, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the name ends with a zero byte; nothing is made, so no mode and no attributes are read.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, std::ptr::null::<u8>()) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How many messages fit into a queue, and how long they can be (mq_getsetattr(2)).
///
/// # Errors
/// EBADF for anything but a queue.
pub fn limits(queue: BorrowedFd<'_>) -> nix::Result<[u64; 2]> {
    // SAFETY: all zeros are attributes.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    let none = std::ptr::null::<libc::mq_attr>();
    // SAFETY: the kernel writes to live attributes, and reads none.
    check(unsafe { libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), none, &raw mut attributes) })?;
    Ok([attributes.mq_maxmsg, attributes.mq_msgsize].map(i64::cast_unsigned))
}
