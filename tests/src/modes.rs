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

/// Dump, and restore as on another kernel: all but the areas of the vDSO is as it was, and it verifies itself.
///
/// # Errors
/// What differs.
pub fn on_another_kernel(dir: &Path, workload: &Workload, abi: Abi, kernel: Kernel) -> crate::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    elsewhere(&mut running, &before, kernel)?;
    running.verify()
}

/// The same, and back again before it verifies itself: all is as it was.
///
/// # Errors
/// What differs.
pub fn on_another_kernel_and_back(
    dir: &Path,
    workload: &Workload,
    abi: Abi,
    kernel: Kernel,
) -> crate::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    elsewhere(&mut running, &before, kernel)?;
    running.cycle(&before)?;
    running.verify()
}

/// Dump and restore `count` times, on another kernel and on the first by turns: all but the areas of the vDSO is as it was, and they do not
/// become more from one turn to the next.
///
/// # Errors
/// What differs, and in which cycle.
pub fn by_turns(dir: &Path, workload: &Workload, abi: Abi, count: u32) -> crate::Result {
    /// The ledger, and what was parked with what stands in for it, as long as something points there: what is left of signal frames in stacks that
    /// nobody has overwritten since, too. Less than one for each turn to another kernel.
    const MOST: usize = 40;
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    for cycle in 1..=count {
        let to = if cycle % 2 == 1 { Kernel::Other } else { Kernel::First };
        elsewhere(&mut running, &before, to).map_err(|e| e.context(format!("cycle {cycle} of {count}")))?;
        let more = running.snapshot()?.areas() - before.areas();
        anyhow::ensure!(more <= MOST, "cycle {cycle}: {more} areas more than at first");
    }
    running.verify()
}

/// A kernel that crr is told to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The one of the first dump.
    First,
    /// With another vDSO.
    Other,
    /// That cannot move its vDSO.
    Immovable,
}

impl Kernel {
    /// What crr is run under to take it for this one.
    const fn fault(self) -> &'static [&'static str] {
        match self {
            Self::First => &[],
            Self::Other => &["env", "CRR_FAULT=vdso-differs"],
            Self::Immovable => &["env", "CRR_FAULT=vdso-immovable"],
        }
    }
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
    elsewhere(running, before, Kernel::Other)?;
    elsewhere(running, before, Kernel::Other)?;
    let areas = running.snapshot()?.areas();
    if back {
        running.cycle(before)?;
    }
    Ok(areas)
}

fn elsewhere(running: &mut Running, before: &Snapshot, kernel: Kernel) -> crate::Result {
    running.dump(&[])?.success()?;
    nothing_left()?;
    running.restore_under(kernel.fault(), &["-d"])?.success()?;
    running.looks_like_but_for_areas(before)
}
