//! Runs `crr` with a time limit and keeps what it said.

use crate::wait;
use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// The arguments after `crr`.
    pub args: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Asks for exit code 0.
    ///
    /// # Errors
    /// It ended otherwise.
    pub fn success(self) -> crate::Result<Self> {
        self.code(0)
    }

    /// Asks for an exit code.
    ///
    /// # Errors
    /// It ended otherwise.
    pub fn code(self, code: i32) -> crate::Result<Self> {
        if self.status.code() != Some(code) {
            bail!(
                "crr {}: {} instead of exit code {code}\n{}{}",
                self.args,
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }

    /// Asks that stderr names something.
    ///
    /// # Errors
    /// It does not.
    pub fn says(&self, what: &str) -> crate::Result {
        if !self.stderr.contains(what) {
            bail!("crr {} does not say \"{what}\":\n{}", self.args, self.stderr);
        }
        Ok(())
    }

    /// Asks that stderr names something to be refused, and a way out on the line after it.
    ///
    /// # Errors
    /// It does not.
    pub fn says_with_hint(&self, what: &str) -> crate::Result {
        let mut lines = self.stderr.lines().skip_while(|line| !line.contains(what));
        let (named, next) = (lines.next(), lines.next());
        if named.is_none() || !next.is_some_and(|line| line.trim_start().starts_with("hint: ")) {
            bail!("crr {} does not say \"{what}\" with a hint:\n{}", self.args, self.stderr);
        }
        Ok(())
    }
}

/// Starts `crr` with its output going to files in `dir`.
///
/// # Errors
/// It could not be started.
pub fn spawn(dir: &Path, args: &[&str]) -> crate::Result<Child> {
    spawn_under(&[], dir, args)
}

/// [`spawn`] by way of another program that execs its last arguments.
fn spawn_under(under: &[&str], dir: &Path, args: &[&str]) -> crate::Result<Child> {
    let crr = std::env::var_os("CRR_BIN").context("CRR_BIN is not set inside of the test")?;
    let mut words = under.iter().map(OsStr::new).chain([crr.as_os_str()]);
    Command::new(words.next().context("no program")?)
        .args(words)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(File::create(dir.join("crr.stdout"))?)
        .stderr(File::create(dir.join("crr.stderr"))?)
        .spawn()
        .with_context(|| format!("start {}", crr.to_string_lossy()))
}

/// Runs `crr` to its end.
///
/// # Errors
/// It could not be started or did not end in time; a bad exit code is for the caller to judge.
pub fn crr(dir: &Path, args: &[&str]) -> crate::Result<Output> {
    crr_under(&[], dir, args)
}

/// [`crr`] by way of another program that execs its last arguments.
///
/// # Errors
/// As [`crr`].
pub fn crr_under(under: &[&str], dir: &Path, args: &[&str]) -> crate::Result<Output> {
    let mut child = spawn_under(under, dir, args)?;
    let args = args.join(" ");
    let status = wait::until(wait::STEP, &format!("crr {args}"), || Ok(child.try_wait()?));
    let read = |name| fs::read(dir.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (stdout, stderr) = (read("crr.stdout")?, read("crr.stderr")?);
    match status {
        Ok(status) => Ok(Output { args, status, stdout, stderr }),
        Err(e) => {
            child.kill()?;
            child.wait()?;
            Err(e.context(format!("it said so far:\n{stdout}{stderr}")))
        }
    }
}

/// Waits until no `crr` is left in the namespace: a dump may have processes of its own, which put things back and end by
/// themselves when the one that was started is killed.
///
/// # Errors
/// One stays.
pub fn none_left() -> crate::Result {
    wait::until(wait::STEP, "no crr is left", || {
        let mut left = false;
        for entry in fs::read_dir("/proc")? {
            let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
            left |= stat.contains(" (crr) ") && !stat.contains(" (crr) Z");
        }
        Ok((!left).then_some(()))
    })
}
