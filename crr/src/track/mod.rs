//! Which pages of a tree were written since the last pre-dump.
//!
//! Best by userfaultfd: a task makes one, crr takes a copy, and the task closes its own. Each area of anonymous memory is put under it, and
//! each page is write-protected when its contents are recorded; the kernel drops the protection of a page that is written, and tells which
//! are still protected. New areas, areas that moved and those of forked children are not under it: what is in there counts as written.
//! (Areas of files are not tracked: there the kernel keeps marks in the place of pages that are gone.)
//!
//! It lasts as long as a copy is open, so a process of crr's own, the [`keeper`], has them until the next pre-dump or the dump
//! takes over, or the tasks have ended. If the keeper is killed, tracking is over, which the next one notices: nothing counts as unwritten then.
//!
//! Where the kernel cannot do that, by [`soft_dirty`] bits.

pub mod keeper;
pub(crate) mod soft_dirty;

use crate::dump::freeze::FrozenTask;
use crate::kernel;
use crate::machine;
use crate::proc::{self, stat};
use crate::store::{Destination, Round};
use crate::sys::pagemap;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::id::PAGE_SIZE;
use images::inventory::{Instance, Parent, Tracking};
use images::memory::Run;
use keeper::Keeper;
use nix::errno::Errno;
use soft_dirty::Checksums;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A process as it is now.
///
/// # Errors
/// If it is gone.
pub(crate) fn instance(pid: Pid) -> Result<Instance> {
    let mut text = Vec::new();
    proc::Dir::task(pid)
        .and_then(|dir| dir.read_record("stat", &mut text))
        .with_context(|| format!("no task {pid}"))?;
    Ok(Instance { pid, start_time: stat::parse(&text)?.start_time })
}

/// How writes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By userfaultfd.
    Protection,
    /// By bits of the page tables.
    SoftDirty,
}

impl Way {
    /// The best that there is.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn choose() -> Result<Self> {
        if kernel::can_protect_pages() {
            return Ok(Self::Protection);
        }
        if kernel::has_soft_dirty() {
            return Ok(Self::SoftDirty);
        }
        bail!(
            "nothing tells what a tree writes: this kernel has no uffd-wp-async (Linux 6.7), nor soft-dirty\n  hint: crr check shows why"
        )
    }
}

/// The pre-dump that a dump builds on.
#[derive(Debug)]
pub(crate) struct Previous {
    pub(crate) parent: Parent,
    /// Number of the first page that is not its own, nor of those before it.
    pub(crate) first_page: u64,
    /// Contents that it knows of each task.
    runs: BTreeMap<Instance, Vec<Run>>,
    /// What has told of writes since; `None` if nothing has all the time.
    pub(crate) told: Option<Told>,
    /// Where it is, for messages.
    path: PathBuf,
}

/// What has told of writes since a pre-dump.
#[derive(Debug)]
pub(crate) enum Told {
    /// Pages are protected.
    Keeper(Keeper),
    /// Bits of pages, which are to be believed as far as these are right.
    SoftDirty(Checksums),
}

