//! The hole: one range that is free in the task's address space and in the one that exec makes, where the
//! restoring program lives with all it needs.
//!
//! ```text
//! base                                                                                                           end
//! | code | data, stack | control | fd table | parked vvar, vclock, vdso | words | thread, filler stacks | plan |
//! ```

use super::family::{Making, host};
use crate::proto::{Control, MAX_FILLERS, SLOT_FILES, SpecialArea, Start, THREAD_STACK, Vdso};
use crate::range::{Range, find_gap, page_align};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use images::Abi;
use images::id::PAGE_SIZE;
use images::memory::{AREA_NAME_MAX, Backing, Space};
use images::seccomp::Seccomp;
use images::task::{Task, Tree};

/// Lowest address a hole may have: above any sensible `vm.mmap_min_addr`.
pub(super) const LOWEST: u64 = 0x4_0000;

/// Sizes of what lies in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The program with its data and stack.
    pub program: u64,
    /// Working fds.
    pub fds: u64,
    /// Special areas of this kernel.
    pub special: [SpecialArea; 3],
    /// Stacks of threads and cloned tasks.
    pub stacks: u64,
    /// Words that the tasks of the program share.
    pub words: u64,
    /// Working fds move to numbers from here on; 0 to leave them.
    pub fds_from: u64,
    /// Ids of threads that read page contents; then zeros.
    pub fillers: [u64; MAX_FILLERS],
    /// Bytes of the plan.
    pub plan: u64,
    /// What becomes of the special areas that exec makes.
    pub vdso: Vdso,
}

impl Contents {
    const fn scratch(&self) -> u64 {
        page_align(self.fds * 4)
    }

    const fn words(&self) -> u64 {
        page_align(self.words * 4)
    }

    fn parking(&self) -> u64 {
        match self.vdso {
            Vdso::Moves => self.special.iter().map(|area| area.len).sum(),
            Vdso::Stays | Vdso::Goes => 0,
        }
    }

    fn stacks(&self) -> u64 {
        let fillers = self.fillers.iter().filter(|&&tid| tid != 0).count() as u64;
        (self.stacks + fillers) * THREAD_STACK
    }

    /// Bytes of the hole.
    #[must_use]
    pub fn len(&self) -> u64 {
        page_align(self.program)
            + page_align(size_of::<Control>() as u64)
            + self.scratch()
            + self.parking()
            + self.words()
            + self.stacks()
            + page_align(self.plan)
    }

    /// Never: there is always a program.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.program == 0
    }

    /// The first message for a task whose hole begins at `base` and whose plan lies at `plan_offset` of the tree.
    #[must_use]
    pub fn start(&self, task_size: u64, base: u64, plan_offset: u64) -> Start {
        let control_addr = base + page_align(self.program);
        let scratch_addr = control_addr + page_align(size_of::<Control>() as u64);
        let parking_addr = scratch_addr + self.scratch();
        let words_addr = parking_addr + self.parking();
        let stacks_addr = words_addr + self.words();
        let plan_addr = stacks_addr + self.stacks();
        Start {
            magic: Start::MAGIC,
            hole_start: base,
            hole_end: base + self.len(),
            task_size,
            control_addr,
            plan_addr,
            plan_offset,
            plan_len: self.plan,
            scratch_addr,
            scratch_len: self.scratch(),
            stacks_addr,
            parking_addr,
            special: self.special,
            fds: self.fds,
            fillers: self.fillers,
            pages_once: 0,
            words_addr: if self.words == 0 { 0 } else { words_addr },
            fds_from: self.fds_from,
            vdso: self.vdso as u64,
            last_pid: 0,
            try_timer_ids: 0,
        }
    }
}

/// One past the highest address that a task can map.
#[must_use]
pub fn task_size(task: &Task) -> u64 {
    /// ADDR_LIMIT_3GB, include/uapi/linux/personality.h; x86_64 tasks do not heed it.
    const ADDR_LIMIT_3GB: u32 = 0x800_0000;
    match task.abi {
        Abi::Ia32 if task.personality & ADDR_LIMIT_3GB != 0 => 0xc000_0000,
        abi => abi.task_size(),
    }
}

/// Who is restored by one program, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its own tasks: the one that execs it first.
    pub members: Vec<usize>,
    /// Tasks that these clone, and that exec programs of their own then.
    pub launched: Vec<usize>,
}

/// The programs of a tree, each by the task that execs it.
#[must_use]
pub fn groups(makings: &[Making]) -> BTreeMap<usize, Group> {
    let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
    for (index, making) in makings.iter().enumerate() {
        groups.entry(host(makings, index)).or_default().members.push(index);
        if let Making::Cloned { by, exec: true, .. } = *making {
            groups.entry(host(makings, by)).or_default().launched.push(index);
        }
    }
    groups
}

