//! Dump: threads that were stopped inside of a vDSO.
//!
//! Another kernel has no data for the functions of this one, so no thread may stand in the middle of one: it takes the few steps to its end. A
//! system call is none of these, it may take long; but who is in one, or about to make one through `__kernel_vsyscall`, needs no data.
//! Where steps come to no end, it runs there.

use super::symbols::{Functions, functions};
use crate::ptrace::regs::{self, Field};
use crate::ptrace::{self, Patience, Stopped, signal_bit};
use crate::sys::ptrace::BREAKPOINTS;
use crate::sys::vm;
use anyhow::{Context, Result, bail};
use images::memory::{Backing, Vdso, Vma};
use images::thread::Regs;
use images::{Abi, Addr, Pid};
use std::time::Duration;

/// More than any function takes but one that makes random numbers.
const STEPS: u32 = 2_000;
/// How long a thread may run to the end of a function: much longer than any takes.
const RUN: Duration = Duration::from_millis(50);
/// What the kernel sends for a fault: were one blocked, the handler would be taken away (force_sig_info_to_task() of kernel/signal.c).
const FAULTS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSYS];

/// The vDSO that an address lies in, and where that begins.
fn around<'a>(vmas: &[Vma], vdsos: &'a [Vdso], at: Addr) -> Option<(&'a Vdso, u64)> {
    vmas.iter().filter(|vma| (vma.start..vma.end).contains(&at)).find_map(|vma| match vma.backing {
        Backing::Vdso(id) => vdsos.get(id.0 as usize).map(|vdso| (vdso, vma.start.0)),
        _ => None,
    })
}

/// Whether registers are those of a thread that is in the middle of a function of a vDSO at `start`.
pub(super) fn is_inside(regs: &Regs, image_len: u64, functions: &Functions, start: u64) -> bool {
    let in_call = regs::get_signed(regs, Field::OrigAx) >= 0;
    !in_call && is_amid(regs::ip(regs).0.wrapping_sub(start), image_len, functions)
}

/// Whether an offset of a vDSO is in the middle of a function, or of what functions call.
pub(super) fn is_amid(offset: u64, image_len: u64, functions: &Functions) -> bool {
    // Names of what is system calls alone.
    let plain = functions.iter().any(|(name, function)| {
        let end = if name.starts_with("__kernel_") { function.size } else { 1 };
        (function.offset..function.offset + end).contains(&offset)
    });
    offset < image_len && !plain
}

/// Takes a thread to the end of the function of a vDSO that it is in the middle of, if it gets there soon; `ignored` are the signals that its task
/// ignores. Where signals are in the way, they wait meanwhile if `may_block`; else false is returned, and the thread stays in the function.
///
/// Where steps do not get it there, it runs to a breakpoint at its caller. One that comes out elsewhere has run in the program, and what was recorded of
/// its task need not be so any more.
///
/// A step tells of itself by SIGTRAP, and where that is blocked or ignored, the kernel unblocks it and takes what the task had set for it away
/// (force_sig_info_to_task() of kernel/signal.c). So it is not blocked meanwhile, and a thread whose task ignores it stays where it is.
///
/// # Errors
/// When it is gone, or has run in the program.
pub(crate) fn step_out(
    thread: &mut Stopped,
    ignored: u64,
    vmas: &[Vma],
    vdsos: &[Vdso],
    may_block: bool,
    patience: &Patience,
) -> Result<bool> {
    let trap = signal_bit(libc::SIGTRAP);
    let regs = thread.regs()?;
    let Some((vdso, start)) = around(vmas, vdsos, regs::ip(&regs)) else { return Ok(true) };
    let functions = functions(&vdso.image).context("the vDSO")?;
    let len = vdso.image.len() as u64;
    if !is_inside(&regs, len, &functions, start) || ignored & trap != 0 {
        return Ok(true);
    }
    // A function can go on in the other vDSO, of which this one is a proxy.
    let out = |regs: &Regs| {
        !is_inside(regs, len, &functions, start)
            && around(vmas, vdsos, regs::ip(regs)).is_none_or(|(_, other)| other == start)
    };
    let patience = &patience.for_an_answer();
    let mask = thread.sigmask()?;
    if mask & trap == 0 && thread.step_until(STEPS, patience, out)? {
        return Ok(true);
    }
    if may_block {
        let faults = FAULTS.into_iter().fold(0, |faults, signal| faults | signal_bit(signal));
        thread.set_sigmask((mask | !faults) & !trap)?;
        let ran = thread.step_until(STEPS, patience, out).and_then(|out| match out {
            true => Ok(true),
            false => thread.run_to(&ways_out(thread, vmas)?, &Patience::new(RUN).uninterrupted()),
        });
        thread.set_sigmask(mask)?;
        let at = regs::ip(&thread.regs()?);
        if !ran? && around(vmas, vdsos, at).is_none() {
            bail!("thread {}: has left a function of the vDSO unseen, for {at}", thread.tid());
        }
    }
    Ok(may_block)
}

