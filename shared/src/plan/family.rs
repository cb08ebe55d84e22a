//! Who makes whom: which tasks a forked child of the coordinator becomes, and which are cloned by the program that
//! restores another task.
//!
//! A task whose end is told by another signal than SIGCHLD has not exec'd since it was cloned (`de_thread`, fs/exec.c),
//! and neither has one that shares its address space, its file table or its handlers. Such a task cannot exec on its way
//! back, so another one that already has clones it. Whoever descends from it is cloned too, and execs where its ABI
//! differs.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use images::Pid;
use images::sharing::{Object, Shares};
use images::task::Task;

/// SIGCHLD.
pub const SIGCHLD: u8 = 17;

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PARENT: u64 = 0x8000;

/// How a task is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Making {
    /// By fork in ordinary 64-bit code and exec of the program that restores it.
    Forked,
    /// By the program that restores another task.
    Cloned {
        /// Index of that task: the parent, or an earlier child of it.
        by: usize,
        /// CLONE_*.
        flags: u64,
        /// It execs a program of its own, since its ABI is another one.
        exec: bool,
        /// It is cloned when private memory of its maker is in place, which it shares copy-on-write ([`super::kin`]).
        pages: bool,
    },
}

/// The task whose program restores a task.
#[must_use]
pub fn host(makings: &[Making], index: usize) -> usize {
    let mut at = index;
    while let Making::Cloned { by, exec: false, .. } = makings[at] {
        at = by;
    }
    at
}

/// Why a task cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Neither its parent nor a child of that one has all that it shares with this task (by index).
    Apart(usize),
    /// It would have to be cloned by a task of another ABI.
    Abi,
    /// It would have to be cloned into its session, which is not its maker's.
    Session,
    /// Nobody is in its process group for it to join.
    Group,
}

/// What decides whether a task is cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its pid.
    pub pid: Pid,
    /// Its parent.
    pub ppid: Pid,
    /// The signal that tells of its end.
    pub exit_signal: u8,
    /// What it shares.
    pub shares: Shares,
}

impl Kind {
    /// Of a record.
    #[must_use]
    pub const fn of(task: &Task) -> Self {
        Self { pid: task.pid, ppid: task.ppid, exit_signal: task.exit_signal, shares: task.shares }
    }
}

/// Which tasks are cloned: each that could not exec on its way, and all below it. The root comes first, which has nobody
/// in the tree to come from.
#[must_use]
pub fn cloned(kinds: &[Kind]) -> Vec<bool> {
    let mut cloned: BTreeMap<Pid, bool> = BTreeMap::new();
    let mut all = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let below = cloned.get(&kind.ppid);
        let odd = kind.exit_signal != SIGCHLD || kind.shares != Shares::default();
        let is_cloned = below.is_some_and(|&below| below || odd);
        cloned.insert(kind.pid, is_cloned);
        all.push(is_cloned);
    }
    all
}

/// Whether a zombie with this parent, in this group, would have to be cloned: one of the two is. No zombie is.
#[must_use]
pub fn strands(kinds: &[Kind], cloned: &[bool], ppid: Pid, pgid: Pid) -> bool {
    kinds.iter().zip(cloned).any(|(kind, &cloned)| cloned && (kind.pid == ppid || kind.pid == pgid))
}

/// The making of each task. `tasks` has the root first and parents before their children.
///
/// # Errors
/// Every task that cannot be made, by index.
pub fn makings(tasks: &[Task]) -> Result<Vec<Making>, Vec<(usize, Why)>> {
    let index_of: BTreeMap<Pid, usize> =
        tasks.iter().enumerate().map(|(index, task)| (task.pid, index)).collect();
    let kinds: Vec<Kind> = tasks.iter().map(Kind::of).collect();
    let cloned = cloned(&kinds);
    let mut makings = Vec::with_capacity(tasks.len());
    let mut impossible = Vec::new();
    for index in 0..tasks.len() {
        let making = if cloned[index] { making(tasks, &index_of, index) } else { Ok(Making::Forked) };
        let group = check_group(tasks, &index_of, &cloned, index);
        makings.push(making.and_then(|making| group.map(|()| making)).unwrap_or_else(|why| {
            impossible.push((index, why));
            Making::Forked
        }));
    }
    if impossible.is_empty() { Ok(makings) } else { Err(impossible) }
}

/// The making of one task that is cloned.
fn making(tasks: &[Task], index_of: &BTreeMap<Pid, usize>, index: usize) -> Result<Making, Why> {
    let task = &tasks[index];
    let Some(parent) = index_of.get(&task.ppid).copied() else { return Err(Why::Session) };
    let first_shared = Object::ALL.into_iter().find_map(|object| task.shares.of(object));
    let siblings = (parent + 1..index)
        .filter(|&other| tasks[other].ppid == task.ppid && tasks[other].exit_signal == task.exit_signal);
    let has_all = |maker: usize| {
        Object::ALL.into_iter().all(|object| {
            task.shares.of(object).is_none_or(|holder| holder_of(tasks, maker, object) == holder)
        })
    };
    let Some(by) = core::iter::once(parent).chain(siblings).find(|&maker| has_all(maker)) else {
        let other = first_shared.and_then(|pid| index_of.get(&pid)).copied();
        return Err(Why::Apart(other.unwrap_or(parent)));
    };
    let mut flags = if by == parent { 0 } else { CLONE_PARENT };
    for (object, flag) in [
        (Object::Memory, CLONE_VM),
        (Object::Files, CLONE_FILES),
        (Object::Directories, CLONE_FS),
        (Object::Handlers, CLONE_SIGHAND),
    ] {
        if task.shares.of(object).is_some() {
            flags |= flag;
        }
    }
    let exec = task.abi != tasks[by].abi;
    let needs_same = flags & (CLONE_VM | CLONE_FILES | CLONE_SIGHAND) != 0 || task.exit_signal != SIGCHLD;
    let lone_handlers = flags & CLONE_SIGHAND != 0 && flags & CLONE_VM == 0;
    if (exec && needs_same) || lone_handlers {
        return Err(Why::Abi);
    }
    if task.sid != task.pid && task.sid != tasks[by].sid {
        return Err(Why::Session);
    }
    Ok(Making::Cloned { by, flags, exec, pages: false })
}

/// A cloned task, or one whose group is led by one, goes to the group when all forked ones are in theirs: it has to have
/// its leader, or a forked member.
fn check_group(
    tasks: &[Task],
    index_of: &BTreeMap<Pid, usize>,
    cloned: &[bool],
    index: usize,
) -> Result<(), Why> {
    let task = &tasks[index];
    let leader = index_of.get(&task.pgid).copied();
    let late = cloned[index] || leader.is_some_and(|leader| cloned[leader]);
    if !late || task.pgid == task.pid {
        return Ok(());
    }
    let is_there = |other: usize| tasks[other].pgid == task.pgid && tasks[other].sid == task.sid;
    let led = leader.is_some_and(is_there);
    let held = leader.is_none_or(|leader| !cloned[leader])
        && (0..tasks.len()).any(|other| !cloned[other] && is_there(other));
    if led || held { Ok(()) } else { Err(Why::Group) }
}

/// Whose record holds what a task has of a kind.
#[must_use]
pub fn holder_of(tasks: &[Task], index: usize, object: Object) -> Pid {
    let task = &tasks[index];
    task.shares.of(object).unwrap_or(task.pid)
}
