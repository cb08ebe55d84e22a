//! The code that runs in the task: a loop over a table of system calls, and the way back without us.
//!
//! In both ABIs the stack pointer walks the table: each entry is {number, six arguments, result}, popped into the
//! registers of the call, the result stored over its slot. ia32 code makes its calls through a pointer, to `__kernel_vsyscall` of the
//! vDSO or, where that is not known, to code behind its own that does the same by `int 0x80`. The last call tells the tracer that the table
//! is done; the number -1 after it leads to the way out, which no traced thread ever reaches: it puts the signal mask and
//! all registers back by plain loads and jumps to where the thread was. So if crr is killed at any moment
//! the task goes on. (rt_sigreturn would be shorter, but it resets the restart block of an interrupted system call.)

use super::calls::Call;
use crate::ptrace::regs::{self, Field};
use images::thread::Regs;
use images::{Abi, Addr};

/// Offsets in the executor's area. Below the table lies room for the stack of a handler, should a signal
/// come in the moment between our death and the call that blocks it.
pub(super) mod layout {
    /// Size of the area: an odd one, by which it is known again ([`super::super::leftover`]).
    pub(crate) const SIZE: u64 = 0x2_3000;
    /// What is written and read by us begins here; everything below stays untouched.
    pub(crate) const USED: u64 = 0xf000;
    /// The table.
    pub(crate) const TABLE: u64 = USED;
    /// The code.
    pub(crate) const CODE: u64 = 0x1_1000;
    /// Registers of the thread, and its signal mask.
    pub(crate) const SAVED: u64 = 0x1_1200;
    /// Room for what system calls write.
    pub(crate) const BUFFERS: u64 = 0x1_1400;
}

/// Words of a table entry.
pub(super) const ENTRY_WORDS: u64 = 8;

/// The number that ends the table.
pub(super) const END: u64 = u64::MAX;

/// Bytes that lie below the result of a call while it is made: in ia32 the address that the entry point returns to, and the three registers
/// that it saves. What they overwrite are arguments, which are in registers by then.
pub(super) const fn pushed(abi: Abi) -> u64 {
    match abi {
        Abi::X86_64 => 0,
        Abi::Ia32 => 16,
    }
}

/// Where ia32 code goes on after a call, from its beginning on.
const AFTER_CALL: u64 = 18;

/// What a stack has to begin with on which a thread comes out of a call: a clone of one that ran the code of `abi` in `area`. The result follows.
pub(super) fn returning_stack(abi: Abi, area: Addr) -> Vec<u8> {
    match abi {
        Abi::X86_64 => Vec::new(),
        Abi::Ia32 => {
            let back = regs::low_half(area.offset(layout::CODE + AFTER_CALL).0);
            [0, 0, 0, back].into_iter().flat_map(u32::to_le_bytes).collect()
        }
    }
}

/// Calls that fit in the table, the closing ones included.
pub(super) const MAX_CALLS: usize = 120;

/// `-ERESTARTSYS`, `-ERESTARTNOINTR`, `-ERESTARTNOHAND`, `-ERESTART_RESTARTBLOCK` of include/linux/errno.h.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// The registers with which a thread goes on when nobody restarts its interrupted system call for it: what
/// arch_do_signal_or_restart() of arch/x86/kernel/signal.c does when there is no signal to handle.
pub(super) fn resumed(regs: &Regs, table: Abi) -> Regs {
    let mut out = regs.clone();
    if regs::get_signed(regs, Field::OrigAx) < 0 {
        return out;
    }
    let number = match regs::get_signed(regs, Field::Ax) {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => regs::get(regs, Field::OrigAx),
        ERESTART_RESTARTBLOCK => Call::RestartSyscall.number(table),
        _ => return out,
    };
    // `syscall` and `int 0x80` are both two bytes long.
    regs::set(&mut out, Field::Ip, regs::get(regs, Field::Ip).wrapping_sub(2));
    regs::set(&mut out, Field::Ax, number);
    out
}

/// The saved block of an area: what the code of `abi` loads. The signal mask; the registers in words of the ABI; for 64-bit
/// code then its last instruction and, if that is a far jump, where it leads; for ia32 code its entry point to the kernel.
pub(super) fn saved_block(
    abi: Abi,
    area: Addr,
    regs: &Regs,
    table: Abi,
    mask: u64,
    vsyscall: Option<Addr>,
) -> Vec<u8> {
    let regs = resumed(regs, table);
    let mut block = Vec::with_capacity(256);
    block.extend(mask.to_le_bytes());
    match abi {
        Abi::Ia32 => {
            block.extend(regs::narrow(&regs).into_iter().flat_map(u32::to_le_bytes));
            let own = assemble(Abi::Ia32, area).len() as u64 - OWN_ENTRY.len() as u64;
            let entry = vsyscall.unwrap_or(area.offset(layout::CODE + own));
            block.extend(regs::low_half(entry.0).to_le_bytes());
        }
        Abi::X86_64 => {
            block.extend(regs.0.into_iter().flat_map(u64::to_le_bytes));
            let code = assemble(Abi::X86_64, area).len() as u64;
            let exit = match regs::mode(&regs) {
                Abi::X86_64 => code - NEAR_EXIT,
                Abi::Ia32 => code - FAR_EXIT,
            };
            block.extend(area.offset(layout::CODE + exit).0.to_le_bytes());
            block.extend(regs::low_half(regs::ip(&regs).0).to_le_bytes());
            block.extend(regs::low_half(regs::get(&regs, Field::Cs)).to_le_bytes());
        }
    }
    block
}

