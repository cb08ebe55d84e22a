//! Pages that several tasks have from a common fork: they lie in the same page frame, and are stored once.
//!
//! The kernel shows frames in pagemap (Documentation/admin-guide/mm/pagemap.rst), but to CAP_SYS_ADMIN only; for others
//! all frames are number 0, and nothing is found. A page in swap is known by its place there.
//!
//! Tasks stand still, but the kernel can move a page to another frame meanwhile (compaction, swap), and give the old one to another
//! page. So in the end those who have such pages are looked at again: their frames have to be what they were.

use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The number of the frame, or type and offset of a place in swap.
const FRAME: u64 = (1 << 55) - 1;
/// The bits of the type, below the offset.
const SWAP_TYPE: u32 = 5;
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
    known: Known,
    /// By the numbers under which contents know the tasks.
    pagemaps: BTreeMap<usize, File>,
    /// The task that is looked at.
    task: usize,
    /// First and last page of those that were found again, one past.
    found_again: BTreeMap<u64, u64>,
}

impl Frames {
    /// The next ranges are of this task.
    pub(super) fn add_task(&mut self, task: usize, pagemap: File) {
        self.pagemaps.insert(task, pagemap);
        self.task = task;
    }

    /// Splits a range into what is stored already and what is not, which will be stored from page `next` on.
    pub(super) fn split(
        &mut self,
        start: u64,
        end: u64,
        next: u64,
        mut found: impl FnMut(Stretch),
    ) -> Result<()> {
        let Self { known, pagemaps, task, found_again } = self;
        let pagemap = pagemaps.get(task).context("a task that was not added")?;
        let mut next = next;
        let mut last: Option<Stretch> = None;
        let mut end_of = |stretch: Stretch| {
            if let Some(page) = stretch.stored {
                unite(found_again, page, page + stretch.pages);
            }
            found(stretch);
        };
        known.begin_range();
        for_each_frame(pagemap, start, end, |at, frame| {
            let stored = known.find_or_add(frame, next);
            next += u64::from(stored.is_none());
            match &mut last {
                Some(last) if stored == last.stored.map(|page| page + last.pages) => last.pages += 1,
                _ => {
                    let whole = last.replace(Stretch { start: at, pages: 1, stored });
                    whole.into_iter().for_each(&mut end_of);
                }
            }
        })?;
        last.into_iter().for_each(end_of);
        Ok(())
    }

