//! Settings of a task or a thread as ops: only those that differ from what fork and exec pass on.

use super::Machine;
use crate::op::{self, Op};
use alloc::vec::Vec;
use images::attribute::{MemoryPolicy, TaskAttributes, ThreadAttributes};
use images::memory::{Space, vm};
use images::task::Task;

const PR_SET_TSC: u32 = 26;
const PR_MCE_KILL: u32 = 33;
const PR_SET_THP_DISABLE: u32 = 41;
const PR_SET_SPECULATION_CTRL: u32 = 53;
const PR_SET_IO_FLUSHER: u32 = 57;
const PR_SET_MDWE: u32 = 65;
const PR_SET_MEMORY_MERGE: u32 = 67;
const PR_TIMER_CREATE_RESTORE_IDS: u32 = 77;
/// PR_SPEC_PRCTL: the control can be set for a thread.
pub const SPECULATION_SETTABLE: u32 = 1;

fn prctl(list: &mut Vec<u8>, option: u32, args: [u64; 2]) {
    op::push(list, &Op::Prctl { option, args: [args[0], args[1], 0] });
}

/// What decides about pages that are still to come, so it precedes all memory.
pub fn before_memory(list: &mut Vec<u8>, (have, have_policy): (&TaskAttributes, &MemoryPolicy), task: &Task) {
    let want = &task.attributes;
    if have.thp_disable != want.thp_disable {
        let on = want.thp_disable & 1;
        prctl(list, PR_SET_THP_DISABLE, [u64::from(on), u64::from(want.thp_disable & !on)]);
    }
    if have.memory_merge != want.memory_merge {
        prctl(list, PR_SET_MEMORY_MERGE, [u64::from(want.memory_merge), 0]);
    }
    policy(list, have_policy, &task.threads[0].attributes.policy);
}

/// Where all memory is mergeable, areas that are not were taken out by the task.
pub fn after_memory(list: &mut Vec<u8>, task: &Task, space: &Space) {
    const MADV_UNMERGEABLE: u32 = 13;
    for vma in &space.vmas {
        if task.attributes.memory_merge && vma.backing.is_private() && vma.flags & vm::MERGEABLE == 0 {
            let (addr, len) = (vma.start.0, vma.end.0 - vma.start.0);
            op::push(list, &Op::Advise { addr, len, advice: MADV_UNMERGEABLE });
        }
    }
}

/// Registrations for barriers, while there is one thread: with more, each waits for a grace period
/// (sync_runqueues_membarrier_state() of kernel/sched/membarrier.c).
pub fn before_threads(list: &mut Vec<u8>, task: &Task) {
    let registrations = task.attributes.membarrier;
    for bit in (0..u32::BITS).filter(|bit| registrations & (1 << bit) != 0) {
        op::push(list, &Op::Membarrier(1 << bit));
    }
}

/// All mappings are made. Locking those to come needs a privilege that the task may not have, or a limit that it is
/// beyond.
pub fn before_limits(list: &mut Vec<u8>, task: &Task) {
    if task.attributes.lock_future != 0 {
        op::push(list, &Op::LockFuture(task.attributes.lock_future));
    }
}

/// What would stand in the restorer's way.
pub fn last(list: &mut Vec<u8>, machine: &Machine, task: &Task) {
    if task.attributes.timer_restore_ids {
        prctl(list, PR_TIMER_CREATE_RESTORE_IDS, [1, 0]);
    }
    if task.attributes.mdwe != machine.task_attributes.mdwe {
        prctl(list, PR_SET_MDWE, [u64::from(task.attributes.mdwe), 0]);
    }
}

/// Settings of the thread that follows these ops.
pub fn thread(list: &mut Vec<u8>, have: &ThreadAttributes, want: &ThreadAttributes) {
    const PR_MCE_KILL_SET: u64 = 1;
    if have.tsc != want.tsc {
        prctl(list, PR_SET_TSC, [u64::from(want.tsc), 0]);
    }
    if have.mce_kill != want.mce_kill {
        prctl(list, PR_MCE_KILL, [PR_MCE_KILL_SET, u64::from(want.mce_kill)]);
    }
    if have.io_flusher != want.io_flusher {
        prctl(list, PR_SET_IO_FLUSHER, [u64::from(want.io_flusher), 0]);
    }
    for (which, (have, want)) in (0u64..).zip(have.speculation.into_iter().zip(want.speculation)) {
        // Where the kernel decides for all threads, it did so at the dump or does so now.
        if have != want && have & want & SPECULATION_SETTABLE != 0 {
            prctl(list, PR_SET_SPECULATION_CTRL, [which, u64::from(want & !SPECULATION_SETTABLE)]);
        }
    }
}

/// The policy of the thread that follows these ops.
pub fn policy(list: &mut Vec<u8>, have: &MemoryPolicy, want: &MemoryPolicy) {
    if have != want {
        push_policy(list, None, want);
    }
}

/// The policies of areas, before there are pages in them.
pub fn area_policies(list: &mut Vec<u8>, space: &Space) {
    for area in &space.policies {
        push_policy(list, Some((area.start.0, area.end.0 - area.start.0)), &area.policy);
    }
}

fn push_policy(list: &mut Vec<u8>, range: Option<(u64, u64)>, policy: &MemoryPolicy) {
    let nodes: Vec<u8> = policy.nodes.iter().flat_map(|word| word.to_le_bytes()).collect();
    op::push(list, &Op::MemoryPolicy { range, mode: policy.mode, nodes: &nodes });
}
