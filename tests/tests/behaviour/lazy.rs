//! Tasks that run before all of their memory is there (`crr restore --lazy-pages`).

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::abi::Abi;
use tests::case::{Running, Workload, memory_arrives, nothing_left, reap};
use tests::isolate::{isolated, isolated_for_both};
use tests::{Result, here, modes, require_ia32, require_root, wait};

/// What nobody uses does not come.
const ON_DEMAND: &[&str] = &["env", "CRR_FAULT=lazy-ahead"];

const CASES: [&str; 6] = ["system_calls", "changed", "forks", "orphan", "threads", "family"];

/// Processes of this name, which the kernel cuts to 15 bytes.
fn called(name: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.trim_end() == name {
            found.push(Pid::from_raw(path.file_name().unwrap_or_default().to_string_lossy().parse()?));
        }
    }
    Ok(found)
}

/// Whether memory of a task is still to come.
fn is_lazy(pid: Pid) -> Result<bool> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" um")))
}

fn restored(dir: &Path, case: &'static str, abi: Abi, under: &[&str]) -> Result<Running> {
    let mut running = Workload::new("lazy", case).start(&dir.join(case), abi)?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    running.restore_under(under, &["-d", "--lazy-pages"])?.success()?;
    Ok(running)
}

/// The cases are right without crr.
#[test]
fn control() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in CASES {
            modes::control(&dir.join(case), &Workload::new("lazy", case), abi).context(case)?;
        }
        Ok(())
    });
}

/// Whatever becomes of memory that is not there yet, nothing is there when the tasks go on.
#[test]
fn nothing_has_come_yet() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in CASES {
            let running = restored(dir, case, abi, ON_DEMAND).context(case)?;
            ensure!(is_lazy(running.root)?, "{case}: all memory is there");
            running.verify().context(case)?;
        }
        Ok(())
    });
}

/// The same while it comes.
#[test]
fn it_comes_meanwhile() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in CASES {
            restored(dir, case, abi, &[]).and_then(Running::verify).context(case)?;
        }
        Ok(())
    });
}

/// When all has come, tasks of all sorts are as they were; also from images that are packed, or of several rounds.
#[test]
fn all_sorts_of_tasks() {
    require_root!();
    require_ia32!();
    let workloads = [
        (Workload::new("lazy", "changed"), &["--compress"][..]),
        (Workload::new("lazy", "family"), &[]),
        (Workload::new("memory", "heap"), &[]),
        (Workload::new("memory", "prot_none"), &[]),
        (Workload::new("mapping", "private_file"), &[]),
        (Workload::new("threads", "many"), &[]),
        (Workload::new("families", "memory"), &[]),
        (Workload::new("tree", "mixed"), &[]),
        (Workload::new("room", "limit"), &[]),
        (Workload::new("cow", "prefork"), &[]),
    ];
    isolated_for_both(&here!(), |dir, abi| {
        for (workload, options) in &workloads {
            let comes_back = || -> Result {
                let mut running = workload.start(&dir.join(workload.to_string()), abi)?;
                let before = running.snapshot()?;
                running.dump(options)?.success()?;
                nothing_left()?;
                running.restore(&["-d", "--lazy-pages"])?.success()?;
                memory_arrives()?;
                running.looks_like(&before)?;
                running.verify()
            };
            comes_back().with_context(|| workload.to_string())?;
        }
        let mut running = Workload::new("lazy", "changed").start(&dir.join("rounds"), abi)?;
        running.pre_dump(&[])?.success()?;
        running.pre_dump(&["--compress"])?.success()?;
        running.dump_on_rounds(&[])?.success()?;
        nothing_left()?;
        running.restore_under(ON_DEMAND, &["-d", "--lazy-pages"])?.success()?;
        running.verify()
    });
}

