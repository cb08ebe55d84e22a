//! A workload and a running instance of it: start, dump, restore, verify.

use crate::abi::Abi;
use crate::command::{self, Output};
use crate::snapshot::Snapshot;
use crate::{binaries, wait};
use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A case of a workload program.
#[derive(Clone, Debug)]
pub struct Workload {
    file: &'static str,
    case: &'static str,
    busy: bool,
    orphan: bool,
}

impl Workload {
    /// `case` of `workloads/FILE.c`.
    #[must_use]
    pub const fn new(file: &'static str, case: &'static str) -> Self {
        Self { file, case, busy: false, orphan: false }
    }

    /// Says that it goes on working all the time: what changes by that is left out of the comparison.
    #[must_use]
    pub const fn busy(mut self) -> Self {
        self.busy = true;
        self
    }

    /// Says that its session leader and parent are to be dead, as those of a daemon are.
    #[must_use]
    pub const fn orphan(mut self) -> Self {
        self.orphan = true;
        self
    }

    /// Starts it with its files in `dir` and waits until it is ready.
    ///
    /// # Errors
    /// It did not get ready.
    pub fn start(&self, dir: &Path, abi: Abi) -> crate::Result<Running> {
        let program = binaries::workload(self.file, abi)?;
        // Workloads of several tasks exec themselves in the other ABI.
        binaries::workload(self.file, abi.other())?;
        fs::create_dir_all(dir)?;
        let log = dir.join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new("setsid");
        if self.orphan {
            command.args(["sh", "-c", r#""$@" & echo $! > pid"#, "sh"]);
        }
        // PID 1 is this test process, so the root has the same parent before and after, an orphan too.
        let mut child = command
            .arg(program)
            .arg(self.case)
            .current_dir(dir)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("WORKLOADS", binaries::workloads_dir())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start the workload")?;
        let root = if self.orphan {
            ensure!(child.wait()?.success(), "the shell that leaves the workload alone");
            fs::read_to_string(dir.join("pid"))?.trim().parse()?
        } else {
            i32::try_from(child.id())?
        };
        let root = Pid::from_raw(root);
        let running = Running { root, dir: dir.to_owned(), log, dumps: 0, rounds: 0, busy: self.busy };
        running.wait_for("READY")?;
        Ok(running)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.case)
    }
}

/// A started workload.
#[derive(Debug)]
pub struct Running {
    /// Pid of its root task.
    pub root: Pid,
    /// Where its files and the images are.
    pub dir: PathBuf,
    log: PathBuf,
    dumps: u32,
    /// Which of them was the last pre-dump; 0 for none.
    rounds: u32,
    busy: bool,
}

impl Running {
    /// What it has printed so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> crate::Result<String> {
        fs::read_to_string(&self.log).context("read the log of the workload")
    }

    /// Waits until it prints a line.
    ///
    /// # Errors
    /// It ended first, or prints something else for too long.
    pub fn wait_for(&self, line: &str) -> crate::Result {
        let waited = wait::until(wait::STEP, &format!("the workload prints {line}"), || {
            if self.log()?.lines().any(|l| l == line) {
                return Ok(Some(()));
            }
            match waitpid(self.root, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => Ok(None),
                other => bail!("the workload ended before it printed {line}: {other:?}"),
            }
        });
        waited.with_context(|| format!("workload said:\n{}", self.log().unwrap_or_default()))
    }

