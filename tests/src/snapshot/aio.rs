//! The rings of asynchronous I/O: header and events, as far as they are not read.

use super::{Rule, Snapshot, deputy, read};
use anyhow::Context;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(super) fn add(snapshot: &mut Snapshot, pid: i32) -> crate::Result {
    let proc = format!("/proc/{}", deputy(pid)?);
    let maps = read(&format!("{proc}/maps"))?;
    let rings: Vec<&str> = maps.lines().filter(|line| line.ends_with(" /[aio] (deleted)")).collect();
    if rings.is_empty() {
        return Ok(());
    }
    let memory = File::open(format!("{proc}/mem"))?;
    let lines = rings.into_iter().map(|line| describe(&memory, line)).collect::<crate::Result<_>>()?;
    snapshot.insert(format!("task {pid} AIO rings"), Rule::Equal, lines);
    Ok(())
}

/// Places, head, tail, and what is between them.
fn describe(memory: &File, line: &str) -> crate::Result<String> {
    const HEADER: u64 = 32;
    const EVENT: u64 = 32;
    let start = line.split('-').next().context("an address")?;
    let at = u64::from_str_radix(start, 16)?;
    let mut header = [0u8; 16];
    memory.read_exact_at(&mut header, at)?;
    let word = |at: usize| {
        u64::from(u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
    };
    let [places, head, tail] = [4, 8, 12].map(word);
    let mut described = format!("{start}: {places} places, {head} to {tail}:");
    let mut place = head;
    while place != tail {
        let mut event = [0u8; 32];
        memory.read_exact_at(&mut event, at + HEADER + place % places * EVENT)?;
        described += " ";
        described.extend(event.iter().map(|byte| format!("{byte:02x}")));
        place = (place + 1) % places;
    }
    Ok(described)
}
