//! Files, directories and FIFOs that are open, mapped or stood in and have no name any more, and memfds, which never had one: their
//! contents travel in the images.

pub(crate) mod recreate;

use super::hugetlb;
use super::path::Lost;
use super::there::Bars;
use crate::proc::Dir;
use crate::proc::tasks::outside;
use crate::progress;
use crate::refusal::{Refusal, Refusals};
use anyhow::Result;
use images::file::Deleted;
use images::memory::HugePage;
use images::{PathId, Pid};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, SFlag, stat};
use nix::sys::statfs::{Statfs, fstatfs, statfs};
use nix::sys::statvfs::FsFlags;
use nix::unistd::{AccessFlags, access};
use std::collections::BTreeMap;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use xattr::FileExt;

/// What `/proc` puts behind a name that is gone: d_path() of fs/d_path.c.
pub(crate) const MARK: &[u8] = b" (deleted)";
/// What memfds are called: MFD_NAME_PREFIX of mm/memfd.c.
pub(crate) const MEMFD: &[u8] = b"/memfd:";

/// One that was found, open for its contents.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: PathId,
    pub(crate) file: File,
    /// Device and inode.
    key: (u64, u64),
    name: Vec<u8>,
}

/// Those of a tree.
#[derive(Debug)]
pub(crate) struct Table {
    /// Bytes of contents that a file may have.
    limit: u64,
    by_key: BTreeMap<(u64, u64), PathId>,
    found: Vec<Found>,
}

impl Table {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, by_key: BTreeMap::new(), found: Vec::new() }
    }

    /// One that is known already.
    pub(crate) fn known(&self, open: &FileStat) -> Option<PathId> {
        self.by_key.get(&(open.st_dev, open.st_ino)).copied()
    }

    /// Takes up one whose link in `/proc` is `link`; its record is to get the number `path`. Its name comes with what is special about it, and with what will keep
    /// it from being mapped where it is made again.
    /// A file or a directory is opened anew by `reopen`, a FIFO is not: it gives the description that the tree has.
    pub(crate) fn add(
        &mut self,
        link: &[u8],
        open: &FileStat,
        path: PathId,
        reopen: impl FnOnce() -> std::io::Result<File>,
    ) -> Result<(Vec<u8>, Deleted, Bars), Lost> {
        let kind = SFlag::from_bits_truncate(open.st_mode) & SFlag::S_IFMT;
        let name = link.strip_suffix(MARK).filter(|name| !name.is_empty()).ok_or(Lost::Deleted)?;
        if ![SFlag::S_IFREG, SFlag::S_IFDIR, SFlag::S_IFIFO].contains(&kind) {
            return Err(Lost::Deleted);
        }
        let file = reopen().map_err(|_| Lost::Unreadable)?;
        if kind != SFlag::S_IFIFO {
            // Reading it is not to show. Who may not ask for that is not its owner, and has no better way.
            let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NOATIME));
        }
        let home = fstatfs(&file).map_err(|_| Lost::Unreadable)?;
        let huge = hugetlb::of_file(&file).map_err(|_| Lost::Unreadable)?;
        let (seals, bars) = if name.starts_with(MEMFD) {
            if std::str::from_utf8(name).is_err() {
                return Err(Lost::Deleted);
            }
            // Anything else there may be under such a name is no tmpfs file, and has no seals.
            let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| Lost::Deleted)?;
            (Some(seals.cast_unsigned()), Bars::default())
        } else {
            (None, Bars::of_mount(place_for(name, &home)?))
        };
        let data = u64::try_from(open.st_blocks).unwrap_or(0) * 512;
        if kind == SFlag::S_IFREG && data > self.limit {
            return Err(Lost::Large { data, limit: self.limit });
        }
        let deleted = Deleted {
            uid: open.st_uid,
            gid: open.st_gid,
            atime: (open.st_atime, u32::try_from(open.st_atime_nsec).unwrap_or(0)),
            xattrs: xattrs(&file).map_err(|_| Lost::Unreadable)?,
            seals,
            huge,
            runs: Vec::new(),
        };
        let key = (open.st_dev, open.st_ino);
        self.by_key.insert(key, path);
        // A FIFO has its contents, and who else has it, as a pipe.
        if kind != SFlag::S_IFIFO {
            self.found.push(Found { path, file, key, name: name.to_vec() });
        }
        Ok((name.to_vec(), deleted, bars))
    }

    /// Refuses what tasks outside of the tree have open or mapped too: it would be another file for them.
    pub(crate) fn refuse_outsiders(&self, tree: &HashSet<Pid>, refusals: &mut Refusals) -> Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        for other in outside(tree)? {
            for found in self.held_by(&other.dir) {
                refusals.push(Refusal {
                    task: None,
                    object: format!("{} (deleted)", String::from_utf8_lossy(&found.name)),
                    reason: format!("also open or mapped in {other}, outside of the tree"),
                    hint: Some("dump a tree that has both, or end the other task first".into()),
                });
            }
        }
        Ok(())
    }

    fn held_by(&self, dir: &Dir) -> Vec<&Found> {
        let mut links: Vec<String> = ["exe", "cwd", "root"].map(str::to_owned).into();
        let fds = dir.numbers::<u32>("fd").unwrap_or_default();
        links.extend(fds.into_iter().map(|fd| format!("fd/{fd}")));
        let mut maps = Vec::new();
        if dir.read("maps", &mut maps).is_ok() {
            let gone = maps.split(|&byte| byte == b'\n').filter(|line| line.ends_with(MARK));
            links.extend(gone.filter_map(|line| {
                let range = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
                Some(format!("map_files/{range}"))
            }));
        }
        let is_gone = |link: &String| dir.link(link).is_ok_and(|target| target.as_bytes().ends_with(MARK));
        let keys: Vec<(u64, u64)> = (links.iter().filter(|link| is_gone(link)))
            .filter_map(|link| dir.stat(link).ok())
            .map(|stat| (stat.st_dev, stat.st_ino))
            .collect();
        self.found.iter().filter(|found| keys.contains(&found.key)).collect()
    }

    /// All of them, to be read.
    pub(crate) fn into_found(self) -> Vec<Found> {
        self.found
    }
}

