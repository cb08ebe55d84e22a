//! Asking a stopped task to make system calls, without leaving a trace.
//!
//! What the kernel tells only to the task itself (signal actions, timers, alternate stacks, …) is asked for
//! in batches: one area is mapped in the task, a few bytes of code there walk a table of calls ([`code`]), and the area
//! is unmapped again. Nothing is written to memory that the task already had but, for the first and the
//! last call, dead bytes below its stack, which are put back.
//!
//! Nothing here may harm the task if crr is killed in the middle: see the order of steps in [`Executor::run`]. A signal that
//! crr can wait with does wait: calls take microseconds, and a task with seccomp makes them only as long as it is traced.
//!
//! What a killed crr leaves behind is the area, which the next dump takes out ([`leftover`]).

mod batch;
mod calls;
mod code;
mod frame;
mod gadget;
mod leftover;
mod restart;
#[cfg(test)]
mod tests;

pub use batch::{Arg, Batch, Buffer, Handle, Reply};
pub use calls::Call;
pub use frame::finds_back;
pub use gadget::{Cache, CodeArea, Gadget};
pub use leftover::{in_leftover, is_leftover};
pub(crate) use restart::{SLEEPS_32, SLEEPS_64};
pub use restart::{in_restart_block, number_in_code};

use crate::ptrace::regs::{self, Field};
use crate::ptrace::{Error, Patience, Stop, Stopped, signal_bit};
use crate::sys::vm;
use anyhow::{Context, Result, bail};
use code::layout;
use frame::Frame;
use images::thread::Regs;
use images::{Abi, Addr, Pid};
use nix::errno::Errno;
use std::cell::Cell;

/// What the executor has to know of a task.
#[derive(Clone, Debug)]
pub struct Target {
    /// The task.
    pub pid: Pid,
    /// Its ABI.
    pub abi: Abi,
    /// Where a system call instruction lies.
    pub gadget: Gadget,
    /// Signals that it ignores.
    pub ignored: u64,
    /// Signals that it handles.
    pub caught: u64,
    /// Areas of earlier executors ([`is_leftover`]). No thread stands in one.
    pub leftovers: Vec<Addr>,
}

/// An area in a task that runs batches.
#[derive(Debug)]
pub struct Executor {
    target: Target,
    area: Addr,
    /// SIGSTOP was taken off the queue while a thread ran for us.
    stop_came: Cell<bool>,
}

/// The task may not map writable code, so it cannot be asked: memory-deny-write-execute, or a security module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task may not map writable code")]
pub struct CodeForbidden;

/// Registers and signal mask of a thread, to be put back.
struct Saved {
    regs: Regs,
    mask: u64,
    /// The table of the system call that it is in the middle of.
    table: Abi,
}

impl Saved {
    fn of(thread: &Stopped) -> Result<Self, Error> {
        let regs = thread.regs()?;
        let table = if in_restart_block(&regs) { thread.call_table()? } else { regs::mode(&regs) };
        Ok(Self { regs, mask: thread.sigmask()?, table })
    }
}

/// The code by which a thread makes calls: that of its task's ABI if it stands in ordinary code of it. Any other runs 64-bit
/// code, whatever the task: this keeps all its registers, and needs no segment but those of code and stack.
fn code_for(regs: &Regs, task: Abi) -> Abi {
    if task == Abi::Ia32 && regs::is_flat_32(regs) { Abi::Ia32 } else { Abi::X86_64 }
}

/// Registers for code of ours: the mode of it, no interrupted system call for the kernel to restart, no trap flag.
fn leave_syscall(own: &Regs, abi: Abi) -> Regs {
    const TRAP_FLAG: u64 = 0x100;
    let mut regs = own.clone();
    regs::enter(&mut regs, abi);
    regs::set(&mut regs, Field::OrigAx, u64::MAX);
    regs::set(&mut regs, Field::Ax, 0);
    let flags = regs::get(&regs, Field::Flags) & !TRAP_FLAG;
    regs::set(&mut regs, Field::Flags, flags);
    regs
}

