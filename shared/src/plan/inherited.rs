//! What each task that is cloned with the pages of its maker is to find in its memory: the pages that it, or one that comes
//! from it, shares with tasks that do not.
//!
//! A page is known by its place in the page file. The lowest task that all who have it come from has to have it in place when they
//! are cloned, and so does everybody between, whether or not the page is theirs in the end.

use super::extents::Extents;
use super::family::Making;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use images::id::PAGE_SIZE;
use images::memory::{Run, Space};

/// By index; nothing for tasks that are made otherwise.
pub(super) fn all(makings: &[Making], spaces: &[Space]) -> Vec<Extents> {
    let mut inherited = vec![Extents::default(); makings.len()];
    let descent = Descent::of(makings);
    if descent.makers.iter().all(Option::is_none) {
        return inherited;
    }
    let all_sources = descent.sources(spaces);
    // Makers stand before whom they make, so that here all that a task makes is known when its turn comes.
    for index in (0..makings.len()).rev() {
        let Some(maker) = descent.makers[index] else { continue };
        let Some(sources) = all_sources.get(&descent.first(index)) else { continue };
        let own = from_above(sources, &spaces[index].runs, index);
        let whole = inherited[index].under(&own);
        let passed_on = from_above(sources, whole.runs(), maker);
        // The first child has the last word: it is cloned first.
        if descent.makers[maker].is_some() {
            inherited[maker] = inherited[maker].under(&passed_on);
        }
        inherited[index] = whole;
    }
    inherited
}

/// Pages that several tasks have, and the lowest task that these come from.
struct Source {
    first_page: u64,
    end: u64,
    task: usize,
}

/// Of some runs, the pages whose source is above a task.
fn from_above(sources: &[Source], runs: &[Run], index: usize) -> Extents {
    let mut found = Extents::default();
    for run in runs {
        let next = sources.partition_point(|source| source.end <= run.first_page);
        let last = run.first_page + run.pages;
        for source in sources[next..].iter().take_while(|source| source.first_page < last) {
            if source.task == index {
                continue;
            }
            let (first_page, end) = (source.first_page.max(run.first_page), source.end.min(last));
            let start = run.start.offset((first_page - run.first_page) * PAGE_SIZE);
            found.push(Run { start, pages: end - first_page, first_page });
        }
    }
    found
}

/// Who comes from whom with pages.
struct Descent {
    makers: Vec<Option<usize>>,
    depths: Vec<usize>,
}

impl Descent {
    fn of(makings: &[Making]) -> Self {
        let mut depths = Vec::with_capacity(makings.len());
        let makers: Vec<Option<usize>> = makings
            .iter()
            .map(|making| match *making {
                Making::Cloned { by, pages: true, .. } => Some(by),
                _ => None,
            })
            .collect();
        for maker in &makers {
            depths.push(maker.map_or(0, |maker| depths[maker] + 1));
        }
        Self { makers, depths }
    }

    /// The lowest task that both come from, or are.
    fn common(&self, mut a: usize, mut b: usize) -> Option<usize> {
        while a != b {
            if self.depths[a] < self.depths[b] {
                core::mem::swap(&mut a, &mut b);
            }
            a = self.makers[a]?;
        }
        Some(a)
    }

    /// The one that all who are related to a task come from.
    fn first(&self, mut index: usize) -> usize {
        while let Some(maker) = self.makers[index] {
            index = maker;
        }
        index
    }

