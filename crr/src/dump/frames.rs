//! Pages that several tasks have from a common fork: they lie in the same page frame, and are stored once.
//!
//! The kernel shows frames in pagemap (Documentation/admin-guide/mm/pagemap.rst), but to CAP_SYS_ADMIN only; for others
//! all frames are number 0, and nothing is found. A page in swap is known by its place there.
//!
//! Tasks stand still, but the kernel can move a page to another frame meanwhile (compaction, swap), and give the old one to another
//! page. So in the end those who have such pages are looked at again: their frames have to be what they were.

use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The number of the frame, or type and offset of a place in swap.
const FRAME: u64 = (1 << 55) - 1;
/// Mapped once only.
const EXCLUSIVE: u64 = 1 << 56;
const SWAPPED: u64 = 1 << 62;
/// Words that are read at once.
const CHUNK: u64 = 1 << 14;

/// Pages that are consecutive in a task and in the page file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) pages: u64,
    /// Where they are in the page file; `None` if they have yet to be stored.
    pub(super) stored: Option<u64>,
}

/// Frames of all pages that were found so far.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// By frame, the page of the page file.
    pages: HashMap<u64, u64>,
    /// The frame of each page of the page file; 0 if nobody else has it.
    frames: Vec<u64>,
    pagemaps: Vec<File>,
    /// Who has which pages, by rising page: index of the pagemap.
    owned: Vec<(usize, Stretch)>,
    /// First page and number of those that were found again.
    found_again: BTreeSet<(u64, u64)>,
}

impl Frames {
    /// The next ranges are of this task.
    pub(super) fn add_task(&mut self, pagemap: File) {
        self.pagemaps.push(pagemap);
    }

    /// Splits a range into what is stored already and what is not, which will be stored from page `next` on.
    pub(super) fn split(&mut self, start: u64, end: u64, next: u64) -> Result<Vec<Stretch>> {
        let task = self.pagemaps.len() - 1;
        let Self { pages, frames, pagemaps, .. } = self;
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut next = next;
        for_each_frame(&pagemaps[task], start, end, |at, frame| {
            let expected = stretches.last().and_then(|last| Some(last.stored? + last.pages));
            let follows = expected.filter(|&page| frame_of(frames, page) == frame);
            let stored = if frame == 0 { None } else { follows.or_else(|| pages.get(&frame).copied()) };
            match stretches.last_mut() {
                Some(last) if stored == expected => last.pages += 1,
                _ => stretches.push(Stretch { start: at, pages: 1, stored }),
            }
            if stored.is_none() {
                frames.resize(usize::try_from(next).unwrap_or(usize::MAX), 0);
                frames.push(frame);
                if frame != 0 {
                    pages.insert(frame, next);
                }
                next += 1;
            }
        })?;
        let mut first =
            next - stretches.iter().filter(|new| new.stored.is_none()).map(|new| new.pages).sum::<u64>();
        for &stretch in &stretches {
            match stretch.stored {
                Some(page) => {
                    self.found_again.insert((page, stretch.pages));
                }
                None => {
                    self.owned.push((task, Stretch { stored: Some(first), ..stretch }));
                    first += stretch.pages;
                }
            }
        }
        Ok(stretches)
    }

    /// Whether all pages that were found again are still in the frames that told so.
    pub(super) fn confirm(&self) -> Result<bool> {
        for &(first, pages) in &self.found_again {
            let mut page = first;
            while page < first + pages {
                let at = self.owned.partition_point(|(_, owned)| last_page(owned) <= page);
                let (task, owned) = self.owned.get(at).context("a page that nobody has")?;
                let skip = page - owned.stored.unwrap_or(page);
                let count = (owned.pages - skip).min(first + pages - page);
                let start = owned.start + skip * PAGE_SIZE;
                let mut stayed = true;
                for_each_frame(&self.pagemaps[*task], start, start + count * PAGE_SIZE, |at, frame| {
                    stayed &= frame == frame_of(&self.frames, page + (at - start) / PAGE_SIZE);
                })?;
                if !stayed {
                    return Ok(false);
                }
                page += count;
            }
        }
        Ok(true)
    }
}

