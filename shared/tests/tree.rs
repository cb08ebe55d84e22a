//! The schedule of forks against a model of the kernel: a tree with a random history is taken down as it stands, and
//! what the schedule makes of that has to stand the same way.
#![allow(clippy::unwrap_used)] // A failed step is a failed test.

use images::Pid;
use images::task::ShellJob;
use proptest::prelude::*;
use shared::plan::tree::{Birth, OUTSIDE, Place, Process, Role, Schedule, Why, schedule};
use std::collections::BTreeMap;

const INIT: Pid = 1;
const ROOT: Pid = 100;

/// A process in the model.
#[derive(Clone, Debug)]
struct Task {
    ppid: Pid,
    sid: Pid,
    pgid: Pid,
    zombie: bool,
    subreaper: bool,
}

/// The kernel, as far as it is about relatives.
#[derive(Clone, Debug, Default)]
struct Kernel {
    tasks: BTreeMap<Pid, Task>,
}

impl Kernel {
    fn with_init() -> Self {
        let init = Task { ppid: 0, sid: INIT, pgid: INIT, zombie: false, subreaper: false };
        Self { tasks: BTreeMap::from([(INIT, init)]) }
    }

    /// A pid stays taken while it names a task, a group or a session.
    fn is_taken(&self, pid: Pid) -> bool {
        self.tasks.iter().any(|(&own, task)| own == pid || task.sid == pid || task.pgid == pid)
    }

    fn fork(&mut self, from: Pid, pid: Pid, sibling: bool) {
        assert!(!self.is_taken(pid), "pid {pid} is taken");
        let forker = self.tasks[&from].clone();
        assert!(!forker.zombie);
        let ppid = if sibling { forker.ppid } else { from };
        self.tasks.insert(pid, Task { ppid, zombie: false, subreaper: false, ..forker });
    }

    fn setsid(&mut self, pid: Pid) -> bool {
        let may = self.tasks.values().all(|task| task.pgid != pid);
        if let (true, Some(task)) = (may, self.tasks.get_mut(&pid)) {
            (task.sid, task.pgid) = (pid, pid);
        }
        may
    }

    fn setpgid(&mut self, pid: Pid, pgid: Pid) -> bool {
        let sid = self.tasks[&pid].sid;
        let there = self.tasks.values().any(|task| task.pgid == pgid && task.sid == sid);
        let may = sid != pid && (pgid == pid || there);
        if let (true, Some(task)) = (may, self.tasks.get_mut(&pid)) {
            task.pgid = pgid;
        }
        may
    }

    /// Ends a task; its children go to the nearest ancestor that takes them.
    fn exit(&mut self, pid: Pid) {
        let mut reaper = self.tasks[&pid].ppid;
        let takes = |task: &Task| task.subreaper && !task.zombie;
        while reaper != INIT && !takes(&self.tasks[&reaper]) {
            reaper = self.tasks[&reaper].ppid;
        }
        self.tasks.get_mut(&pid).unwrap().zombie = true;
        for task in self.tasks.values_mut().filter(|task| task.ppid == pid) {
            task.ppid = reaper;
        }
    }

    fn reap(&mut self, pid: Pid) {
        if self.tasks[&pid].zombie {
            self.tasks.remove(&pid);
        }
    }

    /// The tree under a root, parents first.
    fn tree(&self, root: Pid) -> Vec<Place> {
        let mut found = vec![root];
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            next += 1;
            found.extend(self.tasks.iter().filter(|(_, task)| task.ppid == pid).map(|(&pid, _)| pid));
        }
        let place = |pid| {
            let Task { ppid, sid, pgid, .. } = self.tasks[&pid];
            Place { pid, ppid, pgid, sid, cloned: false }
        };
        found.into_iter().map(place).collect()
    }
}

/// Follows a schedule in a fresh kernel.
struct Restore<'a> {
    places: &'a [Place],
    schedule: &'a Schedule,
    kernel: Kernel,
    pids: Vec<Pid>,
    /// Children run before their forker goes on, or after.
    depth_first: bool,
}

impl<'a> Restore<'a> {
    fn new(places: &'a [Place], schedule: &'a Schedule, depth_first: bool) -> Self {
        let mut next = 100_000;
        let pid = |role| match role {
            Role::Outside => INIT,
            Role::Task(index) | Role::Cloned(index) => places[index].pid,
            Role::Session(pid) | Role::Group(pid) => pid,
            Role::Holder | Role::Courier => {
                next += 1;
                next
            }
        };
        let pids = schedule.processes.iter().map(|process| process.role).map(pid).collect();
        Self { places, schedule, kernel: Kernel::with_init(), pids, depth_first }
    }

