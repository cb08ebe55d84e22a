//! Protection keys (pkeys(7)) of an address space.
//!
//! The kernel gives the lowest key that is free (`mm_pkey_alloc`, arch/x86/include/asm/pkeys.h). So all up to the highest are allocated first, and what is not
//! to be allocated is freed again. The key of memory that may only be executed is the kernel's own: it takes the lowest that is free when there
//! is such memory for the first time (`__execute_only_pkey`, arch/x86/mm/pkeys.c), so at that moment there is no other.

use crate::op::{self, Op};
use alloc::vec::Vec;
use images::memory::{Backing, Space, Vma};

const PROT_EXEC: u32 = 4;
/// What the kernel takes for memory that may only be executed where no other one is allocated.
const FIRST: u32 = 1;

fn is_allocated(space: &Space, key: u32) -> bool {
    u32::from(space.keys) >> key & 1 != 0
}

/// The key that the kernel has taken for memory that may only be executed, if there is such memory.
fn execute_only(space: &Space) -> Option<u32> {
    let is_taken = |vma: &&Vma| vma.prot == PROT_EXEC && vma.key() != 0 && !is_allocated(space, vma.key());
    space.vmas.iter().find(is_taken).map(Vma::key)
}

/// Whether an area gets its key by its protection.
fn is_implied(vma: &Vma, execute_only: Option<u32>) -> bool {
    if vma.prot == PROT_EXEC { Some(vma.key()) == execute_only } else { vma.key() == 0 }
}

/// Areas whose key no program gives them: it is not allocated, nor that of memory that may only be executed; or they are the kernel's.
pub fn strange(space: &Space) -> impl Iterator<Item = &Vma> {
    let execute_only = execute_only(space);
    space.vmas.iter().filter(move |vma| {
        let kernels =
            matches!(vma.backing, Backing::AioRing | Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock);
        vma.key() != 0 && (kernels || !(is_allocated(space, vma.key()) || is_implied(vma, execute_only)))
    })
}

/// Whether an address space can only be restored by a processor that has keys, and has to get them in an order of its own.
#[must_use]
pub fn are_needed(space: &Space) -> bool {
    Keys::of(space).is_some()
}

/// Has a thread use what another task allocates, from whom it has the address space.
pub(super) fn allow(list: &mut Vec<u8>, space: &Space) {
    if are_needed(space) {
        op::push(list, &Op::AllowKeys);
    }
}

/// The keys of an address space that need an order of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    /// Those that are allocated, as bits.
    allocated: u32,
    /// The kernel's own.
    execute_only: Option<u32>,
}

impl Keys {
    /// `None` if areas get theirs by their protection.
    pub(super) fn of(space: &Space) -> Option<Self> {
        let execute_only = execute_only(space);
        let is_needed = space.keys != 0 || execute_only.is_some_and(|own| own != FIRST);
        is_needed.then_some(Self { allocated: space.keys.into(), execute_only })
    }

    /// The kernel's own, as a bit.
    fn own(self) -> u32 {
        self.execute_only.map_or(0, |key| 1 << key)
    }

    /// Allocates what areas will have, before there are any.
    pub(super) fn allocate(self, list: &mut Vec<u8>) {
        let own = self.own();
        op::push(list, &Op::AllocateKeys((self.allocated | own).ilog2()));
        if own != 0 {
            op::push(list, &Op::FreeKeys(own));
        }
    }

    /// Gives areas their keys, and their protection with them; `prots` is what each has until now. Nobody who restores the task has to use the
    /// memory after that.
    pub(super) fn protect(self, list: &mut Vec<u8>, vmas: &[Vma], prots: &mut [u32]) {
        let by_key = |(vma, _): &(&Vma, &mut u32)| !is_implied(vma, self.execute_only);
        for (vma, prot) in vmas.iter().zip(prots).filter(by_key) {
            let (addr, len) = (vma.start.0, vma.end.0 - vma.start.0);
            op::push(list, &Op::ProtectByKey { addr, len, prot: vma.prot, key: vma.key() });
            *prot = vma.prot;
        }
    }

    /// Frees what is not to be allocated, when all areas have their keys.
    pub(super) fn free(self, list: &mut Vec<u8>) {
        let wanted = self.allocated | self.own();
        let others = ((1 << wanted.ilog2()) - 1) & !wanted & !1;
        if others != 0 {
            op::push(list, &Op::FreeKeys(others));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use images::Addr;
    use images::memory::vm;

    fn space(keys: u16, areas: &[(u32, u32)]) -> Space {
        let area = |(at, &(prot, key)): (u64, &(u32, u32))| Vma {
            start: Addr(at << 12),
            end: Addr((at + 1) << 12),
            prot,
            flags: key << vm::KEY_SHIFT,
            backing: Backing::Anonymous,
        };
        Space { vmas: (1..).zip(areas).map(area).collect(), keys, ..Space::default() }
    }

    fn ops(space: &Space) -> Vec<u8> {
        let mut list = Vec::new();
        if let Some(keys) = Keys::of(space) {
            keys.allocate(&mut list);
            keys.protect(&mut list, &space.vmas, &mut vec![7; space.vmas.len()]);
            keys.free(&mut list);
        }
        list
    }

    fn encoded(ops: &[Op<'_>]) -> Vec<u8> {
        let mut list = Vec::new();
        ops.iter().for_each(|op| op::push(&mut list, op));
        list
    }

    #[test]
    fn memory_to_execute_has_its_key_by_that() {
        for areas in [&[(3, 0)][..], &[(4, 0)], &[(4, 1), (3, 0)], &[(4, 1), (4, 0)]] {
            let space = space(0, areas);
            assert!(!are_needed(&space) && strange(&space).next().is_none(), "{areas:?}");
            assert_eq!(ops(&space), []);
        }
    }

    #[test]
    fn keys_come_in_the_order_in_which_the_kernel_gives_them() {
        let by_key = |page: u64, prot, key| Op::ProtectByKey { addr: page << 12, len: 1 << 12, prot, key };
        // 1 and 3 are allocated, 2 is free, and 4 was taken for memory to execute when it was not.
        let space = space(0b1010, &[(3, 0), (3, 3), (4, 4), (4, 1), (4, 0)]);
        let expected = [
            Op::AllocateKeys(4),
            Op::FreeKeys(1 << 4),
            by_key(2, 3, 3),
            by_key(4, 4, 1),
            by_key(5, 4, 0),
            Op::FreeKeys(1 << 2),
        ];
        assert_eq!(ops(&space), encoded(&expected));
    }

    #[test]
    fn the_key_of_memory_to_execute_may_be_all_that_is_left() {
        let space = space(0, &[(4, 2)]);
        assert!(are_needed(&space) && strange(&space).next().is_none());
        assert_eq!(ops(&space), encoded(&[Op::AllocateKeys(2), Op::FreeKeys(1 << 2), Op::FreeKeys(1 << 1)]));
    }

    #[test]
    fn keys_that_are_not_allocated_are_strange() {
        for (keys, areas) in
            [(0, &[(3, 1)][..]), (0b10, &[(1, 2)]), (0, &[(4, 1), (4, 2)]), (0, &[(4, 1), (3, 1)])]
        {
            assert_eq!(strange(&space(keys, areas)).count(), 1, "{areas:?}");
        }
        let mut ring = space(0b10, &[(3, 1)]);
        assert_eq!(strange(&ring).count(), 0);
        ring.vmas[0].backing = Backing::AioRing;
        assert_eq!(strange(&ring).count(), 1);
    }
}
