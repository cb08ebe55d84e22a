//! Tasks that a signal has stopped: by SIGSTOP, or by job control.
//!
//! The kernel keeps a stopped task stopped under a tracer, even while a thread of it makes calls for us, and stops its threads
//! again when they are let go (`__ptrace_unlink`, kernel/ptrace.c), without telling the parent once more. So there is nothing to put back
//! at dump. What is recorded is which signal it was, and whether the parent has been told.

use images::signal::Pending;
use images::task::{GroupStop, Task};
use libc::{SIGCONT, SIGSTOP};

/// The stop of a task. `signal` is what its threads were found stopped by; `untold` what `/proc/PID/stat` shows for the parent
/// to be told of, which is 0 once it was. A SIGSTOP that came only after the tree was seized is made the stop that it would be when
/// the task runs; one of SIGCONT ends what was there.
pub(crate) fn dump(signal: Option<i32>, untold: u32, task: &mut Task) -> Option<GroupStop> {
    let mut queues = vec![&mut task.pending];
    queues.extend(task.threads.iter_mut().map(|thread| &mut thread.pending));
    merge(signal, untold, &mut queues)
}

fn merge(signal: Option<i32>, untold: u32, pending: &mut [&mut Vec<Pending>]) -> Option<GroupStop> {
    let stop = |signal: i32, told| Some(GroupStop { signal: u8::try_from(signal).unwrap_or_default(), told });
    let has = |queue: &&mut Vec<Pending>, signal| queue.iter().any(|one| one.number() == signal);
    // The kernel drops the one when the other comes (prepare_signal(), kernel/signal.c).
    if pending.iter().any(|queue| has(queue, SIGSTOP)) {
        for queue in pending {
            queue.retain(|one| one.number() != SIGSTOP);
        }
        return stop(SIGSTOP, false);
    }
    let continued = pending.iter().any(|queue| has(queue, SIGCONT));
    signal.filter(|_| !continued).and_then(|signal| stop(signal, untold == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(signals: &[i32]) -> Vec<Pending> {
        signals.iter().map(|signal| Pending { info: signal.to_le_bytes().to_vec() }).collect()
    }

    #[test]
    fn a_stop_is_known_by_what_the_parent_has_still_to_be_told() {
        let stop = |signal, untold| merge(signal, untold, &mut []);
        assert_eq!(stop(None, 0), None);
        assert_eq!(stop(Some(20), 20), Some(GroupStop { signal: 20, told: false }));
        assert_eq!(stop(Some(20), 0), Some(GroupStop { signal: 20, told: true }));
    }

    #[test]
    fn signals_that_came_meanwhile_decide() {
        let (mut shared, mut own) = (queue(&[10]), queue(&[12, SIGSTOP]));
        let stop = merge(None, 5, &mut [&mut shared, &mut own]);
        assert_eq!(stop, Some(GroupStop { signal: 19, told: false }));
        assert_eq!((shared, own), (queue(&[10]), queue(&[12])));
        let mut shared = queue(&[SIGCONT]);
        assert_eq!(merge(Some(20), 20, &mut [&mut shared]), None);
        assert_eq!(shared, queue(&[SIGCONT]));
    }
}
