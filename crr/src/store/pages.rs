//! The checksums of `pages.img`: one per [`BLOCK_PAGES`] pages, computed on all processors.

use super::Pages;
use crate::parallel::in_parallel;
use anyhow::{Context, Result, bail};
use images::container::Kind;
use images::id::PAGE_SIZE;
use images::memory::{BLOCK_PAGES, Memory};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

/// Bytes that one thread takes at a time.
pub(crate) const BLOCK_SIZE: u64 = BLOCK_PAGES * PAGE_SIZE;

/// The checksums of the first `page_count` pages of a file, for [`Memory::block_crcs`].
///
/// # Errors
/// If the file cannot be read or is shorter.
pub fn block_crcs(pages: &File, page_count: u64) -> Result<Vec<u32>> {
    let blocks = page_count.div_ceil(BLOCK_PAGES);
    let crcs = Mutex::new(vec![0u32; usize::try_from(blocks)?]);
    let crc = |at, size| block_crc(pages, at, size);
    for_each_block(pages, &crc, page_count, &|_| true, |block, crc| {
        let at = usize::try_from(block)?;
        crcs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = crc;
        Ok(())
    })?;
    Ok(crcs.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Compares the pages of the blocks that are `wanted` with the checksums in the memory map, of a file whose pages are as they are and
/// have one for each [`BLOCK_PAGES`]. `seen` is told the bytes checked so far.
///
/// # Errors
/// Names the first block found corrupt.
pub(super) fn verify(
    pages: &Pages,
    memory: &Memory,
    wanted: &(dyn Fn(u64) -> bool + Sync),
    seen: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let crc = |at, size| pages.crc(at, size);
    for_each_block(pages.file(), &crc, memory.page_count, wanted, |block, actual| {
        let expected = usize::try_from(block).ok().and_then(|at| memory.block_crcs.get(at)).copied();
        compare_block(block, actual, expected)?;
        seen(BLOCK_SIZE.min(memory.page_count * PAGE_SIZE - block * BLOCK_SIZE));
        Ok(())
    })
    .context(Kind::Pages.file_name())
}

/// Compares one block of so many pages of such a file with its checksum.
///
/// # Errors
/// If it is corrupt.
pub(crate) fn verify_block(pages: &File, block: u64, page_count: u64, expected: u32) -> Result<()> {
    let size = (page_count * PAGE_SIZE - block * BLOCK_SIZE).min(BLOCK_SIZE);
    compare_block(block, block_crc(pages, block * BLOCK_SIZE, size)?, Some(expected))
}

/// Compares a block that has been read with its checksum.
///
/// # Errors
/// If it is corrupt.
pub(crate) fn verify_bytes(bytes: &[u8], block: u64, expected: u32) -> Result<()> {
    compare_block(block, crc32c::crc32c(bytes), Some(expected))
}

fn compare_block(block: u64, actual: u32, expected: Option<u32>) -> Result<()> {
    if expected == Some(actual) { Ok(()) } else { wrong_checksum(block * BLOCK_PAGES, expected, actual) }
}

/// The pages from `page` on are not what was written.
pub(super) fn wrong_checksum(page: u64, expected: Option<u32>, actual: u32) -> Result<()> {
    let (first, expected) = (page * PAGE_SIZE, expected.unwrap_or_default());
    bail!("is corrupt: bytes from {first:#x}: checksum {actual:08x} instead of {expected:08x}")
}

/// Calls `each` with the number and checksum of every block that is `wanted`, from several threads; stops at the first error. `crc_of` has a checksum
/// by place and size.
fn for_each_block(
    pages: &File,
    crc_of: &(dyn Fn(u64, u64) -> Result<u32> + Sync),
    page_count: u64,
    wanted: &(dyn Fn(u64) -> bool + Sync),
    each: impl Fn(u64, u32) -> Result<()> + Sync,
) -> Result<()> {
    let (size, needed) = (pages.metadata().context("fstat")?.len(), page_count.saturating_mul(PAGE_SIZE));
    if size < needed {
        bail!("is cut off: {size} bytes instead of {needed}");
    }
    in_parallel(page_count.div_ceil(BLOCK_PAGES), |block| {
        if !wanted(block) {
            return Ok(());
        }
        let size = (page_count * PAGE_SIZE - block * BLOCK_SIZE).min(BLOCK_SIZE);
        each(block, crc_of(block * BLOCK_SIZE, size)?)
    })
}

/// The checksum of one block. Read rather than mapped: of threads that map and unmap, each holds up all others (`mmap_lock`), so two take as long as
/// one alone.
pub(super) fn block_crc(pages: &File, at: u64, size: u64) -> Result<u32> {
    /// Small enough to be still in the cache, and for the heap to have it without a call.
    const STEP: usize = 64 << 10;
    let mut room = vec![0; STEP.min(usize::try_from(size)?)];
    let mut crc = 0;
    for from in (at..at + size).step_by(STEP) {
        let step = usize::try_from(at + size - from)?.min(STEP);
        let bytes = &mut room[..step];
        pages.read_exact_at(bytes, from).with_context(|| format!("read at {from:#x}"))?;
        crc = crc32c::crc32c_append(crc, bytes);
    }
    Ok(crc)
}
