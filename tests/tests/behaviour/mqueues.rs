//! POSIX message queues.

use tests::case::Workload;

const fn mqueues(case: &'static str) -> Workload {
    Workload::new("mqueues", case)
}

tests::survives! {
    contents => mqueues("contents");
    waiting => mqueues("waiting");
    between_abis => mqueues("between_abis");
}
