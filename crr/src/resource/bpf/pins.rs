//! Names of maps: bpf file systems, looked through in all mount namespaces that tasks are in.

use super::open_pinned;
use crate::proc::mountinfo::{self, Mount, device_of};
use crate::proc::tasks::{comm_of, pids_outside};
use crate::sys::bpf as sys;
use anyhow::{Context, Result};
use images::Pid;
use nix::sys::stat::lstat;
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a map is pinned.
#[derive(Debug)]
pub(super) enum Pin {
    /// Under this name.
    Here(Vec<u8>),
    /// Where crr has no name for it.
    Elsewhere(String),
}

/// The maps that are pinned, by their ids.
pub(super) fn find(tree: &HashSet<Pid>) -> Result<HashMap<u32, Pin>> {
    let mut pins = HashMap::new();
    // Those that were looked through as a whole.
    let mut seen = HashSet::new();
    for mount in bpf_mounts(Path::new("/proc/self")).context("/proc/self/mountinfo")? {
        let point = Path::new(OsStr::from_bytes(&mount.point));
        if is_at(point, mount.device) {
            if mount.root == b"/" {
                seen.insert(mount.device);
            }
            let mut note = |id, name: &Path| {
                pins.entry(id).or_insert_with(|| Pin::Here(name.as_os_str().as_bytes().to_vec()));
            };
            walk(point, &mut note);
        }
    }
    let mut namespaces = HashSet::from([fs::read_link("/proc/self/ns/mnt").unwrap_or_default()]);
    for pid in pids_outside(tree)? {
        let task = PathBuf::from(format!("/proc/{pid}"));
        // Whoever is gone by now, or not ours to look at, has no names that crr could see.
        let Ok(namespace) = fs::read_link(task.join("ns/mnt")) else { continue };
        if !namespaces.insert(namespace) {
            continue;
        }
        for mount in bpf_mounts(&task).unwrap_or_default() {
            let point = Path::new(OsStr::from_bytes(&mount.point));
            let from_here = task.join("root").join(point.strip_prefix("/").unwrap_or(point));
            if is_at(&from_here, mount.device) && !seen.contains(&mount.device) {
                if mount.root == b"/" {
                    seen.insert(mount.device);
                }
                let mut note = |id, _: &Path| {
                    let place = format!("a name at {} of task {pid} ({})", point.display(), comm_of(pid));
                    pins.entry(id).or_insert(Pin::Elsewhere(place));
                };
                walk(&from_here, &mut note);
            }
        }
    }
    Ok(pins)
}

fn bpf_mounts(task: &Path) -> Result<Vec<Mount>> {
    let mounts = mountinfo::parse(&fs::read(task.join("mountinfo"))?)?;
    Ok(mounts.into_iter().filter(|mount| mount.kind == b"bpf").collect())
}

/// Whether nothing else is mounted over it.
fn is_at(point: &Path, device: u32) -> bool {
    lstat(point).is_ok_and(|found| device_of(found.st_dev) == u64::from(device))
}

/// Notes the maps below a directory.
fn walk(dir: &Path, note: &mut impl FnMut(u32, &Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&name, note),
            Ok(kind) if kind.is_file() => {
                if let Ok(c_name) = CString::new(name.as_os_str().as_bytes())
                    && let Ok(Some(map)) = open_pinned(&c_name, sys::READ_ONLY)
                    && let Ok(info) = sys::map_info(map.as_fd())
                {
                    note(info.id, &name);
                }
            }
            _ => {}
        }
    }
}
