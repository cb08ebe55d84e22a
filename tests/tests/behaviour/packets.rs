//! Pipes in packet mode, splice(2) and its kin.

use tests::case::Workload;

const fn packets(case: &'static str) -> Workload {
    Workload::new("packets", case)
}

tests::survives! {
    packets => packets("packets");
    mixed => packets("mixed");
    full_of_packets => packets("full_of_packets");
    spliced => packets("spliced");
    tee_waits => packets("tee_waits");
    splice_waits => packets("splice_waits");
    vmsplice_waits => packets("vmsplice_waits");
}
