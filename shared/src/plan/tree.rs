//! Who forks whom, and when, so that every task gets its old parent, session and process group.
//!
//! fork(2) copies session and group. Only setsid(2) changes a session, to one that the caller leads; setpgid(2) moves a
//! task to its own group or to one that is there in its session. So a task that does not lead its session was born in
//! it, by a process that may be gone or may have left the session since. What is missing is made again for a moment:
//!
//! - a child in the session that its parent was in before its own setsid(2) is forked before that;
//! - a dead leader of a session or a group comes back under its pid, leads, and ends when everyone has come;
//! - where neither the parent nor a leader below the parent can fork a task, a courier does: forked in the session, it
//!   forks the task and ends, and the task goes to the nearest ancestor that takes in orphans (a child subreaper), which
//!   its parent is for that time.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use images::Pid;
use images::task::ShellJob;

/// Where one task stands, living or dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its pid.
    pub pid: Pid,
    /// Its parent; for the root, a task outside of the tree.
    pub ppid: Pid,
    /// Its process group.
    pub pgid: Pid,
    /// Its session.
    pub sid: Pid,
    /// Nobody forks it: the program that restores another task clones it ([`super::family`]), and all below it.
    pub cloned: bool,
}

/// What a process of a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The parent of the root: the coordinator, or who stands in for it.
    Outside,
    /// A task, by its index.
    Task(usize),
    /// A task that is cloned, by its index: its place is taken, and it does nothing that is said here.
    Cloned(usize),
    /// Leads a session and its first group under the pid of a dead task, until everyone is in their groups.
    Session(Pid),
    /// Leads a group in its parent's session, likewise.
    Group(Pid),
    /// Stays in the group that its parent leads for others only, so that the group is there when they come.
    Holder,
    /// Forks one task and ends at once.
    Courier,
}

/// One fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// Index of the new process.
    pub process: usize,
    /// It becomes a child of the forking process's parent (CLONE_PARENT).
    pub sibling: bool,
}

/// A process, by what it does in this order: take in orphans, fork, lead its session or group, fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// What it is.
    pub role: Role,
    /// Index of its parent in the end.
    pub parent: usize,
    /// Takes in orphans until all are there.
    pub reaper: bool,
    /// Forks before it starts its own session.
    pub before: Vec<Birth>,
    /// Forks after that.
    pub after: Vec<Birth>,
    /// A task that starts a group of its own for others, and goes to another itself.
    pub moves_on: bool,
}

/// Everything that is forked. The outside is process 0, the task with index n is process n + 1, helpers follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// All processes.
    pub processes: Vec<Process>,
}

/// Why a task cannot be put where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Nobody who can be its parent's child can be in its session.
    Session,
    /// Two tasks take in orphans, one below the other, while orphans come to both.
    Reapers,
    /// Its group has members in another session, or its leader is in another.
    Group,
}

/// The outside, as a process.
pub const OUTSIDE: usize = 0;

/// The process of a task.
#[must_use]
pub const fn of_task(index: usize) -> usize {
    index + 1
}

impl Schedule {
    /// Pids of dead leaders, which have to be free as those of the tasks.
    pub fn dead_leaders(&self) -> impl Iterator<Item = Pid> + '_ {
        self.processes.iter().filter_map(|process| match process.role {
            Role::Session(pid) | Role::Group(pid) => Some(pid),
            Role::Outside | Role::Task(_) | Role::Cloned(_) | Role::Holder | Role::Courier => None,
        })
    }

    /// How many processes may lead: tasks, living or dead, but for cloned ones.
    #[must_use]
    pub fn leaders(&self) -> usize {
        let leads = |role| matches!(role, Role::Task(_) | Role::Session(_) | Role::Group(_));
        self.processes.iter().filter(|process| leads(process.role)).count()
    }
}

