//! BPF maps: that each is open, and that its entries are some that it can have.

use super::{Check, ensure, inside};
use images::bpf::{BpfMap, FLAGS, can_be_made};
use images::file::{Files, Target};
use std::collections::BTreeSet;

/// PATH_MAX, the final NUL included.
const PATH_MAX: usize = 4096;
/// BPF_OBJ_NAME_LEN, the final NUL included.
const NAME_MAX: usize = 16;

pub(super) fn check(files: &Files) -> Check {
    let mut open = BTreeSet::new();
    for description in &files.descriptions {
        if let Target::BpfMap(index) = description.target {
            open.insert(index);
        }
    }
    ensure!(open.len() == files.bpf_maps.len(), "a BPF map has no description");
    for (index, map) in files.bpf_maps.iter().enumerate() {
        check_map(map).map_err(inside(format_args!("BPF map#{index}")))?;
    }
    Ok(())
}

fn check_map(map: &BpfMap) -> Check {
    let is_plain = |&byte: &u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    ensure!(map.name.len() < NAME_MAX && map.name.iter().all(is_plain), "cannot have this name");
    if !map.pin.is_empty() {
        let pin = &map.pin;
        let can_be = pin[0] == b'/' && pin.len() < PATH_MAX && !pin.contains(&0);
        ensure!(can_be, "cannot be pinned there");
        ensure!(map.keys.is_empty() && map.values.is_empty(), "is pinned, and has contents");
        ensure!(map.processors == 0, "is pinned, with values for {} processors", map.processors);
        return Ok(());
    }
    // With another type, the kernel could take values for descriptors, or have more of them than the record.
    ensure!(can_be_made(map.kind), "of type {}, which cannot be made again", map.kind);
    ensure!(map.flags & !FLAGS == 0, "has flags {:#x}", map.flags);
    ensure!(
        map.is_per_processor() == (map.processors != 0),
        "of type {} with values for {} processors",
        map.kind,
        map.processors
    );
    let (keys, values) = (map.keys.len() as u64, map.values.len() as u64);
    let entries = map.entries();
    ensure!(keys == entries * u64::from(map.key_size), "{keys} bytes of keys of {} bytes", map.key_size);
    let value = map.value_bytes();
    ensure!(
        Some(values) == entries.checked_mul(value),
        "{values} bytes of values of {value} bytes for {entries} entries"
    );
    ensure!(entries == 0 || value > 0, "entries without values");
    ensure!(entries <= map.max_entries.into(), "{entries} entries of {}", map.max_entries);
    Ok(())
}
