//! Kernel objects that tasks share by clone(2) without being threads of each other, and what that demands of a restore.

use super::Refuse;
use super::tree::Strangers;
use crate::dump::freeze::FrozenTask;
use crate::proc::auxv;
use crate::proc::tasks::comm_of;
use crate::refusal::Refusals;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::vm;
use anyhow::{Context, Result};
use images::memory::Space;
use images::sharing::{Object, Shares};
use images::task::Task;
use images::{Addr, Pid};
use nix::errno::Errno;
use shared::plan::family::{self, SIGCHLD, Why};
use std::cmp::Ordering;
use std::collections::HashSet;

/// What is compared between tasks.
const KINDS: [(Object, Kind, &str); 4] = [
    (Object::Memory, Kind::Vm, "memory"),
    (Object::Files, Kind::Files, "file descriptors"),
    (Object::Directories, Kind::Fs, "current directory"),
    (Object::Handlers, Kind::Sighand, "signal handlers"),
];

/// Finds what each task shares with an earlier one, and refuses what threads of a task do not share, or tasks with
/// one outside of the tree.
pub(crate) fn find(
    tasks: &[FrozenTask],
    strangers: &Strangers,
    refusals: &mut Refusals,
) -> Result<Vec<Shares>> {
    let mut shares = vec![Shares::default(); tasks.len()];
    let all: Vec<usize> = (0..tasks.len()).collect();
    let mut with_one_memory = Vec::new();
    for (object, kind, what) in KINDS {
        // CLONE_SIGHAND demands CLONE_VM.
        let candidates = if kind == Kind::Sighand { &with_one_memory } else { &all };
        let order = in_order(tasks, candidates, kind).with_context(|| format!("compare {what} of tasks"))?;
        if kind == Kind::Vm {
            with_one_memory = order.iter().filter(|class| class.len() > 1).flatten().copied().collect();
            with_one_memory.sort_unstable();
        }
        // The sort is stable: the first of equals is the first of the tree.
        for class in &order {
            for &index in &class[1..] {
                shares[index].set(object, Some(tasks[class[0]].pid));
            }
        }
        refuse_outsiders(tasks, &order, (kind, what), strangers, refusals)
            .with_context(|| format!("compare {what} with tasks outside of the tree"))?;
    }
    for task in tasks {
        for thread in task.threads.iter().skip(1) {
            for (_, kind, what) in &KINDS[1..3] {
                let same = kcmp(*kind, (task.deputy(), 0), (thread.tid(), 0));
                if same.with_context(|| format!("compare {what} of threads"))? != Ordering::Equal {
                    let object = format!("thread {}", thread.tid());
                    let reason = format!("has {what} of its own (unshare)");
                    Refuse::new(refusals, task.pid, &task.name).because(object, reason);
                }
            }
        }
    }
    Ok(shares)
}

/// Tasks whose memory is that of an earlier one of them, too.
pub(crate) fn with_memory_of_others(tasks: &[FrozenTask]) -> Result<HashSet<Pid>> {
    let all: Vec<usize> = (0..tasks.len()).collect();
    let classes = in_order(tasks, &all, Kind::Vm).context("compare memory of tasks")?;
    Ok(classes.iter().flat_map(|class| &class[1..]).map(|&index| tasks[index].pid).collect())
}

/// Of some tasks, given in the order of the tree, those with the same object of a kind together, by sorting them in the kernel's order.
fn in_order(tasks: &[FrozenTask], some: &[usize], kind: Kind) -> nix::Result<Vec<Vec<usize>>> {
    let mut failure = None;
    let mut compare = |a: usize, b: usize| match kcmp(kind, (tasks[a].deputy(), 0), (tasks[b].deputy(), 0)) {
        Ok(order) => order,
        Err(errno) => {
            failure = Some(errno);
            Ordering::Equal
        }
    };
    let mut sorted = some.to_vec();
    sorted.sort_by(|&a, &b| if a == b { Ordering::Equal } else { compare(a, b) });
    let classes = sorted.chunk_by(|&a, &b| compare(a, b) == Ordering::Equal).map(<[usize]>::to_vec).collect();
    failure.map_or(Ok(classes), Err)
}

