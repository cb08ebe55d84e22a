//! Sessions, process groups and parents: which trees can be made again.

use super::Refuse;
use crate::parallel;
use crate::proc;
use crate::proc::tasks::{self, comm_of};
use crate::refusal::{Refusal, Refusals};
use anyhow::{Result, bail};
use images::Pid;
use images::task::{ShellJob, Tree};
use shared::plan::family::{self, Making};
use shared::plan::tree::{self, Place, Schedule, Why};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Where a task stands, and what else decides about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) place: Place,
    /// Device number of the controlling terminal, 0 for none.
    pub(crate) tty: u32,
    pub(crate) name: String,
}

const SHELL_JOB: &str = "use --shell-job to restore it into the session and terminal of crr restore";

/// Checks a whole tree (root first, parents before children) and tells what it borrows from a shell.
pub(crate) fn check(
    tree: &[Standing],
    shell_job: bool,
    strangers: &Strangers,
    refusals: &mut Refusals,
) -> Option<ShellJob> {
    let root = tree.first()?;
    let alone = tree.iter().any(|task| task.place.pid == root.place.sid)
        || (!strangers.sessions.contains_key(&root.place.sid) && !strangers.lead(root.place.sid));
    let job = (shell_job && !alone).then_some(ShellJob { sid: root.place.sid, pgid: root.place.pgid });
    if !alone && !shell_job {
        let object = format!("session {}", root.place.sid);
        let reason = match strangers.sessions.get(&root.place.sid) {
            _ if strangers.lead(root.place.sid) => "led by a task outside of the tree".to_owned(),
            member => format!("also has tasks outside of the tree ({})", named(member)),
        };
        refusals.task((root.place.pid, &root.name), object, reason, Some(SHELL_JOB));
        return job;
    }
    strangers.refuse(tree, job, refusals);
    refuse_impossible(tree, job, refusals);
    job
}

/// Checks the controlling terminals of a tree. `known` are those of which the tree has both ends.
pub(crate) fn check_terminals(
    tree: &[Standing],
    job: Option<ShellJob>,
    known: &[u32],
    strangers: &Strangers,
    refusals: &mut Refusals,
) {
    for task in tree {
        let sid = task.place.sid;
        if task.tty == 0 || job.is_some_and(|job| job.sid == sid) || known.contains(&task.tty) {
            continue;
        }
        let mut refuse = Refuse::new(refusals, task.place.pid, &task.name);
        let object = format!("controlling terminal {}:{}", task.tty >> 8 & 0xfff, task.tty & 0xff);
        if job.is_none() && (strangers.sessions.contains_key(&sid) || strangers.lead(sid)) {
            refuse.with_hint(object, "belongs to a session outside of the tree", SHELL_JOB);
        } else {
            refuse.with_hint(object, "has an end outside of the tree", "dump a tree that has both ends");
        }
    }
}

/// Refuses what no order of forks leads to.
fn refuse_impossible(tree: &[Standing], job: Option<ShellJob>, refusals: &mut Refusals) {
    let places: Vec<Place> = tree.iter().map(|task| task.place).collect();
    let Err(obstacles) = tree::schedule(&places, job) else { return };
    for (index, why) in obstacles {
        let Standing { place, name, .. } = &tree[index];
        let (object, reason) = match why {
            Why::Session => (
                format!("session {}", place.sid),
                "is led by a task that is not above or below its parent, which was never in that session",
            ),
            Why::Reapers => (
                format!("parent {}", place.ppid),
                "is not the only task above its session's leader that was given orphans of it",
            ),
            Why::Group => (format!("process group {}", place.pgid), "has tasks in other sessions"),
        };
        refusals.task((place.pid, name), object, reason, None);
    }
}

fn named(pid: Option<&Pid>) -> String {
    pid.map_or_else(|| "?".to_owned(), |&pid| format!("{pid} {}", comm_of(pid)))
}

/// Tasks outside of the tree: some member of each session and each process group.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    sessions: HashMap<Pid, Pid>,
    groups: HashMap<Pid, Pid>,
    /// By pid, a living thread of each.
    deputies: BTreeMap<Pid, Pid>,
}