/// Where a register lies in [`saved_block`]; in 64-bit code 27 is its last instruction, 28 where a far jump leads; in ia32 code 17 is the
/// entry point.
fn saved_slot(abi: Abi, index: u8) -> u64 {
    const MASK_BYTES: u64 = 8;
    layout::SAVED + MASK_BYTES + u64::from(index) * abi.word()
}

/// push ecx; push edx; push ebp; int 0x80; pop ebp; pop edx; pop ecx; ret: `__kernel_vsyscall` as any processor can run it.
const OWN_ENTRY: [u8; 9] = [0x51, 0x52, 0x55, 0xcd, 0x80, 0x5d, 0x5a, 0x59, 0xc3];

/// From the end of 64-bit code to the instructions by which it leaves: into 32-bit code, whose stack segment goes
/// first, and into 64-bit code.
const FAR_EXIT: u64 = 18;
const NEAR_EXIT: u64 = 6;

/// Emits machine code for an address.
struct Emitter {
    abi: Abi,
    area: Addr,
    bytes: Vec<u8>,
}

impl Emitter {
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The displacement that ends an instruction whose operand is a place in the area: relative to the next
    /// instruction in 64-bit code, absolute in 32-bit code. The same ModRM byte means both.
    fn displacement(&mut self, place: u64) {
        let value = match self.abi {
            Abi::X86_64 => place.wrapping_sub(layout::CODE + self.bytes.len() as u64 + 4),
            Abi::Ia32 => self.area.offset(place).0,
        };
        self.raw(&regs::low_half(value).to_le_bytes());
    }

    /// `mov register, [place]`; `register` by its number in the instruction set (0 to 15).
    fn load(&mut self, register: u8, place: u64) {
        if self.abi == Abi::X86_64 {
            self.raw(&[0x48 | u8::from(register >= 8) << 2]);
        }
        self.raw(&[0x8b, 0x05 | (register & 7) << 3]);
        self.displacement(place);
    }

    /// `mov register, value` without touching the flags.
    fn set(&mut self, register: u8, value: u32) {
        if register >= 8 {
            self.raw(&[0x41]);
        }
        self.raw(&[0xb8 | register & 7]);
        self.raw(&value.to_le_bytes());
    }
}

/// Instruction set numbers of registers, and their index in `struct user_regs_struct`.
const REGISTERS_64: [(u8, u8); 15] = [
    (15, 0),
    (14, 1),
    (13, 2),
    (12, 3),
    (5, 4),
    (3, 5),
    (11, 6),
    (10, 7),
    (9, 8),
    (8, 9),
    (1, 11),
    (2, 12),
    (6, 13),
    (7, 14),
    (0, 10),
];
/// As above for i386.
const REGISTERS_32: [(u8, u8); 7] = [(3, 0), (1, 1), (2, 2), (6, 3), (7, 4), (5, 5), (0, 6)];

/// The stack pointer's number in the instruction set.
const SP: u8 = 4;

/// The code for an area at `area`.
pub(super) fn assemble(abi: Abi, area: Addr) -> Vec<u8> {
    let mut code = Emitter { abi, area, bytes: Vec::with_capacity(256) };
    match abi {
        // pop rax; cmp eax, -1; je +22; pop rdi; pop rsi; pop rdx; pop r10; pop r8; pop r9; syscall;
        // mov [rsp], rax; lea rsp, [rsp + 8]; jmp to the start. (Only half of the number is looked at: a handler of an ia32
        // task loses the other, when it interrupts 64-bit code.)
        Abi::X86_64 => code.raw(&[
            0x58, 0x83, 0xf8, 0xff, 0x74, 0x16, 0x5f, 0x5e, 0x5a, 0x41, 0x5a, 0x41, 0x58, 0x41, 0x59, 0x0f,
            0x05, 0x48, 0x89, 0x04, 0x24, 0x48, 0x8d, 0x64, 0x24, 0x08, 0xeb, 0xe4,
        ]),
        // pop eax; cmp eax, -1; je +21; pop ebx; pop ecx; pop edx; pop esi; pop edi; pop ebp; call [entry];
        // mov [esp], eax; lea esp, [esp + 4]; jmp to the start
        Abi::Ia32 => {
            code.raw(&[0x58, 0x83, 0xf8, 0xff, 0x74, 0x15, 0x5b, 0x59, 0x5a, 0x5e, 0x5f, 0x5d, 0xff, 0x15]);
            code.displacement(saved_slot(Abi::Ia32, 17));
            code.raw(&[0x89, 0x04, 0x24, 0x8d, 0x64, 0x24, 0x04, 0xeb, 0xe5]);
        }
    }
    way_out(&mut code);
    if abi == Abi::Ia32 {
        code.raw(&OWN_ENTRY);
    }
    code.bytes
}

