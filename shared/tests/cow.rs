//! Families with a history of forks are planned, and the plan is followed by a model of the kernel: every task has to end with
//! the memory that it had, and pages that two of them shared have to be one page again.

#![allow(clippy::unwrap_used)] // A test: what is not there is a failure.

mod records;

use images::id::PAGE_SIZE;
use images::memory::{Backing, Run, Space, Vma, vm};
use images::seccomp::Seccomp;
use images::task::{Task, Tree};
use images::{Addr, PathId};
use proptest::prelude::*;
use shared::op::birth::Birth;
use shared::op::{self, Op};
use shared::plan::family::{self, Making};
use shared::plan::{self, Forest, Machine, kin};
use shared::proto::SpecialArea;
use std::collections::{BTreeMap, BTreeSet};

/// Pages of the address space that histories play in.
const PAGES: u64 = 160;
const FIRST: u64 = 0x100;

/// A page as a task sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    prot: u32,
    /// The offset in a file, in pages.
    file: Option<u64>,
    /// What it holds, as a page of the page file, and in the model of a restore the frame that it is in.
    contents: Option<(u64, u64)>,
}

type Memory = BTreeMap<u64, Page>;

/// What happens to a task, by numbers of tasks and pages.
#[derive(Clone, Debug)]
enum Event {
    Fork { parent: usize },
    Write { task: usize, page: u64, pages: u64 },
    Protect { task: usize, page: u64, pages: u64, prot: u32 },
    Unmap { task: usize, page: u64, pages: u64 },
    Map { task: usize, page: u64, pages: u64, file: bool },
    Drop { task: usize, page: u64, pages: u64 },
}

fn range() -> impl Strategy<Value = (usize, u64, u64)> {
    (0usize..64, 0..PAGES, 1u64..40)
}

/// Forks, and what happens to pages of areas that stay what they are.
fn fork_or_write() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0usize..64).prop_map(|parent| Event::Fork { parent }),
        6 => range().prop_map(|(task, page, pages)| Event::Write { task, page, pages }),
        1 => range().prop_map(|(task, page, pages)| Event::Drop { task, page, pages }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => fork_or_write(),
        2 => (range(), 0u32..4).prop_map(|((task, page, pages), prot)| Event::Protect { task, page, pages, prot }),
        1 => range().prop_map(|(task, page, pages)| Event::Unmap { task, page, pages }),
        2 => (range(), any::<bool>()).prop_map(|((task, page, pages), file)| Event::Map { task, page, pages, file }),
    ]
}

/// Tasks by what happened: the parent of each, and its memory.
fn history(events: &[Event]) -> Vec<(usize, Memory)> {
    let plain = |prot| Page { prot, file: None, contents: None };
    let root = (10..90).map(|page| (page, plain(3))).collect();
    let mut tasks: Vec<(usize, Memory)> = vec![(0, root)];
    let mut next = 0;
    let mut written = || {
        next += 1;
        Some((next - 1, 0))
    };
    for event in events {
        let count = tasks.len();
        let there = |memory: &Memory, page: u64, pages: u64| -> Vec<u64> {
            memory.range(page..page + pages).map(|(&page, _)| page).collect()
        };
        match *event {
            Event::Fork { parent } if count < 12 => {
                let memory = tasks[parent % count].1.clone();
                tasks.push((parent % count, memory));
            }
            Event::Fork { .. } => {}
            Event::Write { task, page, pages } => {
                let memory = &mut tasks[task % count].1;
                for page in there(memory, page, pages) {
                    memory.get_mut(&page).unwrap().contents = written();
                }
            }
            Event::Protect { task, page, pages, prot } => {
                let memory = &mut tasks[task % count].1;
                there(memory, page, pages).iter().for_each(|page| memory.get_mut(page).unwrap().prot = prot);
            }
            Event::Unmap { task, page, pages } => {
                let memory = &mut tasks[task % count].1;
                memory.retain(|at, _| !(page..page + pages).contains(at));
            }
            Event::Map { task, page, pages, file } => {
                let of = |at: u64| Page { file: file.then_some(at - page), ..plain(3) };
                tasks[task % count].1.extend((page..page + pages).map(|at| (at, of(at))));
            }
            Event::Drop { task, page, pages } => {
                let memory = &mut tasks[task % count].1;
                there(memory, page, pages)
                    .iter()
                    .for_each(|page| memory.get_mut(page).unwrap().contents = None);
            }
        }
    }
    tasks
}

