//! Restore: read, plan, fork, split, resume.

use std::path::PathBuf;
use std::time::Duration;

/// Options of `crr restore`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the images are.
    pub images_dir: PathBuf,
    /// Exit once the tree runs (`-d`).
    pub detached: bool,
    /// Make the root a child of crr's parent (`-S`).
    pub sibling: bool,
    /// Give the tree crr's session and terminal (`-j`).
    pub shell_job: bool,
    /// Write the root's pid there.
    pub pidfile: Option<PathBuf>,
    /// Change the root directory first (`-r`).
    pub root: Option<PathBuf>,
    /// Restore into a fresh pid namespace.
    pub new_pidns: bool,
    /// How long the tree may take to come back.
    pub timeout: Duration,
    /// Show progress on stderr when it is a terminal.
    pub progress: bool,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Root of the restored tree.
    pub root: images::Pid,
    /// Tasks restored.
    pub tasks: u32,
    /// Bytes of page contents.
    pub bytes: u64,
    /// From start to the tree running.
    pub total: Duration,
}

/// Restores a tree. Without `detached`, waits for its root and returns the exit status the root ended with
/// (128 + signal if a signal killed it).
///
/// # Errors
/// What failed; nothing that was made is left behind.
pub fn restore(_options: &Options) -> anyhow::Result<(Report, Option<u8>)> {
    anyhow::bail!("not yet")
}
