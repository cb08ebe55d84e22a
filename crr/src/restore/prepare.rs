//! Everything that is decided before the first fork: plans, holes, programs, and the shared-memory tree.

use super::environment::Environment;
use super::fill;
use super::late;
use super::numbers::Numbers;
use crate::blob::Blob;
use crate::dump::room::max_map_count;
use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use crate::machine::Live;
use crate::parallel;
use crate::resource::{robust, tree};
use crate::store::Checkpoint;
use crate::sys::memfd;
use crate::sys::process;
use crate::sys::shared_page::ControlPage;
use crate::sys::userfaultfd;
use anyhow::{Context, Result, bail, ensure};
use images::id::PAGE_SIZE;
use images::memory::{HugePage, Space, Vma};
use images::task::Tree;
use images::{Abi, Pid};
use shared::plan::family::{self, Making};
use shared::plan::lazy::{Lazy, Wanted};
use shared::plan::memory::Rules;
use shared::plan::tree::{Place, Role, Schedule};
use shared::plan::{self, Forest, Machine, Need, ProgramPlan, Written, hole, kin, loan};
use shared::proto::{FILLERS_FROM, Gathering, MAX_FILLERS, SLOT_FILES, Start};
use shared::range::{Range, page_align};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// One task, ready to be forked, or to be cloned by the program of another one.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// How it comes to be.
    pub making: Making,
    /// First message to its program.
    pub start: Start,
    /// Its program.
    pub program: Option<Program>,
    /// It goes to its process group by an op.
    pub joins_late: bool,
    /// What the hole lies in, of the address space that it has the record of: to be mapped in the end.
    pub lent: Option<Vma>,
}

/// What a task execs.
#[derive(Debug)]
pub(crate) struct Program {
    /// Which of [`Preparation::programs`].
    pub file: usize,
    /// Files that its ops name, in slot order.
    pub needs: Vec<Need>,
    /// Tasks that it restores.
    pub members: Vec<usize>,
}

/// All tasks, ready to be forked.
#[derive(Debug)]
pub(crate) struct Preparation {
    /// In the order of the tree image.
    pub tasks: Vec<Prepared>,
    /// Where each of them stands, in the same order, then the zombies.
    pub places: Vec<Place>,
    /// Who forks whom.
    pub schedule: Schedule,
    /// Pids of all processes of the schedule; that of the outside is not known yet.
    pub pids: Vec<Pid>,
    /// The processes by their pids.
    pub by_pid: BTreeMap<Pid, usize>,
    /// How many processes come to each [`Gathering`].
    pub totals: [u32; 3],
    /// helper32 and restorer64, each at the places where tasks have room for them.
    pub programs: Vec<OwnedFd>,
    /// The shared-memory tree: control page and plans.
    pub tree: OwnedFd,
    /// Its control page.
    pub control: ControlPage,
    /// Pages that the tasks do not read themselves, of each address space.
    pub lazy: Vec<Lazy>,
    /// They come when the tasks run.
    pub run_first: bool,
    /// Soft and hard limit of this process's stack.
    pub stack_limit: (u64, u64),
}

impl Preparation {
    /// Whether a pid is that of a task of the tree.
    #[must_use]
    pub(crate) fn is_task(&self, pid: Pid) -> bool {
        self.places.iter().any(|place| place.pid == pid)
    }

    /// The encoded ops of a task's program, to name the one that failed. They lie where the program finds them: each process that is forked would have
    /// pages of a copy.
    ///
    /// # Errors
    /// If they cannot be read again.
    pub(crate) fn ops(&self, task: usize) -> Result<Vec<u8>> {
        let start = &self.tasks[task].start;
        let mut ops = vec![0; usize::try_from(start.plan_len)?];
        File::from(self.tree.try_clone()?).read_exact_at(&mut ops, start.plan_offset)?;
        Ok(ops)
    }

    /// How many come to a gathering.
    #[must_use]
    pub(crate) fn total(&self, gathering: Gathering) -> u32 {
        self.totals[gathering as usize]
    }
}

/// How each task comes to be, and who forks those that are forked.
#[derive(Clone, Debug)]
pub(super) struct Descent {
    makings: Vec<Making>,
    pub(super) schedule: Schedule,
}

