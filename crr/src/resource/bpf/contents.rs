//! What is in a map that is made again.

use crate::ptrace;
use crate::sys::bpf as sys;
use anyhow::{Context, Result};
use images::bpf::{BpfMap, kind};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// Records the entries.
///
/// # Errors
/// As bpf(2), or if a signal came.
pub(super) fn look(map: BorrowedFd<'_>, info: &sys::MapInfo, record: &mut BpfMap) -> Result<()> {
    if info.key_size == 0 {
        // A queue or a stack, which is empty.
        return Ok(());
    }
    if let Err(errno) = many_at_once(map, info, record)? {
        log::debug!("a BPF map is read entry by entry: {}", errno.desc());
        record.keys.clear();
        record.values.clear();
        one_by_one(map, info, record)?;
    }
    Ok(())
}

/// Whether all keys are there, always. A new map of such a type is all zeros, so these are left out.
fn is_array(info: &sys::MapInfo) -> bool {
    matches!(info.kind, kind::ARRAY | kind::PERCPU_ARRAY)
}

fn is_zero(value: &[u8]) -> bool {
    value.iter().all(|&byte| byte == 0)
}

/// Records the entries by few calls. It ends with the answer of a kernel that cannot do so for all of the map.
fn many_at_once(map: BorrowedFd<'_>, info: &sys::MapInfo, record: &mut BpfMap) -> Result<Result<(), Errno>> {
    let mut batches = sys::Batches::of(map, info, record.value_bytes())?;
    let (key_size, value_size) = (usize::try_from(info.key_size)?, usize::try_from(record.value_bytes())?);
    loop {
        ptrace::check_interrupted()?;
        let (keys, values) = match batches.next_batch() {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Ok(())),
            Err(errno) => return Ok(Err(errno)),
        };
        if !is_array(info) {
            record.keys.extend_from_slice(keys);
            record.values.extend_from_slice(values);
            continue;
        }
        let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        for (key, value) in entries.filter(|(_, value)| !is_zero(value)) {
            record.keys.extend_from_slice(key);
            record.values.extend_from_slice(value);
        }
    }
}

/// The same by two calls for each entry, or one where all keys are there.
fn one_by_one(map: BorrowedFd<'_>, info: &sys::MapInfo, record: &mut BpfMap) -> Result<()> {
    let mut entries = sys::Entries::of(map, info, record.value_bytes())?;
    if is_array(info) {
        for index in 0..info.max_entries {
            ptrace::check_interrupted_at(index.into())?;
            let key = index.to_ne_bytes();
            let value = entries.value_of(&key).context("read a BPF array")?;
            if !is_zero(value) {
                record.keys.extend_from_slice(&key);
                record.values.extend_from_slice(value);
            }
        }
        return Ok(());
    }
    let mut count = 0;
    while let Some((key, value)) = entries.next_entry().context("read a BPF map")? {
        ptrace::check_interrupted_at(count)?;
        count += 1;
        record.keys.extend_from_slice(key);
        record.values.extend_from_slice(value);
    }
    Ok(())
}

/// Puts the entries into a map that is new. The last comes first: entries that meet in one place of a hash table are found the youngest first
/// (htab_map_update_elem() of kernel/bpf/hashtab.c).
///
/// # Errors
/// As bpf(2).
pub(super) fn fill(map: BorrowedFd<'_>, info: &sys::MapInfo, record: &BpfMap) -> Result<()> {
    if record.keys.is_empty() {
        return Ok(());
    }
    let entries = sys::Entries::of(map, info, record.value_bytes())?;
    let keys = record.keys.chunks_exact(usize::try_from(record.key_size)?);
    let values = record.values.chunks_exact(usize::try_from(record.value_bytes())?);
    for (key, value) in keys.zip(values).rev() {
        entries.put(key, value).context("put an entry into a BPF map")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// For those who may make maps.
    #[test]
    fn many_at_once_are_what_they_are_one_by_one() {
        for (kind, flags, count) in
            [(kind::HASH, 0, 10_000u32), (kind::ARRAY, 0, 5000), (kind::LPM_TRIE, 1, 3000)]
        {
            let new =
                sys::NewMap { kind, key_size: 8, value_size: 12, max_entries: count, flags, name: b"t" };
            let new = if kind == kind::ARRAY { sys::NewMap { key_size: 4, ..new } } else { new };
            let map = match sys::create(new) {
                Err(Errno::EPERM) => return eprintln!("skipped: making BPF maps takes CAP_BPF"),
                map => map.unwrap(),
            };
            let info = sys::map_info(map.as_fd()).unwrap();
            let key = |number: u32| match kind {
                kind::ARRAY => number.to_ne_bytes().to_vec(),
                // The length of a prefix comes first.
                _ => [32u32.to_ne_bytes(), number.to_be_bytes()].concat(),
            };
            let numbers = || (0..count).filter(|number| number % 3 != 0);
            let value = |number: u32| (0..3).flat_map(move |i| (number + i).to_ne_bytes());
            let empty = BpfMap { kind, key_size: new.key_size, value_size: 12, ..BpfMap::default() };
            let keys = numbers().flat_map(key).collect();
            fill(
                map.as_fd(),
                &info,
                &BpfMap { keys, values: numbers().flat_map(value).collect(), ..empty.clone() },
            )
            .unwrap();
            let (mut together, mut apart) = (empty.clone(), empty);
            many_at_once(map.as_fd(), &info, &mut together).unwrap().unwrap();
            one_by_one(map.as_fd(), &info, &mut apart).unwrap();
            assert_eq!(apart.values.len(), numbers().count() * 12);
            assert!(together == apart, "{kind}");
        }
    }
}
