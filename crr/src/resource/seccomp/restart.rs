//! Filters that forbid restart_syscall(2).
//!
//! A stop by a tracer interrupts a sleep, and the kernel continues it by a call that the program never made. A filter that was written
//! for the calls of the program may kill it for that. Then it is better to have the sleep start over, by the call that was made.

use super::bpf::{Call, answer};
use crate::ptrace::regs::{self, Field, low_half};
use crate::ptrace::{Error, Stopped};
use crate::remote::{Call as Number, in_restart_block};
use images::Abi;

/// SECCOMP_RET_ACTION_FULL, and the two actions with which a call is made.
const ACTION: u32 = 0xffff_0000;
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;

/// Has a thread that is about to go on make its interrupted call anew if a filter of its would not let it be restarted. True if
/// that is so.
///
/// # Errors
/// Everything of [`Error`].
pub(crate) fn start_over_if_forbidden(thread: &Stopped) -> Result<bool, Error> {
    const ERESTARTNOINTR: i64 = -513;
    let mut regs = thread.regs()?;
    if !in_restart_block(&regs) {
        return Ok(false);
    }
    let table = thread.call_table()?;
    let number = low_half(Number::RestartSyscall.number(table));
    // What was restarted before was allowed.
    if low_half(regs::get(&regs, Field::OrigAx)) == number {
        return Ok(false);
    }
    let restart = Call {
        number,
        arch: match table {
            // AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386.
            Abi::X86_64 => 0xc000_003e,
            Abi::Ia32 => 0x4000_0003,
        },
        instruction: regs::ip(&regs).0,
        args: std::array::from_fn(|n| regs::get(&regs, Field::Arg(n))),
    };
    let mut index = 0;
    while let Some(program) = thread.seccomp_filter(index)? {
        if !answer(&program, &restart).is_some_and(|answer| matches!(answer & ACTION, ALLOW | LOG)) {
            regs::set(&mut regs, Field::Ax, ERESTARTNOINTR.cast_unsigned());
            thread.set_regs(&regs)?;
            return Ok(true);
        }
        index += 1;
    }
    Ok(false)
}