/// Where a thread may come to when it leaves a function of a vDSO: addresses on its stack of code elsewhere that follow a call. Nothing if these are
/// more than can be watched. The kernel's data changes with every tick, and who reads them step by step on a busy machine never gets to see
/// them unchanged; at full speed it does.
fn ways_out(thread: &Stopped, vmas: &[Vma]) -> Result<Vec<Addr>, ptrace::Error> {
    /// More than any function has on the stack.
    const DEPTH: usize = 1024;
    const PROT_EXEC: u32 = 4;
    let regs = thread.regs()?;
    let sp = regs::sp(&regs);
    let room = vmas.iter().find(|vma| (vma.start..vma.end).contains(&sp)).map_or(0, |vma| vma.end.0 - sp.0);
    let mut stack = [0; DEPTH];
    let stack = &mut stack[..usize::try_from(room).map_or(DEPTH, |room| room.min(DEPTH))];
    if vm::read_exact(thread.tid(), sp, stack).is_err() {
        return Ok(Vec::new());
    }
    let words: Vec<u64> = if regs::is_flat_32(&regs) {
        stack.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word).into()).collect()
    } else {
        stack.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect()
    };
    let is_way_out = |at: &Addr| {
        let code = vmas.iter().find(|vma| (vma.start..vma.end).contains(at));
        code.is_some_and(|vma| vma.prot & PROT_EXEC != 0 && !matches!(vma.backing, Backing::Vdso(_)))
    };
    let mut ways: Vec<Addr> = words.into_iter().map(Addr).filter(is_way_out).collect();
    ways.sort_unstable();
    ways.dedup();
    ways.retain(|&at| follows_call(thread.tid(), at));
    Ok(if ways.len() > BREAKPOINTS { Vec::new() } else { ways })
}

/// Whether the instruction before an address is a call, as far as its bytes tell.
fn follows_call(tid: Pid, at: Addr) -> bool {
    /// That of the longest: `call [base + index + 32 bits]`.
    const LONGEST: usize = 7;
    let mut code = [0; LONGEST];
    vm::read_exact(tid, Addr(at.0.wrapping_sub(LONGEST as u64)), &mut code).is_ok() && ends_in_call(&code)
}

/// A near call with a displacement (e8), or through a register or memory (ff /2) with what addresses that.
fn ends_in_call(code: &[u8; 7]) -> bool {
    let through = |len: usize| {
        let [opcode, modrm, ref rest @ ..] = code[code.len() - len..] else { return false };
        let (mode, memory) = (modrm >> 6, modrm & 7);
        let sib = usize::from(mode != 3 && memory == 4);
        let displacement = match mode {
            0 if memory == 5 => 4,
            0 | 3 => 0,
            1 => 1,
            _ => 4,
        };
        // Without a base, an index has a displacement of 32 bits.
        let indexed = sib == 1 && mode == 0 && rest.first().is_some_and(|sib| sib & 7 == 5);
        opcode == 0xff && modrm >> 3 & 7 == 2 && (len == 2 + sib + displacement || (indexed && len == 7))
    };
    code[2] == 0xe8 || (2..=code.len()).any(through)
}

