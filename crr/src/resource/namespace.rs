//! Namespaces: a task must be in those of crr, and so must be the files that stand for namespaces.

use super::Refuse;
use super::file::reopen::{Ia32, open_with};
use super::path::CLOSE;
use crate::proc::Dir;
use crate::refusal::Refusals;
use anyhow::{Context, Result};
use images::Pid;
use images::file::{Description, Namespace};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, stat};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;

/// The entries of `/proc/PID/ns`. Those that a kernel lacks are absent for crr too.
const NAMES: [&str; 10] = [
    "ns/mnt",
    "ns/pid",
    "ns/pid_for_children",
    "ns/net",
    "ns/ipc",
    "ns/uts",
    "ns/user",
    "ns/cgroup",
    "ns/time",
    "ns/time_for_children",
];

/// Those that no thread can have alone: they need a task of one thread, and that of mounts a current directory of its
/// own, which is refused as such.
const OF_WHOLE_TASKS: [&str; 4] = ["ns/mnt", "ns/pid", "ns/user", "ns/time"];

/// The namespaces of a task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Namespaces([Option<OsString>; NAMES.len()]);

impl Namespaces {
    pub(crate) fn of(dir: &Dir) -> Result<Self> {
        let mut links = [const { None }; NAMES.len()];
        for (link, name) in links.iter_mut().zip(NAMES) {
            *link = match dir.link(name) {
                Ok(target) => Some(target),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e).with_context(|| format!("read {name}")),
            };
        }
        Ok(Self(links))
    }

    /// Those of a thread other than the first that it has for itself; `dir` is that of its task.
    pub(crate) fn differing(&self, dir: &Dir, tid: Pid) -> Result<Vec<&'static str>> {
        let dir = dir.dir(&format!("task/{tid}/ns"))?;
        let mut differing = Vec::new();
        for (name, first) in NAMES.into_iter().zip(&self.0).filter(|(name, _)| !OF_WHOLE_TASKS.contains(name))
        {
            let Some(first) = first else { continue };
            let link = dir.link(name.trim_start_matches("ns/"));
            if link.with_context(|| format!("read {name}"))? != *first {
                differing.push(name);
            }
        }
        Ok(differing)
    }

    /// Whether tasks there have the ids that they have here: one that is told an id by crr would mean another process elsewhere.
    pub(crate) fn has_ids_of(&self, own: &Self) -> bool {
        let ids = |of: &Self| NAMES.iter().position(|name| *name == "ns/pid").and_then(|at| of.0[at].clone());
        ids(self) == ids(own)
    }

    /// Refuses each namespace that is not crr's own.
    pub(crate) fn refuse_others(&self, own: &Self, refuse: &mut Refuse<'_>) {
        for ((theirs, ours), name) in self.0.iter().zip(&own.0).zip(NAMES) {
            if theirs != ours {
                let shown = theirs.as_ref().map_or_else(|| "none".into(), |link| link.to_string_lossy());
                let object = format!("namespace {} ({shown})", name.trim_start_matches("ns/"));
                refuse.with_hint(object, "not the one that crr runs in", "run crr inside of it, by nsenter");
            }
        }
    }
}

/// Refuses tasks with other ids than they have here, where nothing else is known of them yet.
///
/// # Errors
/// If their namespaces are not shown.
pub(crate) fn refuse_other_ids<'a>(
    tasks: impl Iterator<Item = (Pid, &'a str, &'a Dir)>,
    refusals: &mut Refusals,
) -> Result<()> {
    // The others are read only where this one says that it comes to a refusal: the tree stands still.
    let of_ids = |dir: &Dir| dir.link("ns/pid").ok();
    let own_dir = Dir::task(nix::unistd::getpid().as_raw())?;
    let own_ids = of_ids(&own_dir);
    for (pid, name, dir) in tasks {
        if of_ids(dir) != own_ids {
            let theirs = Namespaces::of(dir).with_context(|| format!("task {pid}"))?;
            theirs.refuse_others(&Namespaces::of(&own_dir)?, &mut Refuse::new(refusals, pid, name));
        }
    }
    Ok(())
}

