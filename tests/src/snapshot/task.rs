//! Everything of a task and its threads but memory and files.

use super::{Rule, Snapshot, deputy, link, read, threads};

/// Files of /proc/PID that are compared as they are. Zero bytes in them become line breaks.
const VERBATIM: [&str; 10] = [
    "cmdline",
    "coredump_filter",
    "environ",
    "limits",
    "loginuid",
    "oom_score_adj",
    "personality",
    "setgroups",
    "timers",
    "timerslack_ns",
];

/// Links of /proc/PID.
const LINKS: [&str; 9] =
    ["cwd", "exe", "root", "ns/cgroup", "ns/ipc", "ns/mnt", "ns/pid", "ns/user", "ns/uts"];

/// Lines of /proc/PID/status that tell of the past, of statistics or of resident pages.
const STATUS_VOLATILE: [&str; 13] = [
    "FDSize",
    "SigQ",
    "VmHWM",
    "VmPTE",
    "VmPeak",
    "VmRSS",
    "VmSwap",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "HugetlbPages",
    "nonvoluntary_ctxt_switches",
    "voluntary_ctxt_switches",
];

/// Fields of /proc/PID/stat that must stay, by their number in proc_pid_stat(5).
const STAT_FIELDS: [(usize, &str); 23] = [
    (4, "ppid"),
    (5, "pgrp"),
    (6, "session"),
    (7, "tty"),
    (8, "tpgid"),
    (18, "priority"),
    (19, "nice"),
    (20, "threads"),
    (23, "vsize"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (40, "rt_priority"),
    (41, "policy"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
    (52, "exit_code"),
];

/// Adds a task. The parent of the root is nobody's promise: a detached restore hands it to init.
pub(super) fn add(snapshot: &mut Snapshot, pid: i32, is_root: bool) -> crate::Result {
    let proc = format!("/proc/{}", deputy(pid)?);
    for file in VERBATIM {
        let Ok(text) = read(&format!("{proc}/{file}")) else {
            // `timers` and `setgroups` depend on the kernel's configuration; it is the same before and after.
            continue;
        };
        let lines = text.split(['\n', '\0']).map(str::to_owned).collect();
        snapshot.insert(format!("task {pid} {file}"), Rule::Equal, lines);
    }
    if let Ok(text) = read(&format!("{proc}/ksm_stat")) {
        let merging = text.lines().filter(|line| line.starts_with("ksm_merge_any")).map(str::to_owned);
        snapshot.insert(format!("task {pid} merging"), Rule::Equal, merging.collect());
    }
    for name in LINKS {
        let target = link(&format!("{proc}/{name}"))?;
        snapshot.insert(format!("task {pid} {name}"), Rule::Equal, vec![target]);
    }
    let auxv = std::fs::read(format!("{proc}/auxv"))?;
    let words = auxv.chunks(8).map(|word| format!("{word:02x?}")).collect();
    snapshot.insert(format!("task {pid} auxv"), Rule::Equal, words);
    for tid in threads(pid)? {
        add_thread(snapshot, pid, tid, is_root)?;
    }
    Ok(())
}

/// Lines of /proc/PID/status that are left of a task that has ended.
const STATUS_OF_ZOMBIE: [&str; 6] = ["Name", "State", "PPid", "Uid", "Gid", "Groups"];
/// Fields of /proc/PID/stat that are.
const STAT_OF_ZOMBIE: [&str; 5] = ["ppid", "pgrp", "session", "exit_signal", "exit_code"];

/// Whether a task has ended and waits to be waited for.
pub(super) fn is_zombie(pid: i32) -> crate::Result<bool> {
    has_ended(pid, deputy(pid)?)
}

/// Whether a thread has ended and is still there.
pub(super) fn has_ended(pid: i32, tid: i32) -> crate::Result<bool> {
    let stat = read(&format!("/proc/{pid}/task/{tid}/stat"))?;
    Ok(stat_fields(&stat).first().is_some_and(|state| *state == "Z"))
}

/// Adds a task that has ended.
pub(super) fn add_zombie(snapshot: &mut Snapshot, pid: i32) -> crate::Result {
    let status = read(&format!("/proc/{pid}/status"))?;
    let of_zombie = |line: &String| STATUS_OF_ZOMBIE.iter().any(|name| line.split(':').next() == Some(name));
    let lines = status_lines(&status, false).filter(of_zombie).collect();
    snapshot.insert(format!("zombie {pid} status"), Rule::Equal, lines);
    let stat = stat_lines(&read(&format!("/proc/{pid}/stat"))?, false);
    let of_zombie = |line: &String| STAT_OF_ZOMBIE.iter().any(|name| line.split(' ').next() == Some(name));
    let lines = stat.into_iter().filter(of_zombie).collect();
    snapshot.insert(format!("zombie {pid} stat"), Rule::Equal, lines);
    Ok(())
}

fn add_thread(snapshot: &mut Snapshot, pid: i32, tid: i32, of_root: bool) -> crate::Result {
    let proc = format!("/proc/{pid}/task/{tid}");
    let key = |what: &str| format!("task {pid} thread {tid} {what}");
    let syscall = read(&format!("{proc}/syscall"))?;
    let (pending, mut status): (Vec<String>, Vec<String>) =
        status_lines(&read(&format!("{proc}/status"))?, of_root).partition(|line| line.contains("Pnd:"));
    if has_own_mask(&syscall) && status.iter().any(|line| line.starts_with("State: T")) {
        status.retain(|line| !line.starts_with("SigBlk:"));
    }
    snapshot.insert(key("status"), Rule::Equal, status);
    snapshot.insert(key("pending signals"), Rule::Equal, pending);
    let stat = stat_lines(&read(&format!("{proc}/stat"))?, of_root);
    snapshot.insert(key("stat"), Rule::Equal, stat);
    snapshot.insert(key("comm"), Rule::Equal, vec![read(&format!("{proc}/comm"))?.trim_end().to_owned()]);
    if has_ended(pid, tid)? {
        return Ok(());
    }
    // "-1 SP PC": stopped outside of a system call, in a page fault for instance. It runs.
    let shown = if syscall.starts_with("-1 ") { "running" } else { syscall.trim_end() };
    let personality = read(&format!("{proc}/personality"))?.trim_end().to_owned();
    snapshot.insert(key("personality"), Rule::Equal, vec![personality]);
    snapshot.insert(key("syscall"), Rule::Syscall, vec![shown.to_owned()]);
    Ok(())
}

/// Whether a thread is in a call that waits with a signal mask of its own: in a stopped task that mask is shown until the task has been
/// looked at, and the call makes it anew when the task is continued. The numbers of both ABIs: rt_sigsuspend, ppoll, pselect6,
/// epoll_pwait, and sigsuspend of ia32.
fn has_own_mask(syscall: &str) -> bool {
    const CALLS: [u32; 11] = [130, 271, 270, 281, 179, 72, 309, 308, 319, 413, 414];
    let number = syscall.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: u32| CALLS.contains(&number))
}

fn status_lines(text: &str, of_root: bool) -> impl Iterator<Item = String> {
    text.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        if STATUS_VOLATILE.contains(&name) || (of_root && name == "PPid") {
            return None;
        }
        if name == "State" {
            return Some(format!("State: {}", state_class(value.trim_start())));
        }
        Some(line.to_owned())
    })
}

