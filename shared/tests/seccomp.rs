//! Which filters a plan installs, in which order, and what comes before and after.

#![allow(clippy::unwrap_used)] // A test: what is not there is a failure.

mod records;

use images::FilterId;
use images::memory::Space;
use images::seccomp::{Filter, Seccomp};
use images::task::Tree;
use images::thread::Thread;
use records::{creds, task, thread};
use shared::op::{self, Op};
use shared::plan::family::Making;
use shared::plan::{self, Forest, Machine};
use shared::proto::SpecialArea;
use std::collections::BTreeSet;

fn ops(threads: Vec<Thread>, filters: &[Filter]) -> Vec<u8> {
    let machine = Machine {
        task_attributes: Default::default(),
        thread_attributes: Default::default(),
        special: [SpecialArea::default(); 3],
        vdso_moves: true,
        creds: creds(0),
        rlimits: Vec::new(),
        timer_slack_ns: 0,
        rules: Default::default(),
    };
    let space = Space::default();
    let tree = Tree { tasks: vec![task(threads)], filters: filters.to_vec(), ..Tree::default() };
    let spaces = [space];
    let forest = Forest::new(&tree, &spaces, &[], &[Making::Forked], 1, [1, 1, 0], BTreeSet::new());
    plan::program(&machine, &forest, 0).ops
}

fn list(mut bytes: &[u8]) -> Vec<Op<'_>> {
    let mut all = Vec::new();
    while let Some((op, rest)) = op::next(bytes).unwrap() {
        all.push(op);
        bytes = rest;
    }
    all
}

fn filter(instructions: usize, log: bool) -> Filter {
    Filter { program: vec![u8::try_from(instructions).unwrap(); 8 * instructions], log }
}

/// The programs that a list of ops installs, with their flags, between the hold and the change of user.
fn installed<'a>(ops: &[Op<'_>], programs: &'a [u8]) -> Vec<(&'a [u8], u32)> {
    let position = |wanted: fn(&Op<'_>) -> bool| ops.iter().position(wanted).unwrap();
    let hold = position(|op| matches!(op, Op::Hold));
    let uid = position(|op| matches!(op, Op::Uid(_)));
    let installs = |(at, op): (usize, &Op<'_>)| match *op {
        Op::Filter { flags, at: from, len } => {
            assert!(hold < at && at < uid, "a filter at {at}, hold at {hold}, uid at {uid}");
            Some((&programs[from as usize..][..len as usize], flags))
        }
        _ => None,
    };
    ops.iter().enumerate().filter_map(installs).collect()
}

#[test]
fn each_thread_installs_its_own_filters_in_their_order() {
    let filters = [filter(1, false), filter(2, true), filter(3, false)];
    let with = |ids: &[u32], speculation| Seccomp::Filters {
        filters: ids.iter().map(|&id| FilterId(id)).collect(),
        speculation,
    };
    let bytes = ops(vec![thread(10, with(&[2, 0], true)), thread(11, with(&[2, 1, 2], false))], &filters);
    let ops = list(&bytes);
    let Op::Programs(programs) = ops[0] else { panic!("{:?} comes first", ops[0]) };
    assert_eq!(programs.len(), 6 * 8, "each program once");
    let program = |id: usize| &filters[id].program[..];
    assert_eq!(installed(&ops, programs), [(program(2), 4), (program(0), 4)]);
    let own = ops.iter().find_map(|op| match op {
        Op::Thread { tid: 11, ops, .. } => Some(list(ops)),
        _ => None,
    });
    assert_eq!(installed(&own.unwrap(), programs), [(program(2), 0), (program(1), 2), (program(2), 0)]);
}

#[test]
fn strict_mode_holds_all_threads_and_no_seccomp_none() {
    let bytes = ops(vec![thread(10, Seccomp::Off), thread(11, Seccomp::Strict)], &[]);
    let ops_of_leader = list(&bytes);
    assert!(
        ops_of_leader.contains(&Op::Hold) && !ops_of_leader.iter().any(|op| matches!(op, Op::Programs(_)))
    );
    let Some(Op::Thread { ops: own, .. }) = ops_of_leader.iter().find(|op| matches!(op, Op::Thread { .. }))
    else {
        panic!("no thread");
    };
    let own = list(own);
    let hold = own.iter().position(|op| *op == Op::Hold).unwrap();
    assert_eq!(own[hold + 1], Op::Prctl { option: 22, args: [1, 0, 0] });
    let bytes = ops(vec![thread(10, Seccomp::Off), thread(11, Seccomp::Off)], &[filter(1, false)]);
    assert!(!list(&bytes).iter().any(|op| matches!(op, Op::Hold | Op::Programs(_))));
}
