//! Asking a stopped task to make system calls, without leaving a trace.
//!
//! What the kernel tells only to the task itself (signal actions, timers, alternate stacks, …) is asked for
//! in batches: an area is mapped in the task (several if it has many threads), a few bytes of code there walk a table of calls ([`code`]),
//! and the area is unmapped again. Nothing is written to memory that the task already had but, for the first and the
//! last call, dead bytes below its stack, which are put back.
//!
//! Nothing here may harm the task if crr is killed in the middle: see the order of steps in [`Executor::run`]. A signal that
//! crr can wait with does wait: calls take microseconds, and a task with seccomp makes them only as long as it is traced.
//!
//! What a killed crr leaves behind are its areas, which the next dump takes out ([`leftover`]).

mod batch;
mod calls;
mod code;
mod frame;
mod gadget;
mod leftover;
mod restart;
mod side_by_side;
mod single;
#[cfg(test)]
mod tests;
mod twin;

pub use batch::{Arg, Batch, Buffer, Handle, Reply};
pub use calls::Call;
pub use frame::finds_back;
pub use gadget::{Cache, CodeArea, Gadget, is_vsyscall};
pub use leftover::{in_leftover, is_leftover};
pub(crate) use restart::{SLEEPS_32, SLEEPS_64};
pub use restart::{in_restart_block, number_in_code};
pub use single::NoRoom;
pub use twin::{TWIN, Twin};

use crate::fault::{self, Point};
use crate::ptrace::regs::{self, Field};
use crate::ptrace::{Error, Patience, Stop, Stopped, signal_bit};
use crate::sys::vm;
use anyhow::{Context, Result, bail};
use code::layout;
use frame::Frame;
use images::signal::SIGINFO_SIZE;
use images::thread::Regs;
use images::{Abi, Addr, Pid};
use nix::errno::Errno;
use std::cell::Cell;
use std::ops::Range;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
/// Of an area that runs batches.
const PROT_ALL: u32 = PROT_READ | PROT_WRITE | PROT_EXEC;

/// Arguments of the mmap(2) of an area.
fn area_args(prot: u32) -> [u64; 6] {
    // Shared: such an area is never merged with a neighbour, so it is known again if it is left.
    const MAP_SHARED_ANONYMOUS: u64 = 0x21;
    let no_fd = u64::MAX;
    [0, layout::SIZE, u64::from(prot), MAP_SHARED_ANONYMOUS, no_fd, 0]
}

/// The signals that are pending for a thread alone, or for its task.
fn pending_mask(thread: &Stopped, shared: bool) -> Result<u64, Error> {
    let number = |info: &[u8; SIGINFO_SIZE]| i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
    let pending = thread.pending(shared)?;
    Ok(pending.iter().map(number).fold(0, |mask, signal| mask | signal_bit(signal)))
}

/// What the executor has to know of a task.
#[derive(Clone, Debug)]
pub struct Target {
    /// The task.
    pub pid: Pid,
    /// A living thread of it, by which its memory is reached.
    pub deputy: Pid,
    /// Its ABI.
    pub abi: Abi,
    /// Where a system call instruction lies.
    pub gadget: Gadget,
    /// The quick way into the kernel of ia32 code ([`is_vsyscall`]), if the task has it.
    pub vsyscall: Option<Addr>,
    /// Signals that it ignores.
    pub ignored: u64,
    /// Signals that it handles.
    pub caught: u64,
    /// Areas of earlier executors ([`is_leftover`]). No thread stands in one.
    pub leftovers: Vec<Addr>,
}

/// What runs batches in a task.
#[derive(Debug)]
pub struct Executor {
    target: Target,
    way: Way,
    /// SIGSTOP was taken off the queue while a thread ran for us.
    stop_came: Cell<bool>,
    /// A thread could not be put back. It finds back by itself when it is let go, by what lies in the task for that: no other call may
    /// be made, which would take its present registers for its own.
    adrift: Cell<bool>,
}

