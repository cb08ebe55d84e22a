//! The ways every workload is run.

use crate::abi::Abi;
use crate::case::{Running, Workload, nothing_left};
use crate::snapshot::Snapshot;
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

/// Dump, and restore as on a kernel with another vDSO: all but its areas is as it was, and it verifies itself.
///
/// # Errors
/// What differs.
pub fn on_another_kernel(dir: &Path, workload: &Workload, abi: Abi) -> crate::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    elsewhere(&mut running, &before)?;
    running.verify()
}

/// Dump and restore `count` times, on another kernel and on the first by turns, ending on another one: on the first all
/// is as it was, elsewhere all but the areas of the vDSO, of which there are no more from one time to the next.
///
/// # Errors
/// What differs, and in which cycle.
pub fn between_kernels(dir: &Path, workload: &Workload, abi: Abi, count: u32) -> crate::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    let mut areas = 0;
    for cycle in 1..=count {
        let now = there_and_back(&mut running, &before, cycle < count)
            .map_err(|e| e.context(format!("cycle {cycle} of {count}")))?;
        anyhow::ensure!(areas == 0 || now == areas, "cycle {cycle}: {now} areas, not {areas} as before");
        areas = now;
    }
    running.verify()
}

/// To another kernel, from there to yet another one, and back to the first if asked to. How many areas there were before that.
fn there_and_back(running: &mut Running, before: &Snapshot, back: bool) -> crate::Result<usize> {
    elsewhere(running, before)?;
    elsewhere(running, before)?;
    let areas = running.snapshot()?.areas();
    if back {
        running.cycle(before)?;
    }
    Ok(areas)
}

fn elsewhere(running: &mut Running, before: &Snapshot) -> crate::Result {
    running.dump(&[])?.success()?;
    nothing_left()?;
    running.restore_under(&["env", "CRR_FAULT=vdso-differs"], &["-d"])?.success()?;
    running.looks_like_but_for_areas(before)
}
