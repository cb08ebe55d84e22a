//! The process that has the descriptors between two dumps.
//!
//! It waits for the tasks to end, and ends with the last. Whoever takes over takes copies of its descriptors by pidfd_getfd(2), and
//! ends it by SIGTERM. All that is to be known of it is in its command line:
//!
//! ```text
//! crr keep-track --task PID:START:FD...
//! ```
//!
//! Anybody can have such a line. So where a keeper is looked for that no inventory has noted, it is one only if it has a userfaultfd under that number for a
//! task that is still the same one (so the numbers are not those of another pid namespace, either).

use super::instance;
use crate::cli::keep_track::COMMAND;
use crate::proc::tasks;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::{pidfd, process};
use anyhow::{Context, Result, bail};
use images::Pid;
use images::inventory::Instance;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;

/// A task and the descriptor that tracks it, as the command line spells them: `PID:START:FD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The task.
    pub task: Instance,
    /// The keeper's descriptor.
    pub fd: i32,
}

impl fmt::Display for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.task.pid, self.task.start_time, self.fd)
    }
}

impl FromStr for Tracked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not PID:START:FD".to_owned();
        let [pid, start_time, fd] = text.split(':').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let task = Instance {
            pid: pid.parse().map_err(|_| wrong())?,
            start_time: start_time.parse().map_err(|_| wrong())?,
        };
        Ok(Self { task, fd: fd.parse().map_err(|_| wrong())? })
    }
}

/// The keeper of an earlier pre-dump, which is alive.
#[derive(Debug)]
pub(crate) struct Keeper {
    pid: Pid,
    pidfd: OwnedFd,
    tracked: Vec<Tracked>,
}

impl Keeper {
    /// Finds the one that a pre-dump has noted; `None` if it is gone.
    pub(crate) fn find(noted: Instance) -> Result<Option<Self>> {
        let Some(keeper) = Self::look(noted.pid)? else { return Ok(None) };
        // The pidfd is there: from here on the pid cannot become another process unnoticed.
        Ok(instance(noted.pid).is_ok_and(|now| now == noted).then_some(keeper))
    }

    /// A process, if it is a keeper.
    fn look(pid: Pid) -> Result<Option<Self>> {
        let pidfd = match pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            // Without pidfds nobody has become one.
            Err(Errno::ESRCH | Errno::ENOSYS | Errno::EPERM) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("keeper {pid}")),
        };
        let Ok(words) = std::fs::read_to_string(format!("/proc/{pid}/cmdline")) else { return Ok(None) };
        let mut words = words.split_terminator('\0').skip(1);
        if words.next() != Some(COMMAND) {
            return Ok(None);
        }
        let tracked = words.filter(|word| *word != "--task").map(str::parse).collect::<Result<_, String>>();
        Ok(tracked.ok().map(|tracked| Self { pid, pidfd, tracked }))
    }

    /// A copy of its descriptor for a task; `None` if it has none.
    pub(crate) fn descriptor(&self, task: Instance) -> Result<Option<OwnedFd>> {
        let Some(tracked) = self.tracked.iter().find(|tracked| tracked.task == task) else { return Ok(None) };
        match pidfd::get_fd(self.pidfd.as_fd(), tracked.fd.cast_unsigned()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EBADF | Errno::ESRCH) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("keeper {}: take its descriptor", self.pid)),
        }
    }

    /// Copies of its descriptors for the memory of a task: of that task itself, or, if it has none, of those that share its memory.
    pub(crate) fn descriptors_for_memory(&self, task: Instance) -> Result<Vec<OwnedFd>> {
        if let Some(own) = self.descriptor(task)? {
            return Ok(vec![own]);
        }
        let shares = |other: &&Tracked| {
            kcmp(Kind::Vm, (task.pid, 0), (other.task.pid, 0)).is_ok_and(|order| order == Ordering::Equal)
        };
        let of_others = self.tracked.iter().filter(shares);
        of_others.filter_map(|other| self.descriptor(other.task).transpose()).collect()
    }

    /// Its process.
    pub(crate) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it still is. Asked of a tree that stands still: a round that came in between would have ended it, before it protected anything.
    pub(crate) fn is_alive(&self) -> Result<bool> {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut ended, PollTimeout::ZERO).context("poll")? == 0)
    }

    /// Whether it tracks one of these tasks.
    fn tracks_one_of(&self, tasks: &HashSet<Pid>) -> bool {
        let has_one = |tracked: &Tracked| {
            let link = format!("/proc/{}/fd/{}", self.pid, tracked.fd);
            tasks.contains(&tracked.task.pid)
                && instance(tracked.task.pid).is_ok_and(|now| now == tracked.task)
                && std::fs::read_link(link).is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
        };
        self.tracked.iter().any(has_one)
    }

    /// Ends it. When this returns it has no descriptor any more.
    pub(crate) fn end(self) -> Result<()> {
        match pidfd::kill(self.pidfd.as_fd(), Signal::SIGTERM as i32) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("end keeper {}", self.pid)),
        }
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ended, PollTimeout::from(10_000_u16)) {
            Ok(1) => Ok(()),
            Ok(_) => bail!("keeper {} does not end", self.pid),
            Err(errno) => Err(errno).context("poll"),
        }
    }
}

