//! Process file descriptors: of tasks and threads of the tree, and of processes that are gone.
//!
//! fdinfo names the process of one (`pidfd_show_fdinfo`, fs/pidfs.c). That it is of the tree is known when all tasks have been looked
//! at. Restore opens them when all tasks exist ([`crate::restore::late`]). Every process that is gone looks the same but for how it
//! ended, so that one which is forked for this, and waited for, takes its place.

use super::Refuse;
use super::path::CLOSE;
use super::zombie;
use crate::proc::event as shown;
use crate::proc::tasks::comm_of;
use crate::refusal::Refusals;
use crate::sys::pidfd::{self as sys, NONBLOCK, THREAD};
use crate::sys::{process, wait};
use anyhow::{Context, Result, ensure};
use images::Pid;
use images::late::Process;
use images::task::{End, Task, Zombie};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};

/// The way out for those of a process that is not in the tree.
const OUTSIDE: &str = "dump a tree that holds it, or have the program close it before the dump";

/// Whether a link of `/proc/PID/fd` is that of a pidfd.
pub(crate) fn is_one(link: &[u8]) -> bool {
    // On pidfs since Linux 6.9, where early versions number them in the link.
    link == b"anon_inode:[pidfd]" || link.starts_with(b"pidfd:[")
}

/// One that refers to a process which has not been waited for.
#[derive(Debug)]
struct Living {
    task: (Pid, String),
    object: String,
    pid: Pid,
    /// It refers to a thread (PIDFD_THREAD).
    thread: bool,
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Living>);

impl Table {
    /// The process that one refers to, by fdinfo; `None` when it was refused.
    pub(crate) fn add(
        &mut self,
        (object, flags, ino): (String, u32, u64),
        text: &[u8],
        copy: BorrowedFd<'_>,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Process>> {
        match shown::pidfd(text)? {
            -1 => Ok(gone(copy, &object, refuse)?.map(|end| Process::Gone { ino, end })),
            0 => {
                refuse.with_hint(object, "of a process in another pid namespace", CLOSE);
                Ok(None)
            }
            pid => {
                let task = (refuse.pid(), refuse.name().to_owned());
                self.0.push(Living { task, object, pid, thread: flags & THREAD != 0 });
                Ok(Some(Process::InTree(pid)))
            }
        }
    }

    /// Refuses those whose process is not in the tree.
    pub(crate) fn refuse_outsiders(&self, tasks: &[Task], zombies: &[Zombie], refusals: &mut Refusals) {
        if self.0.is_empty() {
            return;
        }
        let leaders = tasks.iter().map(|task| task.pid).chain(zombies.iter().map(|zombie| zombie.pid));
        let leaders: HashSet<Pid> = leaders.collect();
        let threads = tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid);
        let threads: HashSet<Pid> = threads.collect();
        for Living { task, object, pid, thread } in &self.0 {
            let known = leaders.contains(pid) || *thread && threads.contains(pid);
            if !known {
                let reason = format!("of task {pid} ({}), outside of the tree", comm_of(*pid));
                refusals.task((task.0, &task.1), object, reason, Some(OUTSIDE));
            }
        }
    }
}

/// How a process ended that has been waited for, where the kernel tells; `None` when it was refused.
fn gone(copy: BorrowedFd<'_>, object: &str, refuse: &mut Refuse<'_>) -> Result<Option<Option<End>>> {
    let Some(status) = sys::exit_status(copy).context("PIDFD_GET_INFO")? else { return Ok(Some(None)) };
    Ok(match zombie::end(status) {
        Ok(end) => Some(Some(end)),
        Err(reason) => {
            refuse.with_hint(object, format!("of a process that is gone: {reason}"), CLOSE);
            None
        }
    })
}

/// Processes that take the places of those that are gone: one for each, whose descriptors are then of the same one again. They have
/// ended, and wait to be waited for.
#[derive(Debug, Default)]
pub(crate) struct Gone(BTreeMap<u64, (Pid, End)>);

impl Gone {
    fn process(&mut self, ino: u64, end: Option<End>) -> Result<Pid> {
        if let Some(&(pid, _)) = self.0.get(&ino) {
            return Ok(pid);
        }
        let end = end.unwrap_or(End::Exit(0));
        let Some(pid) = process::fork(0).context("fork")? else {
            zombie::die(end);
            process::exit(1)
        };
        self.0.insert(ino, (pid, end));
        Ok(pid)
    }

    /// Waits for all of them, after which they are gone.
    ///
    /// # Errors
    /// If one did not end as it should.
    pub(crate) fn finish(self) -> Result<()> {
        for (pid, end) in self.0.into_values() {
            let status = loop {
                match wait::wait(pid, true) {
                    Err(Errno::EINTR) => {}
                    status => break status.context("wait for a process in the place of one that is gone")?,
                }
            };
            let ended = status.and_then(|status| zombie::end(status.cast_unsigned()).ok());
            ensure!(
                ended == Some(end),
                "task {pid}, in the place of one that is gone, ended otherwise: {status:?}"
            );
        }
        Ok(())
    }
}

/// Opens one again, now that its process exists.
///
/// # Errors
/// As pidfd_open(2), with the process.
pub(crate) fn open(process: Process, flags: u32, gone: &mut Gone) -> Result<OwnedFd> {
    let pid = match process {
        Process::InTree(pid) => pid,
        Process::Gone { ino, end } => {
            gone.process(ino, end).context("a process in the place of one that is gone")?
        }
    };
    let opened = sys::open_with(pid, flags & (THREAD | NONBLOCK));
    let opened = opened.with_context(|| format!("open a pidfd of task {pid}"))?;
    let flags = OFlag::from_bits_retain(flags.cast_signed());
    fcntl(&opened, FcntlArg::F_SETFL(flags)).context("set the flags of a pidfd")?;
    Ok(opened)
}
