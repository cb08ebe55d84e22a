//! `/proc`: pure parsers, one file each, and the thin layer that opens and reads.
//!
//! Parsers take bytes, so that they are tested on captured text; only [`Dir`] touches the file system.

pub mod auxv;
pub mod bpf;
pub mod event;
pub mod fanotify;
pub mod fdinfo;
pub mod inotify;
pub mod limits;
pub mod mountinfo;
pub mod sched;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub(crate) mod tasks;
pub mod timers;

use crate::fault::{self, Point};
use anyhow::Context;
use images::Pid;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use rustix::fs::RawDir;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Text that is not as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: no valid {field}")]
pub struct Malformed {
    /// Which file.
    pub file: &'static str,
    /// What is wrong in it.
    pub field: &'static str,
}

/// An open directory below `/proc`: of a task, or of one of its threads.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

impl Dir {
    /// `/proc/PID`.
    ///
    /// # Errors
    /// ENOENT when it is gone.
    pub fn task(pid: Pid) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?;
        Ok(Self { fd })
    }

    /// The directory by which a task shows what it has: that of its leader or, where the leader has ended while other threads go
    /// on, that of one of these, which shows the same of the task as a whole.
    ///
    /// # Errors
    /// ENOENT when it is gone.
    pub fn living(pid: Pid) -> io::Result<Self> {
        Self::task(living_thread(pid))
    }

    /// Whether the task that it is of has ended, as [`has_ended`]; never another one with the same id.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut buffer = Vec::new();
        match self.read_record("stat", &mut buffer) {
            Ok(()) => stat::parse(&buffer).is_ok_and(|stat| matches!(stat.state, b'Z' | b'X')),
            Err(e) => is_gone(&e),
        }
    }

    /// A directory below this one: `task/TID`, `fdinfo`.
    ///
    /// # Errors
    /// ENOENT when it is gone.
    pub fn dir(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: openat(&self.fd, name, flags, Mode::empty())? })
    }

    /// Opens a file in it for reading.
    ///
    /// # Errors
    /// Whatever openat answers.
    pub fn open(&self, name: &str) -> io::Result<OwnedFd> {
        fault::point(Point::ProcOpen)?;
        Ok(openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Opens a file in it for writing.
    ///
    /// # Errors
    /// Whatever openat answers.
    pub fn open_for_writing(&self, name: &str) -> io::Result<OwnedFd> {
        fault::point(Point::ProcOpen)?;
        Ok(openat(&self.fd, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Replaces the contents of `buffer` by those of a file.
    ///
    /// # Errors
    /// Whatever openat and read answer.
    pub fn read(&self, name: &str, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.read_until(name, buffer, |n, _room| n == 0)
    }

    /// As [`Dir::read`], for a file that the kernel makes as a whole, and that ends where a read leaves room: `stat`, `status` and all
    /// others that are ONE() or single_open() in fs/proc/base.c (seq_read_iter(), fs/seq_file.c), those of `fdinfo` (single_open() in fs/proc/fd.c),
    /// and the small ones of simple_read_from_buffer(). Not for lists, which a read cuts between records: `children`, `maps`, `timers`.
    ///
    /// # Errors
    /// Whatever openat and read answer.
    pub fn read_record(&self, name: &str, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.read_until(name, buffer, |n, room| n < room)
    }

    /// Reads up to the read that is the last one, as told from what it read and what it had room for.
    fn read_until(
        &self,
        name: &str,
        buffer: &mut Vec<u8>,
        is_last: impl Fn(usize, usize) -> bool,
    ) -> io::Result<()> {
        /// seq files hand out at most one page a read; more room only spares growing the vector.
        const CHUNK: usize = 4096;
        let file = self.open(name)?;
        fault::point(Point::ProcRead)?;
        let mut len = 0;
        loop {
            if buffer.len() < len + CHUNK {
                buffer.resize((len + CHUNK).max(buffer.len() * 2), 0);
            }
            let room = buffer.len() - len;
            match nix::unistd::read(&file, &mut buffer[len..]) {
                Ok(n) => {
                    len += n;
                    if is_last(n, room) {
                        break;
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        buffer.truncate(len);
        Ok(())
    }

    /// Calls `each` for every memory area, by rising address. `buffer` is room for their text.
    ///
    /// # Errors
    /// If it cannot be read; as `each`.
    pub fn areas(
        &self,
        buffer: &mut Vec<u8>,
        each: impl FnMut(smaps::Area<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let open = || -> io::Result<OwnedFd> {
            let file = self.open("smaps")?;
            fault::point(Point::ProcRead)?;
            Ok(file)
        };
        smaps::read(File::from(open().context("read smaps")?), buffer, each)
    }

    /// The target of a symbolic link in it.
    ///
    /// # Errors
    /// Whatever readlinkat answers.
    pub fn link(&self, name: &str) -> io::Result<OsString> {
        Ok(nix::fcntl::readlinkat(&self.fd, name)?)
    }

    /// stat of what a link in it leads to.
    ///
    /// # Errors
    /// Whatever fstatat answers.
    pub fn stat(&self, name: &str) -> io::Result<nix::sys::stat::FileStat> {
        Ok(nix::sys::stat::fstatat(&self.fd, name, nix::fcntl::AtFlags::empty())?)
    }

    /// The numbers that name entries of a directory below this one, rising: `task`, `fd`.
    ///
    /// # Errors
    /// Whatever reading the directory answers.
    pub fn numbers<T: std::str::FromStr + Ord>(&self, name: &str) -> io::Result<Vec<T>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        fault::point(Point::ProcList)?;
        let dir = openat(&self.fd, name, flags, Mode::empty())?;
        let mut numbers = Vec::new();
        let mut room = [MaybeUninit::uninit(); LISTED_AT_ONCE];
        let mut entries = RawDir::new(dir, &mut room);
        while let Some(entry) = entries.next() {
            numbers.extend(decimal::<T>(entry?.file_name().to_bytes()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// How many threads a task has, one that has ended but is still there included; by its own directory or that of one of its threads.
    ///
    /// # Errors
    /// Whatever fstatat answers.
    pub fn thread_count(&self) -> io::Result<usize> {
        let links = self.stat("task")?.st_nlink.saturating_sub(LINKS_OF_NONE);
        Ok(usize::try_from(links).unwrap_or(usize::MAX))
    }

    /// The ids of the threads of the task `pid`, rising; by its own directory or that of one of its threads.
    ///
    /// # Errors
    /// Whatever reading the directory answers.
    pub fn threads(&self, pid: Pid) -> io::Result<Vec<Pid>> {
        // One call for most tasks. A leader stays until it is the last, and who becomes the only one by exec is the leader (de_thread()).
        if self.thread_count()? == 1 { Ok(vec![pid]) } else { self.numbers("task") }
    }
}

/// Links to `/proc/PID/task` itself and from its parent: there is one more for each thread (proc_task_getattr() of fs/proc/base.c).
const LINKS_OF_NONE: u64 = 2;

/// Room for entries of a directory: most of those that are listed take less.
const LISTED_AT_ONCE: usize = 0x4000;

/// A living thread of a task: its leader or, where that has ended while others go on, one of these. The leader of a
/// task that has ended altogether, or is gone.
#[must_use]
pub fn living_thread(pid: Pid) -> Pid {
    let leader = || -> io::Result<Pid> {
        // One call for most: a dump looks at every task of the machine while its tree stands still.
        if nix::sys::stat::stat(format!("/proc/{pid}/task").as_str())?.st_nlink <= LINKS_OF_NONE + 1
            || !has_ended(pid)
        {
            return Ok(pid);
        }
        let mut tids = Dir::task(pid)?.numbers::<Pid>("task")?.into_iter();
        Ok(tids.find(|&tid| !has_ended(tid)).unwrap_or(pid))
    };
    leader().unwrap_or(pid)
}

/// Whether a thread has ended: it is gone, or a zombie. One that cannot be looked at (EMFILE) has not.
#[must_use]
pub fn has_ended(tid: Pid) -> bool {
    Dir::task(tid).map_or_else(|e| is_gone(&e), |dir| dir.has_ended())
}

/// What /proc answers for a task that is not there any more.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A number in decimal, surrounded by blanks at most.
#[must_use]
pub fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// A number in hexadecimal, without prefix.
#[must_use]
pub fn hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// A number in octal.
#[must_use]
pub fn octal(text: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(text.trim_ascii()).ok()?, 8).ok()
}
