//! Named access to the general registers, by the mode of the thread.

use images::thread::Regs;
use images::{Abi, Addr};

/// The fields that both modes have.
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
    /// Code segment: [`CS_64`] for 64-bit code, any other for 32-bit code.
    Cs,
    /// Stack segment.
    Ss,
    /// Data segment.
    Ds,
    /// First to sixth argument of a system call of the mode.
    Arg(usize),
}

/// `__USER_CS`: the only segment of 64-bit code, user_64bit_mode() of arch/x86/include/asm/ptrace.h.
pub const CS_64: u64 = 0x33;
/// `__USER32_CS`.
pub const CS_32: u64 = 0x23;
/// `__USER_DS`, data and stack segment of both modes: all addresses, from 0 on.
pub const USER_DS: u64 = 0x2b;

/// Arguments by index, x86_64: rdi, rsi, rdx, r10, r8, r9.
const ARGS_64: [usize; 6] = [14, 13, 12, 7, 9, 8];
/// Arguments by index, ia32: ebx, ecx, edx, esi, edi, ebp.
const ARGS_32: [usize; 6] = [5, 11, 12, 13, 14, 4];
/// `struct user_regs_struct` of i386 in that of x86_64: ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss.
const NARROW: [usize; 17] = [5, 11, 12, 13, 14, 4, 10, 23, 24, 25, 26, 15, 16, 17, 18, 19, 20];
/// Segment registers in `struct user_regs_struct`: cs, ss, ds, es, fs, gs; and the bases of fs and gs.
const SELECTORS: [(usize, &str); 6] =
    [(17, "cs"), (20, "ss"), (23, "ds"), (24, "es"), (25, "fs"), (26, "gs")];
const BASES: [(usize, &str); 2] = [(21, "fs"), (22, "gs")];

/// The place of a field in `struct user_regs_struct`.
fn index(mode: Abi, field: Field) -> usize {
    match (field, mode) {
        (Field::Ip, _) => 16,
        (Field::Sp, _) => 19,
        (Field::Ax, _) => 10,
        (Field::OrigAx, _) => 15,
        (Field::Flags, _) => 18,
        (Field::Cs, _) => 17,
        (Field::Ss, _) => 20,
        (Field::Ds, _) => 23,
        (Field::Arg(n), Abi::X86_64) => ARGS_64[n],
        (Field::Arg(n), Abi::Ia32) => ARGS_32[n],
    }
}

/// Reads a field; in 32-bit code its low half.
#[must_use]
pub fn get(regs: &Regs, field: Field) -> u64 {
    let mode = mode(regs);
    let value = regs.0[index(mode, field)];
    match mode {
        Abi::X86_64 => value,
        Abi::Ia32 => u64::from(low_half(value)),
    }
}

/// Reads a field as a signed number: the system call number and its result.
#[must_use]
pub fn get_signed(regs: &Regs, field: Field) -> i64 {
    let value = get(regs, field);
    match mode(regs) {
        Abi::X86_64 => i64::from_ne_bytes(value.to_ne_bytes()),
        Abi::Ia32 => i64::from(i32::from_ne_bytes(low_half(value).to_ne_bytes())),
    }
}

/// Sets a field, whole. Negative results of 32-bit calls are sign-extended, as the kernel has them.
pub fn set(regs: &mut Regs, field: Field, value: u64) {
    let mode = mode(regs);
    regs.0[index(mode, field)] = value;
}

/// An argument of a system call of `table`, which need not be that of the mode: `int 0x80` works in 64-bit code too.
#[must_use]
pub fn argument(regs: &Regs, table: Abi, n: usize) -> u64 {
    let value = regs.0[index(table, Field::Arg(n))];
    if table == Abi::Ia32 { u64::from(low_half(value)) } else { value }
}

