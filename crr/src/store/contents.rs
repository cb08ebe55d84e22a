//! The page contents of a checkpoint: a file, which a page server may have parts of that are not here yet.

use super::assemble::{Span, used, within};
use super::chain::Round;
use super::check;
use super::pages::BLOCK_SIZE;
use crate::page_server::Listed;
use crate::page_server::client::{Peer, Server};
use crate::page_server::fetch::Fetcher;
use crate::progress::Progress;
use crate::sys::memfd;
use anyhow::{Context, Result};
use images::container::Kind;
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{CHUNK_PAGES, Memory};
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Page contents, page n at byte 4096 n of a file.
#[derive(Debug)]
pub struct Pages {
    file: File,
    absent: Option<Mutex<Absent>>,
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

impl From<File> for Pages {
    fn from(file: File) -> Self {
        Self { file, absent: None }
    }
}

impl Pages {
    /// All of it is still to come, to a file in memory.
    pub(super) fn at(fetcher: Fetcher, wanted: Listed) -> Result<Self> {
        let number = fetcher.find(&wanted)?;
        let file = memfd::own("crr-pages")?;
        file.set_len(wanted.size).context("pages in memory")?;
        let blocks = (0..wanted.size.div_ceil(BLOCK_SIZE)).collect();
        Ok(Self { file, absent: Some(Mutex::new(Absent { fetcher, wanted, number, blocks })) })
    }

    /// The file, as far as it is here.
    pub fn file(&self) -> &File {
        &self.file
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
}
