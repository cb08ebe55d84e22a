//! Threads and what the kernel keeps for each.

use tests::case::Workload;

const fn threads(case: &'static str) -> Workload {
    Workload::new("threads", case)
}

tests::survives! {
    many => threads("many");
    waiting => threads("waiting");
    robust_mutex => threads("robust_mutex");
    robust_shared => threads("robust_shared");
    mixed_locks => threads("mixed_locks");
    sequence => threads("sequence").busy();
    registrations => threads("registrations");
    in_children => threads("in_children");
    statically_linked => Workload::new("threads-static", "many");
}
