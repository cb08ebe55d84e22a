//! fanotify groups made again.

use super::{FOR_GOOD, overflow::overflow};
use crate::fault::{self, Point};
use crate::proc::mountinfo;
use crate::refusal::{Refusal, Refusals};
use crate::resource::creds::CAP_SYS_ADMIN;
use crate::resource::inotify::find::is_mounted;
use crate::sys::{fanotify as sys, process};
use anyhow::{Context, Result};
use images::fanotify::{Fanotify, Mark, Scope};
use images::file::{Files, Path};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) const FAN_MARK_ADD: u32 = 0x1;
const FAN_MARK_DONT_FOLLOW: u32 = 0x4;
const FAN_MARK_MOUNT: u32 = 0x10;
const FAN_MARK_IGNORED_MASK: u32 = 0x20;
const FAN_MARK_FILESYSTEM: u32 = 0x100;
const FAN_MARK_EVICTABLE: u32 = 0x200;
const FAN_MARK_IGNORE: u32 = 0x400;
pub(super) const FAN_EVENT_ON_CHILD: u32 = 0x800_0000;

/// Refuses groups that this kernel does not make, and marks of what is not mounted any more.
///
/// # Errors
/// If it is not to be seen what is mounted.
pub(crate) fn preflight(files: &Files, refusals: &mut Refusals) -> Result<()> {
    if files.fanotifies.is_empty() {
        return Ok(());
    }
    let mounts = mountinfo::parse(&std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?)?;
    let mut refuse = |object: String, reason: String, hint: Option<String>| {
        refusals.push(Refusal { task: None, object, reason, hint });
    };
    for (index, group) in files.fanotifies.iter().enumerate() {
        if let Err(error) = make(group) {
            refuse(format!("fanotify#{index}"), format!("{error:#}"), Some("run crr as root".to_owned()));
        }
        for mark in group.marks.iter().filter(|mark| mark.scope != Scope::Inode) {
            let name = &files.paths[mark.path.0 as usize].path;
            if !mounts.iter().any(|mount| mount.point == *name && is_mounted(mount)) {
                let name = String::from_utf8_lossy(name);
                let reason =
                    format!("fanotify#{index} is told what happens in it, and nothing is mounted there");
                refuse(name.into_owned(), reason, Some("mount it".to_owned()));
            }
        }
    }
    Ok(())
}

/// A group that is told of nothing yet.
///
/// # Errors
/// As fanotify_init(2).
pub(crate) fn create(record: &Fanotify, flags: u32) -> Result<OwnedFd> {
    let group = make(record)?;
    if record.lost {
        overflow(group.as_fd()).context("have a fanotify queue overflow")?;
    }
    fcntl(&group, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("F_SETFD")?;
    fcntl(&group, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed()))).context("set flags")?;
    Ok(group)
}

fn make(record: &Fanotify) -> Result<OwnedFd> {
    let make = || sys::create(record.flags, record.event_flags);
    let made = if record.privileged { make() } else { process::without_capabilities(CAP_SYS_ADMIN, make)? };
    made.context("fanotify_init (fs.fanotify.max_user_groups may be reached)")
}

/// Has a group told what it was told.
///
/// # Errors
/// Names what cannot be marked.
pub(super) fn mark(group: BorrowedFd<'_>, record: &Fanotify, paths: &[Path]) -> Result<()> {
    for mark in &record.marks {
        let path = &paths[mark.path.0 as usize];
        let name = String::from_utf8_lossy(&path.path);
        add(group, mark, path)
            .with_context(|| format!("mark {name} (fs.fanotify.max_user_marks may be reached)"))?;
    }
    Ok(())
}

fn add(group: BorrowedFd<'_>, mark: &Mark, path: &Path) -> Result<()> {
    let c_path = CString::new(path.path.as_slice()).context("not a path")?;
    let scope = match mark.scope {
        Scope::Inode => mark.flags & FAN_MARK_EVICTABLE,
        Scope::Mount => FAN_MARK_MOUNT,
        Scope::FileSystem => FAN_MARK_FILESYSTEM,
    };
    // What has no name is called by a link that is to be followed.
    let follow = if path.deleted.is_some() { 0 } else { FAN_MARK_DONT_FOLLOW };
    let how = FAN_MARK_ADD | scope | follow;
    // What has no children: the kernel itself sets it where it is of use, and may refuse it.
    let is_dir = mark.scope == Scope::Inode && path.mode & nix::libc::S_IFMT == nix::libc::S_IFDIR;
    let of = |mask: u32| if is_dir { mask } else { mask & !FAN_EVENT_ON_CHILD };
    fault::point(Point::AddWatch)?;
    if of(mark.mask) != 0 {
        sys::mark(group, how, of(mark.mask), &c_path)?;
    }
    if of(mark.ignored) != 0 {
        let kind = if mark.flags & FAN_MARK_IGNORE == 0 { FAN_MARK_IGNORED_MASK } else { FAN_MARK_IGNORE };
        sys::mark(group, how | kind | mark.flags & FOR_GOOD, of(mark.ignored), &c_path)?;
    }
    Ok(())
}
