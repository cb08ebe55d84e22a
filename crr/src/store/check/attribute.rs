//! Settings of tasks and threads, and memory policies.

use super::{Check, ensure, inside};
use images::attribute::{MemoryPolicy, TaskAttributes, ThreadAttributes};
use images::memory::{Backing, Space, Vma};

/// Words of a mask of MAX_NUMNODES nodes.
const NODE_WORDS: usize = 16;

pub(super) fn check_task(attributes: &TaskAttributes) -> Check {
    let TaskAttributes { thp_disable, lock_future, membarrier, .. } = *attributes;
    ensure!(matches!(thp_disable, 0 | 1 | 3), "huge pages are switched off by {thp_disable}");
    ensure!(matches!(lock_future, 0 | 2 | 6), "memory to come is locked by {lock_future:#x}");
    // MEMBARRIER_CMD_REGISTER_* of include/uapi/linux/membarrier.h.
    const REGISTER: u32 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;
    ensure!(membarrier & !REGISTER == 0, "registered for barriers {membarrier:#x}");
    Ok(())
}

pub(super) fn check_thread(attributes: &ThreadAttributes) -> Check {
    let (tsc, mce_kill) = (attributes.tsc, attributes.mce_kill);
    ensure!(matches!(tsc, 1 | 2), "mode {tsc} of the time stamp counter");
    ensure!(mce_kill <= 2, "machine check policy {mce_kill}");
    check_policy(&attributes.policy)
}

/// Each is that of one area, which is not the kernel's own.
pub(super) fn check_areas(space: &Space) -> Check {
    let mut vmas = space.vmas.iter();
    for area in &space.policies {
        let name = format_args!("policy of {}-{}", area.start, area.end).to_string();
        let vma = vmas.find(|vma| (vma.start, vma.end) == (area.start, area.end));
        let from_kernel =
            |vma: &Vma| matches!(vma.backing, Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock);
        ensure!(
            vma.is_some_and(|vma| !from_kernel(vma)),
            "{name}: no memory of that extent, or out of order"
        );
        ensure!(area.policy.mode != 0, "{name}: none");
        check_policy(&area.policy).map_err(inside(name))?;
    }
    Ok(())
}

fn check_policy(policy: &MemoryPolicy) -> Check {
    let words = policy.nodes.len();
    ensure!(words <= NODE_WORDS, "a memory policy of {words} words of nodes");
    Ok(())
}