impl Executor {
    /// Maps the area by one call of `thread` (any thread of the task, in an interrupt- or signal-stop).
    /// What earlier ones have left is unmapped first.
    ///
    /// # Errors
    /// [`CodeForbidden`]; when the thread dies, or has no address space left.
    pub fn open(target: Target, thread: &mut Stopped, patience: &Patience) -> Result<Self> {
        const PROT_RWX: u64 = 7;
        // Shared: such an area is never merged with a neighbour, so it is known again if it is left.
        const MAP_SHARED_ANONYMOUS: u64 = 0x21;
        let no_fd = u64::MAX;
        let args = [0, layout::SIZE, PROT_RWX, MAP_SHARED_ANONYMOUS, no_fd, 0];
        let mut executor = Self { target, area: Addr(0), stop_came: Cell::new(false) };
        for &leftover in &executor.target.leftovers {
            executor.unmap(leftover, thread, patience)?;
        }
        let area = executor.call_at_gadget(thread, Call::Mmap, args, patience)?;
        executor.area = match area {
            Err(Errno::EACCES | Errno::EPERM) => bail!(CodeForbidden),
            area => Addr(area.context("cannot map a page in the task")?),
        };
        // At once, so that the area can be told from the task's own should crr be killed.
        let Target { pid, abi, .. } = executor.target;
        let code = code::assemble(abi, executor.area);
        match vm::write_all(pid, executor.area.offset(layout::CODE), &code) {
            Ok(()) => Ok(executor),
            Err(errno) => {
                executor.close(thread, patience)?;
                Err(errno).context("write code to the task")
            }
        }
    }

