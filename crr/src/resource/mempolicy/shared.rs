//! Memory policies of shared memory.
//!
//! mbind(2) gives one to the memory itself, by offset (mpol_set_shared_policy(), mm/mempolicy.c), so all who map it have it, if it is of tmpfs, as
//! anonymous memory is (shmem_vm_ops of mm/shmem.c; those of huge pages and of other files have no set_policy); and it splits the area of who
//! calls, which keeps other bounds than those of other tasks. The kernel tells the policy of an address alone. So an area is asked at its
//! beginning, and taken to have the same up to its end, unless other areas of that memory tell more.

use crate::proc::living_thread;
use crate::refusal::Refusals;
use crate::sys;
use anyhow::{Context, Result};
use images::Pid;
use images::attribute::{AreaPolicy, MemoryPolicy};
use images::memory::{Backing, Space};
use nix::sys::statfs::statfs;
use std::collections::{BTreeMap, BTreeSet};

/// What an area shows of shared memory, as offsets.
struct Part<'a> {
    space: usize,
    /// Which of the policies of its space it has, if any.
    index: Option<usize>,
    policy: Option<&'a MemoryPolicy>,
    start: u64,
    end: u64,
}

/// Leaves each policy to an area that has no other in it, whose task gives it to all others again; an area that no other one explains is refused. The
/// spaces are those of `tasks`, by id and name.
///
/// # Errors
/// If the kernel does not tell what an area shows.
pub(crate) fn settle(tasks: &[(Pid, &str)], spaces: &mut [Space], refusals: &mut Refusals) -> Result<()> {
    settle_those(tasks, spaces, refusals, |part, at| {
        let pid = living_thread(tasks[part.space].0);
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", at.start.0, at.end.0);
        sys::is_tmpfs(statfs(link.as_str())).context(link)
    })
}

/// [`settle`], where `is_by_offset` tells whether the memory of an area with a policy has that itself. Other memory does not: there a policy is that of the
/// area (vma_replace_policy(), mm/mempolicy.c), and no other area has to do with it.
fn settle_those(
    tasks: &[(Pid, &str)],
    spaces: &mut [Space],
    refusals: &mut Refusals,
    is_by_offset: impl Fn(&Part<'_>, &AreaPolicy) -> Result<bool>,
) -> Result<()> {
    let mut left_to_others = Vec::new();
    for parts in objects(spaces).values() {
        let having = parts.iter().find_map(|part| Some((part, &spaces[part.space].policies[part.index?])));
        let Some((part, area)) = having else { continue };
        if !is_by_offset(part, area)? {
            continue;
        }
        for part in parts {
            let Some(index) = part.index else { continue };
            match explain(part, parts) {
                Explained::Whole => {}
                Explained::ByOthers => left_to_others.push((part.space, index)),
                Explained::Not => {
                    let area = &spaces[part.space].policies[index];
                    let object = format!("{}-{}", area.start, area.end);
                    let reason =
                        "shared memory with a memory policy (mbind) for a part of it that does not show";
                    let hint = "have the program set it back to the default (mbind) before the dump";
                    refusals.task(tasks[part.space], object, reason, Some(hint));
                }
            }
        }
    }
    left_to_others.sort_unstable();
    for (space, index) in left_to_others.into_iter().rev() {
        spaces[space].policies.remove(index);
    }
    Ok(())
}

/// The areas of each shared memory.
fn objects(spaces: &[Space]) -> BTreeMap<(bool, u32), Vec<Part<'_>>> {
    let mut objects: BTreeMap<(bool, u32), Vec<Part<'_>>> = BTreeMap::new();
    for (at, space) in spaces.iter().enumerate() {
        let mut policies = space.policies.iter().enumerate().peekable();
        for vma in &space.vmas {
            let own = policies.next_if(|(_, area)| area.start == vma.start);
            let (key, start) = match vma.backing {
                Backing::Shared(id, offset) => ((false, id.0), offset),
                Backing::SharedFile(path, offset) => ((true, path.0), offset),
                _ => continue,
            };
            let (index, policy) = (own.map(|(index, _)| index), own.map(|(_, area)| &area.policy));
            let end = start + (vma.end.0 - vma.start.0);
            objects.entry(key).or_default().push(Part { space: at, index, policy, start, end });
        }
    }
    objects
}

