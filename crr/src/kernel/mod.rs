//! What this kernel can do, probed by trying it, and what the lack of each thing costs.
//!
//! A version number tells little: distributions backport, configurations leave out. Every probe does the
//! thing itself on this process or on a child of its own, and leaves nothing behind.

pub mod disabled;
mod ia32;
mod probe;
mod tracee;

use crate::sys::process;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;

/// One thing that the kernel can do or not.
#[derive(Clone, Debug, Serialize)]
pub struct Feature {
    /// What `crr check --feature` calls it.
    pub name: &'static str,
    /// Whether it works here, for this user.
    pub present: bool,
    /// What was found, or why it does not work.
    pub detail: String,
    /// What its lack costs.
    pub cost: &'static str,
    /// Whether crr can do nothing without it.
    pub required: bool,
}

/// A capability that crr makes use of.
#[derive(Clone, Debug, Serialize)]
pub struct Capability {
    /// As in capabilities(7), without `CAP_`.
    pub name: &'static str,
    /// Whether crr has it.
    pub held: bool,
    /// What its lack costs.
    pub cost: &'static str,
}

/// All that was probed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel_release: String,
    /// The 64-bit side.
    pub features: Vec<Feature>,
    /// The 32-bit side, as the helper found it; `None` where the helper was not run.
    pub helper: Option<Vec<Feature>>,
    /// Privileges.
    pub capabilities: Vec<Capability>,
}

impl Report {
    /// All features, of both sides.
    pub fn all(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().chain(self.helper.iter().flatten())
    }

    /// Whether everything required is there.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.all().all(|feature| feature.present || !feature.required)
    }
}

/// What a probe found: a detail if the feature works, the reason if it does not.
type Found = Result<String, String>;

/// One line of the table of features.
struct Entry {
    name: &'static str,
    required: bool,
    probe: fn() -> Found,
    cost: &'static str,
}

const REQUIRED: bool = true;
const OPTIONAL: bool = false;

const fn entry(name: &'static str, required: bool, probe: fn() -> Found, cost: &'static str) -> Entry {
    Entry { name, required, probe, cost }
}

#[rustfmt::skip]
const FEATURES: [Entry; 30] = [
    entry("ptrace", REQUIRED, probe::ptrace, "no task can be dumped or restored"),
    entry("chosen-ids", REQUIRED, chosen_ids, "tasks cannot get their pids and tids back"),
    entry("clone3-set-tid", OPTIONAL, probe::clone3_set_tid, "ids are chosen by ns_last_pid: a restore takes longer, and has to try again when others fork"),
    entry("ns-last-pid", OPTIONAL, probe::ns_last_pid, "nothing, where clone3-set-tid is there"),
    entry("pidfd-open", OPTIONAL, probe::pidfd_open, "the same as without pidfd-getfd; tasks with pidfds cannot be restored"),
    entry("pidfd-getfd", OPTIONAL, probe::pidfd_getfd, "tasks send their descriptors to crr; what was written while a tree runs is told by soft-dirty bits, if at all"),
    entry("pidfd-thread", OPTIONAL, probe::pidfd_thread, "tasks whose leading thread has ended while others go on cannot be dumped"),
    entry("unix-diag", OPTIONAL, probe::unix_diag, "tasks with unix sockets cannot be dumped"),
    entry("kcmp", REQUIRED, probe::kcmp, "descriptors that share a file cannot be told from ones that do not"),
    entry("memfd-exec", OPTIONAL, probe::memfd_exec, "the programs that restore tasks are files without a name in $TMPDIR, /tmp, /dev/shm, /run or /var/tmp"),
    entry("mm-map", REQUIRED, probe::mm_map, "heap, arguments and the exe link of a task cannot be set"),
    entry("process-vm", REQUIRED, probe::process_vm, "memory of tasks cannot be read"),
    entry("vdso", OPTIONAL, probe::vdso, "x86_64 tasks dumped with a vDSO cannot be restored"),
    entry("ptrace-syscall-info", OPTIONAL, probe::ptrace_syscall_info, "calls of ia32 made by 64-bit code are told by the instruction"),
    entry("ptrace-set-syscall-info", OPTIONAL, probe::ptrace_set_syscall_info, "nothing yet: this version does not use it"),
    entry("ptrace-rseq", OPTIONAL, probe::ptrace_rseq, "rseq is found by trying; what another library than the C library registered is refused"),
    entry("key-rights", OPTIONAL, probe::key_rights, "tasks with protection keys cannot be dumped or restored"),
    entry("pagemap-scan", OPTIONAL, probe::pagemap_scan, "dumps of large sparse memory take longer"),
    entry("procmap-query", OPTIONAL, probe::procmap_query, "nothing yet: this version does not use it"),
    entry("close-range-cloexec", OPTIONAL, probe::close_range, "descriptors are kept from restored tasks one by one"),
    entry("map-files", REQUIRED, probe::map_files, "mapped files cannot be told from others of their name"),
    entry("timer-restore-ids", OPTIONAL, probe::timer_restore_ids, "the numbers of POSIX timers take many tries"),
    entry("tcp-peek-offset", OPTIONAL, probe::tcp_peek_offset, "connections with urgent data (MSG_OOB) amid what is to be read cannot be dumped"),
    entry("mseal", OPTIONAL, probe::mseal, "tasks with sealed memory cannot be restored"),
    entry("area-names", OPTIONAL, probe::area_names, "memory that has a name (PR_SET_VMA_ANON_NAME) is restored without it"),
    entry("shared-area-names", OPTIONAL, probe::shared_area_names, "the same of shared memory without a file"),
    entry("userfaultfd", OPTIONAL, probe::userfaultfd, "memory takes longer to restore"),
    entry("uffd-wp-async", OPTIONAL, probe::uffd_wp_async, "a dump that builds on pre-dumps reads all memory to be sure of it; without soft-dirty too, there are none (crr pre-dump)"),
    entry(UFFD_EVENTS, OPTIONAL, probe::uffd_events, "tasks cannot run before all of their memory is there (crr restore --lazy-pages)"),
    entry("soft-dirty", OPTIONAL, probe::soft_dirty, "without uffd-wp-async too, memory cannot be recorded while a tree runs (crr pre-dump)"),
];

