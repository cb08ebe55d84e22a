//! File mappings and shared memory.

use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{here, require_ia32, require_root};

const fn mapping(case: &'static str) -> Workload {
    Workload::new("mapping", case)
}

tests::survives! {
    private_file => mapping("private_file");
    shared_file => mapping("shared_file");
    zero_device => mapping("zero_device");
    file_tail => mapping("file_tail");
    behind_the_end => mapping("behind_the_end");
    shared_anonymous => mapping("shared_anonymous");
    shared_twice => mapping("shared_twice");
    shared_sparse => mapping("shared_sparse");
    copy_on_write => mapping("copy_on_write");
}

/// They come back as pages of their own, so there is more memory than before.
#[test]
fn zeros_over_a_file() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let workload = mapping("zeros_over_a_file");
        workload.start(&dir.join("control"), abi)?.verify()?;
        let mut running = workload.start(&dir.join("restored"), abi)?;
        running.dump(&["--leave-running"])?.success()?;
        running.dump(&["--leave-running", "--snapshot", "--fault", "twins-always"])?.success()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}
