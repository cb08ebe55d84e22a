//! Stopping the tasks again that a signal had stopped, while all threads are held.
//!
//! A stop is made as the kernel makes it: a thread takes SIGSTOP, or the signal that it is given in its place, and all others
//! follow. Under a tracer they can still be told to run, and are stopped for good when they are let go. The kernel tells the parent by
//! SIGCHLD; one that had been told already (or has that signal pending) is not to hear of it again.

use super::Restore;
use super::takeover::{Taken, by_thread, call};
use crate::ptrace::{Patience, Stop, Stopped, signal_bit};
use anyhow::{Context, Result, bail};
use images::signal::Pending;
use images::task::Task;
use images::{Addr, Pid};
use libc::{SIGCHLD, SIGSTOP};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

/// Stops every task that was stopped. Its threads stand in interrupt-stops with all signals blocked, and the code in the hole is there.
pub(super) fn stop_all(
    restore: &Restore<'_>,
    all: &mut [Vec<Taken<'_>>],
    parked: &[u64],
    patience: &Patience,
) -> Result<()> {
    let tasks = &restore.checkpoint.tree.tasks;
    for (task, taken) in tasks.iter().zip(&mut *all) {
        if let Some(stop) = task.stopped {
            let signal = if is_default(task, stop.signal) { stop.signal.into() } else { SIGSTOP };
            stop_task(task.pid, signal, taken, patience)
                .with_context(|| format!("task {}: stop it again", task.pid))?;
        }
    }
    // Only now: a parent that is stopped itself has not been told of anything.
    for child in tasks.iter().skip(1) {
        let Some(stop) = child.stopped else { continue };
        let Some(index) = tasks.iter().position(|task| task.pid == child.ppid) else { continue };
        tell(&tasks[index], child.pid, stop.told, &mut all[index], parked[index], patience)
            .with_context(|| format!("task {}: tell it of a stop", child.ppid))?;
    }
    Ok(())
}

/// Whether a signal stops a task: SIGTSTP and its like can be handled. A program that does so takes the handler away for the moment of
/// the stop, but another thread may have set it again.
fn is_default(task: &Task, signal: u8) -> bool {
    task.actions.iter().all(|action| action.signal != signal || action.handler == Addr(0))
}

fn stop_task(pid: Pid, signal: i32, taken: &mut Vec<Taken<'_>>, patience: &Patience) -> Result<()> {
    let first = taken.remove(0);
    let mut stopped = stop_by(pid, signal, first.stopped, patience)?;
    if stopped.stop() != Stop::Group(signal) {
        // Of its group nobody is left who could continue it: only SIGSTOP stops such a task.
        stopped = stop_by(pid, SIGSTOP, stopped, patience)?;
    }
    taken.insert(0, Taken { stopped, ..first });
    for index in 1..taken.len() {
        let thread = taken.remove(index);
        let stopped = thread.stopped.cont(0)?.wait_stop(patience)?;
        taken.insert(index, Taken { stopped, ..thread });
    }
    match taken.iter().find(|thread| !matches!(thread.stopped.stop(), Stop::Group(_))) {
        Some(thread) => bail!("thread {}: {:?}", thread.record.tid, thread.stopped.stop()),
        None => Ok(()),
    }
}

/// Has a thread take a signal that stops its task.
fn stop_by(pid: Pid, signal: i32, thread: Stopped, patience: &Patience) -> Result<Stopped> {
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGSTOP).context("send SIGSTOP")?;
    // SIGSTOP is the one that cannot be blocked. It is taken for the other one, which must not be blocked then.
    let about_to = thread.cont(0)?.wait_stop(patience)?;
    if about_to.stop() != Stop::Signal(SIGSTOP) {
        bail!("{:?} instead of SIGSTOP", about_to.stop());
    }
    about_to.set_sigmask(!signal_bit(signal))?;
    // If the kernel ignores the signal, the thread is to stop nevertheless.
    about_to.interrupt()?;
    let stopped = about_to.cont(signal)?.wait_stop(patience)?;
    stopped.set_sigmask(u64::MAX)?;
    Ok(stopped)
}

/// Has a parent wait for the stop of its child, if it had, and forget the signal about it, if it has none pending.
fn tell(
    parent: &Task,
    child: Pid,
    told: bool,
    taken: &mut Vec<Taken<'_>>,
    syscall_at: u64,
    patience: &Patience,
) -> Result<()> {
    const P_PID: u64 = 1;
    // WSTOPPED | WNOHANG
    const OPTIONS: u64 = 3;
    let (waitid, sigtimedwait) = ([247, 284], [128, 177]);
    if told {
        let args = [P_PID, u64::from(child.cast_unsigned()), 0, OPTIONS, 0];
        by_thread(taken, 0, |stopped| call(stopped, syscall_at, waitid, &args, patience))?;
    }
    let pends = |queue: &[Pending]| queue.iter().any(|one| one.number() == SIGCHLD);
    if pends(&parent.pending) {
        return Ok(());
    }
    // A thread would take one of its own first.
    let Some(index) = taken.iter().position(|thread| !pends(&thread.record.pending)) else { return Ok(()) };
    let forget = |stopped: Stopped| -> Result<(Stopped, i64)> {
        // The set, and no time at all.
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&signal_bit(SIGCHLD).to_le_bytes());
        let set = stopped.write_below_stack(&bytes)?;
        let no_time = set.offset(8);
        call(stopped, syscall_at, sigtimedwait, &[set.0, 0, no_time.0, 8], patience)
    };
    match by_thread(taken, index, forget)? {
        result if result == i64::from(SIGCHLD) => Ok(()),
        // It ignores the signal, or does not want to hear of stops.
        result if result == -(Errno::EAGAIN as i64) => Ok(()),
        result => bail!("rt_sigtimedwait: {result}"),
    }
}
