//! Files whose name is gone while others lead to them: one that is beside it is found, or made (`--link-remap`).

use super::deleted::MARK;
use super::path::{Lost, file_type};
use anyhow::{Context, Result};
use images::PathId;
use images::file::OtherName;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FileStat, SFlag, lstat};
use nix::unistd::{AccessFlags, access, linkat, unlink};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

/// Entries of a directory that are looked at: the tree stands still meanwhile.
const MOST_ENTRIES: usize = 1 << 16;

/// A directory's names by inode.
type Names = HashMap<u64, Vec<OsString>>;

/// Those of a tree.
#[derive(Debug)]
pub(crate) struct Table {
    /// Names may be made.
    may_make: bool,
    directories: HashMap<PathBuf, Names>,
    /// By device, inode and the name that is gone.
    known: HashMap<(u64, u64, Vec<u8>), PathId>,
    /// Names that are to be made, and of what.
    wanted: Vec<(PathBuf, File)>,
}

impl Table {
    pub(crate) fn new(may_make: bool) -> Self {
        Self { may_make, directories: HashMap::new(), known: HashMap::new(), wanted: Vec::new() }
    }

    /// One that is known already.
    pub(crate) fn known(&self, link: &[u8], open: &FileStat) -> Option<PathId> {
        self.known.get(&(open.st_dev, open.st_ino, link.to_vec())).copied()
    }

    /// Takes up a file whose link in `/proc` is `link`; its record is to get the number `path`. The name that it had comes with another one
    /// to find it by.
    pub(crate) fn add(
        &mut self,
        link: &[u8],
        open: &FileStat,
        path: PathId,
        reopen: impl FnOnce() -> io::Result<File>,
    ) -> Result<(Vec<u8>, OtherName), Lost> {
        // A name that is still one is only hidden (d_path() of fs/d_path.c).
        let name = link.strip_suffix(MARK).ok_or(Lost::Hidden)?;
        if file_type(open.st_mode) != SFlag::S_IFREG {
            return Err(Lost::Renamed);
        }
        let old = Path::new(OsStr::from_bytes(name));
        let other = match self.beside(old, open) {
            Some(found) => {
                // One that a dump has made before, which let the tree run on, is to go, too.
                let helper = found
                    .file_name()
                    .is_some_and(|name| name.as_bytes().starts_with(prefix(open).as_bytes()));
                OtherName { name: found.into_os_string().as_bytes().to_vec(), helper }
            }
            None if !self.may_make => return Err(Lost::OtherNames),
            None => {
                let helper = self.place(old, open)?;
                let name = helper.as_os_str().as_bytes().to_vec();
                self.wanted.push((helper, reopen().map_err(|_| Lost::Unreadable)?));
                OtherName { name, helper: true }
            }
        };
        self.known.insert((open.st_dev, open.st_ino, link.to_vec()), path);
        Ok((name.to_vec(), other))
    }

    /// Another name in the same directory. Each directory is read once.
    pub(crate) fn beside(&mut self, old: &Path, open: &FileStat) -> Option<PathBuf> {
        let dir = old.parent()?;
        if !self.directories.contains_key(dir) {
            let mut names = Names::new();
            for entry in std::fs::read_dir(dir).ok()?.take(MOST_ENTRIES).flatten() {
                names.entry(entry.ino()).or_default().push(entry.file_name());
            }
            self.directories.insert(dir.to_owned(), names);
        }
        let names = self.directories.get(dir)?.get(&open.st_ino)?;
        names.iter().map(|name| dir.join(name)).find(|name| is(name, open))
    }