/// Capability, its number in linux/capability.h, what its lack costs.
#[rustfmt::skip]
const CAPABILITIES: [(&str, u8, &str); 16] = [
    ("SYS_PTRACE", 19, "only tasks of the same user that allow it can be dumped"),
    ("CHECKPOINT_RESTORE", 40, "pids cannot be chosen and exe links not set, unless SYS_ADMIN is held"),
    ("SYS_ADMIN", 21, "pid namespaces cannot be made (--new-pidns)"),
    ("SYS_RESOURCE", 24, "hard limits cannot be raised, oom_score_adj not lowered, nor limits of other users be set"),
    ("SYS_NICE", 23, "nice values cannot be lowered, real-time policies not set"),
    ("SETUID", 7, "tasks of other users cannot be restored"),
    ("SETGID", 6, "tasks with other groups cannot be restored"),
    ("SETPCAP", 8, "bounding sets and securebits cannot be restored"),
    ("KILL", 5, "tasks of other users cannot be stopped or killed"),
    ("AUDIT_CONTROL", 30, "tasks come from the login of crr, and those with audit sockets cannot be dumped outside of containers"),
    ("IPC_LOCK", 14, "memory locked beyond the limit cannot be locked again"),
    ("DAC_OVERRIDE", 1, "files that only their owner may write cannot be reopened"),
    ("DAC_READ_SEARCH", 2, "files in closed directories cannot be found"),
    ("FOWNER", 3, "files opened with O_NOATIME by other users cannot be reopened"),
    ("SYS_CHROOT", 18, "tasks with another root directory cannot be restored"),
    ("NET_ADMIN", 12, "network settings of sockets and namespaces cannot be restored"),
];

/// Whether areas of private memory, and of shared, can have names.
#[must_use]
pub fn area_names() -> [bool; 2] {
    [probe::area_names().is_ok(), probe::shared_area_names().is_ok()]
}

/// Whether pages can be put in place from outside of a task.
pub(crate) fn can_put_pages() -> bool {
    !disabled::is_disabled(disabled::Switch::Userfaultfd) && probe::userfaultfd().is_ok()
}

/// Whether writes can be noticed by protecting pages, in a way that nobody has to wait for.
pub(crate) fn can_protect_pages() -> bool {
    use disabled::Switch;
    let switches = [Switch::Userfaultfd, Switch::UffdWpAsync, Switch::PagemapScan];
    !switches.into_iter().any(disabled::is_disabled) && probe::uffd_wp_async().is_ok() && has_pidfd_getfd()
}

