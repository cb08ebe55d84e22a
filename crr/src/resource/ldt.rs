//! The local descriptor table of a task: all segments that modify_ldt(2) gave it, which its threads share.
//!
//! Nothing shows it from outside. The restore is `shared::plan::ldt`.

use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Batch, Call, Executor, Handle, Reply};
use anyhow::{Context, Result, bail};
use images::thread::UserDesc;

/// LDT_ENTRIES and LDT_ENTRY_SIZE, arch/x86/include/uapi/asm/ldt.h.
const ENTRIES: usize = 8192;
const ENTRY_SIZE: usize = 8;
/// Function of modify_ldt.
const READ: u64 = 0;

/// The part of a batch that asks whether there is a table.
#[derive(Debug)]
pub(crate) struct AskLdt(Handle);

impl AskLdt {
    pub(crate) fn new(batch: &mut Batch) -> Self {
        let first = batch.buffer(ENTRY_SIZE);
        Self(batch.call(Call::ModifyLdt, &[Arg::Value(READ), Arg::Out(first), Arg::Value(ENTRY_SIZE as u64)]))
    }

    /// read_ldt() of arch/x86/kernel/ldt.c answers 0 where there is none, and an error where the kernel has no LDTs.
    fn is_present(&self, reply: &Reply) -> bool {
        reply.value(self.0) == ENTRY_SIZE as u64
    }

    /// The table, by a batch of its own if there is one.
    pub(crate) fn dump(
        &self,
        reply: &Reply,
        executor: &Executor,
        thread: &mut Stopped,
        patience: &Patience,
    ) -> Result<Vec<UserDesc>> {
        if !self.is_present(reply) {
            return Ok(Vec::new());
        }
        let len = ENTRIES * ENTRY_SIZE;
        let mut batch = executor.batch(thread)?;
        let all = batch.buffer(len);
        let read = batch.call(Call::ModifyLdt, &[Arg::Value(READ), Arg::Out(all), Arg::Value(len as u64)]);
        let reply = executor.run(thread, &batch, patience).context("read the LDT")?;
        // What the table has no entries for is filled with zeros.
        if reply.value(read) != len as u64 {
            bail!("read the LDT: modify_ldt answers {:#x}", reply.value(read));
        }
        Ok(decode(reply.bytes(all)))
    }
}

/// The entries in use. A table without any is still told from none, so its first, empty one is named.
fn decode(table: &[u8]) -> Vec<UserDesc> {
    let mut entries: Vec<UserDesc> = (0u32..)
        .zip(table.as_chunks::<ENTRY_SIZE>().0)
        .map(|(entry, descriptor)| (entry, u64::from_le_bytes(*descriptor)))
        .filter(|(_, descriptor)| *descriptor != 0)
        .map(|(entry, descriptor)| user_desc(entry, descriptor))
        .collect();
    if entries.is_empty() {
        entries.push(UserDesc { entry: 0, base: 0, limit: 0, flags: UserDesc::EMPTY });
    }
    entries
}

/// What modify_ldt was given to make a descriptor: the inverse of fill_ldt() of arch/x86/include/asm/desc.h.
fn user_desc(entry: u32, descriptor: u64) -> UserDesc {
    let bits = |from: u32, count: u32| {
        crate::ptrace::regs::low_half(descriptor >> from) & u32::MAX.checked_shr(32 - count).unwrap_or(0)
    };
    let (writable_or_readable, contents, present) = (bits(41, 1), bits(42, 2), bits(47, 1));
    let (useable, in_32_bits, in_pages) = (bits(52, 1), bits(54, 1), bits(55, 1));
    UserDesc {
        entry,
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: bits(0, 16) | bits(48, 4) << 16,
        flags: in_32_bits
            | contents << 1
            | (writable_or_readable ^ 1) << 3
            | in_pages << 4
            | (present ^ 1) << 5
            | useable << 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the processor manuals call a flat, writable, accessed 32-bit data segment of privilege level 3.
    #[test]
    fn descriptors_become_what_made_them() {
        let flat = user_desc(5, 0x00cf_f300_0000_ffff);
        assert_eq!(flat, UserDesc { entry: 5, base: 0, limit: 0xf_ffff, flags: 0b001_0001 });
        let small_code = user_desc(6, 0x1210_fb34_5678_9abc);
        assert_eq!(small_code, UserDesc { entry: 6, base: 0x1234_5678, limit: 0x9abc, flags: 0b100_0100 });
        let absent_read_only = user_desc(7, 0x0040_7100_0000_0fff);
        assert_eq!(absent_read_only, UserDesc { entry: 7, base: 0, limit: 0xfff, flags: 0b010_1001 });
    }

    #[test]
    fn empty_entries_are_left_out() {
        let mut table = vec![0u8; 64];
        assert_eq!(decode(&table), [UserDesc { entry: 0, base: 0, limit: 0, flags: 0x28 }]);
        table[24..32].copy_from_slice(&0x00cf_f300_0000_ffff_u64.to_le_bytes());
        assert_eq!(decode(&table).iter().map(|entry| entry.entry).collect::<Vec<_>>(), [3]);
    }
}
