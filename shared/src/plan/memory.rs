//! An address space as ops: all mappings, then all contents in the order of the page file (so that they become few
//! large reads), then what has to wait for the contents, then the kernel's own areas and the layout.

use super::huge::{self, Makes};
use super::pkey::Keys;
use super::{Need, Slots, attribute, segment};
use crate::op::{self, Op, Special};
use alloc::vec::Vec;
use images::PathId;
use images::id::PAGE_SIZE;
use images::memory::{Backing, Run, Shared, Space, Vma, vm};

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
const MAP_SHARED: u32 = 0x01;
const MAP_PRIVATE: u32 = 0x02;
/// In place of shared and private.
const MAP_DROPPABLE: u32 = 0x08;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
const MAP_NORESERVE: u32 = 0x4000;
const MAP_HUGETLB: u32 = 0x4_0000;
const MAP_HUGE_SHIFT: u32 = 26;
const MLOCK_ONFAULT: u32 = 1;
const MADV_GUARD_INSTALL: u32 = 102;

/// `vm` bit and MADV_* that sets it, for what must be said before pages come in.
const ADVICE_BEFORE: [(u32, u32); 2] = [(vm::HUGE_PAGE, 14), (vm::NO_HUGE_PAGE, 15)];
/// The same for what can wait.
const ADVICE_AFTER: [(u32, u32); 6] = [
    (vm::RANDOM, 1),
    (vm::SEQUENTIAL, 2),
    (vm::DONT_FORK, 10),
    (vm::MERGEABLE, 12),
    (vm::DONT_DUMP, 16),
    (vm::WIPE_ON_FORK, 18),
];

/// What the machine has to say about memory.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes that are mapped by one call, if they count against the commit limit: an area can have grown, call by call, to more
    /// than the kernel allows for one (OVERCOMMIT_GUESS of __vm_enough_memory(), mm/util.c).
    pub at_once: u64,
    /// Huge pages are made of all memory, unless it is not to have any; else only of what is advised to.
    pub always_huge: bool,
}

impl Default for Rules {
    /// Of a machine that allows everything, and makes nothing huge by itself.
    fn default() -> Self {
        Self { at_once: u64::MAX, always_huge: false }
    }
}

impl Rules {
    /// What becomes huge in a task that has this of PR_GET_THP_DISABLE.
    pub(super) const fn makes(self, disabled: u32) -> Makes {
        Makes { disabled, always: self.always_huge }
    }
}

/// Appends the ops of a space, of a task that has this of PR_GET_THP_DISABLE.
pub fn ops(
    list: &mut Vec<u8>,
    slots: &mut Slots,
    exe: PathId,
    space: &Space,
    shared: &[Shared],
    rules: Rules,
    thp_disable: u32,
) {
    let keys = Keys::of(space);
    if let Some(keys) = keys {
        keys.allocate(list);
    }
    let filled = filled(space);
    let mut opened = Vec::with_capacity(space.vmas.len());
    for group in groups(&space.vmas) {
        let first = &space.vmas[group.start];
        if let Some(prot) = segment::attached_prot(first, shared) {
            keep_free(list, first);
            opened.push(prot);
            continue;
        }
        let has_contents = filled[group.clone()].contains(&true);
        let prot = open_prot(&space.vmas[group.clone()], has_contents);
        map(list, slots, &space.vmas[group.clone()], prot, has_contents, rules);
        opened.extend(group.map(|_| prot));
    }
    segment::attach(list, &space.vmas, shared);
    for vma in space.vmas.iter().filter(|vma| segment::attached_prot(vma, shared).is_some()) {
        advise_before(list, vma.start.0, length(vma), vma.flags);
    }
    attribute::area_policies(list, space);
    huge::fill(list, &space.runs, &space.vmas, rules.makes(thp_disable));
    for guard in &space.guards {
        let (addr, len) = (guard.start.0, guard.end.0 - guard.start.0);
        op::push(list, &Op::Advise { addr, len, advice: MADV_GUARD_INSTALL });
    }
    names(list, space);
    if let Some(keys) = keys {
        keys.protect(list, &space.vmas, &mut opened);
    }
    for (vma, &prot) in space.vmas.iter().zip(&opened) {
        finish(list, vma, prot);
    }
    if let Some(keys) = keys {
        keys.free(list);
    }
    layout(list, slots, exe, space);
}

