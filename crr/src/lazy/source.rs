//! Where page contents come from.

use super::fetch::{Absent, Fetch};
use crate::fault::{self, Point};
use crate::store::{Unchecked, give_back, verify_block};
use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, Run};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The pages of a checkpoint, by their numbers.
#[derive(Debug)]
pub(super) struct Source {
    /// Page n is at byte 4096 n.
    file: File,
    /// So many pages.
    page_count: u64,
    /// Blocks that have not been checked yet.
    unchecked: Unchecked,
    /// They lie in memory, for nobody else.
    in_memory: bool,
    /// Brings what is not in the file yet.
    pub(super) fetch: Option<Fetch>,
}

/// Blocks of [`BLOCK_PAGES`] pages that these pages lie in.
fn blocks(first_page: u64, pages: u64) -> Range<u64> {
    first_page / BLOCK_PAGES..(first_page + pages).div_ceil(BLOCK_PAGES)
}

impl Source {
    /// # Errors
    /// If what is absent cannot be had.
    pub(super) fn new(
        file: File,
        page_count: u64,
        unchecked: Unchecked,
        in_memory: bool,
        absent: Option<Absent>,
    ) -> Result<Self> {
        let ahead = !fault::is_set(Point::LazyAhead);
        let start = |absent| Fetch::start(absent, file.try_clone().context("dup")?, ahead);
        let fetch = absent.map(start).transpose()?;
        Ok(Self { file, page_count, unchecked, in_memory, fetch })
    }

    /// Whether pages can be read; else, if so, they are asked for before all others.
    ///
    /// # Errors
    /// If they cannot be had.
    pub(super) fn has(&self, run: Run, urgent: bool) -> Result<bool> {
        let Some(fetch) = &self.fetch else { return Ok(true) };
        fetch.has(blocks(run.first_page, run.pages), urgent)
    }

    /// Reads whole pages, from the first one on.
    ///
    /// # Errors
    /// If they cannot be had, or are not what was written.
    pub(super) fn read(&mut self, first_page: u64, bytes: &mut [u8]) -> Result<()> {
        for block in blocks(first_page, bytes.len() as u64 / PAGE_SIZE) {
            if let Some(crc) = self.unchecked.remove(&block) {
                verify_block(&self.file, block, self.page_count, crc).context("pages.img")?;
            }
        }
        self.file.read_exact_at(bytes, first_page * PAGE_SIZE).context("pages.img")
    }

    /// These pages are not needed any more.
    pub(super) fn give_back(&self, run: Run) {
        if self.in_memory {
            give_back(&self.file, run.first_page * PAGE_SIZE, run.pages * PAGE_SIZE);
        }
    }
}
