//! One descriptor, as /proc and crr's own descriptor of the same file show it.

use super::copies::Copies;
use super::links::Link;
use crate::proc::{Dir, fdinfo};
use crate::resource::unix_socket::Holder;
use crate::resource::{Refuse, pidfd};
use anyhow::{Context, Result};
use nix::sys::stat::{FileStat, fstat};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One descriptor.
pub(super) struct Open {
    pub(super) fd: u32,
    pub(super) link: Vec<u8>,
    pub(super) stat: FileStat,
    pub(super) info: fdinfo::FdInfo,
    /// All of its fdinfo, if it is an anonymous inode or a pidfd.
    pub(super) text: Vec<u8>,
    /// Where it lies, if it is on its way in a message.
    pub(super) queue_of: Option<String>,
    /// crr's own descriptor of it, by which it is asked: each way through /proc is a walk along a path with a check of rights.
    pub(super) copy: Arc<OwnedFd>,
}

impl Open {
    pub(super) fn look(link: &Link, info_dir: &Dir, copies: &Copies) -> Result<Self> {
        let Link { fd, target } = link;
        let mut text = Vec::new();
        info_dir.read(&fd.to_string(), &mut text)?;
        let info = fdinfo::parse(&text)?;
        if !(target.starts_with(b"anon_inode:") || pidfd::is_one(target)) {
            text = Vec::new();
        }
        let copy = copies.get(*fd)?;
        let stat = fstat(&copy).context("fstat")?;
        Ok(Self { fd: *fd, link: target.clone(), stat, info, text, queue_of: None, copy })
    }

    /// Whether it is shown by a path, even if that leads nowhere (prepend_path() of fs/d_path.c) or is too long.
    pub(super) fn has_path(&self) -> bool {
        self.link.is_empty() || self.link.starts_with(b"/") || self.link.starts_with(b"(unreachable)")
    }

    pub(super) fn describe(&self) -> String {
        let link = String::from_utf8_lossy(&self.link);
        match &self.queue_of {
            Some(socket) => format!("{socket}: sent to it and not yet received: {link}"),
            None => format!("fd {} ({link})", self.fd),
        }
    }
    /// Whose it is, as messages name him.
    pub(super) fn holder(&self, refuse: &Refuse<'_>) -> Holder {
        Holder { pid: refuse.pid(), name: refuse.name().to_owned(), object: self.describe() }
    }
}