    /// Where the area lies, as a range of addresses: it is not part of the task.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<u64> {
        self.area.0..self.area.0 + layout::SIZE
    }

    /// An empty batch for a thread.
    ///
    /// # Errors
    /// When it is gone.
    pub fn batch(&self, thread: &Stopped) -> Result<Batch, Error> {
        Ok(Batch::new(code_for(&thread.regs()?, self.target.abi)))
    }

    /// Has `thread` run a batch made for it ([`Executor::batch`]). It stands in a stop with its own registers and mask before and after.
    ///
    /// The order makes each step safe to die after: code, table and the thread's own state are in the area
    /// before its registers lead there; the mask is narrowed after that, since only the way out of the code widens it
    /// again; on return the mask comes first, since the way out still works with it.
    ///
    /// # Errors
    /// When the thread dies or does not come back in time.
    pub fn run(&self, thread: &mut Stopped, batch: &Batch, patience: &Patience) -> Result<Reply> {
        let patience = &patience.uninterrupted();
        let saved = Saved::of(thread)?;
        let signal = self.done_signal(thread, saved.mask)?;
        let done = self.start(thread, &saved, batch, signal)?;
        match signal {
            Some(signal) => self.run_to_signal(thread, signal, done, patience)?,
            None => self.step_to_end(thread, done, patience)?,
        }
        let reply = self.read(batch)?;
        put_back(thread, &saved, patience)?;
        self.keep_stop_signal()?;
        Ok(reply)
    }

    /// Writes a batch and makes `thread` ready to run it. Returns where its stack pointer will stand at the end.
    fn start(&self, thread: &Stopped, saved: &Saved, batch: &Batch, signal: Option<i32>) -> Result<Addr> {
        let last = match signal {
            Some(signal) => {
                let id = |pid: i32| u64::try_from(pid).unwrap_or(0);
                (Call::Tgkill, [id(self.target.pid), id(thread.tid()), id(signal)])
            }
            None => (Call::SchedYield, [0; 3]),
        };
        let (table, done) = batch.table(self.area, last);
        self.write(&table, batch, saved)?;
        thread.set_regs(&self.entry_regs(&saved.regs, batch.abi()))?;
        thread.set_sigmask(!signal.map_or(0, signal_bit))?;
        Ok(done)
    }

    /// Unmaps the area.
    ///
    /// # Errors
    /// When the thread dies or does not come back in time.
    pub fn close(self, thread: &mut Stopped, patience: &Patience) -> Result<()> {
        self.unmap(self.area, thread, patience)
    }

    fn unmap(&self, area: Addr, thread: &mut Stopped, patience: &Patience) -> Result<()> {
        let args = [area.0, layout::SIZE, 0, 0, 0, 0];
        self.call_at_gadget(thread, Call::Munmap, args, patience)?
            .context("cannot unmap a page in the task")?;
        Ok(())
    }

    /// One call at an instruction that the task already has.
    fn call_at_gadget(
        &self,
        thread: &mut Stopped,
        call: Call,
        args: [u64; 6],
        patience: &Patience,
    ) -> Result<nix::Result<u64>> {
        let patience = &patience.uninterrupted();
        let saved = Saved::of(thread)?;
        let frame = self.start_at_gadget(thread, &saved, call, args)?;
        for _entry_then_exit in 0..2 {
            loop {
                match thread.advance_to_syscall(0, patience)? {
                    Stop::Syscall => break,
                    Stop::Signal(libc::SIGSTOP) => self.stop_came.set(true),
                    stop if stop.is_asked_for() => {}
                    other => bail!("thread {}: {other:?} while making a system call", thread.tid()),
                }
            }
        }
        let after = thread.regs()?;
        put_back(thread, &saved, patience)?;
        if let Some(frame) = frame {
            frame.remove()?;
        }
        self.keep_stop_signal()?;
        Ok(batch::decode_result(self.target.abi, regs::get(&after, Field::Ax)))
    }

    /// Makes `thread` ready for a call at an instruction of its own. With a frame below its stack, it comes
    /// back by itself when nobody traces it any more; the frame is there before the registers lead to it.
    fn start_at_gadget(
        &self,
        thread: &Stopped,
        saved: &Saved,
        call: Call,
        args: [u64; 6],
    ) -> Result<Option<Frame>> {
        let gadget = &self.target.gadget;
        let frame = match &gadget.escape {
            Some(escape) => Frame::place(self.target.pid, self.target.abi, thread, saved, escape)?,
            None => None,
        };
        let mut regs = leave_syscall(&saved.regs, self.target.abi);
        match (&frame, &gadget.escape) {
            (Some(frame), Some(escape)) => {
                regs::set(&mut regs, Field::Ip, escape.syscall.0);
                regs::set(&mut regs, Field::Sp, frame.sp.0);
            }
            _ => regs::set(&mut regs, Field::Ip, gadget.syscall.0),
        }
        regs::set(&mut regs, Field::Ax, call.number(self.target.abi));
        for (n, arg) in args.into_iter().enumerate() {
            regs::set(&mut regs, Field::Arg(n), arg);
        }
        thread.set_regs(&regs)?;
        thread.set_sigmask(u64::MAX)?;
        Ok(frame)
    }

    /// A signal that means nothing to this thread: ignored, not blocked, not pending. A tracer sees it
    /// nevertheless; without a tracer it vanishes when it is sent.
    fn done_signal(&self, thread: &Stopped, mask: u64) -> Result<Option<i32>, Error> {
        const QUIET: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
        const OTHERS: [i32; 6] =
            [libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT];
        let free = |signal: &i32| (mask | self.target.caught) & signal_bit(*signal) == 0;
        let ignored = |signal: &i32| self.target.ignored & signal_bit(*signal) != 0;
        let mut candidates =
            QUIET.into_iter().filter(free).chain(OTHERS.into_iter().filter(free).filter(ignored)).peekable();
        if candidates.peek().is_none() {
            return Ok(None);
        }
        let mut pending = 0;
        for info in thread.pending(false)?.iter().chain(&thread.pending(true)?) {
            pending |= signal_bit(i32::from_le_bytes([info[0], info[1], info[2], info[3]]));
        }
        Ok(candidates.find(|&signal| pending & signal_bit(signal) == 0))
    }

    fn entry_regs(&self, own: &Regs, abi: Abi) -> Regs {
        let mut regs = leave_syscall(own, abi);
        regs::set(&mut regs, Field::Ip, self.area.offset(layout::CODE).0);
        regs::set(&mut regs, Field::Sp, self.area.offset(layout::TABLE).0);
        regs
    }

    fn write(&self, table: &[u8], batch: &Batch, saved: &Saved) -> Result<()> {
        let at = |place: u64| usize::try_from(place - layout::USED).unwrap_or(0);
        let mut image = vec![0u8; at(layout::BUFFERS) + batch.answer_sizes().1];
        let abi = batch.abi();
        let mut put = |place, bytes: &[u8]| image[at(place)..at(place) + bytes.len()].copy_from_slice(bytes);
        put(layout::TABLE, table);
        put(layout::CODE, &code::assemble(abi, self.area));
        put(layout::SAVED, &code::saved_block(abi, self.area, &saved.regs, saved.table, saved.mask));
        vm::write_all(self.target.pid, self.area.offset(layout::USED), &image)
            .context("write a batch of calls")
    }

    fn read(&self, batch: &Batch) -> Result<Reply> {
        let (table_len, buffers_len) = batch.answer_sizes();
        let mut both = vec![0u8; table_len + buffers_len];
        let remote = [
            vm::Remote::new(self.area.offset(layout::TABLE), table_len),
            vm::Remote::new(self.area.offset(layout::BUFFERS), buffers_len),
        ];
        let n =
            vm::read(self.target.pid, &mut both, &remote).context("read the answers of a batch of calls")?;
        if n != both.len() {
            bail!("read the answers of a batch of calls: {n} of {} bytes", both.len());
        }
        let buffers = both.split_off(table_len);
        Ok(Reply { abi: batch.abi(), table: both, buffers })
    }

    fn run_to_signal(
        &self,
        thread: &mut Stopped,
        signal: i32,
        done: Addr,
        patience: &Patience,
    ) -> Result<()> {
        loop {
            match thread.advance_cont(0, patience)? {
                // The same signal from elsewhere is ignored as it would have been.
                Stop::Signal(stopped_for) if stopped_for == signal => {
                    if regs::sp(&thread.regs()?) == done {
                        return Ok(());
                    }
                }
                Stop::Signal(libc::SIGSTOP) => self.stop_came.set(true),
                stop if stop.is_asked_for() => {}
                other => bail!("thread {}: {other:?} while making system calls", thread.tid()),
            }
        }
    }

    fn step_to_end(&self, thread: &mut Stopped, done: Addr, patience: &Patience) -> Result<()> {
        let mut entered = false;
        loop {
            match thread.advance_to_syscall(0, patience)? {
                Stop::Syscall => {
                    if entered && regs::sp(&thread.regs()?) == done {
                        return Ok(());
                    }
                    entered = !entered;
                }
                Stop::Signal(libc::SIGSTOP) => self.stop_came.set(true),
                stop if stop.is_asked_for() => {}
                other => bail!("thread {}: {other:?} while making system calls", thread.tid()),
            }
        }
    }

    /// SIGSTOP cannot be blocked. One that came while the thread ran our calls is sent again once the thread
    /// stands still, so that it waits for the task to run on.
    fn keep_stop_signal(&self) -> Result<()> {
        if self.stop_came.take() {
            let pid = nix::unistd::Pid::from_raw(self.target.pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).context("send SIGSTOP again")?;
        }
        Ok(())
    }
}

/// Puts mask and registers back. After it the thread stands where the kernel decides about restarting the
/// interrupted system call, which is not so in a system call stop.
fn put_back(thread: &mut Stopped, saved: &Saved, patience: &Patience) -> Result<(), Error> {
    let needs_interrupt = thread.stop() == Stop::Syscall;
    if needs_interrupt {
        thread.interrupt()?;
    }
    thread.set_sigmask(saved.mask)?;
    thread.set_regs(&saved.regs)?;
    while needs_interrupt && !thread.stop().is_asked_for() {
        thread.advance_cont(0, patience)?;
    }
    Ok(())
}
