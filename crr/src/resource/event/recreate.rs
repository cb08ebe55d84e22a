//! Event files made again, as they are until [`super::complete`].

use crate::sys::event as sys;
use anyhow::{Context, Result};
use images::event::{Eventfd, Timerfd};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::os::fd::OwnedFd;

fn with_flags(fd: OwnedFd, flags: u32) -> Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed()))).context("set flags")?;
    Ok(fd)
}

/// An eventfd with its counter.
///
/// # Errors
/// EMFILE.
pub(crate) fn eventfd(record: Eventfd, flags: u32) -> Result<OwnedFd> {
    let fd = sys::eventfd(record.semaphore).context("eventfd")?;
    if record.count > 0 {
        nix::unistd::write(&fd, &record.count.to_ne_bytes()).context("set the counter of an eventfd")?;
    }
    with_flags(fd, flags)
}

/// A timerfd that does not run yet.
///
/// # Errors
/// As timerfd_create(2).
pub(crate) fn timerfd(record: Timerfd, flags: u32) -> Result<OwnedFd> {
    let fd =
        sys::timerfd(record.clock).with_context(|| format!("timerfd_create on clock {}", record.clock))?;
    with_flags(fd, flags)
}

/// A signalfd.
///
/// # Errors
/// EMFILE.
pub(crate) fn signalfd(signals: u64, flags: u32) -> Result<OwnedFd> {
    with_flags(sys::signalfd(signals).context("signalfd")?, flags)
}

/// An epoll that watches nothing yet.
///
/// # Errors
/// EMFILE.
pub(crate) fn epoll(flags: u32) -> Result<OwnedFd> {
    with_flags(sys::epoll().context("epoll_create1")?, flags)
}
