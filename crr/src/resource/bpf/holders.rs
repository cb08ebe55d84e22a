//! Who holds a map beside the tree: programs, maps of maps, iterators, other tasks.
//!
//! The kernel counts who holds a map, but does not tell; so all who could are looked at.

use crate::parallel;
use crate::proc::tasks::{Outsider, pids_outside};
use crate::proc::{Dir, bpf as shown};
use crate::sys::bpf as sys;
use anyhow::{Context, Result};
use images::Pid;
use images::bpf::MMAPABLE;
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS.
const OF_MAPS: [u32; 2] = [12, 13];

/// For maps, by their ids and with their flags, somebody who has each.
pub(super) fn find(maps: &HashMap<u32, u32>, tree: &HashSet<Pid>) -> Result<HashMap<u32, String>> {
    let mut found = Found { maps, holders: HashMap::new() };
    found.look_at_all(sys::Kind::Program, |found, id, program| {
        let (name, used) = sys::program_info(program.as_fd())?;
        let holder = || format!("BPF program {id} ({})", String::from_utf8_lossy(&name));
        used.into_iter().for_each(|map| found.note(map, holder));
        Ok(())
    })?;
    found.look_at_all(sys::Kind::Link, |found, id, link| {
        if let Some(map) = sys::iterated_map(link.as_fd())? {
            found.note(map, || format!("BPF link {id}"));
        }
        Ok(())
    })?;
    found.look_at_all(sys::Kind::Map, |found, id, map| {
        for inner in inner_maps(&map)? {
            found.note(inner, || format!("BPF map {id}"));
        }
        Ok(())
    })?;
    let can_be_mapped = maps.values().any(|flags| flags & MMAPABLE != 0);
    let look = |&pid: &Pid| {
        let Some(task) = Outsider::look(pid) else { return Ok(None) };
        let held = held_by(&task.dir);
        let maps_any = can_be_mapped && maps_any(&task.dir);
        Ok((held.iterates || maps_any || found.has_any(&held)).then_some((pid, maps_any)))
    };
    let suspects = parallel::map(&pids_outside(tree)?, look)?;
    for (pid, maps_any) in suspects.into_iter().flatten() {
        // Once more: whoever lists all maps has each for a moment, as another dump does, or bpftool.
        let Some(task) = Outsider::look(pid) else { continue };
        let held = held_by(&task.dir);
        held.maps.iter().for_each(|&map| found.note(map, || format!("{task}, outside of the tree,")));
        if held.iterates {
            let why = "it has an iterator, and through what is shown nowhere";
            found.note_all(|_| true, || format!("{task}, outside of the tree, possibly ({why})"));
        }
        if maps_any {
            // All of them are shown as one and the same file.
            let why = "it has one mapped";
            let can_be = |flags: u32| flags & MMAPABLE != 0;
            found.note_all(can_be, || format!("{task}, outside of the tree, possibly ({why})"));
        }
    }
    Ok(found.holders)
}

/// What was found so far.
#[derive(Debug)]
struct Found<'a> {
    /// Those that are looked for, with their flags.
    maps: &'a HashMap<u32, u32>,
    holders: HashMap<u32, String>,
}

impl Found<'_> {
    fn note(&mut self, map: u32, holder: impl FnOnce() -> String) {
        if self.maps.contains_key(&map) {
            self.holders.entry(map).or_insert_with(holder);
        }
    }

    /// Notes somebody who may have any map with such flags.
    fn note_all(&mut self, with: impl Fn(u32) -> bool, holder: impl Fn() -> String) {
        for (&map, _) in self.maps.iter().filter(|(_, flags)| with(**flags)) {
            self.holders.entry(map).or_insert_with(&holder);
        }
    }

    /// Whether a task has one of those that are looked for.
    fn has_any(&self, held: &Held) -> bool {
        held.maps.iter().any(|map| self.maps.contains_key(map))
    }

    /// Does something with all objects of a kind. One that cannot be looked at may have every map.
    fn look_at_all(
        &mut self,
        kind: sys::Kind,
        mut each: impl FnMut(&mut Self, u32, OwnedFd) -> nix::Result<()>,
    ) -> Result<()> {
        let mut id = 0;
        loop {
            id = match sys::next_id(kind, id) {
                // EINVAL: a kernel without links (before 5.8) has none.
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(()),
                next => next.with_context(|| format!("list all BPF {kind}s"))?,
            };
            match sys::open_by_id(kind, id, 0).and_then(|object| each(self, id, object)) {
                // ENOENT: it has ended meanwhile. ENODEV: it was of a network device that is gone, and has no map that is made again
                // (bpf_offload_prog_map_match() of kernel/bpf/offload.c).
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                // A probe of which the kernel tells nothing (bpf_perf_link_fill_probe() of kernel/bpf/syscall.c), so no iterator.
                Err(Errno::EOPNOTSUPP) if kind == sys::Kind::Link => {}
                Err(errno) => {
                    let why = errno.desc().to_lowercase();
                    let holder = || format!("BPF {kind} {id}, possibly (it cannot be looked at: {why}),");
                    self.note_all(|_| true, holder);
                }
            }
        }
    }
}

/// The maps that are in a map, by their ids.
fn inner_maps(map: &OwnedFd) -> nix::Result<Vec<u32>> {
    let info = sys::map_info(map.as_fd())?;
    let mut inner = Vec::new();
    if OF_MAPS.contains(&info.kind) {
        let mut entries = sys::Entries::of(map.as_fd(), &info, 4)?;
        // A map that changes meanwhile may start over.
        for _ in 0..info.max_entries {
            match entries.next_entry()? {
                Some((_, &[a, b, c, d])) => inner.push(u32::from_ne_bytes([a, b, c, d])),
                _ => break,
            }
        }
    }
    Ok(inner)
}

/// What a task has open.
#[derive(Debug, Default)]
struct Held {
    /// Maps, and those that links of iterators are for.
    maps: Vec<u32>,
    /// An iterator, which has the map that it goes through even if its link is closed, and does not show it (bpf_iter_fops of kernel/bpf/bpf_iter.c).
    iterates: bool,
}

/// What a task has open. One that is gone or not ours to look at has nothing.
fn held_by(task: &Dir) -> Held {
    let mut held = Held::default();
    let (Ok(fds), Ok(infos)) = (task.dir("fd"), task.dir("fdinfo")) else { return held };
    let mut text = Vec::new();
    for fd in fds.numbers::<u32>(".").unwrap_or_default() {
        let name = fd.to_string();
        let Ok(link) = fds.link(&name) else { continue };
        if link.as_bytes() == b"anon_inode:bpf_iter" {
            held.iterates = true;
        } else if link.as_bytes().starts_with(b"anon_inode:bpf") && infos.read(&name, &mut text).is_ok() {
            held.maps.extend(shown::map_id(&text));
        }
    }
    held
}

/// Whether a task has any map mapped.
fn maps_any(task: &Dir) -> bool {
    let mut text = Vec::new();
    const NAME: &[u8] = b"anon_inode:bpf-map";
    task.read("maps", &mut text).is_ok() && text.windows(NAME.len()).any(|window| window == NAME)
}
