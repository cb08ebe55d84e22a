//! Giving back what earlier rounds hold and a later one does not use.

use super::assemble::{Span, used, within};
use super::chain::{Round, ancestors};
use super::reader::Checkpoint;
use anyhow::{Context, Result};
use images::container::Kind;
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::CHUNK_PAGES;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use shared::range::merged;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

/// Punches holes into the page files that the checkpoint or pre-dump in `dir` builds on, where it uses nothing. Returns how many
/// bytes that gave back.
///
/// # Errors
/// Names the file that cannot be read or changed.
pub fn dedup(dir: &Path) -> Result<u64> {
    let source = dir.into();
    let (used, rounds) = match Round::open_if(&source)? {
        Some(round) => {
            let rounds = ancestors(dir, &round.inventory, &round.memory)?;
            (used(&Files::default(), &round.memory), rounds)
        }
        None => {
            let Checkpoint { files, memory, ancestors, .. } = Checkpoint::open(&source)?;
            (used(&files, &memory), ancestors)
        }
    };
    let mut freed = 0;
    for round in &rounds {
        freed += punch(round, &used)
            .with_context(|| format!("{}/{}", round.dir.display(), Kind::Pages.file_name()))?;
    }
    Ok(freed)
}

fn punch(round: &Round, used: &[Span]) -> Result<u64> {
    let (first, count) = (round.memory.first_page, round.memory.page_count);
    let unused = gaps(within(used, first, first + count).map(|(from, to)| (from - first, to - first)), count);
    let path = round.dir.join(Kind::Pages.file_name());
    let file = OpenOptions::new().write(true).open(&path)?;
    let before = file.metadata()?.blocks();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for (start, end) in bytes(round, &unused) {
        match fallocate(&file, flags, i64::try_from(start)?, i64::try_from(end - start)?) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP) => anyhow::bail!("its file system has no holes"),
            Err(errno) => return Err(errno).context("fallocate"),
        }
    }
    Ok(before.saturating_sub(file.metadata()?.blocks()) * BLOCK)
}

/// What lies between spans, from 0 to `count`.
fn gaps(spans: impl Iterator<Item = Span>, count: u64) -> Vec<Span> {
    let mut at = 0;
    let mut gaps = Vec::new();
    for (start, end) in spans.chain([(count, count)]) {
        if at < start {
            gaps.push((at, start));
        }
        at = end;
    }
    gaps
}

/// The bytes of pages in a page file: of packed ones, those chunks that hold no others.
fn bytes(round: &Round, pages: &[Span]) -> Vec<Span> {
    let Some(packing) = &round.memory.packing else {
        return pages.iter().map(|(start, end)| (start * PAGE_SIZE, end * PAGE_SIZE)).collect();
    };
    let count = round.memory.page_count;
    let whole = |number: u64| {
        let (first, end) = (number * CHUNK_PAGES, ((number + 1) * CHUNK_PAGES).min(count));
        within(pages, first, end).next() == Some((first, end))
    };
    let unused = (0..).zip(&packing.chunks).filter(|(number, _)| whole(*number));
    merged(unused.map(|(_, chunk)| (chunk.place, chunk.place + u64::from(chunk.size))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_is_left() {
        assert_eq!(gaps([(2, 4), (6, 7)].into_iter(), 9), [(0, 2), (4, 6), (7, 9)]);
        assert_eq!(gaps([(0, 9)].into_iter(), 9), []);
        assert_eq!(gaps([].into_iter(), 9), [(0, 9)]);
    }
}
