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
use anyhow::{Context, Result};
use images::memory::{Backing, Vdso, Vma};
use images::thread::Regs;
use images::{Abi, Addr, Pid};

/// More than any function takes but one that makes random numbers.
const STEPS: u32 = 2_000;

/// The vDSO that an address lies in, and where that begins.
fn around<'a>(vmas: &[Vma], vdsos: &'a [Vdso], at: Addr) -> Option<(&'a Vdso, u64)> {
    vmas.iter().filter(|vma| (vma.start..vma.end).contains(&at)).find_map(|vma| match vma.backing {
        Backing::Vdso(id) => vdsos.get(id.0 as usize).map(|vdso| (vdso, vma.start.0)),
        _ => None,
    })
}

/// Whether registers are those of a thread that is in the middle of a function of a vDSO at `start`.
pub(super) fn is_inside(regs: &Regs, image_len: u64, functions: &Functions, start: u64) -> bool {
    let offset = regs::ip(regs).0.wrapping_sub(start);
    let in_call = regs::get_signed(regs, Field::OrigAx) >= 0;
    // Names of what is system calls alone.
    let plain = functions.iter().any(|(name, function)| {
        let end = if name.starts_with("__kernel_") { function.size } else { 1 };
        (function.offset..function.offset + end).contains(&offset)
    });
    offset < image_len && !in_call && !plain
}

/// Takes a thread to the end of the function of a vDSO that it is in the middle of, if it gets there soon; `ignored` are the signals that its task
/// ignores. Where signals are in the way, they wait meanwhile if `may_block`; else false is returned, and the thread stays in the function.
///
/// A step tells of itself by SIGTRAP, and where that is blocked or ignored, the kernel unblocks it and takes what the task had set for it away
/// (force_sig_info_to_task() of kernel/signal.c). So it is not blocked meanwhile, and a thread whose task ignores it stays where it is.
///
/// # Errors
/// When it is gone.
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
    let patience = &patience.uninterrupted();
    let mask = thread.sigmask()?;
    if mask & trap == 0 && thread.step_until(STEPS, patience, out)? {
        return Ok(true);
    }
    if may_block {
        thread.set_sigmask(!trap)?;
        let ran = thread.step_until(STEPS, patience, out).and_then(|out| match out {
            true => Ok(true),
            false => thread.run_to(&ways_out(thread, vmas)?, patience),
        });
        thread.set_sigmask(mask)?;
        ran?;
    }
    Ok(may_block)
}

/// Where a thread may come to when it leaves a function of a vDSO: addresses on its stack of code elsewhere. The kernel's data changes
/// with every tick, and who reads them step by step on a busy machine never gets to see them unchanged; at full speed it does.
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
    Ok(words.into_iter().map(Addr).filter(is_way_out).take(BREAKPOINTS).collect())
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
