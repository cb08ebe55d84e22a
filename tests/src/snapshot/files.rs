//! Open files: what each descriptor refers to, and which descriptors are one open file description.

use super::{Renumber, Rule, Snapshot, deputy, link, numbers, read};
use crate::sys::order_of_descriptions;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;

pub(super) fn add(snapshot: &mut Snapshot, pids: &[i32]) -> crate::Result {
    let mut pipes = Renumber::default();
    let mut sockets = Renumber::default();
    let mut by_target: BTreeMap<String, Vec<(i32, i32)>> = BTreeMap::new();
    for &pid in pids {
        let mut links = Vec::new();
        let mut offsets = Vec::new();
        let proc = format!("/proc/{}", deputy(pid)?);
        let without_name = inodes_without_name(&proc)?;
        for fd in numbers(&format!("{proc}/fd"))? {
            let target = normalise(&link(&format!("{proc}/fd/{fd}"))?, &mut pipes, &mut sockets);
            let info = read(&format!("{proc}/fdinfo/{fd}"))?;
            let details = details(&info, &without_name);
            let details = if target.ends_with(" (deleted)") && !target.ends_with(TEMPORARY) {
                without_name_flags(&details)
            } else {
                details
            };
            let details = if target.starts_with("/proc/") { without_inodes(&details) } else { details };
            links.push(format!("{fd} -> {target} {details}"));
            offsets.extend(
                info.lines().filter(|line| line.starts_with("pos:")).map(|line| format!("{fd} {line}")),
            );
            by_target.entry(target).or_default().push((pid, fd));
        }
        snapshot.insert(format!("task {pid} descriptors"), Rule::Equal, links);
        snapshot.insert(format!("task {pid} offsets"), Rule::Equal, offsets);
    }
    snapshot.insert("unix sockets".to_owned(), Rule::Equal, unix_sockets(&sockets)?);
    snapshot.insert("internet sockets".to_owned(), Rule::Equal, inet_sockets(&sockets)?);
    snapshot.insert("packet sockets".to_owned(), Rule::Equal, packet_sockets(&sockets)?);
    snapshot.insert("open file descriptions".to_owned(), Rule::Equal, descriptions(by_target.into_values())?);
    Ok(())
}

/// Inodes, in hexadecimal, of what a task has open that has no name: they are others after a restore.
fn inodes_without_name(proc: &str) -> crate::Result<HashSet<String>> {
    let mut inodes = HashSet::new();
    for fd in numbers(&format!("{proc}/fd"))? {
        let found = std::fs::metadata(format!("{proc}/fd/{fd}"))?;
        if found.nlink() == 0 {
            inodes.insert(format!("{:x}", found.ino()));
        }
    }
    Ok(inodes)
}

/// A watch as fdinfo shows it, without the inode and its handle if it is one that has no name.
fn watched(line: &str, without_name: &HashSet<String>) -> String {
    let inode = line.split(' ').find_map(|word| word.strip_prefix("ino:"));
    let changes = inode.is_some_and(|inode| without_name.contains(inode));
    let kept = |word: &&str| !changes || !["ino:", "f_handle:"].iter().any(|name| word.starts_with(name));
    line.split(' ').filter(kept).collect::<Vec<_>>().join(" ")
}

/// What fdinfo shows, but for the position, the numbers that the kernel gives out anew, and time that runs.
fn details(info: &str, without_name: &HashSet<String>) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut watches: Vec<String> = Vec::new();
    let value = |name| info.lines().find_map(|line| line.strip_prefix(name));
    // Whoever asks a periodic timer that has expired has the kernel count on and start it again.
    let runs_on =
        value("ticks: ").is_some_and(|ticks| ticks != "0") && value("it_interval: ") != Some("(0, 0)");
    for line in info.lines() {
        if ["pos:", "ino:", "eventfd-id:", "map_id:"].iter().any(|name| line.starts_with(name)) {
            continue;
        }
        if runs_on && (line.starts_with("ticks:") || line.starts_with("it_value:")) {
            lines.push("expired".to_owned());
        } else if line.starts_with("it_value:") {
            let armed = line != "it_value: (0, 0)";
            lines.push(format!("armed: {armed}"));
        } else if line.starts_with("tfd:") {
            // In the order of addresses in the kernel.
            watches.push(line.split(" pos:").next().unwrap_or_default().trim_end().to_owned());
        } else if line.starts_with("inotify ") || line.starts_with("fanotify ino:") {
            lines.push(watched(line, without_name));
        } else {
            lines.push(line.replace('\t', ""));
        }
    }
    watches.sort_unstable();
    [lines, watches].concat().join(" ")
}

