//! A dump decides by an upper bound of the room that a restore needs: it has to be one, whatever there is much of.

mod records;

use images::attribute::{AreaPolicy, MemoryPolicy};
use images::file::FdEntry;
use images::memory::{Backing, Layout, Run, Space, Vma};
use images::seccomp::{Filter, Seccomp};
use images::signal::{Action, AltStack, Pending};
use images::task::{Task, Tree};
use images::thread::{Creds, RobustList, Rseq, Thread, UserDesc};
use images::timer::Timer;
use images::{Abi, Addr, DescriptionId, FilterId, PathId, TaskFd};
use records::{creds, task};
use shared::plan::family::Making;
use shared::plan::{self, Forest, Machine, hole};
use shared::proto::{MAX_FILLERS, SLOT_FILES, SpecialArea};
use std::collections::BTreeSet;

/// How many there are of what there is much of.
const MANY: u32 = 600;
const PROGRAM: u64 = 0x2_0000;

fn space() -> Space {
    let (vmas, runs, policies) = (Vec::new(), Vec::new(), Vec::new());
    Space {
        vmas,
        runs,
        policies,
        guards: Vec::new(),
        names: Vec::new(),
        aio: Vec::new(),
        keys: 0,
        layout: Layout::default(),
        auxv: vec![0xff; 400],
    }
}

/// A thread of which everything has to be told, in numbers as long as they get.
fn thread(tid: i32) -> Thread {
    let high = Addr(u64::MAX);
    let list = Some(RobustList { head: high, len: u64::MAX });
    let policy = MemoryPolicy { mode: u32::MAX, nodes: vec![u64::MAX; 16] };
    let mut thread = records::thread(tid, Seccomp::Off);
    thread.comm = vec![b'x'; 15];
    thread.altstack = AltStack { base: high, size: u64::MAX, flags: !2 };
    (thread.robust_list_64, thread.robust_list_32) = (list, list);
    thread.rseq = Some(Rseq { area: high, size: u32::MAX, signature: u32::MAX, flags: u32::MAX });
    (thread.clear_child_tid, thread.timer_slack_ns, thread.parent_death_signal) = (high, u64::MAX, u32::MAX);
    (thread.attributes.tsc, thread.attributes.mce_kill, thread.attributes.io_flusher) = (u32::MAX, 7, true);
    (thread.attributes.speculation, thread.attributes.policy) = ([u32::MAX; 3], policy);
    let sets = (u64::MAX, u64::MAX);
    (thread.creds.cap_inheritable, thread.creds.cap_permitted) = sets;
    (thread.creds.cap_effective, thread.creds.cap_ambient) = sets;
    (thread.creds.uid, thread.creds.gid) = ([u32::MAX; 4], [u32::MAX; 4]);
    (thread.creds.securebits, thread.creds.no_new_privs) = (u32::MAX, true);
    thread
}

/// Bytes that are needed, and how many are thought to be.
fn room(task: Task, space: Space, filters: Vec<Filter>) -> (u64, u64) {
    let machine = Machine {
        task_attributes: Default::default(),
        thread_attributes: Default::default(),
        special: [SpecialArea { offset: 0, len: 0x8000 }; 3],
        vdso_moves: true,
        creds: Creds { cap_bounding: u64::MAX, ..creds(0) },
        rlimits: vec![(0, 0); 16],
        timer_slack_ns: 0,
        rules: Default::default(),
    };
    let tree = Tree { tasks: vec![task], filters, ..Tree::default() };
    let spaces = [space];
    let forest = Forest::new(&tree, &spaces, &[], &[Making::Forked], 1, [1, 1, 0], BTreeSet::new());
    let plan = plan::program(&machine, &forest, 0);
    let contents = hole::Contents {
        program: PROGRAM,
        fds: u64::from(SLOT_FILES) + plan.needs.len() as u64,
        special: machine.special,
        stacks: u64::from(plan.stacks),
        words: u64::from(plan.words),
        fds_from: 0,
        fillers: [9; MAX_FILLERS],
        plan: plan.ops.len() as u64,
        vdso: plan.vdso,
    };
    (contents.len(), hole::bound(&tree, &spaces, &[0], PROGRAM))
}

