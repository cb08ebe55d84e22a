//! The vDSO, on the kernel of the dump and on one whose vDSO differs: crr is told to take it for another one.

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::modes::{Kernel, between_kernels, by_turns, on_another_kernel, on_another_kernel_and_back};
use tests::{here, require_ia32, require_root};

const fn vdso(case: &'static str) -> Workload {
    Workload::new("vdso", case)
}

tests::survives! {
    functions => vdso("functions");
    threads => vdso("threads").busy();
    interrupted => vdso("interrupted");
    stale => vdso("stale");
    frame => vdso("frame");
    sysenter => vdso("sysenter");
    moved => vdso("moved");
    unmapped => vdso("unmapped");
    crowded => vdso("crowded");
    traps => vdso("traps").busy();
    traps_blocked => vdso("traps_blocked").busy();
    traps_ignored => vdso("traps_ignored").busy();
}

/// What getrandom of the vDSO keeps is made anew: two restores of one image do not give the same numbers.
#[test]
fn no_number_comes_twice() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = vdso("random").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let mut numbers = Vec::new();
        for _ in 0..2 {
            running.restore(&["-d"])?.success()?;
            running.signal(Signal::SIGUSR1)?;
            running.ends()?;
            let log = running.log()?;
            numbers.extend(log.lines().rfind(|line| line.starts_with("NUMBER")).map(str::to_owned));
        }
        // Where the vDSO has no getrandom, neither has one.
        ensure!(
            numbers.is_empty() || numbers.len() == 2 && numbers[0] != numbers[1],
            "the numbers of two restores: {numbers:?}"
        );
        Ok(())
    });
}

/// For each `name => workload`, tests of both ABIs that end on another kernel, and on one that cannot move its vDSO.
macro_rules! survives_another_kernel {
    ($($name:ident => $workload:expr;)*) => {
        survives_another_kernel!(@kernel another_kernel, Other, $($name => $workload;)*);
        survives_another_kernel!(@kernel immovable, Immovable, $($name => $workload;)*);
    };
    (@kernel $module:ident, $kernel:ident, $($name:ident => $workload:expr;)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $name() {
                    require_root!();
                    require_ia32!();
                    isolated_for_both(&here!(), |dir, abi| {
                        on_another_kernel(dir, &$workload, abi, Kernel::$kernel)
                    });
                }
            )*
        }
    };
}

survives_another_kernel! {
    functions => vdso("functions");
    functions_static => Workload::new("vdso-static", "functions");
    threads => vdso("threads").busy();
    interrupted_for_a_moment => vdso("interrupted_for_a_moment").busy();
    traps_blocked => vdso("traps_blocked").busy();
    frame => vdso("frame");
    sysenter => vdso("sysenter");
    moved => vdso("moved");
    unmapped => vdso("unmapped");
    crowded => vdso("crowded");
    crowded_across_abis => vdso("crowded_across_abis");
    restorerless => Workload::new("signals", "without_restorer");
    heap => Workload::new("memory", "heap");
    heap_static => Workload::new("memory-static", "heap");
    mixed_tree => Workload::new("tree", "mixed");
    shared_memory => Workload::new("families", "memory");
}

/// From a kernel that cannot move its vDSO to one that can.
#[test]
fn from_immovable_back() {
    require_root!();
    require_ia32!();
    for (number, case) in ["functions", "frame", "crowded"].into_iter().enumerate() {
        isolated_for_both(&here!(), |dir, abi| {
            on_another_kernel_and_back(&dir.join(number.to_string()), &vdso(case), abi, Kernel::Immovable)
        });
    }
}

/// A hundred dumps and restores, on another kernel and on the first by turns, of threads that are in the vDSO all the time and take signals there.
#[test]
fn a_hundred_kernels() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| by_turns(dir, &vdso("threads").busy(), abi, 100));
}

/// Twenty times, each on another kernel than the last one: what a task had on the first it has there again.
#[test]
fn twenty_kernels() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            for case in ["functions", "frame"] {
                let dir = dir.join(format!("{abi}-{case}"));
                between_kernels(&dir, &vdso(case), abi, 20)
                    .map_err(|e| e.context(format!("{abi} {case}")))?;
            }
        }
        Ok(())
    });
}
