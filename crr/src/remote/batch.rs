//! A list of system calls for one run of the executor, and its answers.

use super::calls::Call;
use super::code::{END, ENTRY_WORDS, MAX_CALLS, layout, pushed};
use crate::ptrace::regs::low_half;
use images::{Abi, Addr};
use std::ops::Range;

/// An argument of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A plain value.
    Value(u64),
    /// The address of a buffer of this batch.
    Out(Buffer),
}

impl Arg {
    /// Bytes of its buffer, if it is one.
    pub(super) fn room(self) -> usize {
        match self {
            Self::Value(_) => 0,
            Self::Out(buffer) => buffer.range().len(),
        }
    }
}

/// Room for what a call writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    offset: usize,
    len: usize,
}

impl Buffer {
    /// Where it lies in an area.
    pub(super) fn place(self, area: Addr) -> Addr {
        area.offset(layout::BUFFERS + self.offset as u64)
    }

    /// Where it lies among all buffers of the batch, with what aligns the next one.
    pub(super) fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len.next_multiple_of(8)
    }
}

/// A call of a batch, to ask for its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(usize);

/// Calls to be made in one go.
#[derive(Clone, Debug)]
pub struct Batch {
    abi: Abi,
    calls: Vec<(Call, [Arg; 6])>,
    /// What the buffers hold when the calls begin.
    buffers: Vec<u8>,
}

/// Bytes of all buffers of a batch at most.
pub(super) const MAX_BUFFERS: usize = 0x1_1c00;
const _: () = assert!(layout::BUFFERS + MAX_BUFFERS as u64 == layout::SIZE);
/// Calls that every run adds at the end.
const CLOSING: usize = 1;

impl Batch {
    /// Calls that one batch takes.
    pub const ROOM: usize = MAX_CALLS - CLOSING;

    /// An empty one for tasks of an ABI.
    #[must_use]
    pub fn new(abi: Abi) -> Self {
        Self { abi, calls: Vec::new(), buffers: Vec::new() }
    }

    /// The ABI whose calls these are.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// Adds room for `len` bytes, aligned to 8.
    ///
    /// # Panics
    /// When all buffers together exceed 71 KiB: batches are fixed in the source.
    pub fn buffer(&mut self, len: usize) -> Buffer {
        let offset = self.buffers.len();
        self.buffers.resize(offset + len.next_multiple_of(8), 0);
        assert!(self.buffers.len() <= MAX_BUFFERS, "buffers of one batch fit their place");
        Buffer { offset, len }
    }

    /// Adds a buffer with something in it, for a call to read.
    ///
    /// # Panics
    /// As [`Self::buffer`].
    pub fn data(&mut self, bytes: &[u8]) -> Buffer {
        let buffer = self.buffer(bytes.len());
        self.buffers[buffer.offset..buffer.offset + bytes.len()].copy_from_slice(bytes);
        buffer
    }

    /// What the buffers hold when the calls begin.
    pub(super) fn buffers(&self) -> &[u8] {
        &self.buffers
    }

    /// Adds a call; missing arguments are 0.
    ///
    /// # Panics
    /// When there are too many calls or arguments: batches are fixed in the source.
    pub fn call(&mut self, call: Call, args: &[Arg]) -> Handle {
        assert!(self.calls.len() + CLOSING < MAX_CALLS, "calls of one batch fit the table");
        let mut all = [Arg::Value(0); 6];
        all[..args.len()].copy_from_slice(args);
        self.calls.push((call, all));
        Handle(self.calls.len() - 1)
    }

    /// The table for an area, `last` being the call that tells the tracer. Also returns where the stack pointer
    /// stands in that call.
    pub(super) fn table(&self, area: Addr, last: (Call, [u64; 3])) -> (Vec<u8>, Addr) {
        let value = |arg| match arg {
            Arg::Value(value) => value,
            Arg::Out(buffer) => buffer.place(area).0,
        };
        let mut out = Vec::with_capacity((self.calls.len() + 2) * 64);
        for &(call, args) in &self.calls {
            entry(self.abi, &mut out, call, args.map(value));
        }
        let [a, b, c] = last.1;
        entry(self.abi, &mut out, last.0, [a, b, c, 0, 0, 0]);
        let result = layout::TABLE + out.len() as u64 - self.abi.word();
        let done = area.offset(result - pushed(self.abi));
        word(self.abi, &mut out, END);
        (out, done)
    }

    /// The calls one by one.
    pub(super) fn calls(&self) -> &[(Call, [Arg; 6])] {
        &self.calls
    }

    /// Bytes that the buffers of any one call take.
    pub(super) fn largest(&self) -> u64 {
        let room = |(_, args): &(Call, [Arg; 6])| args.iter().map(|arg| arg.room()).sum::<usize>();
        self.calls.iter().map(room).max().unwrap_or(0) as u64
    }

    /// Bytes of the table that hold results, and bytes of buffers that hold answers.
    pub(super) fn answer_sizes(&self) -> (usize, usize) {
        let entry = usize::try_from(self.abi.word() * ENTRY_WORDS).unwrap_or(0);
        (self.calls.len() * entry, self.buffers.len())
    }
}

