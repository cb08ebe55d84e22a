//! The tasks of a tree with what is known of each, for plans that look at several.

use super::extents::Extents;
use super::family::{Making, holder_of, host};
use super::lazy::Lazy;
use super::{cow, inherited, memory};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use images::DescriptionId;
use images::Pid;
use images::file::FdEntry;
use images::memory::{Shared, Space, Vma, vm};
use images::seccomp::Filter;
use images::sharing::Object;
use images::task::{ShellJob, Task, Tree};

/// Memory whose contents the images do not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Bytes.
    Bytes {
        /// Where in a private area of the space, page-aligned.
        at: u64,
        /// PROT_*.
        prot: u32,
        /// Whole pages.
        bytes: Vec<u8>,
    },
    /// Jumps to the functions of a vDSO that stays where exec put it, [`crate::op::WAY_LEN`] bytes each.
    Ways {
        /// Where in a private area of the space, page-aligned.
        at: u64,
        /// Bytes of that area.
        len: u64,
        /// Offsets of the functions in the vDSO.
        functions: Vec<u64>,
    },
}

/// All tasks. The lists have an entry for each, in the order of the tree.
#[derive(Clone, Debug)]
pub struct Forest<'a> {
    /// The tasks.
    pub tasks: &'a [Task],
    /// Their address spaces.
    pub spaces: &'a [Space],
    /// What they share without a file.
    pub shared: &'a [Shared],
    /// How they are made.
    pub makings: &'a [Making],
    /// Filters of seccomp, by id.
    pub filters: &'a [Filter],
    /// How many come to each [`crate::proto::Gathering`].
    pub gatherings: [u32; 3],
    /// Those that are opened when all tasks exist.
    late: BTreeSet<DescriptionId>,
    /// Sessions that a terminal controls.
    pub(super) controlled: BTreeSet<Pid>,
    written: &'a [Vec<Written>],
    lazy: &'a [Lazy],
    /// The flags of their descriptors.
    lazy_flags: u32,
    shell_job: Option<ShellJob>,
    own_group: Pid,
    clones: Vec<Vec<usize>>,
    users: Vec<[u32; Object::ALL.len()]>,
    index_of: BTreeMap<Pid, usize>,
    inherited: Vec<Extents>,
    areas: Vec<Vec<Vma>>,
}

impl<'a> Forest<'a> {
    /// Of a tree. `own_group` stands for the process group of its shell job where no task leads that; `gatherings` says
    /// how many come to each [`crate::proto::Gathering`], `late` which files are opened when all tasks exist.
    #[must_use]
    pub fn new(
        tree: &'a Tree,
        spaces: &'a [Space],
        shared: &'a [Shared],
        makings: &'a [Making],
        own_group: Pid,
        gatherings: [u32; 3],
        late: BTreeSet<DescriptionId>,
    ) -> Self {
        let tasks = &tree.tasks;
        let index_of: BTreeMap<Pid, usize> =
            tasks.iter().enumerate().map(|(index, task)| (task.pid, index)).collect();
        let mut clones = vec![Vec::new(); tasks.len()];
        for (index, making) in makings.iter().enumerate() {
            if let Making::Cloned { by, .. } = making {
                clones[*by].push(index);
            }
        }
        let mut users = vec![[1; Object::ALL.len()]; tasks.len()];
        for task in tasks {
            for object in Object::ALL {
                if let Some(holder) = task.shares.of(object).and_then(|pid| index_of.get(&pid)) {
                    users[*holder][object as usize] += 1;
                }
            }
        }
        let shell_job = tree.shell_job;
        let filters = &tree.filters;
        let inherited = inherited::all(makings, spaces);
        Self {
            tasks,
            spaces,
            shared,
            makings,
            filters,
            gatherings,
            late,
            controlled: BTreeSet::new(),
            written: &[],
            lazy: &[],
            lazy_flags: 0,
            shell_job,
            own_group,
            clones,
            users,
            index_of,
            areas: cow::areas(makings, spaces, &inherited),
            inherited,
        }
    }

    /// With sessions that a terminal controls.
    #[must_use]
    pub fn with_controlled(self, controlled: BTreeSet<Pid>) -> Self {
        Self { controlled, ..self }
    }

    /// With memory to be written, for each of the address spaces.
    #[must_use]
    pub fn with_written(self, written: &'a [Vec<Written>]) -> Self {
        Self { written, ..self }
    }

    /// With pages that come later, those of each address space, by descriptors with these flags.
    #[must_use]
    pub fn with_lazy(self, lazy: &'a [Lazy], lazy_flags: u32) -> Self {
        Self { lazy, lazy_flags, ..self }
    }

