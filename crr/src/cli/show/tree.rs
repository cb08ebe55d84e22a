//! The process tree, drawn; and the threads of a task.

use super::printable;
use super::table::Table;
use crate::progress::bytes;
use crate::ptrace::regs;
use crate::store::Checkpoint;
use images::id::PAGE_SIZE;
use images::memory::Space;
use images::task::{End, Task, Zombie};
use images::{Abi, Pid};
use std::collections::BTreeMap;

/// All tasks, children under their parents.
pub(super) fn tree(checkpoint: &Checkpoint) -> String {
    let tasks = &checkpoint.tree.tasks;
    let zombies = &checkpoint.tree.zombies;
    let mut children: BTreeMap<Pid, Vec<usize>> = BTreeMap::new();
    let living = tasks.iter().map(|task| task.ppid).enumerate().skip(1);
    for (index, ppid) in living.chain((tasks.len()..).zip(zombies.iter().map(|zombie| zombie.ppid))) {
        children.entry(ppid).or_default().push(index);
    }
    let mut table = Table::new(["PID", "COMMAND", "ABI", "THREADS", "MAPPED", "SAVED", "FDS"]);
    // A tree may be deeper than our stack: what is still to be drawn is a stack of its own.
    let mut waiting = vec![(0_usize, String::new(), String::new())];
    while let Some((index, prefix, below)) = waiting.pop() {
        if let Some(zombie) = index.checked_sub(tasks.len()).map(|index| &zombies[index]) {
            table.row(row_of_zombie(zombie, &prefix));
            continue;
        }
        let (task, space) = (&tasks[index], &checkpoint.memory.spaces[index]);
        table.row(row(task, space, &prefix));
        let own = children.get(&task.pid).map_or(&[][..], Vec::as_slice);
        for (place, child) in own.iter().enumerate().rev() {
            let (branch, trunk) =
                if place + 1 == own.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            waiting.push((*child, format!("{below}{branch}"), format!("{below}{trunk}")));
        }
    }
    table.to_string()
}

fn row(task: &Task, space: &Space, prefix: &str) -> [String; 7] {
    let mapped: u64 = space.vmas.iter().map(|vma| vma.end.0 - vma.start.0).sum();
    let saved: u64 = space.runs.iter().map(|run| run.pages * PAGE_SIZE).sum();
    [
        format!("{prefix}{}", task.pid),
        printable(&task.threads[0].comm) + if task.stopped.is_some() { " (stopped)" } else { "" },
        task.abi.to_string(),
        task.threads.len().to_string(),
        bytes(mapped),
        bytes(saved),
        task.fds.len().to_string(),
    ]
}

/// A task that has ended has nothing but its name and its end.
fn row_of_zombie(zombie: &Zombie, prefix: &str) -> [String; 7] {
    let end = match zombie.end {
        End::Exit(code) => format!("exited {code}"),
        End::Killed(signal) => format!("killed {signal}"),
    };
    let [threads, mapped, saved, fds] = std::array::from_fn(|_| String::new());
    [format!("{prefix}{}", zombie.pid), printable(&zombie.comm), end, threads, mapped, saved, fds]
}

/// The threads of a task and where they stand.
pub(super) fn threads(task: &Task) -> String {
    let mut table = Table::new(["TID", "NAME", "MODE", "INSTRUCTION", "STACK"]);
    for thread in &task.threads {
        let mode = match regs::mode(&thread.regs) {
            Abi::X86_64 => "64-bit",
            Abi::Ia32 => "32-bit",
        };
        let (ip, sp) = (regs::ip(&thread.regs), regs::sp(&thread.regs));
        let places = match thread.exited {
            None => [mode.to_owned(), format!("{:08x}", ip.0), format!("{:08x}", sp.0)],
            Some(code) => [format!("exited {code}"), String::new(), String::new()],
        };
        let [mode, ip, sp] = places;
        table.row([thread.tid.to_string(), printable(&thread.comm), mode, ip, sp]);
    }
    format!("threads of {}\n{table}", task.pid)
}
