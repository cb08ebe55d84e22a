//! Everything that is decided before the first fork: plans, holes, programs, and the shared-memory tree.

use super::environment::Environment;
use crate::blob::Blob;
use crate::machine::Live;
use crate::resource::tree;
use crate::store::Checkpoint;
use crate::sys::process;
use crate::sys::shared_page::ControlPage;
use anyhow::{Context, Result, bail};
use images::id::PAGE_SIZE;
use images::memory::Space;
use images::task::Tree;
use images::{Abi, Pid};
use shared::plan::tree::{Place, Role, Schedule};
use shared::plan::{self, Machine, Need, hole};
use shared::proto::{Gathering, MAX_FILLERS, SLOT_FILES, Start};
use shared::range::page_align;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// One task, ready to be forked.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// First message to it.
    pub start: Start,
    /// Files its ops name, in slot order.
    pub needs: Vec<Need>,
    /// Encoded ops, to name the one that failed.
    pub ops: Vec<u8>,
    /// Which of [`Preparation::programs`] it execs.
    pub program: usize,
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
    pub totals: [u32; 2],
    /// helper32 and restorer64, each at the places where tasks have room for them.
    pub programs: Vec<OwnedFd>,
    /// The shared-memory tree: control page and plans.
    pub tree: OwnedFd,
    /// Its control page.
    pub control: ControlPage,
}

impl Preparation {
    /// Whether a pid is that of a task of the tree.
    #[must_use]
    pub(crate) fn is_task(&self, pid: Pid) -> bool {
        self.places.iter().any(|place| place.pid == pid)
    }

    /// How many come to a gathering.
    #[must_use]
    pub(crate) fn total(&self, gathering: Gathering) -> u32 {
        self.totals[gathering as usize]
    }
}

/// The live vDSO of each ABI of the tree.
pub(super) type Lives = BTreeMap<Abi, Live>;

/// Plans the whole tree.
///
/// With a stand-in for its parent, the root sets its parent-death signal only when that one is gone, see `takeover`.
///
/// # Errors
/// If a task has no room for the program that restores it.
pub(super) fn prepare(
    checkpoint: &Checkpoint,
    schedule: Schedule,
    lives: &Lives,
    environment: &Environment,
    stand_in: bool,
) -> Result<Preparation> {
    let rlimits = own_limits()?;
    let timer_slack_ns = process::timer_slack_ns();
    let mut machines = BTreeMap::new();
    let mut blobs = BTreeMap::new();
    for (&abi, live) in lives {
        let machine = Machine {
            special: live.special,
            creds: environment.creds.clone(),
            rlimits: rlimits.clone(),
            timer_slack_ns,
            task_attributes: environment.attributes.task,
            thread_attributes: environment.attributes.thread.clone(),
        };
        machines.insert(abi, machine);
        blobs.insert(abi, Blob::of(abi)?);
    }
    let mut tree = checkpoint.tree.clone();
    if stand_in {
        tree.tasks[0].threads.iter_mut().for_each(|thread| thread.parent_death_signal = 0);
    }
    let plans: Vec<plan::TaskPlan> = tree
        .tasks
        .iter()
        .zip(&checkpoint.memory.spaces)
        .map(|(task, space)| plan::task(&machines[&task.abi], task, space, &tree.filters))
        .collect();
    let places = tree::places(&checkpoint.tree);
    let mut free_ids = FreeIds::new(&tree, &schedule);
    let pids = pids(&places, &schedule, &mut free_ids);
    let contents: Vec<hole::Contents> = tree
        .tasks
        .iter()
        .zip(plans.iter().zip(&checkpoint.memory.spaces))
        .map(|(task, (plan, space))| hole::Contents {
            program: blobs[&task.abi].len(),
            fds: u64::from(SLOT_FILES) + plan.needs.len() as u64,
            special: lives[&task.abi].special,
            threads: u64::from(plan.threads),
            fillers: free_ids.fillers(space),
            plan: plan.ops.len() as u64,
        })
        .collect();
    let lens: Vec<u64> = contents.iter().map(hole::Contents::len).collect();
    let bases = bases(checkpoint, &lens)?;
    let mut programs = Vec::new();
    let mut program_at = BTreeMap::new();
    for (task, &base) in tree.tasks.iter().zip(&bases) {
        if let std::collections::btree_map::Entry::Vacant(entry) = program_at.entry((task.abi, base)) {
            entry.insert(programs.len());
            programs.push(blobs[&task.abi].executable(base)?);
        }
    }
    let mut offset = PAGE_SIZE;
    let mut tasks = Vec::new();
    for (index, plan) in plans.into_iter().enumerate() {
        let task = &tree.tasks[index];
        let start = contents[index].start(hole::task_size(task), bases[index], offset);
        offset += page_align(contents[index].plan);
        let program = program_at[&(task.abi, bases[index])];
        tasks.push(Prepared { start, needs: plan.needs, ops: plan.ops, program });
    }
    let (tree, control) = shared_tree(&tasks, offset)?;
    let by_pid = (0..).zip(&pids).map(|(process, &pid)| (pid, process)).collect();
    let totals = [schedule.leaders(), places.len()].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Ok(Preparation { tasks, places, schedule, pids, by_pid, totals, programs, tree, control })
}

