//! System call user dispatch.

use tests::case::Workload;

tests::survives! {
    waiting => Workload::new("dispatch", "waiting");
    range_alone => Workload::new("dispatch", "range_alone");
}
