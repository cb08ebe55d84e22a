//! What of a socket is changed for a moment to look into its queues, as it was.

use super::peek_offset;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use nix::errno::Errno;
use std::os::fd::AsFd;

/// An option: level, name and value.
type Value = (i32, i32, Vec<u8>);

/// A socket, and what it had.
#[derive(Debug)]
pub(crate) struct Before<S> {
    pub(crate) socket: S,
    /// SO_PEEK_OFF; of TCP only Linux 6.10 and later have it.
    peek_offset: Option<i32>,
    options: Vec<Value>,
}

impl<S: AsFd> Before<S> {
    /// Notes the peek offset and these options (level and name), as far as the socket has them.
    ///
    /// # Errors
    /// If the peek offset cannot be told.
    pub(crate) fn of(socket: S, options: &[(i32, i32)]) -> Result<Self> {
        let fd = socket.as_fd();
        let peek_offset = match peek_offset::get(fd) {
            Err(Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => None,
            offset => Some(offset.context("SO_PEEK_OFF")?),
        };
        let known = |&(level, name): &(i32, i32)| Some((level, name, sys::option(fd, level, name).ok()?));
        let options = options.iter().filter_map(known).collect();
        Ok(Self { socket, peek_offset, options })
    }

    /// The options that it has of those that were to be noted.
    pub(crate) fn options(&self) -> &[Value] {
        &self.options
    }

    /// Whether it is looked into by offset.
    pub(crate) fn has_peek_offset(&self) -> bool {
        self.peek_offset.is_some_and(|offset| offset >= 0)
    }

    /// Puts all back. What was read from a socket can be set on it, so nothing can fail that could be helped.
    pub(crate) fn put_back(&self) {
        let fd = self.socket.as_fd();
        if let Some(offset) = self.peek_offset {
            let _ = peek_offset::set(fd, offset);
        }
        for (level, name, value) in &self.options {
            let _ = sys::set_option(fd, *level, *name, value);
        }
    }
}
