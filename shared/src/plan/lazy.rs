//! Pages that the restoring task does not read itself. They come by userfaultfd: from the coordinator, which puts them in place without
//! the zeros and the faults that a read costs; or when their task runs already (`crr restore --lazy-pages`), and whoever touches a page that is
//! missing is stopped until it is there.
//!
//! That works only where the kernel can wait. A task that ends or dumps core cannot (`handle_userfault`, fs/userfaultfd.c), nor
//! can one that looks at another's arguments (`__access_remote_vm`, mm/memory.c): what is used then is put in place before the
//! task runs, as are pages that others have, too, and areas too small to be worth it.

use super::extents::Extents;
use super::family::holder_of;
use crate::range::Range;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use images::attribute::MemoryPolicy;
use images::id::PAGE_SIZE;
use images::memory::{Backing, Run, Space, Vma, vm};
use images::sharing::Object;
use images::task::Task;
use images::{Addr, Pid};

const PROT_WRITE: u32 = 2;

/// Pages from which on an area is worth it.
const LEAST_PAGES: u64 = 64;

/// Which pages are to come later.
pub struct Wanted<'a> {
    /// Whether a task holds robust futexes: nothing of it comes when it runs, since the kernel follows the list of them when it ends,
    /// wherever it leads.
    pub holds_locks: &'a dyn Fn(usize) -> bool,
    /// Whether an area comes into question.
    pub suits: &'a dyn Fn(&Vma) -> bool,
}

/// What rules an area out: memory that is to stay in place (locks), that the kernel may forget or that a child finds empty,
/// and a stack that grows, which the arguments lie in.
const AT_ONCE: u32 = vm::LOCKED | vm::LOCK_ON_FAULT | vm::WIPE_ON_FORK | vm::DROPPABLE | vm::GROWS_DOWN;

/// What comes later, of one address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lazy {
    /// Areas that it comes to, by rising address.
    pub areas: Vec<Range>,
    /// The pages, by rising address.
    pub runs: Vec<Run>,
}

impl Lazy {
    /// Whether everything is put in place before the task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Leaves out of the areas what a space has lent meanwhile.
    pub fn leave_out_lent(&mut self, space: &Space) {
        let areas = core::mem::take(&mut self.areas);
        let range = |vma: &Vma| Range { start: vma.start.0, end: vma.end.0 };
        self.areas = (space.vmas.iter().map(range))
            .filter(|vma| areas.iter().any(|area| area.start <= vma.start && vma.end <= area.end))
            .collect();
    }

    /// Its pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }
}

/// Takes out of each address space the pages that can come later; one entry for each.
#[must_use]
pub fn take(tasks: &[Task], spaces: &mut [Space], wanted: &Wanted<'_>) -> Vec<Lazy> {
    let common = common(spaces);
    let mut members: BTreeMap<Pid, Vec<usize>> = BTreeMap::new();
    for index in 0..tasks.len() {
        members.entry(holder_of(tasks, index, Object::Memory)).or_default().push(index);
    }
    let of_task = |(task, space): (&Task, &mut Space)| {
        let members = members.get(&task.pid).map_or(&[][..], Vec::as_slice);
        if members.iter().any(|&member| (wanted.holds_locks)(member) || has_policy(&tasks[member])) {
            return Lazy::default();
        }
        let used = members.iter().flat_map(|&member| used_by_kernel(&tasks[member]));
        let fixed: Vec<Range> = shown_to_others(space).into_iter().chain(used).collect();
        take_from(space, &fixed, &common, wanted)
    };
    tasks.iter().zip(spaces).map(of_task).collect()
}

/// Whether there is a policy that pages would have to be allocated by, beside that of their area: they are allocated by the process
/// that brings them.
fn has_policy(task: &Task) -> bool {
    task.threads.iter().any(|thread| thread.attributes.policy != MemoryPolicy::default())
}

/// Page numbers that are in several places, by rising number.
fn common(spaces: &[Space]) -> Vec<Range> {
    let runs = spaces.iter().flat_map(|space| &space.runs);
    let mut spans: Vec<Range> = runs.map(|run| Range::new(run.first_page, run.pages)).collect();
    spans.sort_unstable();
    let mut common: Vec<Range> = Vec::new();
    let mut end = 0;
    for span in spans {
        let (from, to) = (span.start, span.end.min(end));
        match common.last_mut() {
            _ if from >= to => {}
            Some(last) if last.end >= from => last.end = last.end.max(to),
            _ => common.push(Range { start: from, end: to }),
        }
        end = end.max(span.end);
    }
    common
}

/// What others look at in an address space, by ways that cannot wait.
fn shown_to_others(space: &Space) -> [Range; 2] {
    let l = &space.layout;
    [(l.arg_start, l.arg_end), (l.env_start, l.env_end)]
        .map(|(start, end)| Range { start: start.0, end: end.0 })
}

/// What the kernel writes to, or reads, when a thread ends, or before it has run.
fn used_by_kernel(task: &Task) -> impl Iterator<Item = Range> {
    /// Of a 64-bit list: next, offset, pending.
    const ROBUST_LIST: u64 = 24;
    task.threads.iter().flat_map(|thread| {
        let lists = [&thread.robust_list_64, &thread.robust_list_32].into_iter().flatten();
        let lists = lists.map(|list| Range::new(list.head.0, ROBUST_LIST));
        let area = thread.rseq.iter().map(|rseq| Range::new(rseq.area.0, u64::from(rseq.size)));
        let word = core::iter::once(thread.clear_child_tid).filter(|word| word.0 != 0);
        lists.chain(area).chain(word.map(|word| Range::new(word.0, 4)))
    })
}

