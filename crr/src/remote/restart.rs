//! Which system call a thread was in when it says restart_syscall.
//!
//! A sleep that was interrupted once before (by a stop, or an earlier dump) shows restart_syscall as its number:
//! what it was is known to the kernel alone, and forgotten by rt_sigreturn and by a restore. But its arguments are still in the
//! registers, and the code that made the call is there to be read: nearly always it loaded the number right before.

use super::calls::Call;
use crate::ptrace::regs::{self, Field};
use crate::sys::vm;
use images::thread::Regs;
use images::{Abi, Addr, Pid};

/// -ERESTART_RESTARTBLOCK of include/linux/errno.h.
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Whether the kernel keeps the rest of this thread's interrupted call in its restart block.
#[must_use]
pub fn in_restart_block(regs: &Regs) -> bool {
    regs::get_signed(regs, Field::OrigAx) >= 0 && regs::get_signed(regs, Field::Ax) == ERESTART_RESTARTBLOCK
}

/// The registers with the number of the call that is being restarted, where the code tells it.
#[must_use]
pub(super) fn with_original_call(pid: Pid, regs: &Regs) -> Regs {
    let mut out = regs.clone();
    let mode = regs::mode(regs);
    let restarted = regs::get(regs, Field::OrigAx) == Call::RestartSyscall.number(mode);
    if in_restart_block(regs)
        && restarted
        && let Some(number) = number_in_code(pid, regs)
    {
        regs::set(&mut out, Field::OrigAx, u64::from(number));
    }
    out
}

/// Calls that use a restart block: the kernel's callers of set_restart_fn(). nanosleep, clock_nanosleep, poll, futex.
pub(crate) const SLEEPS_64: &[u32] = &[35, 230, 7, 202];
/// As above for ia32, with the variants for 64-bit times.
pub(crate) const SLEEPS_32: &[u32] = &[162, 267, 407, 168, 240, 422];

/// The number of a call with a restart block that the code around the present instruction loads.
#[must_use]
pub fn number_in_code(pid: Pid, regs: &Regs) -> Option<u32> {
    let here = code_before(pid, regs::ip(regs));
    match regs::mode(regs) {
        Abi::X86_64 => loaded_number(&here?, SLEEPS_64),
        Abi::Ia32 => here.and_then(|code| loaded_number(&code, SLEEPS_32)).or_else(|| {
            // In __kernel_vsyscall, three registers lie above the return address.
            let mut word = [0u8; 4];
            vm::read_exact(pid, regs::sp(regs).offset(12), &mut word).ok()?;
            loaded_number(&code_before(pid, Addr(u64::from(u32::from_le_bytes(word))))?, SLEEPS_32)
        }),
    }
}

/// Bytes of code that are looked at.
const CODE: usize = 40;

fn code_before(pid: Pid, at: Addr) -> Option<[u8; CODE]> {
    let mut code = [0u8; CODE];
    vm::read_exact(pid, Addr(at.0.checked_sub(CODE as u64)?), &mut code).ok()?;
    Some(code)
}

/// The operand of the last `mov register, number` that loads one of `numbers`.
fn loaded_number(code: &[u8; CODE], numbers: &[u32]) -> Option<u32> {
    code.windows(5).rev().find_map(|mov| match mov {
        [0xb8..=0xbf, a, b, c, d] => {
            Some(u32::from_le_bytes([*a, *b, *c, *d])).filter(|number| numbers.contains(number))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stands_before_the_call() {
        let mut code = [0x90u8; CODE];
        // mov eax, 230; syscall
        code[33..].copy_from_slice(&[0xb8, 0xe6, 0, 0, 0, 0x0f, 0x05]);
        assert_eq!(loaded_number(&code, SLEEPS_64), Some(230));
        assert_eq!(loaded_number(&code, SLEEPS_32), None);
        // mov eax, 422; xor edx, edx; call *%gs:0x10
        code = [0x90u8; CODE];
        code[26..].copy_from_slice(&[0xb8, 0xa6, 1, 0, 0, 0x31, 0xd2, 0x65, 0xff, 0x15, 0x10, 0, 0, 0]);
        assert_eq!(loaded_number(&code, SLEEPS_32), Some(422));
    }
}