impl Descent {
    /// In which all tasks have copies of their pages.
    ///
    /// # Errors
    /// If there is none, which the dump has ruled out.
    pub(super) fn plain(checkpoint: &Checkpoint) -> Result<Self> {
        let tree = &checkpoint.tree;
        let makings = family::makings(&tree.tasks).ok().context("tasks share what they cannot share")?;
        let schedule = tree::schedule(tree, &makings)?;
        Ok(Self { makings, schedule })
    }

    /// In which tasks share pages as they did, if that makes a difference. It can fail where [`Descent::plain`] does not, and so can
    /// what is prepared for it: one program for many tasks takes more room and files.
    pub(super) fn with_pages(&self, checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Checkpoint { tree, memory, files, .. } = checkpoint;
        let mut terminals = kin::Terminals::default();
        for control in files.ptys.iter().filter_map(|pty| pty.live.as_ref()?.control.as_ref()) {
            terminals.without.extend(&control.without);
            terminals.foreground.insert(control.foreground);
        }
        let makings = kin::with_pages(tree, (&memory.spaces, &memory.shared), &terminals, &self.makings);
        if makings == self.makings {
            return Ok(None);
        }
        let schedule = tree::schedule(tree, &makings)?;
        Ok(Some(Self { makings, schedule }))
    }
}

/// The live vDSO of each ABI of the tree.
pub(crate) type Lives = BTreeMap<Abi, Live>;

/// How the tree is to come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    /// The root has a stand-in for a parent, and sets its parent-death signal only when that one is gone, see `takeover`.
    pub(super) stand_in: bool,
    /// How memory gets its contents, as far as there is a choice.
    pub(super) memory: Contents,
    /// The kernel makes huge pages of all memory that is not to have none.
    pub(super) always_huge: bool,
    /// Ids are chosen by what the kernel gave last.
    pub(super) last_pid: bool,
}

/// Who puts contents of memory in place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Contents {
    /// The tasks.
    Read,
    /// The coordinator ([`fill`]), but for what the kernel may make huge pages of.
    Put(fill::HugePages),
    /// Processes that bring it when the tasks run.
    Late,
}