    /// By the first of a family; each list by rising page.
    fn sources(&self, spaces: &[Space]) -> BTreeMap<usize, Vec<Source>> {
        let mut borders: BTreeMap<u64, Vec<(usize, bool)>> = BTreeMap::new();
        for (index, space) in spaces.iter().enumerate() {
            for run in &space.runs {
                borders.entry(run.first_page).or_default().push((index, true));
                borders.entry(run.first_page + run.pages).or_default().push((index, false));
            }
        }
        let mut sources: BTreeMap<usize, Vec<Source>> = BTreeMap::new();
        // How often each task has the pages since the last border, by family.
        let mut families: BTreeMap<usize, BTreeMap<usize, u32>> = BTreeMap::new();
        let mut first_page = 0;
        for (end, changes) in borders {
            for (&family, holders) in &families {
                let mut tasks = holders.keys().copied();
                let common = tasks.next().and_then(|first| tasks.try_fold(first, |a, b| self.common(a, b)));
                if let Some(task) = common.filter(|_| holders.len() > 1) {
                    sources.entry(family).or_default().push(Source { first_page, end, task });
                }
            }
            first_page = end;
            for (index, begins) in changes {
                let holders = families.entry(self.first(index)).or_default();
                let count = holders.entry(index).or_default();
                if begins {
                    *count += 1
                } else {
                    *count -= 1
                }
                holders.retain(|_, &mut count| count > 0);
            }
            families.retain(|_, holders| !holders.is_empty());
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::Addr;

    const fn cloned(by: usize) -> Making {
        Making::Cloned { by, flags: 0, exec: false, pages: true }
    }

    /// Spaces with these runs: address in pages, number, first page.
    fn spaces(all: &[&[(u64, u64, u64)]]) -> Vec<Space> {
        let run = |&(page, pages, first_page): &(u64, u64, u64)| Run {
            start: Addr(page * PAGE_SIZE),
            pages,
            first_page,
        };
        let space =
            |runs: &&[(u64, u64, u64)]| Space { runs: runs.iter().map(run).collect(), ..Space::default() };
        all.iter().map(space).collect()
    }

    fn shown(makings: &[Making], all: &[&[(u64, u64, u64)]]) -> Vec<Vec<(u64, u64, u64)>> {
        let run = |run: &Run| (run.start.0 / PAGE_SIZE, run.pages, run.first_page);
        let inherited = super::all(makings, &spaces(all));
        inherited.iter().map(|extents| extents.runs().iter().map(run).collect()).collect()
    }

    #[test]
    fn children_find_what_is_shared_and_no_more() {
        let makings = [Making::Forked, cloned(0), cloned(0)];
        let all =
            shown(&makings, &[&[(1, 8, 0)], &[(1, 3, 0), (4, 1, 20), (5, 4, 4)], &[(1, 8, 0), (20, 1, 30)]]);
        assert_eq!(all, [vec![], vec![(1, 3, 0), (5, 4, 4)], vec![(1, 8, 0)]]);
    }

    #[test]
    fn siblings_find_what_their_parent_has_no_more() {
        let makings = [Making::Forked, cloned(0), cloned(0)];
        let all = shown(&makings, &[&[(1, 8, 40)], &[(1, 8, 0)], &[(1, 8, 0)]]);
        assert_eq!(all, [vec![], vec![(1, 8, 0)], vec![(1, 8, 0)]]);
    }

    #[test]
    fn what_is_shared_below_a_task_is_no_matter_of_those_above() {
        let makings = [Making::Forked, cloned(0), cloned(1), cloned(1)];
        let all = shown(&makings, &[&[(1, 2, 0)], &[(1, 1, 0)], &[(1, 2, 0), (3, 1, 9)], &[(3, 1, 9)]]);
        // Page 1 passes through task 1; page 9 begins there.
        assert_eq!(all, [vec![], vec![(1, 2, 0)], vec![(1, 2, 0), (3, 1, 9)], vec![(3, 1, 9)]]);
    }

    #[test]
    fn families_are_apart() {
        let makings = [Making::Forked, cloned(0), Making::Forked, cloned(2)];
        let all = shown(&makings, &[&[(1, 2, 0)], &[(1, 2, 0)], &[(1, 2, 0)], &[(1, 1, 0)]]);
        assert_eq!(all, [vec![], vec![(1, 2, 0)], vec![], vec![(1, 1, 0)]]);
    }
}
