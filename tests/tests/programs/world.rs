//! The world that real programs run in, and a running one: rounds of dump and restore, commands and answers.
//!
//! It is that of `programs/world`: the i386 tree with the host's 64-bit programs at `/host` and
//! the test's directory at `/scratch`, as the root of the test's own mount namespace ([`Place::Namespace`]) or
//! by plain chroot below a `crr` that has another root ([`Place::Chroot`]).

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::{Result, binaries, case, wait};

/// Limit of one test: the machine may be busy with others.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Where the root directory of the programs comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is the root of the mount namespace, and `crr`'s too.
    Namespace,
    /// The programs were started by chroot(8).
    Chroot,
}

/// The i386 tree with everything mounted, and the test's directory in it.
pub(crate) struct World {
    /// What the programs see as /, as this process sees it.
    pub(crate) root: PathBuf,
    /// What the programs see as /scratch, as this process sees it.
    pub(crate) dir: PathBuf,
    /// The host's own tree, as this process sees it, and the test's directory in there.
    pub(crate) host: PathBuf,
    pub(crate) host_dir: PathBuf,
    /// `programs/world`, as this process sees it.
    pub(crate) script: PathBuf,
    pub(crate) crr: PathBuf,
}

impl World {
    /// Makes the mounts. In [`Place::Namespace`] that changes the root of this very process.
    pub(crate) fn enter(dir: &Path, place: Place) -> Result<Self> {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
        let copied = Command::new("cp").arg("-r").arg(programs.join(".")).arg(dir).status()?;
        ensure!(copied.success(), "copy the programs: {copied}");
        let root = i386_root().context("no i386 tree: run ci/setup, or set CRR_I386_ROOT")?;
        let mode = if place == Place::Namespace { "--pivot" } else { "--mounts" };
        let made = Command::new(programs.join("world")).arg(mode).args([&root, dir]).status()?;
        ensure!(made.success(), "make the world: {made}");
        let (crr, host_dir) = (binaries::crr()?, dir.to_owned());
        if place == Place::Chroot {
            let (dir, script) = (dir.to_owned(), dir.join("world"));
            return Ok(World { root, dir, host: "/".into(), host_dir, script, crr });
        }
        std::env::set_current_dir("/")?;
        let crr = Path::new("/host").join(crr.strip_prefix("/")?);
        Ok(World {
            root: "/".into(),
            dir: "/scratch".into(),
            host: "/host".into(),
            host_dir,
            script: "/scratch/world".into(),
            crr,
        })
    }

    /// Starts a program in a session of its own; what it prints goes to `log`.
    pub(crate) fn start(&self, program: &[&str]) -> Result<Running<'_>> {
        let log = File::create(self.dir.join("log"))?;
        // Once restored it is not this child any more: it is reaped by its pid.
        let child = Command::new("setsid")
            .args([&self.script, Path::new("--start"), &self.root])
            .args(program)
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/tmp"), ("LC_ALL", "C.UTF-8")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program:?}"))?;
        let root = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Running { world: self, root, dumps: 0, asked: 0 })
    }

    pub(crate) fn crr(&self, args: &[&str]) -> Result {
        let said = self.dir.join("crr.log");
        let output = File::create(&said)?;
        let mut child = Command::new(&self.crr)
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", self.crr.display()))?;
        let ended = wait::until(wait::STEP, "crr", || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let said =
            || format!("crr {} said:\n{}", args.join(" "), fs::read_to_string(&said).unwrap_or_default());
        let status = ended.with_context(said)?;
        ensure!(status.success(), "{status}; {}", said());
        Ok(())
    }

    pub(crate) fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.dir.join(name)).with_context(|| format!("read {name}"))
    }
}

/// A started program, by the pid of the root of its tree.
pub(crate) struct Running<'a> {
    pub(crate) world: &'a World,
    pub(crate) root: Pid,
    pub(crate) dumps: u32,
    pub(crate) asked: u32,
}

