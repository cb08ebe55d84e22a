//! Page contents: which there are, where each goes in the page file, and carrying them there.
//!
//! First every run of pages gets its place; then workers take one block of the page file after the other,
//! gather its pages from the tasks into a buffer of their own, take the checksum while they are in the cache and write
//! the block. So nothing is copied more than once in memory, and no order has to be kept.

use super::frames::{Frames, Stretch};
use crate::progress::Progress;
use crate::ptrace;
use crate::resource::memory::SharedObject;
use crate::sys::pagemap;
use crate::sys::vm::{self, Remote};
use anyhow::{Context, Result, anyhow, bail};
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, Backing, Run, Shared, Vma};
use images::{Addr, Pid};
use nix::errno::Errno;
use nix::unistd::Whence;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where pages come from.
#[derive(Debug)]
enum Source {
    /// A task, with its `/proc/PID/mem` for what it may not read itself.
    Task(Pid, File),
    /// A shared memory object, or a deleted file.
    File(File, String),
}

/// A run of pages with its source.
#[derive(Clone, Copy, Debug)]
struct Piece {
    source: usize,
    run: Run,
    /// The area is not readable: process_vm_readv would refuse.
    forced: bool,
}

/// All page contents of a tree, in the order of the page file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    pages: u64,
}

impl Contents {
    pub(super) fn page_count(&self) -> u64 {
        self.pages
    }

    pub(super) fn add_task(&mut self, pid: Pid, memory: File) -> usize {
        self.sources.push(Source::Task(pid, memory));
        self.sources.len() - 1
    }

    fn push(&mut self, source: usize, start: u64, end: u64, forced: bool) -> Run {
        let run = Run { start: Addr(start), pages: (end - start) / PAGE_SIZE, first_page: self.pages };
        self.pieces.push(Piece { source, run, forced });
        self.pages += run.pages;
        run
    }

    /// The pages of a task's private areas that differ from their backing. With `frames`, those that another task has stored
    /// already are not stored again.
    pub(super) fn find_private(
        &mut self,
        source: usize,
        pagemap: File,
        vmas: &[Vma],
        frames: Option<&mut Frames>,
    ) -> Result<Vec<Run>> {
        let ranges = private_ranges(&pagemap, vmas)?;
        let Some(frames) = frames else {
            return Ok(ranges.iter().map(|r| self.push(source, r.start, r.end, r.forced)).collect());
        };
        frames.add_task(pagemap);
        let mut runs = Vec::new();
        for range in ranges {
            for Stretch { start, pages, stored } in frames.split(range.start, range.end, self.pages)? {
                runs.push(match stored {
                    Some(first_page) => Run { start: Addr(start), pages, first_page },
                    None => self.push(source, start, start + pages * PAGE_SIZE, range.forced),
                });
            }
        }
        Ok(runs)
    }

    /// The touched pages of a shared memory object.
    pub(super) fn add_shared(&mut self, object: SharedObject) -> Result<Shared> {
        let SharedObject { ino, file } = object;
        let size = file.metadata().context("fstat")?.len();
        let runs = self.find_data(&file, size)?;
        self.sources.push(Source::File(file, format!("shared memory {ino}")));
        Ok(Shared { size, ino, runs })
    }

    /// What was written to a deleted file.
    pub(super) fn add_file(&mut self, file: File, name: String) -> Result<Vec<Run>> {
        let size = file.metadata().context("fstat")?.len();
        let runs = self.find_data(&file, size)?;
        self.sources.push(Source::File(file, name));
        Ok(runs)
    }

    /// The data of a file that is about to become a source.
    fn find_data(&mut self, file: &File, size: u64) -> Result<Vec<Run>> {
        let source = self.sources.len();
        let mut runs = Vec::new();
        let mut at = 0;
        while at < size {
            let Some(start) = seek(file, at, Whence::SeekData)? else { break };
            // Where blocks are smaller than pages, a page can hold both.
            let start = (start / PAGE_SIZE * PAGE_SIZE).max(at);
            let hole = seek(file, start, Whence::SeekHole)?.unwrap_or(size);
            let end = hole.min(size).next_multiple_of(PAGE_SIZE);
            runs.push(self.push(source, start, end, false));
            at = end;
        }
        Ok(runs)
    }

