//! What cannot be dumped is refused by name, all of it at once, and the target runs on as before.

use nix::sys::ptrace;
use std::time::{Duration, Instant};
use tests::abi::Abi;
use tests::case::{Running, Workload};
use tests::command::Output;
use tests::isolate::isolated;
use tests::{Result, here, needs, require_ia32, require_root};

/// Dumps a workload that must be refused, each reason with a way out, and sees that it is untouched.
fn refused(dir: &std::path::Path, abi: Abi, case: &'static str) -> Result {
    is_refused(dir, abi, &Workload::new("refused", case))
}

/// The same for a workload of another file.
pub(crate) fn is_refused(dir: &std::path::Path, abi: Abi, workload: &Workload) -> Result {
    let mut running = workload.start(&dir.join(abi.name()), abi)?;
    let before = running.snapshot()?;
    is_named(&mut running)?;
    running.looks_like(&before)?;
    running.verify()
}

/// A dump is refused, names all that the workload says, and leaves nothing.
pub(crate) fn is_named(running: &mut Running) -> Result {
    let output = running.dump(&[])?.code(1)?;
    names_all(running, &output)?;
    output.says(&format!("task {}", running.root))?;
    no_inventory(running);
    Ok(())
}

/// A dump names all that the workload says, each with a way out.
fn names_all(running: &Running, output: &Output) -> Result {
    let log = running.log()?;
    let names: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("NAME ")).collect();
    assert!(!names.is_empty(), "the workload names nothing");
    names.into_iter().try_for_each(|name| output.says_with_hint(name))
}

/// A refused dump leaves nothing that looks like images.
fn no_inventory(running: &Running) {
    let left: Vec<_> = std::fs::read_dir(running.images()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "the image directory holds {left:?}");
}

macro_rules! refusals {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            require_root!();
            require_ia32!();
            isolated(&here!(), |dir| Abi::ALL.iter().try_for_each(|&abi| refused(dir, abi, stringify!($name))));
        }
    )*};
}

refusals! {
    descriptors late_in_flight files_of_tasks message_queues events undo_of_two_tasks undo_of_a_stranger leases lease_of_another listener
    namespace namespace_of_ids waiting_for_a_signal namespace_of_a_thread
    stranger stranger_with_memory stranger_with_files stranger_with_directories stranger_with_deleted_file
    stranger_with_lock stranger_with_socket protected_sockets timers tracer watches
    begun_datagrams socket_families routing_sockets netlink_unread
}

/// A round asks tasks, too.
#[test]
fn rounds_of_tasks_with_other_ids() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        Abi::ALL.iter().try_for_each(|&abi| {
            let mut running =
                Workload::new("refused", "namespace_of_ids").start(&dir.join(abi.name()), abi)?;
            let output = running.pre_dump(&[])?.code(1)?;
            output.says_with_hint("namespace pid (pid:[")?;
            running.verify()
        })
    });
}

/// Dumps a workload with threads that do not stop: each is named, with everything else, soon after the time is up; and the
/// tree works on.
fn does_not_stop(dir: &std::path::Path, abi: Abi, case: &'static str) -> Result {
    let mut running = Workload::new("uninterruptible", case).start(&dir.join(abi.name()), abi)?;
    let before = running.snapshot()?;
    let started = Instant::now();
    let output = running.dump(&["--timeout", "1"])?.code(1)?;
    assert!(started.elapsed() < Duration::from_secs(4), "the dump took {:?}", started.elapsed());
    names_all(&running, &output)?;
    // It is no stranger by being left out.
    assert!(!output.stderr.contains("outside of the tree"), "{}", output.stderr);
    no_inventory(&running);
    running.looks_like(&before)?;
    running.verify()
}

#[test]
fn threads_that_do_not_stop() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let all = Abi::ALL.iter().flat_map(|&abi| ["vfork", "nested"].map(|case| (abi, case)));
        all.into_iter().try_for_each(|(abi, case)| does_not_stop(&dir.join(case), abi, case))
    });
}

/// In an uninterruptible sleep that is none for a child.
#[test]
fn waits_for_a_file_server() {
    require_root!();
    require_ia32!();
    let fuse = std::path::Path::new("/dev/fuse").exists();
    if needs::in_kernel(&here!(), fuse, "FUSE") {
        isolated(&here!(), |dir| {
            Abi::ALL.iter().try_for_each(|&abi| does_not_stop(&dir.join("file_server"), abi, "file_server"))
        });
    }
}

/// As [`refused`] for both ABIs and some cases, where the kernel has what they use.
fn refused_by(test: &str, given: bool, what: &str, cases: &[&'static str]) {
    if needs::in_kernel(test, given, what) {
        isolated(test, |dir| {
            let all = Abi::ALL.iter().flat_map(|&abi| cases.iter().map(move |&case| (abi, case)));
            all.into_iter().try_for_each(|(abi, case)| refused(&dir.join(case), abi, case))
        });
    }
}

/// Secret memory.
#[test]
fn memory_to_itself() {
    require_root!();
    require_ia32!();
    refused_by(&here!(), tests::sys::has_secret_memory(), "memfd_secret", &["memory_to_itself"]);
}

/// What the kernel does for a task on its own.
#[test]
fn kernel_helpers() {
    require_root!();
    require_ia32!();
    let cases = ["kernel_helpers", "rings", "rings_by_index", "kernel_thread", "filters_by_program"];
    refused_by(&here!(), tests::sys::has_kernel_helpers(), "io_uring, perf, BPF and userfaultfd", &cases);
}

/// Virtual consoles, serial lines, the console of the machine: each by its kind.
#[test]
fn terminals() {
    require_root!();
    require_ia32!();
    let there = ["/dev/tty1", "/dev/ttyS0", "/dev/console"].into_iter().any(tests::sys::has_terminal);
    refused_by(&here!(), there, "a console or a serial line", &["terminals"]);
}

#[test]
fn device_memory() {
    require_root!();
    require_ia32!();
    let there = std::path::Path::new("/dev/kvm").exists();
    refused_by(&here!(), there, "KVM", &["device_memory"]);
}

/// Keyrings of a thread and of a task.
#[test]
fn keyrings() {
    require_root!();
    require_ia32!();
    refused_by(&here!(), tests::sys::has_keys(), "keyrings", &["keyrings"]);
}

/// A thread in a Landlock domain is named, and no other.
#[test]
fn landlock() {
    require_root!();
    require_ia32!();
    let cases = ["landlock", "landlock_of_a_thread"];
    refused_by(&here!(), tests::sys::has_landlock(), "Landlock", &cases);
}

/// A task that a debugger holds is refused, and stays held.
#[test]
fn traced() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("refused", "traced").start(&dir.join(abi.name()), abi)?;
            ptrace::seize(running.root, ptrace::Options::empty())?;
            let output = running.dump(&[])?.code(1)?;
            output.says(&format!("task {}", running.root))?;
            output.says("traced")?;
            ptrace::interrupt(running.root)?;
            nix::sys::wait::waitpid(running.root, None)?;
            ptrace::detach(running.root, None)?;
            running.verify()?;
        }
        Ok(())
    });
}
