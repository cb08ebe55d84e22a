//! A forked child on its way to be a task: what survives exec and is harmless meanwhile, then the split.
//!
//! Runs in a copy of the coordinator, in ordinary 64-bit code for both ABIs. The descriptors it inherited from the
//! coordinator close on exec; what it does not name is gone afterwards.

use super::Restore;
use crate::sys::{exec, process};
use images::{DescriptionId, Pid};
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{GenericNamespaced, Stream};
use nix::errno::Errno;
use shared::proto::{Report, Stage};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What a child does before it execs; the number goes into its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    /// Tie its life to its parent's.
    Tie,
    /// Become a session leader.
    Session,
    /// Become or join a process group.
    Group,
    /// Fork a child.
    Fork,
    /// Write a file in /proc/self.
    Attribute,
    /// Set the personality.
    Personality,
    /// Put its files under their numbers.
    Files,
    /// Change root or current directory.
    Directory,
    /// Exec the program that restores it.
    Exec,
}

impl Step {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 9] = [
        Self::Tie,
        Self::Session,
        Self::Group,
        Self::Fork,
        Self::Attribute,
        Self::Personality,
        Self::Files,
        Self::Directory,
        Self::Exec,
    ];

    /// What a report says of it.
    #[must_use]
    pub(super) fn describe(number: u32) -> &'static str {
        match Self::ALL.into_iter().find(|&step| step as u32 == number) {
            Some(Self::Tie) => "tie it to its parent",
            Some(Self::Session) => "start its session",
            Some(Self::Group) => "set its process group",
            Some(Self::Fork) => "fork its child with pid",
            Some(Self::Attribute) => "set an attribute in /proc",
            Some(Self::Personality) => "set its personality",
            Some(Self::Files) => "put a file in its place, fd",
            Some(Self::Directory) => "change its root or current directory",
            Some(Self::Exec) => "exec the program that restores it",
            None => "unknown step",
        }
    }
}

/// A step that failed, with what it was about.
type Outcome = Result<(), (Step, Errno, u64)>;

/// Who forked a child: its pid, and its socket, which the child must not keep open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent<'a> {
    pub(super) pid: Pid,
    pub(super) socket: Option<BorrowedFd<'a>>,
}

/// Becomes the task. Never returns.
pub(super) fn become_task(restore: &Restore<'_>, index: usize, parent: Parent<'_>) -> ! {
    if let Some(socket) = parent.socket {
        process::close_fd(socket.as_raw_fd());
    }
    let Some(socket) = connect(restore) else { process::exit(1) };
    if let Err((step, errno, value)) = steps(restore, index, parent.pid, &socket) {
        let report = Report {
            stage: Stage::Child as u32,
            errno: (errno as i32).cast_unsigned(),
            op: step as u32,
            value,
            ..Report::default()
        };
        let _ = nix::unistd::write(&socket, super::plain::as_bytes(&report));
        restore.preparation.control.fail();
    }
    process::exit(1)
}

fn connect(restore: &Restore<'_>) -> Option<OwnedFd> {
    let name = restore.socket_name.as_str().to_ns_name::<GenericNamespaced>().ok()?;
    let Stream::UdSocket(stream) = Stream::connect(name).ok()?;
    // Out of the way of the task's own numbers, and open across exec.
    restore.opened.raiser.raise_inheritable(stream.as_fd()).ok()
}

fn steps(restore: &Restore<'_>, index: usize, parent: Pid, socket: &OwnedFd) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    tie(parent)?;
    process::default_signal_actions();
    if task.sid == task.pid {
        nix::unistd::setsid().map_err(|errno| (Step::Session, errno, 0))?;
    }
    let own = nix::unistd::Pid::from_raw(0);
    if task.pgid == task.pid && task.sid != task.pid {
        nix::unistd::setpgid(own, own).map_err(|errno| (Step::Group, errno, 0))?;
    }
    for &child in &restore.preparation.tasks[index].children {
        let pid = restore.checkpoint.tree.tasks[child].pid;
        match process::fork(Some(pid), 0) {
            Ok(Some(_)) => {}
            Ok(None) => become_task(restore, child, Parent { pid: task.pid, socket: Some(socket.as_fd()) }),
            Err(errno) => return Err((Step::Fork, errno, u64::from(pid.cast_unsigned()))),
        }
    }
    group(restore, index)?;
    attributes(restore, index)?;
    files(restore, index)?;
    directories(restore, index)?;
    let program = &restore.preparation.programs[restore.preparation.tasks[index].program];
    let number = CString::new(socket.as_raw_fd().to_string()).unwrap_or_default();
    let errno = exec::execute(program.as_fd(), &[c"crr".to_owned(), number]);
    Err((Step::Exec, errno, 0))
}