impl Running<'_> {
    /// One round: dump, see that all of it is gone, restore.
    pub(crate) fn round(&mut self) -> Result {
        self.round_with(&[])
    }

    /// [`Self::round`] beside processes that do not belong to the tree, with options of the dump.
    pub(crate) fn round_among_others(&mut self, options: &[&str]) -> Result {
        self.round_until(options, &[], |root| {
            wait::until(wait::STEP, "its root is gone", || {
                case::reap()?;
                Ok((kill(root, None) == Err(Errno::ESRCH)).then_some(()))
            })
        })
    }

    /// [`Self::round`] with options of the dump.
    pub(crate) fn round_with(&mut self, options: &[&str]) -> Result {
        self.round_until(options, &[], |_| case::nothing_left())
    }

    /// The same, with a program that goes on before all of its memory is there. That of the round before is.
    pub(crate) fn round_lazily(&mut self, options: &[&str]) -> Result {
        case::memory_arrives()?;
        self.round_until(options, &["--lazy-pages"], |_| case::nothing_left())
    }

    fn round_until(&mut self, options: &[&str], restore: &[&str], gone: impl Fn(Pid) -> Result) -> Result {
        self.dumps += 1;
        let round = self.dumps;
        let images = self.world.dir.join(format!("images-{round}"));
        fs::create_dir(&images)?;
        let images = images.to_string_lossy();
        self.world
            .crr(&[&["dump", "-t", &self.root.to_string(), "-D", &images], options].concat())
            .with_context(|| format!("round {round}: dump"))?;
        gone(self.root).with_context(|| format!("round {round}: after the dump"))?;
        self.world
            .crr(&[&["restore", "-D", &images, "-d"], restore].concat())
            .with_context(|| format!("round {round}: restore"))?;
        fs::remove_dir_all(&*images)?;
        Ok(())
    }

    /// The answer to a command, by the files of `programs/desk.py`.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String> {
        self.asked += 1;
        let (asked, answered) = (self.world.dir.join("command"), self.world.dir.join("answer"));
        let new = asked.with_extension("new");
        fs::write(&new, format!("{} {command}\n", self.asked))?;
        fs::rename(&new, &asked)?;
        let number = format!("{} ", self.asked);
        let answer = wait::until(wait::STEP, &format!("an answer to {command}"), || {
            self.still_runs()?;
            let text = fs::read_to_string(&answered).unwrap_or_default();
            Ok(text.strip_prefix(&number).map(|answer| answer.trim_end().to_owned()))
        });
        answer.with_context(|| format!("the program said:\n{}", self.world.read("log").unwrap_or_default()))
    }

    /// [`Self::ask`], with the answer as numbers.
    pub(crate) fn ask_numbers(&mut self, command: &str) -> Result<Vec<u64>> {
        let answer = self.ask(command)?;
        answer.split_whitespace().map(|word| word.parse().with_context(|| answer.clone())).collect()
    }

    /// Waits until the program has come to a point of its work.
    pub(crate) fn wait_for_progress(&self, point: u32) -> Result {
        wait::until(wait::STEP, &format!("progress {point}"), || {
            self.still_runs()?;
            let text = self.world.read("progress").unwrap_or_default();
            Ok(text.trim().parse::<u32>().is_ok_and(|now| now >= point).then_some(()))
        })
    }

    pub(crate) fn still_runs(&self) -> Result {
        match waitpid(self.root, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => Ok(()),
            status => bail!("the program ended: {status:?}\n{}", self.world.read("log").unwrap_or_default()),
        }
    }

    /// Has it end.
    pub(crate) fn end(self) -> Result {
        kill(self.root, Signal::SIGTERM)?;
        self.finish()
    }

    /// Waits until it has ended, well and with no process left.
    pub(crate) fn finish(self) -> Result {
        let status = wait::until(LIMIT, "the program ends", || {
            Ok(match waitpid(self.root, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive => None,
                status => Some(status),
            })
        })?;
        let log = self.world.read("log")?;
        ensure!(status == WaitStatus::Exited(self.root, 0), "it ended with {status:?} and said:\n{log}");
        case::nothing_left()
    }
}

/// The i386 tree: `$CRR_I386_ROOT`, or where `ci/setup` puts it.
pub(crate) fn i386_root() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let tree = variable("CRR_I386_ROOT")
        .or_else(|| Some(variable("CRR_CACHE").or_else(|| Some(cache()?.join("crr")))?.join("i386-root")))?;
    tree.join("usr/bin/python3").exists().then_some(tree)
}
