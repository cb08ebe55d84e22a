//! POSIX timers.

use tests::case::Workload;

const fn timers(case: &'static str) -> Workload {
    Workload::new("timers", case)
}

tests::survives! {
    kinds => timers("kinds");
    sparse => timers("sparse");
    pending => timers("pending");
    overrun => timers("overrun").busy();
    expiring => timers("expiring").busy();
}