/// Until the restore is through, a task dies with its parent, so that a failed one leaves nobody behind.
fn tie(parent: Pid) -> Outcome {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|errno| (Step::Tie, errno, 0))?;
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err((Step::Tie, Errno::ESRCH, 0)) }
}

/// Counts itself as leader, and joins the group of another once all leaders are there.
fn group(restore: &Restore<'_>, index: usize) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    let control = &restore.preparation.control;
    control.count_led();
    let current = nix::unistd::getpgrp().as_raw();
    let wanted = match restore.checkpoint.tree.shell_job {
        Some(job) if task.pgid == job.pgid && !restore.leads_a_group(job.pgid) => restore.own_group,
        _ => task.pgid,
    };
    if current == wanted {
        return Ok(());
    }
    let tasks = u32::try_from(restore.checkpoint.tree.tasks.len()).unwrap_or(u32::MAX);
    if !control.wait_led(tasks) {
        process::exit(1);
    }
    let pid = nix::unistd::Pid::from_raw;
    nix::unistd::setpgid(pid(0), pid(wanted))
        .map_err(|errno| (Step::Group, errno, u64::from(wanted.cast_unsigned())))
}

fn attributes(restore: &Restore<'_>, index: usize) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    let write = |path: &str, value: String| {
        fs::write(path, value).map_err(|error| {
            (Step::Attribute, error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw), 0)
        })
    };
    if task.oom_score_adj != restore.environment.oom_score_adj {
        write("/proc/self/oom_score_adj", task.oom_score_adj.to_string())?;
    }
    if task.coredump_filter != restore.environment.coredump_filter {
        write("/proc/self/coredump_filter", format!("{:#x}", task.coredump_filter))?;
    }
    let persona = task.personality & !shared::plan::READ_IMPLIES_EXEC;
    if persona != restore.environment.personality {
        let persona = nix::sys::personality::Persona::from_bits_retain(persona.cast_signed());
        nix::sys::personality::set(persona).map_err(|errno| (Step::Personality, errno, 0))?;
    }
    Ok(())
}

/// Puts the task's files under their numbers.
///
/// The coordinator opened them wherever there was room, so a number that a file is to have can hold another one that has
/// yet to be placed; that one is moved out of the way first.
fn files(restore: &Restore<'_>, index: usize) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    let mut places = BTreeMap::new();
    for entry in &task.fds {
        let now = restore.opened.description(entry.description).as_raw_fd();
        places.entry(entry.description).or_insert(Place { now, left: 0 }).left += 1;
    }
    let mut holds: BTreeMap<RawFd, DescriptionId> =
        places.iter().map(|(&id, place)| (place.now, id)).collect();
    for entry in &task.fds {
        let to = entry.fd.0.cast_signed();
        let failed = |errno| (Step::Files, errno, u64::from(entry.fd.0));
        if let Some(other) = holds.get(&to).copied().filter(|&other| other != entry.description) {
            if let Some(place) = places.get_mut(&other).filter(|place| place.left > 0) {
                place.now = restore.opened.raiser.move_away(to).map_err(failed)?;
                holds.insert(place.now, other);
            }
        }
        if let Some(place) = places.get_mut(&entry.description) {
            process::place_fd(place.now, to).map_err(failed)?;
            place.left -= 1;
        }
        holds.insert(to, entry.description);
    }
    // Everything else of the coordinator closes on exec, but for its standard files.
    for standard in 0..3 {
        if task.fds.iter().all(|entry| entry.fd.0 != standard) {
            process::close_fd(standard.cast_signed());
        }
    }
    Ok(())
}

/// Where a description is, and how many numbers it has still to get.
struct Place {
    now: RawFd,
    left: u32,
}

fn directories(restore: &Restore<'_>, index: usize) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    let enter = |path| {
        nix::unistd::fchdir(restore.opened.directory(path))
            .map_err(|errno| (Step::Directory, errno, u64::from(path.0)))
    };
    if restore.checkpoint.files.paths[task.root.0 as usize].path != b"/" {
        enter(task.root)?;
        nix::unistd::chroot(".").map_err(|errno| (Step::Directory, errno, u64::from(task.root.0)))?;
    }
    enter(task.cwd)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(task.umask));
    Ok(())
}
