//! Who shares pages with whom: what pagemap and smaps_rollup show of a tree.

use crate::snapshot;
use anyhow::Context;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Two tasks, and how many pages lie in the same frame at the same address of both.
pub type Shared = BTreeMap<(i32, i32), usize>;

/// The frames of a task's anonymous pages, by address.
fn anonymous(pid: i32) -> crate::Result<BTreeMap<u64, u64>> {
    const PAGE: u64 = 4096;
    const FRAME: u64 = (1 << 55) - 1;
    const FILE_OR_SHARED: u64 = 1 << 61;
    const PRESENT: u64 = 1 << 63;
    // KPF_ZERO_PAGE of include/uapi/linux/kernel-page-flags.h: that one is nobody's.
    const ZERO_PAGE: u64 = 1 << 24;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let flags = File::open("/proc/kpageflags")?;
    let mut frames = BTreeMap::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').context("a line of maps")?;
        let (start, end) = range.split_once('-').context("a range of maps")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if rest.as_bytes().get(3) != Some(&b'p') || line.ends_with("[vsyscall]") {
            continue;
        }
        let mut words = vec![0; usize::try_from((end - start) / PAGE * 8)?];
        pagemap.read_exact_at(&mut words, start / PAGE * 8)?;
        for (word, page) in words.chunks_exact(8).zip((start..).step_by(4096)) {
            let word = u64::from_le_bytes(word.try_into()?);
            if word & PRESENT == 0 || word & FILE_OR_SHARED != 0 {
                continue;
            }
            let mut flag = [0; 8];
            flags.read_exact_at(&mut flag, (word & FRAME) * 8)?;
            if u64::from_le_bytes(flag) & ZERO_PAGE == 0 {
                frames.insert(page, word & FRAME);
            }
        }
    }
    Ok(frames)
}

/// Looks at all pairs of a tree.
///
/// # Errors
/// A task is gone.
pub fn shared(root: i32) -> crate::Result<Shared> {
    let mut tasks = Vec::new();
    for pid in snapshot::living(root)? {
        tasks.push((pid, anonymous(pid)?));
    }
    let mut shared = Shared::new();
    for (at, (pid, frames)) in tasks.iter().enumerate() {
        for (other, theirs) in &tasks[at + 1..] {
            let same = frames.iter().filter(|(address, frame)| theirs.get(address) == Some(frame));
            shared.insert((*pid, *other), same.count());
        }
    }
    Ok(shared)
}

/// The memory of a tree in KiB: anonymous pages, each divided by the number of tasks that have it.
///
/// # Errors
/// A task is gone.
pub fn proportional_kib(root: i32) -> crate::Result<u64> {
    let mut all = 0;
    for pid in snapshot::living(root)? {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).context("no Pss_Anon")?;
        all += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(all)
}
