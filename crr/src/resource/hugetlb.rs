//! Memory of huge pages (hugetlbfs, MAP_HUGETLB): of which size, what of an object was touched, and whether there are enough.

use super::sysv;
use crate::ptrace;
use crate::refusal::{Refusal, Refusals};
use anyhow::{Context, Result};
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{Backing, HugePage, Memory, Run, Shared, vm};
use nix::sys::statfs::fstatfs;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// HUGETLBFS_MAGIC of include/uapi/linux/magic.h.
const HUGETLBFS: i64 = 0x9584_58f6;

/// The way out where there are too few.
const RAISE: &str =
    "raise vm.nr_hugepages or vm.nr_overcommit_hugepages (1 GiB: below /sys/kernel/mm/hugepages)";

/// The one of this size.
pub(crate) fn of_size(bytes: u64) -> Option<HugePage> {
    HugePage::ALL.into_iter().find(|page| page.size() == bytes)
}

/// The pages that a file is made of, if they are huge.
///
/// # Errors
/// If its file system does not tell.
pub(crate) fn of_file(file: &File) -> nix::Result<Option<HugePage>> {
    let home = fstatfs(file)?;
    let size = u64::try_from(home.block_size()).unwrap_or(0);
    Ok(if home.filesystem_type().0 == HUGETLBFS { of_size(size) } else { None })
}

/// The parts of a file on hugetlbfs that are not plain zeros, as byte offsets. That file system does not tell where holes are; reading
/// them does not fill them.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn find_data(file: &File, page: HugePage) -> Result<Vec<(u64, u64)>> {
    const STEP: usize = 1 << 20;
    let metadata = file.metadata().context("fstat")?;
    let mut found: Vec<(u64, u64)> = Vec::new();
    if metadata.blocks() * 512 >= metadata.len() {
        found.extend((metadata.len() > 0).then_some((0, metadata.len())));
        return Ok(found);
    }
    let mut buffer = vec![0; STEP];
    for start in (0..metadata.len()).step_by(usize::try_from(page.size())?) {
        for at in (start..start + page.size()).step_by(STEP) {
            ptrace::check_interrupted()?;
            file.read_exact_at(&mut buffer, at).context("read huge pages")?;
            if buffer.iter().any(|&byte| byte != 0) {
                match found.last_mut() {
                    Some(last) if last.1 == start => last.1 = start + page.size(),
                    _ => found.push((start, start + page.size())),
                }
                break;
            }
        }
    }
    Ok(found)
}

/// Refuses a restore for which there are not enough huge pages: who cannot reserve them cannot map them, and who has not reserved
/// them is killed when there are none.
pub(crate) fn preflight(memory: &Memory, files: &Files, refusals: &mut Refusals) -> Result<()> {
    let is_segment = |object: &Shared| object.huge.is_some() && object.segment.is_some();
    let there = if memory.shared.iter().any(is_segment) { sysv::ids()? } else { HashSet::new() };
    for (page, wanted) in wanted(memory, files, &there) {
        let pool = Pool::read(page)?;
        let free = pool.free.saturating_sub(pool.reserved) + pool.may_come;
        if wanted > free {
            refusals.push(Refusal {
                task: None,
                object: format!("{wanted} huge pages of {}", crate::progress::bytes(page.size())),
                reason: format!("there are {free} that are free"),
                hint: Some(RAISE.to_owned()),
            });
        }
    }
    Ok(())
}

/// Refuses a tree that takes more huge pages to be restored than this machine can have: those that tasks share since a fork come back as copies.
///
/// # Errors
/// If the kernel does not tell how many there are.
pub(crate) fn check(memory: &Memory, files: &Files, refusals: &mut Refusals) -> Result<()> {
    // Only these are shared since a fork.
    if !memory.spaces.iter().flat_map(|space| &space.vmas).any(|vma| vma.huge().is_some()) {
        return Ok(());
    }
    for (page, wanted) in wanted(memory, files, &HashSet::new()) {
        let pool = Pool::read(page)?;
        let most = pool.all + pool.may_come;
        if wanted > most {
            refusals.push(Refusal {
                task: None,
                object: format!("huge pages of {}", crate::progress::bytes(page.size())),
                reason: format!(
                    "a restore takes {wanted}, since tasks that share some since a fork come back with copies, and there can be {most}"
                ),
                hint: Some(RAISE.to_owned()),
            });
        }
    }
    Ok(())
}

