//! Compares snapshots and says readably what differs.

use super::{Entry, Rule};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Lines shown of one entry.
const SHOWN: usize = 24;

pub(super) fn describe(before: &BTreeMap<String, Entry>, after: &BTreeMap<String, Entry>) -> Option<String> {
    let mut text = String::new();
    for key in after.keys().filter(|key| !before.contains_key(*key)) {
        let _ = writeln!(text, "{key}: new");
    }
    for (key, old) in before {
        let Some(new) = after.get(key) else {
            let _ = writeln!(text, "{key}: gone");
            continue;
        };
        let lines = match old.rule {
            Rule::Equal => changed_lines(&old.lines, &new.lines),
            Rule::AtMost => grown_lines(&old.lines, &new.lines),
            Rule::Syscall => changed_syscall(&old.lines, &new.lines),
        };
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{key}:");
        for line in lines.iter().take(SHOWN) {
            let _ = writeln!(text, "  {line}");
        }
        if lines.len() > SHOWN {
            let _ = writeln!(text, "  ... and {} more", lines.len() - SHOWN);
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Lines that only one side has; where both have the same lines in another order, that.
fn changed_lines(old: &[String], new: &[String]) -> Vec<String> {
    if old == new {
        return Vec::new();
    }
    let mut count: BTreeMap<&String, i32> = BTreeMap::new();
    for line in old {
        *count.entry(line).or_default() += 1;
    }
    let mut added = Vec::new();
    for line in new {
        let left = count.entry(line).or_default();
        if *left > 0 { *left -= 1 } else { added.push(format!("+ {line}")) }
    }
    let mut lines = Vec::new();
    for line in old {
        let left = count.entry(line).or_default();
        if *left > 0 {
            *left -= 1;
            lines.push(format!("- {line}"));
        }
    }
    lines.extend(added);
    if lines.is_empty() {
        lines.push("same lines in another order".to_owned());
    }
    lines
}

/// What a dump may touch of a stack: the frame that takes a thread back, with its extended state.
const FRAME_KB: u64 = 16;

/// `name N kB` lines whose number is larger after; those marked `stack` may grow by a signal frame. Names that differ
/// are the business of the maps entry.
fn grown_lines(old: &[String], new: &[String]) -> Vec<String> {
    let size = |line: &str| -> Option<(String, u64)> {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    let allowed = |line: &str| if line.ends_with(" stack") { FRAME_KB } else { 0 };
    let before: BTreeMap<String, u64> =
        old.iter().filter_map(|line| size(line).map(|(name, size)| (name, size + allowed(line)))).collect();
    let after = new.iter().filter_map(|line| size(line));
    after
        .filter_map(|(name, now)| {
            let then = *before.get(&name)?;
            (now > then).then(|| format!("{name}: {now} kB, allowed are {then} kB"))
        })
        .collect()
}

/// A call that waits with a timeout shows as restart_syscall once it was interrupted: 219, in ia32 0. All else of it
/// (arguments, stack pointer, program counter) stays.
fn changed_syscall(old: &[String], new: &[String]) -> Vec<String> {
    let split = |lines: &[String]| -> (String, String) {
        let line = lines.first().map_or("", String::as_str);
        let (number, rest) = line.split_once(' ').unwrap_or((line, ""));
        (number.to_owned(), rest.to_owned())
    };
    let ((old_number, old_rest), (new_number, new_rest)) = (split(old), split(new));
    let restarted = [&old_number, &new_number].iter().any(|number| ["219", "0"].contains(&number.as_str()));
    if old_rest == new_rest && (old_number == new_number || restarted) {
        return Vec::new();
    }
    changed_lines(old, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rule: Rule, lines: &[&str]) -> BTreeMap<String, Entry> {
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        BTreeMap::from([("x".to_owned(), Entry { rule, lines })])
    }

    #[test]
    fn changes_are_found() {
        let before = entry(Rule::Equal, &["a", "b", "b"]);
        assert_eq!(describe(&before, &before), None);
        assert_eq!(describe(&before, &entry(Rule::Equal, &["a", "b", "c"])).unwrap(), "x:\n  - b\n  + c\n");
        assert!(describe(&before, &entry(Rule::Equal, &["b", "a", "b"])).unwrap().contains("order"));
        assert_eq!(describe(&before, &BTreeMap::new()).unwrap(), "x: gone\n");
        assert_eq!(describe(&BTreeMap::new(), &before).unwrap(), "x: new\n");
    }

    #[test]
    fn memory_may_shrink_but_not_grow() {
        let before = entry(Rule::AtMost, &["1-2 8 kB", "3-4 0 kB"]);
        assert_eq!(describe(&before, &entry(Rule::AtMost, &["1-2 4 kB", "3-4 0 kB"])), None);
        let grown = describe(&before, &entry(Rule::AtMost, &["1-2 8 kB", "3-4 12 kB"])).unwrap();
        assert!(grown.contains("3-4: 12 kB, allowed are 0 kB"));
        let stack = entry(Rule::AtMost, &["1-2 8 kB stack"]);
        assert_eq!(describe(&stack, &entry(Rule::AtMost, &["1-2 24 kB stack"])), None);
        assert!(describe(&stack, &entry(Rule::AtMost, &["1-2 28 kB stack"])).is_some());
    }

    #[test]
    fn a_restarted_call_is_the_same_call() {
        let before = entry(Rule::Syscall, &["230 0x0 0x1 0x7ffe 0x4000"]);
        assert_eq!(describe(&before, &entry(Rule::Syscall, &["219 0x0 0x1 0x7ffe 0x4000"])), None);
        assert!(describe(&before, &entry(Rule::Syscall, &["219 0x0 0x2 0x7ffe 0x4000"])).is_some());
        assert!(describe(&before, &entry(Rule::Syscall, &["running"])).is_some());
    }
}
