//! inotify groups made again.

use crate::fault::{self, Point};
use crate::sys::inotify as sys;
use crate::sys::memfd;
use anyhow::{Context, Result, ensure};
use images::file::Path;
use images::inotify::Inotify;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

const IN_ACCESS: u32 = 0x1;
const IN_MODIFY: u32 = 0x2;
/// Set on every watch by the kernel itself; so it may be asked for where nothing else is.
const IN_UNMOUNT: u32 = 0x2000;
const IN_DONT_FOLLOW: u32 = 0x200_0000;

/// A group that watches nothing yet.
///
/// # Errors
/// As inotify_init1(2).
pub(crate) fn create(record: &Inotify, flags: u32) -> Result<OwnedFd> {
    let group = sys::create().context("inotify_init1 (fs.inotify.max_user_instances may be reached)")?;
    if record.lost {
        overflow(group.as_fd()).context("have an inotify queue overflow")?;
    }
    fcntl(&group, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed()))).context("set flags")?;
    Ok(group)
}

/// Leaves one event in the queue, that others are lost.
///
/// The kernel puts it behind as many others as the queue takes, and once. While it is there and the queue is full, further events are dropped, and so
/// is the one that tells of the end of a watch (fsnotify_insert_event() of fs/notify/notification.c). The others are read.
fn overflow(group: BorrowedFd<'_>) -> Result<()> {
    const EVENT: usize = 16;
    const AT_ONCE: usize = 4096;
    let memfd = memfd::own("events")?;
    let name = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    // Its own description tells nobody what happens to it: such files are not opened (alloc_file_pseudo() of fs/file_table.c).
    let file = File::options().read(true).write(true).open(&name).context("memfd")?;
    let wd = sys::watch(group, &CString::new(name)?, IN_ACCESS | IN_MODIFY).context("watch a memfd")?;
    let mut before = None;
    let mut unread = 0;
    while before != Some(unread) {
        // The same event twice in a row is one.
        for _ in 0..AT_ONCE / 2 {
            file.write_all_at(&[0], 0).context("memfd")?;
            file.read_exact_at(&mut [0], 0).context("memfd")?;
        }
        before = Some(unread);
        unread = sys::unread(group).context("FIONREAD")?;
    }
    sys::unwatch(group, wd).context("inotify_rm_watch")?;
    let mut others = vec![0; unread.saturating_sub(EVENT)];
    let read =
        if others.is_empty() { 0 } else { nix::unistd::read(group, &mut others).context("read events")? };
    ensure!(
        read == others.len() && sys::unread(group) == Ok(EVENT),
        "it took more events than it was full of"
    );
    Ok(())
}

/// Has a group watch what it watched, under the same numbers.
///
/// # Errors
/// Names what cannot be watched.
pub(super) fn watch(group: BorrowedFd<'_>, record: &Inotify, paths: &[Path]) -> Result<()> {
    const NEEDS: &str = "INOTIFY_IOC_SETNEXTWD (needs CONFIG_CHECKPOINT_RESTORE)";
    let mut expected = None;
    for watch in &record.watches {
        let path = &paths[watch.path.0 as usize];
        let name = String::from_utf8_lossy(&path.path);
        if expected != Some(watch.wd) {
            sys::set_next(group, watch.wd).context(NEEDS)?;
        }
        expected = Some(watch.wd + 1);
        // What has no name is called by a link that is to be followed.
        let follow = if path.deleted.is_some() { 0 } else { IN_DONT_FOLLOW };
        let c_path = CString::new(path.path.as_slice()).with_context(|| format!("{name}: not a path"))?;
        let wd = (fault::point(Point::AddWatch))
            .and_then(|()| sys::watch(group, &c_path, watch.mask | follow | IN_UNMOUNT))
            .with_context(|| format!("watch {name} (fs.inotify.max_user_watches may be reached)"))?;
        ensure!(wd == watch.wd, "{name}: is the same file as another that is watched (watch {wd})");
    }
    sys::set_next(group, record.next).context(NEEDS)
}
