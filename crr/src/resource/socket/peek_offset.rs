//! Peek offsets (SO_PEEK_OFF): messages behind the first one of a queue can be looked at only with one, and it belongs to the
//! socket.

use super::option::SO_PEEK_OFF;
use crate::sys::socket as sys;
use std::os::fd::BorrowedFd;

/// SO_PEEK_OFF of a socket: -1 for none.
///
/// # Errors
/// As getsockopt(2).
pub(crate) fn get(socket: BorrowedFd<'_>) -> nix::Result<i32> {
    sys::number(socket, libc::SOL_SOCKET, SO_PEEK_OFF)
}

/// Sets SO_PEEK_OFF.
///
/// # Errors
/// As setsockopt(2).
pub(crate) fn set(socket: BorrowedFd<'_>, offset: i32) -> nix::Result<()> {
    sys::set_option(socket, libc::SOL_SOCKET, SO_PEEK_OFF, &offset.to_ne_bytes())
}
