//! A forked child on its way to be a task: what survives exec and is harmless meanwhile, then the split.
//!
//! Runs in a copy of the coordinator, in ordinary 64-bit code for both ABIs. The descriptors it inherited from the
//! coordinator close on exec; what it does not name is gone afterwards.

use super::Restore;
use super::births::{self, Kin, Origin};
use super::environment::login_uid;
use crate::fault::{self, Point};
use crate::resource::task::NO_LOGIN;
use crate::resource::zombie;
use crate::sys::{exec, process};
use images::DescriptionId;
use images::task::Zombie;
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{GenericNamespaced, Stream};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use shared::plan::tree::{Role, of_task};
use shared::proto::{Report, Stage};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What a child does before it execs; the number goes into its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    /// Wait for the end of the courier that forked it.
    Adoption,
    /// Tie its life to its parent's.
    Tie,
    /// Take in orphans, or stop doing so.
    Reaper,
    /// Become a session leader.
    Session,
    /// Take or let go of the controlling terminal.
    Terminal,
    /// Put a process group into the foreground.
    Foreground,
    /// Become or join a process group.
    Group,
    /// Fork a child.
    Fork,
    /// Take leave of a process that stood in for a dead one.
    Helper,
    /// Wait for the end of a child that is to be a zombie.
    Zombie,
    /// Take on the identity of a zombie.
    Identity,
    /// End as a zombie did.
    End,
    /// Write a file in /proc/self.
    Attribute,
    /// Set the personality.
    Personality,
    /// Put its files under their numbers.
    Files,
    /// Change root or current directory.
    Directory,
    /// Limit its stack.
    Stack,
    /// Exec the program that restores it.
    Exec,
}

impl Step {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 18] = [
        Self::Adoption,
        Self::Tie,
        Self::Reaper,
        Self::Session,
        Self::Terminal,
        Self::Foreground,
        Self::Group,
        Self::Fork,
        Self::Helper,
        Self::Zombie,
        Self::Identity,
        Self::End,
        Self::Attribute,
        Self::Personality,
        Self::Files,
        Self::Directory,
        Self::Stack,
        Self::Exec,
    ];

    /// What a report says of it.
    #[must_use]
    pub(super) fn describe(number: u32) -> &'static str {
        match Self::ALL.into_iter().find(|&step| step as u32 == number) {
            Some(Self::Adoption) => "bring it to its parent",
            Some(Self::Tie) => "tie it to its parent",
            Some(Self::Reaper) => "have it take in orphans",
            Some(Self::Session) => "start its session",
            Some(Self::Terminal) => "take or let go of its controlling terminal",
            Some(Self::Foreground) => "put into the foreground of its terminal process group",
            Some(Self::Group) => "set its process group",
            Some(Self::Fork) => "fork its child with pid",
            Some(Self::Helper) => "wait for the stand-in of a dead leader, pid",
            Some(Self::Zombie) => "wait for the end of a child that is to be a zombie, pid",
            Some(Self::Identity) => "take on its name, users and groups",
            Some(Self::End) => "end as it had ended",
            Some(Self::Attribute) => "set an attribute in /proc",
            Some(Self::Personality) => "set its personality",
            Some(Self::Files) => "put a file in its place, fd",
            Some(Self::Directory) => "change its root or current directory",
            Some(Self::Stack) => "set the limit of its stack",
            Some(Self::Exec) => "exec the program that restores it",
            None => "unknown step",
        }
    }
}

/// What came of a step, or the step that failed, with what it was about.
pub(super) type Outcome<T = ()> = Result<T, (Step, Errno, u64)>;

/// Becomes a process of the schedule. Never returns.
pub(super) fn become_process(restore: &Restore<'_>, process: usize, origin: Origin<'_>) -> ! {
    if let Some(socket) = origin.socket {
        process::close_fd(socket.as_raw_fd());
    }
    match restore.preparation.schedule.processes[process].role {
        Role::Task(index) if index < restore.preparation.tasks.len() => become_task(restore, index, &origin),
        Role::Task(index) => {
            let zombie = &restore.checkpoint.tree.zombies[index - restore.preparation.tasks.len()];
            become_zombie(restore, process, zombie, &origin)
        }
        _ => become_helper(restore, process, &origin),
    }
}

/// Takes its place, and ends as its record says.
fn become_zombie(restore: &Restore<'_>, process: usize, zombie: &Zombie, origin: &Origin<'_>) -> ! {
    let done = Kin::arrive(restore, process, origin).and_then(|kin| {
        kin.lead(None)?;
        kin.gather()?;
        kin.stay();
        kin.disband()?;
        zombie::take_identity(zombie).map_err(|errno| (Step::Identity, errno, 0))
    });
    let failure = done.map_or_else(|failure| failure, |()| (Step::End, zombie::die(zombie.end), 0));
    fail(restore, failure)
}

/// Stands in for what is missing, and ends.
fn become_helper(restore: &Restore<'_>, process: usize, origin: &Origin<'_>) -> ! {
    let done = Kin::arrive(restore, process, origin).and_then(|kin| {
        if restore.preparation.schedule.processes[process].role == Role::Courier {
            return births::deliver(restore, process, origin);
        }
        kin.lead(None)?;
        kin.gather()?;
        kin.stay();
        kin.disband()
    });
    match done {
        Ok(()) => process::exit(0),
        Err(failure) => fail(restore, failure),
    }
}

/// The end of a process that is no task and could not do its part.
fn fail(restore: &Restore<'_>, failure: (Step, Errno, u64)) -> ! {
    if let Some(socket) = connect(restore) {
        report(restore, &socket, failure);
    }
    process::exit(1)
}

