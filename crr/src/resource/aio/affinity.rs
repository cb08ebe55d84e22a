//! The processors of a thread that is taken from one to the other for a moment.

use crate::sys::sched;
use anyhow::{Context, Result};
use images::Pid;

/// What a thread may run on, from outside.
#[derive(Debug)]
pub(super) struct Affinity {
    tid: Pid,
    allowed: Vec<u64>,
    moved: bool,
}

const WORD: usize = u64::BITS as usize;

impl Affinity {
    pub(super) fn of(tid: Pid) -> Result<Self> {
        let allowed = sched::get_affinity(tid).context("read CPU affinity")?;
        Ok(Self { tid, allowed, moved: false })
    }

    /// The processors that it may run on.
    pub(super) fn processors(&self) -> Vec<usize> {
        let bits = 0..self.allowed.len() * WORD;
        bits.filter(|bit| self.allowed[bit / WORD] & 1 << (bit % WORD) != 0).collect()
    }

    /// Has it run on one of them. False if the kernel does not move it.
    pub(super) fn pin(&mut self, processor: usize) -> bool {
        let mut mask = vec![0; self.allowed.len()];
        mask[processor / WORD] = 1 << (processor % WORD);
        let pinned = sched::set_affinity(self.tid, &mask).is_ok();
        self.moved |= pinned;
        pinned
    }

    /// Lets it run where it did. What it has asked for is not told, only what is left of that by its cpuset: who may run wherever that allows
    /// has asked for nothing less, as far as can be seen.
    pub(super) fn put_back(&mut self) -> Result<()> {
        if !self.moved {
            return Ok(());
        }
        let all = vec![u64::MAX; self.allowed.len()];
        sched::set_affinity(self.tid, &all).context("set CPU affinity")?;
        if sched::get_affinity(self.tid).context("read CPU affinity")? != self.allowed {
            sched::set_affinity(self.tid, &self.allowed).context("set CPU affinity")?;
        }
        self.moved = false;
        Ok(())
    }
}