/// A dump of a tree whose memory is not there yet is refused, and so is a pre-dump; when it is there, both work.
#[test]
fn no_dump_before_all_is_there() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = restored(dir, "system_calls", abi, ON_DEMAND)?;
        running.dump(&[])?.code(1)?.says_with_hint("memory that is still to come")?;
        running.pre_dump(&[])?.code(1)?.says_with_hint("memory that is still to come")?;
        ensure!(is_lazy(running.root)?, "all memory is there");
        running.verify()?;
        let mut running = Workload::new("lazy", "changed").start(&dir.join("again"), abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d", "--lazy-pages"])?.success()?;
        memory_arrives()?;
        running.pre_dump(&[])?.success()?;
        running.dump_on_rounds(&[])?.success()?;
        running.comes_back()
    });
}

/// Waits until the root has ended by SIGKILL.
fn is_killed(running: &Running) -> Result {
    let status = wait::until(wait::STEP, "the root is killed", || {
        Ok(Some(waitpid(running.root, Some(nix::sys::wait::WaitPidFlag::WNOHANG))?)
            .filter(|status| *status != WaitStatus::StillAlive))
    })?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "it ended with {status:?}");
    Ok(())
}

/// If nobody brings what is missing any more, the tasks are killed: none goes on with zeros. So are children of theirs that
/// need it, when they do.
#[test]
fn the_end_of_the_server_is_that_of_the_tasks() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = restored(dir, "family", abi, ON_DEMAND)?;
        for server in called("crr-lazy-pages")? {
            kill(server, Signal::SIGKILL)?;
        }
        is_killed(&running)?;
        nothing_left()?;
        let running = restored(dir, "child_that_waits", abi, ON_DEMAND)?;
        running.signal(Signal::SIGUSR2)?;
        running.wait_for("CHILD")?;
        let root = running.root;
        let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children"))?;
        let child = Pid::from_raw(children.trim().parse()?);
        for server in called("crr-lazy-pages")? {
            kill(server, Signal::SIGKILL)?;
        }
        is_killed(&running)?;
        ensure!(is_lazy(child)?, "the child has all memory");
        kill(child, Signal::SIGUSR1)?;
        nothing_left()?;
        ensure!(!running.log()?.contains("FAIL"), "the child went on");
        Ok(())
    });
}

/// Without the guard, and with nothing else wrong, all comes.
#[test]
fn the_guard_is_not_needed_if_nothing_is_wrong() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = restored(dir, "forks", abi, ON_DEMAND)?;
        for guard in called("crr-lazy-guard")? {
            kill(guard, Signal::SIGKILL)?;
        }
        running.verify()
    });
}

/// A signal that comes to both processes, as one for all of their name does, is no way for tasks to find zeros: they end.
#[test]
fn a_signal_to_both() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
            let running = restored(&dir.join(signal.as_str()), "large", abi, ON_DEMAND)?;
            let both = [called("crr-lazy-guard")?, called("crr-lazy-pages")?].concat();
            ensure!(both.len() == 2, "{both:?}");
            both.into_iter().try_for_each(|one| kill(one, signal))?;
            is_killed(&running).with_context(|| signal.as_str())?;
            nothing_left()?;
        }
        Ok(())
    });
}

/// One guard that is gone has another one in its place.
#[test]
fn another_guard() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = restored(dir, "large", abi, ON_DEMAND)?;
        for _ in 0..3 {
            let [guard] = called("crr-lazy-guard")?[..] else { bail!("there is not one guard") };
            kill(guard, Signal::SIGKILL)?;
            wait::until(wait::STEP, "another guard", || {
                reap()?;
                Ok(matches!(called("crr-lazy-guard")?[..], [now] if now != guard).then_some(()))
            })?;
        }
        for server in called("crr-lazy-pages")? {
            kill(server, Signal::SIGKILL)?;
        }
        is_killed(&running)?;
        nothing_left()
    });
}

