//! Putting page contents in place from here, while the tasks stand still.
//!
//! A task that reads its memory from the images takes a fault and a page of zeros for each page that it then overwrites. By
//! userfaultfd(2) the kernel takes a page as it is (UFFDIO_COPY), from a block of the images whose checksum has been computed right before. One
//! pool of threads does that for all tasks, in the order of the page file.

use super::Restore;
use super::prepare::Preparation;
use crate::fault::{self, Point};
use crate::parallel::in_parallel;
use crate::progress::Progress;
use crate::ptrace::check_interrupted;
use crate::store::{Unchecked, verify_bytes};
use crate::sys::{userfaultfd, vm};
use anyhow::{Context, Result, ensure};
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, HugePage, Run, Vma, vm as flag};
use images::{Addr, Pid};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Which areas are better read by their tasks, since the kernel makes huge pages of them then.
#[derive(Clone, Copy, Debug)]
pub(super) struct HugePages {
    /// Of all areas, unless they are not to have any; else only of those that are.
    always: bool,
}

impl HugePages {
    /// Those of this kernel.
    pub(super) fn here() -> Self {
        let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        Self { always: mode.contains("[always]") }
    }

    /// Whether the kernel makes them of all memory that is not to have none.
    pub(super) const fn always(self) -> bool {
        self.always
    }

    /// Whether an area may come to have huge pages.
    pub(super) fn may_be_in(self, vma: &Vma) -> bool {
        let size = HugePage::Mib2.size();
        let fits = vma.start.0.next_multiple_of(size) + size <= vma.end.0;
        let wanted = vma.flags & flag::HUGE_PAGE != 0 || (self.always && vma.flags & flag::NO_HUGE_PAGE == 0);
        fits && wanted
    }
}

/// Pages of a task that lie in one block of the page file.
#[derive(Debug)]
struct Piece {
    /// By index.
    task: usize,
    run: Run,
}

/// All that is to be put.
#[derive(Debug)]
pub(super) struct Fill {
    /// By the number of the block.
    blocks: Vec<(u64, Vec<Piece>)>,
    /// Blocks that are checked when they are put.
    unchecked: Unchecked,
}

impl Fill {
    /// Of what a preparation leaves out.
    pub(super) fn of(preparation: &Preparation, unchecked: Unchecked) -> Self {
        let mut blocks: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
        for (task, lazy) in preparation.lazy.iter().enumerate() {
            for run in &lazy.runs {
                for (block, run) in run.by_blocks() {
                    blocks.entry(block).or_default().push(Piece { task, run });
                }
            }
        }
        Self { blocks: blocks.into_iter().collect(), unchecked }
    }

    /// Puts everything in place, by the descriptors of the tasks, and closes these: as long as there is one, the kernel itself cannot touch what is
    /// missing on behalf of a task.
    ///
    /// # Errors
    /// Names the task; or the part of the images that is corrupt. When there is no time left, or a signal came.
    pub(super) fn run(
        &self,
        restore: &Restore<'_>,
        descriptors: BTreeMap<usize, OwnedFd>,
        deadline: Instant,
        show: bool,
    ) -> Result<()> {
        let (checkpoint, tasks) = (restore.checkpoint, &restore.checkpoint.tree.tasks);
        for (&index, fd) in &descriptors {
            let areas = &restore.preparation.lazy[index].areas;
            userfaultfd::enable_putting(fd.as_fd())
                .and_then(|()| {
                    areas
                        .iter()
                        .try_for_each(|area| userfaultfd::await_missing(fd.as_fd(), area.start, area.end))
                })
                .with_context(|| format!("task {}: userfaultfd", tasks[index].pid))?;
        }
        // Of the file: in memory it has those of the checkpoints that this one builds on, too.
        let page_count = checkpoint.memory.first_page + checkpoint.memory.page_count;
        let runs = self.blocks.iter().flat_map(|(_, pieces)| pieces).map(|piece| piece.run.pages);
        let progress = Progress::new(show, runs.sum::<u64>() * PAGE_SIZE, "putting pages in place");
        in_parallel(self.blocks.len() as u64, |at| {
            check_interrupted()?;
            ensure!(Instant::now() < deadline, "timed out while memory was put in place");
            let (block, pieces) = &self.blocks[usize::try_from(at)?];
            let count = (page_count - block * BLOCK_PAGES).min(BLOCK_PAGES);
            let contents = checkpoint.pages.block(block * BLOCK_PAGES * PAGE_SIZE, count * PAGE_SIZE);
            let contents = contents.context("pages.img")?;
            if let Some(&crc) = self.unchecked.get(block) {
                verify_bytes(contents.bytes(), *block, crc).context("pages.img")?;
            }
            for Piece { task, run } in pieces {
                let from = usize::try_from((run.first_page - block * BLOCK_PAGES) * PAGE_SIZE)?;
                let bytes = &contents.bytes()[from..from + usize::try_from(run.pages * PAGE_SIZE)?];
                let (pid, fd) = (tasks[*task].pid, descriptors.get(task).map(AsFd::as_fd));
                let fd = fd.with_context(|| format!("task {pid}: sent no userfaultfd"))?;
                put(pid, fd, run.start.0, bytes)
                    .with_context(|| format!("task {pid}: put pages in place"))?;
                progress.add(bytes.len() as u64);
            }
            for Piece { run, .. } in pieces {
                checkpoint.pages.give_back(run.first_page * PAGE_SIZE, run.pages * PAGE_SIZE);
            }
            Ok(())
        })
    }
}

fn put(pid: Pid, fd: BorrowedFd<'_>, start: u64, mut bytes: &[u8]) -> Result<()> {
    let mut at = start;
    while !bytes.is_empty() {
        let done = match fault::point(Point::PutPages).and_then(|()| userfaultfd::put(fd, at, bytes)) {
            Ok(done) => usize::try_from(done)?,
            // Something has touched the page by now.
            Err(Errno::EEXIST) => {
                let len = bytes.len().min(usize::try_from(PAGE_SIZE)?);
                vm::write_all(pid, Addr(at), &bytes[..len])?;
                len
            }
            Err(Errno::EAGAIN) => 0,
            Err(errno) => return Err(errno.into()),
        };
        at += done as u64;
        bytes = &bytes[done..];
    }
    Ok(())
}
