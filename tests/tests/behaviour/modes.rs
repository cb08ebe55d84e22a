//! Threads in the mode of the other ABI.

use tests::case::Workload;

const fn modes(case: &'static str) -> Workload {
    Workload::new("modes", case)
}

tests::survives! {
    busy => modes("busy").busy();
    waiting => modes("waiting");
}