/// Images that get shorter, or change, under the hands of those who read them.
#[test]
fn images_that_go_away() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for name in ["cut", "changed"] {
            let mut running = Workload::new("lazy", "large").start(&dir.join(name), Abi::Ia32)?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            let options = ["-d", "--lazy-pages", "-o", "log"];
            running.restore_under(ON_DEMAND, &options)?.success()?;
            let pages = fs::File::options().write(true).open(running.images().join("pages.img"))?;
            if name == "cut" { pages.set_len(4096) } else { pages.write_all_at(b"x", 1 << 20) }?;
            running.signal(Signal::SIGUSR1)?;
            is_killed(&running)?;
            nothing_left()?;
            let log = fs::read_to_string(running.images().join("log"))?;
            ensure!(log.contains("killing the restored tasks"), "the log says:\n{log}");
            ensure!(name == "cut" || log.contains("pages.img: is corrupt"), "the log says:\n{log}");
            running.restore(&["-d"])?.code(1)?.says("pages.img: is ")?;
        }
        Ok(())
    });
}

/// A restore that fails, or is killed, when somebody brings pages already leaves nobody behind.
#[test]
fn restores_that_fail() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("lazy", "family").start(&dir.join("family"), abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        for fault in ["op-word", "set-registers", "killed-parked", "killed-seized", "killed-finished"] {
            let fault = format!("CRR_FAULT={fault}");
            let output = running.restore_under(&["env", &fault], &["-d", "--lazy-pages"])?;
            ensure!(!output.status.success(), "{fault}: it works");
            nothing_left().context(fault)?;
        }
        running.restore(&["-d", "--lazy-pages"])?.success()?;
        running.verify()
    });
}

/// A task runs well before all of its memory is there.
#[test]
fn sooner() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("lazy", "large").start(&dir.join("large"), abi)?;
        running.dump(&[])?.success()?;
        let shortest = |options: &[&str]| -> Result<Duration> {
            let mut shortest = Duration::MAX;
            for _ in 0..3 {
                nothing_left()?;
                let started = Instant::now();
                running.restore(options)?.success()?;
                shortest = shortest.min(started.elapsed());
                running.signal(Signal::SIGKILL)?;
            }
            Ok(shortest)
        };
        let (whole, lazy) = (shortest(&["-d"])?, shortest(&["-d", "--lazy-pages"])?);
        ensure!(2 * lazy < whole, "{lazy:?} instead of {whole:?}");
        nothing_left()
    });
}

/// A restore that stays ends as the root ends.
#[test]
fn a_restore_that_waits() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("lazy", "large").start(&dir.join("large"), Abi::X86_64)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let root = running.root.to_string();
        let script =
            format!("until grep -q um /proc/{root}/smaps 2>/dev/null; do :; done; kill -USR1 {root}");
        let mut asker = std::process::Command::new("sh").args(["-c", &script]).spawn()?;
        running.restore(&["--lazy-pages"])?.success()?;
        asker.wait()?;
        nothing_left()
    });
}

/// Pages that had to be unpacked lie in memory, and are given back as they come: else all of them would be there twice.
#[test]
fn what_has_come_is_given_back() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("lazy", "large").start(dir, abi)?;
        running.dump(&["--compress"])?.success()?;
        nothing_left()?;
        running.restore_under(ON_DEMAND, &["-d", "--lazy-pages"])?.success()?;
        let [server] = called("crr-lazy-pages")?[..] else { bail!("not one process brings pages") };
        let unpacked = memory_file(server, "crr-pages")?;
        let taken = || anyhow::Ok(unpacked.metadata()?.blocks() * 512);
        ensure!(taken()? > 100 << 20, "{} bytes are unpacked", taken()?);
        running.verify()?;
        ensure!(taken()? < 10 << 20, "{} bytes are still there", taken()?);
        Ok(())
    });
}

/// A file in memory that a process has open.
fn memory_file(pid: Pid, name: &str) -> Result<File> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path)
            .is_ok_and(|link| link.to_string_lossy().starts_with(&format!("/memfd:{name}")))
        {
            return Ok(File::open(path)?);
        }
    }
    bail!("process {pid} has no {name}")
}