/// Flags first, since they need the stack; then the stack, so that a signal that the mask lets through
/// finds the thread's own; then mask, registers and a jump through memory.
fn way_out(code: &mut Emitter) {
    let (ip, sp, flags, registers): (u8, u8, u8, &[(u8, u8)]) = match code.abi {
        Abi::X86_64 => (16, 19, 18, &REGISTERS_64),
        Abi::Ia32 => (12, 15, 14, &REGISTERS_32),
    };
    let abi = code.abi;
    let slot = |index| saved_slot(abi, index);
    let (ip, sp, flags) = (slot(ip), slot(sp), slot(flags));
    let loads: Vec<(u8, u64)> = registers.iter().map(|&(register, index)| (register, slot(index))).collect();
    let number = regs::low_half(Call::RtSigprocmask.number(code.abi));
    const SIG_SETMASK: u32 = 2;
    match code.abi {
        Abi::X86_64 => {
            code.raw(&[0x48, 0x8d, 0x25]); // lea rsp, [flags]
            code.displacement(flags);
            code.raw(&[0x9d]); // popfq
            code.load(SP, sp);
            code.set(7, SIG_SETMASK);
            code.raw(&[0x48, 0x8d, 0x35]); // lea rsi, [mask]
            code.displacement(layout::SAVED);
            code.set(2, 0);
            code.set(10, 8);
            code.set(0, number);
            code.raw(&[0x0f, 0x05]);
        }
        Abi::Ia32 => {
            code.raw(&[0xbc]); // mov esp, flags
            code.displacement(flags);
            code.raw(&[0x9d]); // popfd
            code.load(SP, sp);
            code.set(3, SIG_SETMASK);
            code.raw(&[0xb9]); // mov ecx, mask
            code.displacement(layout::SAVED);
            code.set(2, 0);
            code.set(6, 8);
            code.set(0, number);
            code.raw(&[0xcd, 0x80]);
        }
    }
    for (register, place) in loads {
        code.load(register, place);
    }
    if abi == Abi::X86_64 {
        let (ss, exit, far) = (slot(20), slot(27), slot(28));
        code.raw(&[0xff, 0x25]); // jmp [exit]
        code.displacement(exit);
        code.raw(&[0x8e, 0x15]); // mov ss, [ss]
        code.displacement(ss);
        code.raw(&[0xff, 0x2d]); // ljmp [far]
        code.displacement(far);
    }
    code.raw(&[0xff, 0x25]); // jmp [ip]
    code.displacement(ip);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::regs::tests::in_mode;

    fn in_syscall(ax: i64) -> Regs {
        let mut regs = in_mode(Abi::Ia32);
        regs::set(&mut regs, Field::OrigAx, 162);
        regs::set(&mut regs, Field::Ip, 0x1002);
        regs::set(&mut regs, Field::Ax, u64::from_ne_bytes(ax.to_ne_bytes()));
        regs
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        for ax in [-512, -513, -514] {
            let out = resumed(&in_syscall(ax), Abi::Ia32);
            assert_eq!((regs::get(&out, Field::Ax), regs::get(&out, Field::Ip)), (162, 0x1000));
        }
        let out = resumed(&in_syscall(-516), Abi::Ia32);
        assert_eq!((regs::get(&out, Field::Ax), regs::get(&out, Field::Ip)), (0, 0x1000));
    }

    #[test]
    fn anything_else_goes_on_as_it_is() {
        for ax in [0, 5, -4, -11] {
            assert_eq!(resumed(&in_syscall(ax), Abi::Ia32), in_syscall(ax));
        }
        let mut outside = in_syscall(-512);
        regs::set(&mut outside, Field::OrigAx, u64::MAX);
        assert_eq!(resumed(&outside, Abi::Ia32), outside);
    }

    #[test]
    fn code_fits_its_place() {
        for abi in [Abi::X86_64, Abi::Ia32] {
            let len = assemble(abi, Addr(0xf000_0000)).len() as u64;
            assert!(layout::CODE + len <= layout::SAVED, "{abi}: {len}");
        }
        assert!(layout::TABLE + MAX_CALLS as u64 * ENTRY_WORDS * 8 + 8 <= layout::CODE);
        assert!(saved_slot(Abi::X86_64, 29) <= layout::BUFFERS);
    }
}
