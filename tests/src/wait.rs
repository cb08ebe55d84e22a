//! Waiting for a condition, never for a time.

use anyhow::bail;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long one step of a test may take before it counts as failed.
pub const STEP: Duration = Duration::from_secs(30);

/// Asks `condition` until it gives something.
///
/// # Errors
/// What `condition` failed with, or that `limit` passed.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> crate::Result<Option<T>>,
) -> crate::Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("timed out after {limit:?}: {what}");
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
