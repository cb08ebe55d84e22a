//! A parent for the root of a detached tree that has asked for a signal when its parent dies.
//!
//! With `--restore-detached` the coordinator ends as soon as the tree runs, and the kernel would send the root its
//! parent-death signal. So the root gets another parent, which ends while every thread is still held; only then the
//! root sets its signal again.

use super::Restore;
use super::births;
use crate::sys::process;
use anyhow::{Context, Result, bail};
use images::Pid;
use nix::errno::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

/// The other parent. It ends when this value goes, also when the coordinator is killed, and the unfinished tree with it.
#[derive(Debug)]
pub(super) struct StandIn {
    pid: Pid,
    /// Closed to make it end.
    _leash: OwnedFd,
}

impl StandIn {
    /// Forks the parent, which forks the root with this pid.
    ///
    /// # Errors
    /// If one of the two cannot be forked.
    pub(super) fn fork(restore: &Restore<'_>, pid: Pid) -> Result<Self> {
        let (end, leash) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
        let (answer, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
        let Some(stand_in) = process::fork(0).context("fork a parent for the root")? else {
            drop(leash);
            drop(answer);
            let own = std::process::id().cast_signed();
            let errno = births::fork_first(restore, own, false).map_or_else(|errno| errno as i32, |()| 0);
            let told = File::from(tell).write_all(&errno.to_le_bytes());
            let mut byte = [0];
            if errno == 0 && told.is_ok() {
                births::see_off_first(restore);
                let _ = File::from(end).read(&mut byte);
            }
            process::exit(0);
        };
        drop(tell);
        let this = Self { pid: stand_in, _leash: leash };
        let mut errno = [0; 4];
        File::from(answer).read_exact(&mut errno).context("the parent of the root died")?;
        match i32::from_le_bytes(errno) {
            0 => Ok(this),
            errno => bail!("fork the root with pid {pid}: {}", Errno::from_raw(errno).desc().to_lowercase()),
        }
    }

    /// Has it end; the root then has the parent that orphans get.
    pub(super) fn leave(self) {
        let Self { pid, _leash } = self;
        drop(_leash);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
    }
}