    fn run(mut self) -> Kernel {
        let mut waiting = self.births(OUTSIDE, &self.schedule.processes[OUTSIDE].after);
        while !waiting.is_empty() {
            let at = if self.depth_first { waiting.len() - 1 } else { 0 };
            let process = waiting.remove(at);
            waiting.extend(self.lead(process));
        }
        let processes = &self.schedule.processes;
        for (process, &pid) in processes.iter().zip(&self.pids) {
            if let Role::Task(index) = process.role {
                let pgid = self.places[index].pgid;
                if self.kernel.tasks[&pid].pgid != pgid {
                    assert!(self.kernel.setpgid(pid, pgid), "task {pid} joins group {pgid}");
                }
            }
        }
        for (process, &pid) in processes.iter().zip(&self.pids) {
            if matches!(process.role, Role::Session(_) | Role::Group(_) | Role::Holder) {
                self.kernel.exit(pid);
                self.kernel.reap(pid);
            }
        }
        self.kernel
    }

    /// What a process does until it is where a leader has to be; whom it forked.
    fn lead(&mut self, process: usize) -> Vec<usize> {
        let schedule = self.schedule;
        let (own, pid) = (&schedule.processes[process], self.pids[process]);
        self.kernel.tasks.get_mut(&pid).unwrap().subreaper = own.reaper;
        let mut born = self.births(process, &own.before);
        match own.role {
            Role::Task(index) if self.places[index].sid == pid => assert!(self.kernel.setsid(pid)),
            Role::Task(index) if self.places[index].pgid == pid || own.moves_on => {
                assert!(self.kernel.setpgid(pid, pid));
            }
            Role::Session(_) => assert!(self.kernel.setsid(pid)),
            Role::Group(_) => assert!(self.kernel.setpgid(pid, pid)),
            Role::Task(_) | Role::Cloned(_) | Role::Holder | Role::Courier | Role::Outside => {}
        }
        born.extend(self.births(process, &own.after));
        if own.role == Role::Courier {
            self.kernel.exit(pid);
            self.kernel.reap(pid);
        }
        born
    }

    fn births(&mut self, process: usize, births: &[Birth]) -> Vec<usize> {
        for birth in births {
            self.kernel.fork(self.pids[process], self.pids[birth.process], birth.sibling);
        }
        births.iter().map(|birth| birth.process).collect()
    }
}

fn check(places: &[Place], schedule: &Schedule) {
    for depth_first in [false, true] {
        let kernel = Restore::new(places, schedule, depth_first).run();
        let mut after = kernel.tree(places[0].pid);
        let mut before = places.to_vec();
        before[0].ppid = INIT;
        after.sort_by_key(|place| place.pid);
        before.sort_by_key(|place| place.pid);
        assert_eq!(after, before, "{schedule:#?}");
        assert_eq!(kernel.tasks.len(), before.len() + 1);
    }
}

