//! fanotify: groups, by what fdinfo shows of each mark: how much is marked, the events, and by what the marked file, mount or file system is found again.
//!
//! Groups that are asked before something is done (FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT) are refused before the tree is stopped: a
//! program that stands still answers to nobody, and crr itself would wait for its answer. Those that it got since are refused before anything
//! but procfs is opened.
//!
//! Events that have not been read yet are lost, as those of [`super::inotify`], and the restored group tells so ([`overflow`]).

mod overflow;
pub(crate) mod recreate;

use super::creds::CAP_SYS_ADMIN;
use super::event::{Kind, Place};
use super::inotify::Nameless;
use super::inotify::find::Finder;
use super::path::{CLOSE, Paths};
use crate::parallel;
use crate::proc::tasks::comm_of;
use crate::proc::{Dir, fanotify as shown, living_thread};
use crate::refusal::Refusals;
use crate::sys::{fanotify, inotify as sys, process};
use anyhow::{Context, Result};
use images::fanotify::{Fanotify, Mark, Scope};
use images::file::{Description, Target};
use images::task::Task;
use images::{DescriptionId, PathId, Pid};
use nix::errno::Errno;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT.
const JUDGES: u32 = 0xc;
/// Flags of fanotify_init(2) that only CAP_SYS_ADMIN could ask for: FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS, FAN_ENABLE_AUDIT, FAN_REPORT_PIDFD,
/// FAN_REPORT_TID, FAN_REPORT_FD_ERROR (FANOTIFY_ADMIN_INIT_FLAGS of include/linux/fanotify.h).
const OF_ADMINS: u32 = 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x2000;
const FAN_REPORT_FID: u32 = 0x200;
/// FAN_REPORT_FID, FAN_REPORT_DIR_FID, FAN_REPORT_NAME, FAN_REPORT_TARGET_FID: without, files are opened for who is told of them, which takes that
/// right, too.
const BY_HANDLE: u32 = FAN_REPORT_FID | 0x400 | 0x800 | 0x1000;
/// FAN_CLOEXEC, FAN_NONBLOCK, and all of these.
const KNOWN: u32 = 0x3 | OF_ADMINS | BY_HANDLE;
/// FAN_UNLIMITED_QUEUE, which never overflows, and FAN_REPORT_PIDFD, by which each event that is read makes a pidfd.
const UNTOLD: u32 = 0x10 | 0x80;
/// FAN_MARK_IGNORED_SURV_MODIFY.
const FOR_GOOD: u32 = 0x40;

const ASKED: &str = "a fanotify group that is asked for permission: crr would wait for the answer of a task that stands still";
const END_IT: &str = "end the program, and start it again after the restore";
const READ_IT: &str = "have the program read them";

/// One that was found.
#[derive(Debug)]
pub(crate) struct Found {
    place: Place,
    group: shown::Group,
    /// Bytes of events that nobody has read, before crr itself opened much.
    unread: usize,
}

impl Found {
    /// By what fdinfo shows.
    pub(crate) fn look(place: Place, text: &[u8]) -> Result<Self> {
        let group = shown::group(text)?;
        let unread = sys::unread(place.copy()?.as_fd()).context("FIONREAD")?;
        Ok(Self { place, group, unread })
    }
}

/// The groups of tasks that may be running, by thread and number, as their links in procfs tell. A task that is gone has none.
pub(crate) fn groups_of(tasks: &[Pid]) -> Result<Vec<(Pid, u32)>> {
    let look = |&pid: &Pid| {
        let tid = living_thread(pid);
        groups_in(tid).map(|numbers| numbers.into_iter().map(|fd| (tid, fd)).collect::<Vec<_>>())
    };
    Ok(parallel::map(tasks, look)?.into_iter().flatten().collect())
}

fn groups_in(tid: Pid) -> Result<Vec<u32>> {
    let Ok(task) = Dir::task(tid) else { return Ok(Vec::new()) };
    let numbers = task.numbers::<u32>("fd").unwrap_or_default();
    let group = |&fd: &u32| {
        let link = task.link(&format!("fd/{fd}"));
        Ok(link.is_ok_and(|link| Kind::of(link.as_bytes()) == Some(Kind::Fanotify)).then_some(fd))
    };
    Ok(parallel::map(&numbers, group)?.into_iter().flatten().collect())
}

