//! A hole in memory that a task has, where none is free: part of an area is left out of the plan, and mapped from outside once
//! the hole is gone (`restore::takeover`).
//!
//! The part lies at an edge of its area, since the kernel joins a fresh mapping with one neighbour that has pages, but not
//! with two (`is_mergeable_anon_vma`, mm/vma.c: each has an `anon_vma` of its own by then). It was never touched, so that one call makes it
//! again, and so that nothing in the kernel writes there while the restorer does.

use super::family::holder_of;
use super::hole::{LOWEST, task_size};
use crate::range::Range;
use alloc::vec::Vec;
use images::Addr;
use images::memory::{Backing, Space, Vma, vm};
use images::sharing::Object;
use images::task::Task;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
const RLIMIT_DATA: usize = 2;
const RLIMIT_AS: usize = 9;
/// What an area may have beside that: set by mmap itself.
const PLAIN: u32 = vm::ACCOUNTED | vm::NO_RESERVE | vm::MAY_WRITE;
/// Words of `struct user_regs_struct` that are no pointers: flags, segments.
const SELECTORS: [usize; 7] = [17, 18, 20, 23, 24, 25, 26];

/// An address space that may lend, with what there is to know of it.
struct Lender<'a> {
    space: &'a Space,
    /// What is mapped here from outside is like what the restorer maps, and within the limits of the task.
    may_map: bool,
    /// The same of memory that counts as data.
    may_map_data: bool,
    /// It would be mapped with the right to run code.
    read_implies_exec: bool,
    /// Addresses that the kernel or a call in progress may use, by rising address.
    pointers: Vec<u64>,
}

impl<'a> Lender<'a> {
    /// The address space that `holder` has the record of, with its tasks.
    fn new(space: &'a Space, inside: &[&Task]) -> Self {
        let total = |counts: fn(&Vma) -> bool| -> u64 {
            space.vmas.iter().filter(|vma| counts(vma)).map(|vma| vma.end.0 - vma.start.0).sum()
        };
        let within = |resource: usize, bytes| {
            inside.iter().all(|task| task.rlimits.get(resource).is_none_or(|&(soft, _)| bytes <= soft))
        };
        let plain = |task: &&Task| task.attributes.lock_future == 0 && !task.attributes.memory_merge;
        let may_map = inside.iter().all(plain) && within(RLIMIT_AS, total(|_| true));
        let mut personalities = inside.iter().flat_map(|task| task.personalities());
        let read_implies_exec = personalities.any(|personality| personality & super::READ_IMPLIES_EXEC != 0);
        let mut pointers = Vec::new();
        for thread in inside.iter().flat_map(|task| &task.threads) {
            let registers = thread.regs.0.iter().enumerate().filter(|(index, _)| !SELECTORS.contains(index));
            // A register of 32-bit code has an upper half that means nothing.
            pointers.extend(registers.flat_map(|(_, &value)| [value, value & 0xffff_ffff]));
            pointers.extend(thread.rseq.map(|rseq| rseq.area.0));
        }
        pointers.sort_unstable();
        let may_map_data = may_map && within(RLIMIT_DATA, total(is_data));
        Self { space, may_map, may_map_data, read_implies_exec, pointers }
    }

    /// The area that holds an address, or the next one above it.
    fn at(&self, addr: u64) -> usize {
        self.space.vmas.partition_point(|vma| vma.end.0 <= addr)
    }

    fn is_free(&self, range: Range) -> bool {
        self.space.vmas.get(self.at(range.start)).is_none_or(|vma| vma.start.0 >= range.end)
    }

    fn lends(&self, range: Range) -> bool {
        let index = self.at(range.start);
        let Some(vma) = self.space.vmas.get(index) else { return false };
        let may_map = if is_data(vma) { self.may_map_data } else { self.may_map };
        let inside = vma.start.0 <= range.start && range.end <= vma.end.0;
        let alike = |other: Option<&Vma>, joins: fn(&Vma, &Vma) -> bool| {
            other.is_some_and(|other| {
                joins(other, vma)
                    && (other.backing, other.prot, other.flags) == (vma.backing, vma.prot, vma.flags)
            })
        };
        let below = index.checked_sub(1).and_then(|below| self.space.vmas.get(below));
        let at_start = vma.start.0 == range.start && !alike(below, |other, vma| other.end == vma.start);
        let above = self.space.vmas.get(index + 1);
        let at_end = vma.end.0 == range.end && !alike(above, |other, vma| other.start == vma.end);
        may_map
            && inside
            && is_plain(vma, self.read_implies_exec)
            && (at_start || at_end)
            && self.is_untouched(range)
    }

