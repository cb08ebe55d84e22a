//! epoll: watching again.
//!
//! EPOLL_CTL_ADD of an edge-triggered watch tells what is ready, as if it had just become so. Which of them had told
//! that before the dump the kernel shows of no watch by itself; but if the epoll as a whole had nothing to tell, all of
//! them had, and what they tell now is taken away again. Otherwise what is ready is told once more: to be told twice
//! is allowed, to be told never is not.
//!
//! A one-shot watch that has told its event is made to tell one here: EPOLL_CTL_ADD knows no other way to it.

use super::epoll::{WAKEUP, has_told, is_ready};
use super::{signals, timer};
use crate::proc::event as shown;
use crate::sys::event as sys;
use anyhow::{Context, Result, bail, ensure};
use images::DescriptionId;
use images::event::{Epoll, Watch};
use images::file::{Files, Target};
use images::inet::InetState;
use images::socket::{Peer, UnixKind};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// All that poll(2) can tell, EPOLLIN to EPOLLRDHUP.
const ALL_EVENTS: u32 = 0x27df;
const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;

/// Has all epolls watch what they watched, but for signalfds, which are for the tasks to add.
pub(super) fn restore<'a>(files: &Files, file: &impl Fn(DescriptionId) -> BorrowedFd<'a>) -> Result<()> {
    let mut done = vec![false; files.epolls.len()];
    for (id, description) in (0..).map(DescriptionId).zip(&files.descriptions) {
        if let Target::Epoll(_) = description.target {
            restore_below(id, files, file, &mut done)?;
        }
    }
    Ok(())
}

/// An epoll, after those that it watches: these are then as ready as they were.
fn restore_below<'a>(
    id: DescriptionId,
    files: &Files,
    file: &impl Fn(DescriptionId) -> BorrowedFd<'a>,
    done: &mut [bool],
) -> Result<()> {
    let Target::Epoll(index) = files.descriptions[id.0 as usize].target else { return Ok(()) };
    if std::mem::replace(&mut done[index as usize], true) {
        return Ok(());
    }
    let record = &files.epolls[index as usize];
    for watch in &record.watches {
        restore_below(watch.description, files, file, done)?;
    }
    Restoring { epoll: file(id), files, file }.all(record).with_context(|| format!("epoll {id}"))
}

struct Restoring<'a, 'f, F> {
    epoll: BorrowedFd<'f>,
    files: &'a Files,
    file: &'a F,
}

impl<'f, F: Fn(DescriptionId) -> BorrowedFd<'f>> Restoring<'_, 'f, F> {
    fn all(&self, record: &Epoll) -> Result<()> {
        let own = |watch: &&Watch| !signals::is_signalfd(&self.files.descriptions, watch.description);
        let (told, armed): (Vec<&Watch>, Vec<&Watch>) =
            record.watches.iter().filter(own).partition(|watch| has_told(watch.events));
        for watch in told {
            self.tell(watch).with_context(|| format!("the one-shot watch of fd {}", watch.fd))?;
        }
        let had_told = |watch: &&Watch| {
            let edge = watch.events & (EPOLLET | EPOLLONESHOT) == EPOLLET;
            edge && !record.pending && !self.can_have_news(watch.description)
        };
        let (edges, others): (Vec<&Watch>, Vec<&Watch>) = armed.into_iter().partition(had_told);
        for watch in &edges {
            self.add(watch, watch.events)?;
        }
        if !edges.is_empty() {
            sys::take_events(self.epoll).context("take what was told before")?;
        }
        for watch in others {
            self.add(watch, watch.events)?;
        }
        if record.watches.iter().any(|watch| watch.events & WAKEUP != 0) {
            self.check_wakeups(record)?;
        }
        Ok(())
    }

