//! Forking by schedule ([`shared::plan::tree`]): what each process of a restore does until everyone has the right
//! parent, session and process group.
//!
//! Two gatherings keep the order, and nobody holds up a fork by waiting: all leaders lead; all are in their groups. Only
//! then may the helpers go that hold a group: it is there to be joined as long as it has a member.

use super::Restore;
use super::child::{self, Outcome, Step};
use super::prepare::Preparation;
use crate::fault::{self, Point};
use crate::sys::{process, tty, wait};
use images::Pid;
use images::task::{End, Zombie};
use images::terminal::Control;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use shared::plan::tree::{Birth, OUTSIDE, Process, Role};
use shared::proto::Gathering;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What a process knows of those before it.
#[derive(Debug)]
pub(super) struct Origin<'a> {
    /// The parent of the root.
    pub(super) outside: Pid,
    /// Socket of the process that forked it, which it must not keep open.
    pub(super) socket: Option<BorrowedFd<'a>>,
    /// A courier forked it and waits for a word from it.
    courier: Option<BorrowedFd<'a>>,
    /// The coordinator forked it, or who stands in for that; all others have the signal actions of one like themselves.
    first: bool,
}

impl<'a> Origin<'a> {
    /// For the root.
    pub(super) fn outside(pid: Pid) -> Self {
        Self { outside: pid, socket: None, courier: None, first: true }
    }
}

/// Who a process is, while it forks and gathers.
pub(super) struct Kin<'a> {
    restore: &'a Restore<'a>,
    index: usize,
    process: &'a Process,
    outside: Pid,
}

impl<'a> Kin<'a> {
    /// The process with this index, at its first steps: it waits for a courier's end, and ties its life to its parent's.
    pub(super) fn arrive(restore: &'a Restore<'a>, index: usize, origin: &Origin<'_>) -> Outcome<Self> {
        let process = &restore.preparation.schedule.processes[index];
        let this = Self { restore, index, process, outside: origin.outside };
        let parent =
            if process.parent == OUTSIDE { origin.outside } else { restore.preparation.pids[process.parent] };
        if let Some(courier) = origin.courier {
            await_adoption(courier)?;
        }
        tie(parent)?;
        if origin.first {
            process::default_signal_actions();
        }
        Ok(this)
    }

    /// Forks and leads, in the order that the schedule gives. `socket` is its own.
    pub(super) fn lead(&self, socket: Option<BorrowedFd<'_>>) -> Outcome {
        if self.process.reaper {
            prctl::set_child_subreaper(true).map_err(|errno| (Step::Reaper, errno, 0))?;
        }
        let origin = || Origin { outside: self.outside, socket, courier: None, first: false };
        fork_all(self.restore, &self.process.before, origin)?;
        let own = nix::unistd::Pid::from_raw(0);
        let (session, group) = match self.process.role {
            Role::Task(index) => {
                let place = self.restore.preparation.places[index];
                (place.sid == place.pid, place.pgid == place.pid || self.process.moves_on)
            }
            Role::Session(_) => (true, false),
            Role::Group(_) => (false, true),
            Role::Holder | Role::Courier | Role::Outside | Role::Cloned(_) => (false, false),
        };
        if session {
            nix::unistd::setsid().map_err(|errno| (Step::Session, errno, 0))?;
            // Whoever is forked from here on has it too.
            if let Some((_, terminal)) = self.terminal() {
                tty::take_control(terminal).map_err(|errno| (Step::Terminal, errno, 0))?;
            }
        } else if group {
            nix::unistd::setpgid(own, own).map_err(|errno| (Step::Group, errno, 0))?;
        }
        fork_all(self.restore, &self.process.after, origin)
    }

    /// The terminal that controls its session.
    fn terminal(&self) -> Option<(&Control, BorrowedFd<'_>)> {
        let Role::Task(index) = self.process.role else { return None };
        let Restore { checkpoint, preparation, opened, .. } = self.restore;
        let sid = preparation.places[index].sid;
        let terminal = opened.controlling.get(&sid)?;
        let controls = checkpoint.files.ptys.iter().filter_map(|pty| pty.live.as_ref()?.control.as_ref());
        controls.into_iter().find(|control| control.sid == sid).map(|control| (control, terminal.as_fd()))
    }

