//! Programs and libraries: by what they are known again, and copies of them (`--embed-files`).

use super::path::file_type;
use super::{build_id, deleted};
use anyhow::{Context, Result};
use images::PathId;
use images::file::{Deleted, Path};
use images::memory::{Backing, Space};
use images::task::Task;
use nix::sys::stat::{SFlag, fstat};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

/// What a tree executes: the programs of its tasks, and what they have mapped to be executed.
pub(crate) fn of_tree(tasks: &[Task], spaces: &[Space]) -> BTreeSet<PathId> {
    const PROT_EXEC: u32 = 4;
    let code = spaces.iter().flat_map(|space| &space.vmas).filter(|vma| vma.prot & PROT_EXEC != 0);
    let mapped = code.filter_map(|vma| match vma.backing {
        Backing::PrivateFile(path, _) => Some(path),
        _ => None,
    });
    tasks.iter().map(|task| task.exe).chain(mapped).collect()
}

/// Records the build-id of a file. The file, if it is one that has a name, open for a copy.
pub(crate) fn identify(record: &mut Path) -> Result<Option<File>> {
    if record.deleted.is_some() || file_type(record.mode) != SFlag::S_IFREG {
        return Ok(None);
    }
    let name = OsStr::from_bytes(record.place());
    // Reading it is not to show; who may not ask for that is not its owner.
    let open = |flags| File::options().read(true).custom_flags(flags).open(name);
    let file = open(libc::O_NOATIME).or_else(|_| open(0)).with_context(|| name.display().to_string())?;
    record.build_id = build_id::read(&file);
    Ok(Some(file))
}

/// The copy of a file, but for its contents.
pub(crate) fn copy(file: &File) -> Result<Deleted> {
    let found = fstat(file).context("fstat")?;
    Ok(Deleted {
        uid: found.st_uid,
        gid: found.st_gid,
        atime: (found.st_atime, u32::try_from(found.st_atime_nsec).unwrap_or(0)),
        xattrs: deleted::xattrs(file).context("extended attributes")?,
        seals: None,
        runs: Vec::new(),
    })
}