/// Refuses what somebody outside of the tree has in common with a task: it would be two things after a restore.
fn refuse_outsiders(
    tasks: &[FrozenTask],
    order: &[Vec<usize>],
    (kind, what): (Kind, &str),
    strangers: &Strangers,
    refusals: &mut Refusals,
) -> Result<()> {
    // As in `find`: tasks with the same handlers have the same memory, and are named for that.
    if kind == Kind::Sighand {
        return Ok(());
    }
    let mut named = vec![false; order.len()];
    for (stranger, deputy) in strangers.deputies() {
        let mut failure = None;
        let found = order.binary_search_by(|class| {
            kcmp(kind, (tasks[class[0]].deputy(), 0), (deputy, 0)).unwrap_or_else(|errno| {
                failure = Some(errno);
                Ordering::Greater
            })
        });
        match (failure, found) {
            (None, Ok(class)) if !std::mem::replace(&mut named[class], true) => {
                let task = &tasks[order[class][0]];
                let comm = comm_of(stranger);
                let reason = format!("shared with task {stranger} ({comm}), outside of the tree");
                let hint = "dump a tree that has both, or have one of them leave it (unshare)";
                Refuse::new(refusals, task.pid, &task.name).with_hint(what, reason, hint);
            }
            // Gone, or not for us to look at: then it has other users than the tree, or more rights.
            (None | Some(Errno::ESRCH | Errno::EPERM), _) => {}
            (Some(errno), _) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Refuses tasks that no restore could make as they are.
pub(crate) fn check(
    frozen: &[FrozenTask],
    tasks: &[Task],
    spaces: &[Space],
    refusals: &mut Refusals,
) -> Result<()> {
    let named = |index: usize| format!("task {} ({})", tasks[index].pid, frozen[index].name);
    for (index, why) in family::makings(tasks).err().unwrap_or_default() {
        let mut refuse = Refuse::new(refusals, tasks[index].pid, &frozen[index].name);
        match why {
            Why::Apart(other) => {
                let shared = Object::ALL.into_iter().find(|&object| tasks[index].shares.of(object).is_some());
                let object = shared.map_or("parent", what);
                let reason =
                    format!("shared with {}, but not with one that could clone this task", named(other));
                refuse.with_hint(object, reason, "have one of them leave it (unshare) before the dump");
            }
            Why::Abi => refuse.because("ABI", "differs from that of the task it was cloned by"),
            Why::Session => {
                let object = format!("session {}", tasks[index].sid);
                refuse.because(
                    object,
                    "born in another session, and shares with others or comes from one who does",
                );
            }
            Why::Group => {
                let object = format!("process group {}", tasks[index].pgid);
                refuse.because(
                    object,
                    "led by nobody, and joined by a task that shares or comes from one who does",
                );
            }
        }
    }
    check_exit_signals(frozen, tasks, spaces, refusals)
}

fn what(object: Object) -> &'static str {
    KINDS.iter().find(|(kind, ..)| *kind == object).map_or("", |(.., what)| what)
}

/// A child whose parent has exec'd since tells its end by SIGCHLD, whatever was agreed (`do_notify_parent`,
/// kernel/signal.c), but is waited for as what it was: no restored child could be that.
fn check_exit_signals(
    frozen: &[FrozenTask],
    tasks: &[Task],
    spaces: &[Space],
    refusals: &mut Refusals,
) -> Result<()> {
    for (index, task) in tasks.iter().enumerate().skip(1).filter(|(_, task)| task.exit_signal != SIGCHLD) {
        let Some(parent) = tasks.iter().position(|other| other.pid == task.ppid) else { continue };
        let execs = [index, parent].map(|index| exec_mark(frozen, tasks, spaces, index));
        let [own, parents] = execs;
        if own? != parents? {
            let object = format!("exit signal {}", task.exit_signal);
            let reason = "its parent has run another program since it made this task";
            let hint = "have the program end that task before the dump";
            Refuse::new(refusals, task.pid, &frozen[index].name).with_hint(object, reason, hint);
        }
    }
    Ok(())
}

/// What exec gave a program and fork copies: the auxiliary vector, with the random bytes that it points to.
fn exec_mark(
    frozen: &[FrozenTask],
    tasks: &[Task],
    spaces: &[Space],
    index: usize,
) -> Result<(Vec<u8>, [u8; 16])> {
    const AT_RANDOM: u64 = 25;
    let holder = family::holder_of(tasks, index, Object::Memory);
    let at = tasks.iter().position(|task| task.pid == holder).unwrap_or(index);
    let auxv = &spaces[at].auxv;
    let mut random = [0; 16];
    if let Some(address) = auxv::entry(auxv, tasks[at].abi, AT_RANDOM) {
        // Unreadable ones are alike.
        let _ = vm::read_exact(frozen[at].deputy(), Addr(address), &mut random);
    }
    Ok((auxv.clone(), random))
}

/// The record of the task whose object a task has, if that is another one.
pub(crate) fn holder<'a, T>(
    tasks: &'a [Task],
    records: &'a [T],
    holder: Option<Pid>,
) -> Option<(&'a Task, &'a T)> {
    let holder = holder?;
    let at = tasks.iter().position(|task| task.pid == holder)?;
    Some((&tasks[at], records.get(at)?))
}
