//! A look at sleeping threads before the tree is stopped: how long each has been asleep.
//!
//! Stopping a thread wakes it, so this must come before. `se.exec_start` of `/proc/PID/task/TID/sched` is then the
//! moment at which it went to sleep, on the clock of the processor it last ran on. That clock leaves out the time
//! that interrupts and the hypervisor took, and each processor has its own; so crr runs on the same processor for
//! a moment and compares its own. What it finds is never more than the time that really went by.

use super::{call, now};
use crate::proc::{Dir, decimal, hex, sched, stat};
use crate::sys::sched::{get_affinity, set_affinity};
use images::{Abi, Pid};
use std::collections::BTreeMap;

/// What was seen of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Nanoseconds since it last went to sleep, at least.
    pub(super) asleep: u64,
    /// Voluntary context switches.
    pub(super) switches: u64,
}

/// The threads of a tree that slept in a call with a restart block.
#[derive(Debug)]
pub(crate) struct Looks {
    /// CLOCK_MONOTONIC before the first of them is stopped, nanoseconds.
    taken_at: u64,
    seen: BTreeMap<Pid, Seen>,
}

impl Looks {
    /// Looks at the threads of these tasks. What cannot be seen is left out: its waits are then taken for longer than
    /// they are.
    pub(crate) fn take(tasks: &[Pid]) -> Self {
        let mut clocks = Clocks::default();
        let mut seen = BTreeMap::new();
        let mut buffer = Vec::new();
        for (pid, dir) in tasks.iter().filter_map(|&pid| Some((pid, Dir::task(pid).ok()?))) {
            for tid in dir.threads(pid).unwrap_or_default() {
                seen.extend(look(&dir, tid, &mut clocks, &mut buffer).map(|seen| (tid, seen)));
            }
        }
        Self { taken_at: now(), seen }
    }

    /// The moment up to which the sleeps were counted, nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn taken_at(&self) -> u64 {
        self.taken_at
    }

    /// What was seen of a thread that has now, stopped, so many voluntary switches: nothing if it did anything else in
    /// between than go on sleeping and stop.
    pub(super) fn before(&self, tid: Pid, switches: u64) -> Option<Seen> {
        self.seen.get(&tid).copied().filter(|seen| seen.switches + 1 == switches)
    }
}

fn look(dir: &Dir, tid: Pid, clocks: &mut Clocks, buffer: &mut Vec<u8>) -> Option<Seen> {
    dir.read_record(&format!("task/{tid}/syscall"), buffer).ok()?;
    if !in_wait(buffer) {
        return None;
    }
    dir.read_record(&format!("task/{tid}/stat"), buffer).ok()?;
    let processor = stat::parse(buffer).ok()?.processor;
    let now = clocks.now(processor);
    dir.read_record(&format!("task/{tid}/sched"), buffer).ok()?;
    let sched = sched::parse(buffer).ok()?;
    // A processor's clock and CLOCK_MONOTONIC can run apart by 500 parts in a million (NTP): less is on the safe side.
    let asleep = now.unwrap_or(0).saturating_sub(sched.exec_start);
    Some(Seen { asleep: asleep - asleep.div_ceil(1000), switches: sched.voluntary_switches })
}

/// Whether `/proc/PID/task/TID/syscall` shows a call with a restart block: number, six arguments, stack pointer and
/// instruction pointer.
fn in_wait(text: &[u8]) -> bool {
    let mut words = text.trim_ascii().split(|&byte| byte == b' ');
    let Some(number) = words.next().and_then(decimal::<u32>) else { return false };
    let numbers: Vec<u64> = words.map_while(|word| word.strip_prefix(b"0x").and_then(hex)).collect();
    let [args @ .., sp, ip] = numbers.as_slice() else { return false };
    let Ok(args) = <[u64; 6]>::try_from(args) else { return false };
    // The mode is not shown. Where this takes a 64-bit thread below 4 GiB for a 32-bit one, nothing is lost but the look.
    let mode = if (sp | ip) >> 32 == 0 { Abi::Ia32 } else { Abi::X86_64 };
    number == call::restart_syscall(mode) || call::limit(mode, number, args).is_some()
}

/// The run-queue clocks of the processors, read by running on each.
#[derive(Debug, Default)]
struct Clocks {
    /// By processor, if it can be had.
    known: BTreeMap<usize, Option<u64>>,
}

impl Clocks {
    /// The clock of a processor, or a little less: it is read once, and grows by whole ticks.
    fn now(&mut self, processor: usize) -> Option<u64> {
        *self.known.entry(processor).or_insert_with(|| read_clock(processor))
    }
}

fn read_clock(processor: usize) -> Option<u64> {
    let before = get_affinity(0).ok()?;
    let mut only = vec![0u64; processor / 64 + 1];
    only[processor / 64] = 1 << (processor % 64);
    set_affinity(0, &only).ok()?;
    let text = std::fs::read("/proc/thread-self/sched");
    set_affinity(0, &before).ok()?;
    Some(sched::parse(&text.ok()?).ok()?.exec_start)
}
