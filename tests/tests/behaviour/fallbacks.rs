//! What crr does where the kernel lacks something: it is told to do without each in turn, and works all the same.

use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{command, here, require_ia32, require_root};

/// Dump and restore without something.
fn works_without(feature: &str, here: &str, workload: &Workload) {
    let without = ["--disable-feature", feature];
    isolated_for_both(here, |dir, abi| {
        let mut running = workload.start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&["--leave-running", without[0], without[1]])?.success()?;
        running.looks_like(&before)?;
        running.dump(&without)?.success()?;
        nothing_left()?;
        running.restore(&["-d", without[0], without[1]])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// The C library registers with rseq in every thread.
#[test]
fn ptrace_rseq() {
    require_root!();
    require_ia32!();
    works_without("ptrace-rseq", &here!(), &Workload::new("threads", "registrations"));
}

/// In the middle of a sequence, too.
#[test]
fn ptrace_rseq_in_a_sequence() {
    require_root!();
    require_ia32!();
    works_without("ptrace-rseq", &here!(), &Workload::new("threads", "sequence").busy());
}

#[test]
fn ptrace_syscall_info() {
    require_root!();
    require_ia32!();
    works_without("ptrace-syscall-info", &here!(), &Workload::new("threads", "waiting"));
}

#[test]
fn pagemap_scan() {
    require_root!();
    require_ia32!();
    works_without("pagemap-scan", &here!(), &Workload::new("memory", "sparse"));
}

#[test]
fn close_range_cloexec() {
    require_root!();
    require_ia32!();
    works_without("close-range-cloexec", &here!(), &Workload::new("files", "close_on_exec"));
}

/// Soft-dirty bits tell what was written, or nothing does.
#[test]
fn uffd_wp_async() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let without = ["--disable-feature", "uffd-wp-async"];
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        if command::crr(dir, &["check", "--feature", "soft-dirty"])?.code(0).is_err() {
            running.pre_dump(&without)?.code(1)?.says_with_hint("nothing tells what a tree writes")?;
            return running.verify();
        }
        running.pre_dump(&without)?.success()?;
        running.pre_dump(&without)?.success()?;
        running.dump_on_rounds(&without)?.success()?;
        running.comes_back()
    });
}

/// Tasks read their memory themselves.
#[test]
fn userfaultfd() {
    require_root!();
    require_ia32!();
    works_without("userfaultfd", &here!(), &Workload::new("memory", "anonymous"));
}
