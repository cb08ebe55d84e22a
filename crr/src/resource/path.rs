//! Names in the file system, each recorded once for the tree, and only if it still leads to what is open.

use super::deleted;
use images::PathId;
use images::file::Path;
use nix::sys::stat::{FileStat, SFlag, stat};
use nix::sys::statfs::statfs;
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
    /// The name leads nowhere.
    Renamed,
    /// The name leads to another file.
    Replaced,
    /// On a file system whose files are views of the kernel's state.
    Kernel(&'static str),
    /// Not a path.
    Unreachable,
}

impl Lost {
    /// The way out for a descriptor.
    pub(crate) fn close(self) -> &'static str {
        match self {
            Self::Deleted | Self::Kernel(_) | Self::Unreachable | Self::Unreadable => CLOSE,
            Self::Large { .. } => RAISE,
            Self::Renamed | Self::Replaced => {
                "have the program close it, or open the present file, before the dump"
            }
        }
    }

    /// The way out for a mapping.
    pub(crate) fn unmap(self) -> &'static str {
        match self {
            Self::Kernel(_) | Self::Unreachable | Self::Unreadable => UNMAP,
            Self::Large { .. } => RAISE,
            Self::Deleted | Self::Renamed | Self::Replaced => {
                "have the program unmap it, or start it again with the present file"
            }
        }
    }
}

/// The way out for what is too large.
const RAISE: &str = "raise --ghost-limit, or have the program close it before the dump";
/// The way out for descriptors of any kind that is not supported.
pub(crate) const CLOSE: &str = "have the program close it before the dump";
/// The way out for mappings of any kind that is not supported.
pub(crate) const UNMAP: &str = "have the program unmap it before the dump";

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
            Self::Renamed => "the file is no longer under this name",
            Self::Replaced => "another file now has this name",
            Self::Kernel(name) => return write!(f, "files of {name} are not supported"),
            Self::Unreachable => "not reachable by a path",
        })
    }
}

/// What a name was found to lead to.
#[derive(Clone, Copy, Debug)]
enum Found {
    Known { dev: u64, ino: u64, id: PathId },
    Lost(Lost),
}

/// The table of paths being collected.
#[derive(Debug)]
pub(crate) struct Paths {
    list: Vec<Path>,
    deleted: deleted::Table,
    by_name: HashMap<Vec<u8>, Found>,
    file_systems: HashMap<u64, Option<&'static str>>,
}

impl Paths {
    /// An empty one. Deleted files may have so many bytes of contents.
    pub(crate) fn new(ghost_limit: u64) -> Self {
        Self {
            list: Vec::new(),
            deleted: deleted::Table::new(ghost_limit),
            by_name: HashMap::new(),
            file_systems: HashMap::new(),
        }
    }

    /// The record for an open file: `name` as its link in /proc shows it, `open` as fstat shows it; `reopen` opens it by the link.
    pub(crate) fn resolve(
        &mut self,
        name: &[u8],
        open: &FileStat,
        reopen: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<PathId, Lost> {
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
            Found::Known { dev, ino, id } if (dev, ino) == (open.st_dev, open.st_ino) => Ok(id),
            Found::Known { .. } => Err(Lost::Replaced),
            Found::Lost(lost) => Err(lost),
        }
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
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        let (name, deleted) = self.deleted.add(link, open, id, || reopen().map(File::from))?;
        self.list.push(Path { deleted: Some(deleted), ..record(&name, open) });
        Ok(id)
    }

