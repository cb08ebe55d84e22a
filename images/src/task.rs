//! The process tree: every task with what belongs to it as a whole.

use crate::attribute::TaskAttributes;
use crate::file::FdEntry;
use crate::id::{Abi, PathId, Pid};
use crate::lock::Lock;
use crate::seccomp::Filter;
use crate::sharing::Shares;
use crate::signal::{Action, IntervalTimer, Pending};
use crate::sysv::Ipc;
use crate::thread::{Thread, UserDesc};
use crate::timer::Timer;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The payload of `tree.img`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// Parents stand before their children; the first is the root of the tree.
    pub tasks: Vec<Task>,
    /// Session and process group that the root shares with a shell outside of the tree (`--shell-job`).
    pub shell_job: Option<ShellJob>,
    /// Tasks that have ended, and that their parents have not waited for, each parent's in the order it has them.
    pub zombies: Vec<Zombie>,
    /// Programs of seccomp, each once.
    pub filters: Vec<Filter>,
    /// What it uses of System V IPC beside memory.
    pub ipc: Ipc,
}

/// What a tree dumped with `--shell-job` borrowed from the shell that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellJob {
    /// The session, led by a task outside of the tree.
    pub sid: Pid,
    /// The root's process group.
    pub pgid: Pid,
}

/// What is left of a task that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    /// Its pid.
    pub pid: Pid,
    /// Its parent, a living task of the tree.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// `comm`, at most 15 bytes.
    #[serde(serialize_with = "crate::readable::text")]
    pub comm: Vec<u8>,
    /// What its parent will see.
    pub end: End,
    /// Real, effective, saved and file-system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and file-system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A task that a signal has stopped, with all its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStop {
    /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
    pub signal: u8,
    /// The parent has been told by wait(2).
    pub told: bool,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By exit(2) with this code.
    Exit(u8),
    /// By this signal, without a core dump.
    Killed(u8),
}

/// A task (thread group).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its pid.
    pub pid: Pid,
    /// Its parent; for the root, a task outside of the tree.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// The signal that tells its parent of its end; 0 for none.
    pub exit_signal: u8,
    /// What it has in common with an earlier task; the fields that describe that are empty here, or the same.
    pub shares: Shares,
    /// What kind of memory exec gave it.
    pub abi: Abi,
    /// `/proc/PID/exe`.
    pub exe: PathId,
    /// Current directory.
    pub cwd: PathId,
    /// Root directory.
    pub root: PathId,
    /// File mode creation mask.
    pub umask: u32,
    /// `personality(2)` of the leader, and of each thread that has no other.
    pub personality: u32,
    /// PR_GET_DUMPABLE: 0 or 1.
    pub dumpable: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: u32,
    /// `/proc/PID/loginuid`, the user who once logged in; `u32::MAX` if nobody has, or where the kernel does not audit.
    pub login_uid: u32,
    /// ARCH_GET_XCOMP_PERM: state components the task may use; 0 where the kernel has no such call.
    pub xcomp_permission: u64,
    /// Settings of the address space and the like.
    pub attributes: TaskAttributes,
    /// Resource limits in the order of `RLIMIT_*`: soft and hard, `u64::MAX` for none.
    pub rlimits: Vec<(u64, u64)>,
    /// All actions other than plain SIG_DFL.
    pub actions: Vec<Action>,
    /// Signals pending for the task as a whole, oldest first.
    pub pending: Vec<Pending>,
    /// Whether it is stopped.
    pub stopped: Option<GroupStop>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub interval_timers: [IntervalTimer; 3],
    /// POSIX timers, by rising number.
    pub timers: Vec<Timer>,
    /// Open files, by rising number.
    pub fds: Vec<FdEntry>,
    /// File locks that this task takes.
    pub locks: Vec<Lock>,
    /// Local descriptor table: its entries in use by rising number; an empty one where all are empty, none without a table.
    pub ldt: Vec<UserDesc>,
    /// The leader stands first, also one that has ended while others go on.
    pub threads: Vec<Thread>,
}

impl Task {
    /// What personality(2) tells in each of its threads.
    pub fn personalities(&self) -> impl Iterator<Item = u32> {
        self.threads.iter().map(|thread| thread.personality.unwrap_or(self.personality))
    }
}
