//! How much memory can be had, on this machine and within the limits of crr's cgroups.

use std::path::{Path, PathBuf};

/// Bytes of memory that can be had.
pub(super) fn available() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = left_by_cgroups(&groups, Path::new("/sys/fs/cgroup"));
    left.map_or_else(available_here, |left| left.min(available_here()))
}

/// What the memory cgroups leave that this process is in, by its `/proc/PID/cgroup` and where they are mounted; `None` if they have no limits.
/// What the kernel could drop of the caches that count there is taken for used.
fn left_by_cgroups(groups: &str, mounted: &Path) -> Option<u64> {
    let of_group = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (root, limit, usage) = match fields.next()? {
            "" => (mounted.to_owned(), "memory.max", "memory.current"),
            list if list.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => return None,
        };
        let number = |file: PathBuf| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let left = |group: &Path| {
            let group = root.join(group);
            Some(number(group.join(limit))?.saturating_sub(number(group.join(usage))?))
        };
        // The last one is that of the mount itself.
        Path::new(fields.next()?.trim_start_matches('/')).ancestors().filter_map(left).min()
    };
    groups.lines().filter_map(of_group).min()
}

/// Bytes of memory that the machine has left.
fn available_here() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_narrowest_cgroup_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let limit = |group: &str, files: [(&str, &str); 2]| {
            let dir = mounted.path().join(group);
            fs::create_dir_all(&dir).unwrap();
            files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
        };
        let second = |max, current| [("memory.max", max), ("memory.current", current)];
        let left = |groups: &str| left_by_cgroups(groups, mounted.path());
        assert_eq!(left("0::/a/b\n"), None);
        limit("a/b", second("max\n", "500\n"));
        assert_eq!(left("0::/a/b\n"), None);
        limit("a", second("1000\n", "600\n"));
        assert_eq!(left("0::/a/b\n"), Some(400));
        limit("", second("300\n", "301\n"));
        assert_eq!(left("0::/a/b\n"), Some(0));
        limit("memory/c", [("memory.limit_in_bytes", "90\n"), ("memory.usage_in_bytes", "20\n")]);
        assert_eq!(left("5:cpu,memory:/c\n4:pids:/c\n"), Some(70));
        assert_eq!(left("4:pids:/c\n"), None);
    }
}
