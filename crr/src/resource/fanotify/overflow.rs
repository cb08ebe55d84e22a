//! A queue out of which events were lost.

use super::recreate::{FAN_EVENT_ON_CHILD, FAN_MARK_ADD};
use crate::sys::mount::private_tmpfs;
use crate::sys::process::own_fd;
use crate::sys::{fanotify as sys, inotify};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

const FAN_MARK_REMOVE: u32 = 0x2;
const FAN_OPEN: u32 = 0x20;
/// What FIONREAD counts for each event: the size of `struct fanotify_event_metadata`, whatever follows it.
const EVENT: usize = 24;

/// Leaves one event in the queue of a new group, that others are lost (FAN_Q_OVERFLOW).
///
/// The kernel puts it behind as many others as the queue takes, and once (fsnotify_insert_event() of fs/notify/notification.c). The others,
/// of files that nobody else sees, are read.
pub(super) fn overflow(group: BorrowedFd<'_>) -> Result<()> {
    const AT_ONCE: usize = 1024;
    const WHAT: u32 = FAN_OPEN | FAN_EVENT_ON_CHILD;
    let dir = private_tmpfs().context("make a file system")?;
    let name = CString::new(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    sys::mark(group, FAN_MARK_ADD, WHAT, &name).context("mark a directory")?;
    let (mut files, mut before) = (0, None);
    let mut unread = 0;
    while before != Some(unread) {
        // The same event of the same file is one with that before. All names are of one length, and so are all events.
        for _ in 0..AT_ONCE {
            let flags = OFlag::O_CREAT | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            openat(&dir, format!("{files:016}").as_str(), flags, Mode::S_IRUSR).context("make a file")?;
            files += 1;
        }
        before = Some(unread);
        unread = inotify::unread(group).context("FIONREAD")?;
    }
    sys::mark(group, FAN_MARK_REMOVE, WHAT, &name).context("remove a mark")?;
    let mut size = EVENT;
    let mut buffer = [0; 4096];
    for _ in 1..unread / EVENT {
        // As large as one event: what there is no room for stays.
        while let Err(errno) = take(group, &mut buffer[..size]) {
            ensure!(errno == Errno::EINVAL && size < buffer.len(), "read an event: {errno}");
            size += 4;
        }
    }
    ensure!(inotify::unread(group) == Ok(EVENT), "it took more events than it was full of");
    Ok(())
}

/// Takes one event, and closes the file that comes with it.
fn take(group: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<()> {
    nix::unistd::read(group, buffer)?;
    // struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid.
    let fd = buffer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    drop(fd.filter(|&fd| fd >= 0).map(own_fd));
    Ok(())
}
