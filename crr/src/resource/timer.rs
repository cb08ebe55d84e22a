//! POSIX timers: listed by `/proc/PID/timers`, their times asked of the task.

use super::Refuse;
use crate::proc::Dir;
use crate::proc::timers::{self, Shown};
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Batch, Buffer, Call, Executor, Handle, Reply};
use anyhow::{Context, Result};
use images::Pid;
use images::signal::Pending;
use images::task::Task;
use images::timer::Timer;

const SIGEV_THREAD_ID: i32 = 4;
/// Bytes of `struct __kernel_itimerspec`, in both ABIs.
const TIMES_SIZE: usize = 32;
/// Timers that one batch asks about.
const AT_ONCE: usize = 50;

/// What is shown of the timers of a task.
pub(crate) fn read(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Vec<Shown>> {
    dir.read("timers", buffer).context("list POSIX timers (needs CONFIG_CHECKPOINT_RESTORE)")?;
    Ok(timers::parse(buffer)?)
}

/// The timers of a task, without their times. Those that cannot be restored are refused.
pub(crate) fn dump_timers(
    pid: Pid,
    dir: &Dir,
    shown: Vec<Shown>,
    refuse: &mut Refuse<'_>,
) -> Result<Vec<Timer>> {
    let threads = if shown.is_empty() { Vec::new() } else { dir.threads(pid)? };
    for timer in &shown {
        let object = || format!("POSIX timer {}", timer.id);
        match owner(timer.clock) {
            Some(owner) if owner == 0 || owner == pid || threads.contains(&owner) => {}
            Some(owner) => {
                let reason = format!("measures the processor time of {owner}, which is not of its task");
                refuse.with_hint(object(), reason, DELETE);
            }
            None => refuse.with_hint(object(), format!("goes by clock {}, a device", timer.clock), DELETE),
        }
        if timer.notify & SIGEV_THREAD_ID != 0 && !threads.contains(&timer.pid) {
            refuse.with_hint(object(), "signals a thread that has ended", DELETE);
        }
    }
    Ok(shown.into_iter().map(record).collect())
}

const DELETE: &str = "have the program delete it (timer_delete) before the dump";

/// Whose processor time a clock counts, 0 for no one else's than the caller's or for a clock of the system; `None` for the
/// clock of a device. Encoding: include/linux/posix-timers_types.h.
fn owner(clock: i32) -> Option<Pid> {
    const CLOCKFD: i32 = 3;
    match clock {
        0.. => Some(0),
        _ if clock & 7 == CLOCKFD => None,
        _ => Some(!(clock >> 3)),
    }
}

fn record(shown: Shown) -> Timer {
    let Shown { id, signal, value, notify, pid, clock } = shown;
    let thread = if notify & SIGEV_THREAD_ID != 0 { pid } else { 0 };
    Timer { id, clock, notify, thread, signal, value, interval_ns: 0, left_ns: 0, fired: false, overrun: 0 }
}

/// Has the task tell the times of its timers.
pub(crate) fn ask_times(
    executor: &Executor,
    deputy: &mut Stopped,
    timers: &mut [Timer],
    patience: &Patience,
) -> Result<()> {
    for timers in timers.chunks_mut(AT_ONCE) {
        let mut batch = executor.batch(deputy)?;
        let asked: Vec<Ask> = timers.iter().map(|timer| Ask::new(&mut batch, timer.id)).collect();
        let reply = executor.run(deputy, &batch, patience)?;
        for (timer, ask) in timers.iter_mut().zip(asked) {
            ask.read(&reply, timer).with_context(|| format!("ask POSIX timer {}", timer.id))?;
        }
    }
    Ok(())
}

/// The part of a batch that asks about one timer.
struct Ask {
    times: (Handle, Buffer),
    overrun: Handle,
}

impl Ask {
    fn new(batch: &mut Batch, id: i32) -> Self {
        let id = Arg::Value(u64::from(id.cast_unsigned()));
        let times = batch.buffer(TIMES_SIZE);
        Self {
            times: (batch.call(Call::TimerGettime, &[id, Arg::Out(times)]), times),
            overrun: batch.call(Call::TimerGetoverrun, &[id]),
        }
    }

    fn read(&self, reply: &Reply, timer: &mut Timer) -> Result<()> {
        reply.result(self.times.0)?;
        let nanoseconds = |at| {
            let seconds = reply.u64(self.times.1, at);
            seconds.saturating_mul(1_000_000_000).saturating_add(reply.u64(self.times.1, at + 8))
        };
        (timer.interval_ns, timer.left_ns) = (nanoseconds(0), nanoseconds(16));
        timer.overrun = u32::try_from(reply.result(self.overrun)?).unwrap_or(0);
        Ok(())
    }
}

/// Takes the signals of timers out of the queues: they come back when the timers are set, and only so do the timers go
/// on when the signals are taken.
pub(crate) fn take_signals(task: &mut Task) {
    let Task { timers, pending, threads, .. } = task;
    let mut take = |queue: &mut Vec<Pending>| {
        queue.retain(|signal| match timers.iter_mut().find(|timer| is_of(&signal.info, timer)) {
            Some(timer) => {
                timer.fired = true;
                false
            }
            None => true,
        });
    };
    take(pending);
    for thread in threads {
        take(&mut thread.pending);
    }
}

/// Whether a siginfo comes from a timer: number, code, timer id, value.
fn is_of(info: &[u8], timer: &Timer) -> bool {
    const SI_TIMER: i32 = -2;
    const SIGEV_NONE: i32 = 1;
    let int = |at: usize| info.get(at..).and_then(<[u8]>::first_chunk).map(|word| i32::from_le_bytes(*word));
    let value = info.get(24..).and_then(<[u8]>::first_chunk).map(|word| u64::from_le_bytes(*word));
    timer.notify != SIGEV_NONE
        && (int(0), int(8), int(16)) == (Some(timer.signal), Some(SI_TIMER), Some(timer.id))
        && value == Some(timer.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_of_processor_time_tell_whose() {
        assert_eq!(owner(1), Some(0));
        assert_eq!(owner(-6), Some(0));
        // MAKE_PROCESS_CPUCLOCK(1234, CPUCLOCK_SCHED), MAKE_THREAD_CPUCLOCK of the same.
        assert_eq!(owner(!1234 << 3 | 2), Some(1234));
        assert_eq!(owner(!1234 << 3 | 6), Some(1234));
        assert_eq!(owner(!5 << 3 | 3), None);
    }

    #[test]
    fn a_signal_is_known_by_its_timer() {
        let shown = Shown { id: 3, signal: 40, value: 0x1_0000_0007, notify: 0, pid: 9, clock: 1 };
        let timer = record(shown);
        let mut info = [0u8; 128];
        for (at, value) in [(0, 40i32), (8, -2), (16, 3), (24, 7), (28, 1)] {
            info[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        assert!(is_of(&info, &timer));
        assert!(!is_of(&info, &Timer { id: 4, ..timer }));
        assert!(!is_of(&info, &Timer { notify: 1, ..timer }));
        info[8] = 0xff;
        assert!(!is_of(&info, &timer));
    }
}
