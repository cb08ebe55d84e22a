//! Soft-dirty bits: what tells of writes where the kernel cannot tell by userfaultfd (before Linux 6.7), if it was built with
//! CONFIG_MEM_SOFT_DIRTY (Documentation/admin-guide/mm/soft-dirty.rst).
//!
//! A pre-dump clears the bits of a task, all at once, and pagemap shows for each page whether it was written since. They are part of the page
//! tables, so nobody has to keep them; but they do not tell all:
//!
//! - Whoever may write to `clear_refs` clears them, without a trace.
//! - Page tables that mremap moves as a whole (move_normal_pmd() of mm/mremap.c) bring their bits along, so a page looks unwritten where it
//!   was not before. So it is from 5.10 to 7.3.
//! - A page of zeros that was only read looks unwritten, also where contents were dropped (MADV_DONTNEED).
//! - In an area that has grown the kernel lets pages be written without setting their bits, since the area has one (VM_SOFTDIRTY), and that is lost
//!   when the area is joined with another one (can_change_pte_writable() and mprotect_fixup() of mm/mprotect.c; so it is in 6.1 and 6.12, not in 5.10 and 7.3).
//!
//! So they are believed for rounds, in which nothing is lost yet, and the dump, when the tree stands still, compares the checksum of each page that
//! is said to be unwritten with that of what was recorded. Where one differs that cannot be a page of zeros, no bit of that task is believed.

use super::part;
use crate::dump::freeze::FrozenTask;
use crate::parallel::in_parallel;
use crate::proc::Dir;
use crate::ptrace;
use crate::store::{PAGE, Round};
use crate::sys::vm::{self, Remote};
use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use images::memory::Run;
use images::{Addr, Pid};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

// Documentation/admin-guide/mm/pagemap.rst.
const SOFT_DIRTY: u64 = 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
/// A guard page, which counts as swapped. Before Linux 6.15 nothing tells it from one.
const GUARD: u64 = 1 << 58;
const FILE_OR_SHARED: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// Words of pagemap that are read at once.
const WORDS: u64 = 1 << 14;

/// Pages that are compared while they are in the cache.
const STEP: u64 = 32;

/// Steps that one processor takes at a time.
const STEPS: usize = 64;

/// `/proc/PID/clear_refs` of a task.
#[derive(Debug)]
pub(crate) struct ClearRefs(OwnedFd);

impl ClearRefs {
    /// Opens it.
    ///
    /// # Errors
    /// As open(2).
    pub(crate) fn of(task: &Dir) -> Result<Self> {
        task.open_for_writing("clear_refs").map(Self).context("open clear_refs")
    }

    /// Clears the soft-dirty bits of all pages and areas: writes are noticed from now on.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn clear(&self) -> Result<()> {
        nix::unistd::write(&self.0, b"4").context("clear soft-dirty bits")?;
        Ok(())
    }
}

/// What of some runs, by rising address, is there and said to be unwritten.
pub(super) fn unwritten(pagemap: &File, runs: &[Run]) -> Result<Vec<Run>> {
    let mut found = Vec::new();
    for run in runs {
        for_each_word(pagemap, run.start.0, run.end(), |start, words| found.extend(clean(start, words)))?;
    }
    Ok(found.into_iter().flat_map(|(start, end)| part(runs, start, end).collect::<Vec<_>>()).collect())
}

/// Ranges of unwritten pages among those from an address on.
fn clean(start: u64, words: &[u64]) -> Vec<(u64, u64)> {
    let is_clean =
        |word: u64| word & (PRESENT | SWAPPED) != 0 && word & (FILE_OR_SHARED | SOFT_DIRTY | GUARD) == 0;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (&word, at) in words.iter().zip((start..).step_by(PAGE)) {
        match ranges.last_mut() {
            _ if !is_clean(word) => {}
            Some((_, end)) if *end == at => *end += PAGE_SIZE,
            _ => ranges.push((at, at + PAGE_SIZE)),
        }
    }
    ranges
}

