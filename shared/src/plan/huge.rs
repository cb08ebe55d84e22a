//! Transparent huge pages: which contents have to come into small pages.
//!
//! Where the kernel may make huge pages, the first touch of two aligned megabytes takes all of them. A task can have had a few pages
//! there (what is around them was given back, or the advice came later), and none of these was in a huge page, which has all of its pages. So
//! contents that do not fill such a range are read first, while the task is to have no huge pages. All others come after that, and become huge as
//! ever.

use super::extents::Extents;
use crate::op::{self, Op};
use crate::range::Range;
use alloc::vec::Vec;
use images::Addr;
use images::id::PAGE_SIZE;
use images::memory::{Backing, HugePage, Run, Vma, vm};

const PR_SET_THP_DISABLE: u32 = 41;
const SIZE: u64 = HugePage::Mib2.size();

/// What the kernel makes huge pages of in a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Makes {
    /// PR_GET_THP_DISABLE of the task: 0, 1, or 3 (PR_THP_DISABLE_EXCEPT_ADVISED).
    pub(super) disabled: u32,
    /// Of all memory, unless it is not to have any; else of what is advised to.
    pub(super) always: bool,
}

impl Makes {
    fn may_be_in(self, vma: &Vma) -> bool {
        let advised = vma.flags & vm::HUGE_PAGE != 0;
        let others = self.always && self.disabled == 0 && vma.flags & vm::NO_HUGE_PAGE == 0;
        vma.backing == Backing::Anonymous && self.disabled != 1 && (advised || others)
    }

    /// The ranges of addresses in which there can be huge pages. Neighbours may be one area in the kernel by now.
    fn ranges(self, areas: &[Vma]) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for vma in areas.iter().filter(|vma| self.may_be_in(vma)) {
            match ranges.last_mut() {
                Some(last) if last.end == vma.start.0 => last.end = vma.end.0,
                _ => ranges.push(Range { start: vma.start.0, end: vma.end.0 }),
            }
        }
        let aligned = |range: Range| {
            let start = range.start.checked_next_multiple_of(SIZE)?;
            let end = range.end & !(SIZE - 1);
            (start < end).then_some(Range { start, end })
        };
        ranges.into_iter().filter_map(aligned).collect()
    }

    /// `PR_SET_THP_DISABLE`, which concerns the whole address space.
    fn set(list: &mut Vec<u8>, disabled: u32) {
        let on = disabled & 1;
        let args = [u64::from(on), u64::from(disabled & !on), 0];
        op::push(list, &Op::Prctl { option: PR_SET_THP_DISABLE, args });
    }
}

/// Appends what reads these runs, by rising address, into areas that are mapped.
pub(super) fn fill(list: &mut Vec<u8>, runs: &[Run], areas: &[Vma], makes: Makes) {
    let ranges = makes.ranges(areas);
    if ranges.is_empty() {
        return read(list, runs);
    }
    let Divided { small, rest } = divide(runs, &ranges);
    if !small.runs().is_empty() {
        Makes::set(list, 1);
        read(list, small.runs());
        Makes::set(list, makes.disabled);
    }
    read(list, rest.runs());
}

/// In the order of the page file, so that they become few large reads.
fn read(list: &mut Vec<u8>, runs: &[Run]) {
    let mut runs: Vec<&Run> = runs.iter().collect();
    runs.sort_unstable_by_key(|run| run.first_page);
    for run in runs {
        let (len, offset) = (run.pages * PAGE_SIZE, run.first_page * PAGE_SIZE);
        op::push(list, &Op::Fill { addr: run.start.0, len, offset });
    }
}

/// What is to come into small pages, and everything else.
#[derive(Debug, Default)]
struct Divided {
    small: Extents,
    rest: Extents,
}

fn divide(runs: &[Run], mut ranges: &[Range]) -> Divided {
    let mut divided = Divided::default();
    // Pieces of the huge page that was come to last, which more runs may have a part of.
    let mut pieces: Vec<Run> = Vec::new();
    for run in runs {
        let piece = |start: u64, end: u64| Run {
            start: Addr(start),
            pages: (end - start) / PAGE_SIZE,
            first_page: run.first_page + (start - run.start.0) / PAGE_SIZE,
        };
        let (mut at, end) = (run.start.0, run.end());
        while at < end {
            let passed = ranges.iter().take_while(|range| range.end <= at).count();
            ranges = &ranges[passed..];
            let range = ranges.first().copied().filter(|range| range.start < end);
            let page = at & !(SIZE - 1);
            let whole = |range: Range| (end.min(range.end) & !(SIZE - 1)).max(page);
            let to = match range {
                None => end,
                Some(range) if at < range.start => range.start,
                Some(range) if at == page && whole(range) > at => whole(range),
                Some(_) => {
                    let to = end.min(page + SIZE);
                    if pieces.first().is_some_and(|first| first.start.0 & !(SIZE - 1) != page) {
                        divided.add(&mut pieces);
                    }
                    pieces.push(piece(at, to));
                    at = to;
                    continue;
                }
            };
            divided.add(&mut pieces);
            divided.rest.push(piece(at, to));
            at = to;
        }
    }
    divided.add(&mut pieces);
    divided
}

