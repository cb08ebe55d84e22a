//! System V IPC: segments of shared memory that tasks have attached; semaphores and message queues that they use ([`objects`]).
//!
//! They lie in the IPC namespace of crr, which is that of the tree. A segment that has not been removed stays there when the tree is gone; the
//! restore puts back what it held at the dump, as it does with all memory. What is gone by then (those that were removed go with the tree)
//! is made again under its old id. For both, nobody else may have it attached.

pub(crate) mod objects;
mod queues;
pub(crate) mod recreate;
mod semaphores;
pub(crate) mod undo;
mod waits;

use crate::proc::hex;
use crate::proc::sysvipc::{self, Segment};
use crate::refusal::{Refusal, Refusals};
use crate::resource::memory::SharedObject;
use crate::sys::mapping::SharedMapping;
use crate::sys::memfd::sealable;
use crate::sys::sysv as sys;
use anyhow::{Context, Result};
use images::memory::{HugePage, Shared, Space};
use images::sysv::Object;
use images::task::Task;
use nix::sys::stat::FileStat;
use shared::plan::segment::{moves_huge_pages, reaches_beyond};
use std::cell::OnceCell;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

/// Tells segments from files that only look like them.
#[derive(Debug, Default)]
pub(crate) struct Kind {
    device: OnceCell<u64>,
    /// Where those of huge pages lie, of each size that there is.
    huge: OnceCell<Vec<u64>>,
}

impl Kind {
    /// The key of the segment that a mapped file is, if it is one. It then lies where the kernel keeps its own shared memory (shm_mnt,
    /// mm/shmem.c; for huge pages hugetlb_file_setup(), fs/hugetlbfs/inode.c), as anonymous shared memory does; its name is by newseg() of ipc/shm.c.
    pub(crate) fn key(&self, name: &[u8], open: &FileStat) -> Result<Option<i32>> {
        let digits = name.strip_prefix(b"/SYSV").and_then(|rest| rest.strip_suffix(b" (deleted)"));
        let Some(key) = digits.and_then(hex).and_then(|key| u32::try_from(key).ok()) else { return Ok(None) };
        let device = match self.device.get() {
            Some(&device) => device,
            None => {
                let own = SharedMapping::anonymous(1, None).context("map a page")?;
                let path = own.path();
                let stat = nix::sys::stat::stat(path.as_str()).with_context(|| path.clone())?;
                *self.device.get_or_init(|| stat.st_dev)
            }
        };
        let is_there = open.st_dev == device || self.huge().contains(&open.st_dev);
        Ok(is_there.then_some(key.cast_signed()))
    }

    /// The devices of memory of huge pages: a memfd takes none of these pages. Where vm.memfd_noexec forbids one that can be executed, it is sealed
    /// against that.
    fn huge(&self) -> &[u64] {
        const F_SEAL_EXEC: u32 = 0x20;
        self.huge.get_or_init(|| {
            let device = |page| Some(sealable("crr", Some(page), F_SEAL_EXEC).ok()?.metadata().ok()?.dev());
            HugePage::ALL.into_iter().filter_map(device).collect()
        })
    }
}

/// Refuses areas that reach beyond their segments, and parts of segments of huge pages where the kernel does not move these: a restore could not
/// put them in their places.
///
/// # Errors
/// [`crate::refusal::Refused`].
pub(crate) fn check_parts(tasks: &[Task], spaces: &[Space], shared: &[Shared]) -> Result<()> {
    let mut refusals = Refusals::default();
    if shared.iter().all(|object| object.segment.is_none()) {
        return Ok(());
    }
    for (task, space) in tasks.iter().zip(spaces) {
        for vma in &space.vmas {
            let Some(size) = reaches_beyond(vma, shared) else { continue };
            let comm = String::from_utf8_lossy(&task.threads[0].comm);
            let area = format!("{}-{}", vma.start, vma.end);
            let reason =
                format!("reaches beyond the {} KiB of its segment of System V, by mremap(2)", size / 1024);
            let hint = "have the program detach it, or shrink it, before the dump";
            refusals.task((task.pid, &comm), area, reason, Some(hint));
        }
    }
    let mut having = tasks.iter().zip(spaces).filter(|(_, space)| moves_huge_pages(space, shared)).peekable();
    if having.peek().is_none() || sys::moves_huge_pages() {
        return Ok(refusals.finish("dump")?);
    }
    for (task, _) in having {
        let comm = String::from_utf8_lossy(&task.threads[0].comm);
        let reason = "has a part of a segment of System V of huge pages, which this kernel does not move";
        let hint = "have the program detach it, or run Linux 5.16";
        refusals.task((task.pid, &comm), "address space", reason, Some(hint));
    }
    Ok(refusals.finish("dump")?)
}

/// All segments that there are.
fn segments() -> Result<Vec<Segment>> {
    const FILE: &str = "/proc/sysvipc/shm";
    let text = std::fs::read(FILE).context(FILE)?;
    Ok(sysvipc::segments(&text)?)
}

/// The ids of all segments that there are.
pub(crate) fn ids() -> Result<HashSet<i32>> {
    Ok(segments()?.iter().map(|row| row.object.id).collect())
}

/// Completes the records of segments. One that shows in other areas than those of the tree is refused: after a restore its users would no longer
/// see each other's writes.
pub(crate) fn complete(objects: &mut [SharedObject], refusals: &mut Refusals) -> Result<()> {
    let mut segments_there = None;
    for object in objects {
        let Some(key) = object.key else { continue };
        let rows = match &segments_there {
            Some(rows) => rows,
            None => segments_there.insert(segments()?),
        };
        let id = i32::try_from(object.ino).context("id of a segment")?;
        let row = rows.iter().find(|row| row.object.id == id);
        let (reason, hint) = match row {
            Some(row) if row.attached == object.areas => {
                object.segment = Some((Object { key, ..row.object.clone() }, row.size));
                continue;
            }
            Some(row) => (
                format!("is attached {} times, {} of them in the tree", row.attached, object.areas),
                "dump a tree that holds all tasks that share it",
            ),
            None => ("is of another IPC namespace".to_owned(), "run crr in that namespace"),
        };
        let object = format!("System V shared memory {id}");
        refusals.push(Refusal { task: None, object, reason, hint: Some(hint.into()) });
    }
    Ok(())
}
