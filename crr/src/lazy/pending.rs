//! Which pages of an address space are still to come, by address.

use images::Addr;
use images::id::PAGE_SIZE;
use images::memory::Run;
use std::collections::BTreeMap;

/// Runs by their first address: one past the last byte, and the number of the first page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pending(BTreeMap<u64, (u64, u64)>);

impl Pending {
    /// Of runs that do not overlap.
    pub(super) fn new(runs: &[Run]) -> Self {
        Self(runs.iter().map(|run| (run.start.0, (run.end(), run.first_page))).collect())
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of a range do not come any more.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        let _ = self.take(start, end);
    }

    /// Those of a range come somewhere else. What was to come there does not any more.
    pub(super) fn remap(&mut self, from: u64, to: u64, len: u64) {
        let moved = self.take(from, from + len);
        self.remove(to, to + len);
        let places =
            moved.into_iter().map(|run| (run.start.0 - from + to, (run.end() - from + to, run.first_page)));
        self.0.extend(places);
    }

    fn take(&mut self, start: u64, end: u64) -> Vec<Run> {
        let mut taken = Vec::new();
        while let Some((at, (until, page))) = self.0.range(..end).next_back().map(|(&at, &run)| (at, run)) {
            if until <= start {
                break;
            }
            self.0.remove(&at);
            let (from, to) = (at.max(start), until.min(end));
            let page_at = |addr: u64| page + (addr - at) / PAGE_SIZE;
            if at < from {
                self.0.insert(at, (from, page));
            }
            if to < until {
                self.0.insert(to, (until, page_at(to)));
            }
            taken.push(Run { start: Addr(from), pages: (to - from) / PAGE_SIZE, first_page: page_at(from) });
        }
        taken
    }

    /// The run around an address, as far as it lies in the block of so many bytes (a power of two) that the address is in.
    pub(super) fn around(&self, addr: u64, block: u64) -> Option<Run> {
        let (&at, &(until, page)) = self.0.range(..=addr).next_back()?;
        let start = addr & !(block - 1);
        let (from, to) = (at.max(start), until.min(start + block));
        let run = || Run {
            start: Addr(from),
            pages: (to - from) / PAGE_SIZE,
            first_page: page + (from - at) / PAGE_SIZE,
        };
        (addr < until).then(run)
    }

    /// The first pages from an address on, or else the first of all, as many as lie in one block.
    pub(super) fn next(&self, addr: u64, block: u64) -> Option<Run> {
        let here = self.around(addr, block).map(|run| {
            let skipped = (addr.max(run.start.0) - run.start.0) / PAGE_SIZE;
            Run {
                start: run.start.offset(skipped * PAGE_SIZE),
                pages: run.pages - skipped,
                first_page: run.first_page + skipped,
            }
        });
        let first_from = |from: u64| self.0.range(from..).next().map(|(&at, _)| at);
        here.or_else(|| first_from(addr).or_else(|| first_from(0)).and_then(|at| self.around(at, block)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, pages: u64, first_page: u64) -> Run {
        Run { start: Addr(start), pages, first_page }
    }

    fn runs(pending: &Pending) -> Vec<Run> {
        pending.0.iter().map(|(&at, &(end, page))| run(at, (end - at) / PAGE_SIZE, page)).collect()
    }

    #[test]
    fn what_is_removed_leaves_both_sides() {
        let mut pending = Pending::new(&[run(0x1_0000, 8, 100), run(0x2_0000, 2, 50)]);
        pending.remove(0x1_2000, 0x1_4000);
        assert_eq!(runs(&pending), [run(0x1_0000, 2, 100), run(0x1_4000, 4, 104), run(0x2_0000, 2, 50)]);
        pending.remove(0x1_6000, 0x2_1000);
        assert_eq!(runs(&pending), [run(0x1_0000, 2, 100), run(0x1_4000, 2, 104), run(0x2_1000, 1, 51)]);
        pending.remove(0, u64::MAX);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_moves_takes_the_place_of_what_was_there() {
        let mut pending = Pending::new(&[run(0x1_0000, 8, 100), run(0x2_0000, 8, 200)]);
        pending.remap(0x1_2000, 0x2_1000, 0x2000);
        assert_eq!(
            runs(&pending),
            [
                run(0x1_0000, 2, 100),
                run(0x1_4000, 4, 104),
                run(0x2_0000, 1, 200),
                run(0x2_1000, 2, 102),
                run(0x2_3000, 5, 203)
            ]
        );
    }

    #[test]
    fn a_block_around_an_address_has_what_is_to_come_in_it() {
        let pending = Pending::new(&[run(0x1_f000, 20, 7)]);
        assert_eq!(pending.around(0x2_1000, 0x1_0000), Some(run(0x2_0000, 16, 8)));
        assert_eq!(pending.around(0x1_f000, 0x1_0000), Some(run(0x1_f000, 1, 7)));
        assert_eq!(pending.around(0x1_e000, 0x1_0000), None);
        assert_eq!(pending.around(0x3_3000, 0x1_0000), None);
    }

    #[test]
    fn the_next_ones_come_after_an_address_or_from_the_beginning() {
        let pending = Pending::new(&[run(0x1_f000, 20, 7)]);
        assert_eq!(pending.next(0x2_1000, 0x1_0000), Some(run(0x2_1000, 15, 9)));
        assert_eq!(pending.next(0, 0x1_0000), Some(run(0x1_f000, 1, 7)));
        assert_eq!(pending.next(0x4_0000, 0x1_0000), Some(run(0x1_f000, 1, 7)));
        assert_eq!(Pending::default().next(0, 0x1_0000), None);
    }
}