fn can_wait(vma: &Vma) -> bool {
    vma.backing == Backing::Anonymous && vma.prot & PROT_WRITE != 0 && vma.flags & AT_ONCE == 0
}

fn take_from(space: &mut Space, fixed: &[Range], common: &[Range], wanted: &Wanted<'_>) -> Lazy {
    let mut lazy = Lazy::default();
    let mut kept = Extents::default();
    let mut runs: &[Run] = &space.runs;
    for vma in &space.vmas {
        let area = Range { start: vma.start.0, end: vma.end.0 };
        let guarded = || {
            space.guards.iter().any(|guard| area.overlaps(Range { start: guard.start.0, end: guard.end.0 }))
        };
        let until = runs.partition_point(|run| run.end() <= area.end);
        let inside = &runs[..until];
        runs = &runs[until..];
        let mut later = Extents::default();
        let mut now = Extents::default();
        if can_wait(vma) && (wanted.suits)(vma) && !guarded() {
            inside.iter().for_each(|run| divide(run, fixed, common, &mut later, &mut now));
        }
        if later.runs().iter().map(|run| run.pages).sum::<u64>() >= LEAST_PAGES {
            lazy.areas.push(area);
            lazy.runs.extend(later.runs());
            now.runs().iter().for_each(|&run| kept.push(run));
        } else {
            inside.iter().for_each(|&run| kept.push(run));
        }
    }
    runs.iter().for_each(|&run| kept.push(run));
    if !lazy.is_empty() {
        space.runs = kept.runs().to_vec();
    }
    lazy
}

/// Parts of a run that can come later, and the others.
fn divide(run: &Run, fixed: &[Range], common: &[Range], later: &mut Extents, now: &mut Extents) {
    let mut cuts = alloc::vec![0, run.pages];
    let mut at_once = Vec::new();
    let mut add = |from: u64, to: u64| {
        let (from, to) = (from.min(run.pages), to.min(run.pages));
        if from < to {
            cuts.extend([from, to]);
            at_once.push(Range { start: from, end: to });
        }
    };
    for range in fixed.iter().filter(|range| !range.is_empty()) {
        let page = |addr: u64| addr.saturating_sub(run.start.0).div_ceil(PAGE_SIZE);
        add(range.start.saturating_sub(run.start.0) / PAGE_SIZE, page(range.end));
    }
    let from = common.partition_point(|range| range.end <= run.first_page);
    let last = run.first_page + run.pages;
    for range in common[from..].iter().take_while(|range| range.start < last) {
        add(range.start.saturating_sub(run.first_page), range.end - run.first_page);
    }
    cuts.sort_unstable();
    for cut in cuts.windows(2).filter(|cut| cut[0] < cut[1]) {
        let part = Run {
            start: Addr(run.start.0 + cut[0] * PAGE_SIZE),
            pages: cut[1] - cut[0],
            first_page: run.first_page + cut[0],
        };
        let at_once = at_once.iter().any(|range| range.start <= cut[0] && cut[1] <= range.end);
        if at_once { now.push(part) } else { later.push(part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const AREA: u64 = 0x10_0000;
    const ANY: Wanted<'_> = Wanted { holds_locks: &|_| false, suits: &|_| true };

    fn run(start: u64, pages: u64, first_page: u64) -> Run {
        Run { start: Addr(start), pages, first_page }
    }

    fn space(flags: u32, runs: Vec<Run>) -> Space {
        let vma = Vma { start: Addr(AREA), end: Addr(2 * AREA), prot: 3, flags, backing: Backing::Anonymous };
        Space { vmas: vec![vma], runs, ..Space::default() }
    }

    #[test]
    fn what_the_kernel_uses_and_what_others_have_stays() {
        let mut space = space(0, vec![run(AREA, 200, 10)]);
        // The third page in part, and pages 20 and 21 of the file.
        let lazy = take_from(&mut space, &[Range::new(AREA + 0x2ff0, 8)], &[Range::new(20, 2)], &ANY);
        assert_eq!(lazy.areas, [Range { start: AREA, end: 2 * AREA }]);
        assert_eq!(lazy.runs, [run(AREA, 2, 10), run(AREA + 0x3000, 7, 13), run(AREA + 0xc000, 188, 22)]);
        assert_eq!(space.runs, [run(AREA + 0x2000, 1, 12), run(AREA + 0xa000, 2, 20)]);
    }

    #[test]
    fn a_range_over_two_pages_keeps_both() {
        let mut space = space(0, vec![run(AREA, 100, 0)]);
        let lazy = take_from(&mut space, &[Range::new(AREA + 0x1ffe, 4)], &[], &ANY);
        assert_eq!(lazy.runs, [run(AREA, 1, 0), run(AREA + 0x3000, 97, 3)]);
        assert_eq!(space.runs, [run(AREA + 0x1000, 2, 1)]);
    }

    #[test]
    fn what_is_small_or_locked_stays() {
        for (flags, pages) in [(0, LEAST_PAGES - 1), (vm::LOCKED, 200), (vm::WIPE_ON_FORK, 200)] {
            let mut space = space(flags, vec![run(AREA, pages, 0)]);
            assert!(take_from(&mut space, &[], &[], &ANY).is_empty());
            assert_eq!(space.runs, [run(AREA, pages, 0)]);
        }
    }

    #[test]
    fn pages_in_several_places_are_found() {
        let spaces =
            [space(0, vec![run(AREA, 10, 0), run(AREA + 0x10000, 10, 100)]), space(0, vec![run(AREA, 4, 8)])];
        assert_eq!(common(&spaces), [Range { start: 8, end: 10 }]);
    }
}
