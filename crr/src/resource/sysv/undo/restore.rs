//! Putting back what is to be undone.
//!
//! A semaphore with something to be undone has to be as the dump has left it, or as the end of the tree has made it where the
//! dump could not prevent that ([`super::disarm`]), or where the tree ran on: then what was undone is taken back, if nobody else has used it since. Any other
//! value, and anybody who is still there and used it last, may mean that somebody has what a task of the tree takes for its own.

use super::Operations;
use crate::refusal::Refusals;
use crate::resource::sysv::objects::{self, Adjusted};
use crate::resource::sysv::semaphores;
use crate::sys::process;
use crate::sys::sysv::semaphores as sys;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::sysv::{Ipc, Semaphore, SemaphoreSet};
use std::collections::BTreeMap;

/// A semaphore that somebody has something to undo at.
struct Held {
    set: i32,
    number: u16,
    record: Semaphore,
    /// The sum of all lists.
    total: i64,
    /// The tasks, in the order of their lists.
    users: Vec<Pid>,
}

impl Held {
    /// Those of an image.
    fn all(ipc: &Ipc) -> Vec<Self> {
        let mut found: BTreeMap<(i32, u16), Self> = BTreeMap::new();
        for (list, sum) in ipc.undo_lists.iter().flat_map(|list| list.sums.iter().map(move |sum| (list, sum)))
        {
            let set = ipc.semaphore_sets.iter().find(|set| set.object.id == sum.set);
            let Some(&record) = set.and_then(|set| set.semaphores.get(usize::from(sum.semaphore))) else {
                continue;
            };
            let new = || Self { set: sum.set, number: sum.semaphore, record, total: 0, users: Vec::new() };
            let held = found.entry((sum.set, sum.semaphore)).or_insert_with(new);
            held.total += i64::from(sum.sum);
            held.users.push(list.task);
        }
        found.into_values().collect()
    }

    /// The value when all has been undone: cut to what there can be (exit_sem(), ipc/sem.c).
    fn undone(&self) -> u16 {
        let value = i64::from(self.record.value) + self.total;
        u16::try_from(value.clamp(0, super::operations::HIGHEST)).unwrap_or(0)
    }

    /// Why it is not as it has to be, if so.
    fn obstacle(&self, value: u16, last_user: Pid, exists: impl Fn(Pid) -> bool) -> Option<String> {
        if last_user == 0 {
            return Some("who used it last cannot be seen from this pid namespace".to_owned());
        }
        let is_undone = value == self.undone() && self.users.contains(&last_user);
        let is_there = exists(last_user);
        if is_undone || (value == self.record.value && !is_there) {
            return None;
        }
        let state = if is_there { "is there" } else { "has ended" };
        Some(format!("process {last_user}, which {state}, has used it meanwhile: its value is {value}"))
    }
}

/// Refuses to put back what is to be undone at a set that is there, if somebody else may have used it meanwhile.
///
/// # Errors
/// If the set may not be read.
pub(in crate::resource::sysv) fn preflight(
    ipc: &Ipc,
    set: &SemaphoreSet,
    refusals: &mut Refusals,
) -> Result<()> {
    let id = set.object.id;
    for held in Held::all(ipc).iter().filter(|held| held.set == id) {
        let (value, last_user) = sys::value(id, held.number)
            .and_then(|value| Ok((value, sys::last_user(id, held.number)?)))
            .with_context(|| semaphores::name(id))?;
        if let Some(reason) = held.obstacle(value, last_user, process::exists) {
            let object = format!("System V semaphore {} of set {id}", held.number);
            let hint = format!(
                "end that process, or remove the set (ipcrm -s {id}): then it is made again as it was at the dump"
            );
            let reason = format!("is to be undone by a task (SEM_UNDO), and {reason}");
            objects::refuse(object, reason, &hint, refusals);
        }
    }
    Ok(())
}

/// Operations on a set by a thread of the tree.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) thread: Pid,
    pub(crate) set: i32,
    pub(crate) operations: Operations,
}

/// What the threads have to do so that all lists and values are as they were. `adjusted` is told of it.
///
/// # Errors
/// If somebody has used a semaphore just now.
pub(crate) fn steps(ipc: &Ipc, adjusted: &mut Vec<Adjusted>) -> Result<Vec<Step>> {
    let mut now = BTreeMap::new();
    for held in Held::all(ipc) {
        let (set, number, undone) = (held.set, held.number, held.undone());
        let value = sys::value(set, number).with_context(|| semaphores::name(set))?;
        if value != held.record.value && value != undone {
            bail!("System V semaphore {number} of set {set}: somebody has used it just now");
        }
        now.insert((set, number), (value, held.record.value));
        adjusted.push(Adjusted { set, number, before: value, undone });
    }
    let mut steps = Vec::new();
    for (list, sum) in ipc.undo_lists.iter().flat_map(|list| list.sums.iter().map(move |sum| (list, sum))) {
        let Some((from, to)) = now.get_mut(&(sum.set, sum.semaphore)) else { continue };
        let operations = Operations::adjust(sum.semaphore, *from, sum.sum.into(), *to);
        steps.push(Step { thread: list.thread, set: sum.set, operations });
        *from = *to;
    }
    Ok(steps)
}

/// Operations that change nothing, by those who had used a semaphore last: after [`steps`] that is another one.
pub(crate) fn signatures(ipc: &Ipc) -> Vec<(Pid, i32, Operations)> {
    let other = |held: &Held| held.users.last() != Some(&held.record.last_user) && held.record.last_user != 0;
    let sign = |held: Held| {
        let value = held.record.value;
        (held.record.last_user, held.set, Operations::adjust(held.number, value, 0, value))
    };
    Held::all(ipc).into_iter().filter(other).map(sign).collect()
}

/// Operates on a set as this process.
///
/// # Errors
/// As semop(2).
pub(crate) fn operate(set: i32, operations: &Operations) -> nix::Result<()> {
    sys::operate(set, &mut operations.list())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_from_the_tree() {
        let held = |value, total| Held {
            set: 1,
            number: 0,
            record: Semaphore { value, last_user: 9 },
            total,
            users: vec![100, 101],
        };
        let fits = |held: &Held, value, user| held.obstacle(value, user, |pid| pid == 77).is_none();
        let lock = held(0, 1);
        // As it was, by somebody who is gone; as the kernel undoes it at the end of a task.
        assert!(fits(&lock, 0, 9) && fits(&lock, 0, 100) && fits(&lock, 1, 101));
        // Somebody may have it; somebody else gave it; a value that has no explanation; nobody knows.
        assert!(!fits(&lock, 0, 77) && !fits(&lock, 1, 9) && !fits(&lock, 2, 100) && !fits(&lock, 0, 0));
        assert_eq!((held(3, -5).undone(), held(32760, 20).undone()), (0, 32767));
        // Up and down.
        assert!(fits(&held(3, 0), 3, 100) && fits(&held(3, 0), 3, 9));
    }
}
