//! Taking out of the lists what is in them, when the checkpoint is complete and the tree is about to be killed.
//!
//! The kernel would undo it: a semaphore that a task holds would be free while the task is gone, and somebody else's when it is back. So the tasks
//! themselves take it out, as each of them may. From before the first of these calls the tree ends, whoever is killed. If crr is killed in the
//! middle, or a call fails, the kernel does undo what is left; a restore sees that, and takes it back if nobody else has used it ([`super::restore`]).

use super::{AT_ONCE, Operations, TRIES, operate};
use crate::dump::freeze::Frozen;
use crate::fault::{self, Point};
use crate::ptrace::Patience;
use crate::remote::{Executor, Target};
use crate::resource::dispatch;
use crate::resource::memory::private_writable;
use crate::sys::sysv::semaphores as sys;
use anyhow::{Context, Result, bail};
use images::memory::Memory;
use images::seccomp::Seccomp;
use images::sharing::Object;
use images::sysv::{UndoList, UndoSum};
use images::task::Tree;
use nix::errno::Errno;
use shared::plan::family::holder_of;

/// Empties the lists of a tree. `ways` tells for each how its task makes calls.
///
/// # Errors
/// If the tree cannot be tied to this process: then nothing has been changed.
pub(crate) fn disarm(
    frozen: &mut Frozen,
    tree: &Tree,
    memory: &Memory,
    ways: &[Target],
    patience: &Patience,
) -> Result<()> {
    if ways.is_empty() {
        return Ok(());
    }
    frozen.doom()?;
    fault::point(Point::KilledDisarming)?;
    for (list, way) in tree.ipc.undo_lists.iter().zip(ways) {
        if let Err(e) = empty(frozen, tree, memory, list, way, patience) {
            log::warn!(
                "task {}: what its end undoes (SEM_UNDO) is for the restore to take back, if nobody else uses it: {e:#}",
                list.task
            );
        }
    }
    Ok(())
}

/// Empties one list.
fn empty(
    frozen: &mut Frozen,
    tree: &Tree,
    memory: &Memory,
    list: &UndoList,
    way: &Target,
    patience: &Patience,
) -> Result<()> {
    let index = tree.tasks.iter().position(|task| task.pid == list.task).context("no such task")?;
    let record = &tree.tasks[index];
    let task = frozen.tasks.iter_mut().find(|task| task.pid == list.task).context("no such task")?;
    if record.threads.iter().any(|thread| thread.seccomp != Seccomp::Off) {
        task.threads.iter().try_for_each(|thread| thread.die_with_tracer(true))?;
    }
    let records = &record.threads[usize::from(task.leader_ended())..];
    dispatch::suspend(&task.threads, records, true)?;
    let thread = task.threads.iter_mut().find(|thread| thread.tid() == list.thread);
    let thread = thread.context("no such thread")?;
    let holder = holder_of(&tree.tasks, index, Object::Memory);
    let space = tree.tasks.iter().position(|task| task.pid == holder).map(|at| &memory.spaces[at]);
    let memory = || space.map_or_else(Vec::new, |space| private_writable(&space.vmas));
    // Those that were left have gone when the task was asked.
    let target = Target { leftovers: Vec::new(), ..way.clone() };
    let executor = Executor::open(target, thread, memory, patience)?;
    let mut left = list.sums.clone();
    for _ in 0..TRIES {
        let mut changed = Vec::new();
        for some in left.chunks(AT_ONCE) {
            let mut batch = executor.batch(thread)?;
            let mut calls = Vec::new();
            for &sum in some {
                let value = match sys::value(sum.set, sum.semaphore) {
                    // Nothing is undone at a set that is gone.
                    Err(Errno::EINVAL | Errno::EIDRM) => continue,
                    value => value.with_context(|| name(sum))?,
                };
                let out = Operations::adjust(sum.semaphore, value, -i32::from(sum.sum), value);
                calls.push((sum, operate(&mut batch, sum.set, &out)));
            }
            let reply = executor.run(thread, &batch, patience)?;
            for (sum, call) in calls {
                match reply.result(call) {
                    Ok(_) | Err(Errno::EINVAL | Errno::EIDRM) => {}
                    Err(Errno::EAGAIN) => changed.push(sum),
                    Err(errno) => return Err(errno).with_context(|| name(sum)),
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        left = changed;
    }
    bail!("others change the values all the time")
}

fn name(sum: UndoSum) -> String {
    format!("semaphore {} of set {}", sum.semaphore, sum.set)
}
