//! Which pages of a tree were written since the last pre-dump.
//!
//! A task makes a userfaultfd, crr takes a copy, and the task closes its own. Each area of anonymous memory is put under it, and
//! each page is write-protected when its contents are recorded; the kernel drops the protection of a page that is written, and tells which
//! are still protected. New areas, areas that moved and those of forked children are not under it: what is in there counts as written.
//! (Areas of files are not tracked: there the kernel keeps marks in the place of pages that are gone.)
//!
//! It lasts as long as a copy is open, so a process of crr's own, the [`keeper`], has them until the next pre-dump or the dump
//! takes over, or the tasks have ended. If the keeper is killed, tracking is over, which the next one notices: nothing counts as unwritten then.

pub mod keeper;

use crate::proc::{self, stat};
use crate::store::{Destination, Round};
use crate::sys::pagemap;
use anyhow::{Context, Result};
use images::Pid;
use images::id::PAGE_SIZE;
use images::inventory::{Instance, Parent};
use images::memory::Run;
use keeper::Keeper;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process as it is now.
///
/// # Errors
/// If it is gone.
pub(crate) fn instance(pid: Pid) -> Result<Instance> {
    let mut text = Vec::new();
    proc::Dir::task(pid)
        .and_then(|dir| dir.read("stat", &mut text))
        .with_context(|| format!("no task {pid}"))?;
    Ok(Instance { pid, start_time: stat::parse(&text)?.start_time })
}

/// The pre-dump that a dump builds on.
#[derive(Debug)]
pub(crate) struct Previous {
    pub(crate) parent: Parent,
    /// Number of the first page that is not its own, nor of those before it.
    pub(crate) first_page: u64,
    /// Contents that it knows of each task.
    runs: BTreeMap<Instance, Vec<Run>>,
    /// Who has kept track since; `None` if nobody has all the time.
    pub(crate) keeper: Option<Keeper>,
}

impl Previous {
    /// Opens it; `dir` is seen from the directory of the images that are to be made.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn open(destination: &Destination, dir: &Path) -> Result<Self> {
        let round = Round::open_for(destination, dir).with_context(|| {
            format!("--prev-images-dir {}, as seen from {}", dir.display(), destination.dir().display())
        })?;
        let pre_dump = round.pre_dump()?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let keeper = Some(pre_dump.keeper).filter(|_| round.inventory.boot_id == boot_id.trim_end());
        let keeper = keeper.map(Keeper::find).transpose()?.flatten();
        if keeper.is_none() {
            log::warn!(
                "nobody has kept track of what was written since {}: all is dumped",
                round.dir.display()
            );
        }
        let parent = Parent { dir: dir.as_os_str().as_bytes().to_vec(), crc: round.crc };
        let runs =
            pre_dump.tasks.iter().copied().zip(round.memory.spaces.iter().map(|space| space.runs.clone()));
        let first_page = round.memory.first_page + round.memory.page_count;
        Ok(Self { parent, first_page, runs: runs.collect(), keeper })
    }

    /// Those contents of a stopped task that are still right, by rising address.
    pub(crate) fn unwritten(&self, task: Instance, pagemap: &File) -> Result<Vec<Run>> {
        let (Some(runs), Some(_)) = (self.runs.get(&task), &self.keeper) else { return Ok(Vec::new()) };
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(Vec::new()) };
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
