//! Classic BPF as seccomp runs it: what would a filter say to a call?
//!
//! The instructions are those that seccomp_check_filter() of kernel/seccomp.c lets in; filter.txt of the kernel's documentation
//! describes them. A program from the kernel has been checked there: it ends, and stays inside of its data and its memory. One that does not
//! answers nothing here.

use images::seccomp::INSTRUCTION;

/// `struct seccomp_data`, include/uapi/linux/seccomp.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) number: u32,
    /// AUDIT_ARCH_*.
    pub(super) arch: u32,
    /// The address after the instruction that makes the call.
    pub(super) instruction: u64,
    pub(super) args: [u64; 6],
}

impl Call {
    /// Bytes of the structure.
    const SIZE: u32 = 64;

    fn word(&self, offset: u32) -> Option<u32> {
        let half =
            |value: u64, high: bool| u32::try_from(if high { value >> 32 } else { value & 0xffff_ffff }).ok();
        match (offset, offset % 4) {
            (_, 1..) => None,
            (0, _) => Some(self.number),
            (4, _) => Some(self.arch),
            (8 | 12, _) => half(self.instruction, offset == 12),
            _ => half(*self.args.get(usize::try_from((offset - 16) / 8).ok()?)?, offset % 8 == 4),
        }
    }
}

/// What a program answers: SECCOMP_RET_*, with its data.
pub(super) fn answer(program: &[u8], call: &Call) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    loop {
        let instruction = program.get(at * INSTRUCTION..(at + 1) * INSTRUCTION)?;
        let [code, code_high, jump_true, jump_false, k @ ..] = instruction else { return None };
        let code = u16::from_le_bytes([*code, *code_high]);
        let k = u32::from_le_bytes(k.try_into().ok()?);
        let cell = usize::try_from(k).ok();
        at += 1;
        match code {
            // BPF_LD and BPF_LDX: a word of the data, its length, a constant, a cell of the memory.
            0x20 => a = call.word(k)?,
            0x80 => a = Call::SIZE,
            0x81 => x = Call::SIZE,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = *memory.get(cell?)?,
            0x61 => x = *memory.get(cell?)?,
            // BPF_ST and BPF_STX.
            0x02 => *memory.get_mut(cell?)? = a,
            0x03 => *memory.get_mut(cell?)? = x,
            // BPF_MISC: TAX and TXA.
            0x07 => x = a,
            0x87 => a = x,
            // BPF_RET: a constant, the accumulator.
            0x06 => return Some(k),
            0x16 => return Some(a),
            // BPF_JMP.
            0x05 => at += cell?,
            _ if code & 7 == 5 => {
                let taken = compare(code, a, if code & 8 == 0 { k } else { x })?;
                at += usize::from(if taken { *jump_true } else { *jump_false });
            }
            // BPF_ALU; division by zero ends a program with 0.
            _ if code & 7 == 4 => match compute(code, a, if code & 8 == 0 { k } else { x })? {
                Some(value) => a = value,
                None => return Some(0),
            },
            _ => return None,
        }
    }
}

fn compare(code: u16, a: u32, b: u32) -> Option<bool> {
    Some(match code & 0xf0 {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        _ => return None,
    })
}

