//! A signal frame that brings a thread back by itself.
//!
//! The first and the last remote call are made by instructions of the task's own, without our code around
//! them. Should crr be killed just then, the thread goes on behind the call; so that `ret` leads to
//! rt_sigreturn with this frame, which the kernel takes for one of a handled signal: registers, extended state and
//! signal mask come back, and an interrupted system call is made anew. The frame lies below the stack, where nothing
//! lives, and what was there is put back afterwards.
//!
//! Layouts: `struct rt_sigframe` of arch/x86/include/asm/sigframe.h, `struct sigcontext_64` and `_32` of
//! arch/x86/include/uapi/asm/sigcontext.h, the extended state of arch/x86/kernel/fpu/signal.c.

use super::Saved;
use super::code::resumed;
use super::gadget::{Escape, popped_words};
use super::restart::{in_restart_block, with_original_call};
use crate::ptrace::Stopped;
use crate::ptrace::regs::{self, Field};
use crate::sys::{vm, xsave};
use anyhow::{Context, Result};
use images::thread::Regs;
use images::{Abi, Addr, Pid};

/// What leaf functions of x86_64 may use below the stack pointer.
const RED_ZONE: u64 = 128;
/// FP_XSTATE_MAGIC1, at 464 of the FXSAVE area, and FP_XSTATE_MAGIC2, behind the whole.
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// `struct fregs_state`, which precedes the extended state in ia32 frames.
const FSAVE_SIZE: u64 = 112;
/// Sizes of the frames without the extended state.
const FRAME_64: u64 = 440;
const FRAME_32: u64 = 268;
/// An alternate stack that sigaltstack rejects, so that rt_sigreturn leaves the real one alone.
const BAD_ALTSTACK_FLAGS: u32 = 0x7f;

/// Whether a frame can bring a thread back, its task being of `abi`: there is a stack to put it on, and rt_sigreturn of
/// that ABI restores all that the thread has. That of ia32 knows neither r8 to r15 nor upper halves.
#[must_use]
pub fn finds_back(regs: &Regs, abi: Abi) -> bool {
    regs::has_flat_stack(regs) && (abi == Abi::X86_64 || regs::mode(regs) == Abi::Ia32)
}

/// A frame in place below a thread's stack, with what was there before.
#[derive(Debug)]
pub(super) struct Frame {
    pid: Pid,
    start: Addr,
    before: Vec<u8>,
    /// The stack pointer with which the call has to be made.
    pub(super) sp: Addr,
}

impl Frame {
    /// Writes a frame of `abi` for a thread. `None` when there is no room below its stack, down to `lowest`.
    pub(super) fn place(
        pid: Pid,
        abi: Abi,
        thread: &Stopped,
        saved: &Saved,
        escape: &Escape,
        lowest: Addr,
    ) -> Result<Option<Self>> {
        if !finds_back(&saved.regs, abi) {
            return Ok(None);
        }
        let fpu = Fpu::of(thread, abi)?;
        let image = Image::new(pid, abi, saved, &fpu, escape);
        let mut before = vec![0u8; image.bytes.len()];
        if image.start < lowest || vm::read_exact(pid, image.start, &mut before).is_err() {
            return Ok(None);
        }
        let frame = Self { pid, start: image.start, before, sp: image.sp };
        if vm::write_all(pid, image.start, &image.bytes).is_err() {
            // A part of it can have been written. Where nothing was, nothing can be put back.
            let _ = frame.remove();
            return Ok(None);
        }
        Ok(Some(frame))
    }

    /// Puts back what was there.
    pub(super) fn remove(self) -> Result<()> {
        vm::write_all(self.pid, self.start, &self.before).context("put back what was below the stack")
    }
}

/// The extended state in the form of a signal frame.
struct Fpu {
    /// XSAVE area with its marks.
    extended: Vec<u8>,
    /// NT_PRFPREG of a thread in 32-bit code: what FSAVE would store.
    legacy: Vec<u8>,
}

impl Fpu {
    fn of(thread: &Stopped, abi: Abi) -> Result<Self> {
        let legacy = match abi {
            Abi::X86_64 => Vec::new(),
            Abi::Ia32 => thread.legacy_fpu()?,
        };
        Ok(Self { extended: marked(thread.xstate()?), legacy })
    }
}

/// Cuts an XSAVE area to the components in it and adds the marks by which the kernel knows its size.
fn marked(mut xstate: Vec<u8>) -> Vec<u8> {
    /// `sw_reserved` of the FXSAVE area, and XSTATE_BV.
    const MARKS: usize = 464;
    const XSTATE_BV: usize = 512;
    let word = xstate.get(XSTATE_BV..XSTATE_BV + 8).and_then(|word| word.try_into().ok());
    let features = word.map_or(0, u64::from_le_bytes);
    let size = xsave::size_for(features);
    xstate.resize(size, 0);
    let size = u32::try_from(size).unwrap_or(0);
    // struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size.
    xstate[MARKS..XSTATE_BV].fill(0);
    let mut put = |at: usize, bytes: &[u8]| xstate[at..at + bytes.len()].copy_from_slice(bytes);
    put(MARKS, &MAGIC1.to_le_bytes());
    put(MARKS + 4, &(size + 4).to_le_bytes());
    put(MARKS + 8, &(features | 3).to_le_bytes());
    put(MARKS + 16, &size.to_le_bytes());
    xstate.extend(MAGIC2.to_le_bytes());
    xstate
}

