//! Names in the file system, each recorded once for the tree, and only if it still leads to what is open.

use images::PathId;
use images::file::Path;
use nix::sys::stat::{FileStat, SFlag, stat};
use nix::sys::statfs::statfs;
use std::collections::HashMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// Why a file cannot be opened again by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// No link is left.
    Deleted,
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
            Self::Deleted | Self::Kernel(_) | Self::Unreachable => CLOSE,
            Self::Renamed | Self::Replaced => {
                "have the program close it, or open the present file, before the dump"
            }
        }
    }

    /// The way out for a mapping.
    pub(crate) fn unmap(self) -> &'static str {
        match self {
            Self::Kernel(_) | Self::Unreachable => UNMAP,
            Self::Deleted | Self::Renamed | Self::Replaced => {
                "have the program unmap it, or start it again with the present file"
            }
        }
    }
}

/// The way out for descriptors of any kind that is not supported.
pub(crate) const CLOSE: &str = "have the program close it before the dump";
/// The way out for mappings of any kind that is not supported.
pub(crate) const UNMAP: &str = "have the program unmap it before the dump";

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "the file has been deleted",
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
#[derive(Debug, Default)]
pub(crate) struct Paths {
    list: Vec<Path>,
    by_name: HashMap<Vec<u8>, Found>,
    file_systems: HashMap<u64, Option<&'static str>>,
}

impl Paths {
    /// The record for an open file: `name` as its link in /proc shows it, `open` as fstat shows it.
    pub(crate) fn resolve(&mut self, name: &[u8], open: &FileStat) -> Result<PathId, Lost> {
        if !name.starts_with(b"/") {
            return Err(Lost::Unreachable);
        }
        if open.st_nlink == 0 {
            return Err(Lost::Deleted);
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

    fn look_up(&mut self, name: &[u8]) -> Found {
        let Ok(there) = stat(std::ffi::OsStr::from_bytes(name)) else { return Found::Lost(Lost::Renamed) };
        if let Some(kernel) = self.kernel_file_system(name, there.st_dev) {
            return Found::Lost(Lost::Kernel(kernel));
        }
        let id = PathId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(Path {
            path: name.to_vec(),
            mode: there.st_mode,
            size: u64::try_from(there.st_size).unwrap_or(0),
            mtime: (there.st_mtime, u32::try_from(there.st_mtime_nsec).unwrap_or(0)),
            dev: there.st_dev,
            ino: there.st_ino,
            rdev: there.st_rdev,
        });
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
        self.list.push(Path {
            path: name.to_vec(),
            mode: open.st_mode,
            size: 0,
            mtime: (0, 0),
            dev: open.st_dev,
            ino: open.st_ino,
            rdev: open.st_rdev,
        });
        self.by_name.insert(name.to_vec(), Found::Known { dev: open.st_dev, ino: open.st_ino, id });
        id
    }

    /// All records, in the order of their ids.
    pub(crate) fn into_list(self) -> Vec<Path> {
        self.list
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
        let id = Paths::default().resolve(name(&file), &open).unwrap();
        assert_eq!(id, PathId(0));

        fs::write(dir.path().join("b"), "new").unwrap();
        fs::rename(dir.path().join("b"), &file).unwrap();
        assert_eq!(Paths::default().resolve(name(&file), &open), Err(Lost::Replaced));
        fs::remove_file(&file).unwrap();
        assert_eq!(Paths::default().resolve(name(&file), &open), Err(Lost::Renamed));
        let mut unlinked = open;
        unlinked.st_nlink = 0;
        assert_eq!(Paths::default().resolve(name(&file), &unlinked), Err(Lost::Deleted));
    }

    #[test]
    fn a_path_is_recorded_once() {
        let mut paths = Paths::default();
        let null = stat("/dev/null").unwrap();
        assert_eq!(paths.resolve(b"/dev/null", &null), paths.resolve(b"/dev/null", &null));
        let version = stat("/proc/version").unwrap();
        assert_eq!(paths.resolve(b"/proc/version", &version), Err(Lost::Kernel("procfs")));
        assert_eq!(paths.into_list().len(), 1);
    }
}
