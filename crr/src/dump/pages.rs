//! Page contents: which there are, where each goes in the page file, and carrying them there.
//!
//! First every run of pages gets its place; then workers take one block of the page file after the other,
//! gather its pages from the tasks into a buffer of their own, take the checksum (and pack them, if asked) while they are in the cache and
//! write the block. So no page is gathered twice, and no order has to be kept.

use super::frames::{Frames, Stretch};
use crate::fault::{self, Point};
use crate::parallel;
use crate::progress::Progress;
use crate::ptrace;
use crate::resource::hugetlb;
use crate::resource::memory::SharedObject;
use crate::store::{Aligned, Compression, DirectIo, GivenUp, PAGE, Packer, Sink};
use crate::sys::pagemap::{self, Found};
use crate::sys::vm::{self, Remote};
use crate::sys::window::Window;
use crate::track;
use anyhow::{Context, Result, anyhow, bail};
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, Backing, CHUNK_PAGES, Chunk, Guard, HugePage, Packing, Run, Shared, Vma};
use images::{Addr, PathId, Pid};
use nix::errno::Errno;
use nix::unistd::Whence;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where pages come from.
#[derive(Debug)]
enum Source {
    /// A task, with its `/proc/PID/mem` for what it may not read itself.
    Task(Pid, File),
    /// A twin of a task, which has its contents while that one runs on.
    Twin(Pid, File),
    /// A shared memory object, a deleted file, or memory of a task by its file alone.
    File(File, String),
}

/// A run of pages with its source.
#[derive(Clone, Copy, Debug)]
struct Piece {
    source: usize,
    run: Run,
    /// Not by process_vm_readv: it would refuse, where the area is not readable, or give the task a copy of its own of each page that it has in common with
    /// others (FAULT_FLAG_UNSHARE of Linux 5.19, gup_must_unshare() of mm/internal.h).
    forced: bool,
}

/// How pages are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Pages under one checksum: 1 or [`BLOCK_PAGES`].
    pub(super) block_pages: u64,
    pub(super) compression: Option<Compression>,
    pub(super) direct_io: DirectIo,
}

/// What the records say of pages that were written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) block_crcs: Vec<u32>,
    pub(super) packing: Option<Packing>,
    /// Those of running tasks that could not be read, by their numbers in the records, rising.
    pub(super) lost: Vec<u64>,
}

/// A block that was written.
#[derive(Debug, Default)]
struct Block {
    crcs: Vec<u32>,
    chunks: Vec<Chunk>,
    lost: Vec<u64>,
}

/// One of the threads that write blocks, with room of its own.
struct Worker<'a> {
    contents: &'a Contents,
    sink: &'a Sink,
    form: Form,
    packer: Option<Packer>,
    /// Blocks are written at once.
    at_once: bool,
    /// Pages of a chunk, or of a block if they are written so.
    pages: Aligned,
    /// Packed pages of a block that is written so.
    packed: Vec<u8>,
}

/// All page contents of a tree, in the order of the page file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    sources: Vec<Source>,
    /// Their pages are numbered from 0 on.
    pieces: Vec<Piece>,
    pages: u64,
    /// The number that the first page has in the records: what the checkpoints have together that this one builds on.
    first_page: u64,
    /// The tasks run meanwhile.
    running: bool,
    /// Files of which private mappings are anonymous memory: /dev/zero.
    pub(super) zero_devices: BTreeSet<PathId>,
    /// Sources that twins may stand in for, by their tasks.
    twinned: BTreeMap<Pid, usize>,
}

/// What was added up to some point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    sources: usize,
    pieces: usize,
    pages: u64,
}

impl Contents {
    /// For a dump that builds on others with so many pages.
    pub(super) fn beyond(first_page: u64) -> Self {
        Self { first_page, ..Self::default() }
    }

    /// For tasks that run on while their contents are read: what cannot be read is gone.
    pub(super) fn of_running(first_page: u64) -> Self {
        Self { running: true, ..Self::beyond(first_page) }
    }

    pub(super) fn page_count(&self) -> u64 {
        self.pages
    }

    pub(super) fn add_task(&mut self, pid: Pid, memory: File) -> usize {
        self.sources.push(Source::Task(pid, memory));
        self.sources.len() - 1
    }

    /// As [`Self::add_task`], for what is read when the tree runs on by a thread that can end before its task does: its id may be somebody else's by then, but what
    /// was opened stays the memory of the task.
    pub(super) fn add_memory(&mut self, pid: Pid, memory: File) -> usize {
        self.sources.push(Source::File(memory, format!("memory of task {pid}")));
        self.sources.len() - 1
    }

    /// As [`Self::add_task`], for what is the same in a twin of the task that may yet come.
    pub(super) fn add_twinned(&mut self, task: Pid, deputy: Pid, memory: File) -> usize {
        let source = self.add_task(deputy, memory);
        self.twinned.insert(task, source);
        source
    }

