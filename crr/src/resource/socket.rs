//! What sockets of all families have in common: options, and how those that are not supported are called.

pub(crate) mod option;

use crate::sys::socket as sys;
use std::os::fd::BorrowedFd;

/// The inode number of a socket, from its link in `/proc/PID/fd`.
pub(crate) fn inode(link: &[u8]) -> Option<u64> {
    crate::proc::decimal(link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)
}

/// SO_DOMAIN: the family.
///
/// # Errors
/// ENOTSOCK.
pub(crate) fn family(socket: BorrowedFd<'_>) -> nix::Result<i32> {
    sys::number(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)
}
