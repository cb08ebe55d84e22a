//! ptrace as types: what can be done to a thread follows from its state.
//!
//! [`Seized`] is a traced thread that may run; [`Stopped`] is one that stands in a ptrace-stop, the only state
//! in which registers, masks and queues can be read and written. Going on consumes the value. All requests come from
//! one thread of crr: a tracee belongs to the thread that seized it.
//!
//! Neither type detaches when dropped: who seizes a tree owns the decision how it goes on (see
//! `dump::freeze`), and the kernel detaches everything when crr ends.

mod calls;
mod interrupted;
pub mod regs;

use crate::proc;
use crate::sys::{self, ptrace as request};
use images::signal::SIGINFO_SIZE;
use images::thread::{Dispatch, Regs, Rseq, UserDesc};
use images::{Abi, Addr, Pid};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

pub use calls::{make_call, make_calls};

/// What can go wrong with a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It died: ESRCH for a thread that we hold stopped has no other cause, since only SIGKILL gets through.
    #[error("thread {0}: gone")]
    Gone(Pid),
    /// It did not stop in time.
    #[error("thread {0}: does not stop")]
    TimedOut(Pid),
    /// SIGINT, SIGTERM or SIGHUP came, and the caller holds it blocked to clean up first.
    #[error("interrupted by a signal")]
    Interrupted,
    /// Any other failure.
    #[error("thread {tid}: {what}: {errno}")]
    Request {
        /// Which thread.
        tid: Pid,
        /// Which request.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

fn error(tid: Pid, what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        Errno::ESRCH | Errno::ECHILD => Error::Gone(tid),
        errno => Error::Request { tid, what, errno },
    }
}

/// How long to wait for a thread.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    until: Instant,
    interruptible: bool,
}

impl Patience {
    /// Until `timeout` from now.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { until: Instant::now() + timeout, interruptible: true }
    }

    /// The same time, but not cut short by a signal: for what must not be left half done.
    #[must_use]
    pub fn uninterrupted(self) -> Self {
        Self { interruptible: false, ..self }
    }

    /// For what a stopped thread has been told to do: not cut short by a signal, and as long from now as an answer may take, if that is
    /// later. How long a tree takes to stop, and how many tasks were asked before, is not this thread's fault.
    #[must_use]
    pub fn for_an_answer(self) -> Self {
        const ANSWER: Duration = Duration::from_secs(10);
        Self { until: self.until.max(Instant::now() + ANSWER), interruptible: false }
    }

    /// Without end, for what must not be given up either.
    #[must_use]
    pub fn endless() -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        Self::new(YEAR).uninterrupted()
    }

    /// The moment it ends.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Fails when time is up, or as [`check_interrupted`] does where it may.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Interrupted`].
    pub fn check(&self, tid: Pid) -> Result<(), Error> {
        if self.interruptible {
            check_interrupted()?;
        }
        if Instant::now() >= self.until { Err(Error::TimedOut(tid)) } else { Ok(()) }
    }
}

/// Fails when SIGINT, SIGTERM or SIGHUP is pending for crr while the caller holds it blocked.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn check_interrupted() -> Result<(), Error> {
    let pending = pending_signals();
    let ending = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    // A blocked signal waits even if it is ignored.
    let came = |signal: &Signal| pending.contains(*signal) && !sys::ignores(*signal);
    if ending.iter().any(came) { Err(Error::Interrupted) } else { Ok(()) }
}

/// As [`check_interrupted`], at each 256th of many small steps.
///
/// # Errors
/// As there.
pub fn check_interrupted_at(step: u64) -> Result<(), Error> {
    if step.is_multiple_of(256) { check_interrupted() } else { Ok(()) }
}

/// Signals that are pending for crr because it blocks them.
fn pending_signals() -> SigSet {
    sys::pending_signals().unwrap_or_else(|_| SigSet::empty())
}

/// A traced thread that may be running.
#[derive(Debug, PartialEq, Eq)]
pub struct Seized {
    tid: Pid,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_INTERRUPT: the stop from which everything goes on as if it had not been.
    Interrupt,
    /// The task is stopped by this signal (state T); a tracer can let its threads run all the same.
    Group(i32),
    /// About to take this signal, which is off the queue already.
    Signal(i32),
    /// Entry or exit of a system call, after [`Stopped::cont_to_syscall`].
    Syscall,
    /// Another PTRACE_EVENT.
    Event(i32),
}

