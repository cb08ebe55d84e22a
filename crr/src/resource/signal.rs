//! Signal actions, pending signals, interval timers and alternate stacks.

use crate::ptrace::{Error, Stopped};
use crate::remote::{Arg, Batch, Buffer, Call, Handle, Reply};
use anyhow::{Context, Result};
use images::Addr;
use images::signal::{Action, AltStack, IntervalTimer, Pending};
use images::task::Task;

const SIGNALS: u8 = 64;
/// Bytes of the kernel's `sigset_t`.
const SIGSET_SIZE: u64 = 8;
/// `struct sigaction` of the kernel: 32 bytes in x86_64, 20 in ia32.
const SIGACTION_ROOM: usize = 32;

/// The part of a batch that asks for signal actions and interval timers of a task.
#[derive(Debug)]
pub(crate) struct AskSignals {
    actions: Vec<(u8, Handle, Buffer)>,
    timers: [(Handle, Buffer); 3],
}

impl AskSignals {
    /// Without actions where they are another task's as well, which was asked for them.
    pub(crate) fn new(batch: &mut Batch, actions: bool) -> Self {
        let actions = (1..=if actions { SIGNALS } else { 0 })
            .map(|signal| {
                let buffer = batch.buffer(SIGACTION_ROOM);
                let number = Arg::Value(u64::from(signal));
                let args = [number, Arg::Value(0), Arg::Out(buffer), Arg::Value(SIGSET_SIZE)];
                (signal, batch.call(Call::RtSigaction, &args), buffer)
            })
            .collect();
        let timers = [0, 1, 2].map(|which| {
            let buffer = batch.buffer(32);
            (batch.call(Call::Getitimer, &[Arg::Value(which), Arg::Out(buffer)]), buffer)
        });
        Self { actions, timers }
    }

    /// All actions other than plain SIG_DFL.
    pub(crate) fn actions(&self, reply: &Reply) -> Result<Vec<Action>> {
        let mut actions = Vec::new();
        for &(signal, handle, buffer) in &self.actions {
            reply.result(handle).with_context(|| format!("ask for the action on signal {signal}"))?;
            // handler, flags, restorer: words; then the mask, aligned to 4 in ia32.
            let mask_at = usize::try_from(reply.abi().word() * 3).unwrap_or(0);
            let action = Action {
                signal,
                handler: Addr(reply.word(buffer, 0)),
                flags: reply.word(buffer, 1),
                restorer: Addr(reply.word(buffer, 2)),
                mask: reply.u64(buffer, mask_at),
            };
            let default = Action { signal, handler: Addr(0), flags: 0, restorer: Addr(0), mask: 0 };
            if action != default {
                actions.push(action);
            }
        }
        Ok(actions)
    }

    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub(crate) fn timers(&self, reply: &Reply) -> Result<[IntervalTimer; 3]> {
        let mut timers = [IntervalTimer::default(); 3];
        for (timer, &(handle, buffer)) in timers.iter_mut().zip(&self.timers) {
            reply.result(handle).context("ask for an interval timer")?;
            let micros = |index| reply.word(buffer, index) * 1_000_000 + reply.word(buffer, index + 1);
            *timer = IntervalTimer { interval_us: micros(0), value_us: micros(2) };
        }
        Ok(timers)
    }
}

/// Room for `stack_t` of either ABI.
pub(crate) const STACK_ROOM: usize = 24;

/// Decodes `stack_t`.
pub(crate) fn altstack(reply: &Reply, buffer: Buffer) -> AltStack {
    const SS_ONSTACK: u32 = 1;
    // x86_64 pads the flags to a word, and in ia32 they are one.
    let flags = crate::ptrace::regs::low_half(reply.word(buffer, 1));
    AltStack { base: Addr(reply.word(buffer, 0)), size: reply.word(buffer, 2), flags: flags & !SS_ONSTACK }
}

/// Signals pending for a thread alone, or for its task (`shared`), oldest first.
fn dump_pending(thread: &Stopped, shared: bool) -> Result<Vec<Pending>, Error> {
    Ok(thread.pending(shared)?.into_iter().map(|info| Pending { info: info.to_vec() }).collect())
}

/// Signals pending for a task as a whole.
pub(crate) fn dump_shared_pending(threads: &[Stopped]) -> Result<Vec<Pending>, Error> {
    threads.first().map_or(Ok(Vec::new()), |deputy| dump_pending(deputy, true))
}

/// Records what is pending in the end, and makes the timers fit it. `task.pending` is what was there before it was asked.
pub(crate) fn complete_pending(threads: &[Stopped], task: &mut Task) -> Result<(), Error> {
    let before = std::mem::replace(&mut task.pending, dump_shared_pending(threads)?);
    for (thread, record) in threads.iter().zip(&mut task.threads) {
        record.pending = dump_pending(thread, false)?;
    }
    expire(&mut task.interval_timers[0], &before, &task.pending);
    Ok(())
}

/// A one-shot ITIMER_REAL whose signal came after it was asked how long it still has is not to fire once more.
fn expire(timer: &mut IntervalTimer, before: &[Pending], after: &[Pending]) {
    let rang = |pending: &[Pending]| pending.iter().any(|one| one.number() == libc::SIGALRM);
    if timer.interval_us == 0 && !rang(before) && rang(after) {
        timer.value_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_rang_meanwhile_is_over() {
        let alarm = [Pending { info: 14i32.to_le_bytes().to_vec() }];
        let other = [Pending { info: 15i32.to_le_bytes().to_vec() }];
        let left = |interval_us, before: &[Pending], after: &[Pending]| {
            let mut timer = IntervalTimer { interval_us, value_us: 7 };
            expire(&mut timer, before, after);
            timer.value_us
        };
        assert_eq!(left(0, &other, &alarm), 0);
        // It rang before, and was set again since.
        assert_eq!(left(0, &alarm, &alarm), 7);
        assert_eq!(left(0, &[], &other), 7);
        assert_eq!(left(9, &[], &alarm), 7);
    }
}
