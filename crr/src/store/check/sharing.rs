//! What tasks share, and whether there is a way to make them so.

use super::{Check, ensure};
use images::memory::{Layout, Memory};
use images::sharing::{Object, Shares};
use images::task::{Task, Tree};
use shared::plan::family;
use std::collections::BTreeMap;

/// SIGRTMAX.
const SIGNALS: u8 = 64;

pub(super) fn check(tree: &Tree) -> Check {
    let mut before: BTreeMap<_, &Task> = BTreeMap::new();
    for task in &tree.tasks {
        let pid = task.pid;
        ensure!(task.exit_signal <= SIGNALS, "task {pid}: exit signal {}", task.exit_signal);
        for object in Object::ALL {
            let Some(holder) = task.shares.of(object) else { continue };
            let Some(other) = before.get(&holder) else {
                return Err(format!("task {pid}: shares with {holder}, which does not stand before it"));
            };
            let same = check_shared(task, other, object);
            same.map_err(|what| format!("task {pid}: {what} of {holder}"))?;
        }
        before.insert(pid, task);
    }
    let kinds: Vec<family::Kind> = tree.tasks.iter().map(family::Kind::of).collect();
    let cloned = family::cloned(&kinds);
    for zombie in &tree.zombies {
        let stranded = family::strands(&kinds, &cloned, zombie.ppid, zombie.pgid);
        ensure!(!stranded, "zombie {}: below or in the group of a task that has to be cloned", zombie.pid);
    }
    match family::makings(&tree.tasks) {
        Ok(_) => Ok(()),
        Err(all) => {
            let pids: Vec<String> = all.iter().map(|(index, _)| tree.tasks[*index].pid.to_string()).collect();
            Err(format!("no task could make {} share as they do", pids.join(", ")))
        }
    }
}

/// One object that a task has from another one.
fn check_shared(task: &Task, other: &Task, object: Object) -> Check {
    ensure!(other.shares.of(object).is_none(), "shares what is not the own");
    match object {
        Object::Memory => {
            ensure!(task.abi == other.abi, "has another ABI than the memory");
            ensure!(task.dumpable == other.dumpable, "is dumpable unlike the memory");
        }
        Object::Files => ensure!(task.fds.is_empty(), "has files beside those"),
        Object::Directories => {
            let of = |task: &Task| (task.cwd, task.root, task.umask);
            ensure!(of(task) == of(other), "has other directories than those");
        }
        Object::Handlers => ensure!(task.actions.is_empty(), "has actions beside those"),
    }
    Ok(())
}

/// Where a task has another one's address space, none is recorded with it.
pub(super) fn check_spaces(memory: &Memory, tree: &Tree) -> Check {
    for (space, task) in memory.spaces.iter().zip(&tree.tasks) {
        let Shares { memory: Some(holder), .. } = task.shares else { continue };
        let empty = space.vmas.is_empty() && space.runs.is_empty() && space.auxv.is_empty();
        let bare =
            space.policies.is_empty() && space.guards.is_empty() && space.names.is_empty() && space.keys == 0;
        let nothing = empty && bare && space.layout == Layout::default();
        ensure!(nothing, "task {}: has memory beside that of {holder}", task.pid);
    }
    Ok(())
}
