//! The vDSO, on the kernel of the dump and on one whose vDSO differs: crr is told to take it for another one.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::{isolated, isolated_for_both};
use tests::modes::{between_kernels, on_another_kernel};
use tests::{here, require_ia32, require_root};

const fn vdso(case: &'static str) -> Workload {
    Workload::new("vdso", case)
}

tests::survives! {
    functions => vdso("functions");
    threads => vdso("threads").busy();
    frame => vdso("frame");
    sysenter => vdso("sysenter");
    moved => vdso("moved");
    unmapped => vdso("unmapped");
    traps => vdso("traps").busy();
    traps_blocked => vdso("traps_blocked").busy();
    traps_ignored => vdso("traps_ignored").busy();
}

/// For each `name => workload`, tests of both ABIs that end on another kernel.
macro_rules! survives_another_kernel {
    ($($name:ident => $workload:expr;)*) => {
        mod another_kernel {
            use super::*;
            $(
                #[test]
                fn $name() {
                    require_root!();
                    require_ia32!();
                    isolated_for_both(&here!(), |dir, abi| on_another_kernel(dir, &$workload, abi));
                }
            )*
        }
    };
}

survives_another_kernel! {
    functions => vdso("functions");
    functions_static => Workload::new("vdso-static", "functions");
    threads => vdso("threads").busy();
    traps_blocked => vdso("traps_blocked").busy();
    frame => vdso("frame");
    sysenter => vdso("sysenter");
    moved => vdso("moved");
    unmapped => vdso("unmapped");
    restorerless => Workload::new("signals", "without_restorer");
    heap => Workload::new("memory", "heap");
    heap_static => Workload::new("memory-static", "heap");
    mixed_tree => Workload::new("tree", "mixed");
    shared_memory => Workload::new("families", "memory");
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