/// Whoever tracks one of these tasks.
pub(crate) fn of_tasks(tasks: &HashSet<Pid>) -> Result<Vec<Keeper>> {
    let mut found = Vec::new();
    for pid in tasks::all()? {
        found.extend(Keeper::look(pid)?.filter(|keeper| keeper.tracks_one_of(tasks)));
    }
    Ok(found)
}

/// Ends whoever tracks one of these tasks. Whether there was one.
pub(crate) fn end_all(tasks: &HashSet<Pid>) -> Result<bool> {
    let found = of_tasks(tasks)?;
    let any = !found.is_empty();
    found.into_iter().try_for_each(Keeper::end)?;
    Ok(any)
}

/// Starts a keeper for these tasks.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn start(descriptors: &BTreeMap<Instance, OwnedFd>) -> Result<Instance> {
    let tracked = descriptors.iter().map(|(&task, fd)| Tracked { task, fd: fd.as_raw_fd() });
    let mut words = vec![CString::from(c"crr"), CString::new(COMMAND)?];
    for tracked in tracked {
        words.extend([CString::from(c"--task"), CString::new(tracked.to_string())?]);
    }
    let (started, starting) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    let Some(pid) = process::fork(0).context("fork the keeper")? else {
        let error = exec(descriptors, &words);
        let _ = nix::unistd::write(&starting, &(error as i32).to_ne_bytes());
        process::exit(1)
    };
    drop(starting);
    let mut errno = [0u8; 4];
    if nix::unistd::read(&started, &mut errno).context("wait for the keeper")? > 0 {
        return Err(Errno::from_raw(i32::from_ne_bytes(errno))).context("start the keeper");
    }
    instance(pid)
}

/// In the forked child: becomes the keeper, with nothing but the descriptors. Returns why it did not.
fn exec(descriptors: &BTreeMap<Instance, OwnedFd>, words: &[CString]) -> Errno {
    let become_it = || -> nix::Result<()> {
        process::go_to_background(None)?;
        process::close_on_exec_from(3)?;
        for fd in descriptors.values() {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        process::default_signal_actions();
        process::set_signal_mask(0)?;
        nix::unistd::execv(c"/proc/self/exe", words)?;
        Ok(())
    };
    become_it().err().unwrap_or(Errno::EIO)
}

/// What the keeper does: waits for the tasks to end.
///
/// # Errors
/// As poll(2).
pub(crate) fn run(tracked: &[Tracked]) -> Result<()> {
    // It would be called "exe".
    nix::sys::prctl::set_name(c"crr-keep-track").context("prctl")?;
    let mut alive = Vec::new();
    for Tracked { task, fd } in tracked {
        let Ok(pidfd) = pidfd::open(task.pid) else {
            process::close_fd(*fd);
            continue;
        };
        if instance(task.pid).is_ok_and(|now| now == *task) {
            alive.push((pidfd, *fd));
        } else {
            process::close_fd(*fd);
        }
    }
    while !alive.is_empty() {
        let mut polled: Vec<_> =
            alive.iter().map(|(pidfd, _)| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let ended: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(false)).collect();
        let mut ended = ended.into_iter();
        alive.retain(|(_, fd)| {
            let ended = ended.next().unwrap_or(false);
            if ended {
                process::close_fd(*fd);
            }
            !ended
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tracked_is_spelled() {
        let tracked = Tracked { task: Instance { pid: 7, start_time: 99 }, fd: 5 };
        assert_eq!(tracked.to_string().parse(), Ok(tracked));
        for wrong in ["", "1:2", "1:2:3:4", "a:2:3"] {
            assert!(wrong.parse::<Tracked>().is_err(), "{wrong}");
        }
    }
}