    /// Lets go of its controlling terminal if it had done so. All of its children are there.
    fn let_go(&self) -> Outcome {
        let Role::Task(index) = self.process.role else { return Ok(()) };
        match self.terminal() {
            Some((control, terminal))
                if control.without.contains(&self.restore.preparation.places[index].pid) =>
            {
                tty::let_go(terminal).map_err(|errno| (Step::Terminal, errno, 0))
            }
            _ => Ok(()),
        }
    }

    /// Puts the right group into the foreground, once all are in their groups, if it leads a session with a terminal. Signals
    /// are blocked, so that the kernel stops nobody who does that from the background.
    pub(super) fn set_foreground(&self) -> Outcome {
        let Some((control, terminal)) = self.terminal() else { return Ok(()) };
        if self.restore.preparation.pids[self.index] != control.sid {
            return Ok(());
        }
        self.wait(Gathering::Settled);
        let failed = |errno| (Step::Foreground, errno, u64::from(control.foreground.cast_unsigned()));
        tty::set_foreground(terminal, control.foreground).map_err(failed)
    }

    /// Gathers with all others, and gets into its group meanwhile.
    pub(super) fn gather(&self) -> Outcome {
        self.let_go()?;
        if !matches!(self.process.role, Role::Holder) {
            self.meet(Gathering::Led);
        }
        if let Role::Task(index) = self.process.role {
            let wanted = self.group(index);
            // Zombies follow the tasks, and never are.
            let late = self.restore.preparation.tasks.get(index).is_some_and(|task| task.joins_late);
            if !late && nix::unistd::getpgrp().as_raw() != wanted {
                self.wait(Gathering::Led);
                let (own, group) = (nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(wanted));
                (fault::point(Point::SetGroup).and_then(|()| nix::unistd::setpgid(own, group)))
                    .map_err(|errno| (Step::Group, errno, u64::from(wanted.cast_unsigned())))?;
            }
            self.meet(Gathering::Settled);
        }
        Ok(())
    }

    /// The process group that a task is to be in, as it is called here.
    fn group(&self, index: usize) -> Pid {
        group(self.restore, self.restore.preparation.places[index].pgid)
    }

    /// Takes leave of everyone who was forked for a time only, and leaves no trace of them.
    pub(super) fn disband(&self) -> Outcome {
        if self.process.reaper {
            self.wait(Gathering::Led);
            prctl::set_child_subreaper(false).map_err(|errno| (Step::Reaper, errno, 0))?;
        }
        let births = self.process.before.iter().chain(&self.process.after).filter(|birth| !birth.sibling);
        let schedule = &self.restore.preparation.schedule;
        let mut any = false;
        for birth in births.filter(|birth| !matches!(schedule.processes[birth.process].role, Role::Task(_))) {
            self.see_off(self.restore.preparation.pids[birth.process])?;
            any = true;
        }
        for zombie in &self.restore.checkpoint.tree.zombies {
            any |= self.await_end(zombie)?;
        }
        if any {
            // Their SIGCHLD is in the queue: all signals are blocked.
            let sigchld: SigSet = std::iter::once(Signal::SIGCHLD).collect();
            while wait::take_pending(&sigchld) {}
        }
        Ok(())
    }