/// Ids for processes and threads that are there for a time only: none that the tree uses, none that is in use now.
struct FreeIds {
    used: BTreeSet<Pid>,
    next: Pid,
    each: usize,
}

impl FreeIds {
    /// Less is read as fast by one thread.
    const WORTH: u64 = (32 << 20) / PAGE_SIZE;

    fn new(tree: &Tree, schedule: &Schedule) -> Self {
        let threads = tree.tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid);
        let zombies = tree.zombies.iter().map(|zombie| zombie.pid);
        let used = threads.chain(zombies).chain(schedule.dead_leaders()).collect();
        let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
        let next = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(32768);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { used, next, each: (processors - 1).min(MAX_FILLERS) }
    }

    /// For threads that help to read a task's pages.
    fn fillers(&mut self, space: &Space) -> [u64; MAX_FILLERS] {
        let mut ids = [0; MAX_FILLERS];
        if space.runs.iter().map(|run| run.pages).sum::<u64>() < Self::WORTH {
            return ids;
        }
        for id in &mut ids[..self.each] {
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

/// Where each task's hole begins: the same place for all tasks of an ABI if there is one that suits them all, so
/// that they share one program image.
fn bases(checkpoint: &Checkpoint, lens: &[u64]) -> Result<Vec<u64>> {
    let tasks = &checkpoint.tree.tasks;
    let spaces = &checkpoint.memory.spaces;
    let mut bases = vec![0; tasks.len()];
    for abi in [Abi::X86_64, Abi::Ia32] {
        let of_abi = || (0..tasks.len()).filter(|&index| tasks[index].abi == abi);
        let longest = of_abi().map(|index| lens[index]).max().unwrap_or(0);
        let limit =
            of_abi().map(|index| hole::task_size(&tasks[index])).min().unwrap_or_else(|| abi.task_size());
        let common = hole::choose(limit, of_abi().map(|index| &spaces[index]), longest);
        for index in of_abi() {
            let Some(hole) = common.or_else(|| hole::choose(limit, [&spaces[index]], lens[index])) else {
                let pid = tasks[index].pid;
                bail!(
                    "task {pid}: its address space has no {} KiB free for the program that restores it",
                    lens[index] / 1024
                );
            };
            bases[index] = hole.start;
        }
    }
    Ok(bases)
}

/// Pids of a schedule's processes: those of the tasks and of dead leaders, and free ones for others.
fn pids(places: &[Place], schedule: &Schedule, free: &mut FreeIds) -> Vec<Pid> {
    let pid = |role| match role {
        Role::Outside => 0,
        Role::Task(index) => places[index].pid,
        Role::Session(pid) | Role::Group(pid) => pid,
        Role::Holder | Role::Courier => free.free(),
    };
    schedule.processes.iter().map(|process| process.role).map(pid).collect()
}

fn shared_tree(tasks: &[Prepared], len: u64) -> Result<(OwnedFd, ControlPage)> {
    let memfd =
        memfd::MemfdOptions::default().close_on_exec(true).create("crr-tree").context("memfd_create")?;
    let file = memfd.into_file();
    file.set_len(len).context("shared-memory tree")?;
    for task in tasks {
        file.write_all_at(&task.ops, task.start.plan_offset).context("shared-memory tree")?;
    }
    let control = ControlPage::map(file.as_fd()).context("map the control page")?;
    Ok((file.into(), control))
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
