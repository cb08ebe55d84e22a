//! epoll: what it watches.
//!
//! The kernel knows a watch by the file and by the number that it was added under. The number says nothing about who
//! has the file now: it may have been moved, closed by the one who added it, or mean something else in another task that
//! has the epoll. kcmp(2) tells, with all descriptions of the tree in the kernel's own order.

use super::{Place, Tree, signals};
use crate::kernel;
use crate::proc::event as shown;
use crate::proc::mountinfo::device_of;
use crate::refusal::Refusals;
use crate::resource::Refuse;
use crate::resource::file::copies;
use crate::resource::path::CLOSE;
use crate::sys::event as sys;
use crate::sys::kcmp::{Kind, kcmp, kcmp_watched};
use anyhow::{Context, Result};
use images::event::{Epoll, Watch};
use images::file::{Description, Files, Target};
use images::task::Task;
use images::{DescriptionId, Pid};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

/// EP_PRIVATE_BITS of fs/eventpoll.c: EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET. The rest are events.
const FLAGS: u32 = 0xf000_0000;
/// EPOLLWAKEUP.
pub(super) const WAKEUP: u32 = 1 << 29;

/// Ways out.
const REMOVE: &str = "have the program remove the watch (EPOLL_CTL_DEL) before the dump";
const ARM: &str = "have the program arm it again (EPOLL_CTL_MOD) before the dump";

/// One that was found.
#[derive(Debug)]
pub(super) struct Found {
    place: Place,
    watches: Vec<shown::Watch>,
}

/// Whether a watch is a one-shot one that has told its event, and tells no more.
pub(super) fn has_told(events: u32) -> bool {
    events & !FLAGS == 0
}

/// The highest number that a file is watched under.
pub(crate) fn highest_number(files: &Files) -> u32 {
    files.epolls.iter().flat_map(|epoll| &epoll.watches).map(|watch| watch.fd).max().unwrap_or(0)
}

/// Notes what fdinfo shows of an epoll; `None` when it was refused.
pub(super) fn look(text: &[u8], place: Place, refuse: &mut Refuse<'_>) -> Result<Option<Found>> {
    if sys::polls_busily(place.copy()?.as_fd()) {
        refuse.with_hint(&place.object, "polls devices busily (EPIOCSPARAMS)", CLOSE);
        return Ok(None);
    }
    Ok(Some(Found { watches: shown::watches(text)?, place }))
}

/// Finds the files that epolls watch, once all descriptions are known.
pub(super) fn resolve(
    found: &[Found],
    descriptions: &[Description],
    tree: &Tree<'_>,
    refusals: &mut Refusals,
) -> Result<Vec<Epoll>> {
    let deputy =
        |task: &Task| task.threads.iter().find(|thread| thread.exited.is_none()).map(|thread| thread.tid);
    let tasks = tree.tasks.iter().filter_map(|task| Some((deputy(task)?, task))).collect();
    let mut index = Index { tree, descriptions, tasks, sorted: None };
    let mut epolls = Vec::with_capacity(found.len());
    for epoll in found {
        let watches = index.watches(epoll, refusals).with_context(|| epoll.place.object.clone())?;
        epolls.push(Epoll { pending: false, watches });
    }
    for (number, epoll) in found.iter().enumerate() {
        let place = &epoll.place;
        for watch in &epolls[number].watches {
            if let Some((reason, hint)) = obstacle(place.id, watch, descriptions, tree)
                .with_context(|| format!("{}: what it watches as fd {}", place.object, watch.fd))?
            {
                place.refuse(refusals, format!("watches fd {}, {reason}", watch.fd), hint);
            }
        }
    }
    Ok(epolls)
}

/// Notes which of them have something to tell. After everything else that is looked at: whatever can still come must not be
/// missing where an epoll is taken to have told all there was.
pub(super) fn note_pending(
    found: &[Found],
    epolls: &mut [Epoll],
    descriptions: &[Description],
) -> Result<()> {
    for (number, epoll) in found.iter().enumerate() {
        // What is on the list of an epoll with a signalfd, only the task itself may find out.
        epolls[number].pending = reaches_signalfd(number, epolls, descriptions)
            || is_ready(epoll.place.copy()?.as_fd())
                .with_context(|| format!("{}: look whether it has something to tell", epoll.place.object))?;
    }
    Ok(())
}

/// The descriptions of a tree, to find those that are watched.
struct Index<'a> {
    tree: &'a Tree<'a>,
    descriptions: &'a [Description],
    /// By the thread that a task is looked at by.
    tasks: HashMap<Pid, &'a Task>,
    /// Their indices in the kernel's order, made when first needed.
    sorted: Option<Vec<usize>>,
}