    /// If pages of the address space that a task has the record of come later, the flags of the descriptor.
    #[must_use]
    pub fn lazy_flags(&self, index: usize) -> Option<u32> {
        self.lazy.get(index).filter(|lazy| !lazy.is_empty()).map(|_| self.lazy_flags)
    }

    /// What is to be written to the address space that a task has the record of.
    #[must_use]
    pub fn written(&self, index: usize) -> &'a [Written] {
        self.written.get(index).map_or(&[], Vec::as_slice)
    }

    /// The tasks that the program of a task clones.
    #[must_use]
    pub fn clones(&self, index: usize) -> &[usize] {
        &self.clones[index]
    }

    /// Those of them that share pages with it, or that do not.
    pub(super) fn clones_with(&self, index: usize, pages: bool) -> impl Iterator<Item = usize> + use<'a> {
        let makings = self.makings;
        let with = move |making| matches!(making, Making::Cloned { pages: shares, .. } if shares == pages);
        self.clones[index].clone().into_iter().filter(move |&clone| with(makings[clone]))
    }

    /// Whether any task is cloned with the pages of its maker.
    #[must_use]
    pub fn shares_pages(&self) -> bool {
        self.makings.iter().any(|making| matches!(making, Making::Cloned { pages: true, .. }))
    }

    /// The pages that a task is to find in its memory when it is cloned.
    pub(super) fn inherited(&self, index: usize) -> &Extents {
        &self.inherited[index]
    }

    /// The most areas that a task has at any time: those for the tasks that it clones are among them.
    #[must_use]
    pub fn most_areas(&self) -> usize {
        self.areas.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Bytes of the largest area that counts against the commit limit and is there while a task clones others: a clone that copies the
    /// address space counts each as a whole (dup_mmap(), mm/mmap.c).
    #[must_use]
    pub fn largest_counted(&self) -> u64 {
        let counted = |vma: &Vma| vma.backing.is_private() && vma.flags & vm::ACCOUNTED != 0;
        let bytes = |group: &[Vma]| group[group.len() - 1].end.0 - group[0].start.0;
        let areas = self.areas.iter();
        let groups = areas.flat_map(|areas| memory::groups(areas).map(|group| &areas[group]));
        groups.filter(|group| counted(&group[0])).map(bytes).max().unwrap_or(0)
    }

    /// The areas that a task is to have while it clones others.
    pub(super) fn areas(&self, index: usize) -> &[Vma] {
        &self.areas[index]
    }

    /// Whether a task execs a program; else the one that clones it has one.
    #[must_use]
    pub fn execs(&self, index: usize) -> bool {
        matches!(self.makings[index], Making::Forked | Making::Cloned { exec: true, .. })
    }

    /// The task whose program restores a task.
    #[must_use]
    pub fn host(&self, index: usize) -> usize {
        host(self.makings, index)
    }

    /// The process group that a task is to be in.
    #[must_use]
    pub fn group(&self, index: usize) -> Pid {
        let pgid = self.tasks[index].pgid;
        match self.shell_job {
            Some(job) if pgid == job.pgid && !self.index_of.contains_key(&pgid) => self.own_group,
            _ => pgid,
        }
    }

    /// Whether a task goes to its process group by an op: it is cloned, or who leads that group is.
    #[must_use]
    pub fn joins_late(&self, index: usize) -> bool {
        let leader = self.index_of.get(&self.tasks[index].pgid).copied();
        [Some(index), leader].into_iter().flatten().any(|task| self.makings[task] != Making::Forked)
    }

    /// The descriptors of a task, its own or shared.
    #[must_use]
    pub fn fds_of(&self, index: usize) -> &'a [FdEntry] {
        &self.tasks[self.holder(index, Object::Files)].fds
    }

    /// Whether any file of the tree is opened late.
    #[must_use]
    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// The descriptors in a task's own file table that are opened late, in the order of their descriptions: all tasks take them
    /// in the same order.
    #[must_use]
    pub fn late_fds(&self, index: usize) -> Vec<&'a FdEntry> {
        let fds = self.tasks[index].fds.iter();
        let mut late: Vec<&FdEntry> = fds.filter(|entry| self.late.contains(&entry.description)).collect();
        late.sort_by_key(|entry| entry.description);
        late
    }

    /// Index of the task whose record holds what a task has of a kind.
    #[must_use]
    pub fn holder(&self, index: usize, object: Object) -> usize {
        self.index_of.get(&holder_of(self.tasks, index, object)).copied().unwrap_or(index)
    }

    /// How many tasks have the same object of a kind as this one.
    #[must_use]
    pub fn users(&self, index: usize, object: Object) -> u32 {
        self.users[self.holder(index, object)][object as usize]
    }
}
