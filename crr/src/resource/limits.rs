//! Resource limits.

use crate::proc::{Dir, limits};
use anyhow::{Context, Result};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Soft and hard limits in the order of `RLIMIT_*`.
///
/// # Errors
/// If the file cannot be read.
pub fn dump_limits(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Vec<(u64, u64)>> {
    dir.read_record("limits", buffer).context("read limits")?;
    Ok(limits::parse(buffer)?)
}

/// A limit of crr's own, which is as high as can be had for as long as this value is there; soft and hard as they were.
#[derive(Debug)]
pub(crate) struct Raised(Resource, u64, u64);

impl Raised {
    /// Raises it.
    pub(crate) fn new(limit: Resource) -> Result<Self> {
        let (soft, hard) = getrlimit(limit).context("getrlimit")?;
        // With CAP_SYS_RESOURCE, or without.
        setrlimit(limit, RLIM_INFINITY, RLIM_INFINITY)
            .or_else(|_| setrlimit(limit, hard, hard))
            .context("setrlimit")?;
        Ok(Self(limit, soft, hard))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let _ = setrlimit(self.0, self.1, self.2);
    }
}
