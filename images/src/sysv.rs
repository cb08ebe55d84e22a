//! System V IPC: what a tree uses of it.

use crate::id::Pid;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The semaphores and message queues that a tree uses. They outlive its tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    /// The inode of the IPC namespace that they were in, by which they are known again.
    pub namespace: u64,
    /// By rising id.
    pub semaphore_sets: Vec<SemaphoreSet>,
    /// By rising id.
    pub queues: Vec<Queue>,
    /// Lists that have something to be undone, by rising thread.
    pub undo_lists: Vec<UndoList>,
    /// Threads with a list of their own, apart from that of their task: rising.
    pub apart: Vec<Pid>,
}

/// What the kernel is to add to semaphores when the last user of the list ends (SEM_UNDO). The threads of a task have one in common, but
/// those that are [`Ipc::apart`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoList {
    /// The task whose it is.
    pub task: Pid,
    /// A living thread of it that has this list.
    pub thread: Pid,
    /// By rising set and semaphore.
    pub sums: Vec<UndoSum>,
}

/// What is to be added to one semaphore (`semadj`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSum {
    /// The id of its set, one of [`Ipc::semaphore_sets`].
    pub set: i32,
    /// Its number in there.
    pub semaphore: u16,
    /// Not 0.
    pub sum: i16,
}

/// A segment of shared memory, a set of semaphores or a message queue, as `/proc/sysvipc` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its id, sequence number included.
    pub id: i32,
    /// The key that it was made with, which the name of a segment in `maps` shows; 0 (IPC_PRIVATE) for one without.
    pub key: i32,
    /// Permissions; of a segment, [`Object::REMOVED`] and [`Object::LOCKED`] too.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    /// The group of who made it.
    pub creator_gid: u32,
}

impl Object {
    /// Of a segment: goes with the last task that has it, and is not found by its key (SHM_DEST).
    pub const REMOVED: u32 = 0o1000;
    /// Of a segment: locked in memory (SHM_LOCKED).
    pub const LOCKED: u32 = 0o2000;
}

/// A set of semaphores (semget(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSet {
    /// What it is.
    pub object: Object,
    /// Somebody has operated on it: `sem_otime` is not 0, by which programs tell that its values have been set.
    pub was_used: bool,
    /// At least one.
    pub semaphores: Vec<Semaphore>,
}

/// One of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    /// Its value.
    pub value: u16,
    /// Who operated on it last, or set it (GETPID); 0 for nobody.
    pub last_user: Pid,
}

/// A message queue (msgget(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// What it is.
    pub object: Object,
    /// Bytes that fit (`msg_qbytes`).
    pub capacity: u64,
    /// Who sent the last message; 0 for nobody.
    pub last_sender: Pid,
    /// Who received the last message; 0 for nobody.
    pub last_receiver: Pid,
    /// The oldest first.
    pub messages: Vec<Message>,
}

/// A message in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its type, above 0.
    pub kind: i64,
    /// Its text.
    #[serde(serialize_with = "crate::readable::text")]
    pub bytes: Vec<u8>,
}
