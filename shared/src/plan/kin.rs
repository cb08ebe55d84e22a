//! Copy-on-write: which tasks are cloned by another one's program so that they share its pages again.
//!
//! Nobody has to be. A task that shares pages with its parent, or with a sibling whose common parent is gone or has changed, is
//! cloned where that is possible, and so is everyone below it then. All others exec a program of their own and
//! have copies of their pages.

use super::family::{Making, SIGCHLD};
use super::pkey;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use images::id::PAGE_SIZE;
use images::memory::{Backing, Run, Shared, Space, Vma, vm};
use images::task::{Task, Tree};
use images::{Pid, SharedId};

/// CLONE_PARENT.
const CLONE_PARENT: u64 = 0x8000;

/// How far up somebody is looked for who shares pages that those between have changed.
const GENERATIONS: usize = 8;

/// How many generations of tasks come from one program: each lies in the plan of the one before.
const DEPTH: u32 = 50;

/// What terminals that control sessions say of tasks.
#[derive(Clone, Debug, Default)]
pub struct Terminals {
    /// Those that have let go of the one of their session.
    pub without: BTreeSet<Pid>,
    /// The process groups in the foreground, which have to be there before any task is cloned.
    pub foreground: BTreeSet<Pid>,
}

/// The makings of a tree with its copy-on-write sharing, from those without ([`super::family::makings`]).
#[must_use]
pub fn with_pages(
    tree: &Tree,
    (spaces, shared): (&[Space], &[Shared]),
    terminals: &Terminals,
    makings: &[Making],
) -> Vec<Making> {
    let kin = Kin::of(tree, (spaces, shared), terminals, makings);
    let count = makings.len();
    let mut tied = vec![None; count];
    for index in 1..count {
        // A sibling that is cloned by one itself would be one generation more.
        let sibling = |task: usize, maker: usize| kin.parents[task] != Some(maker);
        let nested = |maker: usize| tied[maker].is_some_and(|other| sibling(maker, other));
        let maker = kin.maker(index).filter(|&maker| !(sibling(index, maker) && nested(maker)));
        tied[index] = maker.filter(|_| kin.may_share(index));
    }
    // From the leaves up: whether a task, and all below it, can be cloned.
    let mut possible: Vec<bool> = (0..count).map(|index| kin.can_be_cloned(index)).collect();
    let mut heights = vec![1; count];
    for index in (1..count).rev() {
        possible[index] &= heights[index] <= DEPTH;
        if let Some(parent) = kin.parents[index] {
            possible[parent] &= possible[index];
            heights[parent] = heights[parent].max(heights[index] + 1);
        }
    }
    let mut cloned = vec![false; count];
    let mut all = Vec::with_capacity(count);
    for (index, &making) in makings.iter().enumerate() {
        let below = kin.parents[index].is_some_and(|parent| cloned[parent]);
        let tie = tied[index].filter(|_| possible[index]);
        let changed = match (making, tie, kin.parents[index]) {
            (Making::Cloned { by, flags, exec: false, .. }, ..) => {
                let pages = kin.may_share(index) && kin.may_share(by) && kin.shares(index, by);
                Making::Cloned { by, flags, exec: false, pages }
            }
            (Making::Forked, Some(by), Some(parent)) => {
                let flags = if by == parent { 0 } else { CLONE_PARENT };
                Making::Cloned { by, flags, exec: false, pages: true }
            }
            (Making::Forked, None, Some(parent)) if below => {
                let exec = tree.tasks[index].abi != tree.tasks[parent].abi;
                Making::Cloned { by: parent, flags: 0, exec, pages: false }
            }
            (making, ..) => making,
        };
        cloned[index] = changed != Making::Forked;
        all.push(changed);
    }
    all
}

/// What is known of a tree's tasks.
struct Kin<'a> {
    tasks: &'a [Task],
    spaces: &'a [Space],
    shared: &'a [Shared],
    terminals: &'a Terminals,
    makings: &'a [Making],
    parents: Vec<Option<usize>>,
    /// By parent, in the order of their birth.
    children: BTreeMap<usize, Vec<usize>>,
    /// Those whose process group somebody is in who does not come from them, or that they are not in themselves.
    leaders: BTreeSet<usize>,
    /// Parents and groups of zombies.
    of_zombies: BTreeSet<Pid>,
    /// Those whose address space others have, too.
    lenders: BTreeSet<Pid>,
}

