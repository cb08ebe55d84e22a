//! Bringing pages: first those that somebody waits for, the others meanwhile.
//!
//! One thread does it all, in turns: read what the tasks have done, answer who waits, put one block in place. What a task does to its
//! areas is told before it can see the effect, in order, and nothing is put in place between (UFFDIO_COPY answers EAGAIN until the message
//! has been read). So what is noted as pending is right whenever something is put. Two threads that copy and change the same areas at the
//! same moment, one by fork and one by madvise, are told in the order in which they come to wait, which may be the other one.

use super::guard::Watch;
use super::pending::Pending;
use super::source::Source;
use crate::fault::{self, Point};
use crate::sys::mapping::SharedMapping;
use crate::sys::userfaultfd::{self, Message};
use anyhow::{Context, Result, bail, ensure};
use images::id::PAGE_SIZE;
use images::memory::Run;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::wait::{WaitPidFlag, waitpid};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of a block that is brought when one of its pages is waited for.
const NEAR: u64 = 64 << 10;
/// Bytes of a block that is brought meanwhile: as long as who comes to wait then may have to wait for it.
const AHEAD: u64 = 256 << 10;

/// An address space that pages come to.
struct Space {
    fd: OwnedFd,
    pending: Pending,
    /// Pages that somebody waits for.
    wanted: BTreeSet<u64>,
    /// Where the last ones were brought.
    cursor: u64,
    /// Its areas are changing: something is to be read first.
    changing: bool,
    /// Ranges that areas have been moved away from, until it is told that they are unmapped: by then somebody else may have moved another one there
    /// (mremap_userfaultfd_complete() comes before userfaultfd_unmap_complete(), both without the lock).
    left: Vec<(u64, u64)>,
    /// Since when nothing could be put, and nothing was to be read.
    stuck_since: Option<Instant>,
}

/// How long areas may be changing without a word. A mremap that fails halfway, for want of memory, leaves them so for ever in Linux 6.18
/// (mremap_userfaultfd_fail(), fs/userfaultfd.c): whoever waits would not know why.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of putting pages.
#[derive(PartialEq, Eq)]
enum Put {
    Done,
    /// Areas are changing.
    Later,
    /// The address space is gone.
    Gone,
}

/// Brings all pages to these address spaces, and to those that are copied from them meanwhile. Each descriptor is closed when its
/// address space has all. `ready` is called when nothing stands in the way. Should the guard be ended, another one takes its place.
///
/// # Errors
/// If pages cannot be had, or not be put in place. The descriptors are still open then, as they are after a panic, if it was ready.
pub(super) fn serve(
    source: Source,
    spaces: Vec<(OwnedFd, Vec<Run>)>,
    (guard, watch): (OwnedFd, &Watch),
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut server = ManuallyDrop::new(Server {
        source,
        guard,
        watch,
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?,
        spaces: BTreeMap::new(),
        next: 0,
        turn: 0,
        buffer: SharedMapping::anonymous_low(AHEAD).context("mmap")?,
        ahead: !fault::is_set(Point::LazyAhead),
        idle: false,
        copied: false,
    });
    if let Some(fetch) = &server.source.fetch {
        server.epoll.add(fetch.news(), EpollEvent::new(EpollFlags::EPOLLIN, NEWS)).context("epoll")?;
    }
    server.listen_to_guard()?;
    for (fd, runs) in spaces {
        server.add(fd, Pending::new(&runs))?;
    }
    ready()?;
    server.run()
}

struct Server<'a> {
    source: Source,
    /// A pidfd of the guard.
    guard: OwnedFd,
    watch: &'a Watch,
    epoll: Epoll,
    spaces: BTreeMap<u64, Space>,
    /// Number of the next one.
    next: u64,
    /// Number of the one that has had a block last.
    turn: u64,
    /// What is about to be put. UFFDIO_COPY takes only an address that the task could have, too (userfaultfd_copy(), fs/userfaultfd.c).
    buffer: SharedMapping,
    /// What nobody waits for is brought, too.
    ahead: bool,
    /// In the last turn there was nothing to put in place.
    idle: bool,
    /// An address space has been copied: pages may be needed more than once.
    copied: bool,
}

/// Number among the events of what tells that pages have been fetched.
const NEWS: u64 = u64::MAX;
/// … and of what tells that the guard has been ended.
const UNGUARDED: u64 = u64::MAX - 1;

