//! Peek offsets (SO_PEEK_OFF) changed for a moment, and put back whatever happens.
//!
//! Messages behind the first one of a queue can be looked at only with an offset, and that belongs to the socket. A
//! process of its own, which waits as long as offsets are changed, puts them back if crr is killed meanwhile.

use crate::resource::socket::option::SO_PEEK_OFF;
use crate::sys::{process, socket as sys};
use anyhow::{Context, Result};
use images::Pid;
use nix::fcntl::OFlag;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Offsets as they were. Dropped, it puts them back.
#[derive(Debug)]
pub(super) struct Keeper<'a> {
    offsets: Vec<(BorrowedFd<'a>, i32)>,
    /// The other process, and where it hears that it is not needed any more.
    child: Pid,
    release: OwnedFd,
}

impl<'a> Keeper<'a> {
    /// Notes the offsets of these sockets.
    ///
    /// # Errors
    /// As fork(2).
    pub(super) fn new(offsets: Vec<(BorrowedFd<'a>, i32)>) -> Result<Self> {
        let (wait, release) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        match process::fork(None, 0).context("fork")? {
            Some(child) => Ok(Self { offsets, child, release }),
            None => {
                drop(release);
                if nix::unistd::read(&wait, &mut [0]) == Ok(0) {
                    put_back(&offsets);
                }
                process::exit(0)
            }
        }
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        put_back(&self.offsets);
        let _ = nix::unistd::write(self.release.as_fd(), &[0]);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.child), None);
    }
}

fn put_back(offsets: &[(BorrowedFd<'_>, i32)]) {
    for (socket, offset) in offsets {
        // What was read from a socket can be set on it.
        let _ = set(*socket, *offset);
    }
}

/// SO_PEEK_OFF of a socket: -1 for none.
///
/// # Errors
/// As getsockopt(2).
pub(super) fn get(socket: BorrowedFd<'_>) -> nix::Result<i32> {
    sys::number(socket, libc::SOL_SOCKET, SO_PEEK_OFF)
}

/// Sets SO_PEEK_OFF.
///
/// # Errors
/// As setsockopt(2).
pub(super) fn set(socket: BorrowedFd<'_>, offset: i32) -> nix::Result<()> {
    sys::set_option(socket, libc::SOL_SOCKET, SO_PEEK_OFF, &offset.to_ne_bytes())
}
