//! inotify: what each group of watches watches.

use crate::id::PathId;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What an inotify descriptor is open on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inotify {
    /// Events had not been read yet. The restored group tells so, by IN_Q_OVERFLOW.
    pub lost: bool,
    /// The number that the next watch gets.
    pub next: u32,
    /// By age, the oldest first.
    pub watches: Vec<FileWatch>,
}

/// A watch of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileWatch {
    /// Its number (watch descriptor), from 1 on.
    pub wd: u32,
    /// What is watched: the very file of that name, be it a symbolic link.
    pub path: PathId,
    /// IN_*: events, IN_EXCL_UNLINK, IN_ONESHOT.
    pub mask: u32,
}
