//! POSIX timers: what timer_create(2) and timer_settime(2) made.

use crate::id::Pid;
use serde::{Deserialize, Serialize};

/// One timer of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Its number, as timer_create answered.
    pub id: i32,
    /// CLOCK_*; negative for the processor time of a task or thread.
    pub clock: i32,
    /// SIGEV_*: 0 a signal, 1 nothing, 2 as 0 (SIGEV_THREAD); with 4 the signal goes to `thread` alone.
    pub notify: i32,
    /// The thread that is told; 0 for the task.
    pub thread: Pid,
    /// Which signal.
    pub signal: i32,
    /// What comes with it (`sigev_value`).
    pub value: u64,
    /// Reload value, nanoseconds; 0 for one shot.
    pub interval_ns: u64,
    /// Time left, nanoseconds; 0 when disarmed.
    pub left_ns: u64,
    /// Its signal is pending. Not among the pending signals of the task or thread: it comes when the timer is set.
    pub fired: bool,
    /// What timer_getoverrun answers.
    pub overrun: u32,
}
