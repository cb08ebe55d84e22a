//! Resource limits.

use crate::proc::{Dir, limits};
use anyhow::{Context, Result};

/// Soft and hard limits in the order of `RLIMIT_*`.
///
/// # Errors
/// If the file cannot be read.
pub fn dump_limits(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Vec<(u64, u64)>> {
    dir.read("limits", buffer).context("read limits")?;
    Ok(limits::parse(buffer)?)
}
