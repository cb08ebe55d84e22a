//! A note that crr leaves with a thread whose wait it lets go on, for the dump after.
//!
//! The kernel keeps for every thread what PTRACE_POKEUSER last wrote to debug register 6 (`virtual_dr6` of
//! arch/x86/kernel/ptrace.c): 64 bits that only a tracer sees, that have no effect, and that stay until the next debug
//! exception. A note is believed only if the thread has slept exactly once since: in the call that the note is about.

/// What the note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Which call it is, by `call::kind`.
    pub(super) kind: u8,
    /// When it ends, nanoseconds of CLOCK_MONOTONIC; kept in milliseconds, rounded up.
    pub(super) ends: Option<u64>,
    /// Voluntary context switches of the thread before it was let go; the low bits are kept.
    pub(super) switches: u64,
}

const MILLISECOND: u64 = 1_000_000;
const SWITCH_BITS: u32 = 18;
const END_BITS: u32 = 36;
const NO_END: u64 = (1 << END_BITS) - 1;
const SWITCHES: u64 = (1 << SWITCH_BITS) - 1;

impl Note {
    /// Bits 4 to 6 the kind, 7 to 12 and 52 to 63 the switches, 16 to 51 the end. The others, by which a debugger tells
    /// why a thread stopped, are 0.
    pub(super) fn encode(self) -> u64 {
        let end = self.ends.map_or(NO_END, |ends| ends.div_ceil(MILLISECOND).min(NO_END));
        let switches = self.switches & SWITCHES;
        u64::from(self.kind) << 4 | (switches & 0x3f) << 7 | end << 16 | (switches >> 6) << 52
    }

    /// `None` for what the register holds otherwise.
    pub(super) fn decode(word: u64) -> Option<Self> {
        const OTHER_BITS: u64 = 0xe00f;
        /// All reserved bits are set (DR6_RESERVED), as in a register that was never written: kind 7.
        const NO_KIND: u8 = 7;
        let [low, ..] = word.to_le_bytes();
        let kind = low >> 4 & 7;
        if kind == 0 || kind == NO_KIND || word & OTHER_BITS != 0 {
            return None;
        }
        let end = word >> 16 & NO_END;
        let ends = (end != NO_END).then_some(end * MILLISECOND);
        Some(Self { kind, ends, switches: word >> 7 & 0x3f | (word >> 52) << 6 })
    }

    /// Whether it is about the sleep of a thread with so many switches.
    pub(super) fn is_of(self, switches: u64) -> bool {
        (self.switches + 1) & SWITCHES == switches & SWITCHES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_round_trip() {
        for (ends, read) in [(None, None), (Some(1_234_000_001), Some(1_235_000_000)), (Some(u64::MAX), None)]
        {
            let note = Note { kind: 6, ends, switches: 0x2_3456 };
            assert_eq!(Note::decode(note.encode()), Some(Note { ends: read, ..note }));
            assert!(note.is_of(0x2_3457) && !note.is_of(0x2_3458));
        }
    }

    #[test]
    fn a_register_never_written_is_no_note() {
        assert_eq!(Note::decode(0xffff_0ff0), None);
        assert_eq!(Note::decode(0), None);
        // A single-step trap.
        assert_eq!(Note::decode(0xffff_4ff0), None);
    }
}
