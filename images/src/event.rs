//! Files that tell events (eventfd, timerfd, signalfd, epoll), and who is told by a signal what happens to a file.

use crate::id::{DescriptionId, Pid};
use serde::{Deserialize, Serialize};

/// An eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eventfd {
    /// Its counter.
    pub count: u64,
    /// EFD_SEMAPHORE: a read takes 1 instead of all.
    pub semaphore: bool,
}

/// A timerfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timerfd {
    /// CLOCK_*.
    pub clock: u32,
    /// The flags of the last timerfd_settime(2).
    pub flags: u32,
    /// Nanoseconds between expirations, 0 if there is one only.
    pub interval_ns: u64,
    /// When it expires next: nanoseconds from now, with TFD_TIMER_ABSTIME in `flags` nanoseconds of its clock; 0 if it
    /// does not.
    pub next_ns: u64,
    /// Expirations not yet read.
    pub ticks: u64,
}

/// An epoll.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoll {
    /// It may have events that nobody was told of yet.
    pub pending: bool,
    /// What it watches, by number.
    pub watches: alloc::vec::Vec<Watch>,
}

/// What an epoll watches. The number and the description together are what the kernel knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The number under which the file was added, whatever that means to whom by now.
    pub fd: u32,
    /// The file.
    pub description: DescriptionId,
    /// EPOLL*: events and flags; no event, not even EPOLLERR and EPOLLHUP, once a one-shot watch has told one.
    pub events: u32,
    /// The caller's.
    pub data: u64,
}

/// Who is told by a signal what happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// What `owner` is: F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: u32,
    /// A thread, task or process group of the tree; 0 for nobody.
    pub owner: Pid,
    /// The user who said so, real and effective: who may be told depends on it.
    pub uids: (u32, u32),
    /// F_SETSIG; 0 for SIGIO without details.
    pub signal: u32,
}
