//! One file with all pages of a checkpoint as they are to be read: those that are packed unpacked, those of the checkpoints that it
//! builds on from there. It lies in memory, and has holes where nothing is used.
//!
//! Each page is compared with its checksum on the way.

use super::PAGE;
use super::chain::Round;
use super::packing::{CHUNK_SIZE, Unpacker};
use super::pages::{BLOCK_SIZE, wrong_checksum};
use crate::parallel::in_parallel;
use crate::sys::memfd;
use anyhow::{Context, Result};
use images::container::Kind;
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, CHUNK_PAGES, Memory, Run};
use shared::range::merged;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pages from one to before another.
pub(super) type Span = (u64, u64);

/// One of the page files.
struct Part<'a> {
    dir: &'a Path,
    file: &'a File,
    memory: &'a Memory,
    /// What is wanted of it, rising and apart, numbered as in the file.
    spans: Vec<Span>,
}

/// The pages that runs name, rising and apart.
pub(super) fn used(files: &Files, memory: &Memory) -> Vec<Span> {
    let spaces = memory.spaces.iter().flat_map(|space| &space.runs);
    let shared = memory.shared.iter().flat_map(|shared| &shared.runs);
    let copies = files.paths.iter().flat_map(|path| path.deleted.iter().chain(&path.embedded));
    let runs = spaces.chain(shared).chain(copies.flat_map(|copy| &copy.runs));
    merged(runs.map(|run: &Run| (run.first_page, run.first_page + run.pages)).collect())
}

/// What lies between two pages.
pub(super) fn within(spans: &[Span], first: u64, end: u64) -> impl Iterator<Item = Span> {
    let from = spans.partition_point(|span| span.1 <= first);
    let inside = spans[from..].iter().take_while(move |span| span.0 < end);
    inside.map(move |span| (span.0.max(first), span.1.min(end)))
}

/// Makes the file. `seen` is told the bytes that are done.
///
/// # Errors
/// Names the file that is corrupt, and where.
pub(super) fn assemble(
    (dir, pages): (&Path, &File),
    ancestors: &[Round],
    files: &Files,
    memory: &Memory,
    seen: &(dyn Fn(u64) + Sync),
) -> Result<File> {
    let used = used(files, memory);
    let mut parts: Vec<Part<'_>> = ancestors
        .iter()
        .map(|round| {
            let (first, count) = (round.memory.first_page, round.memory.page_count);
            let spans =
                within(&used, first, first + count).map(|span| (span.0 - first, span.1 - first)).collect();
            let file = round.pages.as_ref().context("its pages are elsewhere")?;
            Ok(Part { dir: &round.dir, file, memory: &round.memory, spans })
        })
        .collect::<Result<_>>()?;
    let spans = if memory.page_count > 0 { vec![(0, memory.page_count)] } else { Vec::new() };
    parts.push(Part { dir, file: pages, memory, spans });
    let made = memfd::own("crr-pages")?;
    made.set_len((memory.first_page + memory.page_count) * PAGE_SIZE).context("pages in memory")?;
    for part in &parts {
        let place = || format!("{}/{}", part.dir.display(), Kind::Pages.file_name());
        in_parallel(part.memory.page_count.div_ceil(BLOCK_PAGES), |block| {
            part.block(block, &made)?;
            seen(BLOCK_SIZE);
            Ok(())
        })
        .with_context(place)?;
    }
    Ok(made)
}

impl Part<'_> {
    /// Carries the wanted pages of a block over.
    fn block(&self, block: u64, to: &File) -> Result<()> {
        let (mut first, last) =
            (block * BLOCK_PAGES, ((block + 1) * BLOCK_PAGES).min(self.memory.page_count));
        if within(&self.spans, first, last).next().is_none() {
            return Ok(());
        }
        let mut unpacker =
            self.memory.packing.as_ref().map(|packing| Unpacker::new(self.file, packing)).transpose()?;
        let mut buffer = vec![0; CHUNK_SIZE];
        let (single, mut crc) = (self.memory.block_pages == 1, 0);
        while first < last {
            let end = (first + CHUNK_PAGES).min(last);
            let at = |page: u64| usize::try_from((page - first) * PAGE_SIZE);
            if within(&self.spans, first, end).next().is_some()
                && let Some(unpacker) = &mut unpacker
            {
                unpacker.chunk(first / CHUNK_PAGES, &mut buffer[..at(end)?])?;
            }
            for (from, end) in within(&self.spans, first, end) {
                let pages = &mut buffer[at(from)?..at(end)?];
                if unpacker.is_none() {
                    self.file.read_exact_at(pages, from * PAGE_SIZE).context("read")?;
                }
                if single {
                    for (page, bytes) in (from..).zip(pages.chunks_exact(PAGE)) {
                        self.compare(page, crc32c::crc32c(bytes))?;
                    }
                } else {
                    crc = crc32c::crc32c_append(crc, pages);
                }
                to.write_all_at(pages, (self.memory.first_page + from) * PAGE_SIZE)
                    .context("pages in memory")?;
            }
            first = end;
        }
        if single { Ok(()) } else { self.compare(block, crc) }
    }

    /// Compares one of the checksums.
    fn compare(&self, number: u64, actual: u32) -> Result<()> {
        match usize::try_from(number).ok().and_then(|at| self.memory.block_crcs.get(at)) {
            Some(&expected) if expected == actual => Ok(()),
            expected => wrong_checksum(number * self.memory.block_pages, expected.copied(), actual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_joined_and_cut() {
        let spans = merged(vec![(8, 9), (1, 3), (3, 4), (2, 3), (20, 30)]);
        assert_eq!(spans, [(1, 4), (8, 9), (20, 30)]);
        assert_eq!(within(&spans, 2, 25).collect::<Vec<_>>(), [(2, 4), (8, 9), (20, 25)]);
        assert_eq!(within(&spans, 4, 8).count(), 0);
    }
}
