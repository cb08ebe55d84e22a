//! Trees with a history: dead leaders, orphans, children older than their parent's session.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn relatives(case: &'static str) -> Workload {
    Workload::new("relatives", case)
}

tests::survives! {
    daemons => relatives("daemons");
    older_children => relatives("older_children");
    orphans => relatives("orphans");
    wanderers => relatives("wanderers");
    /// The root itself is an orphan in the session of a dead leader.
    daemon_root => relatives("daemons").orphan();
    family_of_a_daemon => Workload::new("tree", "family").orphan();
}

#[test]
fn a_history_survives_many_cycles() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| tests::modes::cycles(dir, &relatives("daemons").orphan(), Abi::Ia32, 5));
}
