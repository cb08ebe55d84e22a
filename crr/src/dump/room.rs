//! Whether there is room for the programs that restore a tree: each needs a range that is free in the address spaces of its tasks, or
//! that they can lend. Decided here as the restore will, for programs that are larger than any it can need.

use crate::blob::Blob;
use crate::refusal::Refusals;
use anyhow::{Context, Result};
use images::memory::{Shared, Space};
use images::task::Tree;
use shared::plan::family;
use shared::plan::{hole, loan, segment};
use std::collections::BTreeMap;

/// Refuses tasks that have no room.
///
/// # Errors
/// [`crate::refusal::Refused`], or an embedded program that is broken.
pub(super) fn check(tree: &Tree, spaces: &[Space], shared: &[Shared]) -> Result<()> {
    let mut refusals = Refusals::default();
    too_many_areas(tree, spaces, &mut refusals)?;
    let makings = family::makings(&tree.tasks).ok().context("tasks share what they cannot share")?;
    let mut sizes = BTreeMap::new();
    for group in hole::groups(&makings).values() {
        let members = &group.members;
        let first = &tree.tasks[members[0]];
        let size = match sizes.get(&first.abi) {
            Some(&size) => size,
            None => *sizes.entry(first.abi).or_insert(Blob::of(first.abi)?.len()),
        };
        let len = hole::bound(tree, spaces, &makings, group, size);
        let task_size = members.iter().map(|&index| hole::task_size(&tree.tasks[index])).min();
        let task_size = task_size.unwrap_or_else(|| first.abi.task_size());
        let free = hole::choose(task_size, members.iter().map(|&index| &spaces[index]), len);
        if free.or_else(|| loan::choose(&tree.tasks, spaces, members, len)).is_none() {
            let reason = format!(
                "has no {} KiB free, nor plain memory untouched at the edge of an area, for the program that restores it",
                len / 1024
            );
            let hint = "have the program unmap something before the dump";
            let comm = String::from_utf8_lossy(&first.threads[0].comm).into_owned();
            refusals.task((first.pid, &comm), "address space", reason, Some(hint));
        }
        for &member in members {
            let Some(size) = segment::without_room(&spaces[member], shared, task_size, len) else { continue };
            let task = &tree.tasks[member];
            let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
            let reason = format!(
                "a segment of System V of which it has a part has no room for all of its {} KiB",
                size / 1024
            );
            let hint = "have the program detach it, or unmap something before the dump";
            refusals.task((task.pid, &comm), "address space", reason, Some(hint));
        }
    }
    Ok(refusals.finish("dump")?)
}

/// Refuses tasks that have as many areas as there may be in one address space, or nearly: the program that restores them has some of its own.
///
/// # Errors
/// If the kernel does not tell how many there may be.
pub(crate) fn too_many_areas(tree: &Tree, spaces: &[Space], refusals: &mut Refusals) -> Result<()> {
    let limit = max_map_count()?;
    for (task, space) in tree.tasks.iter().zip(spaces) {
        let areas = space.vmas.len() as u64;
        if areas + hole::AREAS > limit {
            let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
            let reason = format!("has {areas} areas, and restoring it takes {} more", hole::AREAS);
            let hint = format!("raise vm.max_map_count, which is {limit}");
            refusals.task((task.pid, &comm), "address space", reason, Some(&hint));
        }
    }
    Ok(())
}

/// How many areas an address space may have.
///
/// # Errors
/// If the kernel does not tell.
pub(crate) fn max_map_count() -> Result<u64> {
    const LIMIT: &str = "/proc/sys/vm/max_map_count";
    let text = std::fs::read_to_string(LIMIT).context(LIMIT)?;
    text.trim().parse().context(LIMIT)
}
