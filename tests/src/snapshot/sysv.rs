//! System V IPC: what /proc/sysvipc shows, without times, and without the process ids of segments.

use super::{Rule, Snapshot, read};

/// Each file with its columns that are compared.
const FILES: [(&str, &[usize]); 3] = [
    ("shm", &[0, 1, 2, 3, 6, 7, 8, 9, 10]),
    ("sem", &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("msg", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
];

pub(super) fn add(snapshot: &mut Snapshot) -> crate::Result {
    for (file, columns) in FILES {
        let text = read(&format!("/proc/sysvipc/{file}"))?;
        let mut lines: Vec<String> = text.lines().map(|line| kept(line, columns)).collect();
        // By place in the kernel's table: one that was made again may stand elsewhere.
        lines.sort_unstable();
        snapshot.insert(format!("System V {file}"), Rule::Equal, lines);
    }
    Ok(())
}

fn kept(line: &str, columns: &[usize]) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    columns.iter().filter_map(|&column| words.get(column).copied()).collect::<Vec<_>>().join(" ")
}
