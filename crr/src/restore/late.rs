//! Files that stand for tasks of the tree: they can be opened only when all of these exist.
//!
//! Until then a socket holds the place of each, wherever the file is to be: it is inherited, shared and passed on as the file would
//! be. Each task says when it exists with all of its threads ([`shared::proto::Stage::There`]); when all have, the coordinator opens
//! the files and sends them into the far ends of these sockets, once for each number that has one. The restoring tasks take them
//! from the near ends, while their limits, users and filters are not those of the tree yet.

use super::Restore;
use crate::resource::file::reopen::Ia32;
use crate::resource::socket::option::SO_SNDBUFFORCE;
use crate::resource::{pidfd, task_file};
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::DescriptionId;
use images::file::{Files as Records, Target};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The files.
pub(crate) type Files = BTreeMap<DescriptionId, OwnedFd>;

/// Which descriptions are opened late.
pub(crate) fn all(files: &Records) -> BTreeSet<DescriptionId> {
    let descriptions = (0..).map(DescriptionId).zip(&files.descriptions);
    descriptions.filter(|(_, description)| description.target.is_late()).map(|(id, _)| id).collect()
}

/// The far ends of the sockets that hold the places of files.
#[derive(Debug, Default)]
pub(crate) struct Places(BTreeMap<DescriptionId, OwnedFd>);

impl Places {
    /// Holds the place of a description.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) fn hold(&mut self, description: usize) -> Result<OwnedFd> {
        let (near, far) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .context("socketpair")?;
        // All that is sent finds room at once.
        sys::set_option(far.as_fd(), libc::SOL_SOCKET, SO_SNDBUFFORCE, &(i32::MAX / 2).to_ne_bytes())
            .context("SO_SNDBUFFORCE")?;
        self.0.insert(DescriptionId(u32::try_from(description)?), far);
        Ok(near)
    }
}

/// Opens the files, now that all tasks exist, and sends them to those who have them.
///
/// # Errors
/// Names the first file that cannot be opened.
pub(super) fn open_all(restore: &Restore<'_>) -> Result<Files> {
    let checkpoint = restore.checkpoint;
    let mut gone = pidfd::Gone::default();
    let mut ia32 = Ia32::default();
    let mut files = Files::new();
    for &id in restore.opened.late.0.keys() {
        let description = &checkpoint.files.descriptions[id.0 as usize];
        let opened = match description.target {
            Target::Pidfd(process) => pidfd::open(process, description.flags, &mut gone)?,
            Target::TaskFile(index) => {
                task_file::open(&checkpoint.files.task_files[index as usize], description, &mut ia32)?
            }
            other => anyhow::bail!("{id} is not opened late: {other:?}"),
        };
        files.insert(id, opened);
    }
    gone.finish()?;
    for entry in checkpoint.tree.tasks.iter().flat_map(|task| &task.fds) {
        if let (Some(file), Some(far)) =
            (files.get(&entry.description), restore.opened.late.0.get(&entry.description))
        {
            sys::send(far.as_fd(), None, &[0], &[file.as_raw_fd()], None, 0)
                .with_context(|| format!("send {}", entry.description))?;
        }
    }
    Ok(files)
}
