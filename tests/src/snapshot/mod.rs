//! What /proc shows of a tree, in a form that is equal before a dump and after a restore.
//!
//! An entry is one aspect of one task or thread: a list of lines under a key such as `task 7 maps`. Numbers that the
//! kernel gives out anew (inodes of pipes and of shared memory) are replaced by their order of appearance over the
//! whole tree, so that who shares what is still compared.

mod aio;
mod difference;
mod files;
mod maps;
mod sharing;
mod sysv;
mod task;

use anyhow::Context;
use std::collections::BTreeMap;
use std::fs;

/// How the lines of an entry are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Line by line.
    Equal,
    /// `name kB` lines: after may be less (zero pages are not stored), never more.
    AtMost,
    /// `/proc/PID/syscall`: a restarted call may show as restart_syscall.
    Syscall,
}

/// One aspect of one task or thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    rule: Rule,
    lines: Vec<String>,
}

/// All that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Snapshot {
    entries: BTreeMap<String, Entry>,
}

impl Snapshot {
    /// Looks at `root` and all its descendants.
    ///
    /// # Errors
    /// A file of /proc cannot be read.
    pub fn take(root: i32) -> crate::Result<Self> {
        let mut snapshot = Self::default();
        let pids = tree(root)?;
        let mut shared_memory = Renumber::default();
        for &pid in &pids {
            if task::is_zombie(pid)? {
                task::add_zombie(&mut snapshot, pid)?;
                continue;
            }
            task::add(&mut snapshot, pid, pid == root)?;
            maps::add(&mut snapshot, pid, &mut shared_memory)?;
            aio::add(&mut snapshot, pid)?;
        }
        let living = without_zombies(pids);
        files::add(&mut snapshot, &living)?;
        sharing::add(&mut snapshot, &living)?;
        sysv::add(&mut snapshot)?;
        Ok(snapshot)
    }

    /// Leaves out what a working program changes from one look to the next.
    #[must_use]
    pub fn without_progress(mut self) -> Self {
        self.entries.retain(|key, entry| {
            entry.rule == Rule::Equal
                && ["offsets", "pending signals", "AIO rings"].iter().all(|name| !key.ends_with(name))
        });
        self
    }

    /// Leaves out which areas of memory there are, and how much that is.
    #[must_use]
    pub fn without_areas(mut self) -> Self {
        const AREAS: [&str; 4] = [" maps", " vmflags", " memory policies", " anonymous"];
        const SIZES: [&str; 3] = ["vsize ", "VmSize:", "VmLib:"];
        self.entries.retain(|key, _| !AREAS.iter().any(|areas| key.ends_with(areas)));
        for entry in self.entries.values_mut() {
            entry.lines.retain(|line| !SIZES.iter().any(|size| line.starts_with(size)));
        }
        self
    }

    /// How many areas of memory there are.
    #[must_use]
    pub fn areas(&self) -> usize {
        let maps = self.entries.iter().filter(|(key, _)| key.ends_with(" maps"));
        maps.map(|(_, entry)| entry.lines.len()).sum()
    }

    /// Whether every thread is blocked in a system call, so that nothing changes by itself.
    #[must_use]
    pub fn all_asleep(&self) -> bool {
        let calls = self.entries.values().filter(|entry| entry.rule == Rule::Syscall);
        calls.flat_map(|entry| &entry.lines).all(|line| line != "running")
    }

    /// What differs in `after`, or nothing.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Option<String> {
        difference::describe(&self.entries, &after.entries)
    }

    /// The lines of one entry, for tests that look closer.
    #[must_use]
    pub fn lines(&self, key: &str) -> &[String] {
        self.entries.get(key).map_or(&[], |entry| &entry.lines)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    fn insert(&mut self, key: String, rule: Rule, lines: Vec<String>) {
        self.entries.insert(key, Entry { rule, lines });
    }
}

/// Gives numbers by order of appearance.
#[derive(Debug, Default)]
struct Renumber(BTreeMap<String, usize>);

impl Renumber {
    fn number(&mut self, original: &str) -> usize {
        let next = self.0.len() + 1;
        *self.0.entry(original.to_owned()).or_insert(next)
    }
}

/// The pids of a tree, sorted.
///
/// # Errors
/// A task vanished meanwhile.
pub fn tree(root: i32) -> crate::Result<Vec<i32>> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        for tid in threads(pid)? {
            let children = read(&format!("/proc/{pid}/task/{tid}/children"))?;
            for child in children.split_whitespace() {
                pids.push(child.parse()?);
            }
        }
        next += 1;
    }
    pids.sort_unstable();
    Ok(pids)
}

/// The pids of a tree without those of zombies, sorted.
///
/// # Errors
/// As [`tree`].
pub fn living(root: i32) -> crate::Result<Vec<i32>> {
    tree(root).map(without_zombies)
}

fn without_zombies(mut pids: Vec<i32>) -> Vec<i32> {
    pids.retain(|&pid| !task::is_zombie(pid).unwrap_or(true));
    pids
}

/// A living thread of a task, by which what is the task's is seen: the leader unless that has ended while others go on.
fn deputy(pid: i32) -> crate::Result<i32> {
    if !task::has_ended(pid, pid)? {
        return Ok(pid);
    }
    for tid in threads(pid)? {
        if !task::has_ended(pid, tid)? {
            return Ok(tid);
        }
    }
    Ok(pid)
}

/// The tids of a task, sorted.
fn threads(pid: i32) -> crate::Result<Vec<i32>> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The entries of a directory that are numbers, sorted.
fn numbers(dir: &str) -> crate::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.to_owned())? {
        found.extend(entry?.file_name().to_string_lossy().parse::<i32>());
    }
    found.sort_unstable();
    Ok(found)
}

fn read(path: &str) -> crate::Result<String> {
    let bytes = fs::read(path).with_context(|| path.to_owned())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn link(path: &str) -> crate::Result<String> {
    Ok(fs::read_link(path).with_context(|| path.to_owned())?.display().to_string())
}
