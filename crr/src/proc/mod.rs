//! `/proc`: pure parsers, one file each, and the thin layer that opens and reads.
//!
//! Parsers take bytes, so that they are tested on captured text; only [`Dir`] touches the file system.

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
use std::ffi::OsString;
use std::fs::File;
use std::io;
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
        match self.read("stat", &mut buffer) {
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
        /// seq files hand out at most one page a read; more room only spares growing the vector.
        const CHUNK: usize = 4096;
        let file = self.open(name)?;
        fault::point(Point::ProcRead)?;
        let mut len = 0;
        loop {
            if buffer.len() < len + CHUNK {
                buffer.resize((len + CHUNK).max(buffer.len() * 2), 0);
            }
            match nix::unistd::read(&file, &mut buffer[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
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
        let mut dir = nix::dir::Dir::openat(&self.fd, name, flags, Mode::empty())?;
        let mut numbers = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// A living thread of a task: its leader or, where that has ended while others go on, one of these. The leader of a
/// task that has ended altogether, or is gone.
#[must_use]
pub fn living_thread(pid: Pid) -> Pid {
    /// Of `/proc/PID/task`: itself, its parent, and one for each thread (proc_task_getattr() of fs/proc/base.c).
    const LINKS_OF_ONE: u64 = 3;
    let leader = || -> io::Result<Pid> {
        // One call for most: a dump looks at every task of the machine while its tree stands still.
        if nix::sys::stat::stat(format!("/proc/{pid}/task").as_str())?.st_nlink <= LINKS_OF_ONE
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
