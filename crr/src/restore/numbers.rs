//! Numbers of descriptors: those that no task of the tree has, and whether a restore has enough of them.

use crate::refusal::{Refusal, Refusals};
use crate::resource::pipe;
use crate::restore::late;
use anyhow::{Context, Result, bail};
use images::file::Files;
use images::memory::{Backing, Memory};
use images::task::{Task, Tree};
use images::terminal::Pty;
use nix::sys::resource::{Resource, getrlimit};
use shared::plan::family::{self, Making};
use std::collections::BTreeSet;

/// Where there is room for descriptors that are in no task's way.
#[derive(Debug)]
pub(super) struct Numbers {
    used: BTreeSet<u32>,
}

impl Numbers {
    pub(super) fn of(tasks: &[Task]) -> Self {
        Self { used: tasks.iter().flat_map(|task| &task.fds).map(|entry| entry.fd.0).chain(0..3).collect() }
    }

    /// The first of as many numbers in a row as it takes to move `count` descriptors there one by one: the places that
    /// some of them have already are skipped, and so is that of the socket.
    ///
    /// # Errors
    /// If they are beyond RLIMIT_NOFILE.
    pub(super) fn free(&self, count: u64) -> Result<u64> {
        let (from, wanted) = self.gap(count);
        let hard = limit()?;
        if from + wanted > hard {
            bail!(
                "{wanted} file descriptors from {from} on are needed, this process may have {hard} (RLIMIT_NOFILE)"
            );
        }
        Ok(from)
    }

    /// Where the numbers for `count` descriptors begin, and how many these are.
    fn gap(&self, count: u64) -> (u64, u64) {
        let wanted = 2 * count + 1;
        let mut from = 0;
        for &used in &self.used {
            if u64::from(used) >= from + wanted {
                break;
            }
            from = u64::from(used) + 1;
        }
        (from, wanted)
    }

    /// How many numbers there are below the highest that is needed while `low` descriptors get the lowest that are free, and `high` ones
    /// the lowest that no task uses.
    fn reach(&self, low: u64, high: u64) -> u64 {
        let beyond = self.used.iter().filter(|&&number| u64::from(number) >= low).count() as u64;
        let highest = self.used.last().map_or(0, |&number| u64::from(number) + 1);
        (low + beyond + high).max(highest)
    }
}

/// What crr has open beside the tree's files.
const OWN: u64 = 64;

/// Refuses a tree that takes more open files at once to be restored than this process may have.
pub(crate) fn check(refusals: &mut Refusals, tree: &Tree, files: &Files, memory: &Memory) {
    let wanted = wanted(tree, files, memory);
    if let Some(hard) = limit().ok().filter(|&hard| wanted > hard) {
        refusals.push(Refusal {
            task: None,
            object: "file descriptors".to_owned(),
            reason: format!(
                "a restore takes {wanted} at once, and crr may have {hard} (the hard limit of RLIMIT_NOFILE)"
            ),
            hint: Some("raise that limit where dump and restore run (ulimit -Hn)".to_owned()),
        });
    }
}

fn limit() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?.1)
}

/// How many numbers the coordinator or a forked child has in use at most. That is for the records to say: a dump asks, too.
fn wanted(tree: &Tree, files: &Files, memory: &Memory) -> u64 {
    let numbers = Numbers::of(&tree.tasks);
    let opened = files.descriptions.len()
        + pipe::recreate::held(files)
        + files.unix_sockets.len() * 3
        + late::all(files).len() * 2
        + numbers_below(&files.ptys);
    let mut paths = BTreeSet::new();
    for vma in memory.spaces.iter().flat_map(|space| &space.vmas) {
        if let Backing::PrivateFile(path, _) | Backing::SharedFile(path, _) = vma.backing {
            paths.insert((path, matches!(vma.backing, Backing::SharedFile(..))));
        }
    }
    // A file that is mapped can be opened for reading, for writing and as a program.
    let mapped = paths.len() * 2 + memory.shared.iter().filter(|shared| shared.segment.is_none()).count();
    let directories: BTreeSet<_> =
        tree.tasks.iter().flat_map(|task| [task.root, task.cwd, task.exe]).collect();
    let deleted = files.paths.iter().filter(|path| path.deleted.is_some()).count();
    let others = (mapped + directories.len() + deleted * 2 + tree.tasks.len() * 2) as u64 + OWN;
    let out_of_the_way = tree.tasks.iter().map(moved).max().unwrap_or(0);
    let reach = numbers.reach(opened as u64, others + out_of_the_way);
    let watched = u64::from(crate::resource::event::highest_number(files));
    // What clones tasks keeps its working files where none of these have theirs.
    let makings = family::makings(&tree.tasks);
    let of_clones = if makings.is_ok_and(|all| all.iter().any(|&making| making != Making::Forked)) {
        let (from, wanted) = numbers.gap(files.descriptions.len() as u64 + others);
        from + wanted
    } else {
        0
    };
    reach.max(watched + 1).max(of_clones)
}

/// How many descriptors a child moves out of the way at most while it puts its files in place: where one has got a number of a
/// description that has others, what was there finds no place that is given up.
fn moved(task: &Task) -> u64 {
    let descriptions: BTreeSet<_> = task.fds.iter().map(|entry| entry.description).collect();
    (task.fds.len() - descriptions.len()).min(descriptions.len()) as u64 + 1
}

/// Pseudo terminals that are open for a moment: as many as it takes until the highest number comes, with two ends each.
fn numbers_below(ptys: &[Pty]) -> usize {
    let highest = ptys.iter().map(|pty| pty.number as usize + 1).max().unwrap_or(0);
    highest + ptys.len() * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_numbers_are_used() {
        let numbers = |used: &[u32]| Numbers { used: used.iter().copied().chain(0..3).collect() };
        assert_eq!(numbers(&[]).free(1).unwrap(), 3);
        assert_eq!(numbers(&[6]).free(1).unwrap(), 3);
        assert_eq!(numbers(&[5]).free(1).unwrap(), 6);
        assert_eq!(numbers(&[5, 8, 20]).free(2).unwrap(), 9);
    }

    #[test]
    fn numbers_in_use_count_where_they_are_in_the_way() {
        let numbers = |used: &[u32]| Numbers { used: used.iter().copied().chain(0..3).collect() };
        assert_eq!(numbers(&[]).reach(10, 5), 15);
        assert_eq!(numbers(&[4, 5, 6]).reach(10, 5), 15);
        assert_eq!(numbers(&[4, 10, 12]).reach(10, 5), 17);
        assert_eq!(numbers(&[100]).reach(10, 5), 101);
    }
}
