//! Address spaces of tasks that share pages copy-on-write, as ops.
//!
//! A task that clones others maps all that they are to find, beside its own, and has in place for each what that one
//! inherits when its turn comes; only then come its own pages, and what is not its own goes. Who is cloned starts from a
//! copy of that: it keeps the areas that suit, and fills what differs.
//!
//! Areas merge, or do not, by their history: an area that was there at a fork and one that its neighbour was made next to later stay two
//! (`is_mergeable_anon_vma`, mm/vma.c). So an area is kept only as a whole, from within one area of the maker.

use super::birth::Stacks;
use super::extents::Extents;
use super::family::Making;
use super::{Machine, Planner, huge, memory};
use crate::op::{self, Op};
use crate::range::Range;
use alloc::vec;
use alloc::vec::Vec;
use images::attribute::{MemoryPolicy, TaskAttributes};
use images::id::PAGE_SIZE;
use images::memory::{Backing, Space, Vma, vm};

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const MADV_DONTNEED: u32 = 4;

/// What decides how an area is mapped, and cannot be set afterwards.
const MAPPED: u32 =
    vm::GROWS_DOWN | vm::NO_RESERVE | vm::HUGE_PAGE | vm::NO_HUGE_PAGE | vm::ACCOUNTED | vm::MAY_WRITE;

/// An address space that holds areas and pages, beside the hole: what a task has when it is cloned.
#[derive(Clone, Debug, Default)]
pub(super) struct Base {
    /// With the protection that they have by now.
    areas: Vec<Vma>,
    pages: Extents,
    pub(super) attributes: TaskAttributes,
    pub(super) policy: MemoryPolicy,
    rules: memory::Rules,
}

impl Base {
    /// That of a task which has just exec'd and cleared it.
    pub(super) fn empty(machine: &Machine) -> Self {
        Self {
            attributes: machine.task_attributes,
            policy: machine.thread_attributes.policy.clone(),
            rules: machine.rules,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// Adds what pages are not there yet.
    fn fill(&mut self, ops: &mut Vec<u8>, pages: &Extents) {
        let missing = pages.missing_in(&self.pages);
        huge::fill(ops, missing.runs(), &self.areas, self.rules.makes(self.attributes.thp_disable));
        self.pages = self.pages.under(pages);
    }

    /// Keeps these areas, and takes away all else.
    fn keep(&mut self, ops: &mut Vec<u8>, kept: Vec<Vma>) {
        for range in uncovered(&self.areas, &kept) {
            op::push(ops, &Op::Unmap { addr: range.start, len: range.len() });
        }
        self.pages = self.pages.within(kept.iter().map(range_of));
        self.areas = kept;
    }

    /// Takes everything away.
    pub(super) fn clear(mut self, ops: &mut Vec<u8>) {
        self.keep(ops, Vec::new());
    }

    /// The area that another one can be kept from.
    fn holder(&self, area: &Vma) -> Option<&Vma> {
        self.area_at(area.start.0).filter(|there| contains(there, area) && suits(there, area))
    }

    /// The area that an address is in, or the next one.
    fn area_at(&self, addr: u64) -> Option<&Vma> {
        self.areas.get(self.areas.partition_point(|area| area.end.0 <= addr))
    }
}

impl Planner<'_> {
    /// The private and shared memory of a task that starts from the base, or that others start from.
    pub(super) fn related_memory(
        &mut self,
        ops: &mut Vec<u8>,
        index: usize,
        stacks: &mut Stacks,
        mut base: Base,
    ) {
        let (task, space) = (&self.forest.tasks[index], &self.forest.spaces[index]);
        (base.attributes, base.policy) = (task.attributes, task.threads[0].attributes.policy.clone());
        let own = Extents::from(&*space.runs);
        let mut children: Vec<usize> = self.forest.clones_with(index, true).collect();
        // What siblings share is older than what children do.
        children.sort_by_key(|&child| self.forest.tasks[child].ppid == task.pid);
        let filled = children.iter().fold(own.clone(), |all, &child| all.under(self.forest.inherited(child)));
        self.map_related(ops, index, &mut base, &filled);
        for child in children {
            let inherited = self.forest.inherited(child).within(base.areas.iter().map(range_of));
            base.fill(ops, &inherited);
            self.clone_task(ops, child, stacks, &base);
        }
        let areas: Vec<Vma> = space.vmas.iter().filter(|vma| is_mapped(vma)).cloned().collect();
        let prot_now = |vma: &Vma| base.area_at(vma.start.0).map_or(0, |area| area.prot);
        let prots: Vec<u32> = space.vmas.iter().map(prot_now).collect();
        base.keep(ops, areas);
        for range in base.pages.beside(&own) {
            op::push(ops, &Op::Advise { addr: range.start, len: range.len(), advice: MADV_DONTNEED });
        }
        base.fill(ops, &own);
        memory::names(ops, space);
        for (vma, &prot) in space.vmas.iter().zip(&prots) {
            if loses_account(vma, prot) && !own.meets(range_of(vma)) {
                op::push(ops, &Op::Populate { addr: vma.start.0, len: PAGE_SIZE });
            }
            memory::finish(ops, vma, prot);
        }
        memory::layout(ops, &mut self.slots, task.exe, space);
    }

    /// Makes the areas of the base those that a task needs, for itself and for all that come from it; `filled` is where pages
    /// come in.
    fn map_related(&mut self, ops: &mut Vec<u8>, index: usize, base: &mut Base, filled: &Extents) {
        let (mut kept, mut new): (Vec<Vma>, Vec<Vma>) = (Vec::new(), Vec::new());
        let mut below: Option<Vma> = None;
        let own = &self.forest.spaces[index].vmas;
        for area in self.forest.areas(index) {
            // Where one as large as others would have it cannot be kept, perhaps the own ones can.
            let from = own.partition_point(|vma| vma.end <= area.start);
            let met = own[from..].iter().take_while(|vma| vma.start < area.end);
            let inside = met.filter(|vma| is_mapped(vma) && contains(area, vma));
            let split = base.holder(area).is_none() && inside.clone().any(|vma| base.holder(vma).is_some());
            let parts: Vec<&Vma> = if split { inside.collect() } else { vec![area] };
            for part in parts {
                match base.holder(part) {
                    Some(there) if below.as_ref().is_none_or(|below| !stays_apart(below, part, there)) => {
                        kept.push(Vma { prot: there.prot, ..part.clone() });
                        below = Some(part.clone());
                    }
                    _ => new.push(part.clone()),
                }
            }
        }
        base.keep(ops, kept);
        for area in &mut base.areas {
            if area.prot & PROT_WRITE == 0 && filled.meets(range_of(area)) {
                area.prot = PROT_READ | PROT_WRITE;
                let (addr, len) = (area.start.0, area.end.0 - area.start.0);
                op::push(ops, &Op::Protect { addr, len, prot: area.prot });
            }
        }
        for group in memory::groups(&new) {
            let group = &new[group];
            let has_contents = group.iter().any(|area| filled.meets(range_of(area)));
            let prot = memory::open_prot(group, has_contents);
            memory::map(ops, &mut self.slots, group, prot, has_contents, self.machine.rules);
            base.areas.extend(group.iter().map(|area| Vma { prot, ..area.clone() }));
        }
        base.areas.sort_by_key(|area| area.start);
    }
}

/// The areas of each task, as large as those who come from it have them where these are to find pages there. Nothing for tasks
/// that neither clone others nor are cloned.
pub(super) fn areas(makings: &[Making], spaces: &[Space], inherited: &[Extents]) -> Vec<Vec<Vma>> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); makings.len()];
    for (index, making) in makings.iter().enumerate() {
        if let Making::Cloned { by, .. } = *making {
            children[by].push(index);
        }
    }
    let mut all: Vec<Vec<Vma>> = vec![Vec::new(); makings.len()];
    for index in (0..makings.len()).rev() {
        if makings[index] == Making::Forked && children[index].is_empty() {
            continue;
        }
        let mut areas: Vec<Vma> = spaces[index].vmas.iter().filter(|vma| is_mapped(vma)).cloned().collect();
        for &child in &children[index] {
            for area in all[child].iter().filter(|area| inherited[child].meets(range_of(area))) {
                widen(&mut areas, area);
            }
        }
        all[index] = areas;
    }
    all
}

