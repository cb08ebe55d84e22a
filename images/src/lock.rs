//! File locks: of tasks (POSIX) and of open file descriptions (flock(2), OFD); leases.

use crate::id::TaskFd;
use serde::{Deserialize, Serialize};

/// A lock, with the task that takes it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// By what call.
    pub kind: LockKind,
    /// Exclusive, or shared with others; of a lease, whether it tells of readers, too.
    pub exclusive: bool,
    /// The descriptor of this task by which it is taken.
    pub fd: TaskFd,
    /// First byte; 0 for the whole file.
    pub start: u64,
    /// Number of bytes; 0 to the end, however far that will be.
    pub len: u64,
}

/// Whose a lock is, and so how it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Of the descriptor table: fcntl(F_SETLK).
    Posix,
    /// Of the description: flock(2).
    Flock,
    /// Of the description: fcntl(F_OFD_SETLK).
    Ofd,
    /// A lease on the whole file, of the description: fcntl(F_SETLEASE).
    Lease,
}
