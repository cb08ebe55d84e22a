//! Dump: signal handlers that have interrupted a function of a vDSO.
//!
//! When such a handler returns, the function goes on where it was. On another kernel that is old code without its data: it may tell a time of 0, or
//! be in the middle of what has become a jump. No thread can be led out of it, as out of a function that it stands in ([`super::step_out`]): what is
//! left of the handler is the program's. But handlers are short, so the tree is let run for a moment, and looked at once more.
//!
//! What a handler returned by can lie in a part of the stack that is in use again, but was not written to since. It is told from one that is alive by
//! being there again when its thread has run.

use super::step_out::is_amid;
use super::symbols::functions;
use crate::ptrace::{Stopped, regs};
use crate::sys::vm::{self, Remote};
use anyhow::{Context, Result};
use images::memory::{Backing, Vdso, Vma};
use images::thread::Regs;
use images::{Abi, Pid};
use nix::errno::Errno;
use std::collections::BTreeMap;

/// Handlers may return to the middle of a function of a vDSO.
#[derive(Debug, Default, thiserror::Error)]
#[error("a signal handler has interrupted a function of the vDSO")]
pub(crate) struct Interrupted(BTreeMap<Frame, Standing>);

/// What a handler returns by. That of another signal has other registers in the same place: the functions read counters.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Frame {
    tid: Pid,
    at: u64,
    words: Vec<u64>,
}

/// How the thread of a frame was found.
#[derive(Debug)]
struct Standing {
    regs: Regs,
    /// How often it had given its processor away by itself.
    switches: u64,
}

impl Standing {
    /// Whether the thread has not run since it was found before: on a busy machine it need not have had a turn. To be stopped is to give the
    /// processor away; one that sleeps does so once more.
    fn is_as(&self, before: &Self) -> bool {
        self.regs == before.regs && self.switches <= before.switches + 1
    }
}

impl Interrupted {
    /// Whether one of these is worth waiting for, when `before` are those that were waited for last.
    pub(crate) fn may_end(&self, before: &Self) -> bool {
        let is_stale =
            |(frame, now): (&Frame, &Standing)| before.0.get(frame).is_some_and(|before| !now.is_as(before));
        !self.0.iter().all(is_stale)
    }
}

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

    /// Notes what lies on the stack of a thread that handlers return by (`struct sigcontext`, arch/x86/include/uapi/asm/sigcontext.h), with an address amid
    /// a function. `switches` is asked only then, and tells how often the thread has given its processor away by itself.
    ///
    /// # Errors
    /// If the thread is gone or its stack cannot be read, or a vDSO is none.
    pub(crate) fn look(
        &mut self,
        thread: &Stopped,
        switches: impl FnOnce() -> Result<u64>,
        interrupted: &mut Interrupted,
    ) -> Result<()> {
        let regs = thread.regs()?;
        let sp = regs::sp(&regs);
        let area = self.vmas.get(self.vmas.partition_point(|vma| vma.end <= sp));
        let Some(area) = area.filter(|vma| vma.start <= sp && regs::has_flat_stack(&regs)) else {
            return Ok(());
        };
        self.buffer.resize(usize::try_from((area.end.0 - sp.0).min(DEPTH))?, 0);
        let all = [Remote::new(sp, self.buffer.len())];
        let read = match vm::read(thread.tid(), &mut self.buffer, &all) {
            // Nobody can have a frame there.
            Err(Errno::EFAULT) => 0,
            read => read.context("read its stack")?,
        };
        let stack = &self.buffer[..read];
        let mode = regs::mode(&regs);
        let words: Vec<u64> = match mode {
            Abi::X86_64 => stack.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect(),
            Abi::Ia32 => stack.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word).into()).collect(),
        };
        let found = self.find(&words, mode)?;
        let switches = if found.is_empty() { 0 } else { switches()? };
        for index in found {
            let contents = index.saturating_sub(REGISTERS_BEFORE)..(index + MOST_BEHIND).min(words.len());
            let at = sp.offset(index as u64 * mode.word()).0;
            let frame = Frame { tid: thread.tid(), at, words: words[contents].to_vec() };
            interrupted.0.insert(frame, Standing { regs: regs.clone(), switches });
        }
        Ok(())
    }

    /// Which of these words are addresses amid a function that are followed by what [`returns_to_64`] or [`returns_to_32`] tells.
    fn find(&self, words: &[u64], mode: Abi) -> Result<Vec<usize>> {
        let returns = if mode == Abi::X86_64 { returns_to_64 } else { returns_to_32 };
        let mut found = Vec::new();
        for (at, &word) in words.iter().enumerate() {
            for &(start, vdso) in &self.vdsos {
                let (offset, len) = (word.wrapping_sub(start), vdso.image.len() as u64);
                if offset < len
                    && returns(&words[at..])
                    && is_amid(offset, len, &functions(&vdso.image).context("the vDSO")?)
                {
                    found.push(at);
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// Words of a frame before the address that belong to it, and from the address on: at most as many in both ABIs.
const REGISTERS_BEFORE: usize = 16;
const MOST_BEHIND: usize = 5;

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
        let found = Stacks::of(&vmas, &vdsos).find(&words, abi).unwrap();
        assert!(found.is_empty() || found == [2]);
        !found.is_empty()
    }

    #[test]
    fn a_frame_is_stale_that_is_there_again_when_its_thread_has_run() {
        let interrupted = |ip: u64, spare: u64, switches: u64| {
            let frame = Frame { tid: 7, at: 0x1000, words: vec![1, 2, spare] };
            let mut regs = Regs([0; 27]);
            regs::set(&mut regs, regs::Field::Ip, ip);
            Interrupted([(frame, Standing { regs, switches })].into())
        };
        let first = interrupted(1, 3, 10);
        assert!(!Interrupted::default().may_end(&first), "none any more");
        assert!(first.may_end(&Interrupted::default()), "found for the first time");
        assert!(interrupted(1, 3, 11).may_end(&first), "it did not run, and was only stopped again");
        assert!(interrupted(2, 4, 11).may_end(&first), "another one in the same place");
        assert!(!interrupted(2, 3, 11).may_end(&first), "it ran, and the same is there");
        assert!(!interrupted(1, 3, 12).may_end(&first), "it slept");
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