    /// Sends a signal to its root.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> crate::Result {
        kill(self.root, signal).with_context(|| format!("{signal} to the workload"))
    }

    /// What /proc shows, once it holds still.
    ///
    /// # Errors
    /// /proc cannot be read, or two looks in a row keep differing.
    pub fn snapshot(&self) -> crate::Result<Snapshot> {
        let mut last = self.look()?;
        wait::until(wait::STEP, "the workload holds still", || {
            let now = self.look()?;
            if now == last && (self.busy || now.all_asleep()) {
                return Ok(Some(now));
            }
            last = now;
            Ok(None)
        })
    }

    fn look(&self) -> crate::Result<Snapshot> {
        let snapshot = Snapshot::take(self.root.as_raw())?;
        Ok(if self.busy { snapshot.without_progress() } else { snapshot })
    }

    /// Waits until /proc shows what it showed at `before`.
    ///
    /// # Errors
    /// It keeps showing something else: the difference.
    pub fn looks_like(&self, before: &Snapshot) -> crate::Result {
        self.comes_to_look_like(before.clone(), |look| look)
    }

    /// Directory of the newest images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.dir.join(format!("images-{}", self.dumps))
    }

    /// `crr dump` with these further options, into a new directory. How it ended is for the caller to judge.
    ///
    /// # Errors
    /// It did not run to an end.
    pub fn dump(&mut self, options: &[&str]) -> crate::Result<Output> {
        let args = self.dump_args(options)?;
        command::crr(&self.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `crr pre-dump` with these further options, into a new directory; it builds on the one before if that was one.
    ///
    /// # Errors
    /// It did not run to an end.
    pub fn pre_dump(&mut self, options: &[&str]) -> crate::Result<Output> {
        let mut args = self.round_args(options)?;
        "pre-dump".clone_into(&mut args[0]);
        self.rounds = self.dumps;
        command::crr(&self.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `crr dump` that builds on the pre-dump before.
    ///
    /// # Errors
    /// It did not run to an end.
    pub fn dump_on_rounds(&mut self, options: &[&str]) -> crate::Result<Output> {
        let args = self.round_args(options)?;
        command::crr(&self.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn round_args(&mut self, options: &[&str]) -> crate::Result<Vec<String>> {
        let previous = format!("../images-{}", self.dumps);
        let builds = self.rounds > 0 && self.rounds == self.dumps;
        let mut args = self.dump_args(options)?;
        if builds {
            args.extend(["--prev-images-dir".to_owned(), previous]);
        }
        Ok(args)
    }

    /// `crr dump` of another task than the root, into a new directory.
    ///
    /// # Errors
    /// It did not run to an end.
    pub fn dump_task(&mut self, pid: i32, options: &[&str]) -> crate::Result<Output> {
        let mut args = self.dump_args(options)?;
        args[2] = pid.to_string();
        command::crr(&self.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The arguments of the next `crr dump`, with its directory made.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn dump_args(&mut self, options: &[&str]) -> crate::Result<Vec<String>> {
        self.dumps += 1;
        let images = self.images();
        fs::create_dir(&images)?;
        let mut args = vec!["dump".to_owned(), "-t".to_owned(), self.root.to_string(), "-D".to_owned()];
        args.push(images.display().to_string());
        args.extend(options.iter().map(|&option| option.to_owned()));
        Ok(args)
    }

    /// Waits until /proc shows what it showed at `before`, areas of memory aside.
    ///
    /// # Errors
    /// As [`Running::looks_like`].
    pub fn looks_like_but_for_areas(&self, before: &Snapshot) -> crate::Result {
        self.comes_to_look_like(before.clone().without_areas(), Snapshot::without_areas)
    }

    fn comes_to_look_like(&self, before: Snapshot, of: impl Fn(Snapshot) -> Snapshot) -> crate::Result {
        let mut difference = None;
        let waited = wait::until(wait::STEP / 10, "/proc shows what it showed before", || {
            difference = before.difference(&of(self.look()?));
            Ok(difference.is_none().then_some(()))
        });
        waited.with_context(|| {
            format!("/proc differs (- before, + after):\n{}", difference.unwrap_or_default())
        })
    }

    /// `crr restore` of the newest images with these further options.
    ///
    /// # Errors
    /// It did not run to an end.
    pub fn restore(&self, options: &[&str]) -> crate::Result<Output> {
        self.restore_under(&[], options)
    }

    /// [`Running::restore`] by way of another program that execs its last arguments.
    ///
    /// # Errors
    /// As there.
    pub fn restore_under(&self, under: &[&str], options: &[&str]) -> crate::Result<Output> {
        let images = self.images().display().to_string();
        command::crr_under(under, &self.dir, &[&["restore", "-D", &images], options].concat())
    }

    /// One round: dump, see that the tree is gone, restore, see that it is back as it was.
    ///
    /// # Errors
    /// Whichever of these fails.
    pub fn cycle(&mut self, before: &Snapshot) -> crate::Result {
        self.cycle_with(before, &[])
    }

    /// [`Running::cycle`] with options of the dump.
    ///
    /// # Errors
    /// As there.
    pub fn cycle_with(&mut self, before: &Snapshot, options: &[&str]) -> crate::Result {
        self.dump(options)?.success()?;
        nothing_left()?;
        self.restore(&["-d"])?.success()?;
        self.looks_like(before)
    }

    /// Sees that the dumped tree is gone, restores it and has it verify itself and end.
    ///
    /// # Errors
    /// Whichever of these fails.
    pub fn comes_back(self) -> crate::Result {
        nothing_left()?;
        self.restore(&["-d"])?.success()?;
        self.verify()
    }

    /// Asks a busy workload whether every thread gets on.
    ///
    /// # Errors
    /// One does not, or something is wrong.
    pub fn is_alive(&self) -> crate::Result {
        let answers = |log: &str| log.lines().filter(|line| *line == "ALIVE").count();
        let before = answers(&self.log()?);
        self.signal(Signal::SIGUSR2)?;
        wait::until(wait::STEP, "the workload answers ALIVE", || {
            let log = self.log()?;
            ensure!(!log.contains("FAIL"), "the workload said:\n{log}");
            Ok((answers(&log) > before).then_some(()))
        })
    }

    /// Has it verify itself and end.
    ///
    /// # Errors
    /// It found something wrong, or did not end well and alone.
    pub fn verify(self) -> crate::Result {
        self.signal(Signal::SIGUSR1)?;
        self.passed()
    }

    /// Waits for it to end and sees that it passed.
    ///
    /// # Errors
    /// It found something wrong, or did not end well and alone.
    pub fn passed(self) -> crate::Result {
        self.ends()
    }

    /// The same of one that is to be restored once more.
    ///
    /// # Errors
    /// It found something wrong, or did not end well and alone.
    pub fn ends(&self) -> crate::Result {
        let status = wait::until(wait::STEP, "the workload ends", || {
            match waitpid(self.root, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive => Ok(None),
                status => Ok(Some(status)),
            }
        });
        let log = self.log()?;
        let status = status.with_context(|| format!("workload said:\n{log}"))?;
        ensure!(
            status == WaitStatus::Exited(self.root, 0) && log.lines().last() == Some("PASS"),
            "the workload ended with {status:?} and said:\n{log}"
        );
        ensure!(!log.contains("FAIL"), "the workload said:\n{log}");
        nothing_left()
    }
}

/// Waits until no process but this one is left in the namespace, reaping what has ended.
///
/// # Errors
/// Something stays: its command lines.
pub fn nothing_left() -> crate::Result {
    let mut left = Vec::new();
    let waited = wait::until(wait::STEP / 10, "no process is left", || {
        reap()?;
        left = others()?;
        Ok(left.is_empty().then_some(()))
    });
    waited.with_context(|| format!("still there: {}", left.join(", ")))
}

/// Waits until no restored task waits for memory any more (`--lazy-pages`).
///
/// # Errors
/// Some does.
pub fn memory_arrives() -> crate::Result {
    wait::until(wait::STEP, "all memory is there", || {
        reap()?;
        Ok((!others()?.iter().any(|process| process.contains(" crr-lazy-"))).then_some(()))
    })
}

/// Takes leave of every child that has ended.
///
/// # Errors
/// As waitpid(2).
pub fn reap() -> crate::Result {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            // nix cannot name the real-time signal that killed a child; it is reaped all the same.
            Ok(_) | Err(Errno::EINVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// All processes of the namespace but this one, as `pid comm`.
fn others() -> crate::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_ok_and(|pid| pid != std::process::id()) {
            let comm = fs::read_to_string(format!("/proc/{name}/comm")).unwrap_or_default();
            found.push(format!("{name} {}", comm.trim_end()));
        }
    }
    Ok(found)
}

/// Bytes of all files of an image directory.
///
/// # Errors
/// It cannot be read.
pub fn images_size(images: &Path) -> crate::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(images)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
