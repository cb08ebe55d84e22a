//! Making files without a name again, and opening those whose name is gone while others lead to them.
//!
//! Each is made under the name it had, so that `/proc` shows it as before, and unlinked at once. From then on it is opened by way
//! of a descriptor (`/proc/self/fd`), which gives a description of its own as opening by name does.

use super::MEMFD;
use crate::fault::{self, Point};
use crate::resource::file::{O_ASYNC, reopen};
use crate::resource::shared_memory;
use crate::restore::open::Raiser;
use crate::store::{Aligned, Pages};
use crate::sys::mapping::SharedMapping;
use crate::sys::memfd::sealable;
use anyhow::{Context, Result, bail};
use images::PathId;
use images::file::{Deleted, Description, Files, OtherName, Path, Target};
use images::id::PAGE_SIZE;
use images::memory::Run;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence, fchown, lseek64, mkfifo, unlinkat};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;
use xattr::FileExt as _;

/// The files, each by a descriptor that only leads to it (O_PATH): one for writing would keep others from executing it.
#[derive(Debug, Default)]
pub(crate) struct Recreated {
    /// Descriptions that came with the file they are open on: what O_TMPFILE makes.
    pub(crate) descriptions: BTreeMap<usize, OwnedFd>,
    seals: Vec<(OwnedFd, SealFlag)>,
    _held: Vec<OwnedFd>,
}

/// A directory that is there for others to be made in; it goes when this value does.
#[derive(Debug)]
struct Scaffold {
    name: PathBuf,
    /// One of those that are made again, with its times of access and modification: what is made in it changes them.
    kept: Option<(File, [TimeSpec; 2])>,
}

impl Drop for Scaffold {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.name);
        if let Some((file, [atime, mtime])) = &self.kept {
            let _ = futimens(file, atime, mtime);
        }
    }
}

/// Makes all of them. In the list of paths that comes back, their names are such that they can be opened by.
///
/// # Errors
/// Names the one that cannot be made.
pub(crate) fn create_all(
    files: &Files,
    executed: &BTreeSet<PathId>,
    pages: &Pages,
    raiser: &Raiser,
) -> Result<(Recreated, Files)> {
    let mut files = files.clone();
    let mut recreated = Recreated::default();
    // The innermost goes first again: later ones may lie in earlier ones.
    let mut scaffolds: Vec<Scaffold> = Vec::new();
    let makers = makers(&files);
    let mut order: Vec<usize> = (0..files.paths.len()).collect();
    order.sort_by_key(|&index| files.paths[index].path.len());
    for index in order {
        let path = &files.paths[index];
        let name = String::from_utf8_lossy(&path.path);
        let fd = match (&path.deleted, &path.other_name) {
            (None, None) => continue,
            (Some(deleted), _) if makers.contains_key(&index) => {
                let maker = makers[&index];
                let made = unnamed(path, deleted, pages, &files.descriptions[maker], &mut scaffolds);
                made.and_then(|made| match made {
                    Some(description) => {
                        let fd = path_only(&description);
                        recreated.descriptions.insert(maker, description);
                        fd
                    }
                    None => named(path, deleted, pages, &mut scaffolds),
                })
            }
            (Some(deleted), _) if deleted.seals.is_some() => memfd(path, deleted, pages),
            (Some(deleted), _) => named(path, deleted, pages, &mut scaffolds),
            (None, Some(other)) => linked(path, other, &mut scaffolds),
        };
        let fd = fault::point(Point::RecreateFile).map_err(Into::into).and(fd);
        let fd = raiser.raise(fd.with_context(|| format!("make {name} again, which was deleted"))?)?;
        if let Some(seals) = path.deleted.as_ref().and_then(|deleted| deleted.seals) {
            let seals = SealFlag::from_bits_retain(seals.cast_signed());
            // Who seals it has it open for writing, which nobody may once a task executes it; and nobody writes to that.
            if u32::try_from(index).is_ok_and(|index| executed.contains(&PathId(index))) {
                seal(&fd, seals)?;
            } else {
                recreated.seals.push((fd.try_clone().context("dup")?, seals));
            }
        }
        files.paths[index].path = by_fd(&fd).into_bytes();
        recreated._held.push(fd);
    }
    while scaffolds.pop().is_some() {}
    Ok((recreated, files))
}

impl Recreated {
    /// Seals the memfds, when everything is mapped: some seals forbid new mappings.
    ///
    /// # Errors
    /// If the kernel does not take a seal.
    pub(crate) fn seal(&self) -> Result<()> {
        self.seals.iter().try_for_each(|(fd, seals)| seal(fd, *seals))
    }
}

fn seal(fd: &OwnedFd, seals: SealFlag) -> Result<()> {
    if !seals.is_empty() {
        let file = File::options().read(true).write(true).open(by_fd(fd)).context("memfd")?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context("seal a memfd")?;
    }
    Ok(())
}

fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn memfd(path: &Path, deleted: &Deleted, pages: &Pages) -> Result<OwnedFd> {
    let name = path.path.strip_prefix(MEMFD).context("not a memfd")?;
    let name = std::str::from_utf8(name).context("its name is no text")?;
    let file = sealable(name, deleted.huge, deleted.seals.unwrap_or_default())?;
    fill(&file, path, deleted, pages)?;
    path_only(&file)
}

/// For files that O_TMPFILE made, the description that did so. None other shows the flag.
fn makers(files: &Files) -> BTreeMap<usize, usize> {
    let made =
        files.descriptions.iter().enumerate().filter_map(|(maker, description)| match description.target {
            Target::Path(path) if description.flags & O_TMPFILE_ALONE != 0 => Some((path.0 as usize, maker)),
            _ => None,
        });
    made.filter(|(path, _)| files.paths[*path].mode & libc::S_IFMT == libc::S_IFREG).collect()
}

/// O_TMPFILE without O_DIRECTORY, which is in it.
const O_TMPFILE_ALONE: u32 = 0o20_000_000;

/// A file as O_TMPFILE makes it, with the description that does: only such a one can be given a name as long as it has none (I_LINKABLE,
/// vfs_link() of fs/namei.c). That it was not to (O_EXCL), or had a name once, nobody tells. `None` where it cannot be made.
fn unnamed(
    path: &Path,
    deleted: &Deleted,
    pages: &Pages,
    description: &Description,
    scaffolds: &mut Vec<Scaffold>,
) -> Result<Option<OwnedFd>> {
    let wanted = PathBuf::from(OsStr::from_bytes(&path.path));
    make_above(&wanted, scaffolds)?;
    let dir = wanted.parent().context("no directory")?;
    let flags = description.flags & !O_ASYNC;
    let made = match reopen::create(dir, flags) {
        Ok(made) => made,
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
            log::warn!(
                "{}: cannot be given a name any more: its file system has no O_TMPFILE",
                wanted.display()
            );
            return Ok(None);
        }
        Err(errno) => return Err(errno).context("open with O_TMPFILE"),
    };
    let file = File::options().read(true).write(true).open(by_fd(&made)).context("open by descriptor")?;
    fill(&file, path, deleted, pages)?;
    lseek64(&made, i64::try_from(description.position)?, Whence::SeekSet).context("offset")?;
    Ok(Some(made))
}

/// A file or a directory under its name, or one like it if that is taken.
fn named(path: &Path, deleted: &Deleted, pages: &Pages, scaffolds: &mut Vec<Scaffold>) -> Result<OwnedFd> {
    let is_dir = path.mode & libc::S_IFMT == libc::S_IFDIR;
    let is_fifo = path.mode & libc::S_IFMT == libc::S_IFIFO;
    let (name, file) = under_its_name(path, scaffolds, |name| {
        if is_dir {
            return fs::DirBuilder::new().mode(0o700).create(name).and_then(|()| File::open(name));
        }
        if is_fifo {
            return make_fifo(name);
        }
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(name)
    })?;
    let filled = if is_dir {
        // Others may be made in it.
        let kept = Some((file.try_clone().context("dup")?, times(path, deleted)));
        scaffolds.push(Scaffold { name, kept });
        own(&file, path, deleted)
    } else {
        let filled = if is_fifo { own(&file, path, deleted) } else { fill(&file, path, deleted, pages) };
        unlinkat(AT_FDCWD, &name, UnlinkatFlags::NoRemoveDir).context("unlink")?;
        filled
    };
    filled.and_then(|()| path_only(&file))
}

/// A file that is there under another name, by the one it had, or one like it if that is taken.
fn linked(path: &Path, other: &OtherName, scaffolds: &mut Vec<Scaffold>) -> Result<OwnedFd> {
    let by = PathBuf::from(OsStr::from_bytes(&other.name));
    let open = |name: &std::path::Path| {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        nix::fcntl::open(name, flags, Mode::empty()).with_context(|| format!("open {}", name.display()))
    };
    match under_its_name(path, scaffolds, |name| fs::hard_link(&by, name)) {
        Ok((name, ())) => {
            let opened = open(&name);
            unlinkat(AT_FDCWD, &name, UnlinkatFlags::NoRemoveDir).context("unlink")?;
            opened
        }
        Err(e)
            if e.downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem) =>
        {
            log::warn!("{}: shown by this name from now on: its file system is read-only", by.display());
            open(&by)
        }
        Err(e) => Err(e),
    }
}

/// Makes the directories above a name that are missing.
fn make_above(wanted: &std::path::Path, scaffolds: &mut Vec<Scaffold>) -> Result<()> {
    let above: Vec<_> = wanted.ancestors().skip(1).collect();
    for dir in above.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => scaffolds.push(Scaffold { name: dir.to_owned(), kept: None }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem && dir.is_dir() => {}
            Err(e) => return Err(e).with_context(|| dir.display().to_string()),
        }
    }
    Ok(())
}

