//! Processes that exist for a moment because the kernel records who does something.
//!
//! SO_PEERCRED shows who made a pair, who connected, who listened. The tree does not run yet when its sockets are made, so its
//! process ids are free, and so are those of processes that had ended before the dump: one with the right id and
//! credentials makes the call.

use crate::sys::{last_pid, process};
use anyhow::{Context, Result, bail};
use images::Pid;
use images::socket::PeerCredentials;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, pipe2, setgroups, setresgid, setresuid};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

/// Does something as somebody else, or as crr itself. What is done shows in the table of descriptors only: memory is a copy.
///
/// # Errors
/// As fork(2), and what `act` answers.
pub(super) fn act(who: Option<&PeerCredentials>, act: impl FnOnce() -> nix::Result<()>) -> Result<()> {
    let Some(who) = who else { return Ok(act()?) };
    if !in_process(who.pid, process::CLONE_FILES, || become_somebody(who).and_then(|()| act()))? {
        log::warn!("SO_PEERCRED will show another process id than {}: that is taken", who.pid);
    }
    Ok(())
}

/// Does something in a process with this id, or with another where that cannot be had: whether it was the right one. Memory is a copy.
///
/// # Errors
/// As fork(2), and what `act` answers.
pub(crate) fn in_process(pid: Pid, flags: u64, act: impl FnOnce() -> nix::Result<()>) -> Result<bool> {
    let (child, is_right) = match pid {
        ..=1 => (process::fork(flags), true),
        pid => match last_pid::fork(pid, flags) {
            // Taken, or beyond kernel.pid_max.
            Err(Errno::EEXIST | Errno::EINVAL) => (process::fork(flags), false),
            forked => (forked, true),
        },
    };
    match child.with_context(|| format!("fork a process with id {pid}"))? {
        None => process::exit(act().map_or_else(|errno| errno as i32, |()| 0)),
        Some(child) => match waitpid(nix::unistd::Pid::from_raw(child), None)? {
            WaitStatus::Exited(_, 0) => Ok(is_right),
            WaitStatus::Exited(_, errno) => {
                Err(Errno::from_raw(errno)).with_context(|| format!("as process {pid}"))
            }
            status => bail!("as process {pid}: {status:?}"),
        },
    }
}

/// SO_PEERCRED shows effective ids, SO_PEERGROUPS the groups. Privileges stay: the task may have connected while a
/// directory was still open to it.
fn become_somebody(who: &PeerCredentials) -> nix::Result<()> {
    process::keep_capabilities()?;
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (gid, uid) = (Gid::from_raw(who.gid), Uid::from_raw(who.uid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}
/// Processes that do nothing but exist: a message can be sent in the name of one that does. Dropped, they end.
#[derive(Debug)]
pub(super) struct StandIns {
    pids: Vec<Pid>,
    release: Option<OwnedFd>,
}

impl StandIns {
    /// Has a process for each of these ids.
    ///
    /// # Errors
    /// As fork(2).
    pub(super) fn new(pids: impl Iterator<Item = Pid>) -> Result<Self> {
        let wanted: BTreeSet<Pid> = pids.collect();
        let mut stand_ins = Self { pids: Vec::new(), release: None };
        if wanted.is_empty() {
            return Ok(stand_ins);
        }
        let (wait, release) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
        let release = stand_ins.release.insert(release);
        for pid in wanted {
            match last_pid::fork(pid, 0) {
                Ok(Some(_)) => stand_ins.pids.push(pid),
                Ok(None) => {
                    process::close_fd(release.as_raw_fd());
                    let _ = nix::unistd::read(&wait, &mut [0]);
                    process::exit(0)
                }
                // Somebody has it: good enough.
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).with_context(|| format!("fork a process with id {pid}")),
            }
        }
        Ok(stand_ins)
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        self.release = None;
        for &pid in &self.pids {
            let _ = waitpid(nix::unistd::Pid::from_raw(pid), None);
        }
    }
}
