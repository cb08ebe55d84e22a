//! POSIX message queues. One that has a name outlives the tasks: it stays on the host with all that is in it, and is opened again by name. What is
//! gone by the restore, and what has no name any more (mq_unlink), is made again.
//!
//! What is in one can only be seen by taking it out ([`contents`]), which takes that nobody else has it open. A registration
//! for a signal (mq_notify) ends with its task; its value is shown nowhere, so it cannot be made again.

mod contents;
pub(crate) mod recreate;

use super::Refuse;
use super::path::CLOSE;
use super::pipe::Holders;
use crate::proc::tasks::comm_of;
use crate::refusal::Refusals;
use crate::sys::mqueue as sys;
use anyhow::{Context, Result};
use images::Pid;
use images::mqueue::MessageQueue;
use images::task::Task;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Ways out.
const TAKE_BACK: &str = "have the program take it back (mq_notify with no event) before the dump";
const AS_ROOT: &str = "run crr as root";
const DUMP_BOTH: &str = "dump a tree that has both, or have one of them close it";

/// Whether an open file can be a queue: all of them have the same size (FILENT_SIZE, ipc/mqueue.c).
pub(crate) fn may_be_one(stat: &FileStat) -> bool {
    stat.st_size == 80 && super::path::file_type(stat.st_mode) == SFlag::S_IFREG
}

/// Whether it is.
pub(crate) fn is_one(file: BorrowedFd<'_>) -> Result<bool> {
    /// MQUEUE_MAGIC of ipc/mqueue.c.
    const MAGIC: FsType = FsType(0x1980_0202);
    Ok(fstatfs(file).context("fstatfs")?.filesystem_type() == MAGIC)
}

/// A queue of the tree.
#[derive(Debug)]
struct Found {
    record: MessageQueue,
    /// Device and inode.
    file: (u64, u64),
    /// Who has it.
    task: (Pid, String),
    object: String,
    /// Open in both directions, and not to block; `None` where crr may not take messages out.
    queue: Option<OwnedFd>,
    /// The task that is to be told of a message.
    registered: Option<Pid>,
    /// crr may look into it, and nobody outside of the tree has it open, or is told of messages.
    is_own: bool,
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Found>);

impl Table {
    /// The number of its record; `None` when it was refused.
    pub(crate) fn add(
        &mut self,
        (object, link, stat): (String, &[u8], &FileStat),
        copy: BorrowedFd<'_>,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<u32>> {
        let file = (stat.st_dev, stat.st_ino);
        let known = self.0.iter().position(|found| found.file == file);
        let index = match known {
            Some(index) => index,
            None => {
                let unlinked = stat.st_nlink == 0;
                let name = link.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                let name = name.strip_suffix(b" (deleted)").filter(|_| unlinked).unwrap_or(name);
                if !unlinked {
                    let obstacle = match leads_to(name, file)? {
                        Some(true) => None,
                        Some(false) => {
                            Some(("is of another IPC namespace, in which nobody could make it again", CLOSE))
                        }
                        None => Some(("may not be opened by crr", AS_ROOT)),
                    };
                    if let Some((reason, hint)) = obstacle {
                        refuse.with_hint(object, reason, hint);
                        return Ok(None);
                    }
                }
                let [messages, size] = sys::limits(copy).context("mq_getattr")?;
                let record = MessageQueue {
                    name: name.to_vec(),
                    unlinked,
                    mode: stat.st_mode & 0o7777,
                    uid: stat.st_uid,
                    gid: stat.st_gid,
                    messages,
                    size,
                    contents: None,
                };
                let again = |direction| {
                    if_permitted(open_again(copy, direction)).context("open a message queue again")
                };
                let queue = again(OFlag::O_RDWR)?;
                let reader = match &queue {
                    Some(queue) => Some(queue.try_clone()?),
                    // What is in it would end with the tree.
                    None if unlinked => None,
                    None => again(OFlag::O_RDONLY)?,
                };
                let Some(reader) = reader else {
                    refuse.with_hint(object, "may not be looked into by crr", AS_ROOT);
                    return Ok(None);
                };
                let registered = registered(reader).context("read what it shows")?;
                let task = (refuse.pid(), refuse.name().to_owned());
                self.0.push(Found { record, file, task, object, queue, registered, is_own: false });
                self.0.len() - 1
            }
        };
        Ok(Some(u32::try_from(index).context("too many message queues")?))
    }

