//! The present name of a file that is watched.
//!
//! By its handle the kernel opens the file itself, wherever it is by now, and `/proc` shows the name under which it knows it. It
//! may know none, if nobody has used the file for long; and some file systems have no handles that can be opened (overlayfs, procfs). Then the
//! names that the tree uses otherwise are tried, and the directories above them. Overlayfs makes its handles of those of its layers
//! ([`overlay`]): what can be opened in a layer has the same name there, but for its beginning. Directories are not looked through: that would
//! be an event to whoever watches them.

use super::{Nameless, overlay};
use crate::proc::fdinfo;
use crate::proc::inotify::WatchedFile;
use crate::proc::mountinfo::{self, Mount, device_of};
use crate::resource::path::{Lost, Paths, file_type};
use crate::sys::handle;
use anyhow::{Context, Result};
use images::PathId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlink};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat};
use nix::unistd::fchdir;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const SYMLINK: Nameless = Nameless::new("its name leads to another file by now");
const OUTSIDE: Nameless = Nameless {
    reason: "a deleted file that no task of the tree has open",
    hint: "have the program remove the watch (inotify_rm_watch) before the dump",
};
const NO_MOUNT: Nameless = Nameless::new("of a mount or file system that crr has no name for");
const NO_HANDLE: Nameless = Nameless {
    reason: "on a file system that does not tell its name",
    hint: "have the program open the file or directory as well, or close the descriptor, before the dump",
};
const NO_RIGHT: Nameless = Nameless {
    reason: "crr may not find files by their handles",
    hint: "run crr as root, or give it CAP_DAC_READ_SEARCH",
};
const FORGOTTEN: Nameless = Nameless {
    reason: "the kernel does not know its name at the moment",
    hint: "look at the file by its name (ls -ld), and dump again",
};

/// For the name alone, which nobody is told of.
const O_PATH: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Where file systems are mounted, each asked once. While it looks for files it is in their file systems, and in the end back where
/// crr was.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    mounts: Option<Vec<Mount>>,
    /// For each device, the places where it is mounted, by descriptors that only lead there.
    roots: HashMap<u32, Vec<OwnedFd>>,
    /// What the tree uses otherwise, by device and inode as [`WatchedFile`] has them; made when first needed.
    used: Option<HashMap<(u32, u64), Vec<Named>>>,
    here: Option<OwnedFd>,
    /// Where it is: device, and which of its places.
    at: Option<(u32, usize)>,
}

/// A file at a name.
#[derive(Clone, Debug)]
struct Named {
    name: PathBuf,
    stat: FileStat,
}

impl Drop for Finder {
    fn drop(&mut self) {
        // It was the current directory, and is one still.
        if let Some(Err(errno)) = self.here.take().map(fchdir) {
            log::warn!("back to the current directory: {errno}");
        }
    }
}

impl Finder {
    /// The path of what is watched, or why there is none.
    pub(crate) fn find(
        &mut self,
        watched: &WatchedFile,
        paths: &mut Paths,
    ) -> Result<Result<PathId, Nameless>> {
        let (mut seen, mut unopened) = (false, NO_HANDLE);
        if let Some((kind, handle)) = &watched.handle {
            for root in 0..self.roots(watched.device)?.len() {
                if self.go(watched.device, root).is_err() {
                    continue;
                }
                let file = match handle::open(*kind, handle) {
                    Ok(file) => file,
                    Err(errno) => {
                        unopened = if errno == Errno::EPERM { NO_RIGHT } else { unopened };
                        continue;
                    }
                };
                let stat = fstat(&file).context("fstat")?;
                if stat.st_ino != watched.ino {
                    continue;
                }
                seen = true;
                if stat.st_nlink == 0 {
                    return Ok(paths.known_deleted(&stat).ok_or(OUTSIDE));
                }
                let name =
                    readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).context("readlink")?;
                if is_at(&name, &stat) {
                    return Ok(paths.watched(name.as_bytes(), &stat).map_err(why));
                }
            }
        }
        let name = match self.used_otherwise(watched, paths)? {
            None => self.by_a_layer(watched)?,
            used => used,
        };
        if let Some(Named { name, stat }) = name {
            return Ok(paths.watched(name.as_os_str().as_bytes(), &stat).map_err(why));
        }
        Ok(Err(if seen { FORGOTTEN } else { unopened }))
    }

    /// The name that the tree uses it by otherwise, if only one file can be meant: of files in the layers of an overlayfs, several may
    /// have one inode.
    fn used_otherwise(&mut self, watched: &WatchedFile, paths: &Paths) -> Result<Option<Named>> {
        if self.used.is_none() {
            self.used = Some(used(paths, self.mounts()?));
        }
        let all = self.used.as_ref().and_then(|used| used.get(&(watched.device, watched.ino)));
        let mut files =
            all.into_iter().flatten().filter(|file| has_handle(&file.name, watched) != Some(false));
        let first = files.next();
        let one = files.all(|other| first.is_some_and(|file| file.stat.st_dev == other.stat.st_dev));
        Ok(first.filter(|_| one).cloned())
    }

    /// The name of a file of an overlayfs, by that which it has in a layer, if that can be seen from here.
    fn by_a_layer(&mut self, watched: &WatchedFile) -> Result<Option<Named>> {
        let Some((kind, handle)) = watched.handle.as_ref().and_then(overlay::in_layer) else {
            return Ok(None);
        };
        let mounts = self.mounts()?;
        let here: Vec<Mount> =
            mounts.iter().filter(|mount| mount.device == watched.device).cloned().collect();
        let devices: BTreeSet<u32> =
            mounts.iter().filter(|mount| overlay::is_local(mount)).map(|mount| mount.device).collect();
        for device in devices {
            for root in 0..self.roots(device)?.len() {
                if self.go(device, root).is_err() {
                    continue;
                }
                let Ok(file) = handle::open(kind, handle) else { continue };
                let name =
                    readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).context("readlink")?;
                let mut names = overlay::names(Path::new(&name), &here);
                if let Some(name) = names.find(|name| has_handle(name, watched) == Some(true)) {
                    let stat = lstat(&name).context("stat what is watched")?;
                    return Ok(Some(Named { name, stat }));
                }
            }
        }
        Ok(None)
    }

    /// Where a mount is that nothing else is mounted over.
    pub(crate) fn find_mount(
        &mut self,
        is_it: impl Fn(&Mount) -> bool,
        paths: &mut Paths,
    ) -> Result<Result<PathId, Nameless>> {
        let Some(mount) = self.mounts()?.iter().find(|mount| is_it(mount) && is_mounted(mount)) else {
            return Ok(Err(NO_MOUNT));
        };
        let point = mount.point.clone();
        let there = lstat(OsStr::from_bytes(&point)).context("stat a mount")?;
        Ok(paths
            .watched(&point, &there)
            .map_err(|_| Nameless::new("of a file system that shows the kernel's state")))
    }

    /// Makes a place where a device is mounted the current directory.
    fn go(&mut self, device: u32, root: usize) -> Result<()> {
        if self.at != Some((device, root)) {
            if self.here.is_none() {
                let here = nix::fcntl::open(".", O_PATH, Mode::empty());
                self.here = Some(here.context("current directory")?);
            }
            fchdir(&self.roots[&device][root]).context("fchdir")?;
            self.at = Some((device, root));
        }
        Ok(())
    }

    fn mounts(&mut self) -> Result<&[Mount]> {
        if self.mounts.is_none() {
            let text = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
            let mut mounts = mountinfo::parse(&text)?;
            // Names below a part of a file system may lead out of that part.
            mounts.sort_by_key(|mount| mount.root.len());
            self.mounts = Some(mounts);
        }
        Ok(self.mounts.as_deref().unwrap_or_default())
    }

    fn roots(&mut self, device: u32) -> Result<&[OwnedFd]> {
        self.mounts()?;
        let mounts = self.mounts.iter().flatten().filter(|mount| mount.device == device);
        Ok(self.roots.entry(device).or_insert_with(|| mounts.filter_map(root_of).collect()))
    }
}

