//! Semaphores and message queues of System V.

use super::{Check, ensure, inside};
use images::sysv::{Ipc, Object, Queue, SemaphoreSet};

/// SEMVMX of include/uapi/linux/sem.h.
const HIGHEST: u16 = 32_767;

pub(super) fn check(ipc: &Ipc) -> Check {
    check_order(ipc.semaphore_sets.iter().map(|set| &set.object)).map_err(inside("semaphores"))?;
    check_order(ipc.queues.iter().map(|queue| &queue.object)).map_err(inside("queues"))?;
    for set in &ipc.semaphore_sets {
        check_set(set).map_err(inside(format_args!("semaphores {}", set.object.id)))?;
    }
    for queue in &ipc.queues {
        check_queue(queue).map_err(inside(format_args!("queue {}", queue.object.id)))?;
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
