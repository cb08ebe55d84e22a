//! Memory of huge pages (hugetlbfs, MAP_HUGETLB): of which size, what of an object was touched, and whether there are enough.

use crate::refusal::{Refusal, Refusals};
use anyhow::{Context, Result};
use images::file::Files;
use images::id::PAGE_SIZE;
use images::memory::{HugePage, Memory, vm};
use nix::sys::statfs::fstatfs;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// HUGETLBFS_MAGIC of include/uapi/linux/magic.h.
const HUGETLBFS: i64 = 0x9584_58f6;

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
    if metadata.blocks() * 512 >= metadata.len() {
        return Ok(vec![(0, metadata.len())]);
    }
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut buffer = vec![0; STEP];
    for start in (0..metadata.len()).step_by(usize::try_from(page.size())?) {
        for at in (start..start + page.size()).step_by(STEP) {
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
    for (page, wanted) in wanted(memory, files) {
        let pool = Pool::read(page)?;
        let free = pool.free.saturating_sub(pool.reserved) + pool.may_come;
        if wanted > free {
            refusals.push(Refusal {
                task: None,
                object: format!("{wanted} huge pages of {}", crate::progress::bytes(page.size())),
                reason: format!("there are {free} that are free"),
                hint: Some("raise vm.nr_hugepages or vm.nr_overcommit_hugepages (1 GiB: below /sys/kernel/mm/hugepages)".into()),
            });
        }
    }
    Ok(())
}

/// How many huge pages a checkpoint takes: those that are reserved by mapping, else those that have contents.
fn wanted(memory: &Memory, files: &Files) -> BTreeMap<HugePage, u64> {
    let mut wanted = BTreeMap::new();
    let mut add = |page: HugePage, bytes: u64| {
        *wanted.entry(page).or_default() += bytes.div_ceil(page.size());
    };
    for space in &memory.spaces {
        for vma in &space.vmas {
            let Some(page) = vma.huge() else { continue };
            if vma.flags & vm::NO_RESERVE == 0 {
                add(page, vma.end.0 - vma.start.0);
            } else {
                let runs = space.runs.iter().filter(|run| vma.start <= run.start && run.start < vma.end);
                let mut pages: Vec<u64> = runs
                    .flat_map(|run| run.start.0 >> page.shift()..=(run.end() - 1) >> page.shift())
                    .collect();
                pages.dedup();
                add(page, pages.len() as u64 * page.size());
            }
        }
    }
    for object in &memory.shared {
        let bytes = object.runs.iter().map(|run| run.pages * PAGE_SIZE).sum();
        object.huge.into_iter().for_each(|page| add(page, bytes));
    }
    for deleted in files.paths.iter().filter_map(|path| path.deleted.as_ref()) {
        let bytes = deleted.runs.iter().map(|run| run.pages * PAGE_SIZE).sum();
        deleted.huge.into_iter().for_each(|page| add(page, bytes));
    }
    wanted
}

/// What there is of huge pages of one size.
struct Pool {
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
            free: number("free_hugepages")?,
            reserved: number("resv_hugepages")?,
            may_come: number("nr_overcommit_hugepages")?.saturating_sub(surplus),
        })
    }
}
