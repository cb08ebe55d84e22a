//! Attached segments of System V.
//!
//! Every area of one stands as an empty one until all areas of the space are mapped. What is attached whole then goes right to its place. Of
//! what is attached in part, or moved apart, the whole is attached where there is room, its parts move to their places, and the rest is
//! detached: so shmdt(2) still finds all parts of an attachment by what they have in common, their file (ksys_shmdt(), ipc/shm.c).

use crate::op::{self, Op};
use crate::range::{Range, find_gap};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use images::SharedId;
use images::memory::{Backing, HugePage, Shared, Space, Vma, vm};

const PROT_READ: u32 = 1;
const PROT_READ_WRITE: u32 = 3;
const SHM_RDONLY: u32 = 0o10000;
const SHM_REMAP: u32 = 0o40000;

/// The areas that one shmat(2) made.
struct Attachment<'a> {
    object: &'a Shared,
    id: i32,
    writable: bool,
    base: u64,
    areas: Vec<&'a Vma>,
}

impl Attachment<'_> {
    /// Nothing of it has been detached since, or moved away from the rest: its areas follow each other from the beginning to the end.
    fn is_whole(&self) -> bool {
        let next = |at: u64, vma: &&Vma| (vma.start.0 == at).then_some(vma.end.0);
        let end = self.areas.iter().try_fold(self.base, next);
        end == self.base.checked_add(self.object.mapped_size())
    }
}

/// The segment that an area shows.
fn segment_of<'a>(vma: &Vma, shared: &'a [Shared]) -> Option<(SharedId, u64, &'a Shared, i32)> {
    let Backing::Shared(id, offset) = vma.backing else { return None };
    let object = shared.get(id.0 as usize)?;
    Some((id, offset, object, object.segment.as_ref()?.id))
}

/// The protection of an area of a segment when it is attached; `None` for an area of anything else.
pub(super) fn attached_prot(vma: &Vma, shared: &[Shared]) -> Option<u32> {
    segment_of(vma, shared)?;
    Some(if vma.flags & vm::MAY_WRITE == 0 { PROT_READ } else { PROT_READ_WRITE })
}

/// What is of one segment, was attached with the same right, and lies as far from the beginning as in the segment, comes of one call:
/// the kernel shows no more.
fn attachments<'a>(vmas: &'a [Vma], shared: &'a [Shared]) -> impl Iterator<Item = Attachment<'a>> {
    let mut found = BTreeMap::new();
    for vma in vmas {
        let Some((shared_id, offset, object, id)) = segment_of(vma, shared) else { continue };
        let base = vma.start.0.wrapping_sub(offset);
        let writable = vma.flags & vm::MAY_WRITE != 0;
        let new = || Attachment { object, id, writable, base, areas: Vec::new() };
        found.entry((shared_id, base, writable)).or_insert_with(new).areas.push(vma);
    }
    found.into_values()
}

/// Attaches all segments of a space, whose areas are empty ones until now.
pub(super) fn attach(list: &mut Vec<u8>, vmas: &[Vma], shared: &[Shared]) {
    for attachment in attachments(vmas, shared) {
        let id = attachment.id;
        let flags = if attachment.writable { 0 } else { SHM_RDONLY };
        if attachment.is_whole() {
            op::push(list, &Op::Attach { id, addr: attachment.base, flags: flags | SHM_REMAP });
            continue;
        }
        let part =
            |vma: &&Vma| [vma.start.0, vma.end.0 - vma.start.0, vma.start.0.wrapping_sub(attachment.base)];
        let words = attachment.areas.iter().flat_map(part);
        let parts: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        op::push(list, &Op::AttachParts { id, flags, parts: &parts });
    }
}

/// The size of the segment that an area shows, if the area reaches beyond it: mremap(2) has made it larger.
#[must_use]
pub fn reaches_beyond(vma: &Vma, shared: &[Shared]) -> Option<u64> {
    let (_, offset, object, _) = segment_of(vma, shared)?;
    let size = object.mapped_size();
    let end = offset.checked_add(vma.end.0 - vma.start.0);
    end.is_none_or(|end| end > size).then_some(size)
}

/// The size of a segment that a space has a part of, and that it has no room for as a whole; `hole` bytes of the room are taken.
#[must_use]
pub fn without_room(space: &Space, shared: &[Shared], task_size: u64, hole: u64) -> Option<u64> {
    let taken: Vec<Range> =
        space.vmas.iter().map(|vma| Range { start: vma.start.0, end: vma.end.0 }).collect();
    let limits = Range { start: super::hole::LOWEST, end: task_size };
    // Huge pages lie at a multiple of their size, and the gap may not.
    let room = |object: &Shared| object.mapped_size() + object.huge.map_or(0, HugePage::size);
    let fits = |object: &&Shared| find_gap(&taken, limits, room(object) + hole).is_some();
    apart(space, shared).filter(|object| !fits(object)).map(Shared::mapped_size).max()
}

/// Whether a space has parts of a segment of huge pages, which have to be moved to their places.
#[must_use]
pub fn moves_huge_pages(space: &Space, shared: &[Shared]) -> bool {
    apart(space, shared).any(|object| object.huge.is_some())
}

/// The segments that a space does not have attached as a whole.
fn apart<'a>(space: &'a Space, shared: &'a [Shared]) -> impl Iterator<Item = &'a Shared> {
    let apart = attachments(&space.vmas, shared).filter(|attachment| !attachment.is_whole());
    apart.map(|attachment| attachment.object)
}