/// Refuses a tree with a group that is asked for permission, among these descriptors of its tasks: before it is stopped, and when it stands still,
/// since it may have got one in between. Nothing is opened but procfs.
///
/// # Errors
/// [`crate::refusal::Refused`], by which `command` is refused.
pub(crate) fn refuse_judges(groups: &[(Pid, u32)], command: &'static str) -> Result<()> {
    let mut refusals = Refusals::default();
    for (pid, fd) in groups {
        // One that is gone by now is no obstacle.
        let text = fs::read(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        if shown::group(&text).is_ok_and(|group| group.flags & JUDGES != 0) {
            refusals.task(
                (*pid, &comm_of(*pid)),
                format!("fd {fd} (anon_inode:[fanotify])"),
                ASKED,
                Some(END_IT),
            );
        }
    }
    Ok(refusals.finish(command)?)
}

/// Finds what all of them are told of, once all descriptions of the tree are known.
pub(crate) fn dump(
    found: &[Found],
    tasks: &[Task],
    paths: &mut Paths,
    refusals: &mut Refusals,
) -> Result<Vec<Fanotify>> {
    let mut finder = Finder::default();
    let mut records = Vec::with_capacity(found.len());
    for Found { place, group, unread } in found {
        let lost = *unread > 0;
        for (reason, hint) in obstacles(group, lost) {
            place.refuse(refusals, reason, hint);
        }
        if lost {
            log::warn!(
                "task {} ({}): {}: events that it has not read are not kept; once restored, it is told so (FAN_Q_OVERFLOW)",
                place.task.0,
                place.task.1,
                place.object
            );
        }
        let privileged = privileged(group, place, tasks, refusals);
        let (flags, event_flags) = (group.flags, group.event_flags);
        let mut record = Fanotify { flags, event_flags, privileged, lost, marks: Vec::new() };
        for mark in group.marks.iter().rev() {
            match find(mark, &mut finder, paths).with_context(|| place.object.clone())? {
                Ok((scope, path)) => {
                    let shown::Mark { flags, mask, ignored, .. } = *mark;
                    record.marks.push(Mark { scope, path, flags, mask, ignored });
                }
                Err(why) => place.refuse(refusals, format!("a mark of it: {}", why.reason), why.hint),
            }
        }
        records.push(record);
    }
    Ok(records)
}

/// Why a group cannot be made again, and the ways out.
fn obstacles(group: &shown::Group, lost: bool) -> Vec<(String, &'static str)> {
    let mut obstacles = Vec::new();
    if group.flags & JUDGES != 0 {
        obstacles.push((ASKED.to_owned(), END_IT));
    }
    let unknown = group.flags & !(KNOWN | JUDGES);
    if unknown != 0 {
        obstacles.push((format!("fanotify groups with flags {unknown:#x} are not supported"), CLOSE));
    }
    if lost && group.flags & UNTOLD != 0 {
        let reason = "events that have not been read would be lost, and it could not be told so (FAN_UNLIMITED_QUEUE, FAN_REPORT_PIDFD)";
        obstacles.push((reason.to_owned(), READ_IT));
    }
    let until_changed = |mark: &shown::Mark| {
        matches!(mark.object, shown::Object::Inode(_)) && mark.ignored != 0 && mark.flags & FOR_GOOD == 0
    };
    if group.marks.iter().any(until_changed) {
        // One that is open for writing takes no such mark (do_fanotify_mark() of fs/notify/fanotify/fanotify_user.c).
        let reason = "it ignores a file until that is changed (without FAN_MARK_IGNORED_SURV_MODIFY)";
        obstacles.push((reason.to_owned(), CLOSE));
    }
    obstacles
}

/// Whether a group was made with CAP_SYS_ADMIN, which the kernel does not show: by what only such a one can have, or, where there is nothing of the
/// kind, by those who have it.
fn privileged(group: &shown::Group, place: &Place, tasks: &[Task], refusals: &mut Refusals) -> bool {
    let is_inode = |mark: &shown::Mark| matches!(mark.object, shown::Object::Inode(_));
    if group.flags & OF_ADMINS != 0
        || group.flags & BY_HANDLE == 0
        || !group.marks.iter().all(is_inode)
        || !anybody_may()
    {
        return true;
    }
    let holders = tasks.iter().filter(|task| task.fds.iter().any(|entry| entry.description == place.id));
    let mut rights =
        holders.flat_map(|task| &task.threads).map(|thread| thread.creds.cap_permitted & CAP_SYS_ADMIN != 0);
    let first = rights.next();
    if first.is_none() || rights.any(|right| Some(right) != first) {
        let reason =
            "whether it was made with CAP_SYS_ADMIN is shown nowhere, and not all who have it have that";
        place.refuse(refusals, reason, CLOSE);
    }
    first.unwrap_or(false)
}

/// Whether this kernel lets anybody make groups (Linux 5.13).
fn anybody_may() -> bool {
    let made = process::without_capabilities(CAP_SYS_ADMIN, || fanotify::create(FAN_REPORT_FID, 0));
    !matches!(made, Ok(Err(Errno::EPERM)))
}

/// What a mark is on, or why that cannot be found.
fn find(
    mark: &shown::Mark,
    finder: &mut Finder,
    paths: &mut Paths,
) -> Result<Result<(Scope, PathId), Nameless>> {
    let (scope, found) = match &mark.object {
        shown::Object::Inode(file) => (Scope::Inode, finder.find(file, paths)?),
        shown::Object::Mount(id) => (Scope::Mount, finder.find_mount(|mount| mount.id == *id, paths)?),
        shown::Object::FileSystem(device) => {
            (Scope::FileSystem, finder.find_mount(|mount| mount.device == *device, paths)?)
        }
        shown::Object::Namespace => {
            return Ok(Err(Nameless::new("on a mount namespace, which is not supported")));
        }
    };
    Ok(found.map(|path| (scope, path)))
}

/// The groups of a tree as they are restored: marks are added when nothing is opened, read or closed any more.
#[derive(Debug)]
pub(crate) struct Groups<'a>(Vec<(DescriptionId, OwnedFd, &'a Fanotify)>);

impl<'a> Groups<'a> {
    /// Takes hold of them.
    pub(crate) fn of<'f>(
        descriptions: &[Description],
        records: &'a [Fanotify],
        file: impl Fn(DescriptionId) -> BorrowedFd<'f>,
    ) -> Result<Self> {
        let mut groups = Vec::new();
        for (id, description) in (0..).map(DescriptionId).zip(descriptions) {
            if let Target::Fanotify(index) = description.target {
                let copy = file(id).try_clone_to_owned().context("dup")?;
                groups.push((id, copy, &records[index as usize]));
            }
        }
        Ok(Self(groups))
    }

    /// Adds all marks.
    pub(crate) fn mark(self, paths: &[images::file::Path]) -> Result<()> {
        for (id, group, record) in &self.0 {
            recreate::mark(group.as_fd(), record, paths).with_context(|| format!("fanotify {id}"))?;
        }
        Ok(())
    }
}