    /// From here on a twin is read in place of its maker.
    pub(super) fn read_twin(&mut self, maker: Pid, twin: Pid, memory: File) {
        if let Some(source) = self.twinned.get(&maker).and_then(|&source| self.sources.get_mut(source)) {
            *source = Source::Twin(twin, memory);
        }
    }

    /// What was added so far.
    pub(super) fn mark(&self) -> Mark {
        Mark { sources: self.sources.len(), pieces: self.pieces.len(), pages: self.pages }
    }

    /// Takes out what was added since.
    pub(super) fn rewind(&mut self, mark: Mark) {
        self.sources.truncate(mark.sources);
        self.pieces.truncate(mark.pieces);
        if let Some(last) = self.pieces.last_mut() {
            // It ended there, but may have grown since.
            last.run.pages = mark.pages - last.run.first_page;
        }
        self.pages = mark.pages;
        self.twinned.clear();
    }

    /// Blocks that have to be written while the tree stands still: all up to the last page that is not a twin's.
    pub(super) fn blocks_of_tree(&self) -> u64 {
        let of_tree = |piece: &&Piece| !matches!(self.sources.get(piece.source), Some(Source::Twin(..)));
        let last = self.pieces.iter().rev().find(of_tree);
        last.map_or(0, |piece| (piece.run.first_page + piece.run.pages).div_ceil(BLOCK_PAGES))
    }

    fn push(&mut self, source: usize, start: u64, end: u64, forced: bool) -> Run {
        let run = Run { start: Addr(start), pages: (end - start) / PAGE_SIZE, first_page: self.pages };
        match self.pieces.last_mut() {
            // Areas that lie side by side are read as one.
            Some(last) if (last.source, last.forced, last.run.end()) == (source, forced, start) => {
                last.run.pages += run.pages;
            }
            _ => self.pieces.push(Piece { source, run, forced }),
        }
        self.pages += run.pages;
        Run { first_page: self.first_page + run.first_page, ..run }
    }

    /// The source of a page, where it lies there, and how many follow it.
    pub(super) fn holder(&self, page: u64) -> Option<(usize, u64, u64)> {
        let at = self.pieces.partition_point(|piece| piece.run.first_page + piece.run.pages <= page);
        let Piece { source, run, .. } = self.pieces.get(at)?;
        let skip = page.checked_sub(run.first_page)?;
        Some((*source, run.start.0 + skip * PAGE_SIZE, run.pages - skip))
    }

    /// The pages of a task's private areas that differ from their backing, and the guard pages of all areas. `kept` are contents that the
    /// dump has which this one builds on, as far as they are right: where pages are protected, those of pages that turn out to be unwritten. With
    /// `frames`, those that another task has stored already are not stored again.
    pub(super) fn find_private(
        &mut self,
        source: usize,
        look: Look<'_>,
        (vmas, common): (&[Vma], &[u64]),
        kept: &[Run],
        frames: Option<&mut Frames>,
    ) -> Result<(Vec<Run>, Vec<Guard>)> {
        let mut frames = frames;
        let mut runs = Vec::new();
        // For the moment: pieces are added meanwhile.
        let zero_devices = std::mem::take(&mut self.zero_devices);
        let guards = find_parts(look, (vmas, common), kept, &zero_devices, |part| {
            let range = match part {
                Part::Kept(run) => {
                    runs.push(run);
                    return Ok(());
                }
                Part::Own(range) => range,
            };
            let Some(frames) = &mut frames else {
                runs.push(self.push(source, range.start, range.end, range.forced));
                return Ok(());
            };
            let next = self.pages;
            frames.split(range.start, range.end, next, |Stretch { start, pages, stored }| {
                runs.push(match stored {
                    Some(page) => Run { start: Addr(start), pages, first_page: self.first_page + page },
                    None => self.push(source, start, start + pages * PAGE_SIZE, range.forced),
                });
            })
        });
        self.zero_devices = zero_devices;
        Ok((runs, guards?))
    }

    /// The touched pages of a shared memory object.
    pub(super) fn add_shared(&mut self, object: SharedObject) -> Result<Shared> {
        let SharedObject { ino, file, segment, .. } = object;
        let size = file.metadata().context("fstat")?.len();
        let runs = self.find_data(&file, size)?;
        let huge = hugetlb::of_file(&file).context("fstatfs")?;
        let (segment, size) = segment.map_or((None, size), |(segment, size)| (Some(segment), size));
        self.sources.push(Source::File(file, format!("shared memory {ino}")));
        Ok(Shared { size, ino, runs, huge, segment })
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
        if let Some(page) = hugetlb::of_file(file).context("fstatfs")? {
            let found = hugetlb::find_data(file, page)?;
            return Ok(found.into_iter().map(|(start, end)| self.push(source, start, end, false)).collect());
        }
        let found = data_pages(size, |offset, whence| seek(file, offset, whence))?;
        Ok(found.into_iter().map(|(start, end)| self.push(source, start, end, false)).collect())
    }

