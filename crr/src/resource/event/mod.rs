//! Files that tell events: eventfd, timerfd, signalfd, epoll ([`super::inotify`] and [`super::fanotify`] apart); and who is told by a signal what happens to a file.
//!
//! Dump: what fdinfo shows, when a descriptor is found; what takes the whole tree to know (what an epoll watches, whether
//! an owner is in the tree) when all descriptors are. Restore: the files are made with all others, before the first
//! fork; what would run or bite meanwhile is set when all threads are held, just before they are let go ([`complete`]).

pub(crate) mod complete;
mod epoll;
mod owner;
pub(crate) mod recreate;
pub(crate) mod signals;
mod timer;
mod watch;

pub(crate) use epoll::highest_number;
pub(crate) use owner::{is_known, sends_signals};

use super::path::CLOSE;
use super::{Refuse, fanotify, inotify};
use crate::proc::tasks::named;
use crate::proc::{event as shown, living_thread};
use crate::refusal::Refusals;
use crate::resource::file::copies;
use crate::sys::kcmp::{self, kcmp};
use anyhow::{Context, Result};
use images::event::{Epoll, Eventfd, Notify, Timerfd};
use images::file::{Description, Target};
use images::task::{Task, Zombie};
use images::{DescriptionId, Pid};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Where a file was found.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Which description it is.
    pub(crate) id: DescriptionId,
    /// Who has it under which number: a task of the tree or, for what was on its way, crr.
    pub(crate) holder: (Pid, u32),
    /// The task that it belongs to, and its name.
    pub(crate) task: (Pid, String),
    /// What messages call it.
    pub(crate) object: String,
    /// crr's own descriptor, where none can be had any more.
    pub(crate) sent: Option<Arc<OwnedFd>>,
}

impl Place {
    /// crr's own descriptor of it.
    pub(crate) fn copy(&self) -> Result<OwnedFd> {
        match &self.sent {
            Some(copy) => copy.try_clone().context("dup"),
            None => copies::copy_of(self.holder),
        }
    }

    /// What /proc shows of it now.
    fn look(&self) -> Result<Vec<u8>> {
        let (pid, fd) = self.holder;
        fs::read(format!("/proc/{pid}/fdinfo/{fd}")).context("read fdinfo")
    }

    pub(crate) fn refuse(&self, refusals: &mut Refusals, reason: impl Into<String>, hint: &str) {
        refusals.task((self.task.0, &self.task.1), &self.object, reason, Some(hint));
    }
}

/// The kinds of files that are dumped here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Eventfd,
    Timerfd,
    Signalfd,
    Epoll,
    Inotify,
    Fanotify,
}

impl Kind {
    /// By the link in `/proc/PID/fd`.
    pub(crate) fn of(link: &[u8]) -> Option<Self> {
        match link.strip_prefix(b"anon_inode:")? {
            b"[eventfd]" => Some(Self::Eventfd),
            b"[timerfd]" => Some(Self::Timerfd),
            b"[signalfd]" => Some(Self::Signalfd),
            b"[eventpoll]" => Some(Self::Epoll),
            b"inotify" => Some(Self::Inotify),
            b"[fanotify]" => Some(Self::Fanotify),
            _ => None,
        }
    }
}

/// The event files of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Found {
    timers: Vec<timer::Found>,
    eventfds: Vec<Place>,
    epolls: Vec<epoll::Found>,
    inotifies: Vec<inotify::Found>,
    fanotifies: Vec<fanotify::Found>,
    owned: Vec<(Place, Notify)>,
    /// All of them.
    places: Vec<Place>,
}

/// What is known when all descriptors have been found.
pub(crate) struct Tree<'a> {
    pub(crate) tasks: &'a [Task],
    pub(crate) zombies: &'a [Zombie],
    /// For each description, one who has it.
    pub(crate) holders: &'a [(Pid, u32)],
    /// Inode and device of each.
    pub(crate) inodes: &'a [(u64, u64)],
    /// Requests of contexts of asynchronous I/O were waited for, and may tell eventfds of their end.
    pub(crate) had_requests: bool,
}

