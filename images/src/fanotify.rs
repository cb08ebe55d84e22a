//! fanotify: what each group is told, and of what.

use crate::id::PathId;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a fanotify descriptor is open on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fanotify {
    /// FAN_*: what fanotify_init(2) was given.
    pub flags: u32,
    /// O_*: how files are opened that are told of.
    pub event_flags: u32,
    /// It is told who caused an event, whoever that is: a group that was made with CAP_SYS_ADMIN.
    pub privileged: bool,
    /// Events had not been read yet. The restored group tells so, by FAN_Q_OVERFLOW.
    pub lost: bool,
    /// By age, the oldest first.
    pub marks: Vec<Mark>,
}

/// What a group is told events of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// How much of it.
    pub scope: Scope,
    /// The very file of that name, be it a symbolic link; of a mount or file system, where it is mounted.
    pub path: PathId,
    /// FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE, FAN_MARK_IGNORE.
    pub flags: u32,
    /// FAN_*: events that are told.
    pub mask: u32,
    /// Events that are not told, although another mark would have them told.
    pub ignored: u32,
}

/// How much is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// A file or directory.
    Inode,
    /// All that is reached by a mount.
    Mount,
    /// All of a file system.
    FileSystem,
}
