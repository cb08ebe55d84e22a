//! Landlock domains: they cannot be read back, so a thread that is in one is refused.
//!
//! The kernel tells of a domain only by what it forbids. One thing every domain forbids, whatever its rules: to look at a task
//! outside of it in the way that ptrace(2) calls PTRACE_MODE_READ (hook_ptrace_access_check() of security/landlock/task.c). So
//! each thread is to compare with itself, by kcmp(2), a process that it may look at: crr, if that has the same user and no more privileges, else one
//! that crr makes for it. That changes nothing, and by EPERM it tells.

use super::Refuse;
use crate::proc::{Dir, status};
use crate::remote::{Arg, Batch, Call, Handle, Reply};
use crate::sys::stranger::{Guise, Stranger, has_landlock};
use anyhow::{Context, Result};
use images::Pid;
use images::thread::Creds;
use nix::errno::Errno;
use std::collections::HashMap;

/// The processes to be looked at.
#[derive(Debug)]
pub(crate) struct Bystanders {
    present: bool,
    /// What crr shows of itself.
    own: Guise,
    /// Those that were made, one for each pair of real user and group.
    by_ids: HashMap<(u32, u32), Stranger>,
}

impl Bystanders {
    /// With the one that the threads of a task will need, if they are crr's own user's: making a process takes longer than all that
    /// is asked of a small task, so it is done before the tree stands still. Not for another user: while the tree runs, a process more may be
    /// one too many for it (RLIMIT_NPROC).
    ///
    /// # Errors
    /// If there can be no such process.
    pub(crate) fn expecting(task: Pid) -> Result<Self> {
        let own = Guise::own().context("look at own credentials")?;
        let mut bystanders = Self { present: has_landlock(), own, by_ids: HashMap::new() };
        let status = || -> Result<status::Status> {
            let mut text = Vec::new();
            Dir::task(task)?.read_record("status", &mut text)?;
            Ok(status::parse(&text)?)
        };
        // A task that is gone is missed when it is to be stopped.
        if let Ok(status) = status()
            && status.uid[0] == own.uids[0]
        {
            let [_, permitted, ..] = status.caps;
            bystanders.of(status.uid[0], status.gid[0], permitted)?;
        }
        Ok(bystanders)
    }

    /// Whom a thread with these credentials may look at unless it is in a domain. `None` where the kernel has no domains.
    ///
    /// # Errors
    /// If there can be no such process.
    pub(crate) fn for_thread(&mut self, creds: &Creds) -> Result<Option<Pid>> {
        // Of the four ids, PTRACE_MODE_REALCREDS looks at the first.
        self.of(creds.uid[0], creds.gid[0], creds.cap_permitted)
    }

    fn of(&mut self, uid: u32, gid: u32, permitted: u64) -> Result<Option<Pid>> {
        if !self.present {
            return Ok(None);
        }
        if self.own.is_open_to(uid, gid, permitted) {
            return Ok(Some(nix::unistd::getpid().as_raw()));
        }
        if let Some(stranger) = self.by_ids.get(&(uid, gid)) {
            return Ok(Some(stranger.pid()));
        }
        let stranger = Stranger::new(uid, gid)
            .with_context(|| format!("make a process of user {uid}, group {gid}, to look for Landlock"))?;
        let pid = stranger.pid();
        self.by_ids.insert((uid, gid), stranger);
        Ok(Some(pid))
    }
}

/// The part of a batch that asks one thread.
#[derive(Debug)]
pub(crate) struct AskLandlock(Option<Handle>);

impl AskLandlock {
    pub(crate) fn new(batch: &mut Batch, stranger: Option<Pid>) -> Self {
        const KCMP_VM: u64 = 1;
        Self(stranger.map(|pid| {
            let pid = Arg::Value(u64::from(pid.unsigned_abs()));
            batch.call(Call::Kcmp, &[pid, pid, Arg::Value(KCMP_VM)])
        }))
    }

    /// Refuses a thread that is in a domain.
    pub(crate) fn check(&self, reply: &Reply, tid: Pid, refuse: &mut Refuse<'_>) -> Result<()> {
        let Some(handle) = self.0 else { return Ok(()) };
        match reply.result(handle) {
            Ok(_) => Ok(()),
            Err(Errno::EPERM | Errno::EACCES) => {
                let reason =
                    "is restricted by Landlock (or another security module), which cannot be read back";
                let hint = "start the program without that restriction";
                refuse.with_hint(format!("thread {tid}"), reason, hint);
                Ok(())
            }
            Err(errno) => Err(errno).context("compare a process with itself (needs CONFIG_KCMP)"),
        }
    }
}
