//! crr's own resource limits.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: a tree has more of them than one program usually needs. A restore
/// does so before this process's limits are compared with the tasks'.
///
/// # Errors
/// Never, by the manual.
pub fn raise_open_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit") } else { Ok(()) }
}