    /// Waits until a zombie is one, if it is a child of this process; whether it is.
    fn await_end(&self, zombie: &Zombie) -> Outcome<bool> {
        let Preparation { schedule, by_pid, .. } = &self.restore.preparation;
        if by_pid.get(&zombie.pid).is_none_or(|&process| schedule.processes[process].parent != self.index) {
            return Ok(false);
        }
        let expected = match zombie.end {
            End::Exit(code) => (libc::CLD_EXITED, i32::from(code)),
            End::Killed(signal) => (libc::CLD_KILLED, i32::from(signal)),
        };
        loop {
            let failed = |errno| (Step::Zombie, errno, u64::from(zombie.pid.cast_unsigned()));
            match wait::until_ended(zombie.pid) {
                Ok(end) if end == expected => return Ok(true),
                Ok(_) => return Err(failed(Errno::ECHILD)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Waits for a helper's end.
    fn see_off(&self, helper: Pid) -> Outcome {
        let failed = |errno| (Step::Helper, errno, u64::from(helper.cast_unsigned()));
        loop {
            match wait::wait(helper, true) {
                Ok(Some(0)) => return Ok(()),
                // It has told what failed: whatever is said here would only hide that.
                Ok(Some(status)) if libc::WIFEXITED(status) => loop {
                    nix::unistd::pause();
                },
                Ok(Some(_)) => return Err(failed(Errno::ECHILD)),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Waits until this helper is needed no more.
    pub(super) fn stay(&self) {
        self.wait(Gathering::Settled);
    }

    fn meet(&self, gathering: Gathering) {
        let total = self.restore.preparation.total(gathering);
        self.restore.preparation.control.arrive(gathering, total);
    }

    fn wait(&self, gathering: Gathering) {
        let total = self.restore.preparation.total(gathering);
        if !self.restore.preparation.control.wait_for_all(gathering, total) {
            process::exit(1);
        }
    }
}

/// A process group of the tree, as it is called here: that of a shell job is this process's own.
pub(super) fn group(restore: &Restore<'_>, pgid: Pid) -> Pid {
    let Restore { checkpoint, preparation, own_group, .. } = restore;
    match checkpoint.tree.shell_job {
        Some(job) if pgid == job.pgid && !preparation.is_task(job.pgid) => *own_group,
        _ => pgid,
    }
}

/// Forks processes. In each of them this does not return.
pub(super) fn fork_all<'a>(
    restore: &Restore<'_>,
    births: &[Birth],
    origin: impl Fn() -> Origin<'a>,
) -> Outcome {
    let Restore { preparation, chooser, .. } = restore;
    for &Birth { process, sibling } in births {
        let pid = preparation.pids[process];
        let flags = if sibling { process::CLONE_PARENT } else { 0 };
        match chooser.fork(&preparation.control, pid, flags) {
            Ok(Some(_)) => {}
            Ok(None) => child::become_process(restore, process, origin()),
            Err(errno) => return Err((Step::Fork, errno, u64::from(pid.cast_unsigned()))),
        }
    }
    Ok(())
}

/// Forks what the parent of the root forks: the root, or for a moment the dead leader of its session, which forks it.
pub(super) fn fork_first(restore: &Restore<'_>, own: Pid, sibling: bool) -> nix::Result<()> {
    let mut births = restore.preparation.schedule.processes[OUTSIDE].after.clone();
    births.iter_mut().for_each(|birth| birth.sibling = sibling);
    fork_all(restore, &births, || Origin::outside(own)).map_err(|(_, errno, _)| errno)
}

/// Takes leave of the dead leader, if there was one. All tasks are in their groups, so it ends.
pub(super) fn see_off_first(restore: &Restore<'_>) {
    let Preparation { schedule, pids, .. } = &restore.preparation;
    for birth in &schedule.processes[OUTSIDE].after {
        if !matches!(schedule.processes[birth.process].role, Role::Task(_)) {
            while wait::wait(pids[birth.process], true) == Err(Errno::EINTR) {}
        }
    }
}

/// What a courier does: it forks its one task, waits until that has asked to be told of its end, and ends.
pub(super) fn deliver(restore: &Restore<'_>, index: usize, origin: &Origin<'_>) -> Outcome {
    let failed = |errno| (Step::Fork, errno, 0);
    let (answer, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed)?;
    let births = &restore.preparation.schedule.processes[index].after;
    let courier = Some(tell.as_fd());
    let next = || Origin { outside: origin.outside, socket: None, courier, first: false };
    fork_all(restore, births, next)?;
    drop(tell);
    match nix::unistd::read(answer.as_fd(), &mut [0]) {
        Ok(1) => Ok(()),
        Ok(_) => Err(failed(Errno::EPIPE)),
        Err(errno) => Err(failed(errno)),
    }
}

/// A task forked by a courier waits until it has its real parent. It has the kernel tell it by a signal: only after that
/// may it ask for another one, since the kernel sends what is asked for at that moment.
fn await_adoption(courier: BorrowedFd<'_>) -> Outcome {
    let failed = |errno| (Step::Adoption, errno, 0);
    prctl::set_pdeathsig(Signal::SIGUSR1).map_err(failed)?;
    nix::unistd::write(courier, &[1]).map_err(failed)?;
    process::close_fd(courier.as_raw_fd());
    let adopted: SigSet = std::iter::once(Signal::SIGUSR1).collect();
    adopted.wait().map(drop).map_err(failed)
}

/// Until the restore is through, a task dies with its parent, so that a failed one leaves nobody behind.
fn tie(parent: Pid) -> Outcome {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| (Step::Tie, errno, 0))?;
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err((Step::Tie, Errno::ESRCH, 0)) }
}