    /// A free name in the directory or, where that is gone, in the nearest one above.
    fn place(&self, old: &Path, open: &FileStat) -> Result<PathBuf, Lost> {
        let dir = old.ancestors().skip(1).find(|dir| dir.is_dir()).ok_or(Lost::NoPlace)?;
        let home = lstat(dir).is_ok_and(|found| found.st_dev == open.st_dev);
        if !home || access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
            return Err(Lost::NoPlace);
        }
        let names = (0..1000).map(|n| dir.join(format!("{}{n}", prefix(open))));
        let mut free = names.filter(|name| lstat(name).is_err());
        free.find(|name| self.wanted.iter().all(|(wanted, _)| wanted != name)).ok_or(Lost::NoPlace)
    }

    /// Makes the names that are needed, now that nothing is in the way of the dump.
    pub(crate) fn make(self) -> Result<Helpers> {
        let mut helpers = Helpers::default();
        for (name, file) in self.wanted {
            // linkat(2): this way it takes no CAP_DAC_READ_SEARCH.
            let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(AT_FDCWD, by_fd.as_str(), AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW)
                .with_context(|| format!("{}: make this name (--link-remap)", name.display()))?;
            helpers.made.push(name);
        }
        Ok(helpers)
    }
}

/// How helper names for a file begin.
fn prefix(open: &FileStat) -> String {
    format!(".crr-link-{}-", open.st_ino)
}

fn is(name: &Path, open: &FileStat) -> bool {
    lstat(name).is_ok_and(|found| (found.st_dev, found.st_ino) == (open.st_dev, open.st_ino))
}

/// Names that a dump has made. They go again when this value does, unless the images are complete, which need them.
#[derive(Debug, Default)]
pub(crate) struct Helpers {
    made: Vec<PathBuf>,
}

impl Helpers {
    /// The images need them from now on.
    pub(crate) fn keep(mut self) {
        for name in self.made.drain(..) {
            log::info!("{}: made for the restore, which takes it away again", name.display());
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(errno) = unlink(name) {
                log::warn!(
                    "{}: made for the dump that failed, and cannot be removed: {errno}",
                    name.display()
                );
            }
        }
    }
}

/// Takes away what the dump has made, once the tree is back.
pub(crate) fn remove_helpers(paths: &[images::file::Path]) {
    let others = paths.iter().filter_map(|path| Some((path, path.other_name.as_ref()?)));
    for (path, other) in others.filter(|(_, other)| other.helper) {
        let name = Path::new(OsStr::from_bytes(&other.name));
        let ours = lstat(name).is_ok_and(|found| (found.st_dev, found.st_ino) == (path.dev, path.ino));
        if !ours {
            log::warn!("{}: was made by the dump, and is another file by now: it stays", name.display());
        } else if let Err(errno) = unlink(name) {
            log::warn!("{}: made by the dump, and cannot be removed: {errno}", name.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn gone(name: &Path) -> Vec<u8> {
        [name.as_os_str().as_bytes(), MARK].concat()
    }

    #[test]
    fn another_name_is_found_beside_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let [old, other] = ["old", "other"].map(|name| dir.path().join(name));
        fs::write(&other, "text").unwrap();
        let open = lstat(&other).unwrap();
        let mut table = Table::new(false);
        let (name, found) = table.add(&gone(&old), &open, PathId(3), || File::open(&other)).unwrap();
        assert_eq!(name, old.as_os_str().as_bytes());
        assert_eq!(found, OtherName { name: other.as_os_str().as_bytes().to_vec(), helper: false });
        assert_eq!(table.known(&gone(&old), &open), Some(PathId(3)));
        assert_eq!(table.known(&gone(&other), &open), None);
    }

    #[test]
    fn what_a_failed_dump_has_made_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let (old, other) = (dir.path().join("old"), dir.path().join("sub/other"));
        fs::write(&other, "text").unwrap();
        let open = lstat(&other).unwrap();
        let add = |may_make| {
            let mut table = Table::new(may_make);
            let added = table.add(&gone(&old), &open, PathId(0), || File::open(&other));
            added.map(|(_, found)| (table, found))
        };
        assert_eq!(add(false).map(|(_, found)| found), Err(Lost::OtherNames));
        for keeps in [false, true] {
            let (table, found) = add(true).unwrap();
            assert!(found.helper);
            let name = PathBuf::from(OsStr::from_bytes(&found.name));
            assert_eq!(name.parent(), Some(dir.path()));
            let helpers = table.make().unwrap();
            assert!(is(&name, &open));
            if keeps {
                helpers.keep()
            } else {
                drop(helpers)
            }
            assert_eq!(is(&name, &open), keeps);
        }
    }
}