impl Divided {
    /// All that there is of a huge page.
    fn add(&mut self, pieces: &mut Vec<Run>) {
        let pages: u64 = pieces.iter().map(|piece| piece.pages).sum();
        let to = if pages * PAGE_SIZE == SIZE { &mut self.rest } else { &mut self.small };
        pieces.drain(..).for_each(|piece| to.push(piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const PAGES: u64 = SIZE / PAGE_SIZE;
    const BASE: u64 = 16 * SIZE;
    const ADVISED: Makes = Makes { disabled: 0, always: false };

    /// By pages from [`BASE`] on.
    fn run(page: u64, pages: u64, first_page: u64) -> Run {
        Run { start: Addr(BASE + page * PAGE_SIZE), pages, first_page }
    }

    fn area(page: u64, pages: u64, flags: u32) -> Vma {
        let start = BASE + page * PAGE_SIZE;
        let end = start + pages * PAGE_SIZE;
        Vma { start: Addr(start), end: Addr(end), prot: 3, flags, backing: Backing::Anonymous }
    }

    fn divided(runs: &[Run], areas: &[Vma], makes: Makes) -> [Vec<Run>; 2] {
        let Divided { small, rest } = divide(runs, &makes.ranges(areas));
        [small, rest].map(|extents| extents.runs().to_vec())
    }

    #[test]
    fn only_what_fills_a_huge_page_may_become_one() {
        let areas = [area(0, 4 * PAGES, vm::HUGE_PAGE)];
        let runs = [run(5, 1, 0), run(PAGES - 2, PAGES + 3, 10), run(3 * PAGES, 9, 2000)];
        let [small, rest] = divided(&runs, &areas, ADVISED);
        let around =
            [run(5, 1, 0), run(PAGES - 2, 2, 10), run(2 * PAGES, 1, 12 + PAGES), run(3 * PAGES, 9, 2000)];
        assert_eq!(small, around);
        assert_eq!(rest, [run(PAGES, PAGES, 12)]);
    }

    #[test]
    fn several_runs_can_fill_one() {
        let areas = [area(0, PAGES / 2, vm::HUGE_PAGE), area(PAGES / 2, 2 * PAGES, vm::HUGE_PAGE)];
        let runs = [run(0, 100, 7), run(100, PAGES - 100, 900), run(PAGES, PAGES - 1, 5000)];
        let [small, rest] = divided(&runs, &areas, ADVISED);
        assert_eq!(small, [run(PAGES, PAGES - 1, 5000)]);
        assert_eq!(rest, runs[..2]);
    }

    #[test]
    fn where_there_are_no_huge_pages_nothing_is_divided() {
        // The ends of an area, and one that is too small.
        let areas = [area(1, 2 * PAGES, vm::HUGE_PAGE), area(4 * PAGES, PAGES - 1, vm::HUGE_PAGE)];
        let runs = [run(1, 2 * PAGES, 0), run(4 * PAGES, 3, 9000)];
        assert_eq!(divided(&runs, &areas, ADVISED), [vec![], runs.to_vec()]);
        let runs = [run(1, PAGES + 1, 0)];
        assert_eq!(divided(&runs, &areas, ADVISED)[0], [run(PAGES, 2, PAGES - 1)]);
        for (flags, makes) in [
            (0, ADVISED),
            (vm::NO_HUGE_PAGE, Makes { always: true, ..ADVISED }),
            (0, Makes { disabled: 3, always: true }),
            (vm::HUGE_PAGE, Makes { disabled: 1, always: true }),
        ] {
            assert_eq!(divided(&runs, &[area(1, 2 * PAGES, flags)], makes), [vec![], runs.to_vec()]);
        }
        assert_ne!(divided(&runs, &[area(1, 2 * PAGES, 0)], Makes { always: true, ..ADVISED })[0], []);
    }

    #[test]
    fn huge_pages_are_as_they_were_when_small_ones_are_read() {
        let areas = [area(0, PAGES, vm::HUGE_PAGE)];
        for (disabled, back) in [(0, [0, 0, 0]), (3, [1, 2, 0])] {
            let mut list = Vec::new();
            fill(&mut list, &[run(0, 1, 4)], &areas, Makes { disabled, always: false });
            let mut ops = Vec::new();
            let mut left: &[u8] = &list;
            while let Some((op, rest)) = op::next(left).unwrap() {
                ops.push(op);
                left = rest;
            }
            let set = |args| Op::Prctl { option: PR_SET_THP_DISABLE, args };
            let read = Op::Fill { addr: BASE, len: PAGE_SIZE, offset: 4 * PAGE_SIZE };
            assert_eq!(ops, [set([1, 0, 0]), read, set(back)]);
        }
    }
}
