//! A dump decides by an upper bound of the room that a restore needs: it has to be one, whatever there is much of.

mod records;

use images::attribute::{AreaPolicy, MemoryPolicy};
use images::file::FdEntry;
use images::memory::{Backing, Layout, Run, Space, Vma};
use images::seccomp::{Filter, Seccomp};
use images::sharing::{Object, Shares};
use images::signal::{Action, AltStack, Pending};
use images::task::{Task, Tree};
use images::thread::{Creds, RobustList, Rseq, Thread, UserDesc};
use images::timer::Timer;
use images::{Abi, Addr, DescriptionId, FilterId, PathId, TaskFd};
use records::{creds, task};
use shared::plan::family::{self, Making, holder_of};
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

fn machine() -> Machine {
    Machine {
        task_attributes: Default::default(),
        thread_attributes: Default::default(),
        special: [SpecialArea { offset: 0, len: 0x8000 }; 3],
        vdso_moves: true,
        creds: Creds { cap_bounding: u64::MAX, ..creds(0) },
        rlimits: vec![(0, 0); 16],
        timer_slack_ns: 0,
        rules: Default::default(),
    }
}

/// Bytes that are needed, and how many are thought to be.
fn room(task: Task, space: Space, filters: Vec<Filter>) -> (u64, u64) {
    let tree = Tree { tasks: vec![task], filters, ..Tree::default() };
    let (spaces, makings) = ([space], [Making::Forked]);
    let forest = Forest::new(&tree, &spaces, &[], &makings, 1, [1, 1, 0], BTreeSet::new());
    let [only] = <[_; 1]>::try_from(rooms(&tree, &spaces, &makings, &forest)).expect("one program");
    only
}

/// [`room`] of each program of a tree.
fn rooms(tree: &Tree, spaces: &[Space], makings: &[Making], forest: &Forest<'_>) -> Vec<(u64, u64)> {
    let groups = hole::groups(makings);
    let room = |(&first, group): (&usize, &hole::Group)| {
        let needed = needed(&machine(), forest, first, group);
        (needed, hole::bound(tree, spaces, makings, group, PROGRAM))
    };
    groups.iter().map(room).collect()
}

fn needed(machine: &Machine, forest: &Forest<'_>, first: usize, group: &hole::Group) -> u64 {
    let plan = plan::program(machine, forest, first);
    let sorted: BTreeSet<usize> = plan.members.iter().copied().collect();
    assert!(sorted.into_iter().eq(group.members.iter().copied()), "{:?} {:?}", plan.members, group.members);
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
    contents.len()
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

/// Numbers that look like any, the same ones each time.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

fn some_files(first: u32, count: u64) -> Vec<FdEntry> {
    let entry = |n: u32| FdEntry {
        fd: TaskFd(u32::MAX - first - n),
        description: DescriptionId(n * 7 + first),
        close_on_exec: n % 3 == 0,
    };
    (0..u32::try_from(count).expect("a small number")).rev().map(entry).collect()
}

/// Tasks that were cloned in all ways that there are, by each other.
fn family(seed: u64) -> Vec<Task> {
    let mut dice = dice(seed);
    let mut tasks: Vec<Task> = Vec::new();
    for pid in 10..11 + dice(40) {
        let (mut threads, bare) = (vec![thread(i32::try_from(pid).expect("a small number"))], dice(4) != 0);
        if bare {
            threads = vec![records::thread(threads[0].tid, Seccomp::Off)];
        }
        let mut new = Task {
            pid: i32::try_from(pid).expect("a small number"),
            ..if bare { task(threads) } else { whole_task() }
        };
        new.threads[0].tid = new.pid;
        if let Some(by) = tasks
            .len()
            .checked_sub(1)
            .map(|last| usize::try_from(dice(last as u64 + 1)).expect("a small number"))
        {
            let maker = &tasks[by];
            (new.ppid, new.abi) = (maker.pid, maker.abi);
            match dice(4) {
                0 => new.abi = if maker.abi == Abi::Ia32 { Abi::X86_64 } else { Abi::Ia32 },
                1 => new.exit_signal = 10,
                _ => {}
            }
            let same = new.abi == maker.abi;
            let mut share = |object, can| (can && dice(3) == 0).then(|| holder_of(&tasks, by, object));
            let memory = share(Object::Memory, same);
            new.shares = Shares {
                memory,
                files: share(Object::Files, same),
                directories: share(Object::Directories, true),
                handlers: share(Object::Handlers, memory.is_some()),
            };
        }
        if new.shares.files.is_none() {
            new.fds = some_files(
                u32::try_from(dice(3) * 50).expect("a small number"),
                [0, 5, 300][usize::try_from(dice(3)).expect("a small number")],
            );
        }
        tasks.push(new);
    }
    tasks
}

#[test]
fn of_families() {
    let mut programs = 0;
    for seed in 0..400 {
        let tree = Tree { tasks: family(seed), ..Tree::default() };
        let Ok(makings) = family::makings(&tree.tasks) else { continue };
        let spaces = vec![space(); tree.tasks.len()];
        let late = (0..500).step_by(2).map(DescriptionId).collect();
        let forest = Forest::new(&tree, &spaces, &[], &makings, 1, [1, 1, 0], late);
        for room in rooms(&tree, &spaces, &makings, &forest) {
            holds(room);
            programs += 1;
        }
    }
    assert!(programs > 1000, "{programs}");
}

/// What others have is closed once: the room for that does not grow with the square of their number.
#[test]
fn of_a_large_family() {
    const TASKS: i32 = 300;
    let mut tasks = vec![task(vec![records::thread(10, Seccomp::Off)])];
    tasks.extend((11..10 + TASKS).map(|pid| Task {
        pid,
        ppid: 10,
        shares: Shares { directories: Some(10), ..Shares::default() },
        ..task(vec![records::thread(pid, Seccomp::Off)])
    }));
    for (task, first) in tasks.iter_mut().zip((0..).step_by(1000)) {
        (task.abi, task.fds) = (Abi::Ia32, some_files(first, 500));
        // The same files, under numbers of each task's own.
        task.fds.iter_mut().zip(0..).for_each(|(entry, n)| entry.description = DescriptionId(n));
    }
    let tree = Tree { tasks, ..Tree::default() };
    let makings = family::makings(&tree.tasks).unwrap();
    let spaces = vec![space(); tree.tasks.len()];
    let forest = Forest::new(&tree, &spaces, &[], &makings, 1, [1, 1, 0], BTreeSet::new());
    for (needed, bound) in rooms(&tree, &spaces, &makings, &forest) {
        holds((needed, bound));
        assert!(bound < 32 << 20, "{bound} bytes for {needed}");
    }
}