fn address(page: u64) -> Addr {
    Addr((FIRST + page) * PAGE_SIZE)
}

/// The records of a memory.
fn space(memory: &Memory) -> Space {
    let (mut vmas, mut runs): (Vec<Vma>, Vec<Run>) = (Vec::new(), Vec::new());
    let mut last: Option<(u64, Page)> = None;
    for (&at, page) in memory {
        let goes_on = last.filter(|(before, other)| {
            let file = other.file.map(|offset| offset + 1) == page.file;
            before + 1 == at && file && other.prot == page.prot
        });
        let (start, end) = (address(at), address(at + 1));
        if goes_on.is_some() {
            vmas.last_mut().unwrap().end = end;
        } else {
            let file = |offset| Backing::PrivateFile(PathId(1), offset * PAGE_SIZE);
            let backing = page.file.map_or(Backing::Anonymous, file);
            vmas.push(Vma { start, end, prot: page.prot, flags: vm::ACCOUNTED | vm::MAY_WRITE, backing });
        }
        if let Some((first_page, _)) = page.contents {
            match runs.last_mut() {
                Some(run)
                    if goes_on.is_some_and(|(_, other)| {
                        other.contents.is_some_and(|(p, _)| p + 1 == first_page)
                    }) =>
                {
                    run.pages += 1;
                }
                _ => runs.push(Run { start, pages: 1, first_page }),
            }
        }
        last = Some((at, *page));
    }
    Space { vmas, runs, ..Space::default() }
}

fn tree(tasks: &[(usize, Memory)]) -> Tree {
    let task = |(index, (parent, _)): (usize, &(usize, Memory))| -> Task {
        let pid = 10 + i32::try_from(index).unwrap();
        let ppid = if index == 0 { 1 } else { 10 + i32::try_from(*parent).unwrap() };
        Task { pid, ppid, ..records::task(vec![records::thread(pid, Seccomp::Off)]) }
    };
    let tasks = tasks.iter().enumerate().map(task).collect();
    Tree { tasks, ..Tree::default() }
}

/// Follows a plan as the kernel would: the memory of each task by its pid.
struct Kernel {
    frames: u64,
    ended: BTreeMap<i32, Memory>,
}

impl Kernel {
    fn follow(&mut self, pid: i32, mut list: &[u8], mut memory: Memory) {
        let pages = |addr: u64, len: u64| addr / PAGE_SIZE - FIRST..(addr + len) / PAGE_SIZE - FIRST;
        while let Some((op, rest)) = op::next(list).unwrap() {
            list = rest;
            match op {
                Op::Map { addr, len, prot, fd, offset, .. } => {
                    for (at, file) in pages(addr, len).zip(offset / PAGE_SIZE..) {
                        let page = Page { prot, file: fd.map(|_| file), contents: None };
                        assert_eq!(memory.insert(at, page), None, "mapped over something");
                    }
                }
                Op::Unmap { addr, len } => {
                    pages(addr, len).for_each(|at| assert!(memory.remove(&at).is_some(), "nothing to unmap"));
                }
                Op::Fill { addr, len, offset } => {
                    for (at, page) in pages(addr, len).zip(offset / PAGE_SIZE..) {
                        let filled = memory.get_mut(&at).expect("filled a gap");
                        assert_eq!(filled.prot & 2, 2, "filled what is not writable");
                        filled.contents = Some((page, self.frames));
                        self.frames += 1;
                    }
                }
                Op::Advise { addr, len, advice: 4 } => {
                    pages(addr, len)
                        .for_each(|at| memory.get_mut(&at).expect("dropped a gap").contents = None);
                }
                Op::Protect { addr, len, prot } | Op::ProtectByKey { addr, len, prot, .. } => {
                    pages(addr, len).for_each(|at| memory.get_mut(&at).expect("protected a gap").prot = prot);
                }
                Op::Populate { addr, len } => {
                    pages(addr, len)
                        .for_each(|at| memory.get_mut(&at).expect("populated a gap").contents = None);
                }
                Op::Birth(Birth::Task { pid, ops, .. }) => self.follow(pid, ops, memory.clone()),
                _ => {}
            }
        }
        self.ended.insert(pid, memory);
    }
}