/// Gives the words of a range to `each`, in parts. Pagemap ends where the addresses of its task do (pagemap_read(), fs/proc/task_mmu.c): a
/// task that has executed an ia32 program since has no page where a run may be.
fn for_each_word(pagemap: &File, start: u64, end: u64, mut each: impl FnMut(u64, &[u64])) -> Result<()> {
    let mut at = start;
    while at < end {
        let pages = ((end - at) / PAGE_SIZE).min(WORDS);
        let mut bytes = vec![0u8; usize::try_from(pages * 8)?];
        let mut got = 0;
        while got < bytes.len() {
            match pagemap.read_at(&mut bytes[got..], at / PAGE_SIZE * 8 + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("read pagemap"),
            }
        }
        let words: Vec<u64> =
            bytes[..got].as_chunks().0.iter().map(|&word| u64::from_ne_bytes(word)).collect();
        each(at, &words);
        if got < bytes.len() {
            return Ok(());
        }
        at += pages * PAGE_SIZE;
    }
    Ok(())
}

/// The checksums of all pages of a chain of pre-dumps.
#[derive(Debug)]
pub(crate) struct Checksums {
    /// By rising number of their first page.
    rounds: Vec<(u64, Vec<u32>)>,
}

impl Checksums {
    /// Of a chain, the oldest first.
    pub(super) fn of(chain: impl IntoIterator<Item = Round>) -> Self {
        let of_pages = |round: &Round| round.memory.block_pages == 1;
        let rounds = chain.into_iter().filter(of_pages);
        Self { rounds: rounds.map(|round| (round.memory.first_page, round.memory.block_crcs)).collect() }
    }

    fn of_page(&self, page: u64) -> Option<u32> {
        let (first, crcs) =
            self.rounds.get(self.rounds.partition_point(|(first, _)| *first <= page).checked_sub(1)?)?;
        crcs.get(usize::try_from(page - first).ok()?).copied()
    }

    /// Those of a stopped task's unwritten runs that are what was recorded.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn confirmed(&self, task: &FrozenTask, pagemap: &File, runs: Vec<Run>) -> Result<Vec<Run>> {
        let memory = File::from(task.dir.open("mem").context("open mem")?);
        let Compared { mut differing, unreadable } = self.compare(task.deputy(), &memory, &runs)?;
        differing.sort_unstable();
        for &at in &differing {
            let mut may_be_zeros = true;
            for_each_word(pagemap, at, at + PAGE_SIZE, |_, words| {
                // The page of zeros is nobody's own.
                may_be_zeros = words.iter().all(|word| word & (EXCLUSIVE | SWAPPED) == 0);
            })?;
            if !may_be_zeros {
                log::warn!(
                    "task {} ({}): memory has changed without a trace (at {at:#x}): all of it is dumped",
                    task.pid,
                    task.name
                );
                return Ok(Vec::new());
            }
        }
        let mut left_out = [differing, unreadable].concat();
        left_out.sort_unstable();
        Ok(without(&runs, &left_out))
    }

    /// Compares the pages of runs with what was recorded.
    fn compare(&self, pid: Pid, memory: &File, runs: &[Run]) -> Result<Compared> {
        let steps: Vec<Run> = runs.iter().copied().flat_map(steps).collect();
        let parts: Vec<&[Run]> = steps.chunks(STEPS).collect();
        let compared = Mutex::new(Compared::default());
        in_parallel(parts.len() as u64, |part| {
            ptrace::check_interrupted()?;
            let mut buffer = vec![0u8; usize::try_from(STEP * PAGE_SIZE)?];
            let mut found = Compared::default();
            for step in parts[usize::try_from(part)?] {
                let bytes = &mut buffer[..usize::try_from(step.pages * PAGE_SIZE)?];
                // What a task may not read itself, /proc/PID/mem shows.
                let unreadable =
                    if vm::read(pid, bytes, &[Remote::new(step.start, bytes.len())]) == Ok(bytes.len()) {
                        Vec::new()
                    } else {
                        read_by_force(memory, step.start.0, bytes)?
                    };
                let pages =
                    (step.start.0..).step_by(PAGE).zip(step.first_page..).zip(bytes.chunks_exact(PAGE));
                let other = pages.filter(|((at, page), bytes)| {
                    !unreadable.contains(at) && self.of_page(*page) != Some(crc32c::crc32c(bytes))
                });
                found.differing.extend(other.map(|((at, _), _)| at));
                found.unreadable.extend(unreadable);
            }
            let mut compared = compared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            compared.differing.extend(found.differing);
            compared.unreadable.extend(found.unreadable);
            Ok(())
        })?;
        Ok(compared.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Addresses of pages that are not known to be what was recorded.
#[derive(Debug, Default)]
struct Compared {
    /// Their checksums are other ones.
    differing: Vec<u64>,
    /// Nobody can read them: guard pages that are not said to be any.
    unreadable: Vec<u64>,
}

/// Fills whole pages from `/proc/PID/mem`. Returns the addresses of those that cannot be read.
fn read_by_force(memory: &File, start: u64, bytes: &mut [u8]) -> Result<Vec<u64>> {
    if memory.read_exact_at(bytes, start).is_ok() {
        return Ok(Vec::new());
    }
    let mut unreadable = Vec::new();
    for (at, page) in (start..).step_by(PAGE).zip(bytes.chunks_exact_mut(PAGE)) {
        match memory.read_exact_at(page, at) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EIO) => unreadable.push(at),
            Err(e) => return Err(e).with_context(|| format!("read memory at {}", Addr(at))),
        }
    }
    Ok(unreadable)
}

