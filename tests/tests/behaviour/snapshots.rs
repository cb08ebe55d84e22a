//! Dumps whose page contents are copied when the tree runs on (`crr dump --leave-running --snapshot`).

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left, reap};
use tests::isolate::isolated_for_both;
use tests::snapshot::Snapshot;
use tests::{Result, command, here, modes, require_ia32, require_root, wait};

const SNAPSHOT: [&str; 2] = ["--leave-running", "--snapshot"];

fn status_of(pid: i32, field: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such line")?;
    Ok(line.trim().to_owned())
}

/// The twins of a task, living or not. One that is killed at once has not taken its name: it is known by telling nobody of its end.
fn twins(pid: Pid) -> Result<Vec<i32>> {
    const EXIT_SIGNAL: usize = 38 - 3;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().filter_map(|word| word.parse().ok());
    let tells_nobody = |&pid: &i32| stat_of(pid).is_ok_and(|fields| fields[EXIT_SIGNAL] == "0");
    Ok(children.filter(tells_nobody).collect())
}

/// What `/proc/PID/stat` tells behind the name, from field 3 of proc(5) on.
fn stat_of(pid: i32) -> Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// A dump that has let the tree run on, and waits until somebody reads its pages.
struct Paused {
    crr: Child,
    stream: File,
    read: Vec<u8>,
    stderr: PathBuf,
}

impl Paused {
    fn start(running: &Running, options: &[&str]) -> Result<Self> {
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let stderr = running.dir.join("paused.stderr");
        let crr = Command::new(std::env::var_os("CRR_BIN").context("CRR_BIN")?)
            .args(["dump", "-t", &running.root.to_string(), "-D", "-"])
            .args(SNAPSHOT)
            .args(options)
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(File::create(&stderr)?)
            .spawn()?;
        let mut paused = Self { crr, stream: File::from(ours), read: Vec::new(), stderr };
        let mut chunk = [0u8; 4096];
        wait::until(wait::STEP, "the tree runs on", || {
            if let Some(status) = paused.crr.try_wait()? {
                anyhow::bail!("crr ends: {status}\n{}", paused.said()?);
            }
            let held = !twins(running.root)?.is_empty();
            if held && status_of(running.root.as_raw(), "TracerPid:")? == "0" {
                return Ok(Some(()));
            }
            // What has to be written while the tree stands still, and as little else as can be.
            match paused.stream.read(&mut chunk) {
                Ok(n) => paused.read.extend(&chunk[..n]),
                Err(e) if e.raw_os_error() == Some(Errno::EAGAIN as i32) => {}
                Err(e) => return Err(e.into()),
            }
            Ok(None)
        })?;
        Ok(paused)
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.stderr)?)
    }

    /// Reads all the rest.
    fn finish(mut self, stream: &Path) -> Result {
        fcntl(&self.stream, FcntlArg::F_SETFL(OFlag::empty()))?;
        self.stream.read_to_end(&mut self.read)?;
        let status = self.crr.wait()?;
        ensure!(status.success(), "crr ends: {status}\n{}", self.said()?);
        Ok(File::create(stream)?.write_all(&self.read)?)
    }
}

/// Has the running tree verify itself and end, so that it can be restored.
fn verify_and_end(running: &Running) -> Result {
    running.signal(Signal::SIGUSR1)?;
    wait::until(wait::STEP, "the workload ends", || {
        reap()?;
        Ok(kill(running.root, None).is_err().then_some(()))
    })?;
    let log = running.log()?;
    ensure!(log.ends_with("PASS\n") && !log.contains("FAIL"), "the workload said:\n{log}");
    nothing_left()
}

/// No twin is left, nor anything that a killed dump could have left.
fn leaves_nothing(running: &Running) -> Result {
    let left = twins(running.root)?;
    ensure!(left.is_empty(), "twins are left: {left:?}");
    command::none_left()
}

/// A twin holds nothing by which anybody could notice it.
fn holds_nothing(twin: i32) -> Result {
    let fds: Vec<_> = fs::read_dir(format!("/proc/{twin}/fd"))?.collect();
    ensure!(fds.is_empty(), "it has descriptors: {fds:?}");
    let cwd = fs::read_link(format!("/proc/{twin}/cwd"))?;
    ensure!(cwd == Path::new("/"), "it is in {}", cwd.display());
    ensure!(status_of(twin, "Name:")? == "crr-twin", "its name");
    let fields = stat_of(twin)?;
    let own = twin.to_string();
    ensure!(fields[2] == own && fields[3] == own && fields[4] == "0", "group, session, terminal: {fields:?}");
    let maps = fs::read_to_string(format!("/proc/{twin}/maps"))?;
    // What it was made by.
    let shared = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|prot| prot.ends_with('s')));
    ensure!(shared.count() == 1, "it has shared memory:\n{maps}");
    Ok(())
}

/// The cases are right without crr.
#[test]
fn control() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in ["kinds", "family"] {
            modes::control(&dir.join(case), &Workload::new("snapshot", case), abi).context(case)?;
        }
        Ok(())
    });
}

