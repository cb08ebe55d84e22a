//! Page contents by address, as sets.

use crate::range::Range;
use alloc::vec::Vec;
use images::Addr;
use images::id::PAGE_SIZE;
use images::memory::Run;

/// Runs by rising address that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents(Vec<Run>);

/// Consecutive addresses in two sets: the first page of each, where it has any.
struct Piece {
    start: u64,
    pages: u64,
    left: Option<u64>,
    right: Option<u64>,
}

impl Extents {
    /// The runs, by rising address.
    pub(super) fn runs(&self) -> &[Run] {
        &self.0
    }

    /// Adds a run behind all others.
    pub(super) fn push(&mut self, run: Run) {
        match self.0.last_mut() {
            Some(last) if last.end() == run.start.0 && last.first_page + last.pages == run.first_page => {
                last.pages += run.pages;
            }
            _ => self.0.push(run),
        }
    }

    /// Whether there is a page in a range.
    pub(super) fn meets(&self, range: Range) -> bool {
        let next = self.0.partition_point(|run| run.end() <= range.start);
        self.0.get(next).is_some_and(|run| run.start.0 < range.end)
    }

    /// Where both have pages, those of `above`.
    pub(super) fn under(&self, above: &Self) -> Self {
        self.map(above, |left, right| right.or(left))
    }

    /// The pages that `have` does not have at the same addresses.
    pub(super) fn missing_in(&self, have: &Self) -> Self {
        self.map(have, |left, right| left.filter(|_| left != right))
    }

    /// The pages in these ranges, which rise and do not overlap.
    pub(super) fn within(&self, ranges: impl Iterator<Item = Range>) -> Self {
        let all = ranges.map(|range| Run {
            start: Addr(range.start),
            pages: (range.end - range.start) / PAGE_SIZE,
            first_page: 0,
        });
        self.map(&Self(all.collect()), |left, right| left.filter(|_| right.is_some()))
    }

    /// The addresses at which `other` has no pages.
    pub(super) fn beside(&self, other: &Self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        walk(&self.0, &other.0, |piece| {
            if piece.left.is_some() && piece.right.is_none() {
                let end = piece.start + piece.pages * PAGE_SIZE;
                match ranges.last_mut() {
                    Some(last) if last.end == piece.start => last.end = end,
                    _ => ranges.push(Range { start: piece.start, end }),
                }
            }
        });
        ranges
    }

    fn map(&self, other: &Self, choose: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) -> Self {
        let mut chosen = Self::default();
        walk(&self.0, &other.0, |Piece { start, pages, left, right }| {
            if let Some(first_page) = choose(left, right) {
                chosen.push(Run { start: Addr(start), pages, first_page });
            }
        });
        chosen
    }
}

impl From<&[Run]> for Extents {
    fn from(runs: &[Run]) -> Self {
        let mut extents = Self::default();
        runs.iter().for_each(|&run| extents.push(run));
        extents
    }
}

/// Goes through two lists side by side, by addresses at which one of them has pages.
fn walk(left: &[Run], right: &[Run], mut piece: impl FnMut(Piece)) {
    let mut rests = [left.iter().copied(), right.iter().copied()];
    let mut heads = rests.each_mut().map(Iterator::next);
    while let Some(start) = heads.iter().flatten().map(|run| run.start.0).min() {
        let border = |run: &Run| if run.start.0 > start { run.start.0 } else { run.end() };
        let end = heads.iter().flatten().map(border).min().unwrap_or(start);
        let pages = (end - start) / PAGE_SIZE;
        let mut firsts = [None; 2];
        for ((head, rest), first) in heads.iter_mut().zip(&mut rests).zip(&mut firsts) {
            if let Some(run) = head.filter(|run| run.start.0 == start) {
                *first = Some(run.first_page);
                let (left, first_page) = (run.pages - pages, run.first_page + pages);
                *head = if left == 0 {
                    rest.next()
                } else {
                    Some(Run { start: Addr(end), pages: left, first_page })
                };
            }
        }
        piece(Piece { start, pages, left: firsts[0], right: firsts[1] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(runs: &[(u64, u64, u64)]) -> Extents {
        let run = |&(page, pages, first_page)| Run { start: Addr(page * PAGE_SIZE), pages, first_page };
        Extents(runs.iter().map(run).collect())
    }

    #[test]
    fn sets_are_taken_apart() {
        let (a, b) = (extents(&[(1, 4, 10), (8, 2, 20)]), extents(&[(2, 1, 11), (3, 1, 50), (9, 3, 60)]));
        assert_eq!(a.missing_in(&b), extents(&[(1, 1, 10), (3, 2, 12), (8, 2, 20)]));
        assert_eq!(a.under(&b), extents(&[(1, 2, 10), (3, 1, 50), (4, 1, 13), (8, 1, 20), (9, 3, 60)]));
        let range = |start: u64, end: u64| Range { start: start * PAGE_SIZE, end: end * PAGE_SIZE };
        assert_eq!(a.beside(&b), [range(1, 2), range(4, 5), range(8, 9)]);
        assert_eq!(
            a.within([range(0, 2), range(4, 9)].into_iter()),
            extents(&[(1, 1, 10), (4, 1, 13), (8, 1, 20)])
        );
        assert!(a.meets(range(4, 5)) && !a.meets(range(5, 8)) && a.meets(range(5, 9)));
    }
}