/// Plans the whole tree.
///
/// # Errors
/// If a task has no room for the program that restores it.
pub(super) fn prepare(
    checkpoint: &Checkpoint,
    Descent { makings, schedule }: Descent,
    lives: &Lives,
    written: &[Vec<Written>],
    environment: &Environment,
    Wishes { stand_in, memory, always_huge, last_pid }: Wishes,
) -> Result<Preparation> {
    let rlimits = own_limits()?;
    let stack_limit = rlimits[plan::RLIMIT_STACK];
    let counted_at_once = counted_at_once()?;
    let timer_slack_ns = process::timer_slack_ns();
    let mut machines = BTreeMap::new();
    let mut blobs = BTreeMap::new();
    for (&abi, live) in lives {
        let machine = Machine {
            special: live.special,
            vdso_moves: live.moves,
            creds: environment.creds.clone(),
            rlimits: rlimits.clone(),
            timer_slack_ns,
            task_attributes: environment.attributes.task,
            thread_attributes: environment.attributes.thread.clone(),
            rules: Rules { at_once: piece_of(counted_at_once), always_huge },
        };
        machines.insert(abi, machine);
        blobs.insert(abi, Blob::of(abi)?);
    }
    let mut tree = Cow::Borrowed(&checkpoint.tree);
    if stand_in {
        tree.to_mut().tasks[0].threads.iter_mut().for_each(|thread| thread.parent_death_signal = 0);
    }
    let own_group = nix::unistd::getpgrp().as_raw();
    let (all_spaces, shared) = (&checkpoint.memory.spaces, &checkpoint.memory.shared);
    let lazy_flags = if matches!(memory, Contents::Put(_)) { userfaultfd::USER_MODE_ONLY } else { 0 };
    let (spaces, mut lazy) = take_lazy(checkpoint, memory)?;
    let cloned = makings.iter().filter(|&&making| making != Making::Forked).count();
    let forked = makings.len() - cloned + tree.zombies.len();
    let totals = [schedule.leaders(), forked, cloned].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let late = late::all(&checkpoint.files);
    let controls = checkpoint.files.ptys.iter().filter_map(|pty| pty.live.as_ref()?.control.as_ref());
    let controlled: BTreeSet<Pid> = controls.map(|control| control.sid).collect();
    let forest = Forest::new(&tree, &spaces, shared, &makings, own_group, totals, late.clone())
        .with_controlled(controlled.clone())
        .with_written(written)
        .with_lazy(&lazy, lazy_flags);
    let too_many = || Ok::<_, anyhow::Error>(forest.most_areas() as u64 + hole::AREAS > max_map_count()?);
    ensure!(!forest.shares_pages() || !too_many()?, "more areas at once than vm.max_map_count");
    ensure!(
        !forest.shares_pages() || forest.largest_counted() <= counted_at_once,
        "an area is larger than the memory of this machine"
    );
    let plan = |forest: &Forest<'_>, index: usize| {
        let mut plan = plan::program(&machines[&tree.tasks[index].abi], forest, index);
        plan.needs.extend(last_pid.then_some(Need::LastPid));
        plan
    };
    let mut plans: BTreeMap<usize, ProgramPlan> = (0..tree.tasks.len())
        .filter(|&index| forest.execs(index))
        .map(|index| (index, plan(&forest, index)))
        .collect();
    let places = tree::places(&checkpoint.tree, &makings);
    let mut free_ids = FreeIds::new(&tree, &schedule, last_pid);
    let pids = pids(&places, &schedule, &mut free_ids);
    let numbers = Numbers::of(&tree.tasks);
    let mut rooms = BTreeMap::new();
    for (&index, plan) in &plans {
        let abi = tree.tasks[index].abi;
        let fds = u64::from(SLOT_FILES) + plan.needs.len() as u64;
        let contents = hole::Contents {
            program: blobs[&abi].len(),
            fds,
            special: lives[&abi].special,
            stacks: u64::from(plan.stacks),
            words: u64::from(plan.words),
            // Only where tasks are cloned, which are to find their numbers free.
            fds_from: if forest.clones(index).is_empty() { 0 } else { numbers.free(fds)? },
            fillers: free_ids.fillers(plan.members.iter().map(|&member| &spaces[member])),
            plan: plan.ops.len() as u64,
            vdso: plan.vdso,
        };
        rooms.insert(index, Room { abi, contents, members: plan.members.clone() });
    }
    let bases = bases(checkpoint, &rooms)?;
    let (spaces, mut lent) = take_loans(&spaces, &rooms, &bases);
    if !lent.is_empty() {
        ensure!(!forest.shares_pages(), "tasks that share pages would have to lend memory");
        let forest = Forest::new(&tree, &spaces, shared, &makings, own_group, totals, late.clone())
            .with_controlled(controlled)
            .with_written(written)
            .with_lazy(&lazy, lazy_flags);
        for (&index, _) in bases.iter().filter(|(_, base)| base.lent) {
            let plan = plan(&forest, index);
            let room = rooms.get_mut(&index).context("a program has room")?;
            room.contents.plan = plan.ops.len() as u64;
            ensure!(room.contents.len() <= bases[&index].range.len(), "a plan is longer than its copy");
            plans.insert(index, plan);
        }
    }
    let lenders: Vec<usize> = lent.keys().copied().collect();
    let try_timer_ids = u64::from(is_disabled(Switch::TimerRestoreIds));
    // Who chooses ids may have to begin anew.
    let pages_once = u64::from(checkpoint.pages.in_memory() && !last_pid && are_apart(all_spaces));
    let mut programs = Programs::default();
    let tree_file = memfd::own("crr-tree")?;
    let mut offset = PAGE_SIZE;
    let mut tasks: Vec<Prepared> = Vec::new();
    for (index, task) in tree.tasks.iter().enumerate() {
        let (making, joins_late, lent) = (makings[index], forest.joins_late(index), lent.remove(&index));
        let (start, program) = match plans.remove(&index) {
            Some(ProgramPlan { ops, needs, members, .. }) => {
                let base = bases[&index].range.start;
                let contents = &rooms[&index].contents;
                // The last of the needs.
                let slot = if last_pid { contents.fds - 1 } else { 0 };
                let start = Start {
                    pages_once,
                    last_pid: slot,
                    try_timer_ids,
                    ..contents.start(hole::task_size(task), base, offset)
                };
                tree_file.write_all_at(&ops, offset).context("shared-memory tree")?;
                offset += page_align(contents.plan);
                let file = programs.file(task.abi, base, &blobs)?;
                (start, Some(Program { file, needs, members }))
            }
            // Makers stand first.
            None => (tasks[forest.host(index)].start, None),
        };
        tasks.push(Prepared { making, start, program, joins_late, lent });
    }
    tree_file.set_len(offset).context("shared-memory tree")?;
    let control = control_page(&tree_file)?;
    let by_pid = (0..).zip(&pids).map(|(process, &pid)| (pid, process)).collect();
    let programs = programs.files;
    let run_first = matches!(memory, Contents::Late);
    lenders.iter().for_each(|&index| lazy[index].leave_out_lent(&spaces[index]));
    Ok(Preparation {
        tasks,
        places,
        schedule,
        pids,
        by_pid,
        totals,
        programs,
        tree: tree_file.into(),
        control,
        lazy,
        run_first,
        stack_limit,
    })
}

