//! Processes that exist for a moment because the kernel records who does something.
//!
//! SO_PEERCRED shows who made a pair. The tree does not run yet when its sockets are made, so its process ids are free, and
//! so are those of processes that had ended before the dump: one with the right id and credentials makes the pair.

use super::recreate::sock_type;
use crate::sys::process;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::socket::{PeerCredentials, UnixKind};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, dup3, pipe2, setgroups, setresgid, setresuid};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

/// Two connected sockets.
#[derive(Debug)]
pub(super) struct Pair(pub(super) OwnedFd, pub(super) OwnedFd);

/// Makes connected pairs as somebody else, or as crr itself.
///
/// # Errors
/// As fork(2) and socketpair(2).
pub(super) fn pairs(maker: Option<&PeerCredentials>, kinds: &[UnixKind]) -> Result<Vec<Pair>> {
    let place = || nix::fcntl::open(c"/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let mut places = kinds
        .iter()
        .map(|_| Ok(Pair(place()?, place()?)))
        .collect::<Result<Vec<_>>>()
        .context("make room")?;
    let Some(who) = maker else {
        make(kinds, &mut places).context("make a pair of sockets")?;
        return Ok(places);
    };
    let child = match process::fork(Some(who.pid).filter(|pid| *pid > 1), process::CLONE_FILES) {
        Err(Errno::EEXIST) => {
            log::warn!("SO_PEERCRED will show another process id than {}: that is taken", who.pid);
            process::fork(None, process::CLONE_FILES)
        }
        forked => forked,
    };
    match child.with_context(|| format!("fork a process with id {}", who.pid))? {
        None => {
            let made = become_somebody(who).and_then(|()| make(kinds, &mut places));
            process::exit(made.map_or_else(|errno| errno as i32, |()| 0))
        }
        Some(child) => match waitpid(nix::unistd::Pid::from_raw(child), None)? {
            WaitStatus::Exited(_, 0) => Ok(places),
            WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno))
                .with_context(|| format!("make a pair of sockets as task {}", who.pid)),
            status => bail!("make a pair of sockets as task {}: {status:?}", who.pid),
        },
    }
}

/// Makes a pair in each place. The places are in a table of descriptors that is shared with the parent.
fn make(kinds: &[UnixKind], places: &mut [Pair]) -> nix::Result<()> {
    for (kind, Pair(one, other)) in kinds.iter().zip(places) {
        let made = socketpair(AddressFamily::Unix, sock_type(*kind), None, SockFlag::SOCK_CLOEXEC)?;
        dup3(&made.0, one, OFlag::O_CLOEXEC)?;
        dup3(&made.1, other, OFlag::O_CLOEXEC)?;
    }
    Ok(())
}

/// SO_PEERCRED shows effective ids, SO_PEERGROUPS the groups.
fn become_somebody(who: &PeerCredentials) -> nix::Result<()> {
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
            match process::fork(Some(pid), 0) {
                Ok(Some(_)) => stand_ins.pids.push(pid),
                Ok(None) => {
                    process::close_fd(std::os::fd::AsRawFd::as_raw_fd(release));
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
