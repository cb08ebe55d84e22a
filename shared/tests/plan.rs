//! Plans are followed here by models of the kernel: whatever the records say must come out.

#![allow(clippy::unwrap_used)] // A test: what is not there is a failure.

use images::id::PAGE_SIZE;
use images::memory::{Backing, Layout, Run, Space, Vma, vm};
use images::thread::Creds;
use images::{Addr, PathId, SharedId};
use proptest::prelude::*;
use shared::op::{self, Op};
use shared::plan::memory::Rules;
use shared::plan::{Need, Slots, creds, hole, memory};
use shared::proto::{SLOT_FILES, SpecialArea, Vdso};
use std::collections::BTreeMap;

/// One page of a modelled address space.
#[derive(Clone, Debug, PartialEq)]
struct Page {
    prot: u32,
    flags: u32,
    file: Option<(Need, u64)>,
    contents: Option<u64>,
    advice: Vec<u32>,
}

const PROT_EXEC: u32 = 4;

/// Follows memory ops as the kernel would; panics where the kernel would refuse, or give an area a protection key that none has.
fn follow(list: &[u8], needs: &[Need]) -> BTreeMap<u64, Page> {
    let mut pages: BTreeMap<u64, Page> = BTreeMap::new();
    let mut rest = list;
    while let Some((op, next)) = op::next(rest).unwrap() {
        rest = next;
        let range = |addr: u64, len: u64| (addr..addr + len).step_by(4096);
        match op {
            Op::Map { addr, len, prot, flags, fd, offset } => {
                assert_ne!(prot, PROT_EXEC, "the kernel takes a protection key");
                for at in range(addr, len) {
                    let file = fd.map(|slot| (needs[(slot - SLOT_FILES) as usize], offset + (at - addr)));
                    let old =
                        pages.insert(at, Page { prot, flags, file, contents: None, advice: Vec::new() });
                    assert!(old.is_none(), "mapped twice: {at:#x}");
                }
            }
            Op::Fill { addr, len, offset } => {
                for at in range(addr, len) {
                    let page = pages.get_mut(&at).expect("filled what is not mapped");
                    assert_eq!(page.prot & 2, 2, "filled what is not writable");
                    page.contents = Some((offset + (at - addr)) / PAGE_SIZE);
                }
            }
            Op::Protect { addr, len, prot } | Op::ProtectByKey { addr, len, prot, key: 0 } => {
                let by_key = matches!(op, Op::ProtectByKey { .. });
                assert!(prot != PROT_EXEC || by_key, "the kernel takes a protection key");
                range(addr, len).for_each(|at| pages.get_mut(&at).expect("protected a gap").prot = prot);
            }
            Op::Advise { addr, len, advice } => {
                range(addr, len)
                    .for_each(|at| pages.get_mut(&at).expect("advised a gap").advice.push(advice));
            }
            Op::Populate { .. }
            | Op::Lock { .. }
            | Op::Seal { .. }
            | Op::NameArea { .. }
            | Op::Place { .. }
            | Op::Layout { .. } => {}
            other => panic!("not a memory op: {other:?}"),
        }
    }
    pages
}

fn backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        Just(Backing::Anonymous),
        (0u32..5, 0u64..100).prop_map(|(path, page)| Backing::PrivateFile(PathId(path), page * PAGE_SIZE)),
        (0u32..5, 0u64..100).prop_map(|(path, page)| Backing::SharedFile(PathId(path), page * PAGE_SIZE)),
        (0u32..3, 0u64..100).prop_map(|(id, page)| Backing::Shared(SharedId(id), page * PAGE_SIZE)),
    ]
}

prop_compose! {
    /// A space: areas with gaps between some, private ones partly filled.
    fn space()(parts in prop::collection::vec(
        (0u64..3, 1u64..8, 0u32..8, any::<u32>(), backing(), prop::collection::vec(any::<bool>(), 8)), 0..30,
    )) -> Space {
        let (mut vmas, mut runs) = (Vec::new(), Vec::new());
        let (mut at, mut first_page) = (0x10_0000u64, 0);
        for (gap, pages, prot, bits, backing, touched) in parts {
            let start = at + gap * PAGE_SIZE;
            at = start + pages * PAGE_SIZE;
            let flags = bits & (vm::DONT_FORK | vm::NO_HUGE_PAGE | vm::NO_RESERVE | vm::MAY_WRITE | vm::ACCOUNTED);
            vmas.push(Vma { start: Addr(start), end: Addr(at), prot, flags, backing });
            if backing.is_private() {
                for page in (0..pages).filter(|&page| touched[usize::try_from(page).unwrap()]) {
                    runs.push(Run { start: Addr(start + page * PAGE_SIZE), pages: 1, first_page });
                    first_page += 1;
                }
            }
        }
        Space { vmas, runs, policies: Vec::new(), guards: Vec::new(), names: Vec::new(), aio: Vec::new(), keys: 0, layout: Layout::default(), auxv: vec![1, 2, 3] }
    }
}

