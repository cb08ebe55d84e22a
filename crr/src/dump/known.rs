//! What is known of a task before it is looked at, because another one that was looked at shares it.

use super::collect::task::Areas;
use super::freeze::FrozenTask;
use crate::resource::sharing::holder;
use anyhow::Result;
use images::memory::Space;
use images::sharing::Shares;
use images::task::Task;
use images::thread::Regs;
use images::{Addr, Pid};
use std::collections::BTreeMap;

/// What came of the address space of a task that others are in too.
#[derive(Debug, Default)]
struct Outcome {
    /// Areas of killed dumps that are still there.
    leftovers: Vec<Addr>,
    /// Its task could make system calls.
    asked: bool,
}

/// Address spaces with several tasks in them, by the task that was looked at first.
#[derive(Debug, Default)]
pub(super) struct Mates {
    /// Where the threads of the others stand.
    regs: BTreeMap<Pid, Vec<Regs>>,
    outcomes: BTreeMap<Pid, Outcome>,
}

impl Mates {
    pub(super) fn of(tasks: &[FrozenTask], shares: &[Shares]) -> Result<Self> {
        let mut this = Self::default();
        for (task, shares) in tasks.iter().zip(shares) {
            if let Some(holder) = shares.memory {
                let regs = this.regs.entry(holder).or_default();
                for thread in &task.threads {
                    regs.push(thread.regs()?);
                }
            }
        }
        Ok(this)
    }

    /// Whether a task may make system calls as far as the other tasks in its address space are concerned. That takes
    /// leftovers away, so nobody else may stand in them; and what one could not be asked, no other is.
    pub(super) fn let_ask(&self, pid: Pid, shares: &Shares, stands: impl Fn(&Regs) -> bool) -> bool {
        match shares.memory {
            Some(holder) => self.outcomes.get(&holder).is_some_and(|outcome| outcome.asked),
            None => !self.regs.get(&pid).into_iter().flatten().any(stands),
        }
    }

    /// Notes what came of an address space, if others are in it.
    pub(super) fn note(&mut self, pid: Pid, leftovers: &[Addr], asked: bool) {
        if self.regs.contains_key(&pid) {
            let leftovers = if asked { Vec::new() } else { leftovers.to_vec() };
            self.outcomes.insert(pid, Outcome { leftovers, asked });
        }
    }
}

/// The tasks looked at so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) shares: Shares,
    pub(super) tasks: &'a [Task],
    pub(super) spaces: &'a [Space],
}

impl Known<'_> {
    /// The ABI and areas of a task's address space and its leftovers, if another task is in it. The names are that one's.
    pub(super) fn areas(&self, mates: &Mates) -> Option<Areas> {
        let (task, space) = holder(self.tasks, self.spaces, self.shares.memory)?;
        let leftovers = mates.outcomes.get(&task.pid).map(|outcome| outcome.leftovers.clone());
        Some(Areas {
            abi: Some(task.abi),
            vmas: space.vmas.clone(),
            names: Vec::new(),
            leftovers: leftovers.unwrap_or_default(),
            common: Vec::new(),
            with_policies: None,
        })
    }

    /// The task whose current and root directory a task has.
    pub(super) fn directories(&self) -> Option<&Task> {
        holder(self.tasks, self.tasks, self.shares.directories).map(|(task, _)| task)
    }
}
