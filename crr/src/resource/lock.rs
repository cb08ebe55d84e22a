//! File locks: which there are, by the `lock:` lines of fdinfo.
//!
//! A task takes its own again at restore ([`crate::restore::lock`]): what a lock belongs to, and the pid that `/proc/locks` shows for it,
//! are those of whoever calls.

use super::Refuse;
use crate::proc::tasks::{comm_of, outside};
use crate::proc::{Dir, decimal};
use crate::refusal::{Refusal, Refusals};
use crate::sys::kcmp::{Kind, kcmp};
use anyhow::{Context, Result};
use images::lock::{Lock, LockKind};
use images::task::Task;
use images::{DescriptionId, Pid, TaskFd};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::OsString;

/// The way out for what is not restored.
const RELEASE: &str = "have the program release it before the dump";

/// A line as the kernel prints it: lock_get_status() of fs/locks.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    kind: LockKind,
    exclusive: bool,
    /// Who took it; -1 for an OFD lock.
    pid: Pid,
    start: u64,
    len: u64,
}

fn parse(line: &[u8]) -> Option<Line> {
    let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    let [_, kind, _, access, pid, _, start, end] = words[..] else { return None };
    let kind = match kind {
        b"POSIX" => LockKind::Posix,
        b"FLOCK" => LockKind::Flock,
        b"OFDLCK" => LockKind::Ofd,
        _ => return None,
    };
    let exclusive = match access {
        b"WRITE" => true,
        b"READ" => false,
        _ => return None,
    };
    let start = decimal(start)?;
    let len = if end == b"EOF" { 0 } else { decimal::<u64>(end)?.checked_sub(start)?.checked_add(1)? };
    Some(Line { kind, exclusive, pid: decimal(pid)?, start, len })
}

/// A file: device and inode.
type File = (u64, u64);

/// Refuses what is held and is no lock, such as a lease: opening such a file again would break that. Whether there was any.
pub(crate) fn refuse_others(lines: &[Vec<u8>], object: &str, refuse: &mut Refuse<'_>) -> bool {
    let mut others = lines.iter().filter(|line| parse(line).is_none()).peekable();
    let any = others.peek().is_some();
    for text in others {
        let text = String::from_utf8_lossy(text).into_owned();
        refuse.with_hint(object, format!("a lease or the like is held ({text})"), RELEASE);
    }
    any
}

/// The locks of a tree, as they are found.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Of descriptor tables, by the task that holds the table; and who took them.
    of_tasks: Vec<(Pid, File, Lock, Pid)>,
    /// Of descriptions, with who took them, if that is known; and one who has it.
    of_descriptions: Vec<(DescriptionId, Pid, Lock, String)>,
}

impl Table {
    /// Notes the locks that a descriptor shows; `object` is what messages call it.
    pub(crate) fn note(
        &mut self,
        (fd, description, file): (u32, DescriptionId, File),
        lines: &[Vec<u8>],
        object: &str,
        holder: Pid,
    ) {
        for text in lines {
            let Some(Line { kind, exclusive, pid, start, len }) = parse(text) else { continue };
            let lock = Lock { kind, exclusive, fd: TaskFd(fd), start, len };
            // All descriptors of a file show the locks of their task, and all of a description those of that.
            let same = |known: &Lock| Lock { fd: lock.fd, ..*known } == lock;
            if kind == LockKind::Posix {
                let mut of_task =
                    self.of_tasks.iter().filter(|(task, at, ..)| (*task, *at) == (holder, file));
                if !of_task.any(|(_, _, known, _)| same(known)) {
                    self.of_tasks.push((holder, file, lock, pid));
                }
            } else {
                let mut of_this = self.of_descriptions.iter().filter(|(id, ..)| *id == description);
                if !of_this.any(|(_, _, known, _)| same(known)) {
                    self.of_descriptions.push((description, pid, lock, object.to_owned()));
                }
            }
        }
    }

    /// Gives each lock to the task that is to take it: whoever took it, if that is one of the tree and has the file still.
    pub(crate) fn distribute(self, tasks: &mut [Task], refusals: &mut Refusals) {
        for (holder, _, lock, pid) in self.of_tasks {
            let has_table = |task: &Task| task.pid == holder || task.shares.files == Some(holder);
            let taker = tasks.iter().position(|task| task.pid == pid && has_table(task));
            if let Some(index) = taker.or_else(|| tasks.iter().position(|task| task.pid == holder)) {
                tasks[index].locks.push(lock);
            }
        }
        for (description, pid, lock, object) in self.of_descriptions {
            let entry = |task: &Task| task.fds.iter().find(|entry| entry.description == description).copied();
            let taker = tasks.iter().position(|task| task.pid == pid && entry(task).is_some());
            let taker = taker.or_else(|| tasks.iter().position(|task| entry(task).is_some()));
            match taker.and_then(|index| Some((index, entry(&tasks[index])?))) {
                Some((index, entry)) => tasks[index].locks.push(Lock { fd: entry.fd, ..lock }),
                None => refusals.push(Refusal {
                    task: None,
                    object,
                    reason: "has a lock, and no task has it open".to_owned(),
                    hint: Some(RELEASE.to_owned()),
                }),
            }
        }
    }

    /// Refuses locked descriptions that somebody outside of the tree has too: the lock would stay with them. `holder` tells one
    /// who has a description.
    pub(crate) fn refuse_outsiders(
        &self,
        tree: &HashSet<Pid>,
        holder: impl Fn(DescriptionId) -> Option<(Pid, u32)>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let mut locked: Vec<((Pid, u32), OsString, usize)> = Vec::new();
        for (index, (id, _, _, object)) in self.of_descriptions.iter().enumerate() {
            let Some((pid, fd)) = holder(*id) else { continue };
            let link = Dir::task(pid)?.link(&format!("fd/{fd}")).with_context(|| object.clone())?;
            locked.push(((pid, fd), link, index));
        }
        if locked.is_empty() {
            return Ok(());
        }
        for other in outside(tree)? {
            for fd in other.dir.numbers::<u32>("fd").unwrap_or_default() {
                let Ok(link) = other.dir.link(&format!("fd/{fd}")) else { continue };
                for (holder, _, index) in locked.iter().filter(|(_, name, _)| *name == link) {
                    let (_, task, _, object) = &self.of_descriptions[*index];
                    if kcmp(Kind::File, *holder, (other.deputy, fd)) == Ok(Ordering::Equal) {
                        refusals.push(Refusal {
                            task: Some((*task, comm_of(*task))),
                            object: object.clone(),
                            reason: format!("is locked, and {other} outside of the tree has it too"),
                            hint: Some("dump a tree that has both, or end the other task first".into()),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo_are_parsed() {
        let line = |kind, exclusive, pid, start, len| Some(Line { kind, exclusive, pid, start, len });
        assert_eq!(
            parse(b"1: POSIX  ADVISORY  WRITE 14901 fe:00:325843 10 14"),
            line(LockKind::Posix, true, 14901, 10, 5)
        );
        assert_eq!(parse(b"7: FLOCK  ADVISORY  READ 9 fe:00:3 0 EOF"), line(LockKind::Flock, false, 9, 0, 0));
        assert_eq!(
            parse(b"2: OFDLCK ADVISORY  WRITE -1 fe:00:3 4294967296 EOF"),
            line(LockKind::Ofd, true, -1, 1 << 32, 0)
        );
        assert_eq!(parse(b"1: LEASE  ACTIVE    READ 9 fe:00:3 0 EOF"), None);
        assert_eq!(parse(b"1: POSIX  ADVISORY  WRITE 9 fe:00:3 5 3"), None);
    }
}
