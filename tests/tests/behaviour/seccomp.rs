//! seccomp: threads obey the filters they obeyed before, and none of them dies of a dump or a restore.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::modes::cycles;
use tests::{here, require_ia32, require_root};

const fn seccomp(case: &'static str) -> Workload {
    Workload::new("seccomp", case)
}

tests::survives! {
    both_abis => seccomp("both_abis");
    stacked => seccomp("stacked");
    threads => seccomp("threads");
    privileged => seccomp("privileged");
    strict => seccomp("strict");
    tight => seccomp("tight");
    asleep => seccomp("asleep");
    as_a_tracer_sees => seccomp("as_a_tracer_sees");
}

/// Filters neither pile up nor get lost.
#[test]
fn three_cycles() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for case in ["both_abis", "stacked", "threads", "strict"] {
            for abi in Abi::ALL {
                cycles(&dir.join(format!("{case}-{abi}")), &seccomp(case), abi, 3)?;
            }
        }
        Ok(())
    });
}