    /// Finds out who else uses them. Refuses those that are to tell a task of the tree when a message comes, and those without a name that
    /// somebody outside of it has, too.
    pub(crate) fn relate(
        &mut self,
        holders: &mut Holders,
        tree: &HashSet<Pid>,
        tasks: &[Task],
        refusals: &mut Refusals,
    ) -> Result<()> {
        let outside = holders.holders_of(tree, self.0.iter().map(|found| found.file))?;
        for found in &mut self.0 {
            let mut refuse = |reason, hint| {
                refusals.task((found.task.0, &found.task.1), &found.object, reason, Some(hint));
            };
            let mut other = outside.get(&found.file).copied();
            match found.registered {
                Some(owner) if tasks.iter().any(|task| task.pid == owner) => {
                    let reason = format!(
                        "tells task {owner} of a message (mq_notify), with a value that is shown nowhere"
                    );
                    refuse(reason, TAKE_BACK);
                }
                registered => other = other.or(registered),
            }
            found.is_own = other.is_none() && found.registered.is_none() && found.queue.is_some();
            match other {
                Some(pid) if found.record.unlinked => {
                    let reason = format!("also open in task {pid} ({}), outside of the tree", comm_of(pid));
                    refuse(reason, DUMP_BOTH);
                }
                Some(pid) => log::warn!(
                    "{}: process {pid} uses it too: its messages are not recorded, and it has to be there at the restore",
                    found.object
                ),
                None if found.queue.is_none() => log::warn!(
                    "{}: crr may not look into it: its messages are not recorded, and it has to be there at the restore",
                    found.object
                ),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether one is to be looked into that has something in it.
    pub(crate) fn have_messages(&self) -> Result<bool> {
        let own = self.0.iter().filter(|found| found.is_own);
        for queue in own.filter_map(|found| found.queue.as_ref()) {
            if sys::count(queue.as_fd()).context("mq_getattr")? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks what is in those that are the tree's alone, if nothing else is in the way of the dump.
    pub(crate) fn look_into(&mut self) -> Result<()> {
        for found in self.0.iter_mut().filter(|found| found.is_own) {
            let Some(queue) = &found.queue else { continue };
            let looked = contents::look(queue.as_fd(), found.record.size);
            found.record.contents = Some(looked.with_context(|| found.object.clone())?);
        }
        Ok(())
    }

    pub(crate) fn into_records(self) -> Vec<MessageQueue> {
        self.0.into_iter().map(|found| found.record).collect()
    }
}

/// Whether the name of a queue leads to this file, if crr may open it.
fn leads_to(name: &[u8], file: (u64, u64)) -> Result<Option<bool>> {
    match open_by_name(name, libc::O_RDONLY) {
        Err(Errno::ENOENT) => Ok(Some(false)),
        found => {
            let Some(found) = if_permitted(found).context("mq_open")? else { return Ok(None) };
            let there = fstat(&found).context("fstat")?;
            Ok(Some((there.st_dev, there.st_ino) == file))
        }
    }
}

/// What was opened; nothing where crr may not do so, without privileges.
fn if_permitted(opened: nix::Result<OwnedFd>) -> nix::Result<Option<OwnedFd>> {
    match opened {
        Err(Errno::EACCES | Errno::EPERM) => Ok(None),
        opened => opened.map(Some),
    }
}

/// The same queue, also where it has no name.
fn open_again(copy: BorrowedFd<'_>, direction: OFlag) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let flags = direction | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(path.as_str(), flags, Mode::empty())
}

/// The task that is to be told of a message.
fn registered(queue: OwnedFd) -> Result<Option<Pid>> {
    let mut text = [0; 128];
    let len = File::from(queue).read_at(&mut text, 0)?;
    Ok(registered_in(&text[..len]))
}

/// The same, by what a queue shows.
fn registered_in(text: &[u8]) -> Option<Pid> {
    let words = text.split(|byte| byte.is_ascii_whitespace());
    let pid = words.filter_map(|word| word.strip_prefix(b"NOTIFY_PID:")).next()?;
    crate::proc::decimal(pid).filter(|&pid| pid != 0)
}

fn open_by_name(name: &[u8], flags: i32) -> nix::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::ENOENT)?;
    sys::open(&name, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_text() {
        let text = b"QSIZE:12         NOTIFY:0     SIGNO:10    NOTIFY_PID:4711  \n";
        assert_eq!(registered_in(text), Some(4711));
        assert_eq!(registered_in(b"QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"), None);
    }
}