/// Makes something under the name it had, or one like it if that is taken; what is missing above is there as long as the scaffolds are.
fn under_its_name<T>(
    path: &Path,
    scaffolds: &mut Vec<Scaffold>,
    make: impl Fn(&std::path::Path) -> io::Result<T>,
) -> Result<(PathBuf, T)> {
    let wanted = PathBuf::from(OsStr::from_bytes(&path.path));
    make_above(&wanted, scaffolds)?;
    for attempt in 0..1000 {
        let name = match attempt {
            0 => wanted.clone(),
            _ => {
                let mut name = wanted.clone().into_os_string();
                name.push(format!(".crr-{attempt}"));
                name.into()
            }
        };
        match make(&name) {
            Ok(made) => {
                if attempt > 0 {
                    log::warn!(
                        "{}: the name is taken: it is called {} now",
                        wanted.display(),
                        name.display()
                    );
                }
                return Ok((name, made));
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
    }
    bail!("no name like it is free");
}

/// A FIFO, open for nobody to notice: it is new.
fn make_fifo(name: &std::path::Path) -> io::Result<File> {
    mkfifo(name, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(name)
}

fn path_only(file: &impl AsRawFd) -> Result<OwnedFd> {
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::fcntl::open(name.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .context("open by descriptor")
}

fn fill(file: &File, path: &Path, deleted: &Deleted, pages: &Pages) -> Result<()> {
    if deleted.huge.is_some() {
        // hugetlbfs has no write.
        file.set_len(path.size).context("size")?;
        if !deleted.runs.is_empty() {
            let mut mapping = SharedMapping::of_file(file, path.size).context("map huge pages")?;
            shared_memory::fill_huge(&mut mapping, &deleted.runs, pages)?;
        }
    } else {
        let mut behind = Vec::new();
        for run in &deleted.runs {
            copy(file, run, path.size, pages, &mut behind).context("contents")?;
        }
        file.set_len(path.size).context("size")?;
        write_behind(file, path.size, &behind).context("what lies behind the end")?;
    }
    own(file, path, deleted)
}

/// Writes what lies between the end of a file and that of its last page, as only a mapping can.
fn write_behind(file: &File, size: u64, bytes: &[u8]) -> Result<()> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let start = size / PAGE_SIZE * PAGE_SIZE;
    let mut mapping = SharedMapping::of_part(file, start, PAGE_SIZE).context("map its last page")?;
    mapping.populate(0, PAGE_SIZE).context("take its last page")?;
    let place = mapping.slice(size - start, bytes.len() as u64).context("more than a page")?;
    place.copy_from_slice(bytes);
    Ok(())
}

/// Copies a run of pages. What the last one of the file has behind the end goes to `behind`: set_len() would make zeros of it.
fn copy(file: &File, run: &Run, size: u64, pages: &Pages, behind: &mut Vec<u8>) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let mut buffer = Aligned::new(usize::try_from(STEP)?);
    let (start, end) = (run.start.0, run.start.0 + run.pages * PAGE_SIZE);
    let mut at = start;
    while at < end {
        let part = &mut buffer.bytes()[..usize::try_from(STEP.min(end - at))?];
        pages.take(part, run.first_page * PAGE_SIZE + (at - start))?;
        let step = part.len() as u64;
        let (inside, beyond) = part.split_at(usize::try_from(size.saturating_sub(at).min(step))?);
        file.write_all_at(inside, at)?;
        if !inside.is_empty() {
            beyond.clone_into(behind);
            behind.truncate(usize::try_from(size.next_multiple_of(PAGE_SIZE) - size)?);
        }
        at += step;
    }
    Ok(())
}

/// Owner, mode, attributes, times: what writing would change comes last.
fn own(file: &File, path: &Path, deleted: &Deleted) -> Result<()> {
    fchown(file, Some(Uid::from_raw(deleted.uid)), Some(Gid::from_raw(deleted.gid))).context("owner")?;
    fchmod(file, Mode::from_bits_truncate(path.mode)).context("mode")?;
    for (name, value) in &deleted.xattrs {
        let name = OsStr::from_bytes(name);
        match file.set_xattr(name, value) {
            Ok(()) => {}
            // A security module gives it the same label as any file there, or has none.
            Err(e) if name.as_bytes().starts_with(b"security.") && is_refused(&e) => {}
            Err(e) => return Err(e).with_context(|| format!("attribute {}", name.display())),
        }
    }
    let [atime, mtime] = times(path, deleted);
    futimens(file, &atime, &mtime).context("times")
}

/// Times of access and modification.
pub(crate) fn times(path: &Path, deleted: &Deleted) -> [TimeSpec; 2] {
    [deleted.atime, path.mtime].map(|(seconds, nanos)| TimeSpec::new(seconds, i64::from(nanos)))
}

fn is_refused(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::EPERM | Errno::EINVAL))
}