    /// Writes everything to the page file. Progress is shown if `show` and stderr is a terminal.
    pub(super) fn write(&self, sink: &Sink, form: Form, show: bool) -> Result<Written> {
        let mut writing = Writing::begin(self, sink, form, show)?;
        writing.up_to(self.blocks())?;
        Ok(writing.finish())
    }

    /// How many blocks the page file has.
    pub(super) fn blocks(&self) -> u64 {
        self.pages.div_ceil(BLOCK_PAGES)
    }

    /// Fills a buffer with the pages `first..last` of the page file.
    fn gather(&self, first: u64, last: u64, buffer: &mut [u8], lost: &mut Vec<u64>) -> Result<()> {
        let mut index = self.pieces.partition_point(|piece| piece.run.first_page + piece.run.pages <= first);
        let mut page = first;
        let mut rest = buffer;
        while page < last {
            let mut gather: Vec<Remote> = Vec::new();
            let (mut bytes, from) = (0, page);
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
            let source = self.sources.get(piece.source).context("page source")?;
            match source.read(piece.forced, &gather, now) {
                Err(_) if self.running => source.read_rest(&gather, self.first_page + from, now, lost),
                read => read?,
            }
            rest = later;
        }
        Ok(())
    }
}

/// The page file while it is written: in one go, or up to some block first and the rest later.
pub(super) struct Writing<'a> {
    contents: &'a Contents,
    sink: &'a Sink,
    form: Form,
    progress: Progress,
    /// Blocks that are written.
    done: u64,
    /// What is known of them.
    whole: Block,
}

impl<'a> Writing<'a> {
    /// Begins the page file. Progress is shown if `show` and stderr is a terminal.
    pub(super) fn begin(contents: &'a Contents, sink: &'a Sink, form: Form, show: bool) -> Result<Self> {
        let bytes = contents.pages * PAGE_SIZE;
        // Without pages there is no part of packed ones either, and the file is to be there.
        let is_packed = form.compression.is_some() && contents.pages > 0;
        sink.begin(bytes, is_packed, form.direct_io)?;
        let progress = Progress::new(show, bytes, "writing pages");
        Ok(Self { contents, sink, form, progress, done: 0, whole: Block::default() })
    }

    /// Writes the next blocks, up to this one.
    pub(super) fn up_to(&mut self, end: u64) -> Result<()> {
        let Self { contents, sink, form, progress, .. } = self;
        let (contents, sink, form) = (*contents, *sink, *form);
        let workers = parallel::threads(usize::try_from(end - self.done).context("too many pages")?);
        let next = AtomicU64::new(self.done);
        let failed = AtomicBool::new(false);
        let work = || -> Result<Vec<(u64, Block)>> {
            let _together = Together { failed: &failed, sink };
            let mut worker = Worker::new(contents, sink, form, workers > 1)?;
            let mut done = Vec::new();
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                if block >= end || failed.load(Ordering::Relaxed) {
                    return Ok(done);
                }
                let written =
                    ptrace::check_interrupted().map_err(Into::into).and_then(|()| worker.write_block(block));
                match written {
                    Ok(written) => done.push((block, written)),
                    Err(e) if e.is::<GivenUp>() => return Ok(done),
                    Err(e) => {
                        failed.store(true, Ordering::Relaxed);
                        sink.give_up();
                        return Err(e);
                    }
                }
                progress.add(BLOCK_PAGES * PAGE_SIZE);
            }
        };
        let mut parts = std::thread::scope(|scope| -> Result<_> {
            let threads = parallel::others(scope, workers, work);
            let mut parts = work()?;
            for thread in threads {
                parts.extend(
                    thread.join().unwrap_or_else(|_| Err(anyhow!("a worker that copies pages panicked")))?,
                );
            }
            Ok(parts)
        })?;
        parts.sort_unstable_by_key(|(block, _)| *block);
        for (_, part) in parts {
            self.whole.crcs.extend(part.crcs);
            self.whole.chunks.extend(part.chunks);
            self.whole.lost.extend(part.lost);
        }
        self.done = end;
        Ok(())
    }

    /// What the records say of it, when all blocks are written.
    pub(super) fn finish(self) -> Written {
        let Block { crcs, chunks, lost } = self.whole;
        let packing = self.form.compression.map(|how| Packing { method: how.method, chunks });
        Written { block_crcs: crcs, packing, lost }
    }
}

/// Has all workers end when the one that has this panics: in a stream, they would wait for its block.
struct Together<'a> {
    failed: &'a AtomicBool,
    sink: &'a Sink,
}

impl Drop for Together<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed.store(true, Ordering::Relaxed);
            self.sink.give_up();
        }
    }
}

