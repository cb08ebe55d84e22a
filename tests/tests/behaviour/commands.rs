//! What `crr dump` and `crr restore` promise beside the tree itself.

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use std::fs;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated;
use tests::{command, here, require_ia32, require_root, wait};

const IDLE: Workload = Workload::new("harness", "idle");
const GENERATIONS: Workload = Workload::new("tree", "generations");

/// `--leave-stopped`: every task is stopped, and goes on unharmed after SIGCONT.
#[test]
fn leave_stopped() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = GENERATIONS.start(dir, Abi::X86_64)?;
        let before = running.snapshot()?;
        running.dump(&["--leave-stopped"])?.success()?;
        let pids = tests::snapshot::tree(running.root.as_raw())?;
        assert_eq!(pids.len(), 4);
        for &pid in &pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            assert!(status.contains("State:\tT (stopped)"), "task {pid}:\n{status}");
        }
        for &pid in &pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)?;
        }
        running.looks_like(&before)?;
        running.verify()
    });
}

/// A low soft limit of open files, as shells have it, is raised: the hard one counts.
#[test]
fn soft_limit_of_open_files() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let mut running = Workload::new("tree", "family").start(dir, Abi::Ia32)?;
        let before = running.snapshot()?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 20, hard)?;
        running.cycle(&before)?;
        running.verify()
    });
}

/// Waits until a `crr restore` has done its work and waits for signals.
fn stays(crr: &std::process::Child) -> tests::Result {
    wait::until(wait::STEP, "crr waits for signals", || {
        let call = fs::read_to_string(format!("/proc/{}/syscall", crr.id()))?;
        let words: Vec<&str> = call.split(' ').collect();
        // Without a timeout: while the tree is taken over, it waits for it with one.
        let waits = words[0] == libc::SYS_rt_sigtimedwait.to_string() && words.get(3) == Some(&"0x0");
        Ok(waits.then_some(()))
    })
}

/// Without `-d`, restore waits for the tree and ends with its status, passing signals on.
#[test]
fn restore_waits_and_passes_signals_on() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for (abi, case, code) in [(Abi::X86_64, "idle", 0), (Abi::Ia32, "idle", 0), (Abi::Ia32, "failing", 1)]
        {
            let dir = dir.join(format!("{abi}-{case}"));
            let mut running = Workload::new("harness", case).start(&dir, abi)?;
            running.dump(&[])?.success()?;
            tests::case::nothing_left()?;
            let images = running.images().display().to_string();
            let pidfile = dir.join("root.pid");
            let args = ["restore", "-D", &images, "--pidfile", pidfile.to_str().unwrap()];
            let mut crr = command::spawn(&dir, &args)?;
            let pidfile = wait::until(wait::STEP, "the pidfile", || {
                Ok(fs::read_to_string(&pidfile).ok().filter(|text| !text.is_empty()))
            })?;
            assert_eq!(pidfile.trim(), running.root.to_string());
            stays(&crr)?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(crr.id())?), Signal::SIGUSR1)?;
            let status = wait::until(wait::STEP, "crr ends", || Ok(crr.try_wait()?))?;
            assert_eq!(status.code(), Some(code), "{}", running.log()?);
            tests::case::nothing_left()?;
        }
        Ok(())
    });
}

/// A root that a signal kills gives 128 + its number, one of the real-time signals too.
#[test]
fn restore_ends_like_a_killed_root() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for signal in [libc::SIGKILL, libc::SIGRTMIN() + 3] {
            let dir = dir.join(signal.to_string());
            let mut running = IDLE.start(&dir, Abi::Ia32)?;
            running.dump(&[])?.success()?;
            tests::case::nothing_left()?;
            let images = running.images().display().to_string();
            let mut crr = command::spawn(&dir, &["restore", "-D", &images])?;
            stays(&crr)?;
            tests::sys::kill(running.root.as_raw(), signal)?;
            let status = wait::until(wait::STEP, "crr ends", || Ok(crr.try_wait()?))?;
            assert_eq!(status.code(), Some(128 + signal));
            tests::case::nothing_left()?;
        }
        Ok(())
    });
}

/// `--restore-sibling`: the root becomes a child of crr's parent, which is this process.
#[test]
fn restore_sibling() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = IDLE.start(dir, Abi::X86_64)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        tests::case::nothing_left()?;
        running.restore(&["-d", "-S"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// `--new-pidns`: the tree comes back under its old pids although they are taken here.
#[test]
fn new_pid_namespace() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        // Those with files that stand for tasks, too.
        let others = [Workload::new("pidfds", "relatives"), Workload::new("task_files", "relatives")];
        let all = [GENERATIONS].into_iter().chain(others);
        for (abi, workload) in all.flat_map(|workload| Abi::ALL.map(|abi| (abi, workload.clone()))) {
            let dir = dir.join(workload.to_string()).join(abi.name());
            let mut running = workload.start(&dir, abi)?;
            running.dump(&["--leave-running"])?.success()?;
            // The original still has the pids.
            let images = running.images().display().to_string();
            let mut crr = command::spawn(&dir, &["restore", "-D", &images, "--new-pidns"])?;
            stays(&crr)?;
            let inner = inner_root(running.root.as_raw())?.unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(inner), Signal::SIGUSR1)?;
            let status = wait::until(wait::STEP, "crr ends", || Ok(crr.try_wait()?))?;
            assert_eq!(status.code(), Some(0), "{}", running.log()?);
            running.verify()?;
        }
        Ok(())
    });
}

