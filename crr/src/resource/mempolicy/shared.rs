//! Memory policies of shared memory.
//!
//! mbind(2) gives one to the memory itself, by offset (mpol_set_shared_policy(), mm/mempolicy.c), so all who map it have it; and it splits the area of who
//! calls, which keeps other bounds than those of other tasks. The kernel tells the policy of an address alone. So an area is asked at its
//! beginning, and taken to have the same up to its end, unless other areas of that memory tell more.

use crate::refusal::Refusals;
use images::Pid;
use images::attribute::MemoryPolicy;
use images::memory::{Backing, Space};
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
pub(crate) fn settle(tasks: &[(Pid, &str)], spaces: &mut [Space], refusals: &mut Refusals) {
    let mut left_to_others = Vec::new();
    for parts in objects(spaces).values().filter(|parts| parts.iter().any(|part| part.index.is_some())) {
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
    use images::attribute::AreaPolicy;
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
        let mut spaces: Vec<Space> = spaces.iter().map(|areas| space(areas)).collect();
        let tasks: Vec<(Pid, &str)> = spaces.iter().map(|_| (1, "a")).collect();
        let mut refusals = Refusals::default();
        settle(&tasks, &mut spaces, &mut refusals);
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
        // What is behind the end of the one nobody tells of the other.
        assert_eq!(left(&[&[(4 * P, 8 * P, true)], &[(4 * P, 16 * P, true)]]), None);
        assert_eq!(left(&[&[(8 * P, 16 * P, false)], &[(4 * P, 16 * P, true)]]), None);
    }
}
