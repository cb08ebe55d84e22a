//! Kernel objects that tasks share by clone(2) without being threads of each other.

use super::Refuse;
use crate::dump::freeze::FrozenTask;
use crate::refusal::Refusals;
use crate::sys::kcmp::{Kind, kcmp};
use anyhow::{Context, Result};
use images::Pid;
use std::cmp::Ordering;

/// What is compared between tasks.
const KINDS: [(Kind, &str, &str); 4] = [
    (Kind::Vm, "memory", "CLONE_VM"),
    (Kind::Files, "file descriptors", "CLONE_FILES"),
    (Kind::Fs, "current directory", "CLONE_FS"),
    (Kind::Sighand, "signal handlers", "CLONE_SIGHAND"),
];

/// Refuses what tasks share with each other, and what threads of a task do not share.
pub(crate) fn check(tasks: &[FrozenTask], refusals: &mut Refusals) -> Result<()> {
    for (kind, what, flag) in KINDS {
        for (a, b) in shared_pairs(tasks, kind).with_context(|| format!("compare {what} of tasks"))? {
            let reason = format!("shared with task {} ({}) by {flag}", b.pid, b.name);
            Refuse::new(refusals, a.pid, &a.name).because(what, reason);
        }
    }
    for task in tasks {
        for thread in task.threads.iter().skip(1) {
            for (kind, what, _) in &KINDS[1..3] {
                let same = kcmp(*kind, (task.pid, 0), (thread.tid(), 0));
                if same.with_context(|| format!("compare {what} of threads"))? != Ordering::Equal {
                    let object = format!("thread {}", thread.tid());
                    let reason = format!("has {what} of its own (unshare)");
                    Refuse::new(refusals, task.pid, &task.name).because(object, reason);
                }
            }
        }
    }
    Ok(())
}

/// Tasks that share an object of a kind, by sorting them in the kernel's order.
fn shared_pairs(tasks: &[FrozenTask], kind: Kind) -> nix::Result<Vec<(&FrozenTask, &FrozenTask)>> {
    let mut failure = None;
    let mut compare = |a: Pid, b: Pid| match kcmp(kind, (a, 0), (b, 0)) {
        Ok(order) => order,
        Err(errno) => {
            failure = Some(errno);
            Ordering::Equal
        }
    };
    let mut sorted: Vec<&FrozenTask> = tasks.iter().collect();
    sorted.sort_by(|a, b| if a.pid == b.pid { Ordering::Equal } else { compare(a.pid, b.pid) });
    let pairs = sorted
        .windows(2)
        .filter(|two| compare(two[0].pid, two[1].pid) == Ordering::Equal)
        .map(|two| (two[0], two[1]))
        .collect();
    failure.map_or(Ok(pairs), Err)
}
