//! Test harness: runs workloads under `crr` and compares what /proc shows before and after.
//!
//! A workload is a C program of `workloads/`, built for both ABIs from one source. It sets something up, prints
//! READY, waits for a signal, checks from inside that all is still as it was and prints PASS. Meanwhile the harness
//! dumps and restores it and compares [`snapshot::Snapshot`]s, which catch what the workload did not think of.
//!
//! Every test body runs in a PID, mount, network and IPC namespace of its own ([`isolate`]), so the pids a restore needs are free,
//! tests cannot meet each other, and whatever a failed test leaves behind dies with its namespace.

pub mod abi;
pub mod binaries;
pub mod case;
pub mod command;
pub mod frames;
pub mod isolate;
pub mod kills;
pub mod modes;
pub mod moments;
pub mod needs;
pub mod snapshot;
pub mod sys;
pub mod wait;

/// The result of a test body.
pub type Result<T = ()> = anyhow::Result<T>;

/// The path of the test function that this stands in, as `cargo test -- --exact` spells it.
#[macro_export]
macro_rules! here {
    () => {{
        fn marker() {}
        $crate::isolate::test_path(std::any::type_name_of_val(&marker))
    }};
}

/// Skips the test where it is not run by root; fails in CI.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::needs::root(&$crate::here!()) {
            return;
        }
    };
}

/// Skips the test where ia32 programs cannot be built or run; fails in CI.
#[macro_export]
macro_rules! require_ia32 {
    () => {
        if !$crate::needs::ia32(&$crate::here!()) {
            return;
        }
    };
}

/// For each `name => workload`, a module with the tests `x86_64` and `ia32`, each with `control` (no checkpoint),
/// `restored` (dumped, gone, restored) and `left_running` (dumped and not killed).
#[macro_export]
macro_rules! survives {
    ($($(#[$meta:meta])* $name:ident => $workload:expr;)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "a workload expression may name only full paths")]
            use super::*;
            $crate::survives!(@abi x86_64, X86_64, $workload);
            $crate::survives!(@abi ia32, Ia32, $workload);
        }
    )*};
    (@abi $module:ident, $abi:ident, $workload:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "see above")]
            use super::*;
            $crate::survives!(@mode control, $abi, $workload);
            $crate::survives!(@mode restored, $abi, $workload);
            $crate::survives!(@mode left_running, $abi, $workload);
        }
    };
    (@mode $mode:ident, $abi:ident, $workload:expr) => {
        #[test]
        fn $mode() {
            $crate::require_root!();
            $crate::require_ia32!();
            $crate::isolate::isolated(&$crate::here!(), |dir| {
                $crate::modes::$mode(dir, &$workload, $crate::abi::Abi::$abi)
            });
        }
    };
}