    fn is_untouched(&self, range: Range) -> bool {
        let overlaps = |start: Addr, end: u64| start.0 < range.end && range.start < end;
        let next = self.space.runs.partition_point(|run| run.end() <= range.start);
        let touched = self.space.runs.get(next).is_some_and(|run| overlaps(run.start, run.end()));
        let has_policy = self.space.policies.iter().any(|area| overlaps(area.start, area.end.0));
        let guarded = self.space.guards.iter().any(|guard| overlaps(guard.start, guard.end.0));
        let named = self.space.names.iter().any(|area| overlaps(area.start, area.end.0));
        let next = self.pointers.partition_point(|&pointer| pointer < range.start);
        let pointed_to = self.pointers.get(next).is_some_and(|&pointer| pointer < range.end);
        !touched && !has_policy && !guarded && !named && !pointed_to
    }
}

/// What counts against RLIMIT_DATA (`is_data_mapping`, mm/vma.h).
fn is_data(vma: &Vma) -> bool {
    vma.backing.is_private() && vma.prot & PROT_WRITE != 0 && vma.flags & vm::GROWS_DOWN == 0
}

/// The lowest range of `len` bytes that each address space of these tasks (by index) either has free or can lend.
///
/// It stays out of the upper quarter, where exec puts the stack, the vDSO and the first mappings of a fresh task.
#[must_use]
pub fn choose(tasks: &[Task], spaces: &[Space], members: &[usize], len: u64) -> Option<Range> {
    let holder = |index: usize| holder_of(tasks, index, Object::Memory);
    let holds = |index: &&usize| holder(**index) == tasks[**index].pid;
    let lenders: Vec<Lender<'_>> = (members.iter().filter(holds))
        .map(|&index| {
            let inside = members.iter().filter(|&&other| holder(other) == tasks[index].pid);
            let inside: Vec<&Task> = inside.map(|&other| &tasks[other]).collect();
            Lender::new(&spaces[index], &inside)
        })
        .collect();
    let highest = members.iter().map(|&index| task_size(&tasks[index])).min()? / 4 * 3;
    let edges = |vma: &Vma| [Some(vma.start.0), vma.end.0.checked_sub(len)];
    let mut starts: Vec<u64> =
        lenders.iter().flat_map(|lender| lender.space.vmas.iter().flat_map(edges)).flatten().collect();
    starts.sort_unstable();
    starts.dedup();
    let fits = |range: &Range| lenders.iter().all(|lender| lender.is_free(*range) || lender.lends(*range));
    starts
        .into_iter()
        .filter(|&start| start >= LOWEST && start.checked_add(len).is_some_and(|end| end <= highest))
        .map(|start| Range::new(start, len))
        .find(fits)
}

/// The arguments of the mmap(2) that makes plain memory again, whatever is there now. That of ia32 counts the offset in pages.
#[must_use]
pub fn mmap_args(vma: &Vma) -> [u64; 6] {
    const MAP_PRIVATE: u64 = 0x02;
    const MAP_FIXED: u64 = 0x10;
    const MAP_ANONYMOUS: u64 = 0x20;
    const MAP_NORESERVE: u64 = 0x4000;
    const NO_FD: u64 = 0xffff_ffff;
    let no_reserve = if vma.flags & vm::NO_RESERVE != 0 { MAP_NORESERVE } else { 0 };
    let flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | no_reserve;
    [vma.start.0, vma.end.0 - vma.start.0, u64::from(vma.prot), flags, NO_FD, 0]
}

/// Whether one call of mmap makes an area: private anonymous memory without code, and nothing said about it. With READ_IMPLIES_EXEC what
/// can be read is code.
#[must_use]
pub fn is_plain(vma: &Vma, read_implies_exec: bool) -> bool {
    vma.backing == Backing::Anonymous
        && vma.flags & !PLAIN == 0
        && vma.prot & PROT_EXEC == 0
        // Accounted although it cannot be written: it could be.
        && (vma.prot & PROT_WRITE != 0 || vma.flags & vm::ACCOUNTED == 0)
        && !(read_implies_exec && vma.prot & PROT_READ != 0)
}