/// Bytes of the hole for a program of `program` bytes, or more: however the restore plans it, on whatever kernel.
#[must_use]
pub fn bound(tree: &Tree, spaces: &[Space], makings: &[Making], group: &Group, program: u64) -> u64 {
    /// More than vvar, vvar_vclock and vdso of any kernel.
    const SPECIAL: u64 = 0x4_0000;
    /// Ops of an area, of page contents, of a policy, of guard pages; of a thread, half of which are the steps to its capabilities;
    /// of a task, most of which are signal actions. Numbers of 64 bits take ten bytes.
    const AREA: u64 = 512;
    const RUN: u64 = 48;
    const POLICY: u64 = 256;
    const GUARD: u64 = 32;
    const NAME: u64 = 32 + AREA_NAME_MAX as u64;
    const THREAD: u64 = 8192;
    const TASK: u64 = 16384;
    /// A pending signal, a timer; a descriptor of the task or of the LDT, a filter of a thread.
    const SIGNAL: u64 = 256;
    const TIMER: u64 = 160;
    const DESCRIPTOR: u64 = 32;
    /// A descriptor that a cloned task has of its maker, and closes.
    const CLOSE: u64 = 16;
    /// All else of a task that is cloned to exec another program.
    const LAUNCH: u64 = 1024;
    let filters: u64 = tree.filters.iter().map(|filter| filter.program.len() as u64).sum();
    let (mut fds, mut plan, mut stacks) = (u64::from(SLOT_FILES), 0, MAX_FILLERS as u64);
    let count = |len: usize, each: u64| len as u64 * each;
    let inherited = |index: usize| match makings[index] {
        Making::Cloned { by, .. } if tree.tasks[index].shares.files.is_none() => files_of(&tree.tasks, by),
        _ => 0,
    };
    for &index in &group.launched {
        let files = tree.tasks[index].fds.len();
        plan += LAUNCH + count(files, DESCRIPTOR) + count(inherited(index), CLOSE);
        fds += files as u64 + 16;
        stacks += 1;
    }
    for &index in &group.members {
        let (task, space) = (&tree.tasks[index], &spaces[index]);
        plan += TASK + filters + space.auxv.len() as u64 + count(space.vmas.len(), AREA);
        // Its code, and the ledger that has it once more (crr's resource::vdso), on another kernel.
        let vdsos = space.vmas.iter().filter(|vma| matches!(vma.backing, Backing::Vdso(_)));
        plan += vdsos.map(|vma| 2 * (vma.end.0 - vma.start.0) + PAGE_SIZE).sum::<u64>();
        plan += count(space.runs.len(), RUN) + count(space.policies.len(), POLICY);
        plan += count(space.guards.len(), GUARD) + count(space.names.len(), NAME);
        plan += count(task.pending.len(), SIGNAL) + count(task.timers.len(), TIMER);
        plan += count(task.fds.len(), DESCRIPTOR) + count(inherited(index), CLOSE);
        plan += count(task.ldt.len(), DESCRIPTOR);
        for thread in &task.threads {
            plan += THREAD + count(thread.pending.len(), SIGNAL) + count(thread.creds.groups.len(), 4);
            if let Seccomp::Filters { filters, .. } = &thread.seccomp {
                plan += count(filters.len(), DESCRIPTOR);
            }
        }
        fds += (space.vmas.len() + task.fds.len() + 16) as u64;
        stacks += task.threads.len() as u64 + 1;
    }
    let special = [SpecialArea { offset: 0, len: SPECIAL }, SpecialArea::default(), SpecialArea::default()];
    let words = 8 * group.members.len() as u64;
    let fillers = [0; MAX_FILLERS];
    let vdso = Vdso::Moves;
    Contents { program, fds, special, stacks, words, fds_from: 0, fillers, plan, vdso }.len()
}

/// How many descriptors a task has, its own or shared.
fn files_of(tasks: &[Task], index: usize) -> usize {
    let holder = tasks[index].shares.files.and_then(|pid| tasks.iter().find(|task| task.pid == pid));
    holder.unwrap_or(&tasks[index]).fds.len()
}

/// Areas that a task may have (vm.max_map_count) beyond its own while it is restored: those of the hole, and one that is about to move.
pub const AREAS: u64 = 32;

/// The lowest hole of `len` bytes for any of these address spaces: tasks with the same hole share one program image.
#[must_use]
pub fn choose<'a>(
    task_size: u64,
    spaces: impl IntoIterator<Item = &'a Space> + Clone,
    len: u64,
) -> Option<Range> {
    let first =
        spaces.clone().into_iter().filter_map(|space| space.vmas.first()).map(|vma| vma.start.0).min();
    // Nearly always there is room below all areas.
    if first.is_some_and(|first| first <= task_size - PAGE_SIZE && first >= LOWEST + len + 2 * PAGE_SIZE) {
        return Some(Range::new(LOWEST + PAGE_SIZE, len));
    }
    let taken: Vec<Range> = spaces
        .into_iter()
        .flat_map(|space| &space.vmas)
        .map(|vma| Range { start: vma.start.0, end: vma.end.0 })
        .collect();
    find_gap(&taken, Range { start: LOWEST, end: task_size - PAGE_SIZE }, len)
}
