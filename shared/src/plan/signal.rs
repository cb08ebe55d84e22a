//! Handlers, pending signals and interval timers as ops.

use crate::abi::siginfo::{SigInfo, to_ia32};
use crate::op::{self, Op};
use alloc::vec::Vec;
use images::Abi;
use images::signal::{Action, IntervalTimer, Pending};

/// Appends the handlers. Exec left every action at its default.
pub fn actions(list: &mut Vec<u8>, actions: &[Action]) {
    for action in actions {
        let Action { signal, handler, flags, restorer, mask } = *action;
        op::push(list, &Op::Action { signal, handler: handler.0, flags, restorer: restorer.0, mask });
    }
}

/// Appends pending signals in their order. All signals are blocked while ops run, so they stay pending.
pub fn pending(list: &mut Vec<u8>, abi: Abi, pending: &[Pending], thread: bool) {
    for signal in pending {
        let Ok(info) = SigInfo::try_from(signal.info.as_slice()) else {
            continue; // Ruled out when the images were checked.
        };
        let info = match abi {
            Abi::X86_64 => info,
            Abi::Ia32 => to_ia32(&info),
        };
        op::push(list, &Op::Queue { thread, info: &info });
    }
}

/// Appends the interval timers that are armed.
///
/// A real timer with an interval and no time left has expired, and starts again when its SIGALRM is taken
/// (`dequeue_signal`, kernel/signal.c). That state cannot be set, but it is reached by expiring at once.
pub fn timers(list: &mut Vec<u8>, timers: &[IntervalTimer; 3]) {
    const ITIMER_REAL: u32 = 0;
    for (which, timer) in (0u32..).zip(timers) {
        if timer.value_us != 0 || timer.interval_us != 0 {
            let IntervalTimer { interval_us, value_us } = *timer;
            let value_us = if which == ITIMER_REAL { value_us.max(1) } else { value_us };
            op::push(list, &Op::IntervalTimer { which, interval_us, value_us });
        }
    }
}
