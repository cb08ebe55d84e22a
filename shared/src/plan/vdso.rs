//! What stands in for a vDSO, and where one that cannot be moved may lie.

use super::{Forest, LATE_PERSONALITY, Machine, Written};
use crate::op::{self, Op, Slot};
use crate::proto::Vdso;
use crate::range::merged;
use alloc::vec::Vec;
use images::memory::{Vma, vm};

/// What becomes of the one that exec makes, in a program that restores these tasks.
pub(super) fn becomes(machine: &Machine, forest: &Forest<'_>, members: &[usize]) -> Vdso {
    let leads_there = |written: &Written| matches!(written, Written::Ways { .. });
    if machine.vdso_moves {
        Vdso::Moves
    } else if members.iter().any(|&member| forest.written(member).iter().any(leads_there)) {
        Vdso::Stays
    } else {
        Vdso::Goes
    }
}

/// The op that has it lie where none of these tasks has memory, or is likely to get some.
pub(super) fn settle(forest: &Forest<'_>, members: &[usize], program: Slot) -> Vec<u8> {
    /// What stacks may grow by.
    const GROWTH: u64 = 8 << 20;
    let start = |vma: &Vma| {
        let growth = if vma.flags & vm::GROWS_DOWN == 0 { 0 } else { GROWTH };
        vma.start.0.saturating_sub(growth)
    };
    let areas = members.iter().flat_map(|&member| &forest.spaces[member].vmas);
    let ranges = merged(areas.map(|vma| (start(vma), vma.end.0)).collect());
    let words = ranges.into_iter().flat_map(|(start, end)| [start, end]);
    let taken: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let personality = forest.tasks[members[0]].personality & !LATE_PERSONALITY;
    let mut list = Vec::new();
    op::push(&mut list, &Op::Settle { program, personality, taken: &taken });
    list
}

/// Memory whose contents the images do not have.
pub(super) fn write(list: &mut Vec<u8>, written: &Written) {
    match written {
        Written::Bytes { at, prot, bytes } => op::push(list, &Op::Write { addr: *at, prot: *prot, bytes }),
        Written::Ways { at, len, functions } => {
            let functions: Vec<u8> = functions.iter().flat_map(|offset| offset.to_le_bytes()).collect();
            op::push(list, &Op::Ways { addr: *at, len: *len, functions: &functions });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_becomes_ops() {
        let mut list = Vec::new();
        write(&mut list, &Written::Bytes { at: 0x1000, prot: 5, bytes: alloc::vec![7; 8] });
        let functions = alloc::vec![0x550, 0x1_0000_0001];
        write(&mut list, &Written::Ways { at: 0x2000, len: 0x1000, functions });
        let (first, rest) = op::next(&list).unwrap().unwrap();
        assert_eq!(first, Op::Write { addr: 0x1000, prot: 5, bytes: &[7; 8] });
        let functions = [0x50, 5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        let ways = Op::Ways { addr: 0x2000, len: 0x1000, functions: &functions };
        assert_eq!(op::next(rest).unwrap().unwrap(), (ways, &[][..]));
    }
}
