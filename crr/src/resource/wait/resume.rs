//! Restore: giving a thread the restart block of the call that it was dumped in.
//!
//! The thread makes the call again, at the system call instruction in the hole, with the arguments it was given but
//! for the time limit, which is what was left. An interrupt is asked for on entry, so it sleeps no moment: the call
//! notes in the restart block when it ends, and answers -ERESTART_RESTARTBLOCK. With that answer in its own registers
//! the kernel continues it by restart_syscall(2). If it has ended already, what it answers is the answer.

use super::{call, leave_note};
use crate::proc::Dir;
use crate::ptrace::Stopped;
use crate::ptrace::regs::{self, Field};
use crate::remote::in_restart_block;
use anyhow::Result;
use images::Pid;
use images::thread::{Regs, Thread};

/// Restart codes of include/linux/errno.h: -ERESTARTSYS to -ERESTART_RESTARTBLOCK.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;
const ERESTARTNOINTR: i64 = -513;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Sets a parked thread up for its call, at a system call instruction of its task's ABI. False if it has none to continue.
pub(crate) fn set_up(syscall_at: u64, record: &Thread, stopped: &Stopped) -> Result<bool> {
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

/// Registers with which the kernel continues the call that was interrupted. `answer` is what that answered which
/// [`set_up`] had it make.
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

/// Notes for the next dump what a thread goes on with. `answer` is as for [`registers`], and `entered` when it was given (CLOCK_MONOTONIC).
pub(crate) fn note(
    pid: Pid,
    record: &Thread,
    (answer, entered): (Option<i64>, u64),
    stopped: &Stopped,
) -> Result<()> {
    if answer != Some(ERESTART_RESTARTBLOCK) {
        return Ok(());
    }
    let mode = regs::mode(&record.regs);
    let number = regs::low_half(regs::get(&record.regs, Field::OrigAx));
    let args = std::array::from_fn(|n| regs::get(&record.regs, Field::Arg(n)));
    let counts = call::limit(mode, number, args).is_some_and(|limit| limit.runs_on_wall_clock);
    let ends = record.time_left_ns.filter(|_| counts).map(|left| entered.saturating_add(left));
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
