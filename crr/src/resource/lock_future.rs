//! What mlockall(2) was asked for mappings to come: told by one that is fresh.
//!
//! Where nothing can be mapped, an area that the task has is mapped again as it is. That changes nothing: it was never touched, and is
//! made by one call. If it comes out locked, it is unlocked again.

use super::{Refuse, memory};
use crate::proc::{Dir, status};
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Call, Executor};
use anyhow::{Context, Result};
use images::Addr;
use images::attribute::AreaPolicy;
use images::id::PAGE_SIZE;
use images::memory::Vma;
use images::task::Task;
use nix::errno::Errno;
use shared::plan::{READ_IMPLIES_EXEC, loan};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const MCL_FUTURE: u32 = 2;
const MCL_ONFAULT: u32 = 4;

/// What is known of a task's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) dir: &'a Dir,
    pub(crate) vmas: &'a [Vma],
    pub(crate) policies: &'a [AreaPolicy],
}

/// Its settings but for this one are known. `caller` made the executor.
pub(crate) fn dump(
    executor: &Executor,
    caller: &mut Stopped,
    task: &Task,
    facts: Facts<'_>,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<u32> {
    let locked = memory::locked_bytes(facts.vmas);
    let errno = match executor.fresh() {
        Ok(fresh) => return by_fresh(facts.dir, locked, &fresh),
        // Its address space is another task's, which tells.
        Err(_) if task.shares.memory.is_some() => return Ok(0),
        Err(errno) => errno,
    };
    if let Some(vma) = replaceable(task, facts)?
        && executor.call_at_gadget(caller, Call::Mmap, loan::mmap_args(vma), patience)?.is_ok()
    {
        let told = flags_at(facts.dir, vma.start)?;
        if told != 0 {
            const MADV_DONTNEED: u64 = 4;
            let (start, len) = (vma.start.0, vma.end.0 - vma.start.0);
            let args = [start, len, 0, 0, 0, 0];
            executor.call_at_gadget(caller, Call::Munlock, args, patience)?.context("munlock")?;
            let args = [start, len, MADV_DONTNEED, 0, 0, 0];
            executor.call_at_gadget(caller, Call::Madvise, args, patience)?.context("madvise")?;
        }
        return Ok(told);
    }
    // EAGAIN: beyond RLIMIT_MEMLOCK, which counts only where mappings are locked (mlock_future_ok() of mm/mmap.c).
    if locked > 0 || errno == Errno::EAGAIN {
        let reason =
            "memory is locked, and nothing can be mapped that would tell whether all to come is to be locked";
        refuse.with_hint("mlockall", reason, "raise its RLIMIT_AS or RLIMIT_MEMLOCK (prlimit)");
    }
    Ok(0)
}

/// A fresh area is locked only if the task asked for that, and the locked total then exceeds the `locked` bytes of the task's own areas.
fn by_fresh(dir: &Dir, locked: u64, fresh: &Range<u64>) -> Result<u32> {
    let mut buffer = Vec::new();
    dir.read_record("status", &mut buffer).context("read status")?;
    if status::parse(&buffer)?.locked_kib * 1024 < locked + (fresh.end - fresh.start) {
        return Ok(0);
    }
    Ok(flags_at(dir, Addr(fresh.start))? | MCL_FUTURE)
}

/// How the area at an address is locked.
fn flags_at(dir: &Dir, at: Addr) -> Result<u32> {
    let (mut buffer, mut told) = (Vec::new(), 0);
    dir.areas(&mut buffer, |area| {
        if (area.start..area.end).contains(&at.0) {
            let has = |wanted: &[u8]| area.flags.split(|&byte| byte == b' ').any(|code| code == wanted);
            told = match (has(b"lo"), has(b"lf")) {
                (_, true) => MCL_FUTURE | MCL_ONFAULT,
                (true, false) => MCL_FUTURE,
                (false, false) => 0,
            };
        }
        Ok(())
    })?;
    Ok(told)
}

/// An area that can be mapped again by one call, whole, so that it joins with no other: plain, never touched, without a policy. Nor can it be
/// written, so that it counts against no limit of memory, which the call could meet.
fn replaceable<'a>(task: &Task, facts: Facts<'a>) -> Result<Option<&'a Vma>> {
    const PROT_WRITE: u32 = 2;
    /// What is looked at page by page.
    const SMALL: u64 = 64 << 20;
    let Facts { dir, vmas, policies } = facts;
    if task.attributes.memory_merge {
        return Ok(None);
    }
    let pagemap = File::from(dir.open("pagemap").context("open pagemap")?);
    // Whichever thread makes the call.
    let read_implies_exec = task.personalities().any(|personality| personality & READ_IMPLIES_EXEC != 0);
    for (index, vma) in vmas.iter().enumerate() {
        let alike = |other: Option<&Vma>, touches: bool| {
            touches && other.is_some_and(|other| (other.prot, other.flags) == (vma.prot, vma.flags))
        };
        let below = index.checked_sub(1).and_then(|below| vmas.get(below));
        let above = vmas.get(index + 1);
        let joins = alike(below, below.is_some_and(|other| other.end == vma.start))
            || alike(above, above.is_some_and(|other| other.start == vma.end));
        let has_policy = policies.iter().any(|area| area.start < vma.end && vma.start < area.end);
        if vma.end.0 - vma.start.0 <= SMALL
            && vma.prot & PROT_WRITE == 0
            && loan::is_plain(vma, read_implies_exec)
            && !joins
            && !has_policy
            && is_untouched(&pagemap, vma)?
        {
            return Ok(Some(vma));
        }
    }
    Ok(None)
}

/// Whether none of the pages of a small area is in memory or in swap.
fn is_untouched(pagemap: &File, vma: &Vma) -> Result<bool> {
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    let mut words = vec![0u8; usize::try_from((vma.end.0 - vma.start.0) / PAGE_SIZE * 8)?];
    pagemap.read_exact_at(&mut words, vma.start.0 / PAGE_SIZE * 8).context("read pagemap")?;
    Ok(words.as_chunks::<8>().0.iter().all(|word| u64::from_le_bytes(*word) & PRESENT_OR_SWAPPED == 0))
}
