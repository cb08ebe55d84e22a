//! fanotify: what groups are told of.

use crate::refused::is_refused;
use tests::case::Workload;
use tests::isolate::isolated_for_both;
use tests::{here, require_ia32, require_root};

const fn fanotify(case: &'static str) -> Workload {
    Workload::new("fanotify", case)
}

tests::survives! {
    files => fanotify("files");
    handles => fanotify("handles");
    names => fanotify("names");
    ordinary => fanotify("ordinary");
    mounts => fanotify("mounts");
    shared => fanotify("shared");
}

/// Events that are not read, and what is ignored until it changes.
#[test]
fn refused() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| is_refused(dir, abi, &fanotify("refused")));
}

/// A group that is asked about all files, those of the dump among them, is refused while it still answers.
#[test]
fn judges_are_refused_first() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| is_refused(dir, abi, &fanotify("judge")));
}
