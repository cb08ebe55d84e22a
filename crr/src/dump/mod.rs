//! Dump: seize, collect, write, finish.

use images::Pid;
use std::path::PathBuf;
use std::time::Duration;

/// What to do with the tree after a successful dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Kill it: the default.
    Kill,
    /// Let it run on (`--leave-running`).
    Run,
    /// Leave it stopped by SIGSTOP (`--leave-stopped`).
    Stop,
}

/// Options of `crr dump`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the tree.
    pub root: Pid,
    /// Where the images go; must exist.
    pub images_dir: PathBuf,
    /// What becomes of the tree.
    pub after: After,
    /// Accept a session, process group and terminal from outside of the tree.
    pub shell_job: bool,
    /// How long seizing the tree may take.
    pub timeout: Duration,
    /// Show progress on stderr when it is a terminal.
    pub progress: bool,
}

/// What a dump did, for the closing line and for `--json`-like consumers.
#[derive(Clone, Debug)]
pub struct Report {
    /// Tasks dumped.
    pub tasks: u32,
    /// Their threads.
    pub threads: u32,
    /// Bytes of all images.
    pub bytes: u64,
    /// From the first task stopped to the last resumed or killed.
    pub frozen: Duration,
    /// Whole dump.
    pub total: Duration,
}

/// Dumps a tree.
///
/// # Errors
/// [`crate::refusal::Refused`] with all reasons, or what failed; the tree then runs on as before.
pub fn dump(_options: &Options) -> anyhow::Result<Report> {
    anyhow::bail!("not yet")
}