fn frame_of(frames: &[u64], page: u64) -> u64 {
    usize::try_from(page).ok().and_then(|page| frames.get(page)).copied().unwrap_or(0)
}

/// One past the last page.
fn last_page(stretch: &Stretch) -> u64 {
    stretch.stored.unwrap_or(0) + stretch.pages
}

/// Reads the frames of a range of pages; 0 for those that are mapped once only or not shown.
fn for_each_frame(pagemap: &File, start: u64, end: u64, mut frame: impl FnMut(u64, u64)) -> Result<()> {
    let mut words = vec![0u8; usize::try_from(CHUNK.min((end - start) / PAGE_SIZE) * 8)?];
    let mut at = start;
    while at < end {
        let pages = ((end - at) / PAGE_SIZE).min(CHUNK);
        let words = &mut words[..usize::try_from(pages * 8)?];
        pagemap.read_exact_at(words, at / PAGE_SIZE * 8).context("read pagemap")?;
        for (word, at) in words.chunks_exact(8).zip((at..).step_by(4096)) {
            frame(at, identity(u64::from_le_bytes(word.try_into()?)));
        }
        at += pages * PAGE_SIZE;
    }
    Ok(())
}

/// What a page can be known by in another task, or 0. A page that is in swap is never said to be mapped once only.
const fn identity(word: u64) -> u64 {
    if word & EXCLUSIVE != 0 || word & FRAME == 0 { 0 } else { word & (FRAME | SWAPPED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that shows frames of the first pages of a task.
    fn pagemap(frames: &[u64]) -> File {
        let file = tempfile::tempfile().unwrap();
        let words: Vec<u8> = frames.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&words, 0).unwrap();
        file
    }

    fn split(frames: &mut Frames, words: &[u64], next: u64) -> Vec<(u64, u64, Option<u64>)> {
        frames.add_task(pagemap(words));
        let stretches = frames.split(0, words.len() as u64 * PAGE_SIZE, next).unwrap();
        stretches.into_iter().map(|s| (s.start / PAGE_SIZE, s.pages, s.stored)).collect()
    }

    #[test]
    fn frames_are_found_again() {
        let mut frames = Frames::default();
        assert_eq!(split(&mut frames, &[11, 12, 13, 14], 0), [(0, 4, None)]);
        let again = split(&mut frames, &[11, 12, 23, 14, 13], 4);
        assert_eq!(again, [(0, 2, Some(0)), (2, 1, None), (3, 1, Some(3)), (4, 1, Some(2))]);
        // From different tasks; another one in between.
        assert_eq!(split(&mut frames, &[23, 11], 9), [(0, 1, Some(4)), (1, 1, Some(0))]);
        assert!(frames.confirm().unwrap());
    }

    #[test]
    fn what_is_mapped_once_or_hidden_is_not_looked_for() {
        let mut frames = Frames::default();
        assert_eq!(split(&mut frames, &[11 | EXCLUSIVE, 0, 12], 0), [(0, 3, None)]);
        assert_eq!(split(&mut frames, &[11 | EXCLUSIVE, 0, 12], 3), [(0, 2, None), (2, 1, Some(2))]);
    }

    #[test]
    fn a_place_in_swap_is_no_frame() {
        let mut frames = Frames::default();
        assert_eq!(split(&mut frames, &[11], 0), [(0, 1, None)]);
        assert_eq!(split(&mut frames, &[11 | SWAPPED], 1), [(0, 1, None)]);
        assert_eq!(split(&mut frames, &[11 | SWAPPED], 2), [(0, 1, Some(1))]);
    }

    #[test]
    fn a_page_that_was_moved_is_noticed() {
        let mut frames = Frames::default();
        let first = pagemap(&[11, 12, 13]);
        frames.add_task(first.try_clone().unwrap());
        frames.split(0, 3 * PAGE_SIZE, 0).unwrap();
        split(&mut frames, &[11, 12], 3);
        first.write_all_at(&99u64.to_le_bytes(), 16).unwrap();
        assert!(frames.confirm().unwrap(), "nobody else has that one");
        first.write_all_at(&99u64.to_le_bytes(), 8).unwrap();
        assert!(!frames.confirm().unwrap());
    }
}