/// The address spaces with what the tasks put in place themselves, and what others do.
fn take_lazy(checkpoint: &Checkpoint, memory: Contents) -> Result<(Cow<'_, [Space]>, Vec<Lazy>)> {
    let (tasks, spaces) = (&checkpoint.tree.tasks, &checkpoint.memory.spaces);
    let take = |wanted| {
        let mut spaces = spaces.clone();
        let lazy = shared::plan::lazy::take(tasks, &mut spaces, &wanted);
        (Cow::Owned(spaces), lazy)
    };
    Ok(match memory {
        Contents::Read => (Cow::Borrowed(&spaces[..]), vec![Lazy::default(); spaces.len()]),
        Contents::Put(huge_pages) => {
            take(Wanted { holds_locks: &|_| false, suits: &|vma| !huge_pages.may_be_in(vma) })
        }
        Contents::Late => {
            let holds_locks = robust::holders(checkpoint)?;
            take(Wanted { holds_locks: &|index| holds_locks[index], suits: &|_| true })
        }
    })
}

/// Whether no page is in two places of these address spaces.
fn are_apart(spaces: &[Space]) -> bool {
    let runs = spaces.iter().flat_map(|space| &space.runs);
    let mut spans: Vec<_> = runs.map(|run| (run.first_page, run.first_page + run.pages)).collect();
    spans.sort_unstable();
    spans.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}

/// What a program needs room for, and where.
struct Room {
    abi: Abi,
    contents: hole::Contents,
    /// Tasks in whose address spaces it is to be.
    members: Vec<usize>,
}

/// The files of programs, one for each place.
#[derive(Default)]
struct Programs {
    files: Vec<OwnedFd>,
    at: BTreeMap<(Abi, u64), usize>,
}

impl Programs {
    fn file(&mut self, abi: Abi, base: u64, blobs: &BTreeMap<Abi, Blob>) -> Result<usize> {
        if let Some(&file) = self.at.get(&(abi, base)) {
            return Ok(file);
        }
        self.files.push(blobs[&abi].executable(base)?);
        self.at.insert((abi, base), self.files.len() - 1);
        Ok(self.files.len() - 1)
    }
}

/// Ids for processes and threads that are there for a time only: none that the tree uses, none that is in use now.
struct FreeIds {
    used: BTreeSet<Pid>,
    next: Pid,
    /// They would come at the same time as the tree's threads, and all of these by turns.
    last_pid: bool,
}

impl FreeIds {
    fn new(tree: &Tree, schedule: &Schedule, last_pid: bool) -> Self {
        let threads = tree.tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid);
        let zombies = tree.zombies.iter().map(|zombie| zombie.pid);
        let used = threads.chain(zombies).chain(schedule.dead_leaders()).collect();
        let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
        let next = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(32768);
        Self { used, next, last_pid }
    }

    /// For threads that help to read the pages of these address spaces.
    fn fillers<'a>(&mut self, spaces: impl IntoIterator<Item = &'a Space>) -> [u64; MAX_FILLERS] {
        let mut ids = [0; MAX_FILLERS];
        let large =
            |space: &Space| space.runs.iter().map(|run| run.pages).sum::<u64>() * PAGE_SIZE >= FILLERS_FROM;
        if self.last_pid || !spaces.into_iter().any(large) {
            return ids;
        }
        for id in &mut ids[..(parallel::processors() - 1).min(MAX_FILLERS)] {
            *id = u64::from(self.free().cast_unsigned());
        }
        ids
    }

    /// From the top down, where ids are least likely to be taken next.
    fn free(&mut self) -> Pid {
        while self.next > 1 {
            self.next -= 1;
            if !self.used.contains(&self.next) && !process::exists(self.next) {
                return self.next;
            }
        }
        0
    }
}

/// Where a hole lies.
struct Base {
    range: Range,
    /// In memory that a task has there.
    lent: bool,
}

