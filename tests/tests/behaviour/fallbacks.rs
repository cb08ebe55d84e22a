//! What crr does where the kernel lacks something: it is told to do without each in turn, and works all the same.

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount, umount};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left, reap};
use tests::isolate::isolated_for_both;
use tests::{command, here, require_ia32, require_root};

/// Dump and restore without something.
fn works_without(feature: &str, here: &str, workload: &Workload) {
    isolated_for_both(here, |dir, abi| cycle_without(feature, dir, abi, workload));
}

fn each_works_without(feature: &str, here: &str, workloads: &[Workload]) {
    isolated_for_both(here, |dir, abi| {
        workloads.iter().try_for_each(|workload| {
            let name = workload.to_string();
            cycle_without(feature, &dir.join(&name), abi, workload).context(name)
        })
    });
}

fn cycle_without(feature: &str, dir: &Path, abi: Abi, workload: &Workload) -> tests::Result {
    let without = ["--disable-feature", feature];
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    running.dump(&["--leave-running", without[0], without[1]])?.success()?;
    running.looks_like(&before)?;
    running.dump(&without)?.success()?;
    nothing_left()?;
    running.restore(&["-d", without[0], without[1]])?.success()?;
    running.looks_like(&before)?;
    running.verify()
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

/// Threads; tasks that are forked, that stand in for dead leaders, that are to be zombies; tasks that a program clones, as children and as
/// siblings, with and without an address space of their own; processes that make a socket.
#[test]
fn clone3_set_tid() {
    require_root!();
    require_ia32!();
    let workloads = [
        Workload::new("threads", "waiting"),
        Workload::new("tree", "mixed"),
        Workload::new("tree", "reparented"),
        Workload::new("zombies", "leaders"),
        Workload::new("families", "memory"),
        Workload::new("families", "exit_signals"),
        Workload::new("families", "siblings_in_one_memory"),
        Workload::new("cow", "prefork"),
        Workload::new("cow", "siblings"),
        Workload::new("unix_sockets", "makers"),
    ];
    each_works_without("clone3-set-tid", &here!(), &workloads);
}

/// The number is another process's each time, until it is tried again.
#[test]
fn ids_that_others_take() {
    require_root!();
    require_ia32!();
    let workloads = [
        Workload::new("threads", "waiting"),
        Workload::new("tree", "mixed"),
        Workload::new("zombies", "ends"),
        Workload::new("families", "memory"),
        Workload::new("families", "exit_signals"),
        // A sibling's maker cannot wait for one that is another process: all of it is tried again.
        Workload::new("families", "siblings_in_one_memory"),
        Workload::new("cow", "siblings"),
        Workload::new("cow", "prefork"),
    ];
    isolated_for_both(&here!(), |dir, abi| {
        let taken = ["-d", "--disable-feature", "clone3-set-tid", "--fault", "ids-taken"];
        for workload in &workloads {
            let mut running = workload.start(&dir.join(workload.to_string()), abi)?;
            let before = running.snapshot()?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            running.restore(&taken)?.success()?.says("fault: ids-taken")?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        // crr's own parent has to wait for one that is another process.
        let mut running = Workload::new("tree", "mixed").start(&dir.join("sibling"), abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&[&taken[..], &["-S"]].concat())?.success()?;
        reap()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// What had been made is made again.
#[test]
fn ids_that_others_take_beside_a_socket() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("families", "siblings_beside_a_socket").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let without = ["-d", "--disable-feature", "clone3-set-tid", "--fault", "ids-taken"];
        running.restore(&without)?.success()?.says("others got the id of a task")?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Others fork all the time.
#[test]
fn others_fork_meanwhile() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for workload in
            [Workload::new("threads", "many"), Workload::new("families", "siblings_in_one_memory")]
        {
            others_fork(&dir.join(workload.to_string()), abi, &workload)?;
        }
        Ok(())
    });
}

fn others_fork(dir: &Path, abi: Abi, workload: &Workload) -> tests::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    let mut forks = Command::new("sh").args(["-c", "while :; do (:); done"]).spawn()?;
    for _ in 0..3 {
        running.dump(&[])?.success()?;
        reap()?;
        running.restore(&["-d", "--disable-feature", "clone3-set-tid"])?.success()?;
        running.looks_like(&before)?;
    }
    forks.kill()?;
    forks.wait()?;
    running.verify()
}

/// Files of every kind, in tables that are shared, of tasks that are reached in other ways than most, more than fit into a message.
#[test]
fn pidfd_getfd() {
    require_root!();
    require_ia32!();
    let workloads = [
        Workload::new("files", "descriptions"),
        Workload::new("files", "thousands"),
        Workload::new("pipes", "contents"),
        Workload::new("unix_sockets", "descriptors_in_flight"),
        Workload::new("inet", "connected"),
        Workload::new("events", "timers"),
        Workload::new("epolls", "nested"),
        Workload::new("inotify", "all"),
        Workload::new("ptys", "session"),
        Workload::new("deleted", "memfd"),
        Workload::new("families", "files"),
        Workload::new("leader", "many"),
        Workload::new("seccomp", "tight"),
        Workload::new("tree", "mixed"),
    ];
    each_works_without("pidfd-getfd", &here!(), &workloads);
}

/// A task that has no number left for the socket is refused; one that is killed meanwhile has none afterwards.
#[test]
fn descriptors_cannot_be_sent() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let without = ["--disable-feature", "pidfd-getfd"];
        let mut running = Workload::new("files", "descriptions").start(dir, abi)?;
        let before = running.snapshot()?;
        limit_files(&running, "0:20000")?;
        let limited = running.snapshot()?;
        running.dump(&without)?.code(1)?.says_with_hint("the task cannot send them: too many open files")?;
        running.looks_like(&limited)?;
        limit_files(&running, "20000:20000")?;
        running.looks_like(&before)?;
        let killed = running.dump(&[&without[..], &["--fault", "killed-asking"]].concat())?;
        ensure!(killed.status.signal() == Some(9), "{}", killed.status);
        running.looks_like_but_for_areas(&before)?;
        running.dump(&without)?.success()?;
        running.comes_back()
    });
}

