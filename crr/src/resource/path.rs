//! Names in the file system, each recorded once for the tree, and only if it still leads to what is open.

use super::Refuse;
use super::deleted;
use super::file::O_PATH;
use super::other_name::{self, Helpers};
use super::there::{Bars, There};
use super::view::{FileSystem, Use};
use crate::proc::Dir;
use anyhow::Context;
use images::PathId;
use images::file::Path;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, lstat};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::FsFlags;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// Why a file cannot be opened again by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// No link is left, and it cannot be made again: of another kind than a file, a directory or a FIFO, or where it was nothing of its
    /// file system is left.
    Deleted,
    /// No link is left, and there is more in it than is to go into the images.
    Large {
        /// Bytes in it.
        data: u64,
        /// As many may be.
        limit: u64,
    },
    /// No link is left, and crr cannot read it.
    Unreadable,
    /// No link is left, and none can be made for a moment in the directory where it was.
    NoHome,
    /// Open or mapped for writing, which the file allows nobody any more (`chattr +i`).
    Immutable,
    /// The same without O_APPEND (`chattr +a`).
    AppendOnly,
    /// The same, which its mount does not allow any more.
    ReadOnly,
    /// Mapped as code, which its mount does not allow any more.
    NoExec,
    /// The name is gone, and what it led to is no file.
    Renamed,
    /// The name is gone, others are elsewhere.
    OtherNames,
    /// The name is gone, and no other can be made beside it.
    NoPlace,
    /// The name leads to something else, though it is still one of the file.
    Hidden,
    /// A view of the kernel's state that cannot be opened again, and why.
    Kernel(&'static str),
    /// Not a path.
    Unreachable,
    /// A path that no call takes.
    TooLong,
}

impl Lost {
    /// The way out for a descriptor.
    pub(crate) fn close(self) -> &'static str {
        match self {
            Self::Deleted | Self::Kernel(_) | Self::Unreachable | Self::TooLong | Self::Unreadable => CLOSE,
            Self::Large { .. } => RAISE,
            Self::OtherNames => LINK_REMAP,
            Self::Hidden => UNCOVER,
            Self::Immutable | Self::AppendOnly => CHATTR,
            Self::NoHome | Self::ReadOnly | Self::NoExec => REMOUNT,
            Self::Renamed | Self::NoPlace => {
                "have the program close it, or open the present file, before the dump"
            }
        }
    }

    /// The way out for a mapping.
    pub(crate) fn unmap(self) -> &'static str {
        match self {
            Self::Kernel(_) | Self::Unreachable | Self::TooLong | Self::Unreadable => UNMAP,
            Self::Large { .. } => RAISE,
            Self::OtherNames => LINK_REMAP,
            Self::Hidden => UNCOVER,
            Self::Immutable | Self::AppendOnly => CHATTR,
            Self::NoHome | Self::ReadOnly | Self::NoExec => REMOUNT,
            Self::Deleted | Self::Renamed | Self::NoPlace => {
                "have the program unmap it, or start it again with the present file"
            }
        }
    }
}

/// The way out for what is too large.
const RAISE: &str = "raise --ghost-limit, or have the program close it before the dump";
/// The way out for a file with other names.
const LINK_REMAP: &str = "use --link-remap, which makes a name for it there until the restore";
/// The way out for a file below a mount.
const UNCOVER: &str = "unmount what lies over it, or have the program let go of it, before the dump";
/// The way out for a file with an attribute that forbids what the tree has.
const CHATTR: &str = "take that attribute off (chattr), or have the program let go of it, before the dump";
/// The way out for a mount that forbids it.
const REMOUNT: &str = "mount it in a way that allows that, or have the program let go of it, before the dump";
/// The way out for descriptors of any kind that is not supported.
pub(crate) const CLOSE: &str = "have the program close it before the dump";
/// The way out for mappings of any kind that is not supported.
pub(crate) const UNMAP: &str = "have the program unmap it before the dump";

