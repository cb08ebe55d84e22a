//! Files that stand for tasks, so that they can only be opened once these exist: process file descriptors, and what `/proc/PID` holds.

use crate::id::Pid;
use crate::task::End;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The process or thread that a pidfd refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Process {
    /// A task, a zombie or, with PIDFD_THREAD, any thread of the tree.
    InTree(Pid),
    /// One that has ended and was waited for.
    Gone {
        /// The inode of the pidfd at dump: the same for all that refer to it.
        ino: u64,
        /// How it ended, where the kernel tells (PIDFD_INFO_EXIT, Linux 6.15).
        end: Option<End>,
    },
}

/// A file or directory of `/proc/PID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// Where the procfs is mounted that it was opened in: `/proc`, or another one that shows the same tasks.
    #[serde(serialize_with = "crate::readable::text")]
    pub procfs: Vec<u8>,
    /// A task, a zombie or a thread of the tree.
    pub pid: Pid,
    /// Its name in that directory; empty for the directory itself.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
}