fn become_task(restore: &Restore<'_>, index: usize, origin: &Origin<'_>) -> ! {
    let Some(socket) = connect(restore) else { process::exit(1) };
    if let Err(failure) = steps(restore, index, origin, &socket) {
        report(restore, &socket, failure);
    }
    process::exit(1)
}

/// Tells what failed.
fn report(restore: &Restore<'_>, socket: &OwnedFd, (step, errno, value): (Step, Errno, u64)) {
    let report = Report {
        stage: Stage::Child as u32,
        errno: (errno as i32).cast_unsigned(),
        op: step as u32,
        value,
        ..Report::default()
    };
    let _ = nix::unistd::write(socket, super::plain::as_bytes(&report));
    restore.preparation.control.fail();
}

fn connect(restore: &Restore<'_>) -> Option<OwnedFd> {
    let name = restore.socket_name.as_str().to_ns_name::<GenericNamespaced>().ok()?;
    let Stream::UdSocket(stream) = Stream::connect(name).ok()?;
    // Out of the way of the task's own numbers, and open across exec.
    restore.opened.raiser.raise_inheritable(stream.as_fd()).ok()
}

fn steps(restore: &Restore<'_>, index: usize, origin: &Origin<'_>, socket: &OwnedFd) -> Outcome {
    let kin = Kin::arrive(restore, of_task(index), origin)?;
    log_in(restore, index);
    kin.lead(Some(socket.as_fd()))?;
    kin.gather()?;
    kin.set_foreground()?;
    kin.disband()?;
    attributes(restore, index)?;
    files(restore, index)?;
    directories(restore, index)?;
    stack_limit(restore, index)?;
    let Some(program) = &restore.preparation.tasks[index].program else {
        return Err((Step::Exec, Errno::ENOEXEC, 0));
    };
    let program = &restore.preparation.programs[program.file];
    let number = CString::new(socket.as_raw_fd().to_string()).unwrap_or_default();
    let errno = exec::execute(program.as_fd(), &[c"crr".to_owned(), number]);
    Err((Step::Exec, errno, 0))
}

/// Comes from the login that the task came from, unless it does already: each time, the kernel makes a new session of it, which children
/// have, too. That it may not is told later, of all tasks (`takeover`).
fn log_in(restore: &Restore<'_>, index: usize) {
    let wanted = restore.checkpoint.tree.tasks[index].login_uid;
    if restore.logins && login_uid("self").ok() != Some(wanted) {
        let set = |uid: u32| fs::write("/proc/self/loginuid", uid.to_string());
        // Some machines allow no change of it, but to none, and one from there (AUDIT_FEATURE_ONLY_UNSET_LOGINUID).
        let _ = set(wanted).or_else(|_| set(NO_LOGIN).and_then(|()| set(wanted)));
    }
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
    let persona = task.personality & !shared::plan::LATE_PERSONALITY;
    if persona != restore.environment.personality {
        let persona = nix::sys::personality::Persona::from_bits_retain(persona.cast_signed());
        nix::sys::personality::set(persona).map_err(|errno| (Step::Personality, errno, 0))?;
    }
    Ok(())
}

/// Puts the task's files under their numbers.
///
/// The coordinator opened them wherever there was room, so a number that a file is to have can hold another one that has
/// yet to be placed. That one goes to where the first one was; if the task is to have the first one there, too, to a number of its own.
fn files(restore: &Restore<'_>, index: usize) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    let raiser = &restore.opened.raiser;
    let mut places = BTreeMap::new();
    for entry in &task.fds {
        let now = restore.opened.description(entry.description).as_raw_fd();
        places.entry(entry.description).or_insert(Place { now, left: 0, settled: false }).left += 1;
    }
    let mut holds: BTreeMap<RawFd, DescriptionId> =
        places.iter().map(|(&id, place)| (place.now, id)).collect();
    for entry in &task.fds {
        let to = entry.fd.0.cast_signed();
        let failed = |errno| (Step::Files, errno, u64::from(entry.fd.0));
        let Some(&Place { now, settled, .. }) = places.get(&entry.description) else { continue };
        let held = holds.get(&to).copied().filter(|&other| other != entry.description);
        let in_the_way = held.filter(|other| places.get(other).is_some_and(|other| other.left > 0));
        let moved = in_the_way.map(|_| raiser.move_away(to)).transpose().map_err(failed)?;
        fault::point(Point::PlaceFile).map_err(failed)?;
        process::place_fd(now, to).map_err(failed)?;
        holds.insert(to, entry.description);
        if let (Some(moved), Some(other)) = (moved, in_the_way.and_then(|other| places.get_mut(&other))) {
            other.now = moved;
            if !settled {
                process::move_fd(moved, now).map_err(failed)?;
                process::close_fd(moved);
                other.now = now;
            }
            holds.extend(in_the_way.map(|id| (other.now, id)));
        }
        if let Some(place) = places.get_mut(&entry.description) {
            (place.now, place.settled) = (to, true);
            place.left -= 1;
        }
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
#[derive(Clone, Copy)]
struct Place {
    now: RawFd,
    left: u32,
    /// It is where the task is to have it.
    settled: bool,
}

/// Last, since it counts for this program, too.
fn stack_limit(restore: &Restore<'_>, index: usize) -> Outcome {
    let own = restore.preparation.stack_limit;
    let (soft, hard) = shared::plan::stack_limit_at_exec(own, &restore.checkpoint.tree.tasks[index]);
    if (soft, hard) == own {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_STACK, soft, hard).map_err(|errno| (Step::Stack, errno, soft))
}

fn directories(restore: &Restore<'_>, index: usize) -> Outcome {
    let task = &restore.checkpoint.tree.tasks[index];
    let enter = |path| {
        (fault::point(Point::EnterDirectory))
            .and_then(|()| nix::unistd::fchdir(restore.opened.directory(path)))
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
