//! What is in a map that is made again.

use crate::ptrace;
use crate::sys::bpf as sys;
use anyhow::{Context, Result};
use images::bpf::{BpfMap, kind};
use std::os::fd::BorrowedFd;

/// Entries between two looks for a signal that is to end crr.
const AT_ONCE: u64 = 4096;

/// Records the entries.
///
/// # Errors
/// As bpf(2), or if a signal came.
pub(super) fn look(map: BorrowedFd<'_>, info: &sys::MapInfo, record: &mut BpfMap) -> Result<()> {
    if info.key_size == 0 {
        // A queue or a stack, which is empty.
        return Ok(());
    }
    let mut entries = sys::Entries::of(map, info, record.value_bytes())?;
    if matches!(info.kind, kind::ARRAY | kind::PERCPU_ARRAY) {
        // All keys are there.
        for index in 0..info.max_entries {
            pause(index.into())?;
            let key = index.to_ne_bytes();
            let value = entries.value_of(&key).context("read a BPF array")?;
            // A new one is all zeros.
            if value.iter().any(|&byte| byte != 0) {
                record.keys.extend_from_slice(&key);
                record.values.extend_from_slice(value);
            }
        }
        return Ok(());
    }
    let mut count = 0;
    while let Some((key, value)) = entries.next_entry().context("read a BPF map")? {
        pause(count)?;
        count += 1;
        record.keys.extend_from_slice(key);
        record.values.extend_from_slice(value);
    }
    Ok(())
}

/// Looks for signals, now and then.
fn pause(count: u64) -> Result<(), ptrace::Error> {
    if count.is_multiple_of(AT_ONCE) { ptrace::check_interrupted() } else { Ok(()) }
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
