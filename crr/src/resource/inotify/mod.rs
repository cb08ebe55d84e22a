//! inotify: groups of watches, by what fdinfo shows of each watch: its number, the events, and a handle of the file, by which its
//! present name is found ([`find`]).
//!
//! Events that have not been read yet are lost: nobody can look at them without taking them, and a tree that runs on needs them. The
//! restored group tells so itself, as the kernel does where it has no room for more (IN_Q_OVERFLOW, [`recreate`]).

pub(crate) mod find;
mod overlay;
pub(crate) mod recreate;

use super::event::Place;
use super::path::{CLOSE, Paths};
use crate::proc::inotify as shown;
use crate::refusal::Refusals;
use crate::sys::inotify as sys;
use anyhow::{Context, Result};
use find::Finder;
use images::DescriptionId;
use images::file::{Description, Target};
use images::inotify::{FileWatch, Inotify};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How far above those that are in use the next number lies. Which ones were in use before the kernel does not tell; it goes through all
/// numbers before it gives one out again, so that what a program still has of an old watch is not taken for a new one's.
const NEXT: u32 = 1024;
/// INT_MAX, the highest.
const WD_MAX: u32 = i32::MAX.cast_unsigned();

/// One that was found, with what fdinfo showed.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) watches: Vec<shown::Watch>,
}

/// Finds what all of them watch, once all descriptions of the tree are known.
pub(crate) fn dump(found: &[Found], paths: &mut Paths, refusals: &mut Refusals) -> Result<Vec<Inotify>> {
    let mut finder = Finder::default();
    let mut records = Vec::with_capacity(found.len());
    for Found { place, watches } in found {
        let mut record = Inotify { next: next(watches), ..Inotify::default() };
        for watch in watches.iter().rev() {
            match finder.find(&watch.file, paths).with_context(|| place.object.clone())? {
                Ok(path) => record.watches.push(FileWatch { wd: watch.wd, path, mask: watch.mask }),
                Err(why) => {
                    place.refuse(refusals, format!("watch {} of it: {}", watch.wd, why.reason), why.hint)
                }
            }
        }
        let unread = sys::unread(place.copy()?.as_fd()).context("FIONREAD")?;
        if unread > 0 {
            record.lost = true;
            log::warn!(
                "task {} ({}): {}: {unread} bytes of events that it has not read are not kept; once restored, it is told so \
                 (IN_Q_OVERFLOW)",
                place.task.0,
                place.task.1,
                place.object
            );
        }
        records.push(record);
    }
    Ok(records)
}

fn next(watches: &[shown::Watch]) -> u32 {
    let highest = watches.iter().map(|watch| watch.wd).max().unwrap_or(0);
    highest.saturating_add(NEXT).min(WD_MAX)
}

/// Why the name of what is watched is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nameless {
    pub(crate) reason: &'static str,
    pub(crate) hint: &'static str,
}

impl Nameless {
    pub(crate) const fn new(reason: &'static str) -> Self {
        Self { reason, hint: CLOSE }
    }
}

/// The groups of a tree as they are restored: watches are added when nothing is opened, read or closed any more, so that they tell only
/// what happens afterwards.
#[derive(Debug)]
pub(crate) struct Groups<'a>(Vec<(DescriptionId, OwnedFd, &'a Inotify)>);

impl<'a> Groups<'a> {
    /// Takes hold of them.
    pub(crate) fn of<'f>(
        descriptions: &[Description],
        records: &'a [Inotify],
        file: impl Fn(DescriptionId) -> BorrowedFd<'f>,
    ) -> Result<Self> {
        let mut groups = Vec::new();
        for (id, description) in (0..).map(DescriptionId).zip(descriptions) {
            if let Target::Inotify(index) = description.target {
                let copy = file(id).try_clone_to_owned().context("dup")?;
                groups.push((id, copy, &records[index as usize]));
            }
        }
        Ok(Self(groups))
    }

    /// Adds all watches.
    pub(crate) fn watch(self, paths: &[images::file::Path]) -> Result<()> {
        for (id, group, record) in &self.0 {
            recreate::watch(group.as_fd(), record, paths).with_context(|| format!("inotify {id}"))?;
        }
        Ok(())
    }
}