/// How a task makes the calls of a batch.
#[derive(Debug)]
enum Way {
    /// By code in an area of our own.
    Area(Addr),
    /// One by one, at an instruction that it has: there is no room for an area, or it may not hold code.
    Single {
        /// The private memory that the task can write: its stacks lie in there.
        memory: Vec<Range<u64>>,
        /// An area without code, to see what a fresh one is like, or why there is none.
        fresh: nix::Result<Addr>,
    },
}

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

/// The registers by which a thread comes to a batch.
fn entry_regs(area: Addr, own: &Regs, abi: Abi) -> Regs {
    let mut regs = leave_syscall(own, abi);
    regs::set(&mut regs, Field::Ip, area.offset(layout::CODE).0);
    regs::set(&mut regs, Field::Sp, area.offset(layout::TABLE).0);
    regs
}

impl Executor {
    /// Maps the area by one call of `thread` (any thread of the task, in an interrupt- or signal-stop).
    /// What earlier ones have left is unmapped first. `memory` is the private memory that the task can write, asked for
    /// where nothing can be mapped.
    ///
    /// # Errors
    /// When the thread dies.
    pub fn open(
        target: Target,
        thread: &mut Stopped,
        memory: impl FnOnce() -> Vec<Range<u64>>,
        patience: &Patience,
    ) -> Result<Self> {
        let mut executor =
            Self { target, way: Way::Area(Addr(0)), stop_came: Cell::new(false), adrift: Cell::new(false) };
        for &leftover in &executor.target.leftovers {
            executor.unmap(leftover, thread, patience)?;
        }
        let area = match executor.map(PROT_ALL, thread, patience)? {
            // Memory-deny-write-execute or a security module; the end of the address space, of RLIMIT_AS, of RLIMIT_MEMLOCK.
            Err(Errno::EACCES | Errno::EPERM | Errno::ENOMEM | Errno::EAGAIN) => {
                let fresh = executor.map(PROT_READ, thread, patience)?;
                executor.way = Way::Single { memory: memory(), fresh };
                return Ok(executor);
            }
            area => area.context("cannot map a page in the task")?,
        };
        executor.way = Way::Area(area);
        if let Err(e) = executor.mark(area) {
            executor.close(thread, patience)?;
            return Err(e);
        }
        Ok(executor)
    }

    /// Writes its code to an area that was just mapped, and nothing else: by that the area can be told from the task's own should crr be
    /// killed. It is within one page, so all of it is there or nothing; of a longer write a kill can leave the first pages
    /// (`__get_user_pages()`, mm/gup.c).
    fn mark(&self, area: Addr) -> Result<()> {
        let Target { deputy, abi, .. } = self.target;
        vm::write_all(deputy, area.offset(layout::CODE), &code::assemble(abi, area))
            .context("write code to the task")
    }

    /// One that makes calls by [`Executor::call_at_gadget`] alone, and has no area.
    #[must_use]
    pub fn without_area(target: Target) -> Self {
        let way = Way::Single { memory: Vec::new(), fresh: Err(Errno::ENOMEM) };
        Self { target, way, stop_came: Cell::new(false), adrift: Cell::new(false) }
    }

    /// Maps an area of the executor's size.
    fn map(&self, prot: u32, thread: &mut Stopped, patience: &Patience) -> Result<nix::Result<Addr>> {
        Ok(self.call_at_gadget(thread, Call::Mmap, area_args(prot), patience)?.map(Addr))
    }

    /// An area that was mapped just now, as a range of addresses: it is not part of the task.
    ///
    /// # Errors
    /// Why nothing can be mapped in the task.
    pub fn fresh(&self) -> nix::Result<Range<u64>> {
        let area = match self.way {
            Way::Area(area) => area,
            Way::Single { fresh, .. } => fresh?,
        };
        Ok(area.0..area.0 + layout::SIZE)
    }

