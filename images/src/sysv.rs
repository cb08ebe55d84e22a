//! System V IPC: what a tree uses of it.

use serde::{Deserialize, Serialize};

/// A segment of shared memory (shmget(2)) that a task has attached, as `/proc/sysvipc/shm` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its id, sequence number included.
    pub id: i32,
    /// The key that it was made with, which its name in `maps` shows; 0 (IPC_PRIVATE) for one without.
    pub key: i32,
    /// Permissions, [`Segment::REMOVED`] and [`Segment::LOCKED`].
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

impl Segment {
    /// Goes with the last task that has it, and is not found by its key (SHM_DEST).
    pub const REMOVED: u32 = 0o1000;
    /// Locked in memory (SHM_LOCKED).
    pub const LOCKED: u32 = 0o2000;
}
