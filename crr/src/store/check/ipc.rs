//! Semaphores and message queues of System V.

use super::{Check, ensure, inside};
use images::Pid;
use images::sysv::{Ipc, Object, Queue, SemaphoreSet, UndoList};
use images::task::Tree;

/// SEMVMX of include/uapi/linux/sem.h.
const HIGHEST: u16 = 32_767;

pub(super) fn check(tree: &Tree) -> Check {
    let ipc = &tree.ipc;
    check_order(ipc.semaphore_sets.iter().map(|set| &set.object)).map_err(inside("semaphores"))?;
    check_order(ipc.queues.iter().map(|queue| &queue.object)).map_err(inside("queues"))?;
    for set in &ipc.semaphore_sets {
        check_set(set).map_err(inside(format_args!("semaphores {}", set.object.id)))?;
    }
    for queue in &ipc.queues {
        check_queue(queue).map_err(inside(format_args!("queue {}", queue.object.id)))?;
    }
    check_undo(tree).map_err(inside("undo"))
}

/// Each list is that of a task, or of a thread that is apart, and not two of them are the same.
fn check_undo(tree: &Tree) -> Check {
    let ipc = &tree.ipc;
    let lives = |task: Pid, tid: Pid| {
        let of_task = tree.tasks.iter().filter(|record| record.pid == task);
        of_task.flat_map(|record| &record.threads).any(|thread| thread.tid == tid && thread.exited.is_none())
    };
    let mut last = 0;
    for &tid in &ipc.apart {
        ensure!(tid > last, "thread {tid} follows {last}");
        ensure!(tree.tasks.iter().any(|task| lives(task.pid, tid)), "no thread {tid} that could be apart");
        last = tid;
    }
    let mut owners = Vec::new();
    let mut last = 0;
    for list in &ipc.undo_lists {
        let UndoList { task, thread, .. } = *list;
        ensure!(thread > last, "the list of thread {thread} follows that of {last}");
        ensure!(lives(task, thread), "a list of thread {thread} of task {task}");
        let owner = if ipc.apart.binary_search(&thread).is_ok() { thread } else { task };
        ensure!(!owners.contains(&owner), "thread {thread} has a list that task {task} has too");
        owners.push(owner);
        last = thread;
        check_sums(ipc, list).map_err(inside(format_args!("thread {thread}")))?;
    }
    Ok(())
}

fn check_sums(ipc: &Ipc, list: &UndoList) -> Check {
    ensure!(!list.sums.is_empty(), "an empty list");
    let mut last = None;
    for sum in &list.sums {
        let place = (sum.set, sum.semaphore);
        ensure!(last < Some(place), "semaphore {} of set {} out of order", place.1, place.0);
        let set = ipc.semaphore_sets.iter().find(|set| set.object.id == sum.set);
        let count = set.map_or(0, |set| set.semaphores.len());
        ensure!(usize::from(sum.semaphore) < count, "semaphore {} of {count} of set {}", place.1, place.0);
        ensure!(sum.sum != 0, "nothing to undo at semaphore {} of set {}", place.1, place.0);
        last = Some(place);
    }
    Ok(())
}

fn check_order<'a>(objects: impl Iterator<Item = &'a Object>) -> Check {
    let mut last = -1;
    for object in objects {
        ensure!(object.id > last, "id {} follows {last}", object.id);
        ensure!(object.mode <= 0o777, "id {} has mode {:#o}", object.id, object.mode);
        last = object.id;
    }
    Ok(())
}

fn check_set(set: &SemaphoreSet) -> Check {
    let count = set.semaphores.len();
    ensure!((1..=usize::from(u16::MAX)).contains(&count), "there are {count} of them");
    for semaphore in &set.semaphores {
        ensure!(semaphore.value <= HIGHEST, "a value of {}", semaphore.value);
        ensure!(semaphore.last_user >= 0, "{} has used one", semaphore.last_user);
    }
    Ok(())
}

fn check_queue(queue: &Queue) -> Check {
    let users = [queue.last_sender, queue.last_receiver];
    ensure!(users.iter().all(|&pid| pid >= 0), "{users:?} have used it");
    let odd = queue.messages.iter().find(|message| message.kind <= 0);
    ensure!(odd.is_none(), "a message of type {}", odd.map_or(0, |message| message.kind));
    Ok(())
}
