//! Programs and libraries: by what they are known again, and copies of them (`--embed-files`).

use super::path::file_type;
use super::{build_id, deleted};
use crate::proc::Dir;
use crate::sys::vm;
use anyhow::{Context, Result};
use images::file::{Deleted, Path};
use images::id::PAGE_SIZE;
use images::memory::{Backing, Space, Vma};
use images::task::Task;
use images::{Addr, PathId, Pid};
use nix::sys::stat::{SFlag, fstat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// Where the head of a file is mapped: the index of a task, and an address in it.
pub(crate) type Place = (usize, Addr);

/// What a tree executes, the programs of its tasks and what they have mapped to be executed; where its head is, if that is mapped.
pub(crate) fn of_tree(tasks: &[Task], spaces: &[Space]) -> BTreeMap<PathId, Option<Place>> {
    const PROT_EXEC: u32 = 4;
    let mut found: BTreeMap<PathId, Option<Place>> = tasks.iter().map(|task| (task.exe, None)).collect();
    let code = |vma: &&Vma| vma.prot & PROT_EXEC != 0;
    for vma in spaces.iter().flat_map(|space| space.vmas.iter().filter(code)) {
        if let Backing::PrivateFile(path, _) = vma.backing {
            found.entry(path).or_default();
        }
    }
    for (index, space) in spaces.iter().enumerate() {
        for vma in &space.vmas {
            if let Backing::PrivateFile(path, 0) = vma.backing
                && let Some(place) = found.get_mut(&path)
            {
                place.get_or_insert((index, vma.start));
            }
        }
    }
    found
}

/// Whether a file is one that has a name.
pub(crate) fn is_named(record: &Path) -> bool {
    record.deleted.is_none() && file_type(record.mode) == SFlag::S_IFREG
}

/// The build-id of a file whose head a task, whose directory this is, has mapped at an address. The file itself is not touched:
/// whoever watches it would see that. Empty where the task has not looked there itself yet, or has written there.
pub(crate) fn build_id(deputy: Pid, dir: &Dir, at: Addr) -> Result<Vec<u8>> {
    // Documentation/admin-guide/mm/pagemap.rst
    const FILE: u64 = 1 << 61;
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::from(dir.open("pagemap").context("open pagemap")?);
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, at.0 / PAGE_SIZE * 8).context("read pagemap")?;
    if u64::from_ne_bytes(entry) & (PRESENT | FILE) != PRESENT | FILE {
        return Ok(Vec::new());
    }
    let mut head = vec![0; usize::try_from(PAGE_SIZE)?];
    // It need not be readable for the task.
    Ok(vm::read_exact(deputy, at, &mut head).map_or_else(|_| Vec::new(), |()| build_id::of_head(&head)))
}

/// Opens a file for a copy.
pub(crate) fn open(record: &Path) -> Result<File> {
    let name = OsStr::from_bytes(record.place());
    // Reading it is not to show in its times; who may not ask for that is not its owner.
    let open = |flags| File::options().read(true).custom_flags(flags).open(name);
    open(libc::O_NOATIME).or_else(|_| open(0)).with_context(|| name.display().to_string())
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
        huge: None,
        runs: Vec::new(),
    })
}
