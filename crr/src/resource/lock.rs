//! File locks and leases: which there are, by the `lock:` lines of fdinfo.
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
use images::{DescriptionId, PathId, Pid, TaskFd};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::OsString;

/// The way out for what is not restored.
const RELEASE: &str = "have the program release it before the dump";
const ANSWER: &str = "have the program give it up (F_SETLEASE), or dump again when that is done";

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
    let [_, kind, state, access, pid, _, start, end] = words[..] else { return None };
    let kind = match (kind, state) {
        (b"POSIX", _) => LockKind::Posix,
        (b"FLOCK", _) => LockKind::Flock,
        (b"OFDLCK", _) => LockKind::Ofd,
        (b"LEASE", b"ACTIVE") => LockKind::Lease,
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

/// Refuses what is held and cannot be taken again: delegations; a lease that is being broken; one on a file that crr
/// would have to open, which would break it. Whether there was any.
pub(crate) fn refuse_others(
    lines: &[Vec<u8>],
    has_name: bool,
    object: impl Fn() -> String,
    refuse: &mut Refuse<'_>,
) -> bool {
    let mut any = false;
    for text in lines {
        let (reason, hint) = match parse(text) {
            Some(line) if line.kind != LockKind::Lease || has_name => continue,
            Some(_) => ("has a lease, and the file has been deleted".to_owned(), RELEASE),
            None if text.windows(8).any(|word| word == b"BREAKING") => (
                "has a lease that somebody has broken just now, and the time to answer runs".to_owned(),
                ANSWER,
            ),
            None => (format!("something is held ({})", String::from_utf8_lossy(text)), RELEASE),
        };
        refuse.with_hint(object(), reason, hint);
        any = true;
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

/// Refuses leases that could not be taken again: what a mapping needs open makes an exclusive one impossible, and only who owns the file or
/// has CAP_LEASE may ask (setlease() of fs/locks.c). `file` tells path and owner of what a description is open on, `mapped` whether a path is mapped.
pub(crate) fn refuse_leases(
    tasks: &[Task],
    file: impl Fn(DescriptionId) -> Option<(PathId, u32)>,
    mapped: impl Fn(PathId) -> bool,
    refusals: &mut Refusals,
) {
    const CAP_LEASE: u64 = 1 << 28;
    const UNMAP_OR_RELEASE: &str = "have the program release the lease, or unmap the file, before the dump";
    for task in tasks {
        for lock in task.locks.iter().filter(|lock| lock.kind == LockKind::Lease) {
            let entry = task.fds.iter().find(|entry| entry.fd == lock.fd);
            let Some((path, owner)) = entry.and_then(|entry| file(entry.description)) else { continue };
            let comm = comm_of(task.pid);
            let mut refuse = |reason, hint| {
                refusals.task((task.pid, &comm), format!("fd {}: its lease", lock.fd), reason, Some(hint));
            };
            if lock.exclusive && mapped(path) {
                refuse("is on a file that is mapped, too", UNMAP_OR_RELEASE);
            }
            let caller = &task.threads[0].creds;
            if caller.uid[3] != owner && caller.cap_effective & CAP_LEASE == 0 {
                refuse("is on a file that the task does not own, and it has no CAP_LEASE", RELEASE);
            }
        }
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
        assert_eq!(parse(b"1: LEASE  ACTIVE    READ 9 fe:00:3 0 EOF"), line(LockKind::Lease, false, 9, 0, 0));
        assert_eq!(parse(b"1: LEASE  BREAKING  UNLCK 9 fe:00:3 0 EOF"), None);
        assert_eq!(parse(b"1: DELEG  ACTIVE    READ 9 fe:00:3 0 EOF"), None);
        assert_eq!(parse(b"1: POSIX  ADVISORY  WRITE 9 fe:00:3 5 3"), None);
    }
}
