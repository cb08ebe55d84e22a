//! The pipes of a tree, being collected, those with names included.

use super::{Object, Ours, contents};
use crate::refusal::Refusals;
use crate::resource::external::Key;
use crate::resource::file::O_ASYNC;
use crate::resource::unix_socket::Holder;
use crate::sys::pipe as sys;
use anyhow::{Context, Result};
use images::pipe::{Fifo, Pipe};
use images::{DescriptionId, PathId};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;
const O_WRONLY: u32 = 1;

/// Pipes found so far.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    records: Vec<Pipe>,
    /// In the same order.
    found: Vec<Found>,
    by_inode: HashMap<(u64, u64), u32>,
    reader: contents::Reader,
}

/// What is known of a pipe beside its record.
#[derive(Debug)]
struct Found {
    object: Object,
    /// Who has it.
    holder: Holder,
    key: Option<Key>,
    /// Its contents have been read.
    read: bool,
    written: bool,
    /// Somebody is told by a signal of what happens to it.
    signals: bool,
    /// The ends of a named one for reading alone, or else one for writing: copies of the same descriptions.
    readers: Vec<(DescriptionId, OwnedFd)>,
    writer: Option<OwnedFd>,
}

/// One description of a pipe.
pub(crate) struct End<'a> {
    pub(crate) id: DescriptionId,
    pub(crate) copy: BorrowedFd<'a>,
    pub(crate) stat: &'a FileStat,
    pub(crate) flags: u32,
    /// Its name, if it has one.
    pub(crate) path: Option<PathId>,
}

impl Pipes {
    /// The number of the pipe that this is an end of; `ours` tells who has it, and by what it could stay outside. Its contents are read when the first
    /// read end turns up.
    pub(crate) fn add(&mut self, end: End<'_>, ours: impl FnOnce() -> (Holder, Option<Key>)) -> Result<u32> {
        let key = (end.stat.st_dev, end.stat.st_ino);
        let id = match self.by_inode.get(&key) {
            Some(&id) => id,
            None => {
                let id = u32::try_from(self.records.len()).context("too many pipes")?;
                self.records.push(record(&end)?);
                self.found.push(Found::new(&end, ours()));
                self.by_inode.insert(key, id);
                id
            }
        };
        let index = usize::try_from(id).context("pipe id")?;
        let (record, found) = (&mut self.records[index], &mut self.found[index]);
        let access = end.flags & O_ACCMODE;
        if access != O_WRONLY && !std::mem::replace(&mut found.read, true) {
            self.reader.dump(end.copy, record)?;
        }
        found.written |= access != O_RDONLY;
        found.signals |= end.flags & O_ASYNC != 0;
        if end.path.is_some() {
            let copy = end.copy.try_clone_to_owned().context("duplicate an end of a named pipe")?;
            if access == O_RDONLY {
                found.readers.push((end.id, copy));
            } else {
                found.writer = Some(copy);
            }
        }
        Ok(id)
    }

    /// Completes what takes all ends to know: what is in a named pipe that nobody has open for reading, and what its readers have seen.
    pub(crate) fn finish(&mut self, refusals: &mut Refusals) -> Result<()> {
        for (record, found) in self.records.iter_mut().zip(&self.found) {
            let Some(fifo) = &mut record.fifo else { continue };
            let finished = if found.written {
                Ok(())
            } else {
                found.readers.iter().try_for_each(|(id, reader)| {
                    if !is_hung_up(reader)? {
                        fifo.unpaired.push(*id);
                    }
                    Ok(())
                })
            };
            finished
                .and_then(|()| found.read_unread(&mut self.reader, record, refusals))
                .context(found.holder.object.clone())?;
        }
        Ok(())
    }

    /// All of them, with somebody in the tree who has each.
    pub(crate) fn objects(&self) -> impl Iterator<Item = (Object, Ours<'_>)> {
        self.found.iter().map(|found| (found.object, Ours { holder: &found.holder, key: found.key }))
    }

    /// All records.
    pub(crate) fn into_records(self) -> Vec<Pipe> {
        self.records
    }
}

impl Found {
    fn new(end: &End<'_>, (holder, key): (Holder, Option<Key>)) -> Self {
        let object = match end.path {
            Some(_) => Object::Fifo(end.stat.st_dev, end.stat.st_ino),
            None => Object::Pipe(end.stat.st_ino),
        };
        Self {
            object,
            holder,
            key,
            read: false,
            written: false,
            signals: false,
            readers: Vec::new(),
            writer: None,
        }
    }

    /// What is in a named pipe that is open for writing alone is for who opens it next. To look at it, crr opens it for a moment. Who
    /// waits for a signal from it would get one then (pipe_release(), fs/pipe.c).
    fn read_unread(
        &self,
        contents: &mut contents::Reader,
        record: &mut Pipe,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let Some(writer) = self.writer.as_ref().filter(|_| !self.read) else { return Ok(()) };
        if sys::readable_bytes(writer.as_fd()).context("ask what is in it")? == 0 {
            return Ok(());
        }
        if self.signals {
            let reason = "holds what nobody has it open to read, and has signal-driven I/O (O_ASYNC) on, which looking would set off";
            let hint = "have the program take O_ASYNC off, or open it for reading, before the dump";
            refusals.task((self.holder.pid, &self.holder.name), &self.holder.object, reason, Some(hint));
            return Ok(());
        }
        let name = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let reader = nix::fcntl::open(name.as_str(), flags, Mode::empty()).context("open it for reading")?;
        contents.dump(reader.as_fd(), record)
    }
}

fn record(end: &End<'_>) -> Result<Pipe> {
    Ok(Pipe {
        ino: end.stat.st_ino,
        capacity: sys::capacity(end.copy).context("read the capacity of a pipe")?,
        fifo: end.path.map(|path| Fifo { path, unpaired: Vec::new() }),
        ..Pipe::default()
    })
}

/// Whether poll(2) shows that there was a writer, and there is none any more (pipe_poll(), fs/pipe.c).
fn is_hung_up(reader: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).context("poll")?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}