/// The bytes of a frame and where they belong.
struct Image {
    start: Addr,
    sp: Addr,
    bytes: Vec<u8>,
}

impl Image {
    fn new(pid: Pid, abi: Abi, saved: &Saved, fpu: &Fpu, escape: &Escape) -> Self {
        let (frame_size, fsave) = match abi {
            Abi::X86_64 => (FRAME_64, 0),
            Abi::Ia32 => (FRAME_32, FSAVE_SIZE),
        };
        let free = match regs::mode(&saved.regs) {
            Abi::X86_64 => RED_ZONE,
            Abi::Ia32 => 0,
        };
        // A stack pointer that leaves no room below makes addresses that are not there.
        let top = regs::sp(&saved.regs).0.wrapping_sub(free);
        let fx = top.wrapping_sub(fpu.extended.len() as u64) & !63;
        let frame = fx.wrapping_sub(fsave + frame_size) & !15;
        let sp = frame.wrapping_sub(popped_words(abi) * abi.word());
        let mut bytes = vec![0u8; usize::try_from(fx - sp).unwrap_or(0)];
        bytes.extend(&fpu.extended);
        let mut image = Self { start: Addr(sp), sp: Addr(sp), bytes };
        let regs = resumed_by_frame(pid, saved);
        match abi {
            Abi::X86_64 => image.fill_64(frame, fx, &regs.0, saved.mask, escape),
            Abi::Ia32 => {
                image.put(fx - fsave, &fpu.legacy);
                image.fill_32(frame, fx - fsave, &regs::narrow(&regs), saved.mask, escape);
            }
        }
        image
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at - self.start.0).unwrap_or(0);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn put_32(&mut self, at: u64, value: u64) {
        self.put(at, &regs::low_half(value).to_le_bytes());
    }

    fn put_16(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes()[..2]);
    }

    fn fill_64(&mut self, frame: u64, fx: u64, all: &[u64; 27], mask: u64, escape: &Escape) {
        // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
        const UC_FLAGS: u64 = 7;
        const UC: u64 = 8;
        const CONTEXT: u64 = UC + 40;
        const SIGMASK: u64 = CONTEXT + 256;
        // r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, flags: indexes into user_regs_struct.
        const ORDER: [usize; 18] = [9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, 10, 11, 19, 16, 18];
        self.put_64(frame, escape.sigreturn.0);
        self.put_64(frame + UC, UC_FLAGS);
        self.put_32(frame + UC + 24, u64::from(BAD_ALTSTACK_FLAGS));
        for (slot, index) in (0u64..).zip(ORDER) {
            self.put_64(frame + CONTEXT + slot * 8, all[index]);
        }
        self.put_16(frame + CONTEXT + 144, all[17]);
        self.put_16(frame + CONTEXT + 150, all[20]);
        self.put_64(frame + CONTEXT + 184, fx);
        self.put_64(frame + SIGMASK, mask);
    }

    fn fill_32(&mut self, frame: u64, fpstate: u64, all: &[u32; 17], mask: u64, escape: &Escape) {
        const UC_FP_XSTATE: u64 = 1;
        const UC: u64 = 144;
        const CONTEXT: u64 = UC + 20;
        const SIGMASK: u64 = CONTEXT + 88;
        // gs, fs, es, ds, edi, esi, ebp, esp, ebx, edx, ecx, eax; then after two words eip, cs, flags; then
        // after one ss: indexes into user_regs_struct.
        const ORDER: [(u64, usize); 16] = [
            (0, 10),
            (4, 9),
            (8, 8),
            (12, 7),
            (16, 4),
            (20, 3),
            (24, 5),
            (28, 15),
            (32, 0),
            (36, 2),
            (40, 1),
            (44, 6),
            (56, 12),
            (60, 13),
            (64, 14),
            (72, 16),
        ];
        self.put_32(frame, escape.sigreturn.0);
        self.put_32(frame + UC, UC_FP_XSTATE);
        self.put_32(frame + UC + 12, u64::from(BAD_ALTSTACK_FLAGS));
        for (at, index) in ORDER {
            self.put_32(frame + CONTEXT + at, u64::from(all[index]));
        }
        self.put_32(frame + CONTEXT + 76, fpstate);
        self.put_64(frame + SIGMASK, mask);
    }
}

/// As [`resumed`], but rt_sigreturn forgets how far a sleep had come: then the call is made from its start.
fn resumed_by_frame(pid: Pid, saved: &Saved) -> Regs {
    let mut out = resumed(&saved.regs, saved.table);
    if in_restart_block(&saved.regs) {
        let call = with_original_call(pid, &saved.regs);
        regs::set(&mut out, Field::Ax, regs::get(&call, Field::OrigAx));
    }
    out
}