/// The mount on which a file can be made again where it was: what is left of the path leads to its file system, and is not read-only (a mount, or a directory with
/// `chattr +i`). Rights are another matter: the restore may have others.
fn place_for(name: &[u8], home: &Statfs) -> Result<FsFlags, Lost> {
    let identity = |at: &Statfs| (at.filesystem_type().0, at.filesystem_id());
    for dir in Path::new(OsStr::from_bytes(name)).ancestors().skip(1) {
        let fixed = match access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => false,
            Err(Errno::EROFS | Errno::EPERM) => true,
            Err(Errno::EACCES) if stat(dir).is_ok() => false,
            Err(_) => continue,
        };
        return match statfs(dir) {
            Ok(at) if identity(&at) != identity(home) => Err(Lost::Deleted),
            Ok(_) if fixed => Err(Lost::NoHome),
            Ok(at) => Ok(at.flags()),
            Err(_) => Err(Lost::Deleted),
        };
    }
    Err(Lost::Deleted)
}

/// Refuses a restore that has no place to make one in.
pub(crate) fn preflight(path: &images::file::Path, refusals: &mut Refusals) {
    let name = Path::new(OsStr::from_bytes(&path.path));
    let nearest = name.ancestors().skip(1).find(|dir| dir.exists());
    let in_memory = path.deleted.as_ref().is_some_and(|deleted| deleted.seals.is_some());
    let wrong = match nearest {
        _ if in_memory => return,
        None => "there is no directory to make it in".to_owned(),
        Some(dir) if !dir.is_dir() => format!("{} is no directory any more", dir.display()),
        Some(dir) => match access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => match other_pages(dir, path.deleted.as_ref().and_then(|deleted| deleted.huge)) {
                Some(wrong) => wrong,
                None => return,
            },
            Err(errno) => format!("cannot be made in {}: {}", dir.display(), errno.desc().to_lowercase()),
        },
    };
    refusals.push(Refusal {
        task: None,
        object: format!("{} (deleted)", name.display()),
        reason: wrong,
        hint: Some("put the directories of the dump back in their place".into()),
    });
}

/// Why a file that is made in a directory would not be of these pages, if so.
fn other_pages(dir: &Path, huge: Option<HugePage>) -> Option<String> {
    let opened = File::options().read(true).custom_flags(libc::O_PATH).open(dir).ok()?;
    if hugetlb::of_file(&opened).ok()? == huge {
        return None;
    }
    let dir = dir.display();
    Some(match huge {
        Some(page) => format!("{dir} is on no hugetlbfs with pages of {}", progress::bytes(page.size())),
        None => format!("{dir} is on a hugetlbfs now"),
    })
}

pub(crate) fn xattrs(file: &File) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match file.list_xattr() {
        Ok(names) => names,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names {
        // One that only its owner is shown is gone when asked for.
        if let Some(value) = file.get_xattr(&name)? {
            found.push((name.as_bytes().to_vec(), value));
        }
    }
    Ok(found)
}
