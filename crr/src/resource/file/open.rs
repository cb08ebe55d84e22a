//! One descriptor, as /proc shows it.

use crate::proc::{Dir, fdinfo};
use crate::resource::path::link_of;
use crate::resource::unix_socket::Holder;
use crate::resource::{Refuse, pidfd};
use anyhow::Result;
use nix::sys::stat::FileStat;

/// One descriptor as /proc shows it.
pub(super) struct Open {
    pub(super) fd: u32,
    pub(super) link: Vec<u8>,
    pub(super) stat: FileStat,
    pub(super) info: fdinfo::FdInfo,
    /// All of its fdinfo, if it is an anonymous inode or a pidfd.
    pub(super) text: Vec<u8>,
    /// Where it lies, if it is on its way in a message.
    pub(super) queue_of: Option<String>,
}

impl Open {
    pub(super) fn look(fd: u32, fd_dir: &Dir, info_dir: &Dir) -> Result<Self> {
        let name = fd.to_string();
        let mut text = Vec::new();
        info_dir.read(&name, &mut text)?;
        let info = fdinfo::parse(&text)?;
        let link = link_of(fd_dir, &name)?;
        if !(link.starts_with(b"anon_inode:") || pidfd::is_one(&link)) {
            text = Vec::new();
        }
        Ok(Self { fd, link, stat: fd_dir.stat(&name)?, info, text, queue_of: None })
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
