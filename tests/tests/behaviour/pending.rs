//! Pending signals: every layout of siginfo, and many of them.

use tests::case::Workload;

tests::survives! {
    layouts => Workload::new("pending", "layouts");
    many => Workload::new("pending", "many");
}
