//! Whether files are still what they were at the dump.

use crate::parallel;
use crate::refusal::{Refusal, Refusals};
use crate::resource::external::given::Given;
use crate::resource::file::O_PATH;
use crate::resource::{build_id, deleted};
use crate::store::Checkpoint;
use anyhow::Result;
use images::PathId;
use images::file::{Path, Target};
use images::memory::Backing;
use images::terminal::PtyEnd;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// By what a file is known again (`--file-validation`). Its size has to be the same in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Validation {
    /// By nothing else.
    Filesize,
    /// By its modification time and, of programs and libraries that have one, by their build-id as well.
    Mtime,
    /// Programs and libraries that have one by their build-id alone, other files by their modification time.
    Buildid,
}

/// What a path is used for; decides how much it may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Open by name alone (O_PATH), or watched, whatever is in it.
    Name,
    /// Open for data, or a directory.
    Open,
    /// Mapped or executed: other contents would be another program.
    Mapped,
}

/// All paths that are in use, but for those that something else is given for.
fn uses(checkpoint: &Checkpoint, given: &Given) -> BTreeMap<PathId, Use> {
    let mut uses: BTreeMap<PathId, Use> = BTreeMap::new();
    let mut note = |path: PathId, what: Use| {
        let entry = uses.entry(path).or_insert(what);
        *entry = (*entry).max(what);
    };
    for task in &checkpoint.tree.tasks {
        note(task.exe, Use::Mapped);
        note(task.cwd, Use::Open);
        note(task.root, Use::Open);
    }
    for vma in checkpoint.memory.spaces.iter().flat_map(|space| &space.vmas) {
        match vma.backing {
            Backing::PrivateFile(path, _) => note(path, Use::Mapped),
            Backing::SharedFile(path, _) => note(path, Use::Open),
            _ => {}
        }
    }
    for description in &checkpoint.files.descriptions {
        match description.target {
            Target::Path(path) if given.replaces(&checkpoint.files, path) => {}
            Target::Path(path) if description.flags & O_PATH != 0 => note(path, Use::Name),
            Target::Path(path) | Target::Pty { path, end: PtyEnd::Master | PtyEnd::Controlling, .. } => {
                note(path, Use::Open)
            }
            _ => {}
        }
    }
    for fifo in checkpoint.files.pipes.iter().filter_map(|pipe| pipe.fifo.as_ref()) {
        note(fifo.path, Use::Open);
    }
    for watch in checkpoint.files.inotifies.iter().flat_map(|group| &group.watches) {
        note(watch.path, Use::Name);
    }
    for mark in checkpoint.files.fanotifies.iter().flat_map(|group| &group.marks) {
        note(mark.path, Use::Name);
    }
    uses
}

/// Takes the copies in the images of those programs and libraries that are no longer what they were: they come back as deleted files do.
pub(super) fn use_copies(checkpoint: &mut Checkpoint, given: &Given, how: Validation) {
    if checkpoint.files.paths.iter().all(|path| path.embedded.is_none()) {
        return;
    }
    for (id, what) in uses(checkpoint, given) {
        let path = &mut checkpoint.files.paths[id.0 as usize];
        if path.deleted.is_some() || path.embedded.is_none() {
            continue;
        }
        if let Some((reason, _)) = changed(path, what, how) {
            let name = String::from_utf8_lossy(path.place());
            log::warn!("{name}: {reason}: the copy in the images takes its place");
            path.deleted = path.embedded.take();
        }
    }
}

/// Refuses what a program could not live with, and warns of what it has to expect.
pub(super) fn preflight(
    refusals: &mut Refusals,
    checkpoint: &Checkpoint,
    given: &Given,
    how: Validation,
) -> Result<()> {
    let uses: Vec<(PathId, Use)> = uses(checkpoint, given).into_iter().collect();
    let path = |id: PathId| &checkpoint.files.paths[id.0 as usize];
    let look = |&(id, what): &(PathId, Use)| {
        Ok(if path(id).deleted.is_some() { None } else { changed(path(id), what, how) })
    };
    for (&(id, _), changed) in uses.iter().zip(parallel::map(&uses, look)?) {
        let path = path(id);
        if path.deleted.is_some() {
            deleted::preflight(path, refusals);
        }
        if let Some((reason, hint)) = changed {
            let object = String::from_utf8_lossy(path.place()).into_owned();
            refusals.push(Refusal { task: None, object, reason, hint: hint.map(str::to_owned) });
        }
    }
    Ok(())
}

