//! What lies under a name, and what keeps it from being opened or mapped again as it is in the tree.

use super::file::O_PATH;
use super::path::Lost;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, lstat, makedev};
use nix::sys::statvfs::FsFlags;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use std::ffi::OsStr;

/// What lstat(2) tells of a name, and what only statx(2) does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct There {
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) rdev: u64,
    /// Those that the file system knows.
    attributes: StatxAttributes,
    /// The number of its mount (Linux 5.8).
    pub(crate) mount: Option<u64>,
}

impl There {
    /// What lies under a name, a symbolic link included.
    ///
    /// # Errors
    /// As lstat(2).
    pub(crate) fn look(name: &OsStr) -> nix::Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = match statx(CWD, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID) {
            Ok(found) => found,
            // Before Linux 4.11, or kept back by a filter.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => return Ok(Self::from(&lstat(name)?)),
            Err(errno) => return Err(Errno::from_raw(errno.raw_os_error())),
        };
        let device = |major: u32, minor: u32| makedev(major.into(), minor.into());
        Ok(Self {
            mode: found.stx_mode.into(),
            size: found.stx_size,
            mtime: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
            dev: device(found.stx_dev_major, found.stx_dev_minor),
            ino: found.stx_ino,
            rdev: device(found.stx_rdev_major, found.stx_rdev_minor),
            attributes: found.stx_attributes,
            mount: (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id),
        })
    }

    /// What its file and its mount forbid.
    pub(crate) fn bars(&self, mount: FsFlags) -> Bars {
        Bars { attributes: self.attributes & Bars::ATTRIBUTES, mount: mount & Bars::MOUNT }
    }
}

impl From<&FileStat> for There {
    fn from(found: &FileStat) -> Self {
        Self {
            mode: found.st_mode,
            size: u64::try_from(found.st_size).unwrap_or(0),
            mtime: (found.st_mtime, u32::try_from(found.st_mtime_nsec).unwrap_or(0)),
            dev: found.st_dev,
            ino: found.st_ino,
            rdev: found.st_rdev,
            attributes: StatxAttributes::empty(),
            mount: None,
        }
    }
}

/// What a file, or the mount that its name leads to, forbids by now. What is open or mapped may be from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bars {
    attributes: StatxAttributes,
    mount: FsFlags,
}

impl Default for Bars {
    fn default() -> Self {
        Self { attributes: StatxAttributes::empty(), mount: FsFlags::empty() }
    }
}

impl Bars {
    const ATTRIBUTES: StatxAttributes = StatxAttributes::IMMUTABLE.union(StatxAttributes::APPEND);
    const MOUNT: FsFlags = FsFlags::ST_RDONLY.union(FsFlags::ST_NOEXEC);

    /// Of a file that is made anew on a mount.
    pub(crate) fn of_mount(mount: FsFlags) -> Self {
        Self { mount: mount & FsFlags::ST_NOEXEC, ..Self::default() }
    }

    /// Why a regular file cannot be opened with these flags, if so (may_open() of fs/namei.c).
    pub(crate) fn opening(self, flags: u32) -> Option<Lost> {
        const WRITES: u32 = 3;
        const O_APPEND: u32 = 0o2000;
        if flags & O_PATH != 0 || flags & WRITES == 0 {
            return None;
        }
        if self.attributes.contains(StatxAttributes::IMMUTABLE) {
            Some(Lost::Immutable)
        } else if self.attributes.contains(StatxAttributes::APPEND) && flags & O_APPEND == 0 {
            Some(Lost::AppendOnly)
        } else {
            self.mount.contains(FsFlags::ST_RDONLY).then_some(Lost::ReadOnly)
        }
    }

    /// Why it cannot be mapped, if so: shared by a descriptor for writing, or as code (do_mmap() of mm/mmap.c).
    pub(crate) fn mapping(self, writes: bool, executes: bool) -> Option<Lost> {
        const O_RDWR: u32 = 2;
        let forbidden = executes && self.mount.contains(FsFlags::ST_NOEXEC);
        if forbidden { Some(Lost::NoExec) } else { self.opening(if writes { O_RDWR } else { 0 }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_calls_tell_the_same() {
        for name in ["/dev/null", "/", "/etc/passwd"].map(OsStr::new) {
            let (there, other) = (There::look(name).unwrap(), There::from(&lstat(name).unwrap()));
            let what = |there: There| (there.mode, there.size, there.mtime, there.dev, there.ino, there.rdev);
            assert_eq!(what(there), what(other));
        }
        assert_eq!(There::look(OsStr::new("/nowhere")).map(|there| there.ino), Err(Errno::ENOENT));
    }

    #[test]
    fn what_is_forbidden() {
        const O_RDWR_APPEND: u32 = 0o2002;
        let of = |attributes, mount| Bars { attributes, mount };
        let none = FsFlags::empty();
        let immutable = of(StatxAttributes::IMMUTABLE, none);
        assert_eq!((immutable.opening(0), immutable.opening(1)), (None, Some(Lost::Immutable)));
        assert_eq!((immutable.opening(O_PATH | 2), immutable.mapping(false, true)), (None, None));
        let append = of(StatxAttributes::APPEND, none);
        assert_eq!((append.opening(O_RDWR_APPEND), append.opening(2)), (None, Some(Lost::AppendOnly)));
        assert_eq!(append.mapping(true, false), Some(Lost::AppendOnly));
        let mount = of(StatxAttributes::empty(), FsFlags::ST_RDONLY | FsFlags::ST_NOEXEC);
        assert_eq!((mount.opening(2), mount.mapping(false, false)), (Some(Lost::ReadOnly), None));
        assert_eq!(
            (mount.mapping(true, false), mount.mapping(false, true)),
            (Some(Lost::ReadOnly), Some(Lost::NoExec))
        );
        assert_eq!(Bars::default().mapping(true, true), None);
    }
}
