//! Trees of tasks, of one ABI and of both.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn tree(case: &'static str) -> Workload {
    Workload::new("tree", case)
}

tests::survives! {
    family => tree("family");
    /// Three changes of ABI: 64 -> 32 -> 64 -> 32 in `x86_64`, the other way round in `ia32`.
    generations => tree("generations");
    mixed => tree("mixed");
    reparented => tree("reparented");
    parent_death => tree("parent_death");
    stream => tree("stream").busy();
}

/// A pipeline that never pauses, dumped and restored again and again: no number lost or doubled.
#[test]
fn a_stream_survives_many_cycles() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| tests::modes::cycles(dir, &tree("stream").busy(), Abi::X86_64, 10));
}

/// A thousand siblings, cousins and their parents, every other one of the other ABI.
#[test]
fn a_thousand_tasks() {
    require_root!();
    require_ia32!();
    let limit = std::time::Duration::from_secs(300);
    tests::isolate::isolated_for(limit, &here!(), |dir| {
        tests::modes::cycles(dir, &tree("thousand"), Abi::X86_64, 1)
    });
}