impl Strangers {
    /// Looks at all tasks but those of the tree.
    pub(crate) fn look(tree: &HashSet<Pid>) -> Result<Self> {
        let others: Vec<Pid> = tasks::all()?.into_iter().filter(|pid| !tree.contains(pid)).collect();
        // Those that are gone meanwhile hold nothing any more.
        let look = |&pid: &Pid| {
            let of = Some(nix::unistd::Pid::from_raw(pid));
            let ids = nix::unistd::getsid(of).and_then(|sid| Ok((sid, nix::unistd::getpgid(of)?)));
            Ok(ids.ok().map(|(sid, pgid)| (pid, proc::living_thread(pid), sid.as_raw(), pgid.as_raw())))
        };
        let mut strangers = Self::default();
        for (pid, deputy, sid, pgid) in parallel::map(&others, look)?.into_iter().flatten() {
            strangers.deputies.insert(pid, deputy);
            strangers.sessions.entry(sid).or_insert(pid);
            strangers.groups.entry(pgid).or_insert(pid);
        }
        Ok(strangers)
    }

    /// All of them, each with a living thread, by which it is to be looked at.
    pub(crate) fn deputies(&self) -> impl Iterator<Item = (Pid, Pid)> {
        self.deputies.iter().map(|(&pid, &deputy)| (pid, deputy))
    }

    /// Whether one of them has this id, or one outside of the pid namespace: that is 0 here.
    fn lead(&self, pid: Pid) -> bool {
        pid == 0 || self.deputies.contains_key(&pid)
    }

    /// A session or group that others are in too cannot be made again: its id stays taken, and it would be another one.
    fn refuse(&self, tree: &[Standing], job: Option<ShellJob>, refusals: &mut Refusals) {
        const HINT: &str = "end the other task first, or dump a tree that has both";
        let sessions: BTreeMap<Pid, &Standing> =
            tree.iter().rev().map(|task| (task.place.sid, task)).collect();
        let groups: BTreeMap<Pid, &Standing> =
            tree.iter().rev().map(|task| (task.place.pgid, task)).collect();
        let is_jobs = |sid| job.is_some_and(|job| job.sid == sid);
        for (what, ids, others) in
            [("session", sessions, &self.sessions), ("process group", groups, &self.groups)]
        {
            for (id, task) in ids {
                let other = others.get(&id);
                if (other.is_some() || id == 0) && !is_jobs(task.place.sid) {
                    refusals.push(Refusal {
                        task: Some((task.place.pid, task.name.clone())),
                        object: format!("{what} {id}"),
                        reason: format!("also has task {} outside of the tree", named(other)),
                        hint: Some(HINT.to_owned()),
                    });
                }
            }
        }
    }
}

/// Where the tasks of a tree stand, then its zombies.
pub(crate) fn places(tree: &Tree, makings: &[Making]) -> Vec<Place> {
    let kinds: Vec<family::Kind> = tree.tasks.iter().map(family::Kind::of).collect();
    let cloned: Vec<bool> = makings.iter().map(|&making| making != Making::Forked).collect();
    let place = |(task, &cloned): (&images::task::Task, &bool)| Place {
        pid: task.pid,
        ppid: task.ppid,
        pgid: task.pgid,
        sid: task.sid,
        cloned,
    };
    let zombie = |zombie: &images::task::Zombie| Place {
        pid: zombie.pid,
        ppid: zombie.ppid,
        pgid: zombie.pgid,
        sid: zombie.sid,
        cloned: family::strands(&kinds, &cloned, zombie.ppid, zombie.pgid),
    };
    tree.tasks.iter().zip(&cloned).map(place).chain(tree.zombies.iter().map(zombie)).collect()
}