    /// Where a buffer of a batch will lie; `None` where that is another place for each call.
    #[must_use]
    pub fn place(&self, buffer: Buffer) -> Option<Addr> {
        match self.way {
            Way::Area(area) => Some(buffer.place(area)),
            Way::Single { .. } => None,
        }
    }

    /// What it knows of the task.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether no other call may be made, since a thread could not be put back.
    #[must_use]
    pub fn is_adrift(&self) -> bool {
        self.adrift.get()
    }

    /// Whether each call costs two stops of the thread.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        matches!(self.way, Way::Single { .. })
    }

    /// An empty batch for a thread.
    ///
    /// # Errors
    /// When it is gone.
    pub fn batch(&self, thread: &Stopped) -> Result<Batch, Error> {
        let abi = self.target.abi;
        Ok(Batch::new(match self.way {
            Way::Area(_) => code_for(&thread.regs()?, abi),
            Way::Single { .. } => abi,
        }))
    }

    /// Has `thread` run a batch made for it ([`Executor::batch`]). It stands in a stop with its own registers and mask before and after.
    ///
    /// The order makes each step safe to die after: code, table and the thread's own state are in the area
    /// before its registers lead there; the mask is narrowed after that, since only the way out of the code widens it
    /// again; on return the mask comes first, since the way out still works with it.
    ///
    /// # Errors
    /// When the thread dies or does not come back in time; [`NoRoom`].
    pub fn run(&self, thread: &mut Stopped, batch: &Batch, patience: &Patience) -> Result<Reply> {
        let patience = &patience.for_an_answer();
        let area = match &self.way {
            Way::Area(area) => *area,
            Way::Single { memory, .. } => return self.run_singly(thread, batch, memory, patience),
        };
        let saved = Saved::of(thread)?;
        let signal = self.done_signal(thread, saved.mask, pending_mask(thread, true)?)?;
        let answered = (|| {
            let done = self.start(area, thread, &saved, batch, signal)?;
            fault::point(Point::KilledAsking)?;
            fault::strike(Point::TaskDiesAsked, self.target.deputy);
            match signal {
                Some(signal) => {
                    let first = thread.advance_cont(0, patience)?;
                    self.run_to_signal(thread, first, signal, done, patience)?;
                }
                None => self.step_to_end(thread, done, patience)?,
            }
            self.read(area, batch)
        })();
        self.put_back(thread, &saved, patience, answered)
    }

    /// Gives a thread its registers and its mask again, whatever came of what it was to do: that is the answer. No other thread of the task
    /// runs.
    fn put_back<T>(
        &self,
        thread: &mut Stopped,
        saved: &Saved,
        patience: &Patience,
        outcome: Result<T>,
    ) -> Result<T> {
        let outcome = self.put_back_among_others(thread, saved, patience, outcome)?;
        self.keep_stop_signal(thread)?;
        Ok(outcome)
    }

    /// As [`Executor::put_back`], while others may run: one of them would take SIGSTOP at once if it were sent again.
    fn put_back_among_others<T>(
        &self,
        thread: &mut Stopped,
        saved: &Saved,
        patience: &Patience,
        outcome: Result<T>,
    ) -> Result<T> {
        let back = put_back(thread, saved, patience);
        self.adrift.set(self.is_adrift() || back.is_err());
        let outcome = outcome?;
        back?;
        Ok(outcome)
    }

    /// Writes a batch and makes `thread` ready to run it. Returns where its stack pointer will stand in its last call.
    fn start(
        &self,
        area: Addr,
        thread: &Stopped,
        saved: &Saved,
        batch: &Batch,
        signal: Option<i32>,
    ) -> Result<Addr> {
        let last = match signal {
            Some(signal) => {
                let id = |pid: i32| u64::try_from(pid).unwrap_or(0);
                (Call::Tgkill, [id(self.target.pid), id(thread.tid()), id(signal)])
            }
            None => (Call::SchedYield, [0; 3]),
        };
        let (table, done) = batch.table(area, last);
        self.write(area, &table, batch, saved)?;
        thread.set_regs(&entry_regs(area, &saved.regs, batch.abi()))?;
        thread.set_sigmask(!signal.map_or(0, signal_bit))?;
        Ok(done)
    }

    /// Unmaps the area, if there is one and nobody needs it any more.
    ///
    /// # Errors
    /// When the thread dies or does not come back in time.
    pub fn close(self, thread: &mut Stopped, patience: &Patience) -> Result<()> {
        if self.is_adrift() {
            return Ok(());
        }
        match self.way {
            Way::Area(area) | Way::Single { fresh: Ok(area), .. } => self.unmap(area, thread, patience),
            Way::Single { .. } => Ok(()),
        }
    }

    fn unmap(&self, area: Addr, thread: &mut Stopped, patience: &Patience) -> Result<()> {
        let args = [area.0, layout::SIZE, 0, 0, 0, 0];
        self.call_at_gadget(thread, Call::Munmap, args, patience)?
            .context("cannot unmap a page in the task")?;
        Ok(())
    }

    /// One call at an instruction that the task already has, with no buffers.
    ///
    /// # Errors
    /// When the thread dies or does not come back in time.
    pub fn call_at_gadget(
        &self,
        thread: &mut Stopped,
        call: Call,
        args: [u64; 6],
        patience: &Patience,
    ) -> Result<nix::Result<u64>> {
        let patience = &patience.for_an_answer();
        let saved = Saved::of(thread)?;
        let frame = match call {
            // What it takes away holds no frame.
            Call::Munmap => self.place_frame(thread, &saved, Addr(args[0]).offset(args[1]))?,
            _ => self.place_frame(thread, &saved, Addr(0))?,
        };
        // Left alone now, it would be lost; and no such call takes long, once the thread gets its turn.
        let endless = Patience::endless();
        let patience = if frame.is_some() { patience } else { &endless };
        let result = (|| {
            self.lead_to_call(thread, &saved, frame.as_ref(), call, args)?;
            fault::point(Point::KilledCalling)?;
            self.step_over_call(thread, patience)
        })();
        let result = self.put_back(thread, &saved, patience, result);
        if let Some(frame) = frame.filter(|_| !self.adrift.get()) {
            frame.remove()?;
        }
        Ok(batch::decode_result(self.target.abi, result?))
    }

    /// Takes a thread that was made ready for a call to the end of it. Returns the result register.
    fn step_over_call(&self, thread: &mut Stopped, patience: &Patience) -> Result<u64> {
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
        Ok(regs::get(&thread.regs()?, Field::Ax))
    }

    /// With a frame below its stack, a thread comes back by itself from a call at an instruction of its own when nobody traces it any
    /// more; the frame is there before the registers lead to it. None of it lies below `end`, if that is below the stack pointer: an area of ours can
    /// lie right below a stack.
    fn place_frame(&self, thread: &Stopped, saved: &Saved, end: Addr) -> Result<Option<Frame>> {
        let Target { deputy, abi, gadget, .. } = &self.target;
        let lowest = if end <= regs::sp(&saved.regs) { end } else { Addr(0) };
        match &gadget.escape {
            Some(escape) => Frame::place(*deputy, *abi, thread, saved, escape, lowest),
            None => Ok(None),
        }
    }

    /// Makes `thread` ready for a call at an instruction of its own, in which no signal is to disturb it.
    fn lead_to_call(
        &self,
        thread: &Stopped,
        saved: &Saved,
        frame: Option<&Frame>,
        call: Call,
        args: [u64; 6],
    ) -> Result<(), Error> {
        self.set_up_call(thread, saved, frame, call, args)?;
        thread.set_sigmask(u64::MAX)
    }

    /// Leads `thread` to a call at an instruction of its own, and behind that to its frame.
    fn set_up_call(
        &self,
        thread: &Stopped,
        saved: &Saved,
        frame: Option<&Frame>,
        call: Call,
        args: [u64; 6],
    ) -> Result<(), Error> {
        let Target { abi, ref gadget, .. } = self.target;
        let mut regs = leave_syscall(&saved.regs, abi);
        match (frame, &gadget.escape) {
            (Some(frame), Some(escape)) => {
                let (ip, sp) = match self.target.vsyscall {
                    // It pushes what the code behind its call pops.
                    Some(vsyscall) => (vsyscall, frame.sp.offset(gadget::popped_words(abi) * abi.word())),
                    None => (escape.syscall, frame.sp),
                };
                regs::set(&mut regs, Field::Ip, ip.0);
                regs::set(&mut regs, Field::Sp, sp.0);
            }
            _ => regs::set(&mut regs, Field::Ip, gadget.syscall.0),
        }
        regs::set(&mut regs, Field::Ax, call.number(abi));
        for (n, arg) in args.into_iter().enumerate() {
            regs::set(&mut regs, Field::Arg(n), arg);
        }
        thread.set_regs(&regs)
    }

    /// A signal that means nothing to this thread: ignored, not blocked, not pending, nor `shared_pending`. A tracer sees it
    /// nevertheless; without a tracer it vanishes when it is sent.
    fn done_signal(&self, thread: &Stopped, mask: u64, shared_pending: u64) -> Result<Option<i32>, Error> {
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
        let pending = pending_mask(thread, false)? | shared_pending;
        Ok(candidates.find(|&signal| pending & signal_bit(signal) == 0))
    }

    fn write(&self, area: Addr, table: &[u8], batch: &Batch, saved: &Saved) -> Result<()> {
        let at = |place: u64| usize::try_from(place - layout::USED).unwrap_or(0);
        let mut image = vec![0u8; at(layout::BUFFERS) + batch.answer_sizes().1];
        let abi = batch.abi();
        let mut put = |place, bytes: &[u8]| image[at(place)..at(place) + bytes.len()].copy_from_slice(bytes);
        put(layout::TABLE, table);
        put(layout::BUFFERS, batch.buffers());
        put(layout::CODE, &code::assemble(abi, area));
        let entry = self.target.vsyscall;
        put(layout::SAVED, &code::saved_block(abi, area, &saved.regs, saved.table, saved.mask, entry));
        vm::write_all(self.target.deputy, area.offset(layout::USED), &image).context("write a batch of calls")
    }

    fn read(&self, area: Addr, batch: &Batch) -> Result<Reply> {
        let (table_len, buffers_len) = batch.answer_sizes();
        let mut both = vec![0u8; table_len + buffers_len];
        let remote = [
            vm::Remote::new(area.offset(layout::TABLE), table_len),
            vm::Remote::new(area.offset(layout::BUFFERS), buffers_len),
        ];
        let n = vm::read(self.target.deputy, &mut both, &remote)
            .context("read the answers of a batch of calls")?;
        if n != both.len() {
            bail!("read the answers of a batch of calls: {n} of {} bytes", both.len());
        }
        let buffers = both.split_off(table_len);
        Ok(Reply { abi: batch.abi(), table: both, buffers })
    }

    /// Takes a thread from its `first` stop to the one that tells that its batch is done.
    fn run_to_signal(
        &self,
        thread: &mut Stopped,
        first: Stop,
        signal: i32,
        done: Addr,
        patience: &Patience,
    ) -> Result<()> {
        let mut stop = first;
        loop {
            match stop {
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
            stop = thread.advance_cont(0, patience)?;
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

    /// SIGSTOP cannot be blocked. One that came while threads ran our calls is sent again once all stand still, so that it waits for the
    /// task to run on. A SIGCONT that is pending has come later, and has undone it: either takes the other off all queues
    /// (prepare_signal(), kernel/signal.c).
    fn keep_stop_signal(&self, thread: &Stopped) -> Result<()> {
        if self.stop_came.take() && pending_mask(thread, true)? & signal_bit(libc::SIGCONT) == 0 {
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