/// Leads to code of an ABI: its code segment, and the stack segment that goes with it.
pub fn enter(regs: &mut Regs, abi: Abi) {
    let cs = match abi {
        Abi::X86_64 => CS_64,
        Abi::Ia32 => CS_32,
    };
    set(regs, Field::Cs, cs);
    set(regs, Field::Ss, USER_DS);
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

/// Stack pointer: an address only where the stack segment begins at 0, see [`has_flat_stack`].
#[must_use]
pub fn sp(regs: &Regs) -> Addr {
    Addr(get(regs, Field::Sp))
}

/// The mode of the thread: which code it stands in, whatever the ABI of its task.
#[must_use]
pub fn mode(regs: &Regs) -> Abi {
    if regs.0[17] == CS_64 { Abi::X86_64 } else { Abi::Ia32 }
}

/// Whether the stack pointer is the address of the stack. 64-bit code has no other way.
#[must_use]
pub fn has_flat_stack(regs: &Regs) -> bool {
    mode(regs) == Abi::X86_64 || get(regs, Field::Ss) == USER_DS
}

/// Whether 32-bit code finds all memory through the segments of code, stack and data.
#[must_use]
pub fn is_flat_32(regs: &Regs) -> bool {
    get(regs, Field::Cs) == CS_32 && get(regs, Field::Ss) == USER_DS && get(regs, Field::Ds) == USER_DS
}

/// What ptrace does not set, though a program can load it: selectors of another privilege level than 3
/// (invalid_selector() of arch/x86/kernel/ptrace.c), and segment bases outside of user space. The name of the register, and
/// what it holds.
#[must_use]
pub fn not_settable(regs: &Regs) -> Option<(&'static str, u64)> {
    const PRIVILEGE: u64 = 3;
    /// TASK_SIZE_MAX with five levels of page tables, the larger one.
    const USER_SPACE: u64 = (1 << 56) - 4096;
    let foreign = |place: usize, selector: u64| {
        let null = selector == 0;
        let needed = place == 17 || place == 20;
        if null { needed } else { selector & PRIVILEGE != PRIVILEGE || selector > u64::from(u16::MAX) }
    };
    let selector = SELECTORS.into_iter().find(|&(place, _)| foreign(place, regs.0[place]));
    let base = BASES.into_iter().find(|&(place, _)| regs.0[place] >= USER_SPACE);
    selector.or(base).map(|(place, name)| (name, regs.0[place]))
}

/// `struct user_regs_struct` of i386, as words.
#[must_use]
pub fn narrow(regs: &Regs) -> [u32; 17] {
    NARROW.map(|place| low_half(regs.0[place]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Registers of a thread in ordinary code of a mode, all else 0.
    pub(crate) fn in_mode(mode: Abi) -> Regs {
        let mut regs = Regs([0; 27]);
        enter(&mut regs, mode);
        regs
    }

    #[test]
    fn the_mode_follows_from_the_code_segment() {
        for abi in [Abi::X86_64, Abi::Ia32] {
            assert_eq!(mode(&in_mode(abi)), abi);
        }
        let mut in_ldt = in_mode(Abi::Ia32);
        set(&mut in_ldt, Field::Cs, 7);
        assert_eq!(mode(&in_ldt), Abi::Ia32);
        assert!(!is_flat_32(&in_ldt) && has_flat_stack(&in_ldt));
    }

    #[test]
    fn fields_are_narrow_in_32_bit_mode() {
        let mut regs = in_mode(Abi::Ia32);
        set(&mut regs, Field::Ax, u64::MAX - 511);
        assert_eq!(get(&regs, Field::Ax), 0xffff_fe00);
        assert_eq!(get_signed(&regs, Field::Ax), -512);
        set(&mut regs, Field::Arg(0), 0x1_0000_0005);
        assert_eq!((get(&regs, Field::Arg(0)), regs.0[5], narrow(&regs)[0]), (5, 0x1_0000_0005, 5));
    }

    #[test]
    fn arguments_lie_where_the_table_of_the_call_has_them() {
        let mut regs = in_mode(Abi::X86_64);
        (regs.0[14], regs.0[5]) = (64, 0xf_0000_0020);
        assert_eq!((argument(&regs, Abi::X86_64, 0), argument(&regs, Abi::Ia32, 0)), (64, 0x20));
    }

    #[test]
    fn what_ptrace_rejects_is_known_before() {
        let mut regs = in_mode(Abi::Ia32);
        assert_eq!(not_settable(&regs), None);
        set(&mut regs, Field::Ds, 0x28);
        assert_eq!(not_settable(&regs), Some(("ds", 0x28)));
        set(&mut regs, Field::Ds, 0);
        assert_eq!(not_settable(&regs), None);
        regs.0[22] = 0xffff_8000_0000_0000;
        assert_eq!(not_settable(&regs), Some(("gs", 0xffff_8000_0000_0000)));
        set(&mut regs, Field::Ss, 0);
        assert_eq!(not_settable(&regs), Some(("ss", 0)));
    }
}
