//! Putting segments back.

use super::objects::{Kind, PERMISSIONS, make_under_id};
use super::segments;
use crate::refusal::{Refusal, Refusals};
use crate::resource::hugetlb;
use crate::store::Pages;
use crate::sys::sysv::{self as sys, Attached};
use anyhow::{Context, Result, bail, ensure};
use images::id::PAGE_SIZE;
use images::memory::{HugePage, Memory, Shared};
use images::sysv::Object;
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

/// The segments of a tree with their contents, attached to this process. Those that were made go when this value does, unless they are to be
/// kept; what was removed goes with the last task that has it.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    attached: Vec<Attached>,
    made: Vec<i32>,
}

impl Segments {
    /// Detaches them: the tasks have them.
    pub(crate) fn let_go(&mut self) {
        self.attached.clear();
    }

    /// What was made is to stay.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        for id in &self.made {
            let _ = sys::remove_segment(*id);
        }
    }
}

fn recorded(memory: &Memory) -> impl Iterator<Item = (&Shared, &Object)> {
    memory.shared.iter().filter_map(|shared| Some((shared, shared.segment.as_ref()?)))
}

fn name(segment: &Object) -> String {
    format!("System V shared memory {}", segment.id)
}

/// Whether a segment is the recorded one: owner and permissions can be changed at any time.
fn is_same(there: &Object, segment: &Object) -> bool {
    let what = |segment: &Object| {
        (segment.key, segment.creator_uid, segment.creator_gid, segment.mode & Object::REMOVED)
    };
    what(there) == what(segment)
}

/// Whether a segment that is there is made of the recorded pages: the kernel shows that of one that is attached.
fn is_of_its_pages(shared: &Shared, segment: &Object) -> Result<bool> {
    match Attached::new(segment.id, shared.mapped_size()) {
        Ok(attached) => Ok(pages_of(&attached)? == shared.huge),
        Err(Errno::ERANGE) => Ok(false),
        // It has gone just now, and is made again.
        Err(Errno::EINVAL | Errno::EIDRM) => Ok(true),
        Err(errno) => Err(errno).context("shmat"),
    }
}

/// The pages that a segment is made of, if they are huge.
fn pages_of(attached: &Attached) -> Result<Option<HugePage>> {
    let path = attached.path();
    let file = File::options().read(true).custom_flags(libc::O_PATH).open(&path).context(path)?;
    hugetlb::of_file(&file).context("fstatfs")
}

/// Segments that keep those of the tree from being put back.
///
/// # Errors
/// If `/proc` does not tell which there are.
pub(crate) fn preflight(refusals: &mut Refusals, memory: &Memory) -> Result<()> {
    if recorded(memory).next().is_none() {
        return Ok(());
    }
    let rows = segments()?;
    for (shared, segment) in recorded(memory) {
        let by_id = rows.iter().find(|row| row.object.id == segment.id);
        let found_by_key = segment.key != 0 && segment.mode & Object::REMOVED == 0;
        let by_key = || rows.iter().find(|row| found_by_key && row.object.key == segment.key);
        let reason = match (by_id, by_key()) {
            (Some(row), _) if row.attached != 0 => "is attached by somebody else".to_owned(),
            (Some(row), _)
                if is_same(&row.object, segment)
                    && row.size == shared.size
                    && is_of_its_pages(shared, segment).with_context(|| name(segment))? =>
            {
                continue;
            }
            (Some(_), _) => "is another segment now".to_owned(),
            (None, Some(row)) => {
                format!("its key {:#x} is that of segment {} now", segment.key, row.object.id)
            }
            (None, None) => continue,
        };
        let hint = Some("have its users detach it, or remove it (ipcrm)".to_owned());
        refusals.push(Refusal { task: None, object: name(segment), reason, hint });
    }
    Ok(())
}

/// Puts all segments back with what was in them.
///
/// # Errors
/// Names the one that fails; what was made goes again.
pub(crate) fn put_back(memory: &Memory, pages: &Pages) -> Result<Segments> {
    let mut segments = Segments::default();
    for (shared, segment) in recorded(memory) {
        put_back_one(&mut segments, shared, segment, pages).with_context(|| name(segment))?;
    }
    Ok(segments)
}

fn put_back_one(segments: &mut Segments, shared: &Shared, segment: &Object, pages: &Pages) -> Result<()> {
    let id = segment.id;
    let (mut attached, made) = match Attached::new(id, shared.mapped_size()) {
        Ok(attached) => (attached, false),
        Err(Errno::EINVAL | Errno::EIDRM) => {
            make(shared, segment)?;
            segments.made.push(id);
            (Attached::new(id, shared.mapped_size()).context("shmat")?, true)
        }
        Err(errno) => return Err(errno).context("shmat"),
    };
    if !made {
        ensure!(pages_of(&attached)? == shared.huge, "is another segment now");
        attached.empty().context("empty it")?;
    }
    for run in &shared.runs {
        if shared.huge.is_some() {
            attached.populate(run.start.0, run.pages * PAGE_SIZE).context("take huge pages")?;
        }
        let bytes = attached.slice(run.start.0, run.pages * PAGE_SIZE);
        let Some(bytes) = bytes else { bail!("pages at {} lie beyond its size", run.start) };
        pages.take(bytes, run.first_page * PAGE_SIZE)?;
    }
    sys::set_segment(id, (segment.uid, segment.gid), segment.mode & PERMISSIONS).context("owner")?;
    if made && segment.mode & Object::LOCKED != 0 {
        sys::lock_segment(id, true).context("lock it in memory")?;
    }
    segments.attached.push(attached);
    if segment.mode & Object::REMOVED != 0 {
        // It stays for as long as it is attached, here for now, and others can still attach it.
        sys::remove_segment(id).context("remove it")?;
        segments.made.retain(|made| *made != id);
    }
    Ok(())
}

const KIND: Kind = Kind {
    name: "shm",
    make_any: || sys::make_segment(libc::IPC_PRIVATE, 1, 0, sys::SELF),
    remove: sys::remove_segment,
};

/// include/uapi/linux/shm.h
const SHM_NORESERVE: u32 = 0o10000;
const SHM_HUGETLB: u32 = 0o4000;
const SHM_HUGE_SHIFT: u32 = 26;

/// Makes a segment under its old id.
fn make(shared: &Shared, segment: &Object) -> Result<()> {
    let creator = (segment.creator_uid, segment.creator_gid);
    let huge = shared.huge.map_or(0, |page| SHM_HUGETLB | page.shift() << SHM_HUGE_SHIFT);
    let make = |key| {
        let make = |flags| sys::make_segment(key, shared.size, segment.mode & PERMISSIONS | flags, creator);
        match make(huge) {
            // Larger than all memory, so it was made like this, which nothing shows.
            Err(Errno::ENOMEM) if shared.huge.is_none() => make(SHM_NORESERVE),
            made => made,
        }
    };
    let make = || match make(segment.key) {
        // Its own key is but a part of the name that it shows.
        Err(Errno::EEXIST) if segment.mode & Object::REMOVED != 0 => make(libc::IPC_PRIVATE),
        made => made,
    };
    make_under_id(&KIND, segment.id, make)
}
