//! Blocks of pages that are checked when they are used.

use super::Checkpoint;
use images::memory::BLOCK_PAGES;
use shared::plan::lazy::Lazy;
use std::collections::BTreeMap;

/// Checksums of blocks of [`BLOCK_PAGES`] pages, by number.
pub(crate) type Unchecked = BTreeMap<u64, u32>;

impl Checkpoint {
    /// Blocks of which no page is used before what tasks do not read themselves is put in place.
    pub(crate) fn unchecked(&self, lazy: &[Lazy]) -> Unchecked {
        let memory = &self.memory;
        let mut late: BTreeMap<u64, u64> = BTreeMap::new();
        if !self.has_plain_pages() {
            return Unchecked::new();
        }
        for run in lazy.iter().flat_map(|lazy| &lazy.runs) {
            run.by_blocks().for_each(|(block, part)| *late.entry(block).or_default() += part.pages);
        }
        // What others than tasks have is read before.
        let shared = memory.shared.iter().flat_map(|shared| &shared.runs);
        let copies = self.files.paths.iter().flat_map(|path| path.deleted.iter().chain(&path.embedded));
        for run in shared.chain(copies.flat_map(|copy| &copy.runs)) {
            for (block, _) in run.by_blocks() {
                late.remove(&block);
            }
        }
        let is_whole =
            |block: u64, pages: u64| pages == BLOCK_PAGES.min(memory.page_count - block * BLOCK_PAGES);
        let crc = |block| usize::try_from(block).ok().and_then(|at| memory.block_crcs.get(at)).copied();
        late.into_iter()
            .filter(|&(block, pages)| is_whole(block, pages))
            .filter_map(|(block, _)| Some((block, crc(block)?)))
            .collect()
    }
}