/// Finds a schedule. `places` has the root first and parents before their children; with a `job`, the outside is in
/// its session, and its group is there.
///
/// # Errors
/// Every task that no schedule puts in its place, by index.
pub fn schedule(places: &[Place], job: Option<ShellJob>) -> Result<Schedule, Vec<(usize, Why)>> {
    // Nothing tells which of the two a task owes its session to, but rarely do both lead to the same tree.
    by(Preference::Birth, places, job)
        .or_else(|obstacles| by(Preference::Courier, places, job).map_err(|_| obstacles))
}

/// What a task in a dead leader's session is thought to owe it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preference {
    /// Its parent was in that session before its own.
    Birth,
    /// It was forked further below.
    Courier,
}

fn by(
    preference: Preference,
    places: &[Place],
    job: Option<ShellJob>,
) -> Result<Schedule, Vec<(usize, Why)>> {
    let mut planner = Planner::new(preference, places, job);
    for (sid, strays) in planner.strays() {
        planner.bring_home(sid, strays);
    }
    planner.fork_the_rest();
    planner.groups();
    planner.check_reapers();
    planner.check_births();
    if planner.obstacles.is_empty() {
        Ok(Schedule { processes: planner.processes })
    } else {
        Err(planner.obstacles.into_iter().collect())
    }
}

struct Planner<'a> {
    preference: Preference,
    places: &'a [Place],
    job: Option<ShellJob>,
    by_pid: BTreeMap<Pid, usize>,
    depth: Vec<usize>,
    processes: Vec<Process>,
    /// Session in which a leader has to be born, where it matters.
    birth: BTreeMap<usize, Pid>,
    /// Who is forked by now.
    born: BTreeSet<usize>,
    obstacles: BTreeSet<(usize, Why)>,
}

impl<'a> Planner<'a> {
    fn new(preference: Preference, places: &'a [Place], job: Option<ShellJob>) -> Self {
        let process = |role, parent| Process {
            role,
            parent,
            reaper: false,
            before: Vec::new(),
            after: Vec::new(),
            moves_on: false,
        };
        let mut processes = vec![process(Role::Outside, OUTSIDE)];
        let mut by_pid = BTreeMap::new();
        let mut depth = vec![0];
        for (index, place) in places.iter().enumerate() {
            let parent =
                if index == 0 { OUTSIDE } else { by_pid.get(&place.ppid).copied().unwrap_or(OUTSIDE) };
            let role = if place.cloned { Role::Cloned(index) } else { Role::Task(index) };
            processes.push(process(role, parent));
            depth.push(depth[parent] + 1);
            by_pid.insert(place.pid, of_task(index));
        }
        let (birth, born, obstacles) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { preference, places, job, by_pid, depth, processes, birth, born, obstacles }
    }

    /// The session that a task or the outside is in.
    fn session(&self, process: usize) -> Pid {
        match self.processes[process].role {
            Role::Task(index) | Role::Cloned(index) => self.places[index].sid,
            _ => self.job.map_or(0, |job| job.sid),
        }
    }

    /// The tasks that are forked.
    fn forked(&self) -> impl Iterator<Item = usize> + use<> {
        let forked = self.places.iter().enumerate().filter(|(_, place)| !place.cloned);
        let all: Vec<usize> = forked.map(|(index, _)| of_task(index)).collect();
        all.into_iter()
    }

    fn leads_session(&self, process: usize) -> bool {
        matches!(self.processes[process].role, Role::Task(index) if self.places[index].sid == self.places[index].pid)
    }

    fn parent(&self, process: usize) -> usize {
        self.processes[process].parent
    }

    /// Whether `above` is an ancestor of `below` or the same.
    fn is_above(&self, above: usize, below: usize) -> bool {
        let mut at = below;
        while self.depth[at] > self.depth[above] {
            at = self.parent(at);
        }
        at == above
    }

    fn obstacle(&mut self, process: usize, why: Why) {
        // Named once; what follows from it is not.
        self.born.insert(process);
        if let Role::Task(index) = self.processes[process].role {
            self.obstacles.insert((index, why));
        }
    }