/// A run in parts of one step each.
fn steps(run: Run) -> impl Iterator<Item = Run> {
    let step = usize::try_from(STEP).unwrap_or(usize::MAX);
    (0..run.pages).step_by(step).map(move |done| Run {
        start: run.start.offset(done * PAGE_SIZE),
        pages: STEP.min(run.pages - done),
        first_page: run.first_page + done,
    })
}

/// Runs without some of their pages; all rise.
fn without(runs: &[Run], pages: &[u64]) -> Vec<Run> {
    let mut left = Vec::with_capacity(runs.len());
    let mut from = 0;
    for &page in pages.iter().chain([&u64::MAX]) {
        if from < page {
            left.extend(part(runs, from, page));
        }
        from = page.saturating_add(PAGE_SIZE);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mapping::SharedMapping;

    fn run(start: u64, pages: u64, first_page: u64) -> Run {
        Run { start: Addr(start), pages, first_page }
    }

    #[test]
    fn pages_are_told_by_their_words() {
        let unwritten = PRESENT | EXCLUSIVE | 0x1234;
        let words = [
            unwritten,
            SWAPPED,
            unwritten | SOFT_DIRTY,
            0,
            SOFT_DIRTY,
            PRESENT | FILE_OR_SHARED,
            SWAPPED | SOFT_DIRTY,
            PRESENT,
            SWAPPED | GUARD,
        ];
        assert_eq!(clean(0x10_0000, &words), [(0x10_0000, 0x10_2000), (0x10_7000, 0x10_8000)]);
    }

    #[test]
    fn checksums_are_found_in_their_rounds() {
        let checksums = Checksums { rounds: vec![(0, vec![10, 11]), (2, vec![]), (2, vec![12])] };
        let found: Vec<_> = (0..4).map(|page| checksums.of_page(page)).collect();
        assert_eq!(found, [Some(10), Some(11), Some(12), None]);
        assert_eq!(Checksums { rounds: Vec::new() }.of_page(0), None);
    }

    #[test]
    fn pages_are_left_out() {
        let runs = [run(0x1000, 3, 7), run(0x8000, 2, 3)];
        assert_eq!(without(&runs, &[]), runs);
        assert_eq!(
            without(&runs, &[0x2000, 0x8000]),
            [run(0x1000, 1, 7), run(0x3000, 1, 9), run(0x9000, 1, 4)]
        );
        assert_eq!(without(&runs, &[0x1000, 0x2000, 0x3000, 0x8000, 0x9000]), []);
    }

    #[test]
    fn runs_are_compared_step_by_step() {
        let parts: Vec<_> = steps(run(0x1000, 2 * STEP + 1, 5)).collect();
        assert_eq!(parts[0], run(0x1000, STEP, 5));
        assert_eq!(parts[2], run(0x1000 + 2 * STEP * PAGE_SIZE, 1, 5 + 2 * STEP));
        assert_eq!(parts.len(), 3);
    }

    /// In the memory of this process, which is not stopped, but does not change.
    #[test]
    fn pages_that_differ_are_found() {
        const PAGES: usize = 3 * 32 + 7;
        let room = vec![0u8; (PAGES + 1) * PAGE];
        let skip = room.as_ptr().align_offset(PAGE);
        let start = room.as_ptr().addr() + skip;
        let mut room = room;
        for (number, page) in room[skip..skip + PAGES * PAGE].chunks_exact_mut(PAGE).enumerate() {
            page.fill(u8::try_from(number).unwrap());
        }
        let crc_of = |page: usize| crc32c::crc32c(&room[skip + page * PAGE..][..PAGE]);
        let mut crcs: Vec<u32> = (0..PAGES).map(crc_of).collect();
        let memory = File::open("/proc/self/mem").unwrap();
        let pid = nix::unistd::getpid().as_raw();
        let start = start as u64;
        let whole = [run(start, PAGES as u64, 1000)];
        let differing = |crcs: &[u32]| {
            let checksums = Checksums { rounds: vec![(0, vec![0; 1000]), (1000, crcs.to_vec())] };
            let mut found = checksums.compare(pid, &memory, &whole).unwrap();
            assert!(found.unreadable.is_empty());
            found.differing.sort_unstable();
            found.differing
        };
        assert!(differing(&crcs).is_empty());
        crcs[0] ^= 1;
        crcs[PAGES - 1] ^= 1;
        crcs[40] ^= 1 << 31;
        assert_eq!(differing(&crcs), [0, 40, PAGES as u64 - 1].map(|page| start + page * PAGE_SIZE));
        crcs.pop();
        assert_eq!(differing(&crcs).len(), 3);
    }

    /// As where a mapping is longer than its file.
    #[test]
    fn pages_that_nobody_can_read_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 2 * PAGE], 0).unwrap();
        let mapping = SharedMapping::of_file(&file, 4 * PAGE_SIZE).unwrap();
        let start = mapping.bytes().as_ptr().addr() as u64;
        let checksums = Checksums { rounds: vec![(5, vec![crc32c::crc32c(&[7; PAGE]), 0, 0, 0])] };
        let memory = File::open("/proc/self/mem").unwrap();
        let pid = nix::unistd::getpid().as_raw();
        let Compared { differing, mut unreadable } =
            checksums.compare(pid, &memory, &[run(start, 4, 5)]).unwrap();
        unreadable.sort_unstable();
        assert_eq!(differing, [start + PAGE_SIZE]);
        assert_eq!(unreadable, [start + 2 * PAGE_SIZE, start + 3 * PAGE_SIZE]);
    }

    #[test]
    fn pagemap_ends_where_the_addresses_of_a_task_do() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let words_of = |start: u64, pages: u64| {
            let mut count = 0;
            for_each_word(&pagemap, start, start + pages * PAGE_SIZE, |_, words| count += words.len())
                .unwrap();
            count
        };
        let here = std::ptr::from_ref(&pagemap).addr() as u64 / PAGE_SIZE * PAGE_SIZE;
        assert_eq!(words_of(here, 1), 1);
        // With tables of four levels, and of five: the last page that there may be is followed by one that there is not.
        let last = [1u64 << 47, 1 << 56].map(|end| words_of(end - 4 * PAGE_SIZE, 8));
        assert!(last == [3, 0] || last == [8, 3], "{last:?}");
        assert_eq!(words_of(1 << 60, WORDS + 1), 0);
    }
}
