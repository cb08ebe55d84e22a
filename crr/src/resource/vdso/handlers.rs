//! Dump: signal handlers that have interrupted a function of a vDSO.
//!
//! When such a handler returns, the function goes on where it was. On another kernel that is old code without its data: it may tell a time of 0, or
//! be in the middle of what has become a jump. No thread can be led out of it, as out of a function that it stands in ([`super::step_out`]): what is
//! left of the handler is the program's. But handlers are short, so the tree is let run for a moment, and looked at once more.

use super::step_out::is_amid;
use super::symbols::functions;
use crate::ptrace::{Stopped, regs};
use crate::sys::vm;
use anyhow::{Context, Result};
use images::Abi;
use images::memory::{Backing, Vdso, Vma};
use nix::errno::Errno;

/// A handler may return to the middle of a function of a vDSO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a signal handler has interrupted a function of the vDSO")]
pub(crate) struct Interrupted;

/// How much of a stack is looked through: a handler does not call that deep.
const DEPTH: u64 = 64 << 10;

/// The vDSOs of a task, which its stacks are looked through for.
pub(crate) struct Stacks<'a> {
    vmas: &'a [Vma],
    /// Where each begins.
    vdsos: Vec<(u64, &'a Vdso)>,
    buffer: Vec<u8>,
}

impl<'a> Stacks<'a> {
    pub(crate) fn of(vmas: &'a [Vma], vdsos: &'a [Vdso]) -> Self {
        let of_area = |vma: &Vma| match vma.backing {
            Backing::Vdso(id) => vdsos.get(id.0 as usize).map(|vdso| (vma.start.0, vdso)),
            _ => None,
        };
        Self { vmas, vdsos: vmas.iter().filter_map(of_area).collect(), buffer: Vec::new() }
    }

    /// Whether on the stack of a thread lies what a handler returns by (`struct sigcontext`, arch/x86/include/uapi/asm/sigcontext.h), with an address amid
    /// a function.
    ///
    /// # Errors
    /// If the thread is gone or its stack cannot be read, or a vDSO is none.
    pub(crate) fn have_interrupted(&mut self, thread: &Stopped) -> Result<bool> {
        let regs = thread.regs()?;
        let sp = regs::sp(&regs);
        let area = self.vmas.get(self.vmas.partition_point(|vma| vma.end <= sp));
        let Some(area) = area.filter(|vma| vma.start <= sp && regs::has_flat_stack(&regs)) else {
            return Ok(false);
        };
        self.buffer.resize(usize::try_from((area.end.0 - sp.0).min(DEPTH))?, 0);
        match vm::read_exact(thread.tid(), sp, &mut self.buffer) {
            // Nobody can have a frame there.
            Err(Errno::EFAULT) => return Ok(false),
            read => read.context("read its stack")?,
        }
        let stack = &self.buffer;
        match regs::mode(&regs) {
            Abi::X86_64 => {
                let words: Vec<u64> =
                    stack.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
                self.find(&words, returns_to_64)
            }
            Abi::Ia32 => {
                let words: Vec<u64> =
                    stack.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word).into()).collect();
                self.find(&words, returns_to_32)
            }
        }
    }

    /// Whether one of these words is an address amid a function, and what follows it what [`returns_to_64`] or [`returns_to_32`] tells.
    fn find(&self, words: &[u64], returns: fn(&[u64]) -> bool) -> Result<bool> {
        for (at, &word) in words.iter().enumerate() {
            for &(start, vdso) in &self.vdsos {
                let (offset, len) = (word.wrapping_sub(start), vdso.image.len() as u64);
                if offset < len
                    && returns(&words[at..])
                    && is_amid(offset, len, &functions(&vdso.image).context("the vDSO")?)
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// What follows the address in a frame of 64-bit code: the flags, then the segments in one word.
fn returns_to_64(words: &[u64]) -> bool {
    matches!(words, [_, _, segments, ..] if segments & 0xffff == regs::CS_64)
}

/// The same of 32-bit code: its segment, the flags, the stack pointer once more, the stack segment.
fn returns_to_32(words: &[u64]) -> bool {
    matches!(words, [_, cs, _, _, ss, ..] if cs & 0xffff == regs::CS_32 && ss & 0xffff == regs::USER_DS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::live;
    use images::{Addr, VdsoId};

    const AT: u64 = 0xf7f0_0000;

    /// Whether these words, behind others, show a frame; the first is an offset of the vDSO.
    fn is_found(abi: Abi, offset: u64, rest: &[u64]) -> bool {
        let image = live(abi).unwrap().image;
        let end = Addr(AT + image.len() as u64);
        let vmas =
            [Vma { start: Addr(AT), end, prot: 5, flags: 0, backing: Backing::Vdso(VdsoId::default()) }];
        let vdsos = [Vdso { abi, image }];
        let words = [&[1, 2, AT + offset], rest].concat();
        let returns = if abi == Abi::X86_64 { returns_to_64 } else { returns_to_32 };
        Stacks::of(&vmas, &vdsos).find(&words, returns).unwrap()
    }

    #[test]
    fn frames_amid_a_function_are_found() {
        for (abi, rest, others) in [
            (Abi::X86_64, &[0x246, 0x002b_0000_0000_0033][..], &[0x246, 0x23][..]),
            (Abi::Ia32, &[0x23, 0x246, 0xffff_0000, 0x2b], &[0x246, 0x23, 0x2b, 0x2b]),
        ] {
            let all = functions(&live(abi).unwrap().image).unwrap();
            let at = all["__vdso_clock_gettime"].offset;
            assert!(is_found(abi, at + 1, rest) && is_found(abi, at + 30, rest), "{abi}");
            assert!(!is_found(abi, at, rest), "{abi}: it has not begun");
            assert!(!is_found(abi, at + 1, others) && !is_found(abi, at + 1, &[]), "{abi}: no frame");
            assert!(!is_found(abi, 1 << 20, rest), "{abi}: elsewhere");
        }
        let entry = functions(&live(Abi::Ia32).unwrap().image).unwrap()["__kernel_vsyscall"].offset;
        assert!(!is_found(Abi::Ia32, entry + 1, &[0x23, 0x246, 0, 0x2b]), "a system call needs no data");
    }
}
