//! crr's own resource limits.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: a tree has more of them than one program usually needs. A restore
/// does so before this process's limits are compared with the tasks'.
///
/// # Errors
/// Never, by the manual.
pub fn raise_open_files() -> Result<()> {
    raise(Resource::RLIMIT_NOFILE)
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