    /// Writes everything to the page file, and returns the checksum of each block.
    pub(super) fn write(&self, pages: &File, progress: &Progress) -> Result<Vec<u32>> {
        let blocks = usize::try_from(self.pages.div_ceil(BLOCK_PAGES)).context("too many pages")?;
        let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 8).min(blocks);
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let work = || -> Result<Vec<(u64, u32)>> {
            let mut buffer = vec![0u8; usize::try_from(STEP_PAGES * PAGE_SIZE)?];
            let mut done = Vec::new();
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                if block >= blocks as u64 || failed.load(Ordering::Relaxed) {
                    return Ok(done);
                }
                let written = ptrace::check_interrupted()
                    .map_err(Into::into)
                    .and_then(|()| self.write_block(block, &mut buffer, pages));
                match written {
                    Ok(crc) => done.push((block, crc)),
                    Err(e) => {
                        failed.store(true, Ordering::Relaxed);
                        return Err(e);
                    }
                }
                progress.add(BLOCK_PAGES * PAGE_SIZE);
            }
        };
        let mut crcs = vec![0u32; blocks];
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            results.extend(threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(anyhow!("a worker that copies pages panicked")))
            }));
            for result in results {
                for (block, crc) in result? {
                    crcs[usize::try_from(block)?] = crc;
                }
            }
            Ok(crcs)
        })
    }

    /// One block, in steps that stay in the cache between being gathered, summed and written.
    fn write_block(&self, block: u64, buffer: &mut [u8], pages: &File) -> Result<u32> {
        let (mut first, last) = (block * BLOCK_PAGES, ((block + 1) * BLOCK_PAGES).min(self.pages));
        let mut crc = 0;
        while first < last {
            let end = (first + STEP_PAGES).min(last);
            let step = &mut buffer[..usize::try_from((end - first) * PAGE_SIZE)?];
            self.gather(first, end, step)?;
            crc = crc32c::crc32c_append(crc, step);
            pages.write_all_at(step, first * PAGE_SIZE).context("write pages")?;
            first = end;
        }
        Ok(crc)
    }

    /// Fills a buffer with the pages `first..last` of the page file.
    fn gather(&self, first: u64, last: u64, buffer: &mut [u8]) -> Result<()> {
        let mut index = self.pieces.partition_point(|piece| piece.run.first_page + piece.run.pages <= first);
        let mut page = first;
        let mut rest = buffer;
        while page < last {
            let mut gather: Vec<Remote> = Vec::new();
            let mut bytes = 0;
            let piece = self.pieces.get(index).context("page index")?;
            // As many pieces as one call can take: of one source, and all readable.
            while let Some(next) = self.pieces.get(index)
                && page < last
                && next.source == piece.source
                && (gather.is_empty() || !(next.forced || piece.forced))
            {
                let skip = page - next.run.first_page;
                let take = (next.run.pages - skip).min(last - page);
                let len = usize::try_from(take * PAGE_SIZE)?;
                gather.push(Remote::new(next.run.start.offset(skip * PAGE_SIZE), len));
                bytes += len;
                page += take;
                if skip + take == next.run.pages {
                    index += 1;
                }
            }
            let (now, later) = rest.split_at_mut(bytes);
            self.sources.get(piece.source).context("page source")?.read(piece.forced, &gather, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// Pages that are carried at once: a part of a core's own cache.
const STEP_PAGES: u64 = 32;

const PROT_READ: u32 = 1;

/// lseek to data or to a hole; `None` when there is none behind.
fn seek(file: &File, offset: u64, whence: Whence) -> Result<Option<u64>> {
    match nix::unistd::lseek(file, i64::try_from(offset)?, whence) {
        Ok(at) => Ok(Some(u64::try_from(at)?)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno).context("seek"),
    }
}

impl Source {
    fn read(&self, forced: bool, gather: &[Remote], buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Task(pid, _) if !forced => {
                let n = vm::read(*pid, buffer, gather).unwrap_or(0);
                if n == buffer.len() {
                    return Ok(());
                }
                let (at, _) = locate(gather, n);
                bail!("task {pid}: cannot read memory at {at} ({n} of {} bytes)", buffer.len())
            }
            Self::Task(pid, file) => read_each(file, gather, buffer)
                .map_err(|(at, e)| anyhow!(e).context(format!("task {pid}: read memory at {at}"))),
            Self::File(file, name) => read_each(file, gather, buffer)
                .map_err(|(at, e)| anyhow!(e).context(format!("{name}: read at {at}"))),
        }
    }
}

/// Where the byte number `n` of a gathered read lies.
fn locate(gather: &[Remote], n: usize) -> (Addr, usize) {
    let mut left = n;
    for remote in gather {
        if left < remote.len() {
            return (remote.start().offset(left as u64), left);
        }
        left -= remote.len();
    }
    (Addr(0), 0)
}

fn read_each(file: &File, gather: &[Remote], buffer: &mut [u8]) -> Result<(), (Addr, std::io::Error)> {
    let mut rest = buffer;
    for remote in gather {
        let (now, later) = rest.split_at_mut(remote.len());
        read_padded(file, now, remote.start().0).map_err(|e| (remote.start(), e))?;
        rest = later;
    }
    Ok(())
}

/// Reads whole pages; behind the end of a file there are zeros.
fn read_padded(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) if have > 0 => {
                buffer[have..].fill(0);
                return Ok(());
            }
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => have += got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Pages of one private area.
struct PageRange {
    start: u64,
    end: u64,
    /// The area is not readable.
    forced: bool,
}

/// Pages of private areas that differ from their backing.
fn private_ranges(pagemap: &File, vmas: &[Vma]) -> Result<Vec<PageRange>> {
    let private: Vec<&Vma> = vmas
        .iter()
        .filter(|vma| matches!(vma.backing, Backing::Anonymous | Backing::PrivateFile(..)))
        .collect();
    let (Some(first), Some(last)) = (private.first(), private.last()) else { return Ok(Vec::new()) };
    let mut ranges: Vec<PageRange> = Vec::new();
    let mut areas = private.iter().peekable();
    let found = |from: u64, to: u64| {
        while areas.next_if(|vma| vma.end.0 <= from).is_some() {}
        // A range can span areas; the last of them is looked at again for the next range.
        let mut at = areas.clone();
        while let Some(vma) = at.next().filter(|vma| vma.start.0 < to) {
            let (start, end) = (from.max(vma.start.0), to.min(vma.end.0));
            match ranges.last_mut() {
                // Present and swapped pages of one area come as separate ranges.
                Some(range) if range.end == start && start > vma.start.0 => range.end = end,
                _ => ranges.push(PageRange { start, end, forced: vma.prot & PROT_READ == 0 }),
            }
        }
    };
    scan(pagemap, first.start.0, last.end.0, &private, found)?;
    Ok(ranges)
}

/// Ranges of pages to store, by PAGEMAP_SCAN or, before Linux 6.7, by reading pagemap.
fn scan(pagemap: &File, start: u64, end: u64, areas: &[&Vma], mut found: impl FnMut(u64, u64)) -> Result<()> {
    match pagemap::scan_private(pagemap.as_fd(), start, end, &mut found) {
        Ok(()) => Ok(()),
        Err(Errno::ENOTTY) => read_pagemap(pagemap, areas, found),
        Err(errno) => Err(errno).context("PAGEMAP_SCAN"),
    }
}

/// One word a page: Documentation/admin-guide/mm/pagemap.rst. The page of zeros is not told from others here and gets stored.
fn read_pagemap(pagemap: &File, areas: &[&Vma], mut found: impl FnMut(u64, u64)) -> Result<()> {
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    const FILE_OR_SHARED: u64 = 1 << 61;
    const CHUNK_PAGES: u64 = 1 << 16;
    let mut words = vec![0u8; usize::try_from(CHUNK_PAGES * 8)?];
    for vma in areas {
        let mut at = vma.start.0;
        while at < vma.end.0 {
            let pages = ((vma.end.0 - at) / PAGE_SIZE).min(CHUNK_PAGES);
            let words = &mut words[..usize::try_from(pages * 8)?];
            pagemap.read_exact_at(words, at / PAGE_SIZE * 8).context("read pagemap")?;
            for (word, page) in words.chunks_exact(8).zip((at..).step_by(4096)) {
                let word = u64::from_le_bytes(word.try_into()?);
                if word & PRESENT_OR_SWAPPED != 0 && word & FILE_OR_SHARED == 0 {
                    found(page, page + PAGE_SIZE);
                }
            }
            at += pages * PAGE_SIZE;
        }
    }
    Ok(())
}