/// Why a path is no longer what it was, if so. Warns of what a program has to expect.
fn changed(path: &Path, what: Use, how: Validation) -> Option<(String, Option<&'static str>)> {
    const PUT_BACK: Option<&str> = Some("put the file of the dump back in its place");
    const EMBED: &str =
        "put the file of the dump back in its place; next time, --embed-files has the dump keep a copy of it";
    let name = std::path::Path::new(OsStr::from_bytes(path.place()));
    let kind = libc::S_IFMT;
    let is_link = path.mode & kind == libc::S_IFLNK;
    let now = match if is_link { fs::symlink_metadata(name) } else { fs::metadata(name) } {
        Ok(now) => now,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some(("has been deleted since the dump".to_owned(), PUT_BACK));
        }
        Err(error) => return Some((format!("cannot be looked at: {error}"), None)),
    };
    if now.mode() & kind != path.mode & kind {
        return Some(("is another kind of file than at the dump".to_owned(), PUT_BACK));
    }
    if [libc::S_IFCHR, libc::S_IFBLK].contains(&(path.mode & kind)) {
        return (now.rdev() != path.rdev).then(|| ("is another device than at the dump".to_owned(), None));
    }
    if path.mode & kind != libc::S_IFREG || path.view || what == Use::Name {
        return None;
    }
    let differs = differences(path, name, &now, what, how);
    if differs.is_empty() {
        return None;
    }
    let differs = differs.join(", ");
    if what == Use::Mapped {
        return Some((format!("is mapped and has changed since the dump ({differs})"), Some(EMBED)));
    }
    if (now.dev(), now.ino()) != (path.dev, path.ino) {
        return Some((format!("has been replaced since the dump ({differs})"), PUT_BACK));
    }
    log::warn!("{}: changed since the dump ({differs})", name.display());
    None
}

/// In what a regular file differs from the one of the dump.
fn differences(
    path: &Path,
    name: &std::path::Path,
    now: &Metadata,
    what: Use,
    how: Validation,
) -> Vec<&'static str> {
    let mut found = Vec::new();
    if now.size() != path.size {
        found.push("other size");
    }
    let has_build_id = what == Use::Mapped && !path.build_id.is_empty();
    let by_time = how == Validation::Mtime || how == Validation::Buildid && !has_build_id;
    if by_time && (now.mtime(), now.mtime_nsec()) != (path.mtime.0, i64::from(path.mtime.1)) {
        found.push("other modification time");
    }
    let by_build_id = how != Validation::Filesize && has_build_id;
    if by_build_id && File::open(name).map(|file| build_id::read(&file)).ok().as_ref() != Some(&path.build_id)
    {
        found.push("other build-id");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    /// A copy of this program, and its record.
    fn copy(dir: &std::path::Path) -> (std::path::PathBuf, Path) {
        let name = dir.join("program");
        fs::copy("/proc/self/exe", &name).unwrap();
        let (now, build_id) = (fs::metadata(&name).unwrap(), build_id::read(&File::open(&name).unwrap()));
        let path = Path {
            path: name.as_os_str().as_bytes().to_vec(),
            mode: now.mode(),
            size: now.size(),
            mtime: (now.mtime(), now.mtime_nsec().try_into().unwrap()),
            dev: now.dev(),
            ino: now.ino(),
            rdev: 0,
            deleted: None,
            view: false,
            other_name: None,
            build_id,
            embedded: None,
        };
        (name, path)
    }

    #[test]
    fn what_counts_is_for_the_user_to_say() {
        let dir = tempfile::tempdir().unwrap();
        let (name, path) = copy(dir.path());
        let reason = |path: &Path, what, how| changed(path, what, how).map(|(reason, _)| reason);
        assert_eq!(reason(&path, Use::Mapped, Validation::Mtime), None);

        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::options().append(true).open(&name).unwrap().set_modified(moment).unwrap();
        let mapped = |how| reason(&path, Use::Mapped, how).unwrap_or_default();
        assert!(mapped(Validation::Mtime).ends_with("since the dump (other modification time)"));
        assert_eq!([Validation::Filesize, Validation::Buildid].map(mapped), ["", ""]);
        assert_eq!(reason(&path, Use::Open, Validation::Mtime), None);
        let elsewhere = Path { ino: path.ino + 1, ..path.clone() };
        assert!(reason(&elsewhere, Use::Open, Validation::Buildid).unwrap().contains("has been replaced"));

        let another = Path { build_id: vec![1; 20], mtime: (1_000_000_000, 0), ..path.clone() };
        let mapped = |how| reason(&another, Use::Mapped, how).unwrap_or_default();
        assert!(mapped(Validation::Mtime).ends_with("(other build-id)"));
        assert!(mapped(Validation::Buildid).ends_with("(other build-id)"));
        assert_eq!(mapped(Validation::Filesize), "");
        let grown = Path { size: 1, ..another.clone() };
        let all = reason(&grown, Use::Mapped, Validation::Mtime).unwrap();
        assert!(all.ends_with("(other size, other build-id)"), "{all}");
    }
}
