//! POSIX message queues: named objects that outlive the tasks, so they stay on the host with all that is in them, as System V queues
//! do, and are opened again by name.
//!
//! What is in one could only be seen by taking it out. So a queue without a name, which ends with the tree, is refused. A registration
//! for a signal (mq_notify) ends with its task; its value is shown nowhere, so it cannot be made again.

use super::Refuse;
use super::path::CLOSE;
use crate::refusal::{Refusal, Refusals};
use crate::sys::mqueue as sys;
use anyhow::{Context, Result};
use images::Pid;
use images::file::{Description, Files};
use images::mqueue::MessageQueue;
use images::task::Task;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Whence, lseek64};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Ways out.
const TAKE_BACK: &str = "have the program take it back (mq_notify with no event) before the dump";

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

/// Somebody is to be told of a message.
#[derive(Debug)]
struct Registration {
    task: (Pid, String),
    object: String,
    owner: Pid,
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Table {
    records: Vec<MessageQueue>,
    registrations: Vec<Registration>,
}

impl Table {
    /// The number of its record; `None` when it was refused.
    pub(crate) fn add(
        &mut self,
        (object, link, stat): (String, &[u8], &FileStat),
        copy: BorrowedFd<'_>,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<u32>> {
        let name = link.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let found = if stat.st_nlink == 0 { Err(Errno::ENOENT) } else { open_by_name(name, libc::O_RDONLY) };
        let found = match found {
            Err(Errno::ENOENT) => {
                refuse.with_hint(
                    object,
                    "has no name any more (mq_unlink), so its messages would be lost",
                    CLOSE,
                );
                return Ok(None);
            }
            found => found.context("mq_open")?,
        };
        let there = fstat(&found).context("fstat")?;
        if (there.st_dev, there.st_ino) != (stat.st_dev, stat.st_ino) {
            refuse.with_hint(object, "another queue has its name now, so its messages would be lost", CLOSE);
            return Ok(None);
        }
        let [messages, size] = sys::limits(copy).context("mq_getattr")?;
        let mut text = [0; 128];
        let len = File::from(found).read_at(&mut text, 0).context("read what it shows")?;
        if let Some(owner) = registered(&text[..len]) {
            let task = (refuse.pid(), refuse.name().to_owned());
            self.registrations.push(Registration { task, object, owner });
        }
        let record = MessageQueue { name: name.to_vec(), messages, size };
        let known = self.records.iter().position(|known| *known == record);
        let index = known.unwrap_or_else(|| {
            self.records.push(record);
            self.records.len() - 1
        });
        Ok(Some(u32::try_from(index).context("too many message queues")?))
    }

    /// Refuses those that are to tell a task of the tree when a message comes.
    pub(crate) fn refuse_registrations(&self, tasks: &[Task], refusals: &mut Refusals) {
        for Registration { task, object, owner } in &self.registrations {
            if tasks.iter().any(|task| task.pid == *owner) {
                let reason = format!(
                    "tells task {owner} of a message (mq_notify), with a value that is shown nowhere"
                );
                refusals.task((task.0, &task.1), object, reason, Some(TAKE_BACK));
            }
        }
    }

    pub(crate) fn into_records(self) -> Vec<MessageQueue> {
        self.records
    }
}

/// The task that is to be told of a message, by what a queue shows.
fn registered(text: &[u8]) -> Option<Pid> {
    let words = text.split(|byte| byte.is_ascii_whitespace());
    let pid = words.filter_map(|word| word.strip_prefix(b"NOTIFY_PID:")).next()?;
    crate::proc::decimal(pid).filter(|&pid| pid != 0)
}

fn open_by_name(name: &[u8], flags: i32) -> nix::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::ENOENT)?;
    sys::open(&name, flags)
}

/// What keeps queues from being opened again: all are to be there, and as they were made.
pub(crate) fn preflight(refusals: &mut Refusals, files: &Files) {
    for queue in &files.message_queues {
        let MessageQueue { name, messages, size } = queue;
        let limits = open_by_name(name, libc::O_RDONLY).and_then(|found| sys::limits(found.as_fd()));
        let reason = match limits {
            Ok(limits) if limits == [*messages, *size] => continue,
            Ok([messages, size]) => format!("takes {messages} messages of {size} bytes now"),
            Err(errno) => errno.desc().to_lowercase(),
        };
        let object = format!("message queue /{}", String::from_utf8_lossy(name));
        let hint = Some(format!("make it, for {messages} messages of {size} bytes"));
        refusals.push(Refusal { task: None, object, reason, hint });
    }
}

/// Opens a queue again.
///
/// # Errors
/// As mq_open(2), with the name.
pub(crate) fn open(queue: &MessageQueue, description: &Description) -> Result<OwnedFd> {
    let name = String::from_utf8_lossy(&queue.name);
    let opened = open_by_name(&queue.name, description.flags.cast_signed());
    let opened = opened.with_context(|| format!("open message queue /{name} again"))?;
    if description.position != 0 {
        lseek64(&opened, i64::try_from(description.position)?, Whence::SeekSet)
            .with_context(|| format!("message queue /{name}: seek"))?;
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_text() {
        let text = b"QSIZE:12         NOTIFY:0     SIGNO:10    NOTIFY_PID:4711  \n";
        assert_eq!(registered(text), Some(4711));
        assert_eq!(registered(b"QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"), None);
    }
}