impl<'a> Worker<'a> {
    /// One that has company writes whole blocks, too: a file takes one write at a time (`inode_lock()` in shmem_file_write_iter(), mm/shmem.c, and its like), so
    /// with fewer writes fewer have to wait.
    fn new(contents: &'a Contents, sink: &'a Sink, form: Form, has_company: bool) -> Result<Self> {
        let packer = form.compression.map(Packer::new).transpose()?;
        let at_once = has_company || sink.takes_blocks();
        let count = if at_once && packer.is_none() { BLOCK_PAGES } else { CHUNK_PAGES };
        let pages = Aligned::new(usize::try_from(count * PAGE_SIZE)?);
        Ok(Self { contents, sink, form, packer, at_once, pages, packed: Vec::new() })
    }

    /// One block, in steps that stay in the cache between being gathered, summed and packed; and until they are written, where that is not for the
    /// whole block at its end.
    fn write_block(&mut self, block: u64) -> Result<Block> {
        let start = block * BLOCK_PAGES;
        let (mut first, last) = (start, (start + BLOCK_PAGES).min(self.contents.pages));
        let mut written = Block::default();
        let mut crc = 0;
        self.packed.clear();
        while first < last {
            let end = (first + CHUNK_PAGES).min(last);
            let from = if self.at_once && self.packer.is_none() { first - start } else { 0 };
            let (from, size) =
                (usize::try_from(from * PAGE_SIZE)?, usize::try_from((end - first) * PAGE_SIZE)?);
            let step = &mut self.pages.bytes()[from..from + size];
            self.contents.gather(first, end, step, &mut written.lost)?;
            if self.form.block_pages == 1 {
                written.crcs.extend(step.chunks_exact(PAGE).map(crc32c::crc32c));
            } else {
                crc = crc32c::crc32c_append(crc, step);
            }
            match &mut self.packer {
                Some(packer) => {
                    let bytes = packer.pack(step)?;
                    let place = if self.at_once {
                        self.packed.extend_from_slice(bytes);
                        (self.packed.len() - bytes.len()) as u64
                    } else {
                        self.sink.append(bytes).context("write pages")?
                    };
                    written.chunks.push(Chunk { place, size: u32::try_from(bytes.len())? });
                }
                None if self.at_once => {}
                None => self.sink.put(step, first * PAGE_SIZE).context("write pages")?,
            }
            fault::point(Point::KilledCopying)?;
            first = end;
        }
        if self.at_once {
            self.write_whole(start, last, &mut written.chunks).context("write pages")?;
        }
        if self.form.block_pages != 1 {
            written.crcs.push(crc);
        }
        Ok(written)
    }

    /// Writes a block at once; its chunks are told where they are.
    fn write_whole(&mut self, start: u64, end: u64, chunks: &mut [Chunk]) -> Result<()> {
        if self.packer.is_none() {
            let size = usize::try_from((end - start) * PAGE_SIZE)?;
            return self.sink.put(&self.pages.bytes()[..size], start * PAGE_SIZE);
        }
        let place = self.sink.append(&self.packed)?;
        chunks.iter_mut().for_each(|chunk| chunk.place += place);
        Ok(())
    }
}

const PROT_READ: u32 = 1;

/// The pages of a file in which there is data, as byte offsets. `seek` goes to the data or the hole from an offset on, if there is one.
fn data_pages(
    size: u64,
    mut seek: impl FnMut(u64, Whence) -> Result<Option<u64>>,
) -> Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let (mut at, mut seeks) = (0, 0);
    while at < size {
        seeks += 1;
        ptrace::check_interrupted_at(seeks)?;
        let Some(data) = seek(at, Whence::SeekData)?.filter(|&data| data < size) else { break };
        // Where blocks are smaller than pages, a page can hold both. So the hole is looked for from the data on: from the start of its page, that
        // start can be the answer.
        let start = (data / PAGE_SIZE * PAGE_SIZE).max(at);
        // A file system that names an end before what it ends does not know: then all the rest is data.
        let hole = seek(data, Whence::SeekHole)?.filter(|&hole| hole > data.max(at)).unwrap_or(size);
        let end = hole.min(size).next_multiple_of(PAGE_SIZE);
        match found.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => found.push((start, end)),
        }
        at = end;
    }
    Ok(found)
}

/// lseek to data or to a hole; `None` when there is none behind.
fn seek(file: &File, offset: u64, whence: Whence) -> Result<Option<u64>> {
    match nix::unistd::lseek(file, i64::try_from(offset)?, whence) {
        Ok(at) => Ok(Some(u64::try_from(at)?)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno).context("seek"),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(pid, _) => write!(f, "task {pid}"),
            Self::Twin(pid, _) => write!(f, "twin {pid}"),
            Self::File(_, name) => f.write_str(name),
        }
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
                bail!("{self}: cannot read memory at {at} ({n} of {} bytes)", buffer.len())
            }
            // All that a twin has is its task's, too.
            Self::Task(_, file) | Self::Twin(_, file) => read_each(file, gather, buffer)
                .map_err(|(at, e)| anyhow!(e).context(format!("{self}: read memory at {at}"))),
            Self::File(file, _) => read_each(file, gather, buffer)
                .map_err(|(at, e)| anyhow!(e).context(format!("{self}: read at {at}"))),
        }
    }
}