fn compute(code: u16, a: u32, b: u32) -> Option<Option<u32>> {
    Some(match code & 0xf0 {
        0x00 => Some(a.wrapping_add(b)),
        0x10 => Some(a.wrapping_sub(b)),
        0x20 => Some(a.wrapping_mul(b)),
        0x30 => a.checked_div(b),
        0x40 => Some(a | b),
        0x50 => Some(a & b),
        0x60 => Some(a.wrapping_shl(b)),
        0x70 => Some(a.wrapping_shr(b)),
        0x80 => Some(a.wrapping_neg()),
        0xa0 => Some(a ^ b),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call = Call {
        number: 9,
        arch: 0xc000_003e,
        instruction: 0x1111_2222_3333_4444,
        args: [0x5555_6666_7777_8888, 2, 3, 4, 5, 0x9999_aaaa_bbbb_cccc],
    };

    fn run(instructions: &[(u16, u8, u8, u32)]) -> Option<u32> {
        let encode = |&(code, yes, no, k): &(u16, u8, u8, u32)| {
            [&code.to_le_bytes()[..], &[yes, no], &k.to_le_bytes()].concat()
        };
        answer(&instructions.iter().flat_map(encode).collect::<Vec<u8>>(), &CALL)
    }

    #[test]
    fn every_word_of_the_data_is_found() {
        let words = [
            (0, 9),
            (4, 0xc000_003e),
            (8, 0x3333_4444),
            (12, 0x1111_2222),
            (16, 0x7777_8888),
            (20, 0x5555_6666),
            (24, 2),
            (56, 0xbbbb_cccc),
            (60, 0x9999_aaaa),
        ];
        for (offset, word) in words {
            assert_eq!(run(&[(0x20, 0, 0, offset), (0x16, 0, 0, 0)]), Some(word), "{offset}");
        }
        for offset in [2, 64, u32::MAX] {
            assert_eq!(run(&[(0x20, 0, 0, offset), (0x16, 0, 0, 0)]), None, "{offset}");
        }
    }

    #[test]
    fn jumps_skip_as_many_instructions_as_they_say() {
        for (code, k, taken) in [
            (0x15, 9, true),
            (0x15, 8, false),
            (0x25, 8, true),
            (0x25, 9, false),
            (0x35, 9, true),
            (0x35, 10, false),
            (0x45, 1, true),
            (0x45, 2, false),
        ] {
            let jump = [(0x20, 0, 0, 0), (code, 1, 0, k), (0x06, 0, 0, 1), (0x06, 0, 0, 2)];
            assert_eq!(run(&jump), Some(if taken { 2 } else { 1 }), "{code:#x} {k}");
        }
        assert_eq!(run(&[(0x05, 0, 0, 1), (0x06, 0, 0, 1), (0x06, 0, 0, 2)]), Some(2));
        let by_register =
            [(0x01, 0, 0, 9), (0x20, 0, 0, 0), (0x1d, 0, 1, 0), (0x06, 0, 0, 1), (0x06, 0, 0, 2)];
        assert_eq!(run(&by_register), Some(1));
    }

    #[test]
    fn arithmetic_is_that_of_32_bits() {
        for (code, k, result) in [
            (0x04, u32::MAX, 8),
            (0x14, 10, u32::MAX),
            (0x24, 0x8000_0000, 0x8000_0000),
            (0x34, 2, 4),
            (0x44, 6, 15),
            (0x54, 3, 1),
            (0x64, 4, 144),
            (0x74, 1, 4),
            (0x84, 0, 9u32.wrapping_neg()),
            (0xa4, 1, 8),
        ] {
            assert_eq!(run(&[(0x00, 0, 0, 9), (code, 0, 0, k), (0x16, 0, 0, 0)]), Some(result), "{code:#x}");
        }
        assert_eq!(
            run(&[(0x00, 0, 0, 9), (0x3c, 0, 0, 0), (0x06, 0, 0, 7)]),
            Some(0),
            "division by X, which is 0"
        );
    }

    #[test]
    fn memory_and_registers_keep_what_they_are_given() {
        let program = [
            (0x00, 0, 0, 5),
            (0x02, 0, 0, 15),
            (0x80, 0, 0, 0),
            (0x07, 0, 0, 0),
            (0x03, 0, 0, 3),
            (0x60, 0, 0, 15),
            (0x61, 0, 0, 3),
            (0x0c, 0, 0, 0),
            (0x16, 0, 0, 0),
        ];
        assert_eq!(run(&program), Some(69));
        assert_eq!(run(&[(0x60, 0, 0, 16), (0x16, 0, 0, 0)]), None);
    }

    #[test]
    fn what_is_no_program_answers_nothing() {
        assert_eq!(run(&[]), None);
        assert_eq!(run(&[(0x00, 0, 0, 1)]), None, "no end");
        assert_eq!(run(&[(0xffff, 0, 0, 1)]), None, "no instruction");
    }
}