/// A checkpoint has what was there when the tree stood still, though all of it is changed before it is copied; and who changes and gives up
/// what he has finds nobody else who holds it.
#[test]
fn what_was_there_at_that_moment() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for (case, options) in [("kinds", &[][..]), ("family", &["--compress"])] {
            let running = Workload::new("snapshot", case).start(&dir.join(case), abi)?;
            let before = running.snapshot()?;
            let paused = Paused::start(&running, options)?;
            for twin in twins(running.root)? {
                holds_nothing(twin).context(case)?;
            }
            running.signal(Signal::SIGUSR2)?;
            running.wait_for("CHANGED")?;
            let stream = running.dir.join("a.tar");
            paused.finish(&stream)?;
            leaves_nothing(&running)?;
            verify_and_end(&running)?;
            let script = "exec \"$@\" < a.tar";
            let args = ["restore", "-D", "-", "-d"];
            command::crr_under(&["bash", "-c", script, "bash"], &running.dir, &args)?.success()?;
            running.looks_like(&before).context(case)?;
            running.verify().context(case)?;
        }
        Ok(())
    });
}

/// A program that never stops writing: what is restored goes on from one moment.
#[test]
fn a_tree_that_never_stops_writing() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "writer").busy().start(dir, abi)?;
        running.dump(&SNAPSHOT)?.success()?;
        leaves_nothing(&running)?;
        verify_and_end(&running)?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// Tasks of all sorts run on as they were, and come back as they were.
#[test]
fn all_sorts_of_tasks() {
    require_root!();
    require_ia32!();
    let workloads = [
        Workload::new("memory", "heap"),
        Workload::new("memory", "prot_none"),
        Workload::new("mapping", "private_file"),
        Workload::new("mapping", "shared_twice"),
        Workload::new("threads", "in_children"),
        Workload::new("families", "memory"),
        Workload::new("families", "chain"),
        Workload::new("tree", "mixed"),
        Workload::new("seccomp", "threads"),
        Workload::new("dispatch", "waiting"),
        Workload::new("room", "limit"),
        Workload::new("leader", "many"),
        Workload::new("aio", "unread"),
        Workload::new("syscalls", "waiting"),
        Workload::new("cow", "prefork"),
        Workload::new("cow", "grandchildren"),
        Workload::new("ptys", "session"),
        Workload::new("stops", "signals"),
    ];
    isolated_for_both(&here!(), |dir, abi| {
        for workload in &workloads {
            runs_on_and_comes_back(&dir.join(workload.to_string()), workload, abi)
                .with_context(|| workload.to_string())?;
        }
        Ok(())
    });
}

fn runs_on_and_comes_back(dir: &Path, workload: &Workload, abi: Abi) -> Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    running.dump(&[&SNAPSHOT[..], &["--fault", "twins-always"]].concat())?.success()?;
    running.looks_like(&before)?;
    comes_back(running, &before)
}

/// Ends the tree by a further dump, and restores the one before.
fn comes_back(mut running: Running, before: &Snapshot) -> Result {
    let images = running.images().display().to_string();
    running.dump(&[])?.success()?;
    nothing_left()?;
    command::crr(&running.dir, &["restore", "-D", &images, "-d"])?.success()?;
    running.looks_like(before)?;
    running.verify()
}

/// A dump that is killed: its twins end with it. The tree has zombies that it does not see, until the next dump has it wait for them.
#[test]
fn killed_dumps_harm_nothing() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("snapshot", "family").start(dir, abi)?;
        let before = running.snapshot()?;
        for fault in ["killed-cloning", "killed-cloning:3", "killed-snapshot", "killed-copying:50"] {
            let mut again = || -> Result {
                let output = running.dump(&[&SNAPSHOT[..], &["--fault", fault]].concat())?;
                // What the process that waits for it tells.
                let output = output.code(128 + 9)?;
                output.says(fault.split(':').next().unwrap_or_default())?;
                command::none_left()?;
                wait::until(wait::STEP, "the twin has ended", || {
                    let left = twins(running.root)?;
                    ensure!(left.len() == 1, "twins: {left:?}");
                    Ok(status_of(left[0], "State:")?.starts_with('Z').then_some(()))
                })?;
                running.dump(&["--leave-running"])?.success()?;
                leaves_nothing(&running)?;
                running.looks_like(&before)
            };
            again().context(fault)?;
        }
        running.dump(&SNAPSHOT)?.success()?;
        running.looks_like(&before)?;
        running.cycle(&before)?;
        running.verify()
    });
}

/// A twin that is killed with its dump, before it has left the session and the group of its maker.
#[test]
fn a_twin_that_is_killed_at_once() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("snapshot", "family").start(dir, abi)?;
        let before = running.snapshot()?;
        let faults = ["--fault", "twin-dies,killed-cloning"];
        running.dump(&[&SNAPSHOT[..], &faults].concat())?.code(128 + 9)?.says("twin-dies")?;
        let twin = twins(running.root)?;
        ensure!(twin.len() == 1 && status_of(twin[0], "Name:")? == "snapshot", "twins: {twin:?}");
        running.dump(&["--leave-running"])?.success()?;
        leaves_nothing(&running)?;
        running.looks_like(&before)?;
        running.cycle(&before)?;
        running.verify()
    });
}