/// How many huge pages a checkpoint takes: those that are reserved by mapping, else those that have contents. A segment of System V reserves
/// all of its own when it is made, and those of `there` have theirs.
fn wanted(memory: &Memory, files: &Files, there: &HashSet<i32>) -> BTreeMap<HugePage, u64> {
    let of_object = |object: &Shared| match &object.segment {
        Some(segment) if there.contains(&segment.id) => Ranges::default(),
        Some(_) => Ranges { page: object.huge, parts: vec![(0, object.size)] },
        None => Ranges::of(object.huge, &object.runs),
    };
    let mut all: Vec<Ranges> = memory.shared.iter().map(of_object).collect();
    let memfds = files.paths.iter().map(|path| path.deleted.as_ref());
    let mut mapped: Vec<Ranges> = memfds
        .map(|deleted| {
            deleted.map_or_else(Ranges::default, |deleted| Ranges::of(deleted.huge, &deleted.runs))
        })
        .collect();
    for space in &memory.spaces {
        for vma in &space.vmas {
            let len = vma.end.0 - vma.start.0;
            let reserved = vma.flags & vm::NO_RESERVE == 0;
            match vma.backing {
                Backing::Shared(id, offset) if reserved => all[id.0 as usize].add(offset, len),
                Backing::SharedFile(path, offset) if reserved => mapped[path.0 as usize].add(offset, len),
                _ => {}
            }
            let Some(page) = vma.huge() else { continue };
            let mut own = Ranges { page: Some(page), ..Ranges::default() };
            if reserved {
                own.add(0, len);
            } else {
                let first = space.runs.partition_point(|run| run.end() <= vma.start.0);
                let inside = space.runs[first..].iter().take_while(|run| run.start < vma.end);
                inside.for_each(|run| own.add(run.start.0, run.pages * PAGE_SIZE));
            }
            all.push(own);
        }
    }
    let mut wanted = BTreeMap::new();
    for ranges in all.into_iter().chain(mapped) {
        if let Some(page) = ranges.page {
            *wanted.entry(page).or_default() += ranges.pages();
        }
    }
    wanted
}

/// Parts of something that is made of huge pages, if it is: from, to.
#[derive(Default)]
struct Ranges {
    page: Option<HugePage>,
    parts: Vec<(u64, u64)>,
}

impl Ranges {
    fn of(page: Option<HugePage>, runs: &[Run]) -> Self {
        let parts = runs.iter().map(|run| (run.start.0, run.end())).collect();
        Self { page, parts }
    }

    fn add(&mut self, start: u64, len: u64) {
        self.parts.push((start, start + len));
    }

    /// How many pages they touch.
    fn pages(mut self) -> u64 {
        let shift = self.page.map_or(0, HugePage::shift);
        self.parts.sort_unstable();
        let (mut count, mut next) = (0, 0);
        for (start, end) in self.parts {
            let (first, last) = ((start >> shift).max(next), end.div_ceil(1 << shift));
            count += last.saturating_sub(first);
            next = next.max(last);
        }
        count
    }
}

/// What there is of huge pages of one size.
struct Pool {
    /// There are, in use or not.
    all: u64,
    free: u64,
    /// Of the free ones, those that somebody has mapped and not touched.
    reserved: u64,
    /// That the kernel may make when they are asked for.
    may_come: u64,
}

impl Pool {
    fn read(page: HugePage) -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page.size() >> 10);
            match fs::read_to_string(&path) {
                Ok(text) => text.trim().parse().context(path),
                // This processor, or this kernel, has none of this size.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
                Err(e) => Err(e).context(path),
            }
        };
        let surplus = number("surplus_hugepages")?;
        Ok(Self {
            all: number("nr_hugepages")?,
            free: number("free_hugepages")?,
            reserved: number("resv_hugepages")?,
            may_come: number("nr_overcommit_hugepages")?.saturating_sub(surplus),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_once() {
        let of = |parts: &[(u64, u64)]| Ranges { page: Some(HugePage::Mib2), parts: parts.to_vec() }.pages();
        let page = HugePage::Mib2.size();
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[(0, 1), (4096, 8192), (page - 1, page + 1)]), 2);
        assert_eq!(of(&[(3 * page, 4 * page), (0, 2 * page), (page, 3 * page + 1)]), 4);
    }
}