impl Source {
    /// Reads page by page what is left of running tasks. What `/proc/PID/mem` does not give either is not there any more.
    fn read_rest(&self, gather: &[Remote], first: u64, buffer: &mut [u8], lost: &mut Vec<u64>) {
        let (Self::Task(_, file) | Self::Twin(_, file) | Self::File(file, _)) = self;
        let addresses =
            gather.iter().flat_map(|remote| (remote.start().0..).step_by(PAGE).take(remote.len() / PAGE));
        for ((number, address), page) in (first..).zip(addresses).zip(buffer.chunks_exact_mut(PAGE)) {
            if read_padded(file, page, address).is_err() {
                page.fill(0);
                lost.push(number);
            }
        }
    }
}

/// Takes pages out of runs; both rise.
pub(super) fn take_out(runs: &mut Vec<Run>, lost: &[u64]) {
    if lost.is_empty() {
        return;
    }
    let mut left = Vec::with_capacity(runs.len());
    for run in runs.iter() {
        let (mut start, end) = (run.first_page, run.first_page + run.pages);
        let gone = lost[lost.partition_point(|&page| page < start)..].iter().take_while(|&&page| page < end);
        for page in gone.copied().chain([end]) {
            if page > start {
                let address = run.start.offset((start - run.first_page) * PAGE_SIZE);
                left.push(Run { start: address, pages: page - start, first_page: start });
            }
            start = page + 1;
        }
    }
    *runs = left;
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

/// Reads whole pages, the last of a file with what lies behind its end.
fn read_padded(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) if have > 0 => {
                buffer[have..].fill(0);
                let page = have / PAGE * PAGE;
                let last = buffer.get_mut(page..page + PAGE).filter(|_| page < have);
                return last.map_or(Ok(()), |last| read_last(file, last, offset + page as u64));
            }
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => have += got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads the last page of a file as mappings show it: what was written by one behind the end is there for as long as the page is, in files in memory as long
/// as the file. No read(2) gives that.
fn read_last(file: &File, page: &mut [u8], offset: u64) -> std::io::Result<()> {
    match Window::copy(file, offset, page) {
        // Nobody has it mapped, then, who could not do without what lies there.
        Err(Errno::ENODEV | Errno::EACCES | Errno::EPERM) => Ok(()),
        copied => Ok(copied?),
    }
}

/// Pages of one private area.
struct PageRange {
    start: u64,
    end: u64,
    /// The area is not readable.
    forced: bool,
}

/// Contents of a private area, in the order of their addresses.
enum Part {
    /// Those of a dump that this one builds on.
    Kept(Run),
    /// To be stored.
    Own(PageRange),
}

/// Pages of private areas that differ from their backing, each part as soon as it is known to be whole: there can be millions. Returns the guard
/// pages of all areas.
fn find_parts(
    look: Look<'_>,
    (vmas, common): (&[Vma], &[u64]),
    kept: &[Run],
    zero_devices: &BTreeSet<PathId>,
    mut each: impl FnMut(Part) -> Result<()>,
) -> Result<Vec<Guard>> {
    let (Some(first), Some(last)) = (vmas.first(), vmas.last()) else { return Ok(Vec::new()) };
    let (mut parts, mut guards): (Vec<Part>, Vec<Guard>) = Default::default();
    let mut failed = Ok(());
    let mut areas = vmas.iter().peekable();
    // Where pages are protected by the very call that finds them, it tells whether they were written; otherwise what is kept was looked at before.
    let is_told = matches!(look, Look::Protecting(_));
    let found = |from: u64, to: u64, what: Found| {
        let kept = if is_told && what != (Found::Contents { unwritten: true }) { &[][..] } else { kept };
        while areas.next_if(|vma| vma.end.0 <= from).is_some() {}
        // A range can span areas; the last of them is looked at again for the next range.
        let mut at = areas.clone();
        while let Some(vma) = at.next().filter(|vma| vma.start.0 < to) {
            let (mut start, end) = (from.max(vma.start.0), to.min(vma.end.0));
            if what == Found::Guard {
                match guards.last_mut() {
                    // Of one area, in two stretches.
                    Some(last) if last.end.0 == start && start > vma.start.0 => last.end = Addr(end),
                    _ => guards.push(Guard { start: Addr(start), end: Addr(end) }),
                }
                continue;
            }
            if !vma.backing.is_private()
                || can_be_dropped(vma)
                || (what == Found::Zeros && begins_with_zeros(vma, zero_devices))
            {
                continue;
            }
            let forced = vma.prot & PROT_READ == 0 || common.binary_search(&vma.start.0).is_ok();
            for run in track::part(kept, start, end) {
                add_own(&mut parts, vma, forced, start, run.start.0);
                start = run.end();
                parts.push(Part::Kept(run));
            }
            add_own(&mut parts, vma, forced, start, end);
        }
        // The last one may grow.
        let whole = parts.len().saturating_sub(1);
        if failed.is_ok() {
            failed = parts.drain(..whole).try_for_each(&mut each);
        }
    };
    scan(look, first.start.0, last.end.0, vmas, found)?;
    failed?;
    parts.into_iter().try_for_each(each)?;
    Ok(guards)
}

/// Whether pages that nobody has written show zeros.
fn begins_with_zeros(vma: &Vma, zero_devices: &BTreeSet<PathId>) -> bool {
    match vma.backing {
        Backing::PrivateFile(path, _) => zero_devices.contains(&path),
        _ => true,
    }
}

/// Whether the kernel may drop pages at any moment (MAP_DROPPABLE). Restored as zeros. The vDSO's getrandom() keeps its state there; generation 0 never
/// equals the kernel's, so it takes a new key, and it looks again before it returns (lib/vdso/getrandom.c).
fn can_be_dropped(vma: &Vma) -> bool {
    vma.flags & images::memory::vm::DROPPABLE != 0
}

/// Adds what lies between two addresses of an area, unless that is nothing.
fn add_own(parts: &mut Vec<Part>, vma: &Vma, forced: bool, start: u64, end: u64) {
    match parts.last_mut() {
        _ if start == end => {}
        // Present and swapped pages of one area come as separate ranges, as do those of two stretches.
        Some(Part::Own(range)) if range.end == start && start > vma.start.0 => range.end = end,
        _ => parts.push(Part::Own(PageRange { start, end, forced })),
    }
}

/// How pages are looked for in a pagemap.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look<'a> {
    /// Without a trace.
    Only(&'a File),
    /// In areas that are tracked, protecting what is found.
    Protecting(&'a File),
}

/// Ranges of pages to store, by PAGEMAP_SCAN or, before Linux 6.7, by reading pagemap.
fn scan(
    look: Look<'_>,
    start: u64,
    end: u64,
    areas: &[Vma],
    mut found: impl FnMut(u64, u64, Found),
) -> Result<()> {
    /// This kernel has none.
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    let scanned = match look {
        Look::Only(_) if IS_MISSING.load(Ordering::Relaxed) => Err(Errno::ENOTTY.into()),
        Look::Only(pagemap) => scan_side_by_side(pagemap, areas, &mut found),
        Look::Protecting(pagemap) => {
            pagemap::scan_and_protect(pagemap.as_fd(), start, end, &mut found).map_err(Into::into)
        }
    };
    match (scanned, look) {
        (Err(e), Look::Only(pagemap)) if e.downcast_ref() == Some(&Errno::ENOTTY) => {
            IS_MISSING.store(true, Ordering::Relaxed);
            read_pagemap(pagemap, areas, found)
        }
        (scanned, _) => scanned.context("PAGEMAP_SCAN"),
    }
}

/// A scan by all processors, if there is much to look at. What is found comes in order all the same.
fn scan_side_by_side(pagemap: &File, areas: &[Vma], mut found: impl FnMut(u64, u64, Found)) -> Result<()> {
    /// What is found of so many is in memory at a time.
    const STRETCHES: usize = 16;
    let look = |&(start, end): &(u64, u64)| {
        let mut ranges = Vec::new();
        pagemap::scan_private(pagemap.as_fd(), start, end, |from, to, what| ranges.push((from, to, what)))?;
        Ok(ranges)
    };
    for (number, some) in (0..).zip(stretches(areas).chunks(STRETCHES)) {
        if number > 0 {
            ptrace::check_interrupted()?;
        }
        let ranges = parallel::map_large(some, look)?;
        ranges.into_iter().flatten().for_each(|(from, to, what)| found(from, to, what));
    }
    Ok(())
}

/// All of an address space from its first area to its last one, in stretches each of which is worth a thread.
fn stretches(areas: &[Vma]) -> Vec<(u64, u64)> {
    /// An area takes as long as so many bytes.
    const AREA: u64 = 64 << 10;
    const LEAST: u64 = 32 << 20;
    const MOST_STRETCHES: u64 = 64;
    let (Some(first), Some(last)) = (areas.first(), areas.last()) else { return Vec::new() };
    let length = |vma: &Vma| vma.end.0 - vma.start.0;
    let all = areas.iter().map(length).fold(0, u64::saturating_add) + areas.len() as u64 * AREA;
    let whole = (all / MOST_STRETCHES).max(LEAST).next_multiple_of(HugePage::Mib2.size());
    let (mut cuts, mut weight) = (vec![first.start.0], 0);
    for vma in areas {
        let mut at = vma.start.0;
        while vma.end.0 - at > whole - weight {
            at += whole - weight;
            cuts.push(at);
            weight = 0;
        }
        weight += vma.end.0 - at + AREA;
        if weight >= whole {
            cuts.push(vma.end.0);
            weight = 0;
        }
    }
    cuts.push(last.end.0);
    cuts.dedup();
    cuts.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// One word a page: Documentation/admin-guide/mm/pagemap.rst. The page of zeros is not told from others here and gets stored.
fn read_pagemap(pagemap: &File, areas: &[Vma], mut found: impl FnMut(u64, u64, Found)) -> Result<()> {
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    const FILE_OR_SHARED: u64 = 1 << 61;
    const CHUNK_PAGES: u64 = 1 << 16;
    let mut words = vec![0u8; usize::try_from(CHUNK_PAGES * 8)?];
    for vma in areas.iter().filter(|vma| vma.backing.is_private()) {
        let mut at = vma.start.0;
        while at < vma.end.0 {
            if at > vma.start.0 {
                ptrace::check_interrupted()?;
            }
            let pages = ((vma.end.0 - at) / PAGE_SIZE).min(CHUNK_PAGES);
            let words = &mut words[..usize::try_from(pages * 8)?];
            pagemap.read_exact_at(words, at / PAGE_SIZE * 8).context("read pagemap")?;
            for (word, page) in words.chunks_exact(8).zip((at..).step_by(4096)) {
                let word = u64::from_le_bytes(word.try_into()?);
                if word & PRESENT_OR_SWAPPED != 0 && word & FILE_OR_SHARED == 0 {
                    found(page, page + PAGE_SIZE, Found::Contents { unwritten: false });
                }
            }
            at += pages * PAGE_SIZE;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a stream, the others would wait for its block.
    #[test]
    fn a_worker_that_panics_keeps_nobody_waiting() {
        let (told, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(8 * BLOCK_PAGES * PAGE_SIZE).unwrap();
            let mut contents = Contents::default();
            contents.add_file(file.try_clone().unwrap(), "file".to_owned()).unwrap();
            contents.push(0, 0, 8 * BLOCK_PAGES * PAGE_SIZE, false);
            // The second block lies in no piece: the first one ends before it, the next begins behind its start.
            let end = contents.pieces.len() - 1;
            contents.pieces[end].run.pages = BLOCK_PAGES;
            let rest = Run { start: Addr(0), pages: 7 * BLOCK_PAGES - 1, first_page: BLOCK_PAGES + 1 };
            contents.pieces.push(Piece { source: 0, run: rest, forced: false });
            let sink = Sink::stream_to(tempfile::tempfile().unwrap()).unwrap();
            let form = Form { block_pages: BLOCK_PAGES, compression: None, direct_io: DirectIo::Never };
            let written = || contents.write(&sink, form, false).map(drop);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(written));
            told.send(outcome.is_ok_and(|written| written.is_ok())).unwrap();
        });
        let succeeded = outcome.recv_timeout(std::time::Duration::from_secs(20));
        assert!(!succeeded.expect("it hangs"), "it succeeds");
    }

    #[test]
    fn areas_that_lie_side_by_side_are_read_as_one() {
        let mut contents = Contents::beyond(7);
        let areas = [(0, 1, false), (0, 2, false), (0, 3, true), (0, 4, true), (0, 6, true), (1, 7, true)];
        let of = |(source, page, forced): (usize, u64, bool)| (source, page * PAGE_SIZE, forced);
        for (number, (source, start, forced)) in (7..).zip(areas.map(of)) {
            let run = contents.push(source, start, start + PAGE_SIZE, forced);
            assert_eq!(run, Run { start: Addr(start), pages: 1, first_page: number });
        }
        let pieces =
            contents.pieces.iter().map(|piece| (piece.source, piece.run.first_page, piece.run.pages));
        assert_eq!(pieces.collect::<Vec<_>>(), [(0, 0, 2), (0, 2, 2), (0, 4, 1), (1, 5, 1)]);
    }

    #[test]
    fn what_was_added_to_an_area_before_the_mark_is_taken_out() {
        let mut contents = Contents::default();
        contents.push(0, 0, 2 * PAGE_SIZE, false);
        let mark = contents.mark();
        contents.push(0, 2 * PAGE_SIZE, 3 * PAGE_SIZE, false);
        contents.push(1, 0, PAGE_SIZE, false);
        contents.rewind(mark);
        let pieces = contents.pieces.iter().map(|piece| (piece.source, piece.run.pages));
        assert_eq!((pieces.collect::<Vec<_>>(), contents.page_count()), (vec![(0, 2)], 2));
    }

    /// Blocks of 1 KiB, and files that answer nonsense: each page with data once, and an end.
    #[test]
    fn data_is_found_in_files_with_holes() {
        const BLOCK: usize = 1024;
        // One letter a block: data or hole.
        let of = |blocks: &str| {
            let of_kind = |offset: u64, kind: char| {
                let from = usize::try_from(offset).unwrap();
                let rest = blocks.get(from / BLOCK..)?;
                let at = from / BLOCK + rest.find(kind)?;
                Some(offset.max((at * BLOCK) as u64))
            };
            let size = (blocks.len() * BLOCK) as u64;
            let seek = |offset: u64, whence| match whence {
                Whence::SeekData => Ok(of_kind(offset, 'd')),
                _ => Ok(of_kind(offset, '.').or(Some(size))),
            };
            let pages = data_pages(size, seek).unwrap();
            pages.into_iter().map(|(start, end)| (start / PAGE_SIZE, end / PAGE_SIZE)).collect::<Vec<_>>()
        };
        assert_eq!(of(""), []);
        assert_eq!(of("........"), []);
        assert_eq!(of(".ddd"), [(0, 1)]);
        assert_eq!(of("..d."), [(0, 1)]);
        assert_eq!(of("d..dd..d"), [(0, 2)]);
        assert_eq!(of("....d.d.......d"), [(1, 2), (3, 4)]);
        assert_eq!(of("dddddddd....d"), [(0, 2), (3, 4)]);

        let size = 5 * PAGE_SIZE + 1;
        assert_eq!(data_pages(size, |_, _| Ok(Some(0))).unwrap(), [(0, 6 * PAGE_SIZE)]);
        assert_eq!(data_pages(size, |offset, _| Ok(Some(offset))).unwrap(), [(0, 6 * PAGE_SIZE)]);
        assert_eq!(data_pages(size, |_, _| Ok(None)).unwrap(), []);
        assert_eq!(data_pages(size, |_, _| Ok(Some(1 << 40))).unwrap(), []);
    }

    #[test]
    fn stretches_cover_everything_once() {
        const GIB: u64 = 1 << 30;
        let vma = |start: u64, len: u64| Vma {
            start: Addr(start),
            end: Addr(start + len),
            prot: 3,
            flags: 0,
            backing: Backing::Anonymous,
        };
        assert_eq!(stretches(&[]), []);
        assert_eq!(stretches(&[vma(0x1000, 0x1000), vma(0x8000, 0x2000)]), [(0x1000, 0xa000)]);
        let strewn: Vec<Vma> = (1..20_000).map(|at| vma(at * 0x2000, 0x1000)).collect();
        let large = [vma(0x1000, 0x1000), vma(GIB, GIB), vma(2 * GIB, 0x1000), vma(8 * GIB, 100 * GIB)];
        for (areas, least, most) in [(&strewn[..], 20, 64), (&large, 60, 66)] {
            let found = stretches(areas);
            assert!((least..=most).contains(&found.len()), "{}", found.len());
            assert!(found.iter().all(|(start, end)| start < end && start % PAGE_SIZE == 0));
            assert!(found.windows(2).all(|pair| pair[0].1 == pair[1].0));
            let ends = (areas[0].start.0, areas[areas.len() - 1].end.0);
            assert_eq!((found[0].0, found[found.len() - 1].1), ends);
        }
    }

    #[test]
    fn pages_on_both_sides_of_a_cut_are_found_as_one_range() {
        let mut room = Aligned::new(256 << 20);
        let start = room.bytes().as_ptr().addr() as u64;
        let end = start + room.bytes().len() as u64;
        let area = Vma { start: Addr(start), end: Addr(end), prot: 3, flags: 0, backing: Backing::Anonymous };
        let cuts: Vec<u64> = stretches(std::slice::from_ref(&area)).iter().skip(1).map(|at| at.0).collect();
        assert!(cuts.len() > 2);
        for cut in &cuts {
            let at = usize::try_from(cut - start).unwrap();
            room.bytes()[at - 1..=at].fill(1);
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut parts = Vec::new();
        let each = |part| {
            parts.push(part);
            Ok(())
        };
        find_parts(Look::Only(&pagemap), (&[area], &[]), &[], &BTreeSet::new(), each).unwrap();
        let spans = |(part, cut): (&Part, &u64)| matches!(part, Part::Own(range) if (range.start + 1..range.end).contains(cut));
        assert!(parts.len() == cuts.len() && parts.iter().zip(&cuts).all(spans));
    }

    #[test]
    fn pages_are_taken_out_of_runs() {
        let run = |start, pages, first_page| Run { start: Addr(start), pages, first_page };
        let mut runs = vec![run(0x1000, 4, 3), run(0x8000, 2, 20), run(0xa000, 1, 22)];
        take_out(&mut runs, &[]);
        assert_eq!(runs.len(), 3);
        take_out(&mut runs, &[3, 5, 22]);
        assert_eq!(runs, [run(0x2000, 1, 4), run(0x4000, 1, 6), run(0x8000, 2, 20)]);
    }
}
