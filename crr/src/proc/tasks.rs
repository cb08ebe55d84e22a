//! Going through all tasks, for those that have a part in what the tree has.

use super::{Dir, decimal, living_thread};
use anyhow::{Context, Result};
use images::Pid;
use std::collections::HashSet;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// The ids of all tasks, in the order of `/proc`.
pub(crate) fn all() -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        pids.extend(decimal::<Pid>(entry.context("list /proc")?.file_name().as_bytes()));
    }
    Ok(pids)
}

/// A task outside of the tree, displayed with its name.
#[derive(Debug)]
pub(crate) struct Outsider {
    pub(crate) pid: Pid,
    /// A living thread of it.
    pub(crate) deputy: Pid,
    /// The directory of that thread.
    pub(crate) dir: Dir,
}

impl fmt::Display for Outsider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} ({})", self.pid, comm_of(self.pid))
    }
}

/// All tasks but those of the tree and crr itself. A task that is gone, or not ours to look at, is none that crr could name.
pub(crate) fn outside(tree: &HashSet<Pid>) -> Result<impl Iterator<Item = Outsider>> {
    Ok(pids_outside(tree)?.into_iter().filter_map(Outsider::look))
}

/// Their pids.
pub(crate) fn pids_outside(tree: &HashSet<Pid>) -> Result<Vec<Pid>> {
    let own = nix::unistd::getpid().as_raw();
    Ok(all()?.into_iter().filter(|pid| *pid != own && !tree.contains(pid)).collect())
}

impl Outsider {
    /// `None` if it is gone.
    pub(crate) fn look(pid: Pid) -> Option<Self> {
        let deputy = living_thread(pid);
        Some(Self { pid, deputy, dir: Dir::task(deputy).ok()? })
    }
}

/// The command name of a task, for messages.
pub(crate) fn comm_of(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |comm| comm.trim_end().to_owned())
}

/// Tasks outside of the tree for a message: the first ones by name, and how many more.
pub(crate) fn named(pids: impl IntoIterator<Item = Pid>) -> String {
    const NAMED: usize = 3;
    let pids: Vec<Pid> = pids.into_iter().collect();
    let mut names: Vec<String> =
        pids.iter().take(NAMED).map(|&pid| format!("{pid} ({})", comm_of(pid))).collect();
    if pids.len() > NAMED {
        names.push(format!("{} others", pids.len() - NAMED));
    }
    match names.split_last() {
        Some((last, [])) => format!("task {last}"),
        Some((last, first)) => format!("tasks {} and {last}", first.join(", ")),
        None => "no task".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{comm_of, named};

    #[test]
    fn many_are_named_by_the_first() {
        let pid = nix::unistd::getpid().as_raw();
        let one = format!("{pid} ({})", comm_of(pid));
        assert_eq!(named([pid]), format!("task {one}"));
        assert_eq!(named([pid; 2]), format!("tasks {one} and {one}"));
        assert_eq!(named([pid; 3]), format!("tasks {one}, {one} and {one}"));
        assert_eq!(named([pid; 600]), format!("tasks {one}, {one}, {one} and 597 others"));
    }
}