/// Whether soft-dirty bits tell what was written.
pub(crate) fn has_soft_dirty() -> bool {
    probe::soft_dirty().is_ok()
}

/// Whether what is to be read of a TCP connection can be looked at from anywhere.
pub(crate) fn has_tcp_peek_offset() -> bool {
    !disabled::is_disabled(disabled::Switch::TcpPeekOffset) && probe::tcp_peek_offset().is_ok()
}

/// Whether threads can be given their rights to memory with protection keys, or why not.
pub(crate) fn key_rights() -> Result<(), String> {
    probe::key_rights().map(drop)
}

const UFFD_EVENTS: &str = "uffd-events";

/// Whether pages can be brought when tasks run already, or why not.
pub(crate) fn late_pages() -> Result<(), String> {
    if disabled::is_named(UFFD_EVENTS) {
        Err("disabled by --disable-feature".to_owned())
    } else {
        probe::uffd_events().map(drop)
    }
}

/// Probes everything.
///
/// # Errors
/// If /proc cannot be read.
pub fn probe() -> Result<Report> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("/proc/sys/kernel/osrelease")?;
    Ok(Report {
        kernel_release: release.trim().to_owned(),
        features: FEATURES.iter().map(run).collect(),
        helper: Some(ia32::probe()),
        capabilities: capabilities()?,
    })
}

/// Whether new processes and threads can be given their ids, by one way or the other, or why not.
pub(crate) fn can_choose_pids() -> Result<(), String> {
    chosen_ids().map(drop)
}

/// Whether the kernel tells what tasks and descriptors share, or why not.
pub(crate) fn can_compare() -> Result<(), String> {
    if disabled::is_disabled(disabled::Switch::Kcmp) {
        return Err("kcmp: disabled by --disable-feature".to_owned());
    }
    probe::kcmp().map(drop)
}

/// Whether descriptors of tasks can be had without their help.
pub(crate) fn has_pidfd_getfd() -> bool {
    !disabled::is_disabled(disabled::Switch::PidfdGetfd) && probe::pidfd_getfd().is_ok()
}

/// Whether clone3 gives them. If not, what the kernel gave last tells what it gives next.
pub(crate) fn has_set_tid() -> bool {
    set_tid().is_ok()
}

fn set_tid() -> Found {
    if disabled::is_disabled(disabled::Switch::Clone3SetTid) {
        return Err("clone3: disabled by --disable-feature".to_owned());
    }
    probe::clone3_set_tid()
}

fn chosen_ids() -> Found {
    match set_tid() {
        Ok(_) => Ok("by clone3".to_owned()),
        Err(reason) => match probe::ns_last_pid() {
            Ok(_) => Ok("by ns_last_pid".to_owned()),
            Err(other) => Err(format!("{reason}; {other}")),
        },
    }
}

fn run(entry: &Entry) -> Feature {
    let disabled = disabled::is_named(entry.name).then(|| Err("disabled by --disable-feature".to_owned()));
    let found = disabled.unwrap_or_else(entry.probe);
    Feature {
        name: entry.name,
        present: found.is_ok(),
        detail: found.unwrap_or_else(|reason| reason),
        cost: entry.cost,
        required: entry.required,
    }
}

fn capabilities() -> Result<Vec<Capability>> {
    let effective = own_capabilities()?;
    let held = |number: u8| effective & (1 << number) != 0;
    Ok(CAPABILITIES
        .iter()
        .map(|(name, number, cost)| Capability { name, held: held(*number), cost })
        .collect())
}

/// The effective capabilities of crr, by their numbers.
pub(crate) fn own_capabilities() -> Result<u64> {
    process::effective_capabilities().context("capget")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = FEATURES.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), FEATURES.len());
    }

    #[test]
    fn probes_answer_and_leave_no_descriptor_behind() {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        drop(probe().unwrap());
        let before = open();
        let report = probe().unwrap();
        assert!(report.all().all(|feature| !feature.detail.is_empty()));
        // Other tests of this process may open files meanwhile; twenty probes that leak one each would show.
        assert!(open() < before + FEATURES.len() / 2);
    }
}