/// The pid, as seen here, of the task that has `pid` as its pid in a namespace below.
fn inner_root(pid: i32) -> tests::Result<Option<i32>> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Ok(status) = fs::read_to_string(format!("/proc/{name}/status")) else { continue };
        let Some(pids) = status.lines().find_map(|line| line.strip_prefix("NSpid:")) else { continue };
        let pids: Vec<&str> = pids.split_whitespace().collect();
        if pids.len() == 2 && pids[1] == pid.to_string() {
            return Ok(Some(name.parse()?));
        }
    }
    Ok(None)
}

/// Wrong usage is exit code 2 and changes nothing.
#[test]
fn usage_errors() {
    require_root!();
    isolated(&here!(), |dir| {
        for args in [&["dump"][..], &["restore", "--no-such-option"], &["no-such-command"]] {
            command::crr(dir, args)?.code(2)?;
        }
        command::crr(dir, &["dump", "-t", "99999", "-D", "."])?.code(1)?.says("99999")?;
        command::crr(dir, &["restore", "-D", "no-such-directory"])?.code(1)?.says("no-such-directory")?;
        Ok(())
    });
}

/// A killed tree leaves its root for its parent to reap, with SIGKILL as the cause.
#[test]
fn a_dumped_root_was_killed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = IDLE.start(dir, Abi::Ia32)?;
        running.dump(&[])?.success()?;
        let status = waitpid(running.root, None)?;
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        Ok(())
    });
}

/// `--stats` tells of every command where its time went; the stages are all of it, also where another process goes on with the dump (seccomp).
#[test]
fn statistics() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for (workload, abi) in [(GENERATIONS, Abi::X86_64), (Workload::new("seccomp", "threads"), Abi::Ia32)]
        {
            let mut running = workload.start(&dir.join(workload.to_string()), abi)?;
            let tasks = tests::snapshot::tree(running.root.as_raw())?.len();
            running.dump(&["--leave-running", "--stats", "dump.json"])?.success()?;
            let kept = running.images();
            running.dump(&["--stats", "dump.json"])?.success()?;
            nothing_left()?;
            let images = running.images();
            running.restore(&["-d", "--stats", "restore.json"])?.success()?;
            const DUMP: [&str; 5] = ["freeze", "tasks", "find-pages", "write-pages", "finish"];
            const RESTORE: [&str; 5] = ["read", "plan", "rebuild", "put-pages", "take-over"];
            for (file, command, stages) in [
                (kept.join("dump.json"), "dump", DUMP),
                (images.join("dump.json"), "dump", DUMP),
                (images.join("restore.json"), "restore", RESTORE),
            ] {
                let text = fs::read_to_string(file)?;
                let said: serde_json::Value = serde_json::from_str(&text)?;
                let of = |stage: &serde_json::Value| stage["seconds"].as_f64().unwrap_or(f64::NAN);
                let all = said["stages"].as_array().cloned().unwrap_or_default();
                let (sum, total) =
                    (all.iter().map(of).sum::<f64>(), said["total_seconds"].as_f64().unwrap_or(0.0));
                assert_eq!(said["command"], command, "{text}");
                assert_eq!(said["tasks"], tasks, "{text}");
                assert!(sum >= total && sum < total + 0.5 && total > 0.0, "{sum} instead of {total}: {text}");
                assert!(said["peak_memory_bytes"].as_u64() > Some(1 << 20), "{text}");
                for stage in stages {
                    assert!(all.iter().any(|one| one["stage"] == stage && of(one) > 0.0), "{stage}: {text}");
                }
                let frozen = said["frozen_seconds"].as_f64();
                assert_eq!(
                    frozen.is_some_and(|frozen| frozen > 0.0 && frozen < total),
                    command == "dump",
                    "{text}"
                );
            }
            running.verify()?;
        }
        Ok(())
    });
}

/// The file of `--stats` is made before anything is done, and stays empty if that fails.
#[test]
fn statistics_of_what_failed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = IDLE.start(dir, Abi::Ia32)?;
        running.dump(&["--stats", "/nowhere/s.json"])?.code(1)?.says("/nowhere/s.json: create")?;
        running.dump(&["--stats", "s.json", "--fault", "image-write"])?.code(1)?;
        assert_eq!(fs::read(running.images().join("s.json"))?, b"");
        running.verify()
    });
}
