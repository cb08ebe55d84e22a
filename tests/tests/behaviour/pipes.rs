//! Pipes.

use tests::case::Workload;

const fn pipes(case: &'static str) -> Workload {
    Workload::new("pipes", case)
}

tests::survives! {
    contents => pipes("contents");
    full => pipes("full");
    sizes => pipes("sizes");
    closed_ends => pipes("closed_ends");
    flags => pipes("flags");
    between_abis => pipes("between_abis");
    reader_waits => pipes("reader_waits");
    far_ends => pipes("far_ends");
}
