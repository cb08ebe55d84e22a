//! The page contents of a checkpoint: a file, which a page server may have parts of that are not here yet.

use super::PAGE;
use super::assemble::{Span, used, within};
use super::chain::Round;
use super::check;
use super::direct::{self, DirectIo};
use super::pages::{BLOCK_SIZE, block_crc};
use crate::page_server::Listed;
use crate::page_server::client::{Peer, Server};
use crate::page_server::fetch::Fetcher;
use crate::progress::Progress;
use crate::sys::mapping::SharedMapping;
use crate::sys::memfd;
use crate::sys::window::Window;
use anyhow::{Context, Result};
use images::container::Kind;
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{CHUNK_PAGES, Memory};
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Bytes of a page file from which on its blocks are read rather than mapped: threads that map and unmap hold up one another (`mmap_lock`), and from a disk
/// a fault brings only as much as the kernel reads ahead. For less, to make the room that is read into takes longer.
const MUCH: u64 = 64 << 20;

/// Page contents, page n at byte 4096 n of a file.
#[derive(Debug)]
pub struct Pages {
    file: File,
    /// The same, if it is read past the page cache.
    direct: Option<File>,
    /// Blocks are read rather than mapped.
    by_reading: bool,
    /// Room for blocks that are read, which is not in use.
    room: Mutex<Vec<SharedMapping>>,
    /// It lies in memory, and nobody else needs it: what has been read is given back.
    in_memory: bool,
    /// What is taken may be taken once more.
    stays: bool,
    absent: Option<Mutex<Absent>>,
}

/// Bytes of a page file, at an address that an ia32 task could have, too.
#[derive(Debug)]
pub(crate) enum Block<'a> {
    /// As the page cache has them.
    Window(Window),
    /// Read from there, or past it.
    Read(Lent<'a>),
}

impl Block<'_> {
    /// All of them.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Window(window) => window.bytes(),
            Self::Read(lent) => lent.room.as_ref().map_or(&[], |room| &room.bytes()[..lent.size]),
        }
    }
}

/// Room for a block. It is there already when the next block is read, which costs less than new pages would.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    room: Option<SharedMapping>,
    size: usize,
    owner: &'a Mutex<Vec<SharedMapping>>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).extend(self.room.take());
    }
}

/// Makes a hole of pages in a file that lies in memory.
pub(crate) fn give_back(file: &File, place: u64, len: u64) {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(0);
    // Were it not to be had, there would be more memory in use for a while.
    let _ = fallocate(file, hole, bytes(place), bytes(len.next_multiple_of(PAGE_SIZE)));
}

/// What is not in the file yet.
#[derive(Debug)]
struct Absent {
    fetcher: Fetcher,
    wanted: Listed,
    number: u32,
    /// Blocks of [`BLOCK_SIZE`] bytes.
    blocks: BTreeSet<u64>,
}

impl Pages {
    /// All of it is here.
    pub(super) fn new(file: File, in_memory: bool) -> Self {
        let by_reading = file.metadata().is_ok_and(|file| file.len() > MUCH);
        Self { file, direct: None, by_reading, room: Mutex::default(), in_memory, stays: false, absent: None }
    }

    /// All of it is still to come, to a file in memory.
    pub(super) fn at(fetcher: Fetcher, wanted: Listed) -> Result<Self> {
        let number = fetcher.find(&wanted)?;
        let file = memfd::own("crr-pages")?;
        file.set_len(wanted.size).context("pages in memory")?;
        let blocks = (0..wanted.size.div_ceil(BLOCK_SIZE)).collect();
        Ok(Self {
            absent: Some(Mutex::new(Absent { fetcher, wanted, number, blocks })),
            ..Self::new(file, true)
        })
    }

    /// The file, as far as it is here.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, for whole pages that are read to where a page begins.
    pub(crate) fn file_of_pages(&self) -> &File {
        self.direct.as_ref().unwrap_or(&self.file)
    }

    /// See [`super::Checkpoint::go_direct`].
    pub(super) fn go_direct(&mut self, wish: DirectIo) {
        self.direct = direct::for_reading(&self.file, wish);
        if self.direct.is_some() {
            self.by_reading = true;
            log::debug!("pages are read past the page cache");
        }
    }

    /// Brings these blocks here, if they are not. `seen` is told how many bytes have come.
    ///
    /// # Errors
    /// If the server does not give them.
    pub(super) fn bring(&self, wanted: impl Fn(u64) -> bool, seen: impl Fn(u64)) -> Result<()> {
        self.bring_within(0..u64::MAX, wanted, seen)
    }