    /// The record for a file that is watched and lies under this name: `there` is what lstat(2) says of it.
    pub(crate) fn watched(&mut self, name: &[u8], there: &FileStat) -> Result<PathId, Lost> {
        let is_link = file_type(there.st_mode) == SFlag::S_IFLNK;
        if !is_link && self.by_name.contains_key(name) {
            return self.resolve(name, there, || Err(io::ErrorKind::NotFound.into()));
        }
        if let Some(kernel) = self.kernel_file_system(name, there.st_dev) {
            return Err(Lost::Kernel(kernel));
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(record(name, there));
        if !is_link {
            self.by_name.insert(name.to_vec(), Found::Known { dev: there.st_dev, ino: there.st_ino, id });
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
        let Ok(there) = stat(std::ffi::OsStr::from_bytes(name)) else { return Found::Lost(Lost::Renamed) };
        if let Some(kernel) = self.kernel_file_system(name, there.st_dev) {
            return Found::Lost(Lost::Kernel(kernel));
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(record(name, &there));
        Found::Known { dev: there.st_dev, ino: there.st_ino, id }
    }

    /// The name of the file system when it is one whose files say something about processes or the running
    /// kernel. Asked once per device.
    fn kernel_file_system(&mut self, name: &[u8], dev: u64) -> Option<&'static str> {
        *self.file_systems.entry(dev).or_insert_with(|| {
            let kind = statfs(std::ffi::OsStr::from_bytes(name)).ok()?.filesystem_type().0;
            // include/uapi/linux/magic.h
            match kind {
                0x9fa0 => Some("procfs"),
                0x6265_6572 => Some("sysfs"),
                0x6462_6720 => Some("debugfs"),
                0x7472_6163 => Some("tracefs"),
                _ => None,
            }
        })
    }

    /// Adds a terminal, whose name need not lead to it any more.
    pub(crate) fn terminal(&mut self, name: &[u8], open: &FileStat) -> PathId {
        if let Some(Found::Known { dev, ino, id }) = self.by_name.get(name)
            && (*dev, *ino) == (open.st_dev, open.st_ino)
        {
            return *id;
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(Path { size: 0, mtime: (0, 0), ..record(name, open) });
        self.by_name.insert(name.to_vec(), Found::Known { dev: open.st_dev, ino: open.st_ino, id });
        id
    }

    /// All records, in the order of their ids, and the contents of those without a name.
    pub(crate) fn into_list(self) -> (Vec<Path>, Vec<deleted::Found>) {
        (self.list, self.deleted.into_found())
    }
}

fn record(name: &[u8], found: &FileStat) -> Path {
    Path {
        path: name.to_vec(),
        mode: found.st_mode,
        size: u64::try_from(found.st_size).unwrap_or(0),
        mtime: (found.st_mtime, u32::try_from(found.st_mtime_nsec).unwrap_or(0)),
        dev: found.st_dev,
        ino: found.st_ino,
        rdev: found.st_rdev,
        deleted: None,
    }
}

/// The file type bits of a mode.
pub(crate) fn file_type(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn name(path: &std::path::Path) -> &[u8] {
        path.as_os_str().as_bytes()
    }

    #[test]
    fn replaced_renamed_and_deleted_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "old").unwrap();
        let open = stat(&file).unwrap();
        let resolve = |name: &[u8], open: &FileStat| {
            Paths::new(0).resolve(name, open, || File::open(&file).map(Into::into))
        };
        let id = resolve(name(&file), &open).unwrap();
        assert_eq!(id, PathId(0));

        fs::write(dir.path().join("b"), "new").unwrap();
        fs::rename(dir.path().join("b"), &file).unwrap();
        assert_eq!(resolve(name(&file), &open), Err(Lost::Replaced));
        fs::remove_file(&file).unwrap();
        assert_eq!(resolve(name(&file), &open), Err(Lost::Renamed));
        let mut unlinked = open;
        unlinked.st_nlink = 0;
        assert_eq!(resolve(name(&file), &unlinked), Err(Lost::Deleted));
    }

    #[test]
    fn a_path_is_recorded_once() {
        let mut paths = Paths::new(0);
        let mut resolve =
            |name: &[u8], open: &FileStat| paths.resolve(name, open, || Err(io::ErrorKind::NotFound.into()));
        let null = stat("/dev/null").unwrap();
        assert_eq!(resolve(b"/dev/null", &null), resolve(b"/dev/null", &null));
        let version = stat("/proc/version").unwrap();
        assert_eq!(resolve(b"/proc/version", &version), Err(Lost::Kernel("procfs")));
        assert_eq!(paths.into_list().0.len(), 1);
    }
}