impl Found {
    /// What a descriptor of one of these kinds refers to, by what fdinfo shows; `None` when it was refused.
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        text: &[u8],
        place: Place,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        self.places.push(place.clone());
        Ok(match kind {
            Kind::Eventfd => {
                let found = eventfd(text, &place, refuse)?.map(Target::Eventfd);
                self.eventfds.extend(found.is_some().then_some(place));
                found
            }
            Kind::Signalfd => Some(Target::Signalfd(shown::signalfd(text)?)),
            Kind::Timerfd => {
                let first = shown::timerfd(text)?;
                self.timers.push(timer::Found { place, first });
                // What it shows is looked up as late as can be.
                let (clock, flags) = (first.clock, first.flags);
                Some(Target::Timerfd(Timerfd { clock, flags, interval_ns: 0, next_ns: 0, ticks: 0 }))
            }
            Kind::Epoll => {
                let index = u32::try_from(self.epolls.len()).context("too many epolls")?;
                self.epolls.extend(epoll::look(text, place, refuse)?);
                Some(Target::Epoll(index)).filter(|_| self.epolls.len() > index as usize)
            }
            Kind::Inotify => {
                let index = u32::try_from(self.inotifies.len()).context("too many inotify groups")?;
                self.inotifies.push(inotify::Found { place, watches: crate::proc::inotify::watches(text)? });
                Some(Target::Inotify(index))
            }
            Kind::Fanotify => {
                let index = u32::try_from(self.fanotifies.len()).context("too many fanotify groups")?;
                self.fanotifies.push(fanotify::Found::look(place, text)?);
                Some(Target::Fanotify(index))
            }
        })
    }

    /// Who is told of events at a description.
    pub(crate) fn add_owner(
        &mut self,
        copy: BorrowedFd<'_>,
        is_directory: bool,
        place: impl Fn(&Refuse<'_>) -> Place,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Notify>> {
        let Some(notify) = owner::dump(copy)? else { return Ok(None) };
        let place = place(refuse);
        if is_directory {
            owner::refuse_directory(&notify, &place, refuse);
        }
        self.owned.push((place, notify));
        Ok(Some(notify))
    }

    /// Completes all of them but [`Self::inotifies`] and [`Self::fanotifies`], once all descriptors are known. The epolls.
    pub(crate) fn finish(
        &self,
        descriptions: &mut [Description],
        tree: &Tree<'_>,
        refusals: &mut Refusals,
    ) -> Result<Vec<Epoll>> {
        owner::check(&self.owned, tree, refusals);
        let epolls = epoll::resolve(&self.epolls, descriptions, tree, refusals)?;
        for found in &self.timers {
            let place = &found.place;
            let timer = timer::dump(found, refusals).with_context(|| place.object.clone())?;
            descriptions[place.id.0 as usize].target = Target::Timerfd(timer);
        }
        for place in self.eventfds.iter().filter(|_| tree.had_requests) {
            let (count, _) = shown::eventfd(&place.look()?).with_context(|| place.object.clone())?;
            if count == u64::MAX {
                place.refuse(refusals, OVERFLOWED, READ_IT);
            }
            if let Target::Eventfd(eventfd) = &mut descriptions[place.id.0 as usize].target {
                eventfd.count = count;
            }
        }
        Ok(epolls)
    }

    /// Notes which epolls have something to tell, after everything else has been looked at.
    pub(crate) fn note_pending(&self, epolls: &mut [Epoll], descriptions: &[Description]) -> Result<()> {
        epoll::note_pending(&self.epolls, epolls, descriptions)
    }
}

impl Found {
    /// The inotify groups.
    pub(crate) fn inotifies(&self) -> &[inotify::Found] {
        &self.inotifies
    }

    /// The fanotify groups.
    pub(crate) fn fanotifies(&self) -> &[fanotify::Found] {
        &self.fanotifies
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Refuses those that somebody outside of the tree has as well, out of the event files of others.
    pub(crate) fn refuse_outsiders(&self, others: &[(Pid, u32)], refusals: &mut Refusals) -> Result<()> {
        let holders: Vec<(Pid, u32)> = self.places.iter().map(|place| place.holder).collect();
        let sorted = epoll::sort(&holders).context("compare files")?;
        let mut outsiders: BTreeMap<usize, BTreeSet<Pid>> = BTreeMap::new();
        for &(pid, fd) in others {
            let seen = (living_thread(pid), fd);
            // Those that are gone by now have nothing.
            let found = sorted
                .binary_search_by(|&at| kcmp(kcmp::Kind::File, holders[at], seen).unwrap_or(Ordering::Less));
            if let Ok(at) = found {
                outsiders.entry(sorted[at]).or_default().insert(pid);
            }
        }
        for (at, pids) in outsiders {
            let reason = format!("also open in {}, outside of the tree", named(pids));
            self.places[at].refuse(refusals, reason, "dump a tree that holds all who have it");
        }
        Ok(())
    }
}

const OVERFLOWED: &str = "its counter has overflowed";
const READ_IT: &str = "have the program read it";

fn eventfd(text: &[u8], place: &Place, refuse: &mut Refuse<'_>) -> Result<Option<Eventfd>> {
    let (count, semaphore) = shown::eventfd(text)?;
    let Some(semaphore) = semaphore else {
        let reason = "this kernel does not tell whether an eventfd is a semaphore (Linux 6.5 does)";
        refuse.with_hint(&place.object, reason, CLOSE);
        return Ok(None);
    };
    if count == u64::MAX {
        refuse.with_hint(&place.object, OVERFLOWED, READ_IT);
        return Ok(None);
    }
    Ok(Some(Eventfd { count, semaphore }))
}
