//! What crr does where the kernel lacks something: it is told to do without each in turn, and works all the same.

use anyhow::Context;
use nix::mount::{MsFlags, mount, umount};
use std::fs;
use std::path::Path;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{here, require_ia32, require_root};

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

/// Tasks read their memory themselves.
#[test]
fn userfaultfd() {
    require_root!();
    require_ia32!();
    works_without("userfaultfd", &here!(), &Workload::new("memory", "anonymous"));
}

/// Programs that restore tasks are executed from files without a name.
#[test]
fn memfd_exec() {
    require_root!();
    require_ia32!();
    works_without("memfd-exec", &here!(), &Workload::new("threads", "waiting"));
}

/// The kernel itself forbids it here, and the first directory is of no use.
#[test]
fn memfds_that_must_not_be_executed() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("tree", "mixed").start(dir, abi)?;
        let before = running.snapshot()?;
        let temp = dir.join("temp");
        mount_noexec(&temp)?;
        let forbid = fs::write("/proc/sys/vm/memfd_noexec", "2");
        forbid.context("vm.memfd_noexec (Linux 6.3)")?;
        let under = ["env", &format!("TMPDIR={}", temp.display())];
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore_under(&under, &["-d"])?.success()?;
        running.looks_like(&before)?;
        running.dump(&[])?.success()?;
        for place in PLACES {
            mount_noexec(Path::new(place))?;
        }
        running.restore_under(&under, &["-d"])?.code(1)?.says("is mounted noexec")?;
        nothing_left()?;
        for place in PLACES {
            umount(place)?;
        }
        running.restore_under(&under, &["-d"])?.success()?;
        running.looks_like(&before)?;
        umount(&temp)?;
        running.verify()
    });
}

/// Where unnamed files are made, beside $TMPDIR.
const PLACES: [&str; 3] = ["/dev/shm", "/run", "/var/tmp"];

fn mount_noexec(at: &Path) -> tests::Result {
    fs::create_dir_all(at)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOEXEC, None::<&str>)?;
    Ok(())
}
