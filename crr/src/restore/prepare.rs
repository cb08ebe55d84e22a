//! Everything that is decided before the first fork: plans, holes, programs, and the shared-memory tree.

use super::environment::Environment;
use crate::blob::Blob;
use crate::machine::Live;
use crate::store::Checkpoint;
use crate::sys::process;
use crate::sys::shared_page::ControlPage;
use anyhow::{Context, Result, bail};
use images::id::PAGE_SIZE;
use images::memory::Space;
use images::task::Task;
use images::{Abi, Pid};
use shared::plan::{self, Machine, Need, hole};
use shared::proto::{MAX_FILLERS, SLOT_FILES, Start};
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
    /// Children: indexes of tasks.
    pub children: Vec<usize>,
}

/// All tasks, ready to be forked.
#[derive(Debug)]
pub(crate) struct Preparation {
    /// In the order of the tree image.
    pub tasks: Vec<Prepared>,
    /// helper32 and restorer64, each at the places where tasks have room for them.
    pub programs: Vec<OwnedFd>,
    /// The shared-memory tree: control page and plans.
    pub tree: OwnedFd,
    /// Its control page.
    pub control: ControlPage,
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
    let mut filler_ids = FillerIds::new(&tree.tasks);
    let contents: Vec<hole::Contents> = tree
        .tasks
        .iter()
        .zip(plans.iter().zip(&checkpoint.memory.spaces))
        .map(|(task, (plan, space))| hole::Contents {
            program: blobs[&task.abi].len(),
            fds: u64::from(SLOT_FILES) + plan.needs.len() as u64,
            special: lives[&task.abi].special,
            threads: u64::from(plan.threads),
            fillers: filler_ids.take(space),
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
    let mut children = children(checkpoint);
    for (index, plan) in plans.into_iter().enumerate() {
        let task = &tree.tasks[index];
        let start = contents[index].start(hole::task_size(task), bases[index], offset);
        offset += page_align(contents[index].plan);
        let program = program_at[&(task.abi, bases[index])];
        let children = std::mem::take(&mut children[index]);
        tasks.push(Prepared { start, needs: plan.needs, ops: plan.ops, program, children });
    }
    let (tree, control) = shared_tree(&tasks, offset)?;
    Ok(Preparation { tasks, programs, tree, control })
}

/// Ids for threads that help to read a task's pages: none that the tree uses, none that is in use now.
struct FillerIds {
    used: BTreeSet<Pid>,
    next: Pid,
    each: usize,
}

impl FillerIds {
    /// Less is read as fast by one thread.
    const WORTH: u64 = (32 << 20) / PAGE_SIZE;

    fn new(tasks: &[Task]) -> Self {
        let used = tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid).collect();
        let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
        let next = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(32768);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { used, next, each: (processors - 1).min(MAX_FILLERS) }
    }

    fn take(&mut self, space: &Space) -> [u64; MAX_FILLERS] {
        let mut ids = [0; MAX_FILLERS];
        if space.runs.iter().map(|run| run.pages).sum::<u64>() < Self::WORTH {
            return ids;
        }
        for id in &mut ids[..self.each] {
            *id = self.free();
        }
        ids
    }

    /// From the top down, where ids are least likely to be taken next.
    fn free(&mut self) -> u64 {
        while self.next > 1 {
            self.next -= 1;
            if !self.used.contains(&self.next) && !process::exists(self.next) {
                return u64::from(self.next.cast_unsigned());
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

fn children(checkpoint: &Checkpoint) -> Vec<Vec<usize>> {
    let tasks = &checkpoint.tree.tasks;
    let index_of: BTreeMap<Pid, usize> =
        tasks.iter().enumerate().map(|(index, task)| (task.pid, index)).collect();
    let mut children = vec![Vec::new(); tasks.len()];
    for (index, task) in tasks.iter().enumerate().skip(1) {
        if let Some(&parent) = index_of.get(&task.ppid) {
            children[parent].push(index);
        }
    }
    children
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
