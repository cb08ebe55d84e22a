//! Tasks that have ended before the dump, and are waited for only after the restore.

use tests::case::Workload;
use tests::isolate::isolated_for_both;
use tests::{here, needs, require_ia32, require_root};

const fn zombies(case: &'static str) -> Workload {
    Workload::new("zombies", case)
}

tests::survives! {
    ends => zombies("ends");
    pending => zombies("pending");
    leaders => zombies("leaders");
    ignored => zombies("ignored");
}

/// One that left a core is refused, where the kernel writes cores to files.
#[test]
fn core() {
    require_root!();
    require_ia32!();
    let test = here!();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if needs::in_kernel(&test, !pattern.starts_with(['|', '@']), "core files (kernel.core_pattern)") {
        isolated_for_both(&test, |dir, abi| {
            let mut running = zombies("core").start(dir, abi)?;
            running
                .dump(&[])?
                .code(1)?
                .says_with_hint("zombie: it dumped core, and no task can end like that")?;
            running.verify()
        });
    }
}