/// Leaves out the flags that say how the name of a file was to be taken (O_DIRECTORY, O_NOFOLLOW, O_TMPFILE): one that has none is not
/// opened by it again.
fn without_name_flags(details: &str) -> String {
    const OF_THE_NAME: u32 = 0o20_600_000;
    let word = |word: &str| match word.strip_prefix("flags:").map(|flags| u32::from_str_radix(flags, 8)) {
        Some(Ok(flags)) => format!("flags:{:o}", flags & !OF_THE_NAME),
        _ => word.to_owned(),
    };
    details.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Leaves out the inodes of files with locks (`MAJOR:MINOR:INODE`): procfs gives new ones to new tasks.
fn without_inodes(details: &str) -> String {
    let file = |word: &&str| word.split(':').map(|part| u64::from_str_radix(part, 16).is_ok()).eq([true; 3]);
    let words = details.split(' ').map(|word| match Some(word).filter(file) {
        Some(file) => file.rsplit_once(':').map_or(file, |(device, _)| device),
        None => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// For each description, who holds it. Only descriptors on the same object can share one.
fn descriptions(candidates: impl Iterator<Item = Vec<(i32, i32)>>) -> crate::Result<Vec<String>> {
    let mut lines = Vec::new();
    // There are many comparisons, and few tasks.
    let mut deputies: BTreeMap<i32, i32> = BTreeMap::new();
    for holders in candidates {
        // In the order of kcmp(2): a task can have thousands of descriptions of one object.
        let mut groups: Vec<Vec<(i32, i32)>> = Vec::new();
        for holder in holders {
            if let std::collections::btree_map::Entry::Vacant(entry) = deputies.entry(holder.0) {
                entry.insert(deputy(holder.0)?);
            }
            match position(&groups, holder, &deputies)? {
                Ok(found) => groups[found].push(holder),
                Err(place) => groups.insert(place, vec![holder]),
            }
        }
        for group in groups {
            let names: Vec<String> = group.iter().map(|(pid, fd)| format!("task {pid} fd {fd}")).collect();
            lines.push(names.join(", "));
        }
    }
    lines.sort_unstable();
    Ok(lines)
}

/// The group whose description `holder` also has, or the place of a new one.
fn position(
    groups: &[Vec<(i32, i32)>],
    holder: (i32, i32),
    deputies: &BTreeMap<i32, i32>,
) -> crate::Result<std::result::Result<usize, usize>> {
    let [mut low, mut high] = [0, groups.len()];
    while low < high {
        let middle = usize::midpoint(low, high);
        let [a, b] = [groups[middle][0], holder].map(|(pid, fd)| (deputies[&pid], fd));
        match order_of_descriptions(a, b)? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

/// Replaces the inode of a pipe or socket by its order of appearance.
fn normalise(target: &str, pipes: &mut Renumber, sockets: &mut Renumber) -> String {
    if target.starts_with("pipe:[") {
        format!("pipe #{}", pipes.number(target))
    } else if target.starts_with("socket:[") {
        format!("socket #{}", sockets.number(target))
    } else if let Some((dir, name)) = target.rsplit_once("/#")
        && name.strip_suffix(" (deleted)").is_some_and(|ino| ino.bytes().all(|byte| byte.is_ascii_digit()))
    {
        format!("{dir}{TEMPORARY}")
    } else {
        target.to_owned()
    }
}

/// What O_TMPFILE makes is called by its inode.
const TEMPORARY: &str = "/#inode (deleted)";

/// The lines of /proc/net/tcp and its like about sockets that the tree holds: addresses, state, owner. How much is in
/// their queues is the programs' to find out: it moves from one to the other.
fn inet_sockets(held: &Renumber) -> crate::Result<Vec<String>> {
    let mut lines = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6"] {
        let Ok(text) = read(&format!("/proc/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, peer, state, _, _, _, uid, _, inode, ..] = &words[..] else { continue };
            if let Some(number) = held.0.get(&format!("socket:[{inode}]")) {
                lines.push(format!("socket #{number} {table} {local} {peer} state {state} uid {uid}"));
            }
        }
    }
    lines.sort_unstable();
    Ok(lines)
}

/// The lines of /proc/net/packet about sockets that the tree holds: type, protocol, interface, whether they hear, owner.
fn packet_sockets(held: &Renumber) -> crate::Result<Vec<String>> {
    let mut lines = Vec::new();
    let Ok(text) = read("/proc/net/packet") else { return Ok(lines) };
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, kind, protocol, interface, running, _, uid, inode] = &words[..] else { continue };
        if let Some(number) = held.0.get(&format!("socket:[{inode}]")) {
            lines.push(format!("socket #{number} packet {kind} {protocol} {interface} {running} uid {uid}"));
        }
    }
    lines.sort_unstable();
    Ok(lines)
}

/// The lines of /proc/net/unix about sockets that the tree holds: flags, type, state and path.
fn unix_sockets(held: &Renumber) -> crate::Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in read("/proc/net/unix")?.lines() {
        let words: Vec<&str> = line.splitn(8, ' ').map(str::trim).collect();
        let [_, _, _, flags, kind, state, rest @ ..] = &words[..] else { continue };
        let rest = rest.join(" ");
        let (inode, path) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        if let Some(number) = held.0.get(&format!("socket:[{inode}]")) {
            lines.push(format!("socket #{number} flags {flags} type {kind} state {state} {path}"));
        }
    }
    lines.sort_unstable();
    Ok(lines)
}
