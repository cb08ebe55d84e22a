//! POSIX timers as ops: made while there is the privilege, set last.

use crate::op::{self, Op};
use alloc::vec::Vec;
use images::task::Task;
use images::timer::Timer;

/// Appends the timers, disarmed. All threads exist. It needs what the limits and credentials of the task may not allow:
/// a place among the queued signals for each (RLIMIT_SIGPENDING), CAP_WAKE_ALARM.
pub fn create(list: &mut Vec<u8>, timers: &[Timer]) {
    for &Timer { id, clock, notify, thread, signal, value, .. } in timers {
        op::push(list, &Op::TimerCreate { id, clock, notify, thread, signal, value });
    }
}

/// Appends the times. From here on the timers run.
pub fn start(list: &mut Vec<u8>, task: &Task) {
    for timer in &task.timers {
        let &Timer { id, clock, interval_ns, left_ns, fired, .. } = timer;
        if left_ns != 0 || fired {
            let taken = taken_overruns(task, timer);
            op::push(list, &Op::TimerStart { id, clock, interval_ns, left_ns, fired, taken });
        }
    }
}

/// Signal and overrun count of a timer whose last signal was taken, where that can be done again: the leader has to get
/// the signal, and no other one of the same number.
fn taken_overruns(task: &Task, timer: &Timer) -> Option<(i32, u32)> {
    let periodic = timer.interval_ns != 0 && timer.left_ns != 0 && timer.left_ns <= timer.interval_ns;
    let number = |info: &[u8]| info.first_chunk().map(|word| i32::from_le_bytes(*word));
    let leader = task.threads.first()?;
    let mut queued = task.pending.iter().chain(&leader.pending);
    let alone = !queued.any(|pending| number(&pending.info) == Some(timer.signal));
    let fired = task.timers.iter().any(|other| other.fired && other.signal == timer.signal);
    let for_leader = timer.thread == 0 || timer.thread == leader.tid;
    let again = timer.overrun != 0 && periodic && alone && !fired && for_leader && timer.clock >= 0;
    again.then_some((timer.signal, timer.overrun))
}