/// One step of a history; numbers pick among the living.
#[derive(Clone, Debug)]
enum Step {
    Fork(usize),
    Setsid(usize),
    OwnGroup(usize),
    JoinGroup(usize, usize),
    Exit(usize, bool),
    Subreaper(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0usize..64;
    prop_oneof![
        6 => which.clone().prop_map(Step::Fork),
        2 => which.clone().prop_map(Step::Setsid),
        2 => which.clone().prop_map(Step::OwnGroup),
        2 => (which.clone(), which.clone()).prop_map(|(a, b)| Step::JoinGroup(a, b)),
        3 => (which.clone(), any::<bool>()).prop_map(|(a, b)| Step::Exit(a, b)),
        1 => which.prop_map(Step::Subreaper),
    ]
}

/// Plays a history. The root is there from the start, forked by a process that may be gone.
fn play(steps: &[Step], daemon: bool, root_reaps: bool) -> Kernel {
    let mut kernel = Kernel::with_init();
    if daemon {
        kernel.fork(INIT, 99, false);
        kernel.setsid(99);
        kernel.fork(99, ROOT, false);
        kernel.exit(99);
        kernel.reap(99);
    } else {
        kernel.fork(INIT, ROOT, false);
        kernel.setsid(ROOT);
    }
    kernel.tasks.get_mut(&ROOT).unwrap().subreaper = root_reaps;
    let mut next = ROOT;
    for step in steps {
        let living: Vec<Pid> =
            kernel.tree(ROOT).iter().map(|place| place.pid).filter(|pid| !kernel.tasks[pid].zombie).collect();
        let pick = |number: usize| living[number % living.len()];
        match *step {
            Step::Fork(number) => {
                next += 1;
                kernel.fork(pick(number), next, false);
            }
            Step::Setsid(number) => drop(kernel.setsid(pick(number))),
            Step::OwnGroup(number) => drop(kernel.setpgid(pick(number), pick(number))),
            Step::JoinGroup(number, other) => {
                let pgid = kernel.tasks[&pick(other)].pgid;
                kernel.setpgid(pick(number), pgid);
            }
            Step::Exit(number, reaped) => {
                let pid = pick(number);
                if pid != ROOT {
                    kernel.exit(pid);
                    if reaped {
                        kernel.reap(pid);
                    }
                }
            }
            Step::Subreaper(number) => kernel.tasks.get_mut(&pick(number)).unwrap().subreaper = true,
        }
    }
    kernel
}

/// Whether a session or group of the tree has members outside of it, which a dump refuses.
fn reaches_out(kernel: &Kernel, places: &[Place]) -> bool {
    kernel.tasks.iter().any(|(pid, task)| {
        places.iter().all(|place| place.pid != *pid)
            && places.iter().any(|place| place.sid == task.sid || place.pgid == task.pgid)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a schedule says, the kernel lets it do, and it comes out as it was.
    #[test]
    fn a_schedule_makes_the_tree_again(
        steps in prop::collection::vec(step(), 0..60), daemon: bool, root_reaps: bool,
    ) {
        let kernel = play(&steps, daemon, root_reaps);
        let places = kernel.tree(ROOT);
        if let Ok(schedule) = schedule(&places, None) {
            if !reaches_out(&kernel, &places) {
                check(&places, &schedule);
            }
        }
    }

    /// Trees in which at most the root takes in orphans, and does so all along, are always possible.
    #[test]
    fn no_common_tree_is_refused(
        steps in prop::collection::vec(step(), 0..60), daemon: bool, root_reaps: bool,
    ) {
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Subreaper(_))).collect();
        let kernel = play(&steps, daemon, root_reaps);
        let places = kernel.tree(ROOT);
        if !reaches_out(&kernel, &places) {
            let schedule = schedule(&places, None);
            prop_assert!(schedule.is_ok(), "{schedule:?} {places:?}");
        }
    }

    /// Records that no kernel ever had are refused or harmless, and end.
    #[test]
    fn nonsense_ends(numbers in prop::collection::vec((1..12i32, 1..12i32, 1..12i32), 1..12)) {
        let places: Vec<Place> = (1i32..).zip(&numbers)
            .map(|(pid, &(parent, pgid, sid))| Place { pid, ppid: parent % pid, pgid, sid, cloned: false })
            .collect();
        let job = ShellJob { sid: numbers[0].0, pgid: numbers[0].1 };
        drop((schedule(&places, None), schedule(&places, Some(job))));
    }
}

fn place(pid: Pid, ppid: Pid, pgid: Pid, sid: Pid) -> Place {
    Place { pid, ppid, pgid, sid, cloned: false }
}

/// A schedule that has to be there, and does what it says; its helpers.
fn helpers(places: &[Place]) -> Vec<Role> {
    let schedule = schedule(places, None).unwrap();
    check(places, &schedule);
    schedule
        .processes
        .iter()
        .map(|process| process.role)
        .filter(|role| !matches!(role, Role::Task(_)))
        .collect()
}

#[test]
fn an_ordinary_tree_needs_nobody_else() {
    let places = [place(10, 1, 10, 10), place(11, 10, 11, 10), place(12, 11, 11, 10), place(13, 10, 13, 13)];
    assert_eq!(helpers(&places), [Role::Outside]);
}

#[test]
fn a_daemon_has_a_dead_leader() {
    assert_eq!(helpers(&[place(10, 1, 9, 9)]), [Role::Outside, Role::Session(9)]);
    // A pipeline whose first program has ended.
    let job = [place(10, 1, 10, 10), place(12, 10, 11, 10), place(13, 10, 11, 10)];
    assert_eq!(helpers(&job), [Role::Outside, Role::Group(11)]);
}

#[test]
fn children_older_than_the_session_of_their_parent() {
    let places = [place(10, 1, 10, 10), place(11, 10, 11, 11), place(12, 11, 10, 10), place(13, 11, 11, 11)];
    assert_eq!(helpers(&places), [Role::Outside]);
    let whole = [place(10, 1, 10, 10), place(11, 10, 11, 11), place(12, 11, 12, 12), place(13, 12, 10, 10)];
    assert_eq!(helpers(&whole), [Role::Outside]);
}

#[test]
fn orphans_come_by_courier() {
    // 10 takes in orphans; 12 leads a session below 11, and 13 was forked in it.
    let places = [place(10, 1, 10, 10), place(11, 10, 10, 10), place(12, 11, 12, 12), place(13, 10, 12, 12)];
    assert_eq!(helpers(&places), [Role::Outside, Role::Courier]);
    // A leader that is a sibling forks them itself.
    let sibling = [place(10, 1, 10, 10), place(12, 10, 12, 12), place(13, 10, 12, 12)];
    assert_eq!(helpers(&sibling), [Role::Outside]);
    // Two orphans of a dead session at different depths.
    let two = [place(10, 1, 10, 10), place(11, 10, 10, 10), place(12, 11, 12, 9), place(13, 10, 13, 9)];
    assert_eq!(helpers(&two), [Role::Outside, Role::Session(9), Role::Courier]);
}

#[test]
fn a_leader_may_have_left_its_group() {
    let places = [place(10, 1, 10, 10), place(11, 10, 10, 10), place(12, 10, 11, 10)];
    assert_eq!(helpers(&places), [Role::Outside, Role::Holder]);
    // Two in each other's.
    let crossed = [place(10, 1, 10, 10), place(11, 10, 12, 10), place(12, 10, 11, 10)];
    assert_eq!(helpers(&crossed), [Role::Outside, Role::Holder, Role::Holder]);
}

#[test]
fn a_shell_job_starts_in_the_session_of_the_shell() {
    let job = Some(ShellJob { sid: 5, pgid: 10 });
    // Its second task left the shell's session after it had forked the third.
    let places = [place(10, 1, 10, 5), place(11, 10, 11, 11), place(12, 11, 10, 5)];
    assert!(schedule(&places, job).is_ok());
    // The shell's group is not the job's.
    let group = [place(10, 1, 10, 5), place(11, 10, 5, 5)];
    assert_eq!(schedule(&group, job), Err(vec![(1, Why::Group)]));
}

#[test]
fn what_cannot_be_is_named() {
    // 12 is in the session of 13, which is in another branch, and 11 never left it.
    let places = [place(10, 1, 10, 10), place(11, 10, 10, 10), place(12, 11, 13, 13), place(13, 10, 13, 13)];
    assert_eq!(schedule(&places, None), Err(vec![(2, Why::Session)]));
    // A group in two sessions.
    let places = [place(10, 1, 10, 10), place(11, 10, 11, 11), place(12, 10, 11, 10)];
    assert_eq!(schedule(&places, None), Err(vec![(2, Why::Group)]));
    // Orphans for 10 and for 11, from below both.
    let places = [
        place(10, 1, 10, 10),
        place(11, 10, 10, 10),
        place(12, 11, 10, 10),
        place(13, 12, 13, 13),
        place(14, 10, 13, 13),
        place(15, 11, 13, 13),
    ];
    assert_eq!(schedule(&places, None), Err(vec![(4, Why::Reapers)]));
}

#[test]
fn nobody_forks_or_waits_for_a_cloned_task() {
    let mut places = [
        Place { pid: 1, ppid: 9, pgid: 1, sid: 1, cloned: false },
        Place { pid: 2, ppid: 1, pgid: 2, sid: 1, cloned: true },
        Place { pid: 3, ppid: 1, pgid: 2, sid: 1, cloned: false },
        Place { pid: 4, ppid: 2, pgid: 7, sid: 7, cloned: true },
    ];
    let found = schedule(&places, None).unwrap();
    let born = |of: usize| -> Vec<usize> {
        let Process { before, after, .. } = &found.processes[of];
        before.iter().chain(after).map(|birth| birth.process).collect()
    };
    assert_eq!(found.processes.len(), 5, "{found:?}");
    assert_eq!((0..5).flat_map(born).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(found.leaders(), 2);
    // A forked task in the session of a cloned one has nobody to be born of.
    places[1].sid = 2;
    (places[2].pgid, places[2].sid) = (2, 2);
    assert_eq!(schedule(&places, None), Err(vec![(2, Why::Session)]));
}
