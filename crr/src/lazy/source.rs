//! Where page contents come from.

use crate::store::{Checkpoint, verify_block};
use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use images::memory::BLOCK_PAGES;
use shared::plan::lazy::Lazy;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Something that has the pages of a checkpoint, by their numbers.
#[derive(Debug)]
pub(super) enum Source {
    /// A file with page n at byte 4096 n, so many pages, and checksums of blocks that have not been checked yet.
    File(File, u64, Unchecked),
}

/// Checksums of blocks of [`BLOCK_PAGES`] pages, by number.
pub(crate) type Unchecked = BTreeMap<u64, u32>;

impl Source {
    /// Reads whole pages, from the first one on.
    ///
    /// # Errors
    /// If they cannot be had, or are not what was written.
    pub(super) fn read(&mut self, first_page: u64, bytes: &mut [u8]) -> Result<()> {
        let Self::File(file, page_count, unchecked) = self;
        let end = first_page + bytes.len() as u64 / PAGE_SIZE;
        for block in first_page / BLOCK_PAGES..end.div_ceil(BLOCK_PAGES) {
            if let Some(crc) = unchecked.remove(&block) {
                verify_block(file, block, *page_count, crc).context("pages.img")?;
            }
        }
        file.read_exact_at(bytes, first_page * PAGE_SIZE).context("pages.img")
    }
}

/// Blocks of which all pages come later: they are checked when they do.
pub(crate) fn later(checkpoint: &Checkpoint, lazy: &[Lazy]) -> Unchecked {
    let memory = &checkpoint.memory;
    let mut late: BTreeMap<u64, u64> = BTreeMap::new();
    if !checkpoint.has_plain_pages() {
        return Unchecked::new();
    }
    for run in lazy.iter().flat_map(|lazy| &lazy.runs) {
        run.by_blocks().for_each(|(block, part)| *late.entry(block).or_default() += part.pages);
    }
    let is_whole = |block: u64, pages: u64| pages == BLOCK_PAGES.min(memory.page_count - block * BLOCK_PAGES);
    let crc = |block| usize::try_from(block).ok().and_then(|at| memory.block_crcs.get(at)).copied();
    late.into_iter()
        .filter(|&(block, pages)| is_whole(block, pages))
        .filter_map(|(block, _)| Some((block, crc(block)?)))
        .collect()
}
