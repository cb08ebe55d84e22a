//! Who holds a map beside the tree: programs, maps of maps, iterators, other tasks.
//!
//! The kernel counts who holds a map, but does not tell; so all who could are looked at.

use super::{MMAPABLE, is_map};
use crate::parallel;
use crate::proc::tasks::{Outsider, pids_outside};
use crate::proc::{Dir, bpf as shown};
use crate::sys::bpf as sys;
use anyhow::{Context, Result};
use images::Pid;
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS.
const OF_MAPS: [u32; 2] = [12, 13];

/// For maps, by their ids and with their flags, somebody who has each.
pub(super) fn find(maps: &HashMap<u32, u32>, tree: &HashSet<Pid>) -> Result<HashMap<u32, String>> {
    let mut found = HashMap::new();
    let mut note = |id: u32, holder: &dyn Fn() -> String| {
        if maps.contains_key(&id) {
            found.entry(id).or_insert_with(holder);
        }
    };
    for_all(sys::Kind::Program, |id, program| {
        let (name, used) = sys::program_info(program.as_fd())?;
        let holder = || format!("BPF program {id} ({})", String::from_utf8_lossy(&name));
        used.into_iter().for_each(|map| note(map, &holder));
        Ok(())
    })?;
    for_all(sys::Kind::Link, |id, link| {
        if let Some(map) = sys::iterated_map(link.as_fd())? {
            note(map, &|| format!("BPF link {id}"));
        }
        Ok(())
    })?;
    for_all(sys::Kind::Map, |id, map| {
        for inner in inner_maps(&map)? {
            note(inner, &|| format!("BPF map {id}"));
        }
        Ok(())
    })?;
    let look = |&pid: &Pid| Ok(Outsider::look(pid).map(|task| (held_by(&task.dir), task)));
    let can_be_mapped = maps.values().any(|flags| flags & MMAPABLE != 0);
    for (held, task) in parallel::map(&pids_outside(tree)?, look)?.into_iter().flatten() {
        held.into_iter().for_each(|map| note(map, &|| format!("{task}, outside of the tree,")));
        if can_be_mapped && maps_any(&task.dir) {
            // All of them are shown as one and the same file.
            for (&id, _) in maps.iter().filter(|(_, flags)| *flags & MMAPABLE != 0) {
                note(id, &|| format!("{task}, outside of the tree, possibly (it has one mapped)"));
            }
        }
    }
    Ok(found)
}

/// Does something with all objects of a kind.
fn for_all(kind: sys::Kind, mut each: impl FnMut(u32, OwnedFd) -> nix::Result<()>) -> Result<()> {
    let mut id = 0;
    loop {
        id = match sys::next_id(kind, id) {
            // EINVAL: a kernel without links (before 5.8) has none.
            Err(Errno::ENOENT | Errno::EINVAL) => return Ok(()),
            next => next.with_context(|| format!("list all of BPF: {kind:?}"))?,
        };
        match sys::open_by_id(kind, id, 0).and_then(|object| each(id, object)) {
            // It has ended meanwhile.
            Err(Errno::ENOENT) => {}
            done => done.with_context(|| format!("look at {kind:?} {id} of BPF"))?,
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

/// The maps that a task has open, or iterators for. One that is gone or not ours to look at has none.
fn held_by(task: &Dir) -> Vec<u32> {
    let (Ok(fds), Ok(infos)) = (task.dir("fd"), task.dir("fdinfo")) else { return Vec::new() };
    let numbers = fds.numbers::<u32>(".").unwrap_or_default();
    let held = |fd: u32| {
        let name = fd.to_string();
        let link = fds.link(&name).ok()?;
        let of_bpf = is_map(link.as_bytes()) || link.as_bytes().starts_with(b"anon_inode:bpf");
        let mut text = Vec::new();
        (of_bpf && infos.read(&name, &mut text).is_ok()).then(|| shown::map_id(&text))?
    };
    numbers.into_iter().filter_map(held).collect()
}

/// Whether a task has any map mapped.
fn maps_any(task: &Dir) -> bool {
    let mut text = Vec::new();
    const NAME: &[u8] = b"anon_inode:bpf-map";
    task.read("maps", &mut text).is_ok() && text.windows(NAME.len()).any(|window| window == NAME)
}