/// The way out for a program whose file is gone.
const START_AGAIN: &str = "start the program again from the present file";
/// The way out for a directory that a task is in.
const LEAVE: &str = "have the program change to another directory before the dump";

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "the file has been deleted",
            Self::Large { data, limit } => {
                let [data, limit] = [data, limit].map(|size| crate::progress::bytes(*size));
                return write!(
                    f,
                    "the file has been deleted, and holds {data}, more than --ghost-limit ({limit})"
                );
            }
            Self::Unreadable => "the file has been deleted, and crr cannot read it",
            Self::NoHome => {
                "the file has been deleted, and nothing can be made where it was: that is read-only"
            }
            Self::Immutable => "is there for writing, and immutable by now",
            Self::AppendOnly => "is there for writing, and append-only by now",
            Self::ReadOnly => "is there for writing, and its mount is read-only by now",
            Self::NoExec => "is mapped as code, and its mount is noexec by now",
            Self::Renamed => "this name of it is gone",
            Self::OtherNames => "this name of the file is gone, and its others are not in the same directory",
            Self::NoPlace => "this name of the file is gone, and no other can be made there",
            Self::Hidden => "the name does not lead to it: something is mounted over it",
            Self::Kernel(reason) => reason,
            Self::Unreachable => "not reachable by a path",
            Self::TooLong => "its name is longer than any call takes (PATH_MAX)",
        })
    }
}

/// What a name was found to lead to.
#[derive(Clone, Copy, Debug)]
enum Found {
    Known { dev: u64, ino: u64, id: PathId, of: Option<FileSystem> },
    Nothing,
}

/// The table of paths being collected.
#[derive(Debug)]
pub(crate) struct Paths {
    list: Vec<Path>,
    deleted: deleted::Table,
    others: other_name::Table,
    by_name: HashMap<Vec<u8>, Found>,
    file_systems: HashMap<u64, Option<FileSystem>>,
    /// By the numbers of mounts.
    mounts: HashMap<u64, FsFlags>,
    /// Of those that have any.
    bars: HashMap<PathId, Bars>,
}

impl Paths {
    /// An empty one. Deleted files may have so many bytes of contents; names may be made beside those that are gone, or not.
    pub(crate) fn new(ghost_limit: u64, link_remap: bool) -> Self {
        Self {
            list: Vec::new(),
            deleted: deleted::Table::new(ghost_limit),
            others: other_name::Table::new(link_remap),
            by_name: HashMap::new(),
            file_systems: HashMap::new(),
            mounts: HashMap::new(),
            bars: HashMap::new(),
        }
    }