fn machine() -> Machine {
    Machine {
        task_attributes: Default::default(),
        thread_attributes: Default::default(),
        special: [SpecialArea { offset: 0, len: 0x2000 }; 3],
        vdso_moves: true,
        creds: records::creds(0),
        rlimits: Vec::new(),
        timer_slack_ns: 0,
        rules: Default::default(),
    }
}

/// A tree before and after: the parents and memories, how each is made, and what the restored ones have.
struct Outcome {
    tasks: Vec<(usize, Memory)>,
    makings: Vec<Making>,
    restored: Vec<Memory>,
}

fn restore(events: &[Event]) -> Outcome {
    let tasks = history(events);
    let tree = tree(&tasks);
    let spaces: Vec<Space> = tasks.iter().map(|(_, memory)| space(memory)).collect();
    let makings = family::makings(&tree.tasks).unwrap();
    let makings = kin::with_pages(&tree, (&spaces, &[]), &kin::Terminals::default(), &makings);
    let forest = Forest::new(&tree, &spaces, &[], &makings, 1, [1, 1, 0], BTreeSet::new());
    let mut kernel = Kernel { frames: 0, ended: BTreeMap::new() };
    for index in (0..tasks.len()).filter(|&index| makings[index] == Making::Forked) {
        let plan = plan::program(&machine(), &forest, index);
        kernel.follow(tree.tasks[index].pid, &plan.ops, Memory::new());
    }
    let restored = tree.tasks.iter().map(|task| kernel.ended[&task.pid].clone()).collect();
    Outcome { tasks, makings, restored }
}

proptest! {
    #[test]
    fn every_task_gets_its_memory_back(events in prop::collection::vec(event(), 0..40)) {
        let Outcome { tasks, restored, .. } = restore(&events);
        let shown = |memory: &Memory| -> Vec<(u64, u32, Option<u64>, Option<u64>)> {
            let page = |(&at, page): (&u64, &Page)| (at, page.prot, page.file, page.contents.map(|(page, _)| page));
            memory.iter().map(page).collect()
        };
        for ((_, before), after) in tasks.iter().zip(&restored) {
            prop_assert_eq!(shown(before), shown(after));
        }
    }

    #[test]
    fn what_was_one_page_is_one_again(events in prop::collection::vec(fork_or_write(), 0..30)) {
        let Outcome { tasks, makings, restored } = restore(&events);
        // Where one stands in for a parent that is no relative any more, it cannot have every version in its turn.
        let stand_ins = makings.iter().any(|making| matches!(making, Making::Cloned { flags, .. } if *flags != 0));
        prop_assume!(!stand_ins);
        // All come from the root; who shares nothing with its parent any more begins anew.
        let first = |mut index: usize| {
            while let Making::Cloned { by, pages: true, .. } = makings[index] {
                index = by;
            }
            index
        };
        for (a, b) in (0..tasks.len()).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|&(a, b)| first(a) == first(b)) {
            for (at, page) in tasks[a].1.iter().filter(|(_, page)| page.contents.is_some()) {
                if tasks[b].1.get(at).map(|page| page.contents) == Some(page.contents) {
                    prop_assert_eq!(restored[a][at].contents, restored[b][at].contents, "page {} of {} and {}", at, a, b);
                }
            }
        }
    }
}

/// However long a chain of forks is, no program restores more than some of it: plans lie inside of each other.
#[test]
fn long_chains_are_cut() {
    let mut tasks = history(&[Event::Write { task: 0, page: 10, pages: 4 }]);
    for parent in 0..400 {
        tasks.push((parent, tasks[0].1.clone()));
    }
    let tree = tree(&tasks);
    let spaces: Vec<Space> = tasks.iter().map(|(_, memory)| space(memory)).collect();
    let makings = family::makings(&tree.tasks).unwrap();
    let makings = kin::with_pages(&tree, (&spaces, &[]), &kin::Terminals::default(), &makings);
    let cloned = makings.iter().rev().take_while(|&&making| making != Making::Forked).count();
    assert!((1..100).contains(&cloned), "{cloned} generations");
    assert!(makings[..300].iter().all(|&making| making == Making::Forked));
}
