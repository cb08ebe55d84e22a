//! Memory: the lines of maps, with the flags and the anonymous pages that smaps adds.

use super::{Renumber, Rule, Snapshot, deputy, read, threads};

/// `sd` (soft-dirty) is a statement about the past.
const VOLATILE_FLAGS: [&str; 1] = ["sd"];

pub(super) fn add(snapshot: &mut Snapshot, pid: i32, shared_memory: &mut Renumber) -> crate::Result {
    let proc = format!("/proc/{}", deputy(pid)?);
    let text = read(&format!("{proc}/smaps"))?;
    let areas = parse(&text, shared_memory);
    let range = |area: &Area| area.line.split(' ').next().unwrap_or_default().to_owned();
    let flags = areas.iter().map(|area| format!("{} {}", range(area), area.flags)).collect();
    let stack_pointers = stack_pointers(pid)?;
    let anonymous = areas
        .iter()
        .map(|area| {
            let stack = stack_pointers.iter().any(|sp| addresses(&area.line).is_some_and(|r| r.contains(sp)));
            format!("{} {} kB{}", range(area), area.anonymous, if stack { " stack" } else { "" })
        })
        .collect();
    let lines = areas.into_iter().map(|area| area.line).collect();
    snapshot.insert(format!("task {pid} maps"), Rule::Equal, lines);
    snapshot.insert(format!("task {pid} vmflags"), Rule::Equal, flags);
    if let Ok(text) = read(&format!("{proc}/numa_maps")) {
        snapshot.insert(format!("task {pid} memory policies"), Rule::Equal, policies(&text));
    }
    snapshot.insert(format!("task {pid} anonymous"), Rule::AtMost, anonymous);
    Ok(())
}

/// Address and policy, the first two words of each line of numa_maps.
fn policies(text: &str) -> Vec<String> {
    let first_two = |line: &str| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
    text.lines().map(first_two).collect()
}

/// Where the stacks of a task's blocked threads end: the last field but one of /proc/PID/syscall.
fn stack_pointers(pid: i32) -> crate::Result<Vec<u64>> {
    let mut found = Vec::new();
    for tid in threads(pid)? {
        let text = read(&format!("/proc/{pid}/task/{tid}/syscall"))?;
        let field = text.split_whitespace().rev().nth(1).and_then(|field| field.strip_prefix("0x"));
        found.extend(field.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    Ok(found)
}

/// The addresses at the start of a line of maps.
fn addresses(line: &str) -> Option<std::ops::Range<u64>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// One area.
#[derive(Debug, Default, PartialEq, Eq)]
struct Area {
    /// Its line in maps.
    line: String,
    /// VmFlags.
    flags: String,
    /// Anonymous and Swap, in kB: a look from outside can bring pages back from there.
    anonymous: u64,
}

fn parse(text: &str, shared_memory: &mut Renumber) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for line in text.lines() {
        // A detail is "Name:  value"; the line of an area starts with its addresses.
        let detail =
            line.split_once(':').filter(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_'));
        match (detail, areas.last_mut()) {
            (None, _) => areas.push(Area { line: normalise(line, shared_memory), ..Area::default() }),
            (Some(("VmFlags", value)), Some(area)) => {
                let kept: Vec<&str> =
                    value.split_whitespace().filter(|flag| !VOLATILE_FLAGS.contains(flag)).collect();
                area.flags = kept.join(" ");
            }
            (Some(("Anonymous" | "Swap", value)), Some(area)) => {
                area.anonymous +=
                    value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).unwrap_or(0);
            }
            (Some(_), _) => {}
        }
    }
    areas
}

/// Replaces the inode of shared anonymous memory, and of files that have no name, by its order of appearance. That of a segment of System V is
/// its id.
fn normalise(line: &str, shared_memory: &mut Renumber) -> String {
    let mut fields: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    if line.ends_with(" (deleted)") && !line.contains(" /SYSV") {
        if let Some(inode) = fields.get_mut(4) {
            *inode = format!("#{}", shared_memory.number(inode));
        }
    }
    fields.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
f7d00000-f7d01000 rw-s 00000000 00:01 1025                               /dev/zero (deleted)
Size:                  4 kB
Anonymous:             0 kB
VmFlags: rd wr sh sd mr mw
f7d01000-f7d02000 rw-p 00000000 00:00 0
Anonymous:             4 kB
Swap:                  8 kB
VmFlags: rd wr mr mw
";

    #[test]
    fn addresses_are_parsed() {
        assert_eq!(addresses("7f00-8000 rw-p"), Some(0x7f00..0x8000));
        assert_eq!(addresses("Size: 4 kB"), None);
    }

    #[test]
    fn smaps_is_parsed_and_normalised() {
        let mut numbers = Renumber::default();
        let areas = parse(SMAPS, &mut numbers);
        assert_eq!(areas.len(), 2);
        assert_eq!(areas[0].line, "f7d00000-f7d01000 rw-s 00000000 00:01 #1 /dev/zero (deleted)");
        assert_eq!(areas[0].flags, "rd wr sh mr mw");
        assert_eq!(areas[1].anonymous, 12);
        let again = parse(&SMAPS.replace("1025", "9"), &mut numbers);
        assert!(again[0].line.contains(" #2 "));
    }
}
