//! When a plan takes the files that are opened only when all tasks exist.

#![allow(clippy::unwrap_used)] // A test: what is not there is a failure.

mod records;

use images::file::FdEntry;
use images::memory::Space;
use images::seccomp::Seccomp;
use images::task::Tree;
use images::{DescriptionId, TaskFd};
use records::{creds, task, thread};
use shared::op::{self, Op};
use shared::plan::family::Making;
use shared::plan::{self, Forest, Machine};
use shared::proto::SpecialArea;
use std::collections::BTreeSet;

/// The ops of a task with two threads and seccomp, which has three files.
fn ops(late: &[u32]) -> Vec<u8> {
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
    let entry = |fd, description, close_on_exec| FdEntry {
        fd: TaskFd(fd),
        description: DescriptionId(description),
        close_on_exec,
    };
    let mut task = task(vec![thread(10, Seccomp::Off), thread(11, Seccomp::Strict)]);
    task.fds = vec![entry(3, 7, true), entry(4, 5, false), entry(9, 6, true)];
    let tree = Tree { tasks: vec![task], ..Tree::default() };
    let late: BTreeSet<DescriptionId> = late.iter().copied().map(DescriptionId).collect();
    let forest = Forest::new(&tree, std::slice::from_ref(&space), &[], &[Making::Forked], 1, [1, 1, 0], late);
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

/// A task tells that it is there when its threads are, and waits for files before anything bites; all tasks take them in the same order.
#[test]
fn files_are_taken_between_threads_and_seccomp() {
    let bytes = ops(&[7, 5]);
    let wanted = |op: &&Op<'_>| {
        matches!(op, Op::Thread { .. } | Op::There | Op::Receive { .. } | Op::Hold | Op::Uid(_))
    };
    let all = list(&bytes);
    let found: Vec<&Op<'_>> = all.iter().filter(wanted).collect();
    assert!(matches!(found[0], Op::Thread { tid: 11, .. }), "{:?} comes first", found[0]);
    let rest = [
        &Op::There,
        &Op::Receive { fd: 4, close_on_exec: false },
        &Op::Receive { fd: 3, close_on_exec: true },
        &Op::Hold,
    ];
    assert_eq!(found[1..5], rest);
}

/// Every task tells, whoever has the files.
#[test]
fn who_has_no_such_file_only_tells() {
    let bytes = ops(&[1]);
    let all = list(&bytes);
    assert!(all.contains(&Op::There) && !all.iter().any(|op| matches!(op, Op::Receive { .. })));
}

#[test]
fn a_tree_without_such_files_pays_nothing() {
    let bytes = ops(&[]);
    assert!(!list(&bytes).iter().any(|op| matches!(op, Op::There | Op::Receive { .. })));
}
