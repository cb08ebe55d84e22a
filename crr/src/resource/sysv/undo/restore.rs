//! Putting back what is to be undone.
//!
//! A semaphore with something to be undone has to be as the dump has left it, or as the end of the tree has made it where the
//! dump could not prevent that ([`super::disarm`]), or where the tree ran on: then what was undone is taken back, if nobody else has used it since. Any other
//! value, and anybody who is still there and used it last, may mean that somebody has what a task of the tree takes for its own.

use super::Operations;
use crate::refusal::Refusals;
use crate::resource::sysv::objects::{self, Adjusted, Made};
use crate::resource::sysv::semaphores;
use crate::resource::unix_socket::maker::in_process;
use crate::sys::process;
use crate::sys::sysv::semaphores as sys;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::sysv::{Ipc, Semaphore, SemaphoreSet};
use images::task::Tree;
use std::collections::{BTreeMap, HashSet};

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

/// Its value now, and who used it last.
fn look(held: &Held) -> Result<(u16, Pid)> {
    let value = sys::value(held.set, held.number);
    let both = value.and_then(|value| Ok((value, sys::last_user(held.set, held.number)?)));
    both.with_context(|| semaphores::name(held.set))
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
        let (value, last_user) = look(held)?;
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
    /// What it takes to go back, from the moment in which they may have been done.
    pub(crate) adjusted: Adjusted,
}

/// What the threads have to do so that all lists and values are as they were. A set that this restore has `made` was nobody else's before.
///
/// # Errors
/// If somebody has used a semaphore since it was looked at first.
pub(crate) fn steps(tree: &Tree, made: &Made) -> Result<Vec<Step>> {
    let ipc = &tree.ipc;
    let threads = tree.tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid);
    let own: HashSet<Pid> = threads.chain(tree.zombies.iter().map(|zombie| zombie.pid)).collect();
    let is_stranger = |pid| !own.contains(&pid) && process::exists(pid);
    let mut now = BTreeMap::new();
    for held in Held::all(ipc) {
        let (set, number) = (held.set, held.number);
        let (value, last_user) = look(&held)?;
        let obstacle = if made.sets.contains(&set) {
            (value != held.record.value)
                .then(|| format!("somebody has used it just now: its value is {value}"))
        } else {
            held.obstacle(value, last_user, is_stranger)
        };
        if let Some(obstacle) = obstacle {
            bail!("System V semaphore {number} of set {set}: {obstacle}");
        }
        now.insert((set, number), Progress { before: value, from: value, held: Held { total: 0, ..held } });
    }
    let mut steps = Vec::new();
    for (list, sum) in ipc.undo_lists.iter().flat_map(|list| list.sums.iter().map(move |sum| (list, sum))) {
        let Some(progress) = now.get_mut(&(sum.set, sum.semaphore)) else { continue };
        let Progress { before, from, held } = progress;
        let operations = Operations::adjust(sum.semaphore, *from, sum.sum.into(), held.record.value);
        *from = held.record.value;
        held.total += i64::from(sum.sum);
        let (set, number, user) = (held.set, held.number, list.task);
        let adjusted = Adjusted { set, number, user, before: *before, undone: held.undone() };
        steps.push(Step { thread: list.thread, set, operations, adjusted });
    }
    Ok(steps)
}

/// A semaphore on its way, list after list.
struct Progress {
    before: u16,
    from: u16,
    /// With the sum of the lists that are filled by then.
    held: Held,
}

/// After the end of a task that has undone something, puts the value back to what it was before the restore, in the name of that task: so the next restore
/// finds it as this one did.
pub(in crate::resource::sysv) fn take_back(adjusted: &Adjusted) {
    let Adjusted { set, number, user, before, undone } = *adjusted;
    if before == undone || sys::value(set, number) != Ok(undone) {
        return;
    }
    let back = Operations::adjust(number, undone, 0, before);
    if let Err(e) = operate_as(user, set, &back) {
        log::warn!("System V semaphore {number} of set {set} was {before} before this restore: {e:#}");
    }
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

/// Operates on a set as a process with this id, or as another where that cannot be had.
///
/// # Errors
/// As fork(2) and semop(2).
pub(crate) fn operate_as(user: Pid, set: i32, operations: &Operations) -> Result<()> {
    // The process is a bare copy of this one, and makes one call and no more.
    let mut list = operations.list();
    in_process(user, 0, || sys::operate(set, &mut list)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::sysv::SELF;

    #[test]
    fn a_failed_restore_leaves_values_as_they_were() {
        let set = sys::make(libc::IPC_PRIVATE, 1, 0o600, SELF).unwrap();
        let after = |there, before, undone: &[u16]| {
            sys::set_value(set, 0, there).unwrap();
            for &undone in undone.iter().rev() {
                take_back(&Adjusted { set, number: 0, user: 1, before, undone });
            }
            let is_ours = sys::last_user(set, 0) == Ok(nix::unistd::getpid().as_raw());
            (sys::value(set, 0).unwrap(), is_ours)
        };
        // Of two lists, both, the first, and none was filled.
        assert_eq!([2, 1, 0].map(|there| after(there, 0, &[1, 2])), [(0, false), (0, false), (0, true)]);
        // The value was that already, and whoever used it last is still shown.
        assert_eq!(after(1, 1, &[1]), (1, true));
        assert_eq!([2, 1].map(|there| after(there, 2, &[1, 2])), [(2, true), (2, false)]);
        // Somebody else has it now.
        assert_eq!(after(3, 0, &[1, 2]), (3, true));
        sys::remove(set).unwrap();
    }

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