impl Previous {
    /// Opens it; `dir` is seen from the directory of the images that are to be made.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn open(destination: &Destination, dir: &Path) -> Result<Self> {
        let (round, ancestors) = Round::open_for(destination, dir).with_context(|| {
            format!("--prev-images-dir {}, as seen from {}", dir.display(), destination.dir().display())
        })?;
        let pre_dump = round.pre_dump()?;
        let is_this_boot = machine::boot_id().is_ok_and(|boot_id| boot_id == round.inventory.boot_id);
        let parent = Parent { dir: dir.as_os_str().as_bytes().to_vec(), crc: round.crc };
        let runs = round.memory.spaces.iter().map(|space| space.runs.clone());
        let runs = pre_dump.tasks.iter().copied().zip(runs).collect();
        let first_page = round.memory.first_page + round.memory.page_count;
        let path = round.dir.clone();
        let told = match pre_dump.tracking {
            _ if !is_this_boot => None,
            Tracking::WriteProtected(keeper) => Keeper::find(keeper)?.map(Told::Keeper),
            Tracking::SoftDirty => Some(Told::SoftDirty(Checksums::of(ancestors.into_iter().chain([round])))),
        };
        let previous = Self { parent, first_page, runs, told, path };
        if previous.told.is_none() {
            previous.warn();
        }
        Ok(previous)
    }

    fn warn(&self) {
        log::warn!("nobody has kept track of what was written since {}: all is dumped", self.path.display());
    }

    /// Looks again whether somebody tells, when the tree stands still: until then another round can have come first, whose marks would be taken for those of
    /// this one. From here on that cannot be.
    ///
    /// # Errors
    /// As poll(2).
    pub(crate) fn while_frozen(self) -> Result<Self> {
        if let Some(keeper) = self.keeper()
            && !keeper.is_alive()?
        {
            self.warn();
            return Ok(Self { told: None, ..self });
        }
        Ok(self)
    }

    /// Forgets what has told of writes, if that was in another way: contents that are not checked yet stay so in one way only.
    pub(crate) fn only_by(self, way: Way) -> Self {
        let is_that = match &self.told {
            Some(Told::Keeper(_)) => way == Way::Protection,
            Some(Told::SoftDirty(_)) => way == Way::SoftDirty,
            None => true,
        };
        if is_that {
            return self;
        }
        log::warn!("what was written since the last pre-dump was noticed in another way: all is recorded");
        Self { told: None, ..self }
    }

    /// Whether anything tells what was written. If nothing does, none of its pages is used.
    pub(crate) fn has_told(&self) -> bool {
        self.told.is_some()
    }

    /// Who has the descriptors, if anybody.
    pub(crate) fn keeper(&self) -> Option<&Keeper> {
        match &self.told {
            Some(Told::Keeper(keeper)) => Some(keeper),
            _ => None,
        }
    }

    /// The same, to be ended.
    pub(crate) fn into_keeper(self) -> Option<Keeper> {
        match self.told {
            Some(Told::Keeper(keeper)) => Some(keeper),
            _ => None,
        }
    }

    /// Contents that it knows of a task, right or not, by rising address.
    pub(crate) fn known(&self, task: Instance) -> &[Run] {
        self.runs.get(&task).map_or(&[], Vec::as_slice)
    }

    /// Those contents of a stopped task that are said to be right still, by rising address.
    pub(crate) fn unwritten(&self, task: Instance, pagemap: &File) -> Result<Vec<Run>> {
        let (Some(runs), Some(told)) = (self.runs.get(&task), &self.told) else { return Ok(Vec::new()) };
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(Vec::new()) };
        if matches!(told, Told::SoftDirty(_)) {
            return soft_dirty::unwritten(pagemap, runs);
        }
        let mut kept = Vec::new();
        let found = |start, end| kept.extend(part(runs, start, end));
        let scanned = pagemap::scan_unwritten(pagemap.as_fd(), first.start.0, last.end(), found);
        match scanned {
            Ok(()) => Ok(kept),
            // No such thing, so nothing was tracked.
            Err(Errno::ENOTTY | Errno::EINVAL) => Ok(Vec::new()),
            Err(errno) => Err(errno).context("PAGEMAP_SCAN"),
        }
    }

    /// Those that are right.
    pub(crate) fn right(&self, task: &FrozenTask) -> Result<Vec<Run>> {
        let pagemap = File::from(task.dir.open("pagemap").context("open pagemap")?);
        let unwritten = self.unwritten(instance(task.pid)?, &pagemap)?;
        match &self.told {
            Some(Told::SoftDirty(checksums)) => checksums.confirmed(task, &pagemap, unwritten),
            _ => Ok(unwritten),
        }
    }
}

/// What of some runs, which rise, lies between two addresses.
pub(crate) fn part(runs: &[Run], start: u64, end: u64) -> impl Iterator<Item = Run> {
    let from = runs.partition_point(|run| run.end() <= start);
    runs[from..].iter().take_while(move |run| run.start.0 < end).map(move |run| {
        let (from, to) = (run.start.0.max(start), run.end().min(end));
        let skipped = (from - run.start.0) / PAGE_SIZE;
        Run {
            start: run.start.offset(from - run.start.0),
            pages: (to - from) / PAGE_SIZE,
            first_page: run.first_page + skipped,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::Addr;

    #[test]
    fn runs_are_cut() {
        let run = |start, pages, first_page| Run { start: Addr(start), pages, first_page };
        let runs = [run(0x1000, 2, 10), run(0x5000, 4, 20)];
        let cut = |start, end| part(&runs, start, end).collect::<Vec<_>>();
        assert_eq!(cut(0, 0x10000), runs);
        assert_eq!(cut(0x2000, 0x7000), [run(0x2000, 1, 11), run(0x5000, 2, 20)]);
        assert_eq!(cut(0x6000, 0x7000), [run(0x6000, 1, 21)]);
        assert_eq!(cut(0x3000, 0x5000), []);
    }
}
