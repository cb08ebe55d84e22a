//! Dump: threads that were stopped inside of a vDSO.
//!
//! Another kernel has no data for the functions of this one, so no thread may stand in the middle of one: it takes the few steps to its end. A
//! system call is none of these, it may take long; but who is in one, or about to make one through `__kernel_vsyscall`, needs no data.

use super::symbols::{Functions, functions};
use crate::ptrace::regs::{self, Field};
use crate::ptrace::{Patience, Stopped};
use crate::sys::vm;
use anyhow::{Context, Result};
use images::memory::{Backing, Vdso, Vma};
use images::thread::Regs;
use images::{Abi, Addr, Pid};

/// More than any function takes but one that makes kilobytes of random numbers.
const STEPS: u32 = 20_000;

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

/// Takes a thread to the end of the function of a vDSO that it is in the middle of, if it gets there soon. Where a signal is in the
/// way, that waits meanwhile if `may_block`; else false is returned, and the thread stays in the function.
///
/// # Errors
/// When it is gone.
pub(crate) fn step_out(
    thread: &mut Stopped,
    vmas: &[Vma],
    vdsos: &[Vdso],
    may_block: bool,
    patience: &Patience,
) -> Result<bool> {
    let regs = thread.regs()?;
    let Some((vdso, start)) = around(vmas, vdsos, regs::ip(&regs)) else { return Ok(true) };
    let functions = functions(&vdso.image).context("the vDSO")?;
    let len = vdso.image.len() as u64;
    if !is_inside(&regs, len, &functions, start) {
        return Ok(true);
    }
    // A function can go on in the other vDSO, of which this one is a proxy.
    let out = |regs: &Regs| {
        !is_inside(regs, len, &functions, start)
            && around(vmas, vdsos, regs::ip(regs)).is_none_or(|(_, other)| other == start)
    };
    let patience = &patience.uninterrupted();
    if thread.step_until(STEPS, patience, out)? {
        return Ok(true);
    }
    if may_block {
        let mask = thread.sigmask()?;
        thread.set_sigmask(u64::MAX)?;
        let stepped = thread.step_until(STEPS, patience, out);
        thread.set_sigmask(mask)?;
        stepped?;
    }
    Ok(may_block)
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