proptest! {
    #[test]
    fn every_page_comes_back_as_it_was(space in space(), pages_at_once in 1u64..10) {
        let (mut list, mut slots) = (Vec::new(), Slots::default());
        let rules = Rules { at_once: pages_at_once * PAGE_SIZE, always_huge: true };
        memory::ops(&mut list, &mut slots, PathId(4), &space, &[], rules, 0);
        let needs = slots.into_needs();
        let mut pages = follow(&list, &needs);
        for vma in &space.vmas {
            for at in (vma.start.0..vma.end.0).step_by(4096) {
                let page = pages.remove(&at).expect("not mapped");
                prop_assert_eq!(page.prot, vma.prot);
                let offset_of = |offset: u64| offset + (at - vma.start.0);
                let writable = vma.flags & vm::MAY_WRITE != 0;
                let (shared, file) = match vma.backing {
                    Backing::Anonymous => (false, None),
                    Backing::PrivateFile(path, offset) => {
                        (false, Some((Need::Path { path, writable: false }, offset_of(offset))))
                    }
                    Backing::SharedFile(path, offset) => (true, Some((Need::Path { path, writable }, offset_of(offset)))),
                    Backing::Shared(id, offset) => (true, Some((Need::Shared(id), offset_of(offset)))),
                    _ => unreachable!(),
                };
                prop_assert_eq!(page.flags & 3, if shared { 1 } else { 2 });
                prop_assert_eq!(page.flags & 0x4000 != 0, vma.flags & vm::NO_RESERVE != 0);
                prop_assert_eq!(page.file, file);
                let run = space.runs.iter().find(|run| run.start.0 == at).map(|run| run.first_page);
                prop_assert_eq!(page.contents, run);
                prop_assert_eq!(page.advice.contains(&10), vma.flags & vm::DONT_FORK != 0);
                prop_assert_eq!(page.advice.contains(&15), vma.flags & vm::NO_HUGE_PAGE != 0);
            }
        }
        prop_assert!(pages.is_empty(), "mapped more than there was");
    }

    #[test]
    fn the_layout_comes_last_and_names_the_executable(space in space()) {
        let (mut list, mut slots) = (Vec::new(), Slots::default());
        memory::ops(&mut list, &mut slots, PathId(4), &space, &[], Rules::default(), 0);
        let needs = slots.into_needs();
        let mut rest: &[u8] = &list;
        let mut last = None;
        while let Some((op, next)) = op::next(rest).unwrap() {
            last = Some(op);
            rest = next;
        }
        let Some(Op::Layout { exe, auxv, .. }) = last else { panic!("{last:?}") };
        prop_assert_eq!(auxv, &[1u8, 2, 3][..]);
        prop_assert_eq!(needs[(exe - SLOT_FILES) as usize], Need::Path { path: PathId(4), writable: false });
    }

    #[test]
    fn a_hole_holds_everything_without_overlap(
        program in 1u64..0x40_000, fds in 2u64..5000, stacks in 0u64..300, words in 0u64..2000,
        plan in 1u64..0x20_0000,
    ) {
        let area = |offset, len| SpecialArea { offset, len };
        let special = [area(-0x6000, 0x4000), area(-0x2000, 0x2000), area(0, 0x2000)];
        let vdso = Vdso::Moves;
        let contents = hole::Contents { program, fds, special, stacks, words, fds_from: 0, fillers: [9, 8, 0], plan, vdso };
        let start = contents.start(0xffff_e000, 0x40_0000, 0x1000);
        let ends = [
            (start.hole_start, start.hole_start + program),
            (start.control_addr, start.control_addr + 4096),
            (start.scratch_addr, start.scratch_addr + fds * 4),
            (start.parking_addr, start.parking_addr + 0x8000),
            (start.stacks_addr - words.div_ceil(1024) * PAGE_SIZE, start.stacks_addr),
            (start.stacks_addr, start.stacks_addr + (stacks + 2) * shared::proto::THREAD_STACK),
            (start.plan_addr, start.plan_addr + plan),
        ];
        for pair in ends.windows(2) {
            prop_assert!(pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        prop_assert!(ends[6].1 <= start.hole_end);
        prop_assert_eq!(start.words_addr, if words == 0 { 0 } else { ends[4].0 });
        prop_assert!(ends.iter().all(|end| end.0 % PAGE_SIZE == 0));
    }
}

/// The rules of capabilities(7) and credentials(7) that matter for a thread that has CAP_SETPCAP and CAP_SETUID.
fn follow_creds(list: &[u8], mut now: Creds) -> Creds {
    const NO_FIXUP: u32 = 4;
    let mut rest = list;
    while let Some((op, next)) = op::next(rest).unwrap() {
        rest = next;
        match op {
            Op::Prctl { option: 24, args } => now.cap_bounding &= !(1 << args[0]),
            Op::Prctl { option: 28, args } => {
                assert!(now.cap_effective & (1 << 8) != 0, "securebits need CAP_SETPCAP");
                now.securebits = u32::try_from(args[0]).unwrap();
            }
            Op::Prctl { option: 47, args: [4, ..] } => now.cap_ambient = 0,
            Op::Prctl { option: 47, args: [2, cap, _] } => {
                let bit = 1 << cap;
                assert!(now.cap_permitted & bit != 0 && now.cap_inheritable & bit != 0, "ambient {cap}");
                now.cap_ambient |= bit;
            }
            Op::Capabilities { effective, permitted, inheritable } => {
                assert_eq!(permitted & !now.cap_permitted, 0, "permitted cannot grow");
                assert_eq!(inheritable & !(now.cap_inheritable | now.cap_permitted | now.cap_bounding), 0);
                assert_eq!(effective & !permitted, 0);
                (now.cap_effective, now.cap_permitted, now.cap_inheritable) =
                    (effective, permitted, inheritable);
                now.cap_ambient &= permitted & inheritable;
            }
            Op::Groups(bytes) => {
                assert!(now.cap_effective & (1 << 6) != 0, "groups need CAP_SETGID");
                now.groups =
                    bytes.chunks(4).map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap())).collect();
            }
            Op::Gid(ids) => {
                assert!(now.cap_effective & (1 << 6) != 0, "gids need CAP_SETGID");
                now.gid = ids;
            }
            Op::Uid(ids) => {
                assert!(now.cap_effective & (1 << 7) != 0, "uids need CAP_SETUID");
                if now.securebits & NO_FIXUP == 0 && ids[1] != 0 {
                    (now.cap_effective, now.cap_ambient) = (0, 0);
                }
                now.uid = ids;
            }
            other => panic!("not a credential op: {other:?}"),
        }
    }
    now
}