    /// Tasks that were born in a session which their parent is not in, by session.
    fn strays(&self) -> BTreeMap<Pid, Vec<usize>> {
        let mut strays: BTreeMap<Pid, Vec<usize>> = BTreeMap::new();
        for task in self.forked() {
            let sid = self.session(task);
            if !self.leads_session(task) && self.session(self.parent(task)) != sid {
                strays.entry(sid).or_default().push(task);
            }
        }
        strays
    }

    /// Finds who forks the strays of a session.
    fn bring_home(&mut self, sid: Pid, strays: Vec<usize>) {
        if self.job.is_some_and(|job| job.sid == sid) {
            self.bring_to(OUTSIDE, strays);
        } else if let Some(&leader) = self.by_pid.get(&sid) {
            self.bring_to(leader, strays);
        } else {
            self.revive(sid, strays);
        }
    }

    /// For a session whose leader is in the tree.
    fn bring_to(&mut self, leader: usize, mut strays: Vec<usize>) {
        let sid = self.session(leader);
        while let Some(stray) = strays.pop() {
            let parent = self.parent(stray);
            if !self.leads_session(leader) && leader != OUTSIDE {
                self.obstacle(stray, Why::Session);
            } else if self.is_above(parent, leader) && !self.is_above(stray, leader) {
                self.fork_from(leader, stray);
            } else {
                self.lift(sid, stray, &mut strays);
            }
        }
    }

    /// Has a task forked by its parent before that starts its own session; the parent is to be born in this one then.
    fn lift(&mut self, sid: Pid, stray: usize, strays: &mut Vec<usize>) {
        let parent = self.parent(stray);
        let birth = self.birth.get(&parent).copied();
        if !self.leads_session(parent) || birth.is_some_and(|birth| birth != sid) {
            return self.obstacle(stray, Why::Session);
        }
        self.processes[parent].before.push(Birth { process: stray, sibling: false });
        self.born.insert(stray);
        if birth.is_none() {
            self.birth.insert(parent, sid);
            if self.session(self.parent(parent)) != sid {
                strays.push(parent);
            }
        }
    }

    /// For a session whose leader is dead: it comes back as a child of the lowest parent of all strays, if that is below
    /// all other parents and not below a stray. A task that was forked before its parent left the session is none.
    fn revive(&mut self, sid: Pid, mut strays: Vec<usize>) {
        loop {
            let Some(lowest) = strays.iter().map(|&s| self.parent(s)).max_by_key(|&p| self.depth[p]) else {
                return;
            };
            let suits =
                |&stray: &usize| self.is_above(self.parent(stray), lowest) && !self.is_above(stray, lowest);
            let together = strays.iter().all(|&stray| self.parent(stray) == lowest);
            let liftable = |&stray: &usize| {
                let parent = self.parent(stray);
                let birth = self.birth.get(&parent);
                self.leads_session(parent) && birth.is_none_or(|&birth| birth == sid)
            };
            let found = (0..strays.len()).filter(|&at| liftable(&strays[at]));
            // The lowest first.
            let found = found.max_by_key(|&at| self.depth[self.parent(strays[at])]);
            let lifts = self.preference == Preference::Birth && !together && found.is_some();
            if strays.iter().all(suits) && !lifts {
                let leader = self.helper(Role::Session(sid), lowest);
                for stray in strays {
                    self.fork_from(leader, stray);
                }
                return;
            }
            let Some(at) = found else {
                strays.into_iter().for_each(|stray| self.obstacle(stray, Why::Session));
                return;
            };
            let stray = strays.remove(at);
            self.lift(sid, stray, &mut strays);
        }
    }

