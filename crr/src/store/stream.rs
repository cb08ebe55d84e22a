//! A checkpoint as one stream: a tar archive, so that any tool can look into it and unpack it.
//!
//! The members are the files of the directory, the pages first and the inventory last. How large pages get that are packed is not known when
//! they begin, so these come in parts, one for each block: `pages.img.00000000`, `pages.img.00000001`, ...
//!
//! The two blocks of zeros that end the archive are written last, at once: without them it is not a checkpoint. When they are written the
//! reader has taken the inventory. That is what the filling before them is for, a comment as large as the pipe: it can only be
//! in there when all before it is not any more.

use crate::fault::io::Faulty;
use crate::ptrace;
use crate::resource::path::file_type;
use crate::sys::pipe;
use anyhow::{Context, Result, anyhow, bail};
use images::container::Kind;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tar::{EntryType, Header};

/// Members are padded to this, and the end is two of zeros.
const BLOCK: usize = 512;
const NO_READER: &str = "whoever reads the stream has gone away";
const PLACES: &str = "hint: -D - is for a pipe or a file";
/// After so many milliseconds of waiting for the reader it is looked whether crr is to end.
const LOOK: u16 = 100;

/// The name of a part of packed pages.
fn part_name(number: u32) -> String {
    format!("{}.{number:08}", Kind::Pages.file_name())
}

/// The number of a part of packed pages, if that is the name of one.
pub(super) fn part_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix(Kind::Pages.file_name())?.strip_prefix('.')?.parse().ok()?;
    (part_name(number) == name).then_some(number)
}

/// Another thread has failed, and says why.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the stream has been given up")]
pub(crate) struct GivenUp;

/// The stream that a dump writes.
#[derive(Debug)]
pub struct Stream {
    out: File,
    /// A pipe, by a description that is crr's own, with O_NONBLOCK. Else it is a file or a disk, where no write waits for anybody.
    is_pipe: bool,
    state: Mutex<State>,
    /// Tells that a block was written, or that none will be any more.
    turn: Condvar,
    /// Set without the lock, which a write holds that waits for the reader.
    given_up: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of pages so far.
    place: u64,
    parts: u32,
}

impl Stream {
    /// The standard output.
    ///
    /// # Errors
    /// If that is none of what [`Self::to`] takes.
    pub fn stdout() -> Result<Self> {
        let own = std::io::stdout().as_fd().try_clone_to_owned();
        own.map_err(Into::into).and_then(Self::to).context("standard output")
    }

    /// A stream to a pipe, a file or a disk: what has been written to any other is gone without anybody having taken it.
    pub(super) fn to(out: OwnedFd) -> Result<Self> {
        let (out, is_pipe) = match file_type(fstat(&out)?.st_mode) {
            SFlag::S_IFREG | SFlag::S_IFBLK => (out, false),
            SFlag::S_IFIFO => (reopen(&out)?, true),
            SFlag::S_IFSOCK => bail!(
                "is a socket, which does not tell whether images were taken from it\n  hint: put a pipe before it: crr dump -D - | cat"
            ),
            _ if out.is_terminal() => bail!("is a terminal, which is no place for images\n  {PLACES}"),
            _ => bail!("is a device as /dev/null, or closed: no images would be left\n  {PLACES}"),
        };
        Ok(Self {
            out: out.into(),
            is_pipe,
            state: Mutex::default(),
            turn: Condvar::new(),
            given_up: AtomicBool::new(false),
        })
    }

    /// Begins with pages that are not packed, of which there will be so many bytes.
    pub(super) fn begin(&self, bytes: u64) -> Result<()> {
        self.write(header(EntryType::Regular, Kind::Pages.file_name(), bytes)?.as_bytes())
    }

    /// Writes pages when it is their turn.
    pub(super) fn put(&self, bytes: &[u8], place: u64) -> Result<()> {
        let mut state = self.lock();
        while state.place != place && !self.is_given_up() {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.check_given_up()?;
        self.write(bytes)?;
        state.place += bytes.len() as u64;
        self.turn.notify_all();
        Ok(())
    }

    /// Writes packed pages behind those that are there. Returns where.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<u64> {
        let mut state = self.lock();
        self.check_given_up()?;
        self.member(&part_name(state.parts), bytes)?;
        state.parts += 1;
        let place = state.place;
        state.place += bytes.len() as u64;
        Ok(place)
    }

    /// Nobody is to wait for a turn, or for the reader, any more.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        // Whoever has looked before that waits for the turn by now.
        drop(self.lock());
        self.turn.notify_all();
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    fn check_given_up(&self) -> Result<(), GivenUp> {
        if self.is_given_up() { Err(GivenUp) } else { Ok(()) }
    }

    /// Bytes of pages that were written.
    pub(super) fn pages(&self) -> u64 {
        self.lock().place
    }

    /// Writes a whole member.
    pub(super) fn member(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(header(EntryType::Regular, name, bytes.len() as u64)?.as_bytes())?;
        self.write(bytes)?;
        self.write(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])
    }

    /// Ends the archive, when the reader has taken all of it.
    pub(super) fn finish(&self) -> Result<()> {
        if self.is_pipe {
            let capacity = pipe::capacity(self.out.as_fd()).context("F_GETPIPE_SZ")?;
            let comment = comment(usize::try_from(capacity)?);
            let header = header(EntryType::XGlobalHeader, "filling", comment.len() as u64)?;
            self.write(header.as_bytes())?;
            self.write(&comment)?;
        }
        self.write(&[0; 2 * BLOCK])
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            match Faulty(&self.out).write(left) {
                Ok(wrote) => left = &left[wrote..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait_for_room()?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => bail!(NO_READER),
                Err(e) => return Err(e).context("write to the stream"),
            }
        }
        Ok(())
    }

    /// Waits until something can be written; fails when crr is to end, or another thread has failed.
    fn wait_for_room(&self) -> Result<()> {
        ptrace::check_interrupted()?;
        self.check_given_up()?;
        match poll(&mut [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(LOOK)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(anyhow!(errno).context("wait for the reader of the stream")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe once more, so that no write waits for its reader.
fn reopen(pipe: &OwnedFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
        Err(Errno::ENXIO) => bail!(NO_READER),
        opened => opened.context("open it again"),
    }
}

/// The block before a member.
fn header(kind: EntryType, name: &str, bytes: u64) -> Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name).context("name of a member")?;
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()));
    header.set_cksum();
    Ok(header)
}

/// A comment as archives of POSIX have it (pax(1)), `LENGTH comment=TEXT`, that fills so many bytes or some more.
fn comment(bytes: usize) -> Vec<u8> {
    let bytes = bytes.next_multiple_of(BLOCK).max(BLOCK);
    let mut comment = format!("{bytes} comment=").into_bytes();
    comment.resize(bytes - 1, b' ');
    comment.push(b'\n');
    comment
}