const ALL: u64 = (1 << 41) - 1;

fn root() -> Creds {
    Creds {
        uid: [0; 4],
        gid: [0; 4],
        groups: vec![0],
        cap_inheritable: 0,
        cap_permitted: ALL,
        cap_effective: ALL,
        cap_bounding: ALL,
        cap_ambient: 0,
        securebits: 0,
        no_new_privs: false,
    }
}

prop_compose! {
    fn any_creds()(
        uid in prop::array::uniform4(0u32..3), gid in prop::array::uniform4(0u32..3),
        groups in prop::collection::vec(0u32..100, 0..5),
        sets in prop::array::uniform5(0..=ALL), securebits in 0u32..64,
    ) -> Creds {
        let [inheritable, permitted, effective, bounding, ambient] = sets;
        Creds {
            uid, gid, groups,
            cap_inheritable: inheritable,
            cap_permitted: permitted,
            cap_effective: effective & permitted,
            cap_bounding: bounding,
            cap_ambient: ambient & permitted & inheritable,
            securebits,
            no_new_privs: false,
        }
    }
}

proptest! {
    #[test]
    fn any_credentials_can_be_reached_from_those_of_root(want in any_creds()) {
        let mut list = Vec::new();
        creds::ops(&mut list, &root(), &want);
        prop_assert_eq!(follow_creds(&list, root()), want);
    }
}

#[test]
fn equal_credentials_need_no_op() {
    let mut list = Vec::new();
    creds::ops(&mut list, &root(), &root());
    assert!(list.is_empty());
}