/// Takes a range that [`choose`] found out of an address space. Returns what has to be mapped there in the end, if it was lent.
pub fn take(space: &mut Space, range: Range) -> Option<Vma> {
    let index = space.vmas.partition_point(|vma| vma.end.0 <= range.start);
    let vma = space.vmas.get_mut(index).filter(|vma| vma.start.0 < range.end)?;
    let part = Vma { start: Addr(range.start), end: Addr(range.end), ..vma.clone() };
    if vma.start == part.start {
        vma.start = part.end;
    } else {
        vma.end = part.start;
    }
    if vma.start == vma.end {
        space.vmas.remove(index);
    }
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use images::id::PAGE_SIZE;
    use images::memory::{Guard, Run};

    const LEN: u64 = 0x2_0000;
    const RW: u32 = PROT_READ | PROT_WRITE;

    fn area(start: u64, end: u64, prot: u32, flags: u32) -> Vma {
        Vma { start: Addr(start), end: Addr(end), prot, flags, backing: Backing::Anonymous }
    }

    fn space(vmas: Vec<Vma>, runs: &[(u64, u64)]) -> Space {
        let runs =
            runs.iter().map(|&(start, pages)| Run { start: Addr(start), pages, first_page: 0 }).collect();
        Space { vmas, runs, ..Space::default() }
    }

    /// Whether a space lends its range at an address.
    fn lends(space: &Space, start: u64) -> bool {
        lends_of(&Lender { pointers: Vec::new(), ..lender(space) }, start)
    }

    fn lends_of(lender: &Lender<'_>, start: u64) -> bool {
        lender.lends(Range::new(start, LEN))
    }

    fn lender(space: &Space) -> Lender<'_> {
        Lender { space, may_map: true, may_map_data: true, read_implies_exec: false, pointers: Vec::new() }
    }

    #[test]
    fn an_area_lends_what_is_untouched_at_its_edges() {
        let full = space(vec![area(0x10_0000, 0x20_0000, RW, PLAIN)], &[(0x10_0000, 1), (0x18_0000, 1)]);
        assert!(!lends(&full, 0x10_0000), "touched");
        assert!(!lends(&full, 0x14_0000), "in the middle");
        assert!(lends(&full, 0x20_0000 - LEN));
        assert!(!lends(&full, 0x20_0000 - LEN + PAGE_SIZE), "sticks out");
        let pointed = Lender { pointers: vec![0x1f_fff8], ..lender(&full) };
        assert!(!lends_of(&pointed, 0x20_0000 - LEN));
        let beside = Lender { pointers: vec![0x20_0000 - LEN - 8, 0x20_0000], ..lender(&full) };
        assert!(lends_of(&beside, 0x20_0000 - LEN));
        let guard = Guard { start: Addr(0x20_0000 - PAGE_SIZE), end: Addr(0x20_0000) };
        assert!(!lends(&Space { guards: vec![guard], ..full }, 0x20_0000 - LEN));
    }

    #[test]
    fn only_plain_areas_lend() {
        let of = |prot, flags| space(vec![area(0x10_0000, 0x20_0000, prot, flags)], &[]);
        assert!(lends(&of(0, vm::NO_RESERVE | vm::MAY_WRITE), 0x10_0000));
        assert!(!lends(&of(7, PLAIN), 0x10_0000), "code");
        assert!(!lends(&of(0, PLAIN), 0x10_0000), "accounted, and not to be written");
        for flag in [vm::LOCKED, vm::GROWS_DOWN, vm::DONT_FORK, vm::MERGEABLE, vm::NO_HUGE_PAGE] {
            assert!(!lends(&of(RW, PLAIN | flag), 0x10_0000), "{flag:#x}");
        }
        let readable = of(PROT_READ, vm::NO_RESERVE);
        assert!(lends(&readable, 0x10_0000));
        assert!(!lends_of(&Lender { read_implies_exec: true, ..lender(&readable) }, 0x10_0000));
        let data = of(RW, PLAIN);
        assert!(!lends_of(&Lender { may_map_data: false, ..lender(&data) }, 0x10_0000));
        assert!(lends_of(&Lender { may_map_data: false, ..lender(&readable) }, 0x10_0000));
    }

    /// It would join with the wrong one, and the line between the two would move.
    #[test]
    fn an_edge_at_an_equal_neighbour_is_none() {
        let halves = |prot| {
            space(vec![area(0x10_0000, 0x20_0000, RW, PLAIN), area(0x20_0000, 0x30_0000, prot, PLAIN)], &[])
        };
        assert!(!lends(&halves(RW), 0x20_0000 - LEN) && !lends(&halves(RW), 0x20_0000));
        assert!(lends(&halves(PROT_READ), 0x20_0000 - LEN));
    }

    #[test]
    fn what_is_taken_is_given_back() {
        let whole = space(vec![area(0x10_0000, 0x20_0000, RW, PLAIN)], &[]);
        for start in [0x10_0000, 0x20_0000 - LEN] {
            let mut rest = whole.clone();
            let part =
                take(&mut rest, Range::new(start, LEN)).map(|part| (part.start.0, part.end.0, part.prot));
            assert_eq!(part, Some((start, start + LEN, RW)));
            let [left] = &rest.vmas[..] else { panic!("{rest:?}") };
            assert_eq!(left.end.0 - left.start.0, 0x10_0000 - LEN);
            assert!(left.end.0 <= start || start + LEN <= left.start.0);
        }
        let mut rest = whole.clone();
        assert_eq!(take(&mut rest, Range::new(0x20_0000, LEN)), None, "free there");
        assert_eq!(take(&mut rest, Range::new(0x10_0000, 0x10_0000)).as_ref(), whole.vmas.first());
        assert!(rest.vmas.is_empty());
    }
}