    /// The record for a file: `name` as its link in /proc shows it, `open` as fstat shows it; `reopen` opens it by the link.
    pub(crate) fn resolve(
        &mut self,
        name: &[u8],
        open: &FileStat,
        what: Use,
        reopen: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<PathId, Lost> {
        if name.is_empty() {
            return Err(Lost::TooLong);
        }
        if !name.starts_with(b"/") {
            return Err(Lost::Unreachable);
        }
        if open.st_nlink == 0 {
            return self.without_name(name, open, reopen);
        }
        let found = match self.by_name.get(name) {
            Some(found) => *found,
            None => {
                let found = self.look_up(name);
                self.by_name.insert(name.to_vec(), found);
                found
            }
        };
        match found {
            Found::Known { dev, ino, id, of } if (dev, ino) == (open.st_dev, open.st_ino) => {
                if let Some(reason) = of.and_then(|of| of.obstacle(name, dev, what)) {
                    return Err(Lost::Kernel(reason));
                }
                let barred = match what {
                    Use::Open(flags) if file_type(open.st_mode) == SFlag::S_IFREG => {
                        self.bars(id).opening(flags)
                    }
                    Use::Open(_) | Use::Directory | Use::Mapped => None,
                };
                barred.map_or(Ok(id), Err)
            }
            Found::Known { .. } | Found::Nothing => self.under_another_name(name, open, reopen),
        }
    }

    /// What keeps a file from being opened or mapped as it is in the tree.
    pub(crate) fn bars(&self, id: PathId) -> Bars {
        self.bars.get(&id).copied().unwrap_or_default()
    }

    fn under_another_name(
        &mut self,
        link: &[u8],
        open: &FileStat,
        reopen: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<PathId, Lost> {
        if let Some(id) = self.others.known(link, open) {
            return Ok(id);
        }
        let is_gone =
            |this: &mut Self| this.deleted.known(open).is_some() || this.has_lost_its_only_name(link, open);
        if open.st_nlink == 1 && is_gone(self) {
            return self.without_name(link, open, reopen);
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        let (name, other) = self.others.add(link, open, id, || reopen().map(File::from))?;
        self.list.push(Path { other_name: Some(Box::new(other)), ..record(&name, &There::from(open)) });
        Ok(id)
    }

    /// Whether a file with one link has none any more: overlayfs goes on to show that of the file in its lower layer, which it cannot take away (`ovl_drop_nlink()`,
    /// fs/overlayfs/dir.c).
    fn has_lost_its_only_name(&mut self, link: &[u8], open: &FileStat) -> bool {
        let Some(name) = link.strip_suffix(deleted::MARK) else { return false };
        let name = std::path::Path::new(std::ffi::OsStr::from_bytes(name));
        let leads_to_it = |there: There| (there.dev, there.ino) == (open.st_dev, open.st_ino);
        if There::look(name.as_os_str()).is_ok_and(leads_to_it) {
            return false;
        }
        let home = name.ancestors().skip(1).find_map(|dir| statfs(dir).ok());
        home.is_some_and(|home| home.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
            && self.others.beside(name, open).is_none()
    }

    fn without_name(
        &mut self,
        link: &[u8],
        open: &FileStat,
        reopen: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<PathId, Lost> {
        if let Some(id) = self.deleted.known(open) {
            return Ok(id);
        }
        if self.kernel_file_system(link, open.st_dev).is_some() {
            return Err(Lost::Kernel("an entry of the kernel that is gone"));
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        let (name, deleted, bars) = self.deleted.add(link, open, id, || reopen().map(File::from))?;
        self.list.push(Path { deleted: Some(Box::new(deleted)), ..record(&name, &There::from(open)) });
        self.note_bars(id, bars);
        Ok(id)
    }

    /// The record for a file that is watched and lies under this name: `there` is what lstat(2) says of it.
    pub(crate) fn watched(&mut self, name: &[u8], there: &FileStat) -> Result<PathId, Lost> {
        let is_link = file_type(there.st_mode) == SFlag::S_IFLNK;
        if !is_link && self.by_name.contains_key(name) {
            return self.resolve(name, there, Use::Open(O_PATH), || Err(io::ErrorKind::NotFound.into()));
        }
        if self.kernel_file_system(name, there.st_dev).is_some() {
            return Err(Lost::Kernel("watched files of procfs, sysfs and their like are not supported"));
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(record(name, &There::from(there)));
        if !is_link {
            let known = Found::Known { dev: there.st_dev, ino: there.st_ino, id, of: None };
            self.by_name.insert(name.to_vec(), known);
        }
        Ok(id)
    }

    /// A file without a name that the tree has open or mapped.
    pub(crate) fn known_deleted(&self, open: &FileStat) -> Option<PathId> {
        self.deleted.known(open)
    }

    /// The names that are known so far.
    pub(crate) fn names(&self) -> impl Iterator<Item = &std::path::Path> {
        let named = self.list.iter().filter(|path| path.deleted.is_none());
        named.map(|path| std::path::Path::new(std::ffi::OsStr::from_bytes(&path.path)))
    }

    /// The files without a name, to refuse those that others have too, and to be read.
    pub(crate) fn deleted(&self) -> &deleted::Table {
        &self.deleted
    }

    fn look_up(&mut self, name: &[u8]) -> Found {
        // Its link shows no symbolic links on the way; one at the end is what is open itself (O_PATH).
        There::look(std::ffi::OsStr::from_bytes(name))
            .map_or(Found::Nothing, |there| self.found(name, &there))
    }

    /// Takes what lies under a name that is about to be resolved, which somebody has looked at just now.
    pub(crate) fn note(&mut self, name: &[u8], there: &There) {
        if !self.by_name.contains_key(name) {
            let found = self.found(name, there);
            self.by_name.insert(name.to_vec(), found);
        }
    }

    fn found(&mut self, name: &[u8], there: &There) -> Found {
        let mount = self.mount_of(name, there);
        let of = self.kernel_file_system(name, there.dev);
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        let found = record(name, there);
        self.list.push(if of.is_some() {
            Path { view: true, size: 0, mtime: (0, 0), ..found }
        } else {
            found
        });
        self.note_bars(id, there.bars(mount));
        Found::Known { dev: there.dev, ino: there.ino, id, of }
    }

    fn note_bars(&mut self, id: PathId, bars: Bars) {
        if bars != Bars::default() {
            self.bars.insert(id, bars);
        }
    }

    /// What the mount of a name forbids, asked once per mount; before Linux 5.8 nothing is known of that. What is asked tells of the file system, too.
    fn mount_of(&mut self, name: &[u8], there: &There) -> FsFlags {
        let Some(mount) = there.mount else { return FsFlags::empty() };
        if let Some(&flags) = self.mounts.get(&mount) {
            return flags;
        }
        let name = std::path::Path::new(std::ffi::OsStr::from_bytes(name));
        // statfs(2) would follow a symbolic link. Those lie on the mount of their directories.
        let is_link = file_type(there.mode) == SFlag::S_IFLNK;
        let asked = if is_link { name.parent().unwrap_or(name) } else { name };
        let Ok(found) = statfs(asked) else { return FsFlags::empty() };
        self.file_systems.entry(there.dev).or_insert_with(|| FileSystem::of(found.filesystem_type().0));
        self.mounts.insert(mount, found.flags());
        found.flags()
    }

    /// The file system when it is one whose files say something about processes or the running kernel. Asked once per device.
    pub(crate) fn kernel_file_system(&mut self, name: &[u8], dev: u64) -> Option<FileSystem> {
        *self.file_systems.entry(dev).or_insert_with(|| {
            // The name itself can be gone, or be a symbolic link, which statfs would follow.
            let on_it = |path: &&std::path::Path| {
                let found = lstat(*path);
                found.is_ok_and(|found| found.st_dev == dev && file_type(found.st_mode) != SFlag::S_IFLNK)
            };
            let asked = std::path::Path::new(std::ffi::OsStr::from_bytes(name)).ancestors().find(on_it)?;
            FileSystem::of(statfs(asked).ok()?.filesystem_type().0)
        })
    }

    /// Adds a terminal, whose name need not lead to it any more.
    pub(crate) fn terminal(&mut self, name: &[u8], open: &FileStat) -> PathId {
        if let Some(Found::Known { dev, ino, id, .. }) = self.by_name.get(name)
            && (*dev, *ino) == (open.st_dev, open.st_ino)
        {
            return *id;
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(Path { size: 0, mtime: (0, 0), ..record(name, &There::from(open)) });
        self.by_name.insert(name.to_vec(), Found::Known { dev: open.st_dev, ino: open.st_ino, id, of: None });
        id
    }

    /// All records, in the order of their ids, and the contents of those without a name. Makes names for those that are to have one.
    ///
    /// # Errors
    /// Such a name cannot be made.
    pub(crate) fn into_list(self) -> anyhow::Result<(Vec<Path>, Vec<deleted::Found>, Helpers)> {
        Ok((self.list, self.deleted.into_found(), self.others.make()?))
    }
}

fn record(name: &[u8], found: &There) -> Path {
    Path {
        path: name.to_vec(),
        mode: found.mode,
        size: found.size,
        mtime: found.mtime,
        dev: found.dev,
        ino: found.ino,
        rdev: found.rdev,
        deleted: None,
        view: false,
        other_name: None,
        build_id: Vec::new(),
        embedded: None,
    }
}

/// Where a link in `/proc` leads, empty if it is longer than the kernel tells (do_proc_readlink() of fs/proc/base.c).
///
/// # Errors
/// It cannot be read.
pub(crate) fn link_of(dir: &Dir, name: &str) -> io::Result<Vec<u8>> {
    match dir.link(name) {
        Err(e) if e.raw_os_error() == Some(Errno::ENAMETOOLONG as i32) => Ok(Vec::new()),
        link => Ok(link?.as_bytes().to_vec()),
    }
}

/// The file type bits of a mode.
pub(crate) fn file_type(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

/// The path of a link of a task: `exe`, `cwd`, `root`.
pub(crate) fn dump_link(
    dir: &Dir,
    name: &str,
    paths: &mut Paths,
    refuse: &mut Refuse<'_>,
) -> anyhow::Result<PathId> {
    let link = link_of(dir, name).with_context(|| format!("read {name}"))?;
    let stat = dir.stat(name).with_context(|| format!("stat {name}"))?;
    let what = if name == "exe" { Use::Mapped } else { Use::Directory };
    let found = paths.resolve(&link, &stat, what, || dir.open(name));
    let executes = |path| name == "exe" && paths.bars(path).mapping(false, true).is_some();
    Ok(match found {
        Ok(path) if executes(path) => {
            refuse.with_hint("exe", Lost::NoExec.to_string(), REMOUNT);
            path
        }
        Ok(path) => path,
        Err(lost) => {
            let object = format!("{name} ({})", String::from_utf8_lossy(&link));
            match name {
                "exe" => refuse.with_hint(object, lost.to_string(), START_AGAIN),
                "cwd" => refuse.with_hint(object, lost.to_string(), LEAVE),
                _ => refuse.because(object, lost.to_string()),
            }
            PathId(u32::MAX)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::stat;
    use std::fs;

    const OPEN: Use = Use::Open(0);

    fn name(path: &std::path::Path) -> &[u8] {
        path.as_os_str().as_bytes()
    }

    #[test]
    fn hidden_unlinked_and_deleted_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "old").unwrap();
        let open = stat(&file).unwrap();
        let resolve = |name: &[u8], open: &FileStat| {
            Paths::new(0, false).resolve(name, open, OPEN, || File::open(&file).map(Into::into))
        };
        let id = resolve(name(&file), &open).unwrap();
        assert_eq!(id, PathId(0));

        fs::rename(&file, dir.path().join("sub/a")).unwrap();
        let gone = [name(&file), deleted::MARK].concat();
        assert_eq!(resolve(&gone, &open), Err(Lost::OtherNames));
        fs::rename(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        assert_eq!(resolve(&gone, &open), Ok(PathId(0)));
        assert_eq!(resolve(name(&file), &open), Err(Lost::Hidden));
        let mut unlinked = open;
        unlinked.st_nlink = 0;
        assert_eq!(resolve(name(&file), &unlinked), Err(Lost::Deleted));
    }

    #[test]
    fn a_path_is_recorded_once() {
        let mut paths = Paths::new(0, false);
        let mut resolve = |name: &[u8], open: &FileStat| {
            paths.resolve(name, open, OPEN, || Err(io::ErrorKind::NotFound.into()))
        };
        let null = stat("/dev/null").unwrap();
        assert_eq!(resolve(b"/dev/null", &null), resolve(b"/dev/null", &null));
        let version = stat("/proc/version").unwrap();
        assert_eq!(resolve(b"/proc/version", &version), resolve(b"/proc/version", &version));
        let task = format!("/proc/{}/stat", std::process::id());
        assert!(matches!(resolve(task.as_bytes(), &stat(task.as_str()).unwrap()), Err(Lost::Kernel(_))));
        assert_eq!(resolve(b"", &version), Err(Lost::TooLong));
        assert_eq!(paths.into_list().unwrap().0.len(), 3);
    }
}
