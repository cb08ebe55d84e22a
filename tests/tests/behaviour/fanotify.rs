//! fanotify: what groups are told of.

use crate::refused::{is_named, is_refused};
use tests::case::{Workload, nothing_left};
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
    unread_events => fanotify("unread_events");
    unread_names => fanotify("unread_names");
}

/// Events that are not read, of which nobody could be told, and what is ignored until it changes.
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
    isolated_for_both(&here!(), |dir, abi| {
        // It is asked about every file that somebody opens, and has that open meanwhile: what /proc shows of it is not the same twice.
        let mut running = fanotify("judge").start(dir, abi)?;
        is_named(&mut running)?;
        running.verify()
    });
}

/// A mount that is gone at the restore is missed.
#[test]
fn a_mount_that_is_gone() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = fanotify("mounts").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let mount = running.dir.join("bound");
        nix::mount::umount(&mount)?;
        let refused = running.restore(&["-d"])?.code(1)?;
        refused.says_with_hint(&format!("{}: fanotify#0 is told what happens in it", mount.display()))?;
        Ok(())
    });
}