#[derive(Debug, PartialEq, Eq)]
enum Explained {
    /// All of it has the policy of its beginning.
    Whole,
    /// It has others in it, and other areas have each of them as a whole.
    ByOthers,
    /// It may have others in it.
    Not,
}

fn explain(part: &Part<'_>, parts: &[Part<'_>]) -> Explained {
    let starts: BTreeSet<u64> = parts.iter().map(|other| other.start).collect();
    let inside = |offset: u64| part.start < offset && offset < part.end;
    if parts.iter().any(|other| inside(other.end) && !starts.contains(&other.end)) {
        return Explained::Not;
    }
    let others = parts.iter().filter(|other| inside(other.start) && other.policy != part.policy);
    let Some(first) = others.map(|other| other.start).min() else { return Explained::Whole };
    let same =
        |other: &&Part<'_>| other.start == part.start && other.policy == part.policy && other.end <= first;
    if parts.iter().any(|other| same(&other)) { Explained::ByOthers } else { Explained::Not }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::memory::Vma;
    use images::{Addr, SharedId};

    /// A space with areas of one memory: offsets, and whether there is a policy.
    fn space(areas: &[(u64, u64, bool)]) -> Space {
        let mut space = Space::default();
        for (n, &(from, to, has_policy)) in (1..).zip(areas) {
            let (start, end) = (Addr(n << 20), Addr((n << 20) + to - from));
            let backing = Backing::Shared(SharedId(0), from);
            space.vmas.push(Vma { start, end, prot: 3, flags: 0, backing });
            if has_policy {
                space.policies.push(AreaPolicy {
                    start,
                    end,
                    policy: MemoryPolicy { mode: 2, nodes: vec![1] },
                });
            }
        }
        space
    }

    /// How many policies are left to each, or nothing if it is refused.
    fn left(spaces: &[&[(u64, u64, bool)]]) -> Option<Vec<usize>> {
        left_of(true, spaces)
    }

    /// The same of memory that has policies itself, or of other memory.
    fn left_of(is_by_offset: bool, spaces: &[&[(u64, u64, bool)]]) -> Option<Vec<usize>> {
        let mut spaces: Vec<Space> = spaces.iter().map(|areas| space(areas)).collect();
        let tasks: Vec<(Pid, &str)> = spaces.iter().map(|_| (1, "a")).collect();
        let mut refusals = Refusals::default();
        settle_those(&tasks, &mut spaces, &mut refusals, |_, _| Ok(is_by_offset)).unwrap();
        refusals.is_empty().then(|| spaces.iter().map(|space| space.policies.len()).collect())
    }

    #[test]
    fn policies_are_left_to_those_who_show_them() {
        const P: u64 = 4096;
        let split: &[_] = &[(0, 4 * P, false), (4 * P, 8 * P, true), (8 * P, 16 * P, false)];
        assert_eq!(left(&[split]), Some(vec![1]));
        assert_eq!(left(&[split, split]), Some(vec![1, 1]));
        // Another task has it in one piece, or in others.
        assert_eq!(left(&[split, &[(0, 16 * P, false)]]), Some(vec![1, 0]));
        assert_eq!(left(&[split, &[(4 * P, 16 * P, true)]]), Some(vec![1, 0]));
        assert_eq!(left(&[split, &[(4 * P, 6 * P, true), (6 * P, 8 * P, true)]]), Some(vec![1, 2]));
        assert_eq!(left(&[&[(0, 16 * P, true)], &[(4 * P, 16 * P, true)]]), Some(vec![1, 1]));
        // Of huge pages, or of a file elsewhere: each area has its own.
        let apart: &[&[_]] = &[&[(0, 16 * P, true)], &[(4 * P, 8 * P, false)], &[(4 * P, 16 * P, true)]];
        assert_eq!((left_of(true, apart), left_of(false, apart)), (None, Some(vec![1, 0, 1])));
        // What is behind the end of the one nobody tells of the other.
        assert_eq!(left(&[&[(4 * P, 8 * P, true)], &[(4 * P, 16 * P, true)]]), None);
        assert_eq!(left(&[&[(8 * P, 16 * P, false)], &[(4 * P, 16 * P, true)]]), None);
    }
}
