//! System calls that are in progress at the checkpoint.

use tests::case::Workload;

tests::survives! {
    waiting => Workload::new("syscalls", "waiting");
    timing_out => Workload::new("syscalls", "timing_out").busy();
    signal_waits => Workload::new("syscalls", "signal_waits");
    waitpid => Workload::new("syscalls", "waitpid");
}