impl Stop {
    /// Whether the thread stands where it was asked to stop, about to go back to its own code: an interrupt, which shows as
    /// a group-stop in a stopped task.
    #[must_use]
    pub fn is_asked_for(self) -> bool {
        matches!(self, Self::Interrupt | Self::Group(_))
    }
}

/// What waiting for a thread found.
#[derive(Debug)]
pub enum Waited {
    /// It stopped.
    Stopped(Stopped),
    /// It is gone, with this wait status.
    Ended(i32),
}

/// A thread in a ptrace-stop.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    stop: Stop,
    /// Its general registers, once they have been read: they stay what they are as long as nobody sets them.
    regs: RefCell<Option<Box<Regs>>>,
    /// In the same way its signal mask.
    mask: Cell<Option<u64>>,
}

/// PTRACE_O_TRACESYSGOOD: without it a system call stop looks like SIGTRAP.
const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// PTRACE_O_SUSPEND_SECCOMP of include/uapi/linux/ptrace.h: while it is traced, the thread's seccomp mode has no effect.
const SUSPEND_SECCOMP: i32 = 1 << 21;

impl Seized {
    /// Starts to trace a thread without stopping it.
    ///
    /// # Errors
    /// EPERM when somebody else traces it, it is a kernel thread, or we may not; [`Error::Gone`].
    pub fn seize(tid: Pid) -> Result<Self, Error> {
        Self::seize_with(tid, OPTIONS, "seize")
    }

    fn seize_with(tid: Pid, options: i32, what: &'static str) -> Result<Self, Error> {
        match request::seize(tid, options) {
            Ok(()) => Ok(Self { tid }),
            // The answer for a zombie.
            Err(Errno::EPERM) if proc::has_ended(tid) => Err(Error::Gone(tid)),
            Err(errno) => Err(error(tid, what)(errno)),
        }
    }

    /// As [`Seized::seize`], for a thread that is to die if crr ends before it lets go.
    ///
    /// # Errors
    /// As [`Seized::seize`].
    pub fn seize_for_life(tid: Pid) -> Result<Self, Error> {
        Self::seize_with(tid, OPTIONS | libc::PTRACE_O_EXITKILL, "seize")
    }

    /// As [`Seized::seize_for_life`], for a thread whose seccomp mode is to have no effect until it is let go.
    ///
    /// # Errors
    /// As [`Seized::seize`]; EPERM also without CAP_SYS_ADMIN or when crr is under seccomp itself.
    pub fn seize_for_life_unfiltered(tid: Pid) -> Result<Self, Error> {
        let options = OPTIONS | libc::PTRACE_O_EXITKILL | SUSPEND_SECCOMP;
        Self::seize_with(tid, options, "seize with seccomp suspended")
    }

    /// A child that a traced thread has cloned with CLONE_PTRACE: it is traced as that one is, and stops before it runs anything
    /// (ptrace_init_task(), include/linux/ptrace.h).
    #[must_use]
    pub fn cloned(tid: Pid) -> Self {
        Self { tid }
    }

    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Asks it to stop; [`Seized::wait`] tells when it has.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn interrupt(&self) -> Result<(), Error> {
        request::interrupt(self.tid).map_err(error(self.tid, "interrupt"))
    }