/// Whether an area is mapped by a plain call.
const fn is_mapped(vma: &Vma) -> bool {
    !matches!(vma.backing, Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock)
}

const fn range_of(vma: &Vma) -> Range {
    Range { start: vma.start.0, end: vma.end.0 }
}

fn contains(outer: &Vma, inner: &Vma) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Whether both are parts of what could be one mapping.
fn suits(left: &Vma, right: &Vma) -> bool {
    let shift = |offset: u64, vma: &Vma| offset.wrapping_sub(vma.start.0);
    let same = match (left.backing, right.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (Backing::PrivateFile(a, from), Backing::PrivateFile(b, to))
        | (Backing::SharedFile(a, from), Backing::SharedFile(b, to)) => {
            a == b && shift(from, left) == shift(to, right)
        }
        (Backing::Shared(a, from), Backing::Shared(b, to)) => a == b && shift(from, left) == shift(to, right),
        _ => false,
    };
    same && (left.flags ^ right.flags) & MAPPED == 0
}

/// Whether an area is to be another one than its neighbour below, though they are alike, and would be one if both were kept.
fn stays_apart(below: &Vma, area: &Vma, there: &Vma) -> bool {
    let alike = (below.prot, below.flags) == (area.prot, area.flags);
    alike && below.end == area.start && there.start <= below.start
}

/// Makes room for an area that one who comes from this task has: where it meets areas that suit, these become one with it.
fn widen(areas: &mut Vec<Vma>, vma: &Vma) {
    let from = areas.partition_point(|area| area.end <= vma.start);
    let to = areas.partition_point(|area| area.start < vma.end);
    let met = &areas[from..to];
    if met.iter().any(|area| !suits(area, vma)) || (met.len() == 1 && contains(&met[0], vma)) {
        return;
    }
    let mut whole = vma.clone();
    for area in met {
        if area.start < whole.start {
            (whole.start, whole.backing) = (area.start, area.backing);
        }
        whole.end = whole.end.max(area.end);
        if area.prot != vma.prot {
            // Each sets its own.
            whole.prot = 0;
        }
    }
    areas.splice(from..to, [whole]);
}

/// Whether an area, writable by now, would lose its place in the commit accounting when it is so no longer and never had a
/// page, as an area that one maps for others may (mprotect_fixup, mm/mprotect.c).
const fn loses_account(vma: &Vma, prot: u32) -> bool {
    is_mapped(vma) && vma.flags & vm::ACCOUNTED != 0 && vma.prot & PROT_WRITE == 0 && prot & PROT_WRITE != 0
}

/// Parts of areas that no other area covers; both lists rise.
fn uncovered(areas: &[Vma], by: &[Vma]) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |start, end| match ranges.last_mut() {
        _ if start >= end => {}
        Some(last) if last.end == start => last.end = end,
        _ => ranges.push(Range { start, end }),
    };
    for area in areas {
        let mut at = area.start.0;
        let next = by.partition_point(|cover| cover.end <= area.start);
        for cover in by[next..].iter().take_while(|cover| cover.start < area.end) {
            add(at, cover.start.0);
            at = at.max(cover.end.0);
        }
        add(at, area.end.0);
    }
    ranges
}