impl Server<'_> {
    fn listen_to_guard(&self) -> Result<()> {
        self.epoll.add(&self.guard, EpollEvent::new(EpollFlags::EPOLLIN, UNGUARDED)).context("epoll")
    }

    /// Gets another guard.
    fn replace_guard(&mut self) -> Result<()> {
        if let Err(errno) = self.epoll.delete(&self.guard) {
            log::warn!("lazy-pages: epoll: {}", errno.desc());
        }
        // One that has taken the place of the first is a child.
        let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
        if self.source.fetch.is_some() {
            // A fork would have the memory of a thread that is in the middle of something.
            log::warn!(
                "lazy-pages: crr-lazy-guard was ended: if crr-lazy-pages is, too, tasks go on with memory missing"
            );
            return Ok(());
        }
        log::warn!("lazy-pages: crr-lazy-guard was ended: another one takes its place");
        match self.watch.renew() {
            Ok(guard) => {
                self.guard = guard;
                self.listen_to_guard()
            }
            // To end for want of a guard would be what it is there against.
            Err(e) => {
                log::warn!(
                    "lazy-pages: there is no other guard: if crr-lazy-pages is ended, too, tasks go on with memory missing: {e:#}"
                );
                Ok(())
            }
        }
    }

    fn add(&mut self, fd: OwnedFd, pending: Pending) -> Result<()> {
        self.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, self.next)).context("epoll")?;
        let space = Space {
            fd,
            pending,
            wanted: BTreeSet::new(),
            cursor: 0,
            changing: false,
            left: Vec::new(),
            stuck_since: None,
        };
        self.spaces.insert(self.next, space);
        self.next += 1;
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        while !self.spaces.is_empty() {
            self.listen()?;
            let numbers: Vec<u64> = self.spaces.keys().copied().collect();
            for number in numbers {
                self.answer(number)?;
            }
            self.go_ahead()?;
        }
        Ok(())
    }

    /// Reads what there is to be read. Waits only where nothing could be done before, and not for long: a task that is killed
    /// tells nothing more.
    fn listen(&mut self) -> Result<()> {
        /// Milliseconds.
        const STEP: u16 = 1;
        const LONG_STEP: u16 = 20;
        let mut events = [EpollEvent::empty(); 64];
        let stuck = self.spaces.values().all(|space| space.changing);
        let step = if stuck { STEP } else { LONG_STEP };
        let ready = match self.epoll.wait(&mut events, if stuck || self.idle { step } else { 0 }) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("wait for the tasks"),
        };
        self.spaces.values_mut().for_each(|space| space.changing = false);
        for event in &events[..ready] {
            if let Some(fetch) = self.source.fetch.as_ref().filter(|_| event.data() == NEWS) {
                fetch.hear();
                continue;
            }
            if event.data() == UNGUARDED {
                self.replace_guard()?;
                continue;
            }
            while let Some(space) = self.spaces.get_mut(&event.data()) {
                let message = userfaultfd::read(space.fd.as_fd()).context("read what a task does")?;
                if message.is_some() {
                    space.stuck_since = None;
                }
                match message {
                    None => break,
                    Some(Message::Fault { address, .. }) => {
                        space.wanted.insert(address & !(PAGE_SIZE - 1));
                    }
                    Some(Message::Moved { from, to, len }) => {
                        space.pending.remap(from, to, len);
                        space.left.push((from, from + len));
                    }
                    Some(Message::Gone { start, end }) => space.pending.remove(start, end),
                    Some(Message::Unmapped { start, end }) => {
                        match space.left.iter().position(|&left| left == (start, end)) {
                            Some(at) => drop(space.left.swap_remove(at)),
                            None => space.pending.remove(start, end),
                        }
                    }
                    Some(Message::Fork(fd)) => {
                        let pending = space.pending.clone();
                        self.copied = true;
                        self.add(fd, pending)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings what is waited for in one address space, as far as it can be had at once.
    fn answer(&mut self, number: u64) -> Result<()> {
        let Some(space) = self.spaces.get(&number) else { return Ok(()) };
        for page in space.wanted.iter().copied().collect::<Vec<_>>() {
            let Some(space) = self.spaces.get_mut(&number).filter(|space| !space.changing) else {
                return Ok(());
            };
            let put = match space.pending.around(page, NEAR) {
                Some(run) if !self.source.has(run, true)? => continue,
                Some(run) => {
                    space.cursor = run.end();
                    self.bring(number, run)?
                }
                // Never touched, or gone since: zeros.
                None => finished(userfaultfd::put_zeros(space.fd.as_fd(), page, PAGE_SIZE), space, page)?,
            };
            if !self.note(number, &put)? {
                return Ok(());
            }
            if let Some(space) = self.spaces.get_mut(&number) {
                space.wanted.remove(&page);
            }
        }
        Ok(())
    }

    /// Brings one block to the address space whose turn it is, of those that something is here for.
    fn go_ahead(&mut self) -> Result<()> {
        self.idle = true;
        let others = self.spaces.range(self.turn + 1..).chain(self.spaces.range(..=self.turn));
        let numbers: Vec<u64> =
            others.filter(|(_, space)| !space.changing).map(|(&number, _)| number).collect();
        for number in numbers {
            let Some(space) = self.spaces.get_mut(&number) else { continue };
            let next = space.pending.next(space.cursor, AHEAD);
            let all_there = next.is_none() && space.wanted.is_empty();
            if let Some(run) = next.filter(|_| self.ahead) {
                // What is fetched comes in the order of the pages, which is that of their addresses, but for what has been waited for.
                let here = match self.source.has(run, false)? {
                    true => Some(run),
                    false => space.pending.next(0, AHEAD),
                };
                if let Some(run) = here
                    && self.source.has(run, false)?
                {
                    self.idle = false;
                    self.turn = number;
                    space.cursor = run.end();
                    let put = self.bring(number, run)?;
                    self.note(number, &put)?;
                    return Ok(());
                }
            } else if all_there || userfaultfd::is_gone(space.fd.as_fd()) {
                // The kernel lets everybody go who waits still, for a page that is there or for a message to be read.
                self.spaces.remove(&number);
            }
        }
        Ok(())
    }

    /// Puts pages in place that are pending.
    fn bring(&mut self, number: u64, run: Run) -> Result<Put> {
        let Some(space) = self.spaces.get_mut(&number) else { return Ok(Put::Gone) };
        let bytes = self.buffer.slice(0, run.pages * PAGE_SIZE).context("more pages than a block has")?;
        self.source.read(run.first_page, bytes)?;
        let put = put(space, run.start.0, bytes)?;
        if put == Put::Done && !self.copied {
            self.source.give_back(run);
        }
        Ok(put)
    }

    /// Whether pages were put.
    fn note(&mut self, number: u64, put: &Put) -> Result<bool> {
        let Some(space) = self.spaces.get_mut(&number) else { return Ok(false) };
        match put {
            Put::Done => space.stuck_since = None,
            Put::Gone => drop(self.spaces.remove(&number)),
            Put::Later => {
                space.changing = true;
                let since = *space.stuck_since.get_or_insert_with(Instant::now);
                ensure!(since.elapsed() < PATIENCE, "nothing can be put in place any more");
            }
        }
        Ok(*put == Put::Done)
    }
}

fn put(space: &mut Space, start: u64, bytes: &[u8]) -> Result<Put> {
    let page = usize::try_from(PAGE_SIZE)?;
    let mut done = 0;
    while done < bytes.len() {
        let at = start + done as u64;
        match userfaultfd::put(space.fd.as_fd(), at, &bytes[done..]) {
            Ok(len) => {
                space.pending.remove(at, at + len);
                done += usize::try_from(len)?;
            }
            // Not all within one area: by halves, down to the page that is in none.
            Err(Errno::ENOENT) if bytes.len() - done > page => {
                let middle = done + (bytes.len() - done) / page / 2 * page;
                let put = put(space, at, &bytes[done..middle])?;
                if put != Put::Done {
                    return Ok(put);
                }
                done = middle;
            }
            other => {
                let put = finished(other, space, at)?;
                if put != Put::Done {
                    return Ok(put);
                }
                space.pending.remove(at, at + PAGE_SIZE);
                done += page;
            }
        }
    }
    Ok(Put::Done)
}

/// What came of putting one page that is not simply there now.
fn finished(put: nix::Result<u64>, space: &Space, page: u64) -> Result<Put> {
    match put {
        Ok(_) => Ok(Put::Done),
        // It is there already, or its area is not, or not any more the descriptor's: whoever waits sees for himself.
        Err(Errno::EEXIST | Errno::ENOENT) => {
            userfaultfd::wake(space.fd.as_fd(), page, PAGE_SIZE).context("wake who waits for a page")?;
            Ok(Put::Done)
        }
        Err(Errno::EAGAIN) => Ok(Put::Later),
        Err(Errno::ESRCH) => Ok(Put::Gone),
        Err(errno) => bail!("put the page at {page:#x} in place: {}", errno.desc().to_lowercase()),
    }
}