    /// Waits until it stops or ends. The kernel does not tell of a leader that ends before other threads of its task: what it
    /// ended with is then shown as 0.
    ///
    /// Looks often at first: a thread on another processor stops within microseconds, and sleeping would cost more.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn wait(self, patience: &Patience) -> Result<Waited, Error> {
        const QUICK: u32 = 30;
        const STEP: Duration = Duration::from_millis(1);
        // When time is up it still gets a moment: the machine may have stood still (a virtual one does), and the thread with it.
        const LAST_LOOKS: u32 = 20;
        let (mut looks, mut last_looks) = (0, 0);
        loop {
            match sys::wait::wait(self.tid, false) {
                Ok(Some(status)) => return Ok(self.decode(status)),
                Ok(None) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(error(self.tid, "wait")(errno)),
            }
            looks += 1;
            if looks < QUICK {
                std::hint::spin_loop();
            } else {
                if looks > QUICK && self.ended_untold()? {
                    return Ok(Waited::Ended(0));
                }
                match patience.check(self.tid) {
                    Err(Error::TimedOut(_)) if last_looks < LAST_LOOKS => last_looks += 1,
                    checked => checked?,
                }
                sys::wait::for_any_change(STEP);
            }
        }
    }

    /// Whether it has ended, and waiting does not tell.
    fn ended_untold(&self) -> Result<bool, Error> {
        if !proc::has_ended(self.tid) {
            return Ok(false);
        }
        // It may have ended just now, which the next wait tells.
        sys::wait::is_told(self.tid).map(|told| !told).map_err(error(self.tid, "wait"))
    }

    /// As [`Seized::wait`], for a thread whose end is a failure.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn wait_stop(self, patience: &Patience) -> Result<Stopped, Error> {
        let tid = self.tid;
        match self.wait(patience)? {
            Waited::Stopped(stopped) => Ok(stopped),
            Waited::Ended(_) => Err(Error::Gone(tid)),
        }
    }

    fn decode(self, status: i32) -> Waited {
        if !libc::WIFSTOPPED(status) {
            return Waited::Ended(status);
        }
        let signal = libc::WSTOPSIG(status);
        let stop = match status >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            0 => Stop::Signal(signal),
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
            libc::PTRACE_EVENT_STOP => Stop::Group(signal),
            event => Stop::Event(event),
        };
        Waited::Stopped(Stopped { tid: self.tid, stop, regs: RefCell::default(), mask: Cell::default() })
    }
}

