//! One descriptor, as /proc and crr's own descriptor of the same file show it.

use super::copies::Copies;
use super::links::Link;
use crate::proc::{Dir, fdinfo};
use crate::resource::deleted::MARK;
use crate::resource::path::link_of;
use crate::resource::there::There;
use crate::resource::unix_socket::Holder;
use crate::resource::{Refuse, pidfd};
use anyhow::{Context, Result};
use nix::sys::stat::{FileStat, fstat};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
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
    /// What lies under the name that its link shows, if that is it.
    pub(super) there: Option<There>,
}

impl Open {
    pub(super) fn look(link: &Link, info_dir: &Dir, copies: &Copies) -> Result<Self> {
        let Link { fd, target } = link;
        let mut text = Vec::new();
        info_dir.read_record(&fd.to_string(), &mut text)?;
        let info = fdinfo::parse(&text)?;
        if !(target.starts_with(b"anon_inode:") || pidfd::is_one(target)) {
            text = Vec::new();
        }
        let copy = copies.get(*fd)?;
        let stat = fstat(&copy).context("fstat")?;
        Ok(Self { fd: *fd, link: target.clone(), stat, info, text, queue_of: None, copy, there: None })
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

    /// Brings it up to date if its link does not lead to it any more: that was read long before [`Self::look`], and somebody outside of the tree can have
    /// renamed or unlinked the file in between. Whether its link is another one now.
    pub(super) fn follow(&mut self) -> Result<bool> {
        if !self.link.starts_with(b"/") || self.link.ends_with(MARK) {
            return Ok(false);
        }
        let is_it = |there: &There| (there.dev, there.ino) == (self.stat.st_dev, self.stat.st_ino);
        let there = There::look(OsStr::from_bytes(&self.link)).ok();
        self.there = there.filter(|there| self.stat.st_nlink > 0 && is_it(there));
        if self.there.is_some() {
            return Ok(false);
        }
        let own = Dir::task(nix::unistd::getpid().as_raw())?.dir("fd")?;
        let read = || link_of(&own, &self.copy.as_raw_fd().to_string()).context("read its link again");
        let mut link = read()?;
        let stat = fstat(&self.copy).context("fstat")?;
        if stat.st_nlink == 0 {
            // It may have been unlinked just now.
            link = read()?;
        }
        if link == self.link {
            return Ok(false);
        }
        (self.link, self.stat) = (link, stat);
        Ok(true)
    }

    /// Whose it is, as messages name him.
    pub(super) fn holder(&self, refuse: &Refuse<'_>) -> Holder {
        Holder { pid: refuse.pid(), name: refuse.name().to_owned(), object: self.describe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn what_has_moved_since_its_link_was_read_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (old, new) = (dir.join("log"), dir.join("log.1"));
        let file = File::create(&old).unwrap();
        let info_dir = Dir::task(nix::unistd::getpid().as_raw()).unwrap().dir("fdinfo").unwrap();
        let name = |path: &std::path::Path| path.as_os_str().as_bytes().to_vec();
        let link = Link { fd: file.as_raw_fd().cast_unsigned(), target: name(&old) };
        let look = || Open::look(&link, &info_dir, &Copies::Own).unwrap();
        let mut open = look();
        assert!(!open.follow().unwrap());
        assert_eq!(open.there.unwrap().ino, open.stat.st_ino);

        let follow = |open: &mut Open, to: &[u8]| {
            assert!(open.follow().unwrap());
            assert_eq!(open.link, to);
        };
        fs::rename(&old, &new).unwrap();
        follow(&mut look(), &name(&new));
        fs::write(&old, "another").unwrap();
        let mut before = look();
        follow(&mut look(), &name(&new));
        fs::remove_file(&new).unwrap();
        let gone = [name(&new), MARK.to_vec()].concat();
        for open in [&mut before, &mut look()] {
            follow(open, &gone);
            assert!(open.stat.st_nlink == 0 && open.there.is_none());
            assert!(!open.follow().unwrap());
        }
    }
}