impl Index<'_> {
    fn watches(&mut self, epoll: &Found, refusals: &mut Refusals) -> Result<Vec<Watch>> {
        let mut before: HashMap<u32, u32> = HashMap::new();
        let mut watches = Vec::with_capacity(epoll.watches.len());
        for shown in &epoll.watches {
            let shown::Watch { fd, events, data, inode } = *shown;
            let nth = before.entry(fd).or_default();
            let watched = Watched { epoll: epoll.place.holder, tfd: fd, nth: *nth };
            *nth += 1;
            match self.find(watched, inode).context("kcmp KCMP_EPOLL_TFD")? {
                Some(description) => watches.push(Watch { fd, description, events, data }),
                // Refused by itself.
                None if watched.is(watched.as_own()) == Ok(Ordering::Equal) => {}
                None => {
                    let reason =
                        format!("watches a file, added as fd {fd}, that no task of the tree has open");
                    epoll.place.refuse(refusals, reason, REMOVE);
                }
            }
        }
        watches.sort_by_key(|watch| watch.fd);
        Ok(watches)
    }

    fn find(&mut self, watched: Watched, inode: (u64, u64)) -> nix::Result<Option<DescriptionId>> {
        // Nearly always it is still what the number means to a task that has the epoll.
        let task = self.tasks.get(&watched.epoll.0);
        let entry = task.and_then(|task| {
            let at = task.fds.binary_search_by_key(&watched.tfd, |entry| entry.fd.0).ok()?;
            task.fds.get(at)
        });
        if let Some(entry) = entry
            && (self.is_socket(entry.description, inode) || watched.is(watched.as_own())? == Ordering::Equal)
        {
            return Ok(Some(entry.description));
        }
        if self.sorted.is_none() {
            self.sorted = Some(sort(self.tree.holders)?);
        }
        let sorted = self.sorted.as_deref().unwrap_or_default();
        let (mut low, mut high) = (0, sorted.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match watched.is(self.tree.holders[sorted[middle]])? {
                Ordering::Equal => return Ok(u32::try_from(sorted[middle]).ok().map(DescriptionId)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

impl Index<'_> {
    /// Whether a description is the socket with this inode: no other description can be open on it. That spares most
    /// epolls with thousands of watches the question to the kernel, which goes through all of them for each answer
    /// (`ep_find_tfd`).
    fn is_socket(&self, id: DescriptionId, inode: (u64, u64)) -> bool {
        let (ino, dev) = self.tree.inodes[id.0 as usize];
        matches!(self.descriptions[id.0 as usize].target, Target::UnixSocket(_))
            && (ino, device_of(dev)) == inode
    }
}

/// The `nth` watch of an epoll under a number.
#[derive(Clone, Copy)]
struct Watched {
    epoll: (Pid, u32),
    tfd: u32,
    nth: u32,
}

impl Watched {
    /// What its number means where the epoll was found.
    fn as_own(self) -> (Pid, u32) {
        (self.epoll.0, self.tfd)
    }

    fn is(self, file: (Pid, u32)) -> nix::Result<Ordering> {
        kcmp_watched(file, self.epoll, self.tfd, self.nth)
    }
}

/// Indices of descriptors in the kernel's order of files.
pub(super) fn sort(holders: &[(Pid, u32)]) -> nix::Result<Vec<usize>> {
    let mut failure: Option<Errno> = None;
    let mut sorted: Vec<usize> = (0..holders.len()).collect();
    sorted.sort_by(|&a, &b| {
        kcmp(Kind::File, holders[a], holders[b]).unwrap_or_else(|errno| {
            failure = Some(errno);
            Ordering::Equal
        })
    });
    failure.map_or(Ok(sorted), Err)
}

/// Why a watch cannot be made again, and the way out.
fn obstacle(
    epoll: DescriptionId,
    watch: &Watch,
    descriptions: &[Description],
    tree: &Tree<'_>,
) -> Result<Option<(&'static str, &'static str)>> {
    let told = has_told(watch.events);
    Ok(match descriptions[watch.description.0 as usize].target {
        Target::Signalfd(_) if told => Some(("a signalfd that has told its event (EPOLLONESHOT)", ARM)),
        Target::Signalfd(_) if watch.events & WAKEUP != 0 => {
            Some(("a signalfd, so as to keep the machine awake (EPOLLWAKEUP)", REMOVE))
        }
        Target::Signalfd(_) if signals::adder(tree.tasks, epoll, watch).is_none() => {
            Some(("a signalfd, and it is not to be seen of which task it is told signals", REMOVE))
        }
        Target::External(_) | Target::MessageQueue(_) if told => {
            Some(("what others have a part in, and has told its event (EPOLLONESHOT)", ARM))
        }
        Target::Epoll(_) if told => Some(("an epoll that has told its event (EPOLLONESHOT)", ARM)),
        // Always ready for something, or made so for a moment.
        Target::Eventfd(_) | Target::Timerfd(_) => None,
        Target::Pipe(_) if descriptions[watch.description.0 as usize].flags & 3 == 0 => None,
        _ if told && !kernel::has_pidfd_getfd() => Some((
            "which has told its event (EPOLLONESHOT), and without pidfd_getfd (Linux 5.6) nobody tells whether it is ready",
            ARM,
        )),
        _ if told => {
            let copy = copies::copy_of(tree.holders[watch.description.0 as usize])?;
            (!is_ready(copy.as_fd())?)
                .then_some(("which has told its event (EPOLLONESHOT) and is not ready for anything", ARM))
        }
        _ => None,
    })
}

/// Whether a signalfd is among what an epoll watches, or what epolls watch that it watches.
fn reaches_signalfd(epoll: usize, epolls: &[Epoll], descriptions: &[Description]) -> bool {
    epolls[epoll].watches.iter().any(|watch| match descriptions[watch.description.0 as usize].target {
        Target::Signalfd(_) => true,
        Target::Epoll(inner) => reaches_signalfd(inner as usize, epolls, descriptions),
        _ => false,
    })
}

/// Whether a file is ready for anything: poll(2).
pub(super) fn is_ready(file: BorrowedFd<'_>) -> Result<bool> {
    let all = PollFlags::POLLIN
        | PollFlags::POLLPRI
        | PollFlags::POLLOUT
        | PollFlags::POLLRDNORM
        | PollFlags::POLLRDBAND
        | PollFlags::POLLWRNORM
        | PollFlags::POLLWRBAND;
    let mut asked = [PollFd::new(file, all)];
    Ok(poll(&mut asked, PollTimeout::ZERO).context("poll")? > 0)
}