fn holds((needed, bound): (u64, u64)) {
    assert!(needed <= bound, "{needed} bytes, {bound} were thought enough");
}

fn whole_task() -> Task {
    let mut task = task(vec![thread(10)]);
    task.rlimits = vec![(u64::MAX, u64::MAX); 16];
    task.actions = (1..=64)
        .map(|signal| Action {
            signal,
            handler: Addr(u64::MAX),
            flags: u64::MAX,
            restorer: Addr(u64::MAX),
            mask: u64::MAX,
        })
        .collect();
    task
}

#[test]
fn of_a_task() {
    holds(room(whole_task(), space(), Vec::new()));
}

#[test]
fn of_areas_and_contents() {
    let mut space = space();
    let far = |n: u32| u64::MAX - (u64::from(MANY - n) << 20);
    for n in 0..MANY {
        let (start, end) = (Addr(far(n)), Addr(far(n) + 0x8_0000));
        let backing =
            [Backing::Anonymous, Backing::PrivateFile(PathId(n), u64::MAX - 0x10_0000)][n as usize % 2];
        space.vmas.push(Vma { start, end, prot: 5, flags: !1, backing });
        space.runs.push(Run { start, pages: 1 << 40, first_page: 1 << 50 });
        let policy = MemoryPolicy { mode: u32::MAX, nodes: vec![u64::MAX; 16] };
        space.policies.push(AreaPolicy { start, end, policy });
    }
    let mut task = whole_task();
    task.attributes.memory_merge = true;
    holds(room(task.clone(), space.clone(), Vec::new()));
    holds(room(task.clone(), Space { policies: Vec::new(), ..space.clone() }, Vec::new()));
    holds(room(task.clone(), Space { policies: Vec::new(), runs: Vec::new(), ..space.clone() }, Vec::new()));
    // Of one kind alone, which nothing makes up for.
    let vmas = space.vmas[..1].to_vec();
    holds(room(
        task.clone(),
        Space { policies: Vec::new(), vmas: vmas.clone(), ..space.clone() },
        Vec::new(),
    ));
    holds(room(task, Space { runs: Vec::new(), vmas, ..space }, Vec::new()));
}

#[test]
fn of_threads_and_filters() {
    let mut task = whole_task();
    task.threads.extend((11..111).map(thread));
    for thread in &mut task.threads {
        thread.creds.groups = vec![u32::MAX; 1000];
        let filters = (0..MANY).map(|n| FilterId(n % 4)).collect();
        thread.seccomp = Seccomp::Filters { filters, speculation: true };
    }
    let filters = (0..4).map(|_| Filter { program: vec![0xff; 32768], log: true }).collect();
    holds(room(task, space(), filters));
}

#[test]
fn of_signals_and_timers() {
    let mut task = whole_task();
    let pending = |_| Pending { info: vec![0xff; 128] };
    task.pending = (0..MANY).map(pending).collect();
    task.threads[0].pending = (0..MANY).map(pending).collect();
    holds(room(task.clone(), space(), Vec::new()));
    task.pending.clear();
    task.threads[0].pending.clear();
    let timer = |n: u32| Timer {
        id: i32::MIN + n.cast_signed(),
        clock: i32::MIN,
        notify: i32::MIN,
        thread: i32::MIN,
        signal: i32::MIN,
        value: u64::MAX,
        interval_ns: u64::MAX,
        left_ns: u64::MAX,
        fired: true,
        overrun: u32::MAX,
    };
    task.timers = (0..MANY).map(timer).collect();
    holds(room(task, space(), Vec::new()));
}

#[test]
fn of_descriptors() {
    let mut task = whole_task();
    let entry = |n| FdEntry { fd: TaskFd(u32::MAX - n), description: DescriptionId(n), close_on_exec: true };
    task.fds = (0..MANY).map(entry).collect();
    holds(room(task.clone(), space(), Vec::new()));
    task.fds.clear();
    task.abi = Abi::Ia32;
    let segment = |n| UserDesc { entry: u32::MAX - n, base: u32::MAX, limit: u32::MAX, flags: u32::MAX };
    task.ldt = (0..MANY).map(segment).collect();
    holds(room(task, space(), Vec::new()));
}