/// Adds a call to a table.
pub(super) fn entry(abi: Abi, out: &mut Vec<u8>, call: Call, args: [u64; 6]) {
    word(abi, out, call.number(abi));
    for arg in args {
        word(abi, out, arg);
    }
    word(abi, out, 0);
}

/// Adds a word to a table.
pub(super) fn word(abi: Abi, out: &mut Vec<u8>, value: u64) {
    match abi {
        Abi::X86_64 => out.extend(value.to_le_bytes()),
        Abi::Ia32 => out.extend(low_half(value).to_le_bytes()),
    }
}

/// The result register of a system call: a value, or an error between -4095 and -1.
pub(super) fn decode_result(abi: Abi, value: u64) -> nix::Result<u64> {
    const MAX_ERRNO: u64 = 4095;
    let negated = match abi {
        Abi::X86_64 => value.wrapping_neg(),
        Abi::Ia32 => u64::from(low_half(value).wrapping_neg()),
    };
    if (1..=MAX_ERRNO).contains(&negated) {
        return Err(nix::errno::Errno::from_raw(i32::try_from(negated).unwrap_or(0)));
    }
    Ok(value)
}

/// What the calls of a batch answered.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) abi: Abi,
    pub(super) table: Vec<u8>,
    pub(super) buffers: Vec<u8>,
}

impl Reply {
    /// Nothing answered yet.
    pub(super) fn empty(batch: &Batch) -> Self {
        Self { abi: batch.abi, table: vec![0; batch.answer_sizes().0], buffers: batch.buffers.clone() }
    }

    /// Where the result of a call lies in the table.
    fn slot(&self, index: usize) -> Range<usize> {
        let word = usize::try_from(self.abi.word()).unwrap_or(8);
        let entry = word * usize::try_from(ENTRY_WORDS).unwrap_or(8);
        (index + 1) * entry - word..(index + 1) * entry
    }

    /// Notes the result of the call with this index.
    pub(super) fn set_result(&mut self, index: usize, value: u64) {
        let slot = self.slot(index);
        let len = slot.len();
        self.table[slot].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// The ABI whose layouts the buffers are in.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// The result as an address or size; 32 bits are zero-extended.
    #[must_use]
    pub fn value(&self, handle: Handle) -> u64 {
        let slot = self.slot(handle.0);
        let mut bytes = [0u8; 8];
        bytes[..slot.len()].copy_from_slice(&self.table[slot]);
        u64::from_le_bytes(bytes)
    }

    /// The result: not negative, or the error.
    ///
    /// # Errors
    /// What the call failed with.
    pub fn result(&self, handle: Handle) -> nix::Result<u64> {
        decode_result(self.abi, self.value(handle))
    }

    /// What was written to a buffer.
    #[must_use]
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        &self.buffers[buffer.offset..buffer.offset + buffer.len]
    }

    /// A 32-bit word of a buffer.
    #[must_use]
    pub fn u32(&self, buffer: Buffer, at: usize) -> u32 {
        let mut bytes = [0u8; 4];
        bytes.copy_from_slice(&self.bytes(buffer)[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    /// A 64-bit word of a buffer.
    #[must_use]
    pub fn u64(&self, buffer: Buffer, at: usize) -> u64 {
        u64::from(self.u32(buffer, at)) | u64::from(self.u32(buffer, at + 4)) << 32
    }

    /// A word of the task's ABI, by index, zero-extended.
    #[must_use]
    pub fn word(&self, buffer: Buffer, index: usize) -> u64 {
        match self.abi {
            Abi::X86_64 => self.u64(buffer, index * 8),
            Abi::Ia32 => u64::from(self.u32(buffer, index * 4)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_told_from_errors_in_both_abis() {
        for (abi, error) in [(Abi::X86_64, -22i64), (Abi::Ia32, 0xffff_ffea)] {
            let mut batch = Batch::new(abi);
            let first = batch.call(Call::Brk, &[]);
            let second = batch.call(Call::Prctl, &[Arg::Value(3)]);
            let (mut table, _) = batch.table(Addr(0x1000), (Call::SchedYield, [0; 3]));
            let word = usize::try_from(abi.word()).unwrap();
            table[7 * word..8 * word].copy_from_slice(&0xf000_0000u64.to_le_bytes()[..word]);
            table[15 * word..16 * word].copy_from_slice(&error.to_le_bytes()[..word]);
            let reply = Reply { abi, table, buffers: Vec::new() };
            assert_eq!(reply.result(first), Ok(0xf000_0000));
            assert_eq!(reply.result(second), Err(nix::errno::Errno::EINVAL));
        }
    }

    #[test]
    fn the_table_holds_calls_then_the_end() {
        let mut batch = Batch::new(Abi::Ia32);
        let buffer = batch.buffer(16);
        batch.call(Call::Sigaltstack, &[Arg::Value(0), Arg::Out(buffer)]);
        let (table, done) = batch.table(Addr(0x1_0000), (Call::Tgkill, [1, 2, 3]));
        let words: Vec<u32> =
            table.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words[..4], [186, 0, 0x2_1400, 0]);
        assert_eq!(words[8..12], [270, 1, 2, 3]);
        assert_eq!(words[16..], [u32::MAX]);
        assert_eq!(done, Addr(0x1_0000 + layout::TABLE + 15 * 4 - 16));
    }
}