/// Who forks whom to make a dumped tree again.
///
/// # Errors
/// If nobody can, which the dump has ruled out.
pub(crate) fn schedule(dumped: &Tree, makings: &[Making]) -> Result<Schedule> {
    let places = places(dumped, makings);
    match tree::schedule(&places, dumped.shell_job) {
        Ok(schedule) => Ok(schedule),
        Err(obstacles) => {
            let (index, why) = obstacles[0];
            bail!("task {}: no order of forks puts it in its place ({why:?})", places[index].pid)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(pid: Pid, ppid: Pid, pgid: Pid, sid: Pid) -> Standing {
        let place = Place { pid, ppid, pgid, sid, cloned: false };
        Standing { place, tty: 0, name: "a".into() }
    }

    fn strangers(members: &[(Pid, Pid, Pid)]) -> Strangers {
        Strangers {
            deputies: members.iter().map(|&(pid, ..)| (pid, pid)).collect(),
            sessions: members.iter().map(|&(pid, _, sid)| (sid, pid)).collect(),
            groups: members.iter().map(|&(pid, pgid, _)| (pgid, pid)).collect(),
        }
    }

    fn reasons(tree: &[Standing], shell_job: bool, others: &[(Pid, Pid, Pid)]) -> (usize, Option<ShellJob>) {
        let mut refusals = Refusals::default();
        let job = check(tree, shell_job, &strangers(others), &mut refusals);
        (refusals.finish("dump").map_or_else(|refused| refused.refusals.len(), |()| 0), job)
    }

    #[test]
    fn a_session_with_groups_is_ordinary() {
        let tree = [
            standing(10, 1, 10, 10),
            standing(11, 10, 11, 10),
            standing(12, 11, 11, 10),
            standing(13, 10, 13, 13),
        ];
        assert_eq!(reasons(&tree, false, &[]), (0, None));
        // With or without the option: there is no shell.
        assert_eq!(reasons(&tree, true, &[]), (0, None));
    }

    #[test]
    fn a_shell_job_needs_to_be_asked_for() {
        let shell = [(5, 5, 5)];
        let tree = [standing(10, 5, 10, 5), standing(11, 10, 10, 5)];
        assert_eq!(reasons(&tree, false, &shell).0, 1);
        assert_eq!(reasons(&tree, true, &shell), (0, Some(ShellJob { sid: 5, pgid: 10 })));
        let in_pipeline = [standing(10, 5, 9, 5), standing(11, 10, 9, 5)];
        assert_eq!(reasons(&in_pipeline, true, &shell), (0, Some(ShellJob { sid: 5, pgid: 9 })));
    }

    #[test]
    fn a_dead_leader_is_no_shell_unless_others_are_in_its_session() {
        let daemon = [standing(10, 1, 9, 9)];
        assert_eq!(reasons(&daemon, false, &[]), (0, None));
        assert_eq!(reasons(&daemon, true, &[]), (0, None));
        let twin = [(12, 12, 9)];
        assert_eq!(reasons(&daemon, false, &twin).0, 1);
        assert_eq!(reasons(&daemon, true, &twin), (0, Some(ShellJob { sid: 9, pgid: 9 })));
    }

    #[test]
    fn sessions_and_groups_do_not_reach_out_of_the_tree() {
        let tree = [standing(10, 1, 10, 10), standing(11, 10, 11, 10)];
        assert_eq!(reasons(&tree, false, &[(20, 20, 10)]).0, 1);
        assert_eq!(reasons(&tree, false, &[(20, 11, 10)]).0, 2);
        assert_eq!(reasons(&tree, false, &[(20, 20, 20)]).0, 0);
    }

    #[test]
    fn the_impossible_is_refused() {
        let tree = [
            standing(10, 1, 10, 10),
            standing(11, 10, 10, 10),
            standing(12, 11, 13, 13),
            standing(13, 10, 13, 13),
        ];
        assert_eq!(reasons(&tree, false, &[]).0, 1);
    }
    #[test]
    fn terminals_are_of_the_tree_or_of_the_shell() {
        let shell = [(5, 5, 5)];
        let reasons = |tree: &[Standing], job, known: &[u32], others: &[(Pid, Pid, Pid)]| {
            let mut refusals = Refusals::default();
            check_terminals(tree, job, known, &strangers(others), &mut refusals);
            refusals.finish("dump").map_or_else(|refused| refused.to_string(), |()| String::new())
        };
        let mut own = [standing(10, 1, 10, 10), standing(12, 10, 10, 10)];
        own[0].tty = 0x8800;
        assert!(reasons(&own, None, &[], &[]).contains("an end outside"));
        assert_eq!(reasons(&own, None, &[0x8800], &[]), "");
        let mut job = [standing(10, 5, 10, 5)];
        job[0].tty = 0x8801;
        assert!(reasons(&job, None, &[0x8800], &shell).contains("--shell-job"));
        assert_eq!(reasons(&job, Some(ShellJob { sid: 5, pgid: 10 }), &[], &shell), "");
    }
}
