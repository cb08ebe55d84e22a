//! Signals and interval timers.

use tests::case::Workload;

const fn signals(case: &'static str) -> Workload {
    Workload::new("signals", case)
}

tests::survives! {
    handlers => signals("handlers");
    without_restorer => signals("without_restorer");
    pending => signals("pending");
    frame => signals("frame");
    frame_with_info => signals("frame_with_info");
    frame_nested => signals("frame_nested");
    interval_timers => signals("interval_timers");
    library_signals => signals("library_signals");
    library_signals_of_a_large_task => signals("library_signals_of_a_large_task");
    ticking => signals("ticking").busy();
    delivered_at_once => signals("delivered_at_once");
}
