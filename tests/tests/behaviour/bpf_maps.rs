//! BPF maps. Their ids, and who holds them, are known to the whole machine.

use crate::refused::is_refused;
use crate::rights::dump_as_user;
use std::fs;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{here, require_ia32, require_root};

const fn bpf_maps(case: &'static str) -> Workload {
    Workload::new("bpf_maps", case)
}

tests::survives! {
    hash => bpf_maps("hash");
    order => bpf_maps("order");
    array => bpf_maps("array");
    processors => bpf_maps("processors");
    prefixes => bpf_maps("prefixes");
    queues => bpf_maps("queues");
    ordinary => bpf_maps("ordinary");
    descriptions => bpf_maps("descriptions");
    pinned => bpf_maps("pinned");
}

/// What nobody could make again, or what programs and other maps hold.
#[test]
fn refused() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| is_refused(dir, abi, &bpf_maps("refused")));
}

/// What crr may not look into is named.
#[test]
fn only_root_sees_them() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = bpf_maps("ordinary").start(dir, abi)?;
        let refused = dump_as_user(&mut running, &["checkpoint_restore"])?.code(1)?;
        refused.says_with_hint("a BPF map, which crr may not look into")?;
        running.verify()
    });
}

/// What somebody outside of the tree has is named; pinned, it may be.
#[test]
fn held_outside() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = bpf_maps("shared_with_child").start(dir, abi)?;
        let log = running.log()?;
        let child = log.lines().find_map(|line| line.strip_prefix("CHILD ")).unwrap().parse()?;
        let refused = running.dump_task(child, &[])?.code(1)?;
        refused.says_with_hint(&format!("a BPF map that task {} (", running.root))?;
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// A name that is gone at the restore is missed, and so is the map that had it.
#[test]
fn a_pin_that_is_gone() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = bpf_maps("pinned").start(dir, abi)?;
        let before = running.snapshot()?;
        let pin = running.dir.join("bpf/dir/map");
        running.dump(&[])?.success()?;
        nothing_left()?;
        let other = pin.with_file_name("other");
        fs::rename(&pin, &other)?;
        let refused = running.restore(&["-d"])?.code(1)?;
        refused.says_with_hint(&format!("BPF map {}: no such file or directory", pin.display()))?;
        fs::rename(&other, &pin)?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}
