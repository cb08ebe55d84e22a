//! crr's own resource limits.

use super::process;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::os::fd::RawFd;

/// Raises the soft limit of open files to the hard one: a tree has more of them than one program usually needs. A restore
/// does so before this process's limits are compared with the tasks'.
///
/// # Errors
/// Never, by the manual.
pub fn raise_open_files() -> Result<()> {
    raise(Resource::RLIMIT_NOFILE)
}

/// How many files crr may have open.
#[must_use]
pub fn open_files() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Tells the way out of an error that comes of too many open files.
#[must_use]
pub fn hint_at_open_files(error: anyhow::Error) -> anyhow::Error {
    if !is_caused_by(&error, Errno::EMFILE) {
        return error;
    }
    let most = open_files();
    error.context(format!(
        "crr may have {most} files open at once, which is too few: raise the hard limit of RLIMIT_NOFILE where dump and restore run (ulimit -Hn)"
    ))
}

/// Raises the soft limit of the size of files to the hard one, for a restore: it makes files as large as what it restores, for itself.
///
/// # Errors
/// Never, by the manual.
pub fn raise_file_size() -> Result<()> {
    raise(Resource::RLIMIT_FSIZE)
}

/// The largest file that crr may write, if that is the reason for an error.
#[must_use]
pub fn file_size_in_the_way(error: &anyhow::Error) -> Option<u64> {
    let (most, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
    (most != RLIM_INFINITY && is_caused_by(error, Errno::EFBIG)).then_some(most)
}

/// Whether an error comes of this one, of the kernel.
fn is_caused_by(error: &anyhow::Error, errno: Errno) -> bool {
    let is_one = |cause: &(dyn std::error::Error + 'static)| {
        let of_file = || cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        cause.downcast_ref() == Some(&errno) || of_file() == Some(errno as i32)
    };
    error.chain().any(is_one)
}

/// Makes the table of open files large enough for so many more. If it has to grow when several threads are there, who makes it grow waits for all
/// processors to have passed through the kernel's scheduler (synchronize_rcu() in expand_fdtable(), fs/file.c): many milliseconds.
pub fn make_room_for_files(count: usize) {
    // What cannot be done costs that time, no more.
    let Ok(lowest) = number_beyond(0) else { return };
    let _ = number_beyond(lowest.saturating_add(i32::try_from(count).unwrap_or(i32::MAX)));
}

/// A number that is free, and none below it from `least` on, by having it in use for a moment.
fn number_beyond(least: RawFd) -> nix::Result<RawFd> {
    let number = fcntl(std::io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(least))?;
    drop(process::own_fd(number));
    Ok(number)
}

/// Raises the soft limit of queued signals to the hard one, for a restore as [`raise_open_files`]: a tree can have more of
/// them than the soft limit allows.
///
/// # Errors
/// Never, by the manual.
pub fn raise_pending_signals() -> Result<()> {
    raise(Resource::RLIMIT_SIGPENDING)
}

fn raise(resource: Resource) -> Result<()> {
    let (soft, hard) = getrlimit(resource).context("getrlimit")?;
    if soft < hard { setrlimit(resource, hard, hard).context("setrlimit") } else { Ok(()) }
}
