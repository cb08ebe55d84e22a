//! Sessions and process groups: which trees can be made again by fork, setsid and setpgid alone.

use super::Refuse;
use crate::refusal::Refusals;
use images::Pid;
use images::task::ShellJob;
use std::collections::HashMap;

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pid: Pid,
    pub(crate) ppid: Pid,
    pub(crate) pgid: Pid,
    pub(crate) sid: Pid,
    /// Device number of the controlling terminal, 0 for none.
    pub(crate) tty: u32,
    pub(crate) exit_signal: i32,
    pub(crate) name: String,
}

const SHELL_JOB: &str = "use --shell-job to restore it into the session and terminal of crr restore";

/// Checks all places (root first, parents before children) and tells what the tree borrows from a shell.
pub(crate) fn check(places: &[Place], shell_job: bool, refusals: &mut Refusals) -> Option<ShellJob> {
    let root = places.first()?;
    let outside = root.sid != root.pid;
    let job = (shell_job && outside).then_some(ShellJob { sid: root.sid, pgid: root.pgid });
    let by_pid: HashMap<Pid, &Place> = places.iter().map(|place| (place.pid, place)).collect();
    for place in places {
        let mut refuse = Refuse::new(refusals, place.pid, &place.name);
        let parent = by_pid.get(&place.ppid).filter(|_| place.pid != root.pid);
        check_session(place, parent.copied(), job, &mut refuse);
        check_group(place, &by_pid, job, &mut refuse);
        if place.tty != 0 && job.is_none_or(|job| job.sid != place.sid) {
            let object = format!("controlling terminal {}:{}", place.tty >> 8, place.tty & 0xff);
            match outside && !shell_job {
                true => refuse.with_hint(object, "belongs to a session outside of the tree", SHELL_JOB),
                false => refuse.because(object, "a session with a terminal of its own is not supported"),
            }
        }
        if place.pid != root.pid && place.exit_signal != libc::SIGCHLD {
            let object = format!("exit signal {}", place.exit_signal);
            refuse.because(object, "a child that tells its end by another signal than SIGCHLD");
        }
    }
    job
}

fn check_session(place: &Place, parent: Option<&Place>, job: Option<ShellJob>, refuse: &mut Refuse<'_>) {
    let own = place.sid == place.pid;
    let inherited = parent.is_some_and(|parent| parent.sid == place.sid);
    let shell = parent.is_none() && job.is_some_and(|job| job.sid == place.sid);
    if own || inherited || shell {
        return;
    }
    let object = format!("session {}", place.sid);
    if parent.is_none() {
        refuse.with_hint(object, "led by a task outside of the tree", SHELL_JOB);
    } else {
        refuse
            .because(object, "neither its own nor its parent's (an orphan, or its parent left the session)");
    }
}

fn check_group(place: &Place, by_pid: &HashMap<Pid, &Place>, job: Option<ShellJob>, refuse: &mut Refuse<'_>) {
    let leader = by_pid.get(&place.pgid);
    let led = leader.is_some_and(|leader| leader.pgid == place.pgid && leader.sid == place.sid);
    let shell = job.is_some_and(|job| job.pgid == place.pgid && job.sid == place.sid);
    if led || shell {
        return;
    }
    let object = format!("process group {}", place.pgid);
    if place.ppid != 0 && !by_pid.contains_key(&place.ppid) && job.is_none() {
        refuse.with_hint(object, "led by a task outside of the tree", SHELL_JOB);
    } else {
        refuse.because(object, "its leader is not in the tree, or in another session");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pid: Pid, ppid: Pid, pgid: Pid, sid: Pid) -> Place {
        Place { pid, ppid, pgid, sid, tty: 0, exit_signal: libc::SIGCHLD, name: "a".into() }
    }

    fn reasons(places: &[Place], shell_job: bool) -> (usize, Option<ShellJob>) {
        let mut refusals = Refusals::default();
        let job = check(places, shell_job, &mut refusals);
        (refusals.finish("dump").map_or_else(|refused| refused.refusals.len(), |()| 0), job)
    }

    #[test]
    fn a_session_with_groups_is_ordinary() {
        let tree =
            [place(10, 1, 10, 10), place(11, 10, 11, 10), place(12, 11, 11, 10), place(13, 10, 13, 13)];
        assert_eq!(reasons(&tree, false), (0, None));
    }

    #[test]
    fn a_shell_job_needs_to_be_asked_for() {
        let tree = [place(10, 5, 10, 5), place(11, 10, 10, 5)];
        assert_eq!(reasons(&tree, false).0, 1);
        assert_eq!(reasons(&tree, true), (0, Some(ShellJob { sid: 5, pgid: 10 })));
        let in_pipeline = [place(10, 5, 9, 5), place(11, 10, 9, 5)];
        assert_eq!(reasons(&in_pipeline, true), (0, Some(ShellJob { sid: 5, pgid: 9 })));
    }

    #[test]
    fn orphans_strangers_and_odd_signals_are_refused() {
        let orphan = [place(10, 1, 10, 10), place(12, 10, 12, 11)];
        assert_eq!(reasons(&orphan, false).0, 1);
        let leaderless = [place(10, 1, 10, 10), place(12, 10, 77, 10)];
        assert_eq!(reasons(&leaderless, false).0, 1);
        let mut odd = [place(10, 1, 10, 10), place(12, 10, 10, 10)];
        odd[1].exit_signal = 0;
        odd[0].tty = 0x8800;
        assert_eq!(reasons(&odd, true).0, 2);
    }
}
