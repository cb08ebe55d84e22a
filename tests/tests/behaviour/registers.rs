//! Registers, extended state and segments.

use tests::case::Workload;

tests::survives! {
    general => Workload::new("registers", "general").busy();
    extended => Workload::new("registers", "extended").busy();
    extended_asleep => Workload::new("registers", "extended_asleep");
    segment_bases => Workload::new("segments", "bases");
    selectors => Workload::new("segments", "selectors");
    ldt_entries => Workload::new("segments", "ldt_entries");
}