impl Stopped {
    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Why it stopped.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// General registers; once they have been read, also those of a thread that has been killed since.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn regs(&self) -> Result<Regs, Error> {
        if let Some(known) = &*self.regs.borrow() {
            return Ok(Regs::clone(known));
        }
        let regs = request::get_regs(self.tid).map(Regs).map_err(error(self.tid, "read registers"))?;
        self.regs.replace(Some(Box::new(regs.clone())));
        Ok(regs)
    }

    /// Sets the general registers, and with the code segment the mode: all of them or, if there is one that cannot be
    /// set, none.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn set_regs(&self, regs: &Regs) -> Result<(), Error> {
        if regs::not_settable(regs).is_some() {
            return Err(error(self.tid, "write registers")(Errno::EIO));
        }
        self.regs.take();
        request::set_regs(self.tid, &regs.0).map_err(error(self.tid, "write registers"))
    }

    /// From here on the thread dies with this process; `unfiltered`, its seccomp is suspended until then.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn die_with_tracer(&self, unfiltered: bool) -> Result<(), Error> {
        let more = if unfiltered { SUSPEND_SECCOMP } else { 0 };
        request::set_options(self.tid, OPTIONS | libc::PTRACE_O_EXITKILL | more)
            .map_err(error(self.tid, "tie it to this process"))
    }

    /// From here on the thread is let go by the kernel if this process ends.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn outlive_tracer(&self) -> Result<(), Error> {
        request::set_options(self.tid, OPTIONS).map_err(error(self.tid, "untie it from this process"))
    }

    /// Writes arguments of a call that the thread is to be made to make, on its stack, well below what is in use of it, red zone
    /// included: at most 512 bytes, aligned to 16. It must run on a stack of crr's. Returns where they are.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn write_below_stack(&self, bytes: &[u8]) -> Result<Addr, Error> {
        let place = Addr((regs::sp(&self.regs()?).0 - 1024) & !15);
        sys::vm::write_all(self.tid, place, bytes).map_err(error(self.tid, "write below its stack"))?;
        Ok(place)
    }

    /// The ABI whose table the system call is from that the thread is in: where the kernel cannot tell, that of its mode.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn call_table(&self) -> Result<Abi, Error> {
        match request::call_is_ia32(self.tid).map_err(error(self.tid, "ask for its system call"))? {
            Some(true) => Ok(Abi::Ia32),
            Some(false) => Ok(Abi::X86_64),
            None => Ok(regs::mode(&self.regs()?)),
        }
    }

    /// The whole XSAVE area.
    ///
    /// # Errors
    /// Everything of [`Error`]; ENODEV on a processor without XSAVE.
    pub fn xstate(&self) -> Result<Vec<u8>, Error> {
        // Room for all components there are, AMX tiles included; the kernel cuts to what it has.
        let mut buffer = vec![0u8; 16384];
        let len = match request::get_regset(self.tid, request::NT_X86_XSTATE, &mut buffer) {
            // No XSAVE: all there is lies in the first part of such an area.
            Err(Errno::ENODEV) => request::get_fxsave(self.tid).map(|area| {
                buffer[..area.len()].copy_from_slice(&area);
                area.len()
            }),
            read => read,
        };
        buffer.truncate(len.map_err(error(self.tid, "read xstate"))?);
        buffer.shrink_to_fit();
        Ok(buffer)
    }

    /// What FSAVE would store, of a thread in 32-bit code: `struct user_i387_ia32_struct`, 108 bytes.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn legacy_fpu(&self) -> Result<Vec<u8>, Error> {
        const SIZE: usize = 108;
        let mut buffer = vec![0u8; SIZE];
        let len = request::get_regset(self.tid, request::NT_PRFPREG, &mut buffer)
            .map_err(error(self.tid, "read x87 state"))?;
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Sets the whole XSAVE area; on a processor without XSAVE, what that one has of it.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn set_xstate(&self, xstate: &[u8]) -> Result<(), Error> {
        let set = match request::set_regset(self.tid, request::NT_X86_XSTATE, xstate) {
            Err(Errno::ENODEV) => {
                xstate.first_chunk().map_or(Err(Errno::EINVAL), |area| request::set_fxsave(self.tid, area))
            }
            set => set,
        };
        set.map_err(error(self.tid, "write xstate"))
    }

    /// Blocked signals; inside `sigsuspend` and its kin those that will be blocked afterwards.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn sigmask(&self) -> Result<u64, Error> {
        if let Some(known) = self.mask.get() {
            return Ok(known);
        }
        let mask = request::get_sigmask(self.tid).map_err(error(self.tid, "read signal mask"))?;
        self.mask.set(Some(mask));
        Ok(mask)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn set_sigmask(&self, mask: u64) -> Result<(), Error> {
        self.mask.take();
        request::set_sigmask(self.tid, mask).map_err(error(self.tid, "write signal mask"))
    }

    /// The word that [`Stopped::set_note`] left with the thread, or what the kernel has there otherwise.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn note(&self) -> Result<u64, Error> {
        request::peek_debug_status(self.tid).map_err(error(self.tid, "read debug register 6"))
    }

    /// Leaves a word with the thread that only a tracer sees: the kernel's copy of debug register 6.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn set_note(&self, note: u64) -> Result<(), Error> {
        request::poke_debug_status(self.tid, note).map_err(error(self.tid, "write debug register 6"))
    }

    /// Signals pending for this thread alone (`shared` false) or its task, oldest first.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; SIGINFO_SIZE]>, Error> {
        request::peek_siginfo(self.tid, shared).map_err(error(self.tid, "read pending signals"))
    }

    /// The GDT TLS slots (12 to 14) that are in use.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn thread_areas(&self) -> Result<Vec<UserDesc>, Error> {
        let areas = match regs::mode(&self.regs()?) {
            Abi::Ia32 => request::get_thread_areas(self.tid),
            // Nobody shows those of 64-bit code all at once.
            Abi::X86_64 => request::TLS_SLOTS
                .filter_map(|slot| request::get_thread_area(self.tid, slot).transpose())
                .collect(),
        };
        areas.map_err(error(self.tid, "read GDT entries"))
    }

    /// One GDT TLS slot (12 to 14).
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn thread_area(&self, entry: u32) -> Result<Option<UserDesc>, Error> {
        request::get_thread_area(self.tid, entry).map_err(error(self.tid, "read GDT entry"))
    }

    /// Sets one GDT TLS slot.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn set_thread_area(&self, tls: UserDesc) -> Result<(), Error> {
        // The base of a segment register that selects it changes, too.
        self.regs.take();
        request::set_thread_area(self.tid, tls).map_err(error(self.tid, "write GDT entry"))
    }

    /// rseq registration.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn rseq(&self) -> Result<Option<Rseq>, Error> {
        request::get_rseq(self.tid).map_err(error(self.tid, "read rseq registration"))
    }

    /// System call user dispatch; `None` where it is off, or the kernel cannot tell (before 6.4).
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn dispatch(&self) -> Result<Option<Dispatch>, Error> {
        match request::syscall_user_dispatch(self.tid) {
            Ok([0, ..]) | Err(Errno::EIO) => Ok(None),
            Ok([_, selector, offset, len]) => Ok(Some(Dispatch { selector: Addr(selector), offset, len })),
            Err(errno) => Err(error(self.tid, "read system call user dispatch")(errno)),
        }
    }

    /// Sets system call user dispatch, or switches it off.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn set_dispatch(&self, dispatch: Option<&Dispatch>) -> Result<(), Error> {
        const ALL_BUT_RANGE: u64 = 1;
        const RANGE_ALONE: u64 = 2;
        let config = match dispatch {
            None => request::DispatchConfig::default(),
            // A range that wraps is how the kernel keeps its opposite: calls from the rest of memory are let through
            // (set_syscall_user_dispatch(), kernel/entry/syscall_user_dispatch.c).
            Some(&Dispatch { selector: Addr(selector), offset, len }) => match offset.checked_add(len) {
                None => [RANGE_ALONE, selector, offset.wrapping_add(len), len.wrapping_neg()],
                Some(_) => [ALL_BUT_RANGE, selector, offset, len],
            },
        };
        let set = request::set_syscall_user_dispatch(self.tid, config);
        set.map_err(error(self.tid, "write system call user dispatch"))
    }

    /// Takes the effect from its seccomp mode for as long as it is traced.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN or when crr is under seccomp itself, EINVAL without CONFIG_CHECKPOINT_RESTORE;
    /// [`Error::Gone`].
    pub fn suspend_seccomp(&self) -> Result<(), Error> {
        request::set_options(self.tid, OPTIONS | SUSPEND_SECCOMP).map_err(error(self.tid, "suspend seccomp"))
    }

    /// Makes a thread that was seized for life ([`Seized::seize_for_life_unfiltered`] if `unfiltered`) stop once more at its end,
    /// by [`Stop::Event`] of PTRACE_EVENT_EXIT: there it can be let go, and runs no instruction any more.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn stop_at_end(&self, unfiltered: bool) -> Result<(), Error> {
        let more = if unfiltered { SUSPEND_SECCOMP } else { 0 };
        let options = OPTIONS | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXIT | more;
        request::set_options(self.tid, options).map_err(error(self.tid, "stop it at its end"))
    }

    /// Makes a thread that is to end stop once more at its end, by [`Stop::Event`] of PTRACE_EVENT_EXIT: it still has all its memory then,
    /// and if its tracer ends, so does it, wherever it is. `unfiltered` is for one of a task whose seccomp mode is suspended.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn hold_at_end(&self, unfiltered: bool) -> Result<(), Error> {
        let more = if unfiltered { SUSPEND_SECCOMP } else { 0 };
        let options = OPTIONS | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXIT | more;
        request::set_options(self.tid, options).map_err(error(self.tid, "hold it at its end"))
    }

    /// The program of a seccomp filter, by its place in the order of installation.
    ///
    /// # Errors
    /// As [`request::seccomp_filter`].
    pub fn seccomp_filter(&self, index: usize) -> Result<Option<Vec<u8>>, Error> {
        request::seccomp_filter(self.tid, index).map_err(error(self.tid, "read a seccomp filter"))
    }

    /// Its SECCOMP_FILTER_FLAG_*, as far as the kernel tells.
    ///
    /// # Errors
    /// As [`request::seccomp_flags`].
    pub fn seccomp_flags(&self, index: usize) -> Result<u64, Error> {
        request::seccomp_flags(self.tid, index).map_err(error(self.tid, "read the flags of a seccomp filter"))
    }

    /// Makes the next resumption end in [`Stop::Interrupt`] before the thread runs any code of its own.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn interrupt(&self) -> Result<(), Error> {
        request::interrupt(self.tid).map_err(error(self.tid, "interrupt"))
    }

    /// Lets it run; `signal` is delivered where it stopped for one, 0 drops that.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn cont(self, signal: i32) -> Result<Seized, Error> {
        self.resume(request::Resume::Cont, signal)
    }

    /// Lets it run to the next entry or exit of a system call.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn cont_to_syscall(self, signal: i32) -> Result<Seized, Error> {
        self.resume(request::Resume::Syscall, signal)
    }

    /// The same thread after its task was sent SIGKILL: it is on its way out, whatever it stood in.
    #[must_use]
    pub fn doomed(self) -> Seized {
        Seized { tid: self.tid }
    }

    /// Stops tracing it; it goes on as `signal` says.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn detach(self, signal: i32) -> Result<(), Error> {
        self.resume(request::Resume::Detach, signal).map(drop)
    }

    /// Lets it run until the next stop, which becomes this one. For a caller that keeps a thread over many steps.
    ///
    /// # Errors
    /// Everything of [`Error`]; the thread is then gone, or still on its way.
    pub fn advance_cont(&mut self, signal: i32, patience: &Patience) -> Result<Stop, Error> {
        self.advance(request::Resume::Cont, signal, patience)
    }

    /// As [`Stopped::advance_cont`], to the next entry or exit of a system call at the latest.
    ///
    /// # Errors
    /// Everything of [`Error`]; the thread is then gone, or still on its way.
    pub fn advance_to_syscall(&mut self, signal: i32, patience: &Patience) -> Result<Stop, Error> {
        self.advance(request::Resume::Syscall, signal, patience)
    }

    /// Lets it run one instruction after the other until its registers suit, which is told, `limit` have been run, or a signal is about
    /// to be delivered, which stays on its queue. It then stands in an interrupt-stop.
    ///
    /// # Errors
    /// Everything of [`Error`]; the thread is then gone, or still on its way.
    pub fn step_until(
        &mut self,
        limit: u32,
        patience: &Patience,
        suits: impl Fn(&Regs) -> bool,
    ) -> Result<bool, Error> {
        let mut found = false;
        for _ in 0..limit {
            let stop = self.advance(request::Resume::Step, 0, patience)?;
            if stop != Stop::Signal(libc::SIGTRAP) || !self.was_stepped()? {
                self.settle_here(patience)?;
                return Ok(false);
            }
            found = suits(&self.regs()?);
            if found {
                break;
            }
        }
        self.drop_trap(patience)?;
        Ok(found)
    }

    /// Lets it run until it comes to one of up to four places ([`request::BREAKPOINTS`]), which is told, or a signal is about to be delivered,
    /// which stays on its queue. It then stands in an interrupt-stop. As long as it runs it would die by a kill of this process.
    ///
    /// # Errors
    /// Everything of [`Error`] but that it does not come there in time: then it stands elsewhere.
    pub fn run_to(&mut self, places: &[Addr], patience: &Patience) -> Result<bool, Error> {
        if places.is_empty() {
            return Ok(false);
        }
        // Somebody else may have them all, and some machines have none.
        if request::set_breakpoints(self.tid, places).is_err() {
            request::set_breakpoints(self.tid, &[]).ok();
            return Ok(false);
        }
        let ran = match self.advance(request::Resume::Cont, 0, patience) {
            Err(Error::TimedOut(_)) => {
                self.interrupt()?;
                *self = Seized { tid: self.tid }.wait_stop(&Patience::endless())?;
                self.stop
            }
            ran => ran?,
        };
        request::set_breakpoints(self.tid, &[]).map_err(error(self.tid, "take breakpoints off"))?;
        let is_there = places.contains(&regs::ip(&self.regs()?));
        if ran == Stop::Signal(libc::SIGTRAP) && is_there && self.was_stepped()? {
            self.drop_trap(&Patience::endless())?;
            return Ok(true);
        }
        self.settle_here(&Patience::endless())?;
        Ok(false)
    }

    /// As [`Stopped::settle`], for a caller that keeps the thread.
    fn settle_here(&mut self, patience: &Patience) -> Result<(), Error> {
        *self = self.take().settle(patience)?;
        Ok(())
    }

    /// The thread, to be put back as what it becomes. If it is not, nothing is known of its registers.
    fn take(&mut self) -> Self {
        Self {
            tid: self.tid,
            stop: self.stop,
            regs: RefCell::new(self.regs.take()),
            mask: self.mask.take().into(),
        }
    }

    /// From the stop for a trap to an interrupt-stop, without that signal.
    fn drop_trap(&mut self, patience: &Patience) -> Result<(), Error> {
        self.interrupt()?;
        while !self.stop.is_asked_for() {
            self.advance(request::Resume::Cont, 0, patience)?;
        }
        Ok(())
    }

    /// Whether the kernel made the signal that it stopped for: a step tells of itself by TRAP_TRACE or, behind a system call, by TRAP_BRKPT
    /// (user_single_step_report() of arch/x86/kernel/ptrace.c), a breakpoint by TRAP_HWBKPT.
    fn was_stepped(&self) -> Result<bool, Error> {
        let info = nix::sys::ptrace::getsiginfo(nix::unistd::Pid::from_raw(self.tid));
        Ok(info.map_err(error(self.tid, "read its signal"))?.si_code > 0)
    }

    /// The first half of [`Stopped::advance_cont`], for a caller that has other things to do meanwhile. Nothing can be asked of the thread until
    /// [`Stopped::arrive`]; until then, and if that fails, it is still said to stand in its old [`Stopped::stop`].
    ///
    /// # Errors
    /// [`Error::Gone`]; the same holds then.
    pub fn set_off(&mut self, signal: i32) -> Result<Seized, Error> {
        self.take().cont(signal)
    }

    /// Waits for the next stop of this thread, which was set off.
    ///
    /// # Errors
    /// As [`Stopped::advance_cont`].
    pub fn arrive(&mut self, running: Seized, patience: &Patience) -> Result<Stop, Error> {
        *self = running.wait_stop(patience)?;
        Ok(self.stop)
    }

    fn advance(&mut self, how: request::Resume, signal: i32, patience: &Patience) -> Result<Stop, Error> {
        let running = self.take().resume(how, signal)?;
        self.arrive(running, patience)
    }

    fn resume(self, how: request::Resume, signal: i32) -> Result<Seized, Error> {
        request::resume(self.tid, how, signal).map_err(error(self.tid, "resume"))?;
        Ok(Seized { tid: self.tid })
    }

    /// Brings a thread that was asked to interrupt, and stopped for something else first, to the
    /// interrupt-stop, with the signal it was about to take back on its queue.
    ///
    /// ptrace_signal() of kernel/signal.c queues an injected signal again when it is blocked at that moment, to the
    /// queue it came from; so it is blocked for this one resumption. A stop signal cannot be put back: the group stops.
    ///
    /// # Errors
    /// Everything of [`Error`].
    pub fn settle(self, patience: &Patience) -> Result<Stopped, Error> {
        let mut stopped = self;
        loop {
            let signal = match stopped.stop {
                Stop::Interrupt | Stop::Group(_) => return Ok(stopped),
                Stop::Signal(signal) => signal,
                Stop::Syscall | Stop::Event(_) => 0,
            };
            let mask = stopped.sigmask()?;
            let blocked = signal_bit(signal);
            if blocked & !mask != 0 {
                stopped.set_sigmask(mask | blocked)?;
            }
            // Without the interrupt still outstanding the thread would run on.
            stopped.interrupt()?;
            stopped = stopped.cont(signal)?.wait_stop(patience)?;
            if blocked & !mask != 0 {
                stopped.set_sigmask(mask)?;
            }
        }
    }
}

/// The bit of a signal in a mask; 0 for no signal.
#[must_use]
pub fn signal_bit(signal: i32) -> u64 {
    match signal {
        1..=64 => 1 << (signal - 1),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Patience};
    use std::time::Duration;

    #[test]
    fn an_answer_has_time_of_its_own() {
        let spent = Patience::new(Duration::ZERO);
        assert_eq!(spent.check(1), Err(Error::TimedOut(1)));
        assert_eq!(spent.for_an_answer().check(1), Ok(()));
        let long = Patience::new(Duration::from_secs(3600));
        assert_eq!(long.for_an_answer().until(), long.until());
    }
}
