//! Namespaces: a task must be in those of crr.

use super::Refuse;
use crate::proc::Dir;
use crate::ptrace::Stopped;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::io;

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

    /// Refuses each namespace that a thread other than the first has for itself.
    pub(crate) fn refuse_threads(
        &self,
        dir: &Dir,
        threads: &[Stopped],
        refuse: &mut Refuse<'_>,
    ) -> Result<()> {
        for thread in threads.iter().skip(1) {
            let tid = thread.tid();
            let thread_dir = dir.dir(&format!("task/{tid}")).with_context(|| format!("thread {tid}"))?;
            let names = NAMES.iter().zip(&self.0);
            for (name, first) in names.filter(|(name, _)| !OF_WHOLE_TASKS.contains(name)) {
                let Some(first) = first else { continue };
                let own = thread_dir.link(name).with_context(|| format!("thread {tid}: read {name}"))?;
                if own != *first {
                    let object = format!("thread {tid}: namespace {}", name.trim_start_matches("ns/"));
                    let hint = "have the program keep all threads of a task in the same namespaces";
                    refuse.with_hint(object, "has one of its own (unshare, setns)", hint);
                }
            }
        }
        Ok(())
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