/// Where the hole of each program begins: the same place for all of an ABI if there is one that suits them all, so
/// that they share one file.
fn bases(checkpoint: &Checkpoint, rooms: &BTreeMap<usize, Room>) -> Result<BTreeMap<usize, Base>> {
    let tasks = &checkpoint.tree.tasks;
    let spaces = &checkpoint.memory.spaces;
    let mut bases = BTreeMap::new();
    for abi in [Abi::X86_64, Abi::Ia32] {
        let of_abi = || rooms.iter().filter(|(_, room)| room.abi == abi);
        let members = || of_abi().flat_map(|(_, room)| &room.members);
        let longest = of_abi().map(|(_, room)| room.contents.len()).max().unwrap_or(0);
        let limit = members().map(|&index| hole::task_size(&tasks[index])).min();
        let limit = limit.unwrap_or_else(|| abi.task_size());
        let common = hole::choose(limit, members().map(|&index| &spaces[index]), longest);
        for (&index, room) in of_abi() {
            let len = room.contents.len();
            let own = || hole::choose(limit, room.members.iter().map(|&member| &spaces[member]), len);
            // A plan that leaves something out can be a little longer, by addresses that are.
            let lent = || loan::choose(tasks, spaces, &room.members, len + PAGE_SIZE);
            let free = common.or_else(own).map(|range| Base { range, lent: false });
            let Some(base) = free.or_else(|| lent().map(|range| Base { range, lent: true })) else {
                let pid = tasks[index].pid;
                bail!(
                    "task {pid}: its address space has no {} KiB free for the program that restores it",
                    len / 1024
                );
            };
            bases.insert(index, base);
        }
    }
    Ok(bases)
}

/// The address spaces as they are to be planned, and what each lends, by the task that has its record.
fn take_loans<'a>(
    spaces: &'a [Space],
    rooms: &BTreeMap<usize, Room>,
    bases: &BTreeMap<usize, Base>,
) -> (Cow<'a, [Space]>, BTreeMap<usize, Vma>) {
    let mut spaces = Cow::Borrowed(spaces);
    let mut lent = BTreeMap::new();
    for (index, base) in bases.iter().filter(|(_, base)| base.lent) {
        for &member in &rooms[index].members {
            lent.extend(loan::take(&mut spaces.to_mut()[member], base.range).map(|part| (member, part)));
        }
    }
    (spaces, lent)
}

/// Pids of a schedule's processes: those of the tasks and of dead leaders, and free ones for others.
fn pids(places: &[Place], schedule: &Schedule, free: &mut FreeIds) -> Vec<Pid> {
    let pid = |role| match role {
        Role::Outside => 0,
        Role::Task(index) | Role::Cloned(index) => places[index].pid,
        Role::Session(pid) | Role::Group(pid) => pid,
        Role::Holder | Role::Courier => free.free(),
    };
    schedule.processes.iter().map(|process| process.role).map(pid).collect()
}

fn control_page(tree: &File) -> Result<ControlPage> {
    fault::point(Point::SharedTree).context("map the control page")?;
    let control = ControlPage::map(tree.as_fd()).context("map the control page")?;
    if let Some(op) = fault::op() {
        control.fail_at(op.family, op.count, op.errno);
    }
    Ok(control)
}

/// The most that one call may count against the commit limit, unless that is strict or there is none: all memory and swap
/// (OVERCOMMIT_GUESS of __vm_enough_memory(), mm/util.c).
fn counted_at_once() -> Result<u64> {
    let mode = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if mode.trim() != "0" {
        return Ok(u64::MAX);
    }
    let machine = nix::sys::sysinfo::sysinfo().context("sysinfo")?;
    Ok(machine.ram_total() + machine.swap_total())
}

/// Bytes of a large area that are mapped by one call. Well below what is allowed: before Linux 5.2 that was what is free by then.
fn piece_of(counted_at_once: u64) -> u64 {
    let size = HugePage::Mib2.size();
    (counted_at_once / 4 / size).max(1) * size
}

/// This process's limits, which forked children have too.
///
/// # Errors
/// Never, by the manual.
pub(super) fn own_limits() -> Result<Vec<(u64, u64)>> {
    use nix::sys::resource::{Resource, getrlimit};
    // In the order of RLIMIT_*, include/uapi/asm-generic/resource.h.
    const ORDER: [Resource; 16] = [
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_STACK,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_AS,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_RTPRIO,
        Resource::RLIMIT_RTTIME,
    ];
    ORDER.iter().map(|&resource| getrlimit(resource).context("getrlimit")).collect()
}
