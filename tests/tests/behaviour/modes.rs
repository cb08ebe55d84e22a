//! Threads in the mode of the other ABI.

use std::time::Duration;
use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated_for;
use tests::modes::cycles;
use tests::{here, require_ia32, require_root};

const fn modes(case: &'static str) -> Workload {
    Workload::new("modes", case)
}

tests::survives! {
    busy => modes("busy").busy();
    waiting => modes("waiting");
    segments => modes("segments").busy();
    turns => modes("turns").busy();
    robust_lists => modes("robust_lists").busy();
    leaderless => modes("leaderless").busy();
    alone => modes("alone").busy();
}

/// Several threads that take turns between the modes, with segments of their own and signals all the time, ten times.
#[test]
fn ten_cycles_of_turns() {
    require_root!();
    require_ia32!();
    isolated_for(Duration::from_secs(240), &here!(), |dir| {
        Abi::ALL.iter().try_for_each(|&abi| cycles(&dir.join(abi.name()), &modes("turns").busy(), abi, 10))
    });
}
