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

/// Makes a queue for so many messages of so many bytes, with no permissions, and opens it in both directions, not to block.
///
/// # Errors
/// EEXIST; as mq_open(2).
pub fn make(name: &CStr, [messages, size]: [u64; 2]) -> nix::Result<OwnedFd> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK;
    // SAFETY: all zeros are attributes.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    [attributes.mq_maxmsg, attributes.mq_msgsize] = [messages, size].map(u64::cast_signed);
    // SAFETY: the name ends with a zero byte, and the attributes are live.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, &raw const attributes) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a name away.
///
/// # Errors
/// ENOENT, EACCES.
pub fn unlink(name: &CStr) -> nix::Result<()> {
    // SAFETY: the name ends with a zero byte.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// Sends a message.
///
/// # Errors
/// EAGAIN where there is no room, if the queue is not to block; as mq_timedsend(2).
pub fn send(queue: BorrowedFd<'_>, message: &[u8], priority: u32) -> nix::Result<()> {
    let none = std::ptr::null::<libc::timespec>();
    let (fd, start) = (queue.as_raw_fd(), message.as_ptr());
    // SAFETY: the kernel reads the message.
    check(unsafe { libc::syscall(libc::SYS_mq_timedsend, fd, start, message.len(), priority, none) })
        .map(drop)
}

/// Takes the next message out of a queue: its length and priority.
///
/// # Errors
/// EAGAIN where there is none, if the queue is not to block; as mq_timedreceive(2).
pub fn receive(queue: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<(usize, u32)> {
    let none = std::ptr::null::<libc::timespec>();
    let mut priority = 0u32;
    let (fd, start, room) = (queue.as_raw_fd(), buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes into the buffer, and a priority.
    let len = unsafe { libc::syscall(libc::SYS_mq_timedreceive, fd, start, room, &raw mut priority, none) };
    Ok((usize::try_from(check(len)?).map_err(|_| Errno::EMSGSIZE)?, priority))
}

/// How many messages fit into a queue, and how long they can be.
///
/// # Errors
/// EBADF for anything but a queue.
pub fn limits(queue: BorrowedFd<'_>) -> nix::Result<[u64; 2]> {
    let attributes = attributes(queue)?;
    Ok([attributes.mq_maxmsg, attributes.mq_msgsize].map(i64::cast_unsigned))
}

/// How many messages are in a queue.
///
/// # Errors
/// EBADF for anything but a queue.
pub fn count(queue: BorrowedFd<'_>) -> nix::Result<u64> {
    Ok(attributes(queue)?.mq_curmsgs.cast_unsigned())
}

/// mq_getsetattr(2).
fn attributes(queue: BorrowedFd<'_>) -> nix::Result<libc::mq_attr> {
    // SAFETY: all zeros are attributes.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    let none = std::ptr::null::<libc::mq_attr>();
    // SAFETY: the kernel writes to live attributes, and reads none.
    check(unsafe { libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), none, &raw mut attributes) })?;
    Ok(attributes)
}
