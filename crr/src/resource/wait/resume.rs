//! Restore: giving a thread the restart block of the call that it was dumped in.
//!
//! The thread makes the call again, at the system call instruction in the hole, with the arguments it was given but
//! for the time limit, which is what was left. An interrupt is asked for on entry, so it sleeps no moment: the call
//! notes in the restart block when it ends, and answers -ERESTART_RESTARTBLOCK. With that answer in its own registers
//! the kernel continues it by restart_syscall(2). If it has ended already, what it answers is the answer.

use super::{call, leave_note, now};
use crate::proc::Dir;
use crate::ptrace::regs::{self, Field};
use crate::ptrace::{Patience, Seized, Stopped};
use crate::remote::in_restart_block;
use anyhow::{Context, Result};
use images::Pid;
use images::thread::{Regs, Thread};

/// Restart codes of include/linux/errno.h: -ERESTARTSYS to -ERESTART_RESTARTBLOCK.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;
const ERESTARTNOINTR: i64 = -513;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// A thread that may be on its way into its call.
enum Stage {
    Still(Stopped),
    Entering(Seized),
}

/// Has the parked threads of a task enter their calls, all at the same time. `syscall_at` is a system call instruction
/// of the task's ABI. With each comes what its call answered, if it made one.
pub(crate) fn enter(
    syscall_at: u64,
    threads: Vec<(&Thread, Stopped)>,
    patience: &Patience,
) -> Result<Vec<(Stopped, Option<i64>)>> {
    let mut stages = Vec::with_capacity(threads.len());
    for (record, stopped) in threads {
        let prepared = prepare(syscall_at, record, &stopped);
        stages.push(if prepared.with_context(|| format!("thread {}: continue its wait", record.tid))? {
            Stage::Entering(stopped.cont_to_syscall(0)?)
        } else {
            Stage::Still(stopped)
        });
    }
    let mut leaving = Vec::with_capacity(stages.len());
    for stage in stages {
        leaving.push(match stage {
            Stage::Entering(thread) => {
                let entered = thread.wait_stop(patience)?;
                entered.interrupt()?;
                Stage::Entering(entered.cont(0)?)
            }
            still @ Stage::Still(_) => still,
        });
    }
    let mut done = Vec::with_capacity(leaving.len());
    for stage in leaving {
        done.push(match stage {
            Stage::Entering(thread) => {
                let stopped = thread.wait_stop(patience)?.settle(patience)?;
                let answer = regs::get_signed(&stopped.regs()?, Field::Ax);
                (stopped, Some(answer))
            }
            Stage::Still(stopped) => (stopped, None),
        });
    }
    Ok(done)
}

/// Sets a parked thread up for its call. False if it has none to continue.
fn prepare(syscall_at: u64, record: &Thread, stopped: &Stopped) -> Result<bool> {
    let Some(left) = record.time_left_ns.filter(|_| in_restart_block(&record.regs)) else { return Ok(false) };
    let mut now = stopped.regs()?;
    let mode = regs::mode(&record.regs);
    if mode != regs::mode(&now) {
        return Ok(false);
    }
    let number = regs::low_half(regs::get(&record.regs, Field::OrigAx));
    let args = std::array::from_fn(|n| regs::get(&record.regs, Field::Arg(n)));
    let Some(limit) = call::limit(mode, number, args) else { return Ok(false) };
    let time = limit.form.encode(left);
    let value = if time.is_empty() {
        // Milliseconds, as poll takes them.
        left.div_ceil(1_000_000).min(0x7fff_ffff)
    } else {
        stopped.write_below_stack(&time)?.0
    };
    for (n, arg) in args.into_iter().enumerate() {
        regs::set(&mut now, Field::Arg(n), if n == limit.argument { value } else { arg });
    }
    regs::set(&mut now, Field::Ip, syscall_at);
    regs::set(&mut now, Field::Ax, u64::from(number));
    regs::set(&mut now, Field::OrigAx, u64::MAX);
    stopped.set_regs(&now)?;
    Ok(true)
}

/// Registers with which the kernel continues the call that was interrupted. `answer` is that of [`enter`].
///
/// A thread that did not enter its call has no restart block: the call starts over with the arguments it was given. Left
/// as it is, it would fail with EINTR.
pub(crate) fn registers(record: &Regs, answer: Option<i64>) -> Regs {
    let mut out = record.clone();
    if !in_restart_block(record) {
        return out;
    }
    let result = match answer {
        Some(ERESTART_RESTARTBLOCK) => return out,
        Some(ended) if !RESTARTS.contains(&ended) => {
            // Nothing is left to restart.
            regs::set(&mut out, Field::OrigAx, u64::MAX);
            ended
        }
        _ => ERESTARTNOINTR,
    };
    regs::set(&mut out, Field::Ax, result.cast_unsigned());
    out
}

/// Notes for the next dump what a thread goes on with. `answer` is that of [`enter`].
pub(crate) fn note(pid: Pid, record: &Thread, answer: Option<i64>, stopped: &Stopped) -> Result<()> {
    if answer != Some(ERESTART_RESTARTBLOCK) {
        return Ok(());
    }
    let mode = regs::mode(&record.regs);
    let number = regs::low_half(regs::get(&record.regs, Field::OrigAx));
    let args = std::array::from_fn(|n| regs::get(&record.regs, Field::Arg(n)));
    let counts = call::limit(mode, number, args).is_some_and(|limit| limit.runs_on_wall_clock);
    let ends = record.time_left_ns.filter(|_| counts).map(|left| now().saturating_add(left));
    leave_note(&Dir::task(pid)?, stopped, number, ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::regs::tests::in_mode;
    use images::Abi;

    fn interrupted(result: i64) -> Regs {
        let mut regs = in_mode(Abi::X86_64);
        regs::set(&mut regs, Field::OrigAx, 7);
        regs::set(&mut regs, Field::Ax, result.cast_unsigned());
        regs
    }

    #[test]
    fn what_a_call_answered_decides_how_it_goes_on() {
        let outcome = |result, answer| {
            let out = registers(&interrupted(result), answer);
            (regs::get_signed(&out, Field::OrigAx), regs::get_signed(&out, Field::Ax))
        };
        assert_eq!(outcome(-516, Some(-516)), (7, -516));
        assert_eq!(outcome(-516, Some(1)), (-1, 1));
        assert_eq!(outcome(-516, Some(-110)), (-1, -110));
        assert_eq!(outcome(-516, None), (7, -513));
        assert_eq!(outcome(-512, None), (7, -512));
        assert_eq!(outcome(0, None), (7, 0));
    }
}