/// For each area, whether page contents go into it. Areas and runs both rise.
fn filled(space: &Space) -> Vec<bool> {
    let mut runs: &[Run] = &space.runs;
    space
        .vmas
        .iter()
        .map(|vma| {
            let inside = runs.iter().take_while(|run| run.start < vma.end).count();
            runs = &runs[inside..];
            inside > 0
        })
        .collect()
}

fn length(vma: &Vma) -> u64 {
    vma.end.0 - vma.start.0
}

/// Areas that can be mapped by one call: neighbours that differ in protection alone, which is set afterwards. Only
/// memory that counts against the commit limit anyway: it does from the moment it is writable; or huge pages, which never do.
pub(super) fn groups(vmas: &[Vma]) -> impl Iterator<Item = core::ops::Range<usize>> {
    let joins = |left: &Vma, right: &Vma| {
        let plain = |vma: &Vma| vma.flags & vm::ACCOUNTED != 0 && vma.flags & vm::GROWS_DOWN == 0;
        let alike = match (left.backing, right.backing) {
            (Backing::Anonymous, Backing::Anonymous) => plain(left) && plain(right),
            (Backing::HugePages(from), Backing::HugePages(to)) => to.checked_sub(from) == Some(length(left)),
            _ => false,
        };
        alike && left.flags == right.flags && left.end == right.start
    };
    let mut from = 0;
    core::iter::from_fn(move || {
        let first = from;
        vmas.get(first)?;
        from += 1;
        while vmas.get(from).is_some_and(|next| joins(&vmas[from - 1], next)) {
            from += 1;
        }
        Some(first..from)
    })
}

/// Protection while contents come in. Private memory counts against the commit limit (smaps `ac`) from the moment it
/// is writable, and still does when it is no longer. Memory that may only be executed can be read at first: the kernel takes a protection key for it,
/// and whoever is cloned meanwhile is not to have that.
pub(super) fn open_prot(group: &[Vma], has_contents: bool) -> u32 {
    let first = &group[0];
    match (has_contents || group.len() > 1, first.backing.is_private() && first.flags & vm::ACCOUNTED != 0) {
        (true, _) => PROT_READ | PROT_WRITE,
        (false, true) => first.prot | PROT_WRITE,
        (false, false) if first.prot == PROT_EXEC => PROT_READ | PROT_EXEC,
        (false, false) => first.prot,
    }
}

/// Maps a group of areas (mostly one) by one call, or by several whose areas the kernel joins.
pub(super) fn map(
    list: &mut Vec<u8>,
    slots: &mut Slots,
    group: &[Vma],
    prot: u32,
    has_contents: bool,
    rules: Rules,
) {
    let vma = &group[0];
    let has = |bit: u32| vma.flags & bit != 0;
    let mut path =
        |path, shared: bool| slots.slot(Need::Path { path, writable: shared && has(vm::MAY_WRITE) });
    let (mut flags, fd, offset) = match vma.backing {
        Backing::Anonymous if has(vm::DROPPABLE) => (MAP_DROPPABLE | MAP_ANONYMOUS, None, 0),
        Backing::Anonymous => (MAP_PRIVATE | MAP_ANONYMOUS, None, 0),
        Backing::HugePages(_) => (MAP_PRIVATE | MAP_ANONYMOUS | huge_pages(vma), None, 0),
        Backing::PrivateFile(file, offset) => (MAP_PRIVATE, Some(path(file, false)), offset),
        Backing::SharedFile(file, offset) => (MAP_SHARED, Some(path(file, true)), offset),
        Backing::Shared(object, offset) => (MAP_SHARED, Some(slots.slot(Need::Shared(object))), offset),
        Backing::AioRing => return keep_free(list, vma),
        Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock => return,
    };
    if has(vm::GROWS_DOWN) {
        flags |= MAP_GROWSDOWN;
    }
    if has(vm::NO_RESERVE) {
        flags |= MAP_NORESERVE;
    }
    let (addr, len) = (vma.start.0, group[group.len() - 1].end.0 - vma.start.0);
    let is_writable = prot & PROT_WRITE != 0;
    // accountable_mapping(), mm/vma.c
    let counts = is_writable && flags & (MAP_PRIVATE | MAP_NORESERVE | MAP_HUGETLB) == MAP_PRIVATE;
    let at_once = if counts { rules.at_once } else { len };
    let mut done = 0;
    while done < len {
        let piece = at_once.min(len - done);
        let offset = if fd.is_some() { offset + done } else { offset };
        op::push(list, &Op::Map { addr: addr + done, len: piece, prot, flags, fd, offset });
        done += piece;
    }
    if is_writable && !has_contents && vma.huge().is_none() && group.iter().any(|vma| vma.prot != prot) {
        // mprotect takes the accounting back from an area that never had a page (mprotect_fixup, mm/mprotect.c).
        op::push(list, &Op::Populate { addr, len: PAGE_SIZE });
    }
    advise_before(list, addr, len, vma.flags);
}