/// Where others have the table, too, and may use the number that is free, nothing is sent.
#[test]
fn descriptors_of_others_stay() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("refused", "stranger_with_files").start(dir, abi)?;
        let before = running.snapshot()?;
        let output = running.dump(&["--disable-feature", "pidfd-getfd"])?.code(1)?;
        output.says_with_hint("file descriptors: shared with task")?;
        ensure!(!output.stderr.contains("cannot be had"), "{}", output.stderr);
        running.looks_like(&before)?;
        running.verify()
    });
}

fn limit_files(running: &Running, limits: &str) -> tests::Result {
    let pid = running.root.to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limits}")]).status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

/// Numbers are tried until the right ones come.
#[test]
fn timer_restore_ids() {
    require_root!();
    require_ia32!();
    let workloads = [Workload::new("timers", "kinds"), Workload::new("timers", "sparse")];
    each_works_without("timer-restore-ids", &here!(), &workloads);
}

/// Nothing stands in for it where urgent data has others before and behind it.
#[test]
fn tcp_peek_offset() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("inet", "urgent_within").start(dir, abi)?;
        let before = running.snapshot()?;
        let output = running.dump(&["--disable-feature", "tcp-peek-offset"])?.code(1)?;
        let reason = "has data to be read before and behind urgent data (MSG_OOB)";
        output.says_with_hint(reason)?;
        let named = output.stderr.matches(reason).count();
        ensure!(named == 3, "{named} sockets are named, not 3:\n{}", output.stderr);
        running.looks_like(&before)?;
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// Nothing stands in for kcmp.
#[test]
fn kcmp() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("tree", "family").start(dir, abi)?;
        let before = running.snapshot()?;
        let without = ["--disable-feature", "kcmp"];
        running.dump(&without)?.code(1)?.says_with_hint("nobody can tell what its tasks share")?;
        running.looks_like(&before)?;
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}
