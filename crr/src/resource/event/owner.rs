//! Signal-driven I/O: F_SETOWN, F_SETSIG, O_ASYNC.

use super::{Place, Tree};
use crate::refusal::Refusals;
use crate::resource::Refuse;
use crate::resource::file::O_ASYNC;
use crate::sys::event as sys;
use crate::sys::{process, wait};
use anyhow::{Context, Result, bail};
use images::event::Notify;
use images::file::{Description, Files, Target};
use images::task::Task;
use images::terminal::PtyEnd;
use images::{DescriptionId, Pid};
use nix::errno::Errno;
use nix::unistd::{Uid, setresuid};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

/// F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP.
const TID: u32 = 0;
const PID: u32 = 1;
const PGRP: u32 = 2;

/// The way out.
const NO_SIGNALS: &str = "have the program set it back to 0 by fcntl before the dump";

/// Who is told of events at a description, if anything about it was ever set.
pub(super) fn dump(fd: BorrowedFd<'_>) -> Result<Option<Notify>> {
    let (kind, owner, signal) = sys::owner(fd).context("F_GETOWN_EX")?;
    if (kind, owner, signal) == (TID, 0, 0) {
        return Ok(None);
    }
    let uids = sys::owner_uids(fd).context("F_GETOWNER_UIDS (needs CONFIG_CHECKPOINT_RESTORE)")?;
    Ok(Some(Notify { kind, owner, uids, signal }))
}

/// fcntl_dirnotify(), fs/notify/dnotify/dnotify.c, sets an owner, and nothing shows what it watches.
pub(super) fn refuse_directory(notify: &Notify, place: &Place, refuse: &mut Refuse<'_>) {
    let reason = format!("has an owner for signals ({}), and may be watched (F_NOTIFY)", notify.owner);
    refuse.with_hint(&place.object, reason, "have the program close it before the dump");
}

/// Whether a tree has what an owner names. Nobody is always there.
pub(crate) fn is_known(notify: &Notify, tasks: &[Task], zombies: &[images::task::Zombie]) -> bool {
    let owner = notify.owner;
    let tasks = || tasks.iter();
    let zombies = || zombies.iter();
    owner == 0
        || match notify.kind {
            TID => tasks().flat_map(|task| &task.threads).any(|thread| thread.tid == owner),
            PID => tasks().any(|task| task.pid == owner) || zombies().any(|zombie| zombie.pid == owner),
            PGRP => tasks().any(|task| task.pgid == owner) || zombies().any(|zombie| zombie.pgid == owner),
            _ => false,
        }
}

/// Refuses owners that are not of the tree.
pub(super) fn check(owned: &[(Place, Notify)], tree: &Tree<'_>, refusals: &mut Refusals) {
    for (place, notify) in owned {
        if !is_known(notify, tree.tasks, tree.zombies) {
            let what = if notify.kind == PGRP { "process group" } else { "task" };
            let reason =
                format!("signals events to {what} {} (F_SETOWN), which is outside of the tree", notify.owner);
            place.refuse(refusals, reason, NO_SIGNALS);
        }
    }
}

/// Sets the owners of all descriptions, then has the kernel send signals. `group` tells how a process group is called
/// here.
pub(super) fn restore<'a>(
    files: &Files,
    tasks: &[Task],
    file: &impl Fn(DescriptionId) -> BorrowedFd<'a>,
    group: &impl Fn(Pid) -> Pid,
) -> Result<()> {
    let of_uids = by_uids(files);
    let own = (nix::unistd::getuid().as_raw(), nix::unistd::geteuid().as_raw());
    for (uids, owned) in of_uids {
        let set = || -> nix::Result<()> {
            for &(id, notify) in &owned {
                let owner = if notify.kind == PGRP { group(notify.owner) } else { notify.owner };
                sys::set_owner(file(id), notify.kind, owner)?;
                sys::set_signal(file(id), notify.signal)?;
            }
            Ok(())
        };
        let done = if uids == own { set() } else { as_user(uids, set)? };
        done.with_context(|| {
            let owners: Vec<Pid> = owned.iter().map(|(_, notify)| notify.owner).collect();
            format!("set owners of files (F_SETOWN) as user {} ({}): {owners:?}", uids.0, uids.1)
        })?;
    }
    for (id, description) in all(files).filter(|(_, description)| is_async(description)) {
        let file = file(id);
        let number = number(tasks, id, description.notify.as_ref()).unwrap_or_else(|| file.as_raw_fd());
        let set = || sys::set_flags(number, description.flags);
        sys::under_number(file, number, set).with_context(|| format!("{id}: set O_ASYNC"))?;
        // A terminal without an owner takes the one who calls (__tty_fasync).
        let kind = description.notify.map_or(TID, |notify| notify.kind);
        if description.notify.is_none_or(|notify| notify.owner == 0) {
            sys::set_owner(file, kind, 0).with_context(|| format!("{id}: set no owner"))?;
        }
    }
    Ok(())
}

fn all(files: &Files) -> impl Iterator<Item = (DescriptionId, &Description)> {
    (0..).map(DescriptionId).zip(&files.descriptions)
}

/// The owners, by who set them.
fn by_uids(files: &Files) -> BTreeMap<(u32, u32), Vec<(DescriptionId, Notify)>> {
    let mut of_uids: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, description) in all(files) {
        if let Some(notify) = description.notify {
            of_uids.entry(notify.uids).or_default().push((id, notify));
        }
    }
    of_uids
}

/// Whether files of this kind send signals, so that it is for F_SETFL to set O_ASYNC. Others can have the flag from
/// open(2), where it means nothing; that of a terminal which is hung up means nothing any more.
pub(crate) fn sends_signals(target: &Target) -> bool {
    !matches!(
        target,
        Target::Path(_)
            | Target::TaskFile(_)
            | Target::Namespace(_)
            | Target::MessageQueue(_)
            | Target::Pty { end: PtyEnd::HungUp, .. }
    )
}

fn is_async(description: &Description) -> bool {
    description.flags & O_ASYNC != 0 && sends_signals(&description.target)
}

/// The number that signals name for a description (`si_fd`): where O_ASYNC was set, which is not told. That of the
/// owner if it has one, else anybody's.
fn number(tasks: &[Task], id: DescriptionId, notify: Option<&Notify>) -> Option<i32> {
    let is_owner = |task: &Task| {
        notify.is_some_and(|notify| task.threads.iter().any(|thread| thread.tid == notify.owner))
    };
    let number = |task: &Task| {
        let entry = task.fds.iter().find(|entry| entry.description == id)?;
        Some(entry.fd.0.cast_signed())
    };
    let owners = tasks.iter().filter(|task| is_owner(task)).find_map(number);
    owners.or_else(|| tasks.iter().find_map(number))
}

/// Does something as another user, in a process of its own.
fn as_user((real, effective): (u32, u32), body: impl FnOnce() -> nix::Result<()>) -> Result<nix::Result<()>> {
    let Some(child) = process::fork(0).context("fork")? else {
        let (real, effective) = (Uid::from_raw(real), Uid::from_raw(effective));
        let done = setresuid(real, effective, effective).and_then(|()| body());
        process::exit(done.err().map_or(0, |errno| errno as i32))
    };
    loop {
        match wait::wait(child, true) {
            Ok(Some(status)) if libc::WIFEXITED(status) => {
                return Ok(match libc::WEXITSTATUS(status) {
                    0 => Ok(()),
                    errno => Err(Errno::from_raw(errno)),
                });
            }
            Ok(Some(status)) => bail!("the process that did so ended with {status:#x}"),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait"),
        }
    }
}
