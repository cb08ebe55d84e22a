//! Tasks whose threads are held before they are done: those with seccomp.
//!
//! Their filters go in while the credentials are still there that it takes, so everything after that, the takeover included,
//! would be for the filters to judge. Seized with PTRACE_O_SUSPEND_SECCOMP they are not asked until the detach.

use super::Restore;
use crate::ptrace::Seized;
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// The threads that are held, by the index of their task, in the order of its record. They run on.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<usize, Vec<Seized>>);

impl Held {
    /// Takes hold of a task, all of whose threads exist.
    ///
    /// # Errors
    /// If a thread is gone or cannot be seized.
    pub(super) fn hold(&mut self, restore: &Restore<'_>, index: usize) -> Result<()> {
        let task = &restore.checkpoint.tree.tasks[index];
        let seized = task.threads.iter().map(|thread| Seized::seize_for_life_unfiltered(thread.tid));
        let seized: Result<Vec<Seized>, _> = seized.collect();
        self.0.insert(index, seized.with_context(|| format!("task {}: hold it", task.pid))?);
        Ok(())
    }

    /// The threads of a task, if it is held.
    pub(super) fn take(&mut self, index: usize) -> Option<Vec<Seized>> {
        self.0.remove(&index)
    }
}