/// Whether a thread runs or sleeps changes by itself; whether it is stopped, traced or dead does not.
fn state_class(state: &str) -> &str {
    if state.starts_with(['R', 'S', 'D']) { "alive" } else { state }
}

/// The fields from the third on: the command name before them may contain anything.
fn stat_fields(text: &str) -> Vec<&str> {
    text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect()
}

fn stat_lines(text: &str, of_root: bool) -> Vec<String> {
    let fields = stat_fields(text);
    let wanted = STAT_FIELDS.iter().filter(|(_, name)| !(of_root && *name == "ppid"));
    wanted.map(|(number, name)| format!("{name} {}", fields.get(number - 3).unwrap_or(&"missing"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_any_command_name() {
        let numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let text = format!("7 (a) b (c) S {}\n", numbers.join(" "));
        let lines = stat_lines(&text, false);
        assert_eq!(lines.first().map(String::as_str), Some("ppid 4"));
        assert_eq!(lines.last().map(String::as_str), Some("exit_code 52"));
        assert!(stat_lines(&text, true).iter().all(|line| !line.starts_with("ppid")));
    }

    #[test]
    fn status_keeps_what_matters() {
        let text = "Name:\tx\nState:\tS (sleeping)\nPPid:\t1\nVmRSS:\t12 kB\nSigPnd:\t00\n";
        let lines: Vec<String> = status_lines(text, true).collect();
        assert_eq!(lines, ["Name:\tx", "State: alive", "SigPnd:\t00"]);
        assert!(status_lines("State:\tT (stopped)\n", false).any(|line| line == "State: T (stopped)"));
    }
}