    /// Whether all pages that were found again are still in the frames that told so. `holder` says of a page of the page file whose it is,
    /// at which address, and how many follow it there.
    pub(super) fn confirm(&self, holder: impl Fn(u64) -> Option<(usize, u64, u64)>) -> Result<bool> {
        for (&first, &end) in &self.found_again {
            let mut page = first;
            while page < end {
                let (task, start, count) = holder(page).context("a page that nobody has")?;
                let pagemap = self.pagemaps.get(&task).context("a page of a task that was not added")?;
                let count = count.min(end - page);
                let mut expected = self.known.frames_from(page);
                let mut stayed = true;
                for_each_frame(pagemap, start, start + count * PAGE_SIZE, |_, frame| {
                    stayed &= expected.next() == Some(frame);
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

/// Adds a range to ranges that neither overlap nor touch.
fn unite(ranges: &mut BTreeMap<u64, u64>, mut start: u64, mut end: u64) {
    while let Some((&first, &last)) = ranges.range(..=end).next_back().filter(|&(_, &last)| last >= start) {
        if first <= start && end <= last {
            return;
        }
        ranges.remove(&first);
        (start, end) = (start.min(first), end.max(last));
    }
    ranges.insert(start, end);
}

/// Pages that are consecutive in the page file, and whose frames are consecutive, too: as the kernel gives them out, they rise or fall. There can be
/// one for each page, so it is small.
#[derive(Clone, Copy, Debug)]
struct Series {
    /// The frame of the first page.
    frame: u64,
    /// The first page, how many there are, and whether frames fall.
    place: u64,
}

impl Series {
    const FALLS: u64 = 1;
    const COUNT_SHIFT: u32 = 1;
    const PAGE_SHIFT: u32 = 24;
    const MAX_COUNT: u64 = (1 << (Self::PAGE_SHIFT - Self::COUNT_SHIFT)) - 1;
    /// Of 16 PiB no page is looked for any more.
    const MAX_PAGE: u64 = u64::MAX >> Self::PAGE_SHIFT;

    const fn new(frame: u64, page: u64) -> Self {
        Self { frame, place: page << Self::PAGE_SHIFT | 1 << Self::COUNT_SHIFT }
    }

    const fn page(self) -> u64 {
        self.place >> Self::PAGE_SHIFT
    }

    const fn count(self) -> u64 {
        self.place >> Self::COUNT_SHIFT & Self::MAX_COUNT
    }

    const fn falls(self) -> bool {
        self.place & Self::FALLS != 0
    }

    /// One past the last page.
    const fn end(self) -> u64 {
        self.page() + self.count()
    }

    /// All frames.
    const fn frames(self) -> Range<u64> {
        if self.falls() {
            self.frame + 1 - self.count()..self.frame + 1
        } else {
            self.frame..self.frame + self.count()
        }
    }

    /// The frame of one of its pages.
    const fn frame_of(self, page: u64) -> u64 {
        let skip = page - self.page();
        if self.falls() { self.frame - skip } else { self.frame + skip }
    }

    /// The page in one of its frames.
    const fn page_of(self, frame: u64) -> u64 {
        self.page() + self.frame.abs_diff(frame)
    }

    /// Takes one more page if it goes on with that.
    const fn grow(&mut self, frame: u64, page: u64) -> bool {
        let count = self.count();
        let rises = frame == self.frame + count && (count == 1 || !self.falls());
        let falls = frame + count == self.frame && (count == 1 || self.falls());
        if page != self.end() || count == Self::MAX_COUNT || !(rises || falls) {
            return false;
        }
        self.place = (self.place + (1 << Self::COUNT_SHIFT)) | if falls { Self::FALLS } else { 0 };
        true
    }
}

/// Which page of the page file lies in which frame, for those that somebody else may have, too.
#[derive(Debug, Default)]
struct Known {
    /// By rising page. The last one still grows.
    series: Vec<Series>,
    /// Numbers of those that do not, by rising frame, but for the latest.
    sorted: Vec<u32>,
    /// The latest, by their lowest frames.
    latest: BTreeMap<u64, u32>,
    /// Around the last one, frames that no other has.
    free: Range<u64>,
    /// The page that is likely to be found next, and where to look for it.
    next: (u64, usize),
    /// As that was after the last page that was found.
    found: (u64, usize),
}

impl Known {
    /// Latest ones that are worth being sorted in; where there are many, one of so many.
    const LATEST: usize = 1024;
    const LATEST_OF: usize = 8;

    /// What comes next need not follow the last page in memory. It does in the page file, more often than not.
    const fn begin_range(&mut self) {
        self.next = self.found;
    }

    /// The page that lies in a frame (0 for one that is nobody else's). If it is not known, it is to be `page`.
    fn find_or_add(&mut self, frame: u64, page: u64) -> Option<u64> {
        if frame == 0 {
            self.next.0 += 1;
            return None;
        }
        if let Some(found) = self.follow(frame) {
            return Some(found);
        }
        if self.free.contains(&frame) && self.series.last_mut().is_some_and(|last| last.grow(frame, page)) {
            return None;
        }
        match self.find(frame) {
            Ok(at) => {
                let found = self.series[at].page_of(frame);
                self.next = (found + 1, at);
                self.found = self.next;
                Some(found)
            }
            Err(free) => {
                self.add(frame, page, free);
                None
            }
        }
    }

    /// Whether the next page is the likely one.
    fn follow(&mut self, frame: u64) -> Option<u64> {
        let (page, at) = &mut self.next;
        while self.series.get(*at).is_some_and(|series| series.end() <= *page) {
            *at += 1;
        }
        let likely = *page;
        *page += 1;
        let found = self.series.get(*at).filter(|series| series.page() <= likely)?.frame_of(likely) == frame;
        if !found {
            return None;
        }
        self.found = self.next;
        Some(likely)
    }

    /// The number of the series that has a frame, or the frames around it that none has.
    fn find(&self, frame: u64) -> Result<usize, Range<u64>> {
        let at = self.sorted.partition_point(|&number| self.frames(number).start <= frame);
        let sorted = [at.checked_sub(1), Some(at)].map(|at| self.sorted.get(at?).copied());
        let below = self.latest.range(..=frame).next_back();
        let latest = [below, self.latest.range(frame..).next()].map(|entry| entry.map(|(_, &number)| number));
        let last = self.series.len().checked_sub(1);
        let near = sorted.into_iter().chain(latest).flatten().map(|number| number as usize).chain(last);
        let mut free = 0..u64::MAX;
        for number in near {
            let frames = self.series[number].frames();
            if frames.contains(&frame) {
                return Ok(number);
            }
            if frames.start <= frame {
                free.start = free.start.max(frames.end);
            } else {
                free.end = free.end.min(frames.start);
            }
        }
        Err(free)
    }

    fn frames(&self, number: u32) -> Range<u64> {
        self.series[number as usize].frames()
    }

    /// Begins a series.
    fn add(&mut self, frame: u64, page: u64, free: Range<u64>) {
        // The last one is at its end.
        if let Some(last) = self.series.len().checked_sub(1) {
            let Ok(number) = u32::try_from(last) else { return };
            self.latest.insert(self.frames(number).start, number);
        }
        if page > Series::MAX_PAGE {
            return;
        }
        self.series.push(Series::new(frame, page));
        self.free = free;
        if self.latest.len() >= Self::LATEST.max(self.sorted.len() / Self::LATEST_OF) {
            self.sort_in();
        }
    }

    /// Puts the latest into their places among the others, from the end on.
    fn sort_in(&mut self) {
        let mut left = self.sorted.len();
        let mut to = left + self.latest.len();
        self.sorted.resize(to, 0);
        for (lowest, number) in std::mem::take(&mut self.latest).into_iter().rev() {
            while left > 0 && self.frames(self.sorted[left - 1]).start > lowest {
                (left, to) = (left - 1, to - 1);
                self.sorted[to] = self.sorted[left];
            }
            to -= 1;
            self.sorted[to] = number;
        }
    }

    /// The frames of pages that were found again, from one on.
    fn frames_from(&self, page: u64) -> impl Iterator<Item = u64> {
        let first = self.series.partition_point(|series| series.end() <= page);
        self.series[first..]
            .iter()
            .flat_map(move |series| (page.max(series.page())..series.end()).map(|page| series.frame_of(page)))
    }
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

/// What a page can be known by in another task, or 0. A page that is in swap is never said to be mapped once only. Places that lie side by side
/// there have numbers that do, as frames have.
const fn identity(word: u64) -> u64 {
    let number = word & FRAME;
    if word & EXCLUSIVE != 0 || number == 0 {
        return 0;
    }
    if word & SWAPPED == 0 {
        return number;
    }
    let (kind, place) = (number & ((1 << SWAP_TYPE) - 1), number >> SWAP_TYPE);
    SWAPPED | kind << (FRAME.count_ones() - SWAP_TYPE) | place
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

    /// Frames, and where the pages are that were stored: whose, at which address, how many, and their first number.
    #[derive(Default)]
    struct Trial {
        frames: Frames,
        holders: Vec<(usize, u64, u64, u64)>,
        tasks: usize,
    }

    impl Trial {
        fn split_file(&mut self, file: File, count: u64, next: u64) -> Vec<(u64, u64, Option<u64>)> {
            let (task, mut first, mut found) = (self.tasks, next, Vec::new());
            self.tasks += 1;
            self.frames.add_task(task, file);
            let holders = &mut self.holders;
            let each = |Stretch { start, pages, stored }: Stretch| {
                if stored.is_none() {
                    holders.push((task, start, pages, first));
                    first += pages;
                }
                found.push((start / PAGE_SIZE, pages, stored));
            };
            self.frames.split(0, count * PAGE_SIZE, next, each).unwrap();
            found
        }

        fn confirm(&self) -> bool {
            let holder = |page| {
                let holds =
                    |&&(_, _, pages, first): &&(usize, u64, u64, u64)| (first..first + pages).contains(&page);
                let &(task, start, pages, first) = self.holders.iter().find(holds)?;
                Some((task, start + (page - first) * PAGE_SIZE, first + pages - page))
            };
            self.frames.confirm(holder).unwrap()
        }
    }

    fn split(trial: &mut Trial, words: &[u64], next: u64) -> Vec<(u64, u64, Option<u64>)> {
        trial.split_file(pagemap(words), words.len() as u64, next)
    }

    #[test]
    fn frames_are_found_again() {
        let mut frames = Trial::default();
        assert_eq!(split(&mut frames, &[11, 12, 13, 14], 0), [(0, 4, None)]);
        let again = split(&mut frames, &[11, 12, 23, 14, 13], 4);
        assert_eq!(again, [(0, 2, Some(0)), (2, 1, None), (3, 1, Some(3)), (4, 1, Some(2))]);
        // From different tasks; another one in between.
        assert_eq!(split(&mut frames, &[23, 11], 9), [(0, 1, Some(4)), (1, 1, Some(0))]);
        assert!(frames.confirm());
    }

    #[test]
    fn what_is_mapped_once_or_hidden_is_not_looked_for() {
        let mut frames = Trial::default();
        assert_eq!(split(&mut frames, &[11 | EXCLUSIVE, 0, 12], 0), [(0, 3, None)]);
        assert_eq!(split(&mut frames, &[11 | EXCLUSIVE, 0, 12], 3), [(0, 2, None), (2, 1, Some(2))]);
    }

    #[test]
    fn a_place_in_swap_is_no_frame() {
        let mut frames = Trial::default();
        assert_eq!(split(&mut frames, &[11], 0), [(0, 1, None)]);
        assert_eq!(split(&mut frames, &[11 | SWAPPED], 1), [(0, 1, None)]);
        assert_eq!(split(&mut frames, &[11 | SWAPPED], 2), [(0, 1, Some(1))]);
    }

    #[test]
    fn a_page_that_was_moved_is_noticed() {
        let mut frames = Trial::default();
        let first = pagemap(&[11, 12, 13]);
        frames.split_file(first.try_clone().unwrap(), 3, 0);
        split(&mut frames, &[11, 12], 3);
        first.write_all_at(&99u64.to_le_bytes(), 16).unwrap();
        assert!(frames.confirm(), "nobody else has that one");
        first.write_all_at(&99u64.to_le_bytes(), 8).unwrap();
        assert!(!frames.confirm());
    }

    /// Numbers that look like any, the same ones each time.
    fn dice() -> impl FnMut(u64) -> u64 {
        let mut state = 1_u64;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    #[test]
    fn what_is_found_is_what_a_table_of_all_frames_finds() {
        let mut dice = dice();
        for round in 0..40 {
            let (mut trial, mut next) = (Trial::default(), 0);
            let mut table = std::collections::HashMap::new();
            let mut words: Vec<u64> = Vec::new();
            for _ in 0..6 {
                // As a fork has them, but for some that were written since, in series that rise, fall, or neither.
                let mut frame = 0;
                let mut new = |at: usize| {
                    frame = match dice(if at == 0 || round % 4 == 0 { 1 } else { 12 }) {
                        0 => 1 + dice(3 * Known::LATEST as u64),
                        below if (below < 10) == (round % 2 == 0) => frame + 1,
                        _ => (frame - 1).max(1),
                    };
                    frame | if dice(9) == 0 { EXCLUSIVE } else { 0 }
                };
                match words.len() {
                    0 => words = (0..5000).map(&mut new).collect(),
                    len => (0..200).for_each(|at| words[(at * 37) % len] = new(at)),
                }
                let mut expected = Vec::new();
                let mut page = next;
                for &word in &words {
                    let known = table.get(&word).copied().filter(|_| word & EXCLUSIVE == 0);
                    expected.push(known);
                    if known.is_none() {
                        if word & EXCLUSIVE == 0 {
                            table.insert(word, page);
                        }
                        page += 1;
                    }
                }
                let found = split(&mut trial, &words, next);
                let each = found.iter().flat_map(|&(_, pages, stored)| {
                    (0..pages).map(move |page| stored.map(|first| first + page))
                });
                assert!(each.eq(expected), "round {round}");
                next = page;
            }
            assert!(trial.confirm(), "round {round}");
        }
    }

    #[test]
    fn consecutive_frames_are_one_thing_to_know() {
        let mut trial = Trial::default();
        let rising = (1000..101_000).map(|frame| frame | if frame < 2000 { EXCLUSIVE } else { 0 });
        let falling = (200_000..300_000).rev();
        let swapped = (1..1000).map(|place| SWAPPED | place << SWAP_TYPE | 3);
        let words: Vec<u64> = rising.chain(falling).chain(swapped).collect();
        let all = words.len() as u64;
        assert_eq!(split(&mut trial, &words, 0), [(0, all, None)]);
        assert_eq!(trial.frames.known.series.len(), 3);
        assert_eq!(split(&mut trial, &words[1000..], all), [(0, all - 1000, Some(1000))]);
        split(&mut trial, &words[5000..7000], all);
        assert_eq!((trial.frames.known.series.len(), trial.frames.found_again.len()), (3, 1));
        assert!(trial.confirm());
    }
}
