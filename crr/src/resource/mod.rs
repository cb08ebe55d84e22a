//! What a task consists of, one file per resource: how each is observed at dump and put back at restore.

pub(crate) mod aio;
pub mod attribute;
pub(crate) mod bpf;
pub(crate) mod build_id;
pub mod creds;
pub(crate) mod deleted;
pub(crate) mod device;
pub(crate) mod dispatch;
pub(crate) mod event;
pub mod external;
pub(crate) mod fanotify;
pub mod file;
pub(crate) mod group_stop;
pub(crate) mod hugetlb;
pub mod inet;
pub(crate) mod inotify;
pub(crate) mod interface;
pub mod keyring;
pub mod landlock;
pub mod ldt;
pub mod limits;
pub(crate) mod lock;
pub(crate) mod lock_future;
pub mod memory;
pub mod mempolicy;
pub(crate) mod mqueue;
pub mod namespace;
pub(crate) mod netlink;
pub(crate) mod other_name;
pub(crate) mod packet;
pub mod path;
pub(crate) mod pidfd;
pub(crate) mod pins;
pub mod pipe;
pub(crate) mod pkey;
pub(crate) mod program;
pub(crate) mod ring;
pub mod robust;
pub mod rseq;
pub mod seccomp;
pub mod shared_memory;
pub mod sharing;
pub mod signal;
pub mod socket;
pub(crate) mod sysv;
pub mod task;
pub(crate) mod task_file;
pub mod terminal;
pub(crate) mod there;
pub mod thread;
pub mod timer;
pub mod tracees;
pub mod tree;
pub mod unix_socket;
pub(crate) mod vdso;
pub(crate) mod view;
pub(crate) mod wait;
pub mod xstate;
pub mod zombie;

use crate::refusal::Refusals;
use images::Pid;

/// Notes refusals that belong to one task.
#[derive(Debug)]
pub(crate) struct Refuse<'a> {
    refusals: &'a mut Refusals,
    pid: Pid,
    name: &'a str,
}

impl<'a> Refuse<'a> {
    pub(crate) fn new(refusals: &'a mut Refusals, pid: Pid, name: &'a str) -> Self {
        Self { refusals, pid, name }
    }

    /// The task.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The name of the task.
    pub(crate) fn name(&self) -> &str {
        self.name
    }

    /// Something that stands in the way, with no way out.
    pub(crate) fn because(&mut self, object: impl Into<String>, reason: impl Into<String>) {
        self.refusals.task((self.pid, self.name), object, reason, None);
    }

    /// Something that stands in the way, with a way out.
    pub(crate) fn with_hint(&mut self, object: impl Into<String>, reason: impl Into<String>, hint: &str) {
        self.refusals.task((self.pid, self.name), object, reason, Some(hint));
    }
}