    /// Whether something can have come since the file was opened again that nobody has been told of: it is not for the tree
    /// alone, or goes by a clock.
    fn can_have_news(&self, id: DescriptionId) -> bool {
        match self.files.descriptions[id.0 as usize].target {
            Target::Timerfd(timer) => timer.next_ns != 0,
            Target::Terminal(_)
            | Target::NetlinkSocket(_)
            | Target::PacketSocket(_)
            | Target::External(_)
            | Target::MessageQueue(_) => true,
            Target::UnixSocket(index) => {
                let socket = &self.files.unix_sockets[index as usize];
                matches!(socket.peer, Peer::Listening { .. } | Peer::Elsewhere { .. })
                    || socket.kind == UnixKind::Datagram
            }
            // What comes by a connection is held.
            Target::InetSocket(index) => {
                !matches!(self.files.inet_sockets[index as usize].state, InetState::Connected(_))
            }
            _ => false,
        }
    }

    fn add(&self, watch: &Watch, events: u32) -> Result<()> {
        let number = i32::try_from(watch.fd).context("no number of a file")?;
        // Its own number may be the one that is wanted for the other.
        let second = (number == self.epoll.as_raw_fd()).then(|| self.epoll.try_clone_to_owned());
        let second = second.transpose().context("duplicate an epoll")?;
        let epoll = second.as_ref().map_or(self.epoll, AsFd::as_fd);
        sys::under_number((self.file)(watch.description), number, || {
            sys::watch(epoll, number, events, watch.data)
        })
        .with_context(|| format!("watch {} as fd {number}", watch.description))
    }

    /// Adds a one-shot watch, and has it tell an event to nobody.
    fn tell(&self, watch: &Watch) -> Result<()> {
        let target = (self.file)(watch.description);
        let undo = if is_ready(target)? { Undo::Nothing } else { self.make_ready(watch.description)? };
        self.add(watch, watch.events | ALL_EVENTS)?;
        let told = sys::take_events(self.epoll).context("epoll_wait")?;
        match undo {
            Undo::Nothing => {}
            Undo::Timer(record) => timer::restore(target, &record)?,
            Undo::Pipe(reader) => {
                nix::unistd::read(&reader, &mut [0]).context("take a byte out of a pipe")?;
            }
        }
        ensure!(told == 1, "told {told} events instead of one");
        Ok(())
    }

    fn make_ready(&self, id: DescriptionId) -> Result<Undo> {
        let file = (self.file)(id);
        match self.files.descriptions[id.0 as usize].target {
            Target::Timerfd(record) => {
                sys::set_ticks(file, 1).context("TFD_IOC_SET_TICKS (needs CONFIG_CHECKPOINT_RESTORE)")?;
                Ok(Undo::Timer(record))
            }
            Target::Pipe(_) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let open = |access| {
                    let flags = access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                    nix::fcntl::open(path.as_str(), flags, Mode::empty()).context("open a pipe again")
                };
                let reader = open(OFlag::O_RDONLY)?;
                nix::unistd::write(open(OFlag::O_WRONLY)?, &[0]).context("put a byte into a pipe")?;
                Ok(Undo::Pipe(reader))
            }
            _ => bail!("its file is not ready for anything"),
        }
    }

    /// EPOLLWAKEUP is dropped without a word where CAP_BLOCK_SUSPEND is missing (`ep_take_care_of_epollwakeup`).
    fn check_wakeups(&self, record: &Epoll) -> Result<()> {
        let path = format!("/proc/self/fdinfo/{}", self.epoll.as_raw_fd());
        let now = shown::watches(&std::fs::read(&path).context(path)?)?;
        let wanted = record.watches.iter().filter(|watch| watch.events & WAKEUP != 0).count();
        let found = now.iter().filter(|watch| watch.events & WAKEUP != 0).count();
        ensure!(found == wanted, "EPOLLWAKEUP is not to be had (needs CAP_BLOCK_SUSPEND)");
        Ok(())
    }
}

/// What makes a file as ready as it was.
enum Undo {
    Nothing,
    Timer(images::event::Timerfd),
    Pipe(OwnedFd),
}
