//! Named access to the general registers of either mode.

use images::thread::Regs;
use images::{Abi, Addr};

/// The fields that both modes have; numbers are indexes into `struct user_regs_struct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Instruction pointer.
    Ip,
    /// Stack pointer.
    Sp,
    /// Result of a system call.
    Ax,
    /// Number of the system call that the thread is in; -1 outside.
    OrigAx,
    /// Processor flags.
    Flags,
    /// Code segment: 0x23 for 32-bit code, 0x33 for 64-bit code.
    Cs,
    /// Stack segment.
    Ss,
    /// First to sixth argument of a system call.
    Arg(usize),
}

/// Arguments by index, x86_64: rdi, rsi, rdx, r10, r8, r9.
const ARGS_64: [usize; 6] = [14, 13, 12, 7, 9, 8];
/// Arguments by index, ia32: ebx, ecx, edx, esi, edi, ebp.
const ARGS_32: [usize; 6] = [0, 1, 2, 3, 4, 5];

fn index_64(field: Field) -> usize {
    match field {
        Field::Ip => 16,
        Field::Sp => 19,
        Field::Ax => 10,
        Field::OrigAx => 15,
        Field::Flags => 18,
        Field::Cs => 17,
        Field::Ss => 20,
        Field::Arg(n) => ARGS_64[n],
    }
}

fn index_32(field: Field) -> usize {
    match field {
        Field::Ip => 12,
        Field::Sp => 15,
        Field::Ax => 6,
        Field::OrigAx => 11,
        Field::Flags => 14,
        Field::Cs => 13,
        Field::Ss => 16,
        Field::Arg(n) => ARGS_32[n],
    }
}

/// Reads a field; 32-bit values are zero-extended.
#[must_use]
pub fn get(regs: &Regs, field: Field) -> u64 {
    match regs {
        Regs::X86_64(all) => all[index_64(field)],
        Regs::Ia32(all) => u64::from(all[index_32(field)]),
    }
}

/// Reads a field as a signed number: the system call number and its result.
#[must_use]
pub fn get_signed(regs: &Regs, field: Field) -> i64 {
    match regs {
        Regs::X86_64(all) => i64::from_ne_bytes(all[index_64(field)].to_ne_bytes()),
        Regs::Ia32(all) => i64::from(i32::from_ne_bytes(all[index_32(field)].to_ne_bytes())),
    }
}

/// Sets a field; a 32-bit register takes the low half.
pub fn set(regs: &mut Regs, field: Field, value: u64) {
    match regs {
        Regs::X86_64(all) => all[index_64(field)] = value,
        Regs::Ia32(all) => all[index_32(field)] = low_half(value),
    }
}

/// The low 32 bits.
#[must_use]
pub fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Instruction pointer.
#[must_use]
pub fn ip(regs: &Regs) -> Addr {
    Addr(get(regs, Field::Ip))
}

/// Stack pointer.
#[must_use]
pub fn sp(regs: &Regs) -> Addr {
    Addr(get(regs, Field::Sp))
}

/// The mode of the thread: which code it stands in, whatever the ABI of its task.
#[must_use]
pub fn mode(regs: &Regs) -> Abi {
    match regs {
        Regs::X86_64(_) => Abi::X86_64,
        Regs::Ia32(_) => Abi::Ia32,
    }
}

/// Registers from the bytes of NT_PRSTATUS: 68 in 32-bit mode, 216 in 64-bit mode, nothing else.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Option<Regs> {
    match bytes.len() {
        68 => {
            let mut all = [0u32; 17];
            for (word, bytes) in all.iter_mut().zip(bytes.chunks_exact(4)) {
                *word = u32::from_le_bytes(bytes.try_into().ok()?);
            }
            Some(Regs::Ia32(all))
        }
        216 => {
            let mut all = [0u64; 27];
            for (word, bytes) in all.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().ok()?);
            }
            Some(Regs::X86_64(all))
        }
        _ => None,
    }
}

/// The bytes of NT_PRSTATUS.
#[must_use]
pub fn to_bytes(regs: &Regs) -> Vec<u8> {
    match regs {
        Regs::X86_64(all) => all.iter().flat_map(|word| word.to_le_bytes()).collect(),
        Regs::Ia32(all) => all.iter().flat_map(|word| word.to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_in_both_modes() {
        let wide = Regs::X86_64(std::array::from_fn(|i| i as u64 * 0x0101_0101_0101));
        assert_eq!(from_bytes(&to_bytes(&wide)), Some(wide));
        let narrow = Regs::Ia32(std::array::from_fn(|i| u32::try_from(i).unwrap() * 0x0101));
        assert_eq!(from_bytes(&to_bytes(&narrow)), Some(narrow));
        assert_eq!(from_bytes(&[0; 100]), None);
    }

    #[test]
    fn signed_fields_extend_in_32_bit_mode() {
        let mut regs = Regs::Ia32([0; 17]);
        set(&mut regs, Field::Ax, u64::MAX - 511);
        assert_eq!(get(&regs, Field::Ax), 0xffff_fe00);
        assert_eq!(get_signed(&regs, Field::Ax), -512);
    }
}
