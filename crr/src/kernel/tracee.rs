//! A child to try ptrace on.
//!
//! # Safety
//! After fork the child calls nothing but prctl(2) and pause(2), so it needs no lock that another thread of the
//! parent could have held.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::c_void;

/// A child, seized and stopped. Killed and reaped when dropped.
pub(super) struct Tracee {
    pid: Pid,
}

impl Tracee {
    /// Forks, seizes, stops.
    pub(super) fn stopped() -> Result<Self, String> {
        // SAFETY: the child only calls async-signal-safe functions, see the module's head.
        let fork = unsafe { fork() }.map_err(|errno| format!("fork: {errno}"))?;
        let ForkResult::Parent { child } = fork else { pause_until_killed() };
        let tracee = Self { pid: child };
        ptrace::seize(child, ptrace::Options::empty()).map_err(|errno| format!("PTRACE_SEIZE: {errno}"))?;
        ptrace::interrupt(child).map_err(|errno| format!("PTRACE_INTERRUPT: {errno}"))?;
        match waitpid(child, None) {
            Ok(WaitStatus::PtraceEvent(..)) => Ok(tracee),
            other => Err(format!("the stopped child ended up as {other:?}")),
        }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// A ptrace request that writes at most `buffer` and takes its length.
    pub(super) fn request(&self, request: u32, buffer: &mut [u8]) -> Result<i64, Errno> {
        let len = buffer.len() as *mut c_void;
        // SAFETY: the kernel writes at most the given length to the buffer, which is borrowed for the call.
        Errno::result(unsafe { libc::ptrace(request, self.pid.as_raw(), len, buffer.as_mut_ptr()) })
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // Neither can fail on a child that has not been reaped.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// What the child does; should crr be killed, so is the child.
fn pause_until_killed() -> ! {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: pause takes nothing and touches no memory.
        unsafe { libc::pause() };
    }
}