    /// [`Self::bring`], looking at none but these.
    fn bring_within(
        &self,
        within: Range<u64>,
        wanted: impl Fn(u64) -> bool,
        seen: impl Fn(u64),
    ) -> Result<()> {
        let Some(absent) = &self.absent else { return Ok(()) };
        let mut absent = absent.lock().unwrap_or_else(PoisonError::into_inner);
        let Absent { fetcher, wanted: Listed { size, .. }, number, blocks } = &mut *absent;
        let pieces: Vec<_> = (blocks.range(within))
            .filter(|&&block| wanted(block))
            .map(|&block| piece(block, *size))
            .collect();
        fetcher.fetch(*number, pieces, |place, bytes| {
            self.file.write_all_at(bytes, place).context("pages in memory")?;
            blocks.remove(&(place / BLOCK_SIZE));
            seen(bytes.len() as u64);
            Ok(())
        })
    }

    /// Reads bytes from a place on, and has them brought here first if need be.
    ///
    /// # Errors
    /// If they cannot be had.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], place: u64) -> Result<()> {
        let end = place + bytes.len() as u64;
        self.bring_within(place / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE), |_| true, |_| {})?;
        self.file.read_exact_at(bytes, place).context(Kind::Pages.file_name())
    }

    /// Whether these contents lie in memory, and nobody else needs them.
    pub(crate) fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// Has what is taken stay where it is: a restore that begins anew takes it once more.
    pub(crate) fn keep_what_is_taken(&mut self) {
        self.stays = true;
    }

    /// Reads bytes from a place on, to where a page begins, for the only one who needs these pages.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn take(&self, bytes: &mut [u8], place: u64) -> Result<()> {
        let step = usize::try_from(BLOCK_SIZE)?;
        for (part, at) in bytes.chunks_mut(step).zip((place..).step_by(step)) {
            let file = if part.len() % PAGE == 0 { self.file_of_pages() } else { &self.file };
            file.read_exact_at(part, at).context(Kind::Pages.file_name())?;
            if !self.stays {
                self.give_back(at, part.len() as u64);
            }
        }
        Ok(())
    }

    /// Pages with these bytes are not needed any more: they need not be in memory twice.
    pub(crate) fn give_back(&self, place: u64, len: u64) {
        if self.in_memory {
            give_back(&self.file, place, len);
        }
    }

    /// A block, or less.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn block(&self, place: u64, size: u64) -> Result<Block<'_>> {
        if !self.by_reading {
            let window = Window::map(&self.file, place, usize::try_from(size)?);
            return window.map(Block::Window).with_context(|| format!("map at {place:#x}"));
        }
        let free = self.room.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut room = free.map_or_else(|| SharedMapping::anonymous_low(BLOCK_SIZE), Ok).context("mmap")?;
        let bytes = room.slice(0, size).context("more than a block")?;
        self.file_of_pages().read_exact_at(bytes, place).with_context(|| format!("read at {place:#x}"))?;
        Ok(Block::Read(Lent { room: Some(room), size: usize::try_from(size)?, owner: &self.room }))
    }

    /// The checksum of a block.
    pub(super) fn crc(&self, place: u64, size: u64) -> Result<u32> {
        match &self.direct {
            Some(_) => Ok(crc32c::crc32c(self.block(place, size)?.bytes())),
            None => block_crc(&self.file, place, size),
        }
    }

    /// What is still to come: from which server, which file of it, which blocks.
    pub(crate) fn absent(&self) -> Option<(Peer, Listed, BTreeSet<u64>)> {
        let absent = self.absent.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some((absent.fetcher.peer().clone(), absent.wanted.clone(), absent.blocks.clone()))
    }
}

/// A block of a file of so many bytes: its place, its bytes.
pub(crate) fn piece(block: u64, size: u64) -> (u64, u32) {
    let place = block * BLOCK_SIZE;
    // A block has far less than 4 GiB.
    (place, u32::try_from((size - place).min(BLOCK_SIZE)).unwrap_or(u32::MAX))
}

