//! Pages that parents and children share copy-on-write: stored once, and shared again after the restore.

use anyhow::ensure;
use std::path::Path;
use tests::abi::Abi;
use tests::case::{Running, Workload, images_size};
use tests::isolate::isolated_for_both;
use tests::{frames, here, require_ia32, require_root};

const fn cow(case: &'static str) -> Workload {
    Workload::new("cow", case)
}

tests::survives! {
    prefork => cow("prefork");
    parent_changes => cow("parent_changes");
    siblings => cow("siblings");
    grandchildren => cow("grandchildren");
    over_a_generation => cow("over_a_generation");
    orphans => cow("orphans");
    between_abis => cow("between_abis");
    threads => cow("threads");
    areas => cow("areas");
    growing => cow("growing");
    apart => cow("apart");
    copied => cow("copied");
}

/// Pages that need not be shared again: those that the kernel writes to while it sets up a thread, as it does for rseq.
const SETTING_UP: usize = 2;

/// Restores a workload and compares who shares how much with whom.
fn stays_shared(dir: &Path, case: &'static str, abi: Abi) -> tests::Result {
    let mut running = cow(case).start(dir, abi)?;
    let looks = running.snapshot()?;
    let before = frames::shared(running.root.as_raw())?;
    ensure!(before.values().any(|&pages| pages > 100), "nothing to share: {before:?}");
    // The second dump sees what the first restore has made.
    for _ in 0..2 {
        running.cycle(&looks)?;
        let after = frames::shared(running.root.as_raw())?;
        let kept = |(pair, &pages): (_, &usize)| after.get(pair).is_some_and(|now| now + SETTING_UP >= pages);
        ensure!(before.iter().all(kept), "shared pages before: {before:?}, after: {after:?}");
    }
    running.verify()
}

macro_rules! shared {
    ($($case:ident)*) => {
        mod shared {
            use super::*;
            $(
                #[test]
                fn $case() {
                    require_root!();
                    require_ia32!();
                    isolated_for_both(&here!(), |dir, abi| stays_shared(dir, stringify!($case), abi));
                }
            )*
        }
    };
}

shared! { prefork parent_changes siblings grandchildren over_a_generation orphans between_abis threads areas growing apart }

/// Pages that a task may get for itself when it is dumped: those of its stack that a signal frame stands in for a moment.
const ASKED: usize = 8;

/// To be looked at leaves pages shared: process_vm_readv(2) gives a task copies of what it shares.
#[test]
fn dumps_leave_it_shared() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = cow("prefork").start(dir, abi)?;
        let before = frames::shared(running.root.as_raw())?;
        ensure!(before.values().any(|&pages| pages > 100), "nothing to share: {before:?}");
        let unchanged = |running: &Running, what: &str| {
            let after = frames::shared(running.root.as_raw())?;
            let kept = |(pair, &pages): (_, &usize)| after.get(pair).is_some_and(|now| now + ASKED >= pages);
            ensure!(before.iter().all(kept), "{what}: shared pages before: {before:?}, after: {after:?}");
            Ok(())
        };
        running.dump(&["-R"])?.success()?;
        unchanged(&running, "dump -R")?;
        running.dump(&["-R", "--snapshot", "--fault", "twins-always"])?.success()?;
        unchanged(&running, "dump --snapshot")?;
        running.pre_dump(&[])?.success()?;
        unchanged(&running, "pre-dump")?;
        running.verify()
    });
}

/// A hundred workers need no more memory than before, and little more than one in the images.
#[test]
fn a_hundred_workers() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = cow("prefork_100").start(dir, abi)?;
        let looks = running.snapshot()?;
        let before = frames::proportional_kib(running.root.as_raw())?;
        running.cycle(&looks)?;
        let after = frames::proportional_kib(running.root.as_raw())?;
        ensure!(after * 100 <= before * 105, "{before} KiB before, {after} KiB after");
        let (images, memory) = (images_size(&running.images())? >> 10, before);
        ensure!(images < memory * 3 / 2, "{images} KiB of images for {memory} KiB");
        running.verify()
    });
}
