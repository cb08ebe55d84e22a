//! Robust lists: the locks that a thread holds and that the kernel marks if it dies.
//!
//! A thread that is dumped does not die, but the kernel cannot know when it is killed after the dump: it would mark the
//! locks in files that are mapped shared, which no image puts back, and wake those who wait for them. So the lists are
//! emptied in the memory of the killed.

use super::Refuse;
use crate::store::Checkpoint;
use crate::sys::vm;
use anyhow::{Context, Result};
use images::memory::{Backing, Vma};
use images::sharing::Object;
use images::task::{Task, Tree};
use images::thread::{RobustList, Thread};
use images::{Abi, Addr, Pid};
use shared::plan::family::holder_of;
use std::collections::BTreeMap;

/// Ranges of one read, UIO_MAXIOV.
const MAX_RANGES: usize = 1024;

/// Refuses lists that begin in a shared file: what happens there to the list happens to that of the image.
pub(crate) fn check(thread: &Thread, vmas: &[Vma], refuse: &mut Refuse<'_>) {
    for (list, _) in lists(thread) {
        let shared = vmas.iter().any(|vma| {
            matches!(vma.backing, Backing::SharedFile(..)) && (vma.start..vma.end).contains(&list.head)
        });
        if shared {
            let object = format!("thread {}: robust list at {}", thread.tid, list.head);
            refuse.with_hint(
                object,
                "begins in a shared file mapping",
                "have the program keep its head in private memory",
            );
        }
    }
}

/// Empties the lists of all threads, which are about to be killed. What cannot be read the kernel cannot follow either.
pub(crate) fn disarm(tree: &Tree) {
    tree.tasks.iter().for_each(disarm_task);
}

/// Which tasks of a checkpoint have a thread that holds locks, or is about to take or release one.
///
/// # Errors
/// If pages cannot be read.
pub(crate) fn holders(checkpoint: &Checkpoint) -> Result<Vec<bool>> {
    let tasks = &checkpoint.tree.tasks;
    let indices: BTreeMap<Pid, usize> = tasks.iter().enumerate().map(|(at, task)| (task.pid, at)).collect();
    let space = |index| {
        indices.get(&holder_of(tasks, index, Object::Memory)).map(|&at| &checkpoint.memory.spaces[at])
    };
    let mut holders = Vec::with_capacity(tasks.len());
    for (index, task) in tasks.iter().enumerate() {
        let space = space(index).context("no task has the record of an address space")?;
        let mut holds = false;
        for (list, abi) in task.threads.iter().flat_map(lists) {
            let mut found = vec![0u8; 3 * word(abi)];
            checkpoint.read_memory(space, list.head, &mut found)?;
            let empty = is_empty(&found, list.head, abi);
            // What was never touched is no list either.
            holds |= !empty && found.iter().any(|&byte| byte != 0);
        }
        holders.push(holds);
    }
    Ok(holders)
}

/// Whether the three words of a `struct robust_list_head` (`list.next`, `futex_offset`, `list_op_pending`) name no lock.
fn is_empty(words: &[u8], head: Addr, abi: Abi) -> bool {
    let word = word(abi);
    words.starts_with(&head.0.to_le_bytes()[..word]) && words.ends_with(&[0; 8][..word])
}

fn disarm_task(task: &Task) {
    let Some(living) = task.threads.iter().find(|thread| thread.exited.is_none()) else { return };
    let heads: Vec<(Addr, Abi)> =
        task.threads.iter().flat_map(lists).map(|(list, abi)| (list.head, abi)).collect();
    for heads in heads.chunks(MAX_RANGES) {
        let ranges: Vec<vm::Remote> =
            heads.iter().map(|&(head, abi)| vm::Remote::new(head, 3 * word(abi))).collect();
        let mut found = vec![0u8; ranges.iter().map(vm::Remote::len).sum()];
        let mut read = vm::read(living.tid, &mut found, &ranges).unwrap_or(0);
        let mut rest = &found[..];
        for &(head, abi) in heads {
            let (list, after) = rest.split_at(3 * word(abi));
            rest = after;
            // The kernel stops at what cannot be read; behind that, each list counts as one that holds a lock.
            let known = read >= list.len();
            read = read.saturating_sub(list.len());
            if !known || !is_empty(list, head, abi) {
                let (next, pending) = (&head.0.to_le_bytes()[..word(abi)], &[0; 8][..word(abi)]);
                let _ = vm::write_all(living.tid, head, next);
                let _ = vm::write_all(living.tid, head.offset(2 * abi.word()), pending);
            }
        }
    }
}

fn word(abi: Abi) -> usize {
    if abi == Abi::X86_64 { 8 } else { 4 }
}

/// The lists of a thread, with the ABI whose words they are made of.
fn lists(thread: &Thread) -> impl Iterator<Item = (RobustList, Abi)> {
    let both = [(thread.robust_list_64, Abi::X86_64), (thread.robust_list_32, Abi::Ia32)];
    both.into_iter().filter_map(|(list, abi)| Some((list?, abi)))
}
