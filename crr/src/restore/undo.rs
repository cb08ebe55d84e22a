//! Putting back what tasks would have undone at their end (SEM_UNDO), while all threads are held.
//!
//! Each list is filled by a thread that has it. From then on the end of a task changes semaphores, also where the restore fails after all.

use super::Restore;
use super::takeover::{Taken, by_thread, call};
use crate::ptrace::{Patience, Stopped, regs};
use crate::resource::sysv::undo::{self, Operations};
use crate::sys::process;
use anyhow::{Context, Result, bail};
use images::{Abi, Pid};
use nix::errno::Errno;

/// Fills the lists of all tasks.
pub(super) fn put_back(
    restore: &mut Restore<'_>,
    all: &mut [Vec<Taken<'_>>],
    parked: &[u64],
    patience: &Patience,
) -> Result<()> {
    let ipc = &restore.checkpoint.tree.ipc;
    for &tid in &ipc.apart {
        let (task, thread) = find(all, tid)?;
        by_thread(&mut all[task], thread, |stopped| leave_list(stopped, parked[task], patience))
            .and_then(succeeded)
            .with_context(|| format!("thread {tid}: unshare"))?;
    }
    for step in undo::restore::steps(&restore.checkpoint.tree, &restore.opened.ipc)? {
        let (task, thread) = find(all, step.thread)?;
        restore.opened.ipc.adjusted.push(step.adjusted);
        by_thread(&mut all[task], thread, |stopped| {
            operate(step.set, &step.operations, stopped, parked[task], patience)
        })
        .and_then(succeeded)
        .with_context(|| format!("thread {}: operate on System V semaphores {}", step.thread, step.set))?;
    }
    for (user, set, operations) in undo::restore::signatures(ipc) {
        let tasks = &restore.checkpoint.tree.tasks;
        let signed = match tasks.iter().position(|task| task.pid == user) {
            Some(task) => {
                let result = by_thread(&mut all[task], 0, |stopped| {
                    operate(set, &operations, stopped, parked[task], patience)
                });
                succeeded(
                    result.with_context(|| format!("task {user}: operate on System V semaphores {set}"))?,
                )
            }
            // A thread, or somebody outside of the tree, has that id.
            None if process::exists(user) => continue,
            None => undo::restore::operate_as(user, set, &operations),
        };
        // It may not use the set any more, or somebody else has used it just now.
        if let Err(e) = signed {
            log::info!("System V semaphores {set}: process {user} is not shown as a last user: {e:#}");
        }
    }
    Ok(())
}

/// The places of a thread's task and of the thread in it.
fn find(all: &[Vec<Taken<'_>>], tid: Pid) -> Result<(usize, usize)> {
    let in_task = |taken: &Vec<Taken<'_>>| taken.iter().position(|thread| thread.record.tid == tid);
    let found = all.iter().enumerate().find_map(|(task, taken)| Some((task, in_task(taken)?)));
    found.with_context(|| format!("no thread {tid}"))
}

fn succeeded(result: i64) -> Result<()> {
    match result {
        0 => Ok(()),
        errno => bail!(Errno::from_raw(i32::try_from(-errno)?)),
    }
}

/// Takes a thread out of the list of its task.
fn leave_list(stopped: Stopped, syscall_at: u64, patience: &Patience) -> Result<(Stopped, i64)> {
    const CLONE_SYSVSEM: u64 = 0x4_0000;
    let (unshare_64, unshare_32) = (272, 310);
    call(stopped, syscall_at, [unshare_64, unshare_32], &[CLONE_SYSVSEM], patience)
}

/// semop; by ipc(2) where that is older (ksys_ipc(), ipc/syscall.c).
fn operate(
    set: i32,
    operations: &Operations,
    stopped: Stopped,
    syscall_at: u64,
    patience: &Patience,
) -> Result<(Stopped, i64)> {
    const SEMOP: u64 = 1;
    let (semop, ipc) = (65, 117);
    let place = stopped.write_below_stack(&operations.bytes())?.0;
    let (set, count) = (u64::from(set.cast_unsigned()), operations.count());
    let args: &[u64] = match regs::mode(&stopped.regs()?) {
        Abi::X86_64 => &[set, place, count],
        Abi::Ia32 => &[SEMOP, set, count, 0, place],
    };
    call(stopped, syscall_at, [semop, ipc], args, patience)
}