/// The twin of a killed dump whose maker ends, too, goes to the task that takes in orphans, which need not wait for it: the next dump has it do so.
#[test]
fn a_twin_that_another_task_took_in() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("snapshot", "takes_in").start(dir, abi)?;
        let root = running.root;
        let children = || -> Result<Vec<i32>> {
            let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children"))?;
            Ok(children.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        };
        let maker = children()?;
        running.dump(&[&SNAPSHOT[..], &["--fault", "killed-copying"]].concat())?.code(128 + 9)?;
        command::none_left()?;
        kill(Pid::from_raw(maker[0]), Signal::SIGKILL)?;
        wait::until(wait::STEP, "its twin is taken in", || {
            let all = children()?;
            let ended = |&pid: &i32| status_of(pid, "State:").is_ok_and(|state| state.starts_with('Z'));
            Ok((all.len() == 2 && all.iter().all(ended)).then_some(()))
        })?;
        running.dump(&["--leave-running"])?.success()?;
        ensure!(children()? == maker, "children: {:?}", children()?);
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// A signal for crr, or the end of the process that was started, while twins are copied: the dump ends, and nothing is left.
#[test]
fn an_interrupted_dump_leaves_nothing() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("snapshot", "kinds").start(dir, abi)?;
        let before = running.snapshot()?;
        for signal in [Signal::SIGINT, Signal::SIGKILL] {
            let mut paused = Paused::start(&running, &[])?;
            kill(Pid::from_raw(i32::try_from(paused.crr.id())?), signal)?;
            let status = paused.crr.wait()?;
            ensure!(!status.success(), "{signal}: {status}");
            command::none_left()?;
            leaves_nothing(&running)?;
            running.looks_like(&before).with_context(|| signal.to_string())?;
        }
        running.verify()
    });
}

/// A task that is killed while its twin is copied is in the checkpoint all the same.
#[test]
fn a_task_that_dies_meanwhile() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("snapshot", "family").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[&SNAPSHOT[..], &["--fault", "task-dies-snapshot"]].concat())?.success()?;
        leaves_nothing(&running)?;
        comes_back(running, &before)
    });
}

/// A task that somebody else traces when all is copied, so that it cannot be stopped to wait for its twin: the checkpoint is complete nevertheless, and the next
/// dump has it wait.
#[test]
fn a_task_that_cannot_be_stopped_in_the_end() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("snapshot", "kinds").start(dir, abi)?;
        let before = running.snapshot()?;
        let paused = Paused::start(&running, &[])?;
        let (stderr, stream) = (paused.stderr.clone(), running.dir.join("a.tar"));
        ptrace::seize(running.root, ptrace::Options::empty())?;
        paused.finish(&stream)?;
        let said = fs::read_to_string(stderr)?;
        ensure!(said.contains("keeps a zombie that the dump has made"), "crr said: {said}");
        ensure!(said.contains("traced by"), "crr said: {said}");
        ensure!(twins(running.root)?.len() == 1, "its twin is gone");
        ptrace::interrupt(running.root)?;
        waitpid(running.root, None)?;
        ptrace::detach(running.root, None)?;
        running.dump(&["--leave-running"])?.success()?;
        leaves_nothing(&running)?;
        running.looks_like(&before)?;
        verify_and_end(&running)?;
        let args = ["restore", "-D", "-", "-d"];
        command::crr_under(&["bash", "-c", "exec \"$@\" < a.tar", "bash"], &running.dir, &args)?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// On top of rounds, which are told what was written until the tree stood still.
#[test]
fn on_rounds() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "writer").busy().start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        running.dump_on_rounds(&SNAPSHOT)?.success()?;
        leaves_nothing(&running)?;
        verify_and_end(&running)?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// The tree stands still for a part of the time that it takes to copy what it has.
#[test]
fn the_tree_stands_still_for_less() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("lazy", "large").start(dir, abi)?;
        let mut frozen = |options: &[&str]| -> Result<f64> {
            let mut shortest = f64::INFINITY;
            for _ in 0..3 {
                running
                    .dump(&[&["--leave-running", "--stats", "stats.json"], options].concat())?
                    .success()?;
                let text = fs::read_to_string(running.images().join("stats.json"))?;
                let stats: serde_json::Value = serde_json::from_str(&text)?;
                shortest = shortest.min(stats["frozen_seconds"].as_f64().context("frozen_seconds")?);
                fs::remove_dir_all(running.images())?;
            }
            Ok(shortest)
        };
        let (whole, snapshot) = (frozen(&[])?, frozen(&["--snapshot"])?);
        ensure!(2.0 * snapshot < whole, "{snapshot} s instead of {whole} s");
        running.verify()
    });
}

/// It is for trees that run on.
#[test]
fn only_a_tree_that_runs_on() {
    require_root!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("harness", "idle").start(dir, abi)?;
        running.dump(&["--snapshot"])?.code(2)?.says("--leave-running")?;
        running.dump(&["--snapshot", "--leave-stopped"])?.code(2)?;
        running.verify()
    });
}
