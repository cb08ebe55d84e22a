//! Where the vDSO of the running kernel is parked in the address space of a task.

use images::id::PAGE_SIZE;
use images::memory::{Space, Vma, vm};
use shared::range::Range;

/// Lowest address to be used: below it lies little, and `vm.mmap_min_addr` somewhere.
const LOWEST: u64 = 0x10_0000;

/// A free range of `len` bytes inside `within`, with a free page on each side: the highest of its gap, but for one below memory that grows down, which
/// is used from below. The heap grows up into the gap above it, of which only the upper half is used.
pub(super) fn choose(space: &Space, within: Range, len: u64) -> Option<u64> {
    let grows_down = |vma: &Vma| vma.flags & vm::GROWS_DOWN != 0;
    let brk = space.layout.brk.0;
    let mut upper_edges = space.vmas.iter().map(Some).chain([None]).rev().peekable();
    while let Some(above) = upper_edges.next() {
        let below = upper_edges.peek().copied().flatten();
        let end = above.map_or(u64::MAX, |vma| vma.start.0).min(within.end).saturating_sub(PAGE_SIZE);
        let mut start = below.map_or(0, |vma| vma.end.0).max(within.start).max(LOWEST) + PAGE_SIZE;
        if below.is_some_and(|vma| (vma.start.0..=vma.end.0).contains(&brk)) && end > start {
            start += ((end - start) / 2) & !(PAGE_SIZE - 1);
        }
        if end < start || end - start < len {
            continue;
        }
        return Some(if above.is_some_and(grows_down) { start } else { end - len });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::Addr;
    use images::memory::{Backing, Layout};

    const ALL: Range = Range { start: 0, end: 0xf000_0000 };

    fn space(areas: &[(u64, u64, u32)], brk: u64) -> Space {
        let vmas = areas.iter().map(|&(start, end, flags)| Vma {
            start: Addr(start),
            end: Addr(end),
            prot: 3,
            flags,
            backing: Backing::Anonymous,
        });
        let layout = Layout { brk: Addr(brk), ..Layout::default() };
        Space { vmas: vmas.collect(), layout, ..Space::default() }
    }

    #[test]
    fn the_highest_place_is_taken_and_growth_left_alone() {
        let below = space(&[(0x800_0000, 0x900_0000, 0), (0xe000_0000, 0xf000_0000, 0)], 0);
        assert_eq!(choose(&below, ALL, 0x5000), Some(0xe000_0000 - 0x6000));
        let above = space(&[(0xe000_0000, 0xe001_0000, 0)], 0);
        assert_eq!(choose(&above, ALL, 0x5000), Some(0xf000_0000 - 0x6000));
        let stack = space(&[(0xd000_0000, 0xd100_0000, 0), (0xe000_0000, 0xf000_0000, vm::GROWS_DOWN)], 0);
        assert_eq!(choose(&stack, ALL, 0x5000), Some(0xd100_1000));
        let heap =
            space(&[(0x800_0000, 0x900_0000, 0), (0xe000_0000, 0xf000_0000, vm::GROWS_DOWN)], 0x900_0000);
        let place = choose(&heap, ALL, 0x5000).unwrap();
        assert!(place > 0x7000_0000 && place < 0xa000_0000, "{place:#x}");
    }

    #[test]
    fn a_place_lies_in_reach_or_is_none() {
        let one = space(&[(0x800_0000, 0x900_0000, 0)], 0);
        let near = Range { start: 0x700_0000, end: 0xa00_0000 };
        let place = choose(&one, near, 0x5000).unwrap();
        assert!(near.start <= place && place + 0x5000 <= near.end);
        assert_eq!(choose(&space(&[(0, 0xf000_0000, 0)], 0), ALL, 0x1000), None);
        assert_eq!(choose(&one, Range { start: 0x800_0000, end: 0x900_0000 }, 0x1000), None);
    }
}