/// Brings what a checkpoint of rounds, or with packed pages, uses of the files that are not here: to files without names in `dir`,
/// where it has the place that it has there. Returns the checkpoint's own.
pub(super) fn bring_parts(
    server: &Server,
    own: Listed,
    ancestors: &mut [Round],
    (files, memory): (&Files, &Memory),
    dir: &Path,
    show: bool,
) -> Result<File> {
    let mut fetcher = Fetcher::connect(server)?;
    let used = used(files, memory);
    let progress = Progress::new(show, 0, "fetching pages");
    let mut bring = |wanted: &Listed, pieces: &[(u64, u64)]| -> Result<File> {
        let number = fetcher.find(wanted)?;
        let file = tempfile::tempfile_in(dir).and_then(|file| file.set_len(wanted.size).map(|()| file));
        let file = file.with_context(|| format!("{}: make a file", dir.display()))?;
        fetcher.fetch(number, cut(pieces), |place, bytes| {
            progress.add(bytes.len() as u64);
            file.write_all_at(bytes, place).with_context(|| format!("{}: write pages", dir.display()))
        })?;
        Ok(file)
    };
    for round in ancestors.iter_mut().filter(|round| round.pages.is_none()) {
        let (first, count) = (round.memory.first_page, round.memory.page_count);
        let spans: Vec<Span> =
            within(&used, first, first + count).map(|span| (span.0 - first, span.1 - first)).collect();
        let [_, pages] = check::round_entries(&round.inventory)?;
        let wanted = Listed { size: pages.size, inventory: Some(round.crc) };
        round.pages = Some(bring(&wanted, &places(&round.memory, &spans))?);
    }
    let all = (own.size > 0).then_some((0, own.size));
    bring(&own, all.as_slice())
}

/// Where pages lie in a file: bytes from one to before another.
fn places(memory: &Memory, spans: &[Span]) -> Vec<(u64, u64)> {
    let Some(packing) = &memory.packing else {
        return spans.iter().map(|&(from, to)| (from * PAGE_SIZE, to * PAGE_SIZE)).collect();
    };
    let chunks: BTreeSet<u64> =
        spans.iter().flat_map(|&(from, to)| from / CHUNK_PAGES..to.div_ceil(CHUNK_PAGES)).collect();
    let chunks = chunks.into_iter().filter_map(|chunk| packing.chunks.get(usize::try_from(chunk).ok()?));
    shared::range::merged(chunks.map(|chunk| (chunk.place, chunk.place + u64::from(chunk.size))).collect())
}

/// In pieces as they are asked for.
fn cut(pieces: &[(u64, u64)]) -> impl Iterator<Item = (u64, u32)> {
    pieces.iter().flat_map(|&(from, to)| {
        (from..to)
            .step_by(usize::try_from(BLOCK_SIZE).unwrap_or(usize::MAX))
            .map(move |at| (at, u32::try_from((to - at).min(BLOCK_SIZE)).unwrap_or(u32::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::memory::{Chunk, Method, Packing};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn packed_pages_come_by_whole_chunks() {
        let chunk = |place, size| Chunk { place, size };
        let chunks = vec![chunk(500, 100), chunk(0, 300), chunk(300, 200)];
        let packing = Some(Packing { method: Method::Lz4, chunks });
        let memory = Memory { packing, ..Memory::default() };
        assert_eq!(places(&memory, &[(40, 41), (42, 70)]), [(0, 500)]);
        assert_eq!(places(&memory, &[(0, 1)]), [(500, 600)]);
        assert_eq!(places(&Memory::default(), &[(2, 4)]), [(8192, 16384)]);
    }

    #[test]
    fn pieces_are_as_large_as_a_block_at_most() {
        let pieces: Vec<_> = cut(&[(10, 20), (4096, 4096 + BLOCK_SIZE + 1)]).collect();
        assert_eq!(pieces, [(10, 10), (4096, 1 << 20), (4096 + BLOCK_SIZE, 1)]);
        assert_eq!(piece(1, BLOCK_SIZE + 5), (BLOCK_SIZE, 5));
    }

    /// What lies in memory for nobody else is gone when it has been taken; what is on a disk, or others need, stays.
    #[test]
    fn what_is_taken_is_given_back() {
        let contents: Vec<u8> = (0u8..3).flat_map(|byte| vec![byte + 1; 1 << 20]).collect();
        for in_memory in [true, false] {
            let file = ::memfd::MemfdOptions::default().create("pages").unwrap().into_file();
            file.write_all_at(&contents, 0).unwrap();
            let pages = Pages::new(file, in_memory);
            let mut taken = vec![0; (1 << 20) + 8192];
            pages.take(&mut taken, 4096).unwrap();
            assert!(taken == contents[4096..4096 + taken.len()]);
            // The last page of a file whose size is none of pages.
            pages.take(&mut taken[..5000], 2 << 20).unwrap();
            assert!(taken[..5000] == contents[2 << 20..(2 << 20) + 5000]);
            let there = pages.file().metadata().unwrap().blocks() * 512;
            let given_back = if in_memory { (1 << 20) + 4 * 4096 } else { 0 };
            assert_eq!(there, (3 << 20) - given_back);
        }
    }
}
