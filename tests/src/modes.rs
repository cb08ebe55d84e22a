//! The ways every workload is run.

use crate::abi::Abi;
use crate::case::Workload;
use std::path::Path;

/// No checkpoint at all: if this fails, the workload is wrong and not `crr`.
///
/// # Errors
/// See above.
pub fn control(dir: &Path, workload: &Workload, abi: Abi) -> crate::Result {
    let running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    running.looks_like(&before)?;
    running.verify()
}

/// Dump, gone, restore: it is as it was and verifies itself.
///
/// # Errors
/// What differs.
pub fn restored(dir: &Path, workload: &Workload, abi: Abi) -> crate::Result {
    cycles(dir, workload, abi, 1)
}

/// Dump with `--leave-running`: it is as it was and verifies itself.
///
/// # Errors
/// What differs.
pub fn left_running(dir: &Path, workload: &Workload, abi: Abi) -> crate::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    running.dump(&["--leave-running"])?.success()?;
    running.looks_like(&before)?;
    running.verify()
}

/// Dump and restore `count` times in a row, each time compared with the very first look.
///
/// # Errors
/// What differs, and in which cycle.
pub fn cycles(dir: &Path, workload: &Workload, abi: Abi, count: u32) -> crate::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    for cycle in 1..=count {
        running.cycle(&before).map_err(|e| e.context(format!("cycle {cycle} of {count}")))?;
    }
    running.verify()
}