    /// Adds a temporary process that its parent forks.
    fn helper(&mut self, role: Role, parent: usize) -> usize {
        let helper = self.processes.len();
        let (before, after) = (Vec::new(), Vec::new());
        self.processes.push(Process { role, parent, reaper: false, before, after, moves_on: false });
        self.depth.push(self.depth[parent] + 1);
        self.processes[parent].after.push(Birth { process: helper, sibling: false });
        helper
    }

    /// Has a task forked in the session of a leader below the task's parent.
    fn fork_from(&mut self, leader: usize, stray: usize) {
        let parent = self.parent(stray);
        self.born.insert(stray);
        if self.parent(leader) == parent {
            self.processes[leader].after.push(Birth { process: stray, sibling: true });
        } else {
            let courier = self.helper(Role::Courier, leader);
            self.processes[courier].after.push(Birth { process: stray, sibling: false });
            self.processes[parent].reaper = true;
        }
    }

    /// All others are forked by their parents, in the order they stand in.
    fn fork_the_rest(&mut self) {
        for task in self.forked() {
            if self.born.insert(task) {
                let parent = self.parent(task);
                self.processes[parent].after.push(Birth { process: task, sibling: false });
            }
        }
    }

    /// Finds a leader for each group.
    fn groups(&mut self) {
        let mut members: BTreeMap<Pid, Vec<usize>> = BTreeMap::new();
        for task in self.forked() {
            members.entry(self.places[task - of_task(0)].pgid).or_default().push(task);
        }
        for (pgid, members) in members {
            let sid = self.session(members[0]);
            let leader = self.by_pid.get(&pgid).copied();
            if leader.is_some_and(|leader| matches!(self.processes[leader].role, Role::Cloned(_))) {
                // It is joined by an op, when that task is there.
                continue;
            }
            let lent = self.job.is_some_and(|job| job.pgid == pgid && job.sid == sid);
            let elsewhere =
                |&task: &usize| self.session(task) != sid || (self.leads_session(task) && sid != pgid);
            if let Some(task) = members.iter().copied().chain(leader).find(elsewhere) {
                self.obstacle(task, Why::Group);
                continue;
            }
            match leader {
                Some(leader) if !members.contains(&leader) => {
                    self.processes[leader].moves_on = true;
                    self.helper(Role::Holder, leader);
                }
                None if !lent && pgid != sid => {
                    self.helper(Role::Group(pgid), members[0]);
                }
                // The shell's own group, which is not the job's.
                None if !lent && self.job.is_some_and(|job| job.sid == sid) => {
                    self.obstacle(members[0], Why::Group);
                }
                // It leads its own; it is the job's; or the dead leader of the session leads it.
                Some(_) | None => {}
            }
        }
    }

    /// An orphan goes to the nearest ancestor that takes in orphans.
    fn check_reapers(&mut self) {
        for courier in 0..self.processes.len() {
            let (Role::Courier, [birth]) = (self.processes[courier].role, &*self.processes[courier].after)
            else {
                continue;
            };
            let (stray, wanted) = (birth.process, self.parent(birth.process));
            let mut nearest = self.parent(courier);
            while nearest != OUTSIDE && !self.processes[nearest].reaper {
                nearest = self.parent(nearest);
            }
            if nearest != wanted {
                self.obstacle(stray, Why::Reapers);
            }
        }
    }

    /// Each process has to be forked by one that is forked before it.
    fn check_births(&mut self) {
        let mut reached = BTreeSet::from([OUTSIDE]);
        let mut next = vec![OUTSIDE];
        while let Some(process) = next.pop() {
            let Process { before, after, .. } = &self.processes[process];
            for birth in before.iter().chain(after) {
                if reached.insert(birth.process) {
                    next.push(birth.process);
                }
            }
        }
        for process in 0..self.processes.len() {
            // Without a forker: it waits for one that waits for it, or for one that was named already.
            let is_forked = !matches!(self.processes[process].role, Role::Cloned(_));
            if self.obstacles.is_empty() && is_forked && !reached.contains(&process) {
                self.obstacle(process, Why::Session);
            }
        }
    }
}
