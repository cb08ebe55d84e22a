//! What came as a stream, under names until its tasks run: by then the dump has ended, and nobody else may have it.

use anyhow::{Context, Result};
use images::container::Kind;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A directory with the files of a stream. Descriptors lead to it, since the root directory may change.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    name: OsString,
    parent: OwnedFd,
    dir: OwnedFd,
    /// What the pages take where they are: less, when tasks have given some back.
    blocks: i64,
}

impl Kept {
    /// Gives names to files that have none, in a new directory that is for their owner alone.
    pub(super) fn new(files: &BTreeMap<Kind, File>, room: &Path) -> Result<Self> {
        let for_owner = Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().prefix("crr-restore-").permissions(for_owner).tempdir_in(room);
        let made = made.with_context(|| format!("{}: make a directory", room.display()))?;
        let path = std::path::absolute(made.path())?;
        let open = |path: &Path| {
            nix::fcntl::open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .with_context(|| path.display().to_string())
        };
        let (parent, dir) = (open(room)?, open(&path)?);
        for (kind, file) in files {
            file.set_permissions(Permissions::from_mode(0o600)).context(kind.file_name())?;
            let own = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(AT_FDCWD, own.as_str(), &dir, kind.file_name(), AtFlags::AT_SYMLINK_FOLLOW)
                .with_context(|| format!("{}: give it a name", kind.file_name()))?;
        }
        let name = path.file_name().context("a name")?.to_owned();
        let _ = made.keep();
        Ok(Self { path, name, parent, dir, blocks: blocks(files) })
    }

    /// Where they are, if they still are.
    pub(super) fn path(&self) -> Option<&Path> {
        let inventory = fstatat(&self.dir, Kind::Inventory.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW);
        inventory.is_ok().then_some(&self.path)
    }

    /// Whether no page has been given back.
    pub(super) fn is_complete(&self, files: &BTreeMap<Kind, File>) -> bool {
        blocks(files) >= self.blocks
    }

    /// They are not needed any more, or of no use.
    pub(super) fn remove(&self) {
        for kind in Kind::ALL {
            let _ = unlinkat(&self.dir, kind.file_name(), UnlinkatFlags::NoRemoveDir);
        }
        let _ = unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::RemoveDir);
    }
}

fn blocks(files: &BTreeMap<Kind, File>) -> i64 {
    files.get(&Kind::Pages).and_then(|pages| fstat(pages).ok()).map_or(0, |stat| stat.st_blocks)
}