/// Whether its name leads to a mount, and to no other that came over it.
pub(crate) fn is_mounted(mount: &Mount) -> bool {
    top_of(mount).is_some()
}

/// The directory that is mounted, by its name; `None` if it is a file, or its name leads elsewhere.
fn root_of(mount: &Mount) -> Option<OwnedFd> {
    let is_directory =
        |there: &OwnedFd| fstat(there).is_ok_and(|there| file_type(there.st_mode) == SFlag::S_IFDIR);
    top_of(mount).filter(is_directory)
}

/// What is mounted, by its name; `None` if that leads elsewhere. Nothing is mounted for that (`follow_automount()`, fs/namei.c), and nobody is asked.
fn top_of(mount: &Mount) -> Option<OwnedFd> {
    let open = || -> Result<Option<OwnedFd>> {
        let there = nix::fcntl::open(OsStr::from_bytes(&mount.point), O_PATH, Mode::empty())?;
        let text = std::fs::read(format!("/proc/self/fdinfo/{}", there.as_raw_fd()))?;
        Ok((fdinfo::parse(&text)?.mount == mount.id).then_some(there))
    };
    open().ok().flatten()
}

/// The names that a tree uses, and the directories above them. What stat(2) gives as a file's device is not always that of its file
/// system (overlayfs, btrfs): it is taken from the mount (Linux 5.8).
fn used(paths: &Paths, mounts: &[Mount]) -> HashMap<(u32, u64), Vec<Named>> {
    let devices: HashMap<u64, u32> = mounts.iter().map(|mount| (u64::from(mount.id), mount.device)).collect();
    let names: BTreeSet<&Path> = paths.names().flat_map(Path::ancestors).collect();
    let mut used: HashMap<_, Vec<_>> = HashMap::new();
    for name in names {
        let Ok(there) = lstat(name) else { continue };
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let mount = statx(CWD, name, flags, StatxFlags::MNT_ID).ok().map(|there| there.stx_mnt_id);
        let device = mount.and_then(|mount| devices.get(&mount).copied());
        let device = device.or_else(|| u32::try_from(device_of(there.st_dev)).ok());
        if let Some(device) = device {
            used.entry((device, there.st_ino))
                .or_default()
                .push(Named { name: name.to_owned(), stat: there });
        }
    }
    used
}

/// Whether the file at a name is the one that is watched, by their handles; `None` if the kernel does not tell.
fn has_handle(name: &Path, watched: &WatchedFile) -> Option<bool> {
    let wanted = watched.handle.as_ref()?;
    let name = CString::new(name.as_os_str().as_bytes()).ok()?;
    match handle::of(&name) {
        Ok(handle) => Some(handle == *wanted),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Some(false),
        Err(_) => None,
    }
}

/// Whether a name leads to a file, without following a symbolic link.
fn is_at(name: &OsStr, file: &FileStat) -> bool {
    lstat(name).is_ok_and(|there| (there.st_dev, there.st_ino) == (file.st_dev, file.st_ino))
}

fn why(lost: Lost) -> Nameless {
    match lost {
        Lost::Kernel(_) => Nameless::new("on a file system that shows the kernel's state"),
        _ => SYMLINK,
    }
}
