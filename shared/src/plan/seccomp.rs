//! What seccomp allows each thread, as ops.
//!
//! Installing a filter needs CAP_SYS_ADMIN or no_new_privs, and a thread may have neither any more: so filters come before
//! credentials, and the coordinator has taken hold of every thread of the task before, with PTRACE_O_SUSPEND_SECCOMP: what
//! is left to do is not for the filters to judge, nor is the takeover. They act from the moment the threads are let go.

use crate::op::{self, Op};
use alloc::vec::Vec;
use images::seccomp::{Filter, Seccomp};
use images::task::Task;
use images::thread::Thread;

const PR_SET_SECCOMP: u32 = 22;
const SECCOMP_MODE_STRICT: u64 = 1;
const FILTER_FLAG_LOG: u32 = 1 << 1;
const FILTER_FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// The filters that a task needs, one after the other, and where each begins.
#[derive(Debug)]
pub(super) struct Programs<'a> {
    all: &'a [Filter],
    at: Vec<Option<u32>>,
    bytes: Vec<u8>,
}

impl<'a> Programs<'a> {
    /// Those of `task`, out of all of the tree.
    #[allow(clippy::cast_possible_truncation)] // As many bytes as the image has, which is limited to 4 GiB.
    pub(super) fn of(task: &Task, all: &'a [Filter]) -> Self {
        let mut this = Self { all, at: alloc::vec![None; all.len()], bytes: Vec::new() };
        for thread in &task.threads {
            let Seccomp::Filters { filters, .. } = &thread.seccomp else { continue };
            for id in filters {
                let index = id.0 as usize;
                if this.at[index].is_none() {
                    this.at[index] = Some(this.bytes.len() as u32);
                    this.bytes.extend_from_slice(&all[index].program);
                }
            }
        }
        this
    }

    /// The first op of the leader: where all threads find them.
    pub(super) fn op(&self, ops: &mut Vec<u8>) {
        if !self.bytes.is_empty() {
            op::push(ops, &Op::Programs(&self.bytes));
        }
    }

    /// Appends what makes a thread of `task` obey its filters, right before its credentials.
    pub(super) fn install(&self, ops: &mut Vec<u8>, task: &Task, thread: &Thread) {
        if !is_held(task) {
            return;
        }
        op::push(ops, &Op::Hold);
        match &thread.seccomp {
            Seccomp::Off => {}
            Seccomp::Strict => {
                op::push(ops, &Op::Prctl { option: PR_SET_SECCOMP, args: [SECCOMP_MODE_STRICT, 0, 0] });
            }
            Seccomp::Filters { filters, speculation } => {
                for id in filters {
                    let filter = &self.all[id.0 as usize];
                    let log = if filter.log { FILTER_FLAG_LOG } else { 0 };
                    let speculate = if *speculation { FILTER_FLAG_SPEC_ALLOW } else { 0 };
                    let Some(at) = self.at[id.0 as usize] else { continue };
                    #[allow(clippy::cast_possible_truncation)] // At most 32 KiB.
                    let len = filter.program.len() as u32;
                    op::push(ops, &Op::Filter { flags: log | speculate, at, len });
                }
            }
        }
    }
}

/// Whether the coordinator takes hold of a task's threads before they are done.
#[must_use]
pub fn is_held(task: &Task) -> bool {
    task.threads.iter().any(|thread| thread.seccomp != Seccomp::Off)
}
