//! Waits with a time limit that the kernel continues by restart_syscall(2): what is left of them is kept.
//!
//! A relative sleep, poll or futex wait that is interrupted leaves the time at which it ends in the thread's restart
//! block, which nobody can read. So that it does not start over after a restore, what is left of it is found out at
//! dump, by the best of three ways:
//!
//! - nanosleep and clock_nanosleep with room for the remainder: the kernel has just written it there.
//! - A thread whose wait crr let go on once before carries a note with the end of it ([`note`]).
//! - Otherwise it is the limit it was given less the time it was seen asleep before it was stopped ([`look`]). That
//!   can be too long (if it was interrupted by others before), never too short.
//!
//! Other calls have no restart block: epoll_wait, rt_sigtimedwait, semtimedop, io_getevents. Their limit is in memory that is theirs to read, or in a
//! register that a system call keeps, where compilers take it for what it was; so neither is changed, and they start over with all of it.
//!
//! At restore the thread makes the same call again with what is left, is interrupted, and so gets a restart block of
//! its own ([`resume`]).

mod call;
mod look;
mod note;
pub(crate) mod resume;

pub(crate) use look::Looks;

use crate::proc::{Dir, status};
use crate::ptrace::{Stopped, regs};
use crate::remote::{in_restart_block, number_in_code};
use anyhow::{Context, Result};
use images::Pid;
use nix::time::{ClockId, clock_gettime};
use note::Note;
use std::collections::BTreeMap;

/// An interrupted call that has a restart block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Its number.
    pub(crate) number: u32,
    /// Nanoseconds until it ends; `None` if it has no limit, or starts over with the limit it was given.
    pub(crate) left: Option<u64>,
    /// When it ends, nanoseconds of CLOCK_MONOTONIC, if that clock tells.
    ends: Option<u64>,
}

/// The interrupted calls of a task's threads, by tid.
#[derive(Debug, Default)]
pub(crate) struct Waits(BTreeMap<Pid, Wait>);

impl Waits {
    /// Looks at the threads of a task that has just been stopped.
    pub(crate) fn of(pid: Pid, dir: &Dir, threads: &[Stopped], looks: &Looks) -> Self {
        let found = threads.iter().filter_map(|thread| Some((thread.tid(), find(pid, dir, thread, looks)?)));
        Self(found.collect())
    }

    /// The call that a thread is in.
    pub(crate) fn get(&self, tid: Pid) -> Option<Wait> {
        self.0.get(&tid).copied()
    }

    /// Leaves a note with a thread that is about to go on, for the next dump.
    ///
    /// Best effort: without it the next dump takes the wait for longer than it is.
    pub(crate) fn note(&self, dir: &Dir, thread: &Stopped) {
        if let Some(wait) = self.get(thread.tid()) {
            let _ = leave_note(dir, thread, wait.number, wait.ends);
        }
    }
}

/// The call of a thread; `None` if it is in none that has a restart block, or if it cannot be found out which.
fn find(pid: Pid, dir: &Dir, thread: &Stopped, looks: &Looks) -> Option<Wait> {
    let regs = thread.regs().ok().filter(in_restart_block)?;
    let table = thread.call_table().ok()?;
    let seen = switches(dir, thread).ok().and_then(|switches| looks.before(thread.tid(), switches));
    let shown = regs::low_half(regs::get(&regs, regs::Field::OrigAx));
    let restarted = shown == call::restart_syscall(table);
    let note = thread.note().ok().filter(|_| restarted).and_then(Note::decode);
    let note = note.filter(|note| seen.is_some_and(|seen| note.is_of(seen.switches)));
    let number = match note.and_then(|note| call::number(table, note.kind)) {
        Some(number) => number,
        None if restarted => number_in_code(pid, &regs)?,
        None => shown,
    };
    let args = std::array::from_fn(|n| regs::argument(&regs, table, n));
    let Some(limit) = call::limit(table, number, args) else {
        return Some(Wait { number, left: None, ends: None });
    };
    // Memory that is gone by now can tell nothing.
    let written = limit.read_rest(pid).ok().flatten();
    let noted = note.and_then(|note| note.ends).map(|ends| ends.saturating_sub(looks.taken_at()));
    let measured = || {
        let asleep = seen.map_or(0, |seen| seen.asleep);
        let passed = if limit.runs_on_wall_clock { asleep } else { 0 };
        Some(limit.read(pid).ok().flatten()?.saturating_sub(passed))
    };
    let left = written.or(noted).or_else(measured);
    let ends = left.filter(|_| limit.runs_on_wall_clock).map(|left| looks.taken_at().saturating_add(left));
    Some(Wait { number, left, ends })
}

/// How often a thread gave its processor away by itself. It grows by one for each sleep and each stop.
fn switches(dir: &Dir, thread: &Stopped) -> Result<u64> {
    let mut buffer = Vec::new();
    dir.read_record(&format!("task/{}/status", thread.tid()), &mut buffer).context("read status")?;
    Ok(status::parse(&buffer)?.voluntary_switches)
}

/// Leaves a note about the call that a stopped thread will go on with.
fn leave_note(dir: &Dir, thread: &Stopped, number: u32, ends: Option<u64>) -> Result<()> {
    let mode = regs::mode(&thread.regs()?);
    let switches = switches(dir, thread)?;
    if let Some(kind) = call::kind(mode, number) {
        thread.set_note(Note { kind, ends, switches }.encode())?;
    }
    Ok(())
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let time =
        clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    u64::try_from(time.tv_sec()).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos)
}