/// What asks mmap for huge pages, if an area has them.
fn huge_pages(vma: &Vma) -> u32 {
    vma.huge().map_or(0, |page| MAP_HUGETLB | page.shift() << MAP_HUGE_SHIFT)
}

pub(super) fn advise_before(list: &mut Vec<u8>, addr: u64, len: u64, flags: u32) {
    for (bit, advice) in ADVICE_BEFORE {
        if flags & bit != 0 {
            op::push(list, &Op::Advise { addr, len, advice });
        }
    }
}

/// Holds the place of an area.
fn keep_free(list: &mut Vec<u8>, vma: &Vma) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    op::push(list, &Op::Map { addr: vma.start.0, len: length(vma), prot: 0, flags, fd: None, offset: 0 });
}

/// Gives areas their names. A fork passes them on, so a task that is cloned finds none, since this comes after that.
pub(super) fn names(list: &mut Vec<u8>, space: &Space) {
    for area in &space.names {
        let name = [&area.name[..], b"\0"].concat();
        op::push(list, &Op::NameArea { addr: area.start.0, len: area.end.0 - area.start.0, name: &name });
    }
}

/// What has to wait for the contents; `prot` is the protection until now.
pub(super) fn finish(list: &mut Vec<u8>, vma: &Vma, prot: u32) {
    let special = match vma.backing {
        Backing::Vdso(_) => Some(Special::Vdso),
        Backing::Vvar => Some(Special::Vvar),
        Backing::VvarVclock => Some(Special::VvarVclock),
        _ => None,
    };
    if let Some(area) = special {
        op::push(list, &Op::Place { area, addr: vma.start.0 });
        return;
    }
    if vma.backing != Backing::AioRing {
        settle(list, vma, prot);
    }
}

/// What an area gets when it is in its place and has its contents; `prot` is the protection until now.
pub(super) fn settle(list: &mut Vec<u8>, vma: &Vma, prot: u32) {
    let (addr, len) = (vma.start.0, length(vma));
    if prot != vma.prot {
        op::push(list, &protect(vma));
    }
    for (bit, advice) in ADVICE_AFTER {
        if vma.flags & bit != 0 {
            op::push(list, &Op::Advise { addr, len, advice });
        }
    }
    if vma.flags & vm::LOCKED != 0 {
        let flags = if vma.flags & vm::LOCK_ON_FAULT != 0 { MLOCK_ONFAULT } else { 0 };
        op::push(list, &Op::Lock { addr, len, flags });
    }
    if vma.flags & vm::SEALED != 0 {
        op::push(list, &Op::Seal { addr, len });
    }
}

/// Gives an area its protection. Memory that may only be executed, and whose key is that of all other memory, was given that key by the program, or
/// comes from a processor without keys: there it could be read all the same, so it is to stay readable on one that has keys.
fn protect(vma: &Vma) -> Op<'static> {
    let (addr, len, prot) = (vma.start.0, length(vma), vma.prot);
    match (prot, vma.key()) {
        (PROT_EXEC, 0) => Op::ProtectByKey { addr, len, prot, key: 0 },
        _ => Op::Protect { addr, len, prot },
    }
}

pub(super) fn layout(list: &mut Vec<u8>, slots: &mut Slots, exe: PathId, space: &Space) {
    let l = &space.layout;
    let addresses = [
        l.start_code,
        l.end_code,
        l.start_data,
        l.end_data,
        l.start_brk,
        l.brk,
        l.start_stack,
        l.arg_start,
        l.arg_end,
        l.env_start,
        l.env_end,
    ]
    .map(|addr| addr.0);
    let exe = slots.slot(Need::Path { path: exe, writable: false });
    op::push(list, &Op::Layout { addresses, auxv: &space.auxv, exe });
}