/// Takes the record of a thread that is about to make a call by `__kernel_vsyscall` back to its beginning: what is there depends on
/// the kernel and on the processor.
///
/// # Errors
/// If its stack cannot be read.
pub(crate) fn rewind(pid: Pid, regs: &mut Regs, vmas: &[Vma], vdsos: &[Vdso]) -> Result<()> {
    let Some((vdso, start)) = around(vmas, vdsos, regs::ip(regs)) else { return Ok(()) };
    if vdso.abi != Abi::Ia32 || !regs::is_flat_32(regs) || regs::get_signed(regs, Field::OrigAx) >= 0 {
        return Ok(());
    }
    let functions = functions(&vdso.image).context("the vDSO")?;
    let Some(entry) = functions.get("__kernel_vsyscall") else { return Ok(()) };
    let offset = regs::ip(regs).0.wrapping_sub(start);
    let code = usize::try_from(entry.offset).ok().and_then(|at| vdso.image.get(at..)).unwrap_or_default();
    let Some((pushed, has_moved)) = progress(code, offset.wrapping_sub(entry.offset)) else { return Ok(()) };
    let sp = regs::sp(regs);
    if has_moved {
        let mut saved = [0; 4];
        vm::read_exact(pid, sp, &mut saved).context("read its stack")?;
        regs::set(regs, Field::Arg(5), u32::from_le_bytes(saved).into());
    }
    regs::set(regs, Field::Sp, sp.offset(4 * pushed).0);
    regs::set(regs, Field::Ip, start + entry.offset);
    Ok(())
}

/// How many words were pushed at an offset of `__kernel_vsyscall`, and whether the last, ebp, has been changed since. `None` behind the instruction
/// that enters the kernel, and in code that is not known.
fn progress(code: &[u8], offset: u64) -> Option<(u64, bool)> {
    const NOP: [u8; 3] = [0x0f, 0x1f, 0x00];
    /// push ecx; push edx; push ebp
    const PUSHES: [u8; 3] = [0x51, 0x52, 0x55];
    let (first, code) = code.strip_prefix(&NOP).map_or((0, code), |rest| (3, rest));
    // mov ebp, esp for sysenter, mov ebp, ecx for syscall
    let is_known = code.strip_prefix(&PUSHES).is_some_and(|rest| matches!(rest, [0x89, 0xe5 | 0xcd, ..]));
    match offset.checked_sub(first) {
        None if offset == 0 => Some((0, false)),
        Some(pushed @ 0..=3) if is_known => Some((pushed, false)),
        Some(5) if is_known => Some((3, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_by_their_bytes() {
        let is_call = |bytes: &[u8]| {
            let mut code = [0x90; 7];
            code[7 - bytes.len()..].copy_from_slice(bytes);
            ends_in_call(&code)
        };
        let calls: [&[u8]; 9] = [
            &[0xe8, 1, 2, 3, 4],
            // call rax; call [rax]; call [rsp]; call [rbp + 8]; call [rsp + 8]; call [rip + ...]; call [rbx + ...]; call [rax * 4 + ...]
            &[0xff, 0xd0],
            &[0xff, 0x10],
            &[0xff, 0x14, 0x24],
            &[0xff, 0x55, 8],
            &[0xff, 0x54, 0x24, 8],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x93, 1, 2, 3, 4],
            &[0xff, 0x14, 0x85, 1, 2, 3, 4],
        ];
        for call in calls {
            assert!(is_call(call), "{call:x?}");
        }
        // nop; ret; jmp rax; push [rip + ...]; jmp
        for other in [&[0x90][..], &[0xc3], &[0xff, 0xe0], &[0xff, 0x35, 1, 2, 3, 4], &[0xe9, 1, 2, 3, 4]] {
            assert!(!is_call(other), "{other:x?}");
        }
    }

    #[test]
    fn progress_in_the_entry_point_is_known() {
        let intel = [0x51, 0x52, 0x55, 0x89, 0xe5, 0x0f, 0x34, 0xcd, 0x80, 0x5d, 0x5a, 0x59, 0xc3];
        let amd =
            [0x0f, 0x1f, 0x00, 0x51, 0x52, 0x55, 0x89, 0xcd, 0x0f, 0x05, 0xcd, 0x80, 0x5d, 0x5a, 0x59, 0xc3];
        for (code, first) in [(&intel[..], 0), (&amd[..], 3)] {
            for pushed in 0..=3 {
                assert_eq!(progress(code, first + pushed), Some((pushed, false)));
            }
            assert_eq!(progress(code, first + 5), Some((3, true)));
            for behind in [6, 7, 9, 12] {
                assert_eq!(progress(code, first + behind), None, "{behind}");
            }
        }
        assert_eq!(progress(&amd, 0), Some((0, false)));
        assert_eq!(progress(&[0xcd, 0x80, 0xc3], 2), None);
    }
}
