//! Processes with chosen ids where clone3(2) does not give them: before Linux 5.5, and behind filters of containers.
//!
//! The kernel goes on from the number that it gave last in the pid namespace, and `ns_last_pid` is that number, to be written by those
//! who may choose (alloc_pid(), pid_ns_ctl_handler() in kernel/). Who writes it holds a lock (flock(2)) of the file, as is the habit, but a process that knows
//! nothing of that can take the number between the write and the clone. So each new process looks at its own id before it
//! does anything else, and ends if that is not the one; then its maker tries again. The file is put back at once, so that what others fork
//! meanwhile gets none of the next numbers either.
//!
//! # Safety
//! clone without CLONE_VM is fork, see [`process`].
#![allow(unsafe_code)]

use super::process::{self, CLONE_PARENT};
use super::shared_page::ControlPage;
use super::wait;
use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use anyhow::{Context, Result, ensure};
use images::Pid;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Where the number is.
pub(crate) const PATH: &str = "/proc/sys/kernel/ns_last_pid";

/// How often others may get the number first.
const TRIES: u32 = 1000;

/// The right to choose, which one process at a time has with all that it forks.
#[derive(Debug)]
pub struct LastPid(Flock<File>);

impl LastPid {
    /// Waits for it.
    ///
    /// # Errors
    /// If there is no such file for this user, or another process does not give it back in time.
    pub fn claim(deadline: Instant) -> Result<Self> {
        loop {
            if let Some(claimed) = Self::try_claim()? {
                return Ok(claimed);
            }
            ensure!(Instant::now() < deadline, "{PATH}: another process chooses ids all the time (flock)");
            // Nobody can wait for a lock and for a time at once.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes it if nobody has it.
    ///
    /// # Errors
    /// If there is no such file for this user.
    pub fn try_claim() -> Result<Option<Self>> {
        let file = File::options().read(true).write(true).open(PATH).context(PATH)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Some(Self(locked))),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
            Err((_, errno)) => Err(errno).with_context(|| format!("{PATH}: flock")),
        }
    }

    /// A further descriptor for the programs that clone.
    ///
    /// # Errors
    /// As dup(2).
    pub fn file(&self) -> Result<OwnedFd> {
        Ok(self.0.try_clone().context("dup")?.into())
    }

    /// As [`process::fork_as`]. Nobody else has the right to choose. If a test wants it ([`ControlPage::take_ids`]), the first try fails.
    ///
    /// # Errors
    /// EEXIST if the id is taken; EAGAIN if others took it meanwhile and the child would be somebody else's, which is noted in `control`; as clone(2).
    fn fork(&self, pid: Pid, flags: u64, control: Option<&ControlPage>) -> nix::Result<Option<Pid>> {
        if process::exists(pid) {
            return Err(Errno::EEXIST);
        }
        let taken = control.is_some_and(ControlPage::are_ids_taken);
        for attempt in 0..TRIES {
            let last = self.read()?;
            if !taken || attempt > 0 {
                self.write(pid - 1)?;
            }
            let child = process::plain_clone(flags);
            if child == Ok(None) {
                if std::process::id() == pid.cast_unsigned() {
                    return Ok(None);
                }
                process::exit(0);
            }
            // For the sake of others: the numbers go on where they were. The child is there in any case.
            let _ = self.write(last);
            match child? {
                Some(child) if child == pid => return Ok(Some(pid)),
                // A child of the parent's: not for us to wait for.
                Some(_) if flags & CLONE_PARENT != 0 => {
                    control.inspect(|control| control.note_race());
                    return Err(Errno::EAGAIN);
                }
                Some(other) => forget(other)?,
                None => {}
            }
        }
        Err(Errno::EEXIST)
    }

    fn read(&self) -> nix::Result<Pid> {
        let mut text = [0; 16];
        let len = self.0.read_at(&mut text, 0).map_err(|error| errno(&error))?;
        let number = std::str::from_utf8(&text[..len]).ok().and_then(|text| text.trim().parse().ok());
        number.ok_or(Errno::EINVAL)
    }

    fn write(&self, last: Pid) -> nix::Result<()> {
        // At offset 0, in one piece (proc_get_pos_first() of kernel/sysctl.c).
        self.0.write_at(last.to_string().as_bytes(), 0).map(drop).map_err(|error| errno(&error))
    }

    /// Whether this process may choose. The number is written as it is, which changes nothing.
    ///
    /// # Errors
    /// EPERM without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    pub fn try_write(&self) -> nix::Result<()> {
        self.read().and_then(|last| self.write(last))
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Waits for a child that has ended by itself, and takes the signal that told so: all signals are blocked where ids are chosen.
fn forget(child: Pid) -> nix::Result<()> {
    while let Err(errno) = wait::wait(child, true) {
        if errno != Errno::EINTR {
            return Err(errno);
        }
    }
    let sigchld: SigSet = std::iter::once(Signal::SIGCHLD).collect();
    let _ = wait::take_pending(&sigchld);
    Ok(())
}

/// Forks a process with an id, when the tree does not exist yet and so nobody else of this restore forks.
///
/// # Errors
/// EEXIST if the id is taken; as clone3(2).
pub fn fork(pid: Pid, flags: u64) -> nix::Result<Option<Pid>> {
    /// For who has the right to choose for as long as it takes to restore a tree.
    const PATIENCE: Duration = Duration::from_secs(60);
    if !is_disabled(Switch::Clone3SetTid) {
        match process::fork_as(pid, flags) {
            Err(errno) if is_lacking(errno) => {}
            forked => return forked,
        }
    }
    fault::point(Point::Fork)?;
    let Ok(last) = LastPid::claim(Instant::now() + PATIENCE) else { return Err(Errno::EPERM) };
    let forked = last.fork(pid, flags, None);
    if forked == Ok(None) {
        // The lock is the parent's to give back, and the descriptor, if it is common.
        std::mem::forget(last);
    }
    forked
}

/// Whether this is what clone3 says that does not know ids, or that a container's filter forbids. Who lacks the right to choose is told so
/// by `ns_last_pid`, too.
#[must_use]
pub const fn is_lacking(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::E2BIG | Errno::EPERM)
}

/// How the processes of a tree get their ids.
#[derive(Debug)]
pub(crate) enum Chooser {
    /// By clone3.
    Clone3,
    /// By what the kernel gave last; the descriptor is for all processes of the tree.
    LastPid(LastPid, OwnedFd),
}

impl Chooser {
    /// Forks a process of the tree. `control` is shared by all that do.
    ///
    /// # Errors
    /// EEXIST if the id is taken; ECANCELED if the restore has failed; as clone3(2).
    pub(crate) fn fork(&self, control: &ControlPage, pid: Pid, flags: u64) -> nix::Result<Option<Pid>> {
        let Self::LastPid(last, _) = self else { return process::fork_as(pid, flags) };
        fault::point(Point::Fork)?;
        if !control.begin_choosing() {
            return Err(Errno::ECANCELED);
        }
        let forked = last.fork(pid, flags, Some(control));
        if forked != Ok(None) {
            control.end_choosing();
        }
        forked
    }

    /// What the programs are to have that clone by what the kernel gave last.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Clone3 => None,
            Self::LastPid(_, file) => Some(file.as_fd()),
        }
    }
}
