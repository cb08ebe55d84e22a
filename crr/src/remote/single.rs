//! The second way to run a batch: call by call, at an instruction that the task has, with nothing mapped.
//!
//! For a task that is at the end of its address space or of RLIMIT_AS, and one that may not have writable code. A
//! frame stands below the thread's stack as for the first call of the other way ([`super::frame`]), under which it comes back by itself after
//! whatever call it is in; and what calls write goes to the dead memory below the frame, inside of the same area. All of it is put back.
//!
//! Every call costs two stops, so this takes some milliseconds where the other way takes one.

use super::batch::{Arg, Batch, Reply};
use super::frame::Frame;
use super::{Executor, Saved, put_back};
use crate::ptrace::{Patience, Stopped, regs};
use crate::sys::vm;
use anyhow::{Context, Result, bail};
use images::{Addr, Pid};
use std::ops::Range;

/// A thread cannot make calls in a task in which nothing can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("thread {tid}: nothing can be mapped in its task, and {why}")]
pub struct NoRoom {
    /// Which.
    pub tid: Pid,
    /// What else is missing.
    pub why: &'static str,
}

/// No code to come back by.
const NO_CODE: &str = "its code has no way back from a signal handler";
/// No stack to come back by.
const NO_STACK: &str = "it has no room below its stack";
/// A thread of an ia32 task that stands in 64-bit code.
const OTHER_MODE: &str = "it stands in code of the other ABI, or on no ordinary stack";

/// Dead memory below a frame, with what is in it.
pub(super) struct Dead {
    pid: Pid,
    start: Addr,
    before: Vec<u8>,
}

impl Dead {
    fn below(pid: Pid, frame: &Frame, len: u64) -> Option<Self> {
        let start = Addr(frame.sp.0.checked_sub(len)? & !ALIGNED);
        let mut before = vec![0u8; usize::try_from(len).ok()?];
        vm::read_exact(pid, start, &mut before).ok()?;
        Some(Self { pid, start, before })
    }

    fn put_back(self) -> Result<()> {
        vm::write_all(self.pid, self.start, &self.before).context("put back what was below the stack")
    }
}

/// Buffers lie at multiples of 16.
const ALIGNED: u64 = 15;

impl Executor {
    /// [`Executor::run`] where there is no area. `memory` is private and writable.
    pub(super) fn run_singly(
        &self,
        thread: &mut Stopped,
        batch: &Batch,
        memory: &[Range<u64>],
        patience: &Patience,
    ) -> Result<Reply> {
        let saved = Saved::of(thread)?;
        let (frame, dead) = self.borrow(thread, &saved, batch, memory)?;
        let answered = self.call_each(thread, &saved, batch, &frame, dead.start, patience);
        put_back(thread, &saved, patience)?;
        frame.remove()?;
        dead.put_back()?;
        self.keep_stop_signal()?;
        answered
    }

    /// All calls of a batch, the buffers of each in the memory from `room` on.
    fn call_each(
        &self,
        thread: &mut Stopped,
        saved: &Saved,
        batch: &Batch,
        frame: &Frame,
        room: Addr,
        patience: &Patience,
    ) -> Result<Reply> {
        let pid = self.target.deputy;
        let mut reply = Reply::empty(batch);
        for (index, &(call, args)) in batch.calls().iter().enumerate() {
            let mut places = Vec::new();
            let mut at = room;
            let args = args.map(|arg| match arg {
                Arg::Value(value) => value,
                Arg::Out(buffer) => {
                    let (place, range) = (at, buffer.range());
                    at = place.offset(range.len() as u64);
                    places.push((place, range));
                    place.0
                }
            });
            for (place, range) in &places {
                vm::write_all(pid, *place, &reply.buffers[range.clone()]).context("write a buffer")?;
            }
            self.set_up_call(thread, saved, Some(frame), call, args)?;
            if index == 0 {
                // Only now, when there is a frame to lead out of it again.
                thread.set_sigmask(u64::MAX)?;
            }
            let result = self.step_over_call(thread, patience)?;
            reply.set_result(index, result);
            for (place, range) in places {
                vm::read_exact(pid, place, &mut reply.buffers[range]).context("read an answer")?;
            }
        }
        Ok(reply)
    }

    /// The memory that a batch needs: for the frame, and below that for what a call writes.
    ///
    /// It lies in the area of the thread's own stack, and not below that area: what is there may be alive.
    pub(super) fn borrow(
        &self,
        thread: &Stopped,
        saved: &Saved,
        batch: &Batch,
        memory: &[Range<u64>],
    ) -> Result<(Frame, Dead)> {
        let (pid, abi) = (self.target.deputy, self.target.abi);
        let refused = |why| NoRoom { tid: thread.tid(), why };
        let Some(escape) = &self.target.gadget.escape else { bail!(refused(NO_CODE)) };
        if !super::finds_back(&saved.regs, abi) {
            bail!(refused(OTHER_MODE));
        }
        // That of an empty stack is the first byte above it.
        let top = regs::sp(&saved.regs).0.wrapping_sub(1);
        let Some(area) = memory.iter().find(|area| area.contains(&top)) else { bail!(refused(NO_STACK)) };
        let room = batch.largest();
        let lowest = Addr(area.start).offset(room + ALIGNED);
        let Some(frame) = Frame::place(pid, abi, thread, saved, escape, lowest)? else {
            bail!(refused(NO_STACK));
        };
        match Dead::below(pid, &frame, room) {
            Some(dead) => Ok((frame, dead)),
            None => {
                frame.remove()?;
                bail!(refused(NO_STACK))
            }
        }
    }
}