/// Refuses a namespace that a thread has for itself.
pub(crate) fn refuse_odd(tid: Pid, name: &str, refuse: &mut Refuse<'_>) {
    let object = format!("thread {tid}: namespace {}", name.trim_start_matches("ns/"));
    let hint = "have the program keep all threads of a task in the same namespaces";
    refuse.with_hint(object, "has one of its own (unshare, setns)", hint);
}

/// What `/proc/PID/ns` calls each kind, and links to namespaces begin with (`ns_get_path` of fs/nsfs.c).
const KINDS: [(Namespace, &str); 8] = [
    (Namespace::Mount, "mnt"),
    (Namespace::Pid, "pid"),
    (Namespace::Net, "net"),
    (Namespace::Ipc, "ipc"),
    (Namespace::Uts, "uts"),
    (Namespace::User, "user"),
    (Namespace::Cgroup, "cgroup"),
    (Namespace::Time, "time"),
];

/// The name of a kind.
pub(crate) fn name(kind: Namespace) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("", |(_, name)| name)
}

/// The kind of namespace that an open file stands for, by its link in `/proc/PID/fd`.
pub(crate) fn kind(link: &[u8]) -> Option<Namespace> {
    let name = link.strip_suffix(b"]")?;
    let of_kind = |name: &[u8], kind: &str| name.strip_prefix(kind.as_bytes())?.strip_prefix(b":[").map(drop);
    KINDS.iter().find(|(_, kind)| of_kind(name, kind).is_some()).map(|(kind, _)| *kind)
}

/// The record of a file that stands for a namespace; `None` when it was refused.
pub(crate) fn dump_file(
    kind: Namespace,
    open: &FileStat,
    object: &str,
    refuse: &mut Refuse<'_>,
) -> Result<Option<Namespace>> {
    let path = format!("/proc/self/ns/{}", name(kind));
    let own = stat(path.as_str()).with_context(|| path.clone())?;
    if (own.st_dev, own.st_ino) == (open.st_dev, open.st_ino) {
        return Ok(Some(kind));
    }
    refuse.with_hint(object, "a namespace other than the one that crr runs in", CLOSE);
    Ok(None)
}

/// Opens the namespace of this kind that crr runs in.
///
/// # Errors
/// As open(2), with the name.
pub(crate) fn open(kind: Namespace, description: &Description, ia32: &mut Ia32) -> Result<OwnedFd> {
    let path = format!("/proc/self/ns/{}", name(kind));
    let c_path = CString::new(path.as_str()).context("not a path")?;
    let flags = OFlag::from_bits_retain(description.flags.cast_signed()) | OFlag::O_CLOEXEC;
    open_with(&c_path, flags, description.flags, ia32).with_context(|| format!("open {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_off_links() {
        assert_eq!(kind(b"pid:[4026531836]"), Some(Namespace::Pid));
        assert_eq!(kind(b"mnt:[1]"), Some(Namespace::Mount));
        assert_eq!(kind(b"pidfd:[1]"), None);
        assert_eq!(kind(b"pipe:[1]"), None);
        assert_eq!(kind(b"/pid:[1]"), None);
    }

    #[test]
    fn own_ones_are_opened_again() {
        for (kind, name) in KINDS {
            let flags = super::super::file::reopen::O_LARGEFILE;
            let description = Description {
                target: images::file::Target::Namespace(kind),
                flags,
                position: 0,
                notify: None,
            };
            let file = open(kind, &description, &mut Ia32::default()).unwrap();
            let found = nix::sys::stat::fstat(&file).unwrap().st_ino;
            assert_eq!(found, stat(format!("/proc/self/ns/{name}").as_str()).unwrap().st_ino);
        }
    }
}
