//! What a task does that is cloned by the program of another one, where a forked child of the coordinator would be
//! ordinary 64-bit code.

use super::Slot;
use serde::{Deserialize, Serialize};

/// One instruction on the way of a task into the world.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Birth<'a> {
    /// clone3 of a task with this id, which follows the ops inside and parks.
    Task {
        /// Its pid.
        pid: i32,
        /// Its parent: the caller, or with CLONE_PARENT the caller's.
        parent: i32,
        /// CLONE_*.
        flags: u64,
        /// The signal that tells its parent of its end; unused with CLONE_PARENT.
        exit_signal: u32,
        /// Which of the stacks in the hole it uses, from 0.
        stack: u32,
        /// Its own ops.
        ops: &'a [u8],
    },
    /// Become leader of a session or a group, then count as one who would be there by now.
    Lead {
        /// setsid.
        session: bool,
        /// setpgid to its own group.
        group: bool,
        /// The terminal that is to control the session; its group is in the foreground then.
        terminal: Option<Slot>,
    },
    /// Go to a process group, once all leaders are there.
    Group {
        /// The group.
        pgid: i32,
        /// How many come to [`crate::proto::Gathering::Led`].
        led: u32,
        /// How many come to [`crate::proto::Gathering::Cloned`].
        cloned: u32,
    },
    /// Put a working file under a number of the task, without close-on-exec.
    Place {
        /// The file.
        file: Slot,
        /// The number.
        fd: u32,
    },
    /// Take close-on-exec off a file that the task has from the one that cloned it.
    Keep(u32),
    /// Close a file that the task has from the one that cloned it.
    Close(u32),
    /// Change root to a directory.
    Root(Slot),
    /// Change to a directory.
    Directory(Slot),
    /// umask.
    Umask(u32),
    /// The file table has several users: the working files are closed by the last of them.
    Table {
        /// The word that counts those who are done.
        word: u32,
        /// How many there are.
        users: u32,
    },
    /// Wait until this many others have come to [`Birth::AwaitMapped`]: what they clone copies the address space, which
    /// has to hold no more than the hole until then.
    AwaitMates {
        /// The word that counts them.
        word: u32,
        /// How many.
        tasks: u32,
    },
    /// The address space, which others wait for, is complete: tell by this word.
    Mapped(u32),
    /// Count itself in this word, and wait until the owner of the address space tells by it.
    AwaitMapped(u32),
    /// Exec a program that restores a task of its own accord, with its socket.
    Exec {
        /// The program.
        program: Slot,
        /// The socket.
        socket: Slot,
    },
}