impl<'a> Kin<'a> {
    fn of(
        tree: &'a Tree,
        (spaces, shared): (&'a [Space], &'a [Shared]),
        terminals: &'a Terminals,
        makings: &'a [Making],
    ) -> Self {
        let tasks = &tree.tasks;
        let index_of: BTreeMap<Pid, usize> =
            tasks.iter().enumerate().map(|(index, task)| (task.pid, index)).collect();
        let parents: Vec<Option<usize>> =
            tasks.iter().map(|task| index_of.get(&task.ppid).copied()).collect();
        let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut leaders = BTreeSet::new();
        for (index, task) in tasks.iter().enumerate() {
            if let Some(parent) = parents[index] {
                children.entry(parent).or_default().push(index);
            }
            let leader = index_of.get(&task.pgid).copied();
            let above = core::iter::successors(Some(index), |&at| parents[at]);
            let followed = leader
                .filter(|&leader| !above.clone().any(|at| at == leader) || tasks[leader].pgid != task.pgid);
            leaders.extend(followed);
        }
        let of_zombies = tree.zombies.iter().flat_map(|zombie| [zombie.ppid, zombie.pgid]).collect();
        let lenders = tasks.iter().filter_map(|task| task.shares.memory).collect();
        Self { tasks, spaces, shared, terminals, makings, parents, children, leaders, of_zombies, lenders }
    }

    /// Whether a task's pages can be those of another one, or another one's those of it: the address space is its alone, and
    /// plain.
    fn may_share(&self, index: usize) -> bool {
        let task = &self.tasks[index];
        let alone = task.shares.memory.is_none() && !self.lenders.contains(&task.pid);
        alone && is_plain(&self.spaces[index], self.shared)
    }

    /// Who could clone a task so that it has the pages that it shares: its parent, if it shares any with that one or those
    /// above, or the first sibling with which it does.
    fn maker(&self, index: usize) -> Option<usize> {
        let parent = self.parents[index]?;
        let could = |&maker: &usize| {
            self.tasks[maker].abi == self.tasks[index].abi
                && self.may_share(maker)
                && self.stands_like(index, maker)
        };
        let above = core::iter::successors(Some(parent), |&at| self.parents[at]).take(GENERATIONS);
        if could(&parent) && above.take_while(could).any(|other| self.shares(index, other)) {
            return Some(parent);
        }
        let siblings = self.children.get(&parent)?.iter().copied();
        let earlier = siblings.take_while(|&sibling| sibling < index);
        let alike = earlier.filter(|&sibling| self.tasks[sibling].exit_signal == SIGCHLD);
        alike.filter(could).find(|&sibling| self.shares(index, sibling))
    }

    /// Whether a task is where another one's clone is, or goes from there to a group of its own. The login is what a clone cannot change by
    /// its program alone.
    fn stands_like(&self, index: usize, maker: usize) -> bool {
        let (task, maker) = (&self.tasks[index], &self.tasks[maker]);
        task.sid == maker.sid
            && task.sid != task.pid
            && (task.pgid == maker.pgid || task.pgid == task.pid)
            && task.login_uid == maker.login_uid
            && self.terminals.without.contains(&task.pid) == self.terminals.without.contains(&maker.pid)
    }

    /// Whether two tasks have any page in common.
    fn shares(&self, index: usize, maker: usize) -> bool {
        has_common_page(&self.spaces[index].runs, &self.spaces[maker].runs)
    }

    /// Whether a task can be cloned that need not be: nobody has to find it among the forked ones.
    fn can_be_cloned(&self, index: usize) -> bool {
        if self.makings[index] != Making::Forked {
            return true;
        }
        let stands = self.parents[index].is_some_and(|parent| self.stands_like(index, parent));
        let pid = self.tasks[index].pid;
        let is_early = self.leaders.contains(&index) || self.terminals.foreground.contains(&pid);
        stands && !is_early && !self.of_zombies.contains(&pid)
    }
}

/// Whether an address space has nothing that is set up in an order of its own: where pages lie is no matter of policy, all of them
/// can be touched and come one by one, no protection key is allocated, no area is sealed or goes without notice, and no segment of System V is attached.
pub(super) fn is_plain(space: &Space, shared: &[Shared]) -> bool {
    let is_segment = |id: SharedId| shared.get(id.0 as usize).is_some_and(|object| object.segment.is_some());
    let plain = |vma: &Vma| {
        let odd = matches!(vma.backing, Backing::Shared(id, _) if is_segment(id));
        vma.flags & (vm::SEALED | vm::DROPPABLE) == 0 && vma.huge().is_none() && !odd
    };
    let simple = space.policies.is_empty() && space.guards.is_empty() && !pkey::are_needed(space);
    simple && space.vmas.iter().all(plain)
}

/// Whether there is a page that is the same at the same address. Both lists rise.
fn has_common_page(mut left: &[Run], mut right: &[Run]) -> bool {
    while let ([a, lefts @ ..], [b, rights @ ..]) = (left, right) {
        let [a_end, b_end] = [a, b].map(Run::end);
        let (start, end) = (a.start.0.max(b.start.0), a_end.min(b_end));
        let page_at = |run: &Run| run.first_page + (start - run.start.0) / PAGE_SIZE;
        if start < end && page_at(a) == page_at(b) {
            return true;
        }
        if a_end <= b_end { left = lefts } else { right = rights }
    }
    false
}
