//! System calls that answer EINTR when a thread is stopped, though no signal came.
//!
//! Most calls answer a restart code then, and start over unseen when the thread goes on. A few answer EINTR at
//! once, as signal(7) tells: it is put right here, so that a stop by crr shows as little as any other.

use super::regs::{self, Field};
use super::{Error, Stopped, signal_bit};
use images::Abi;
use images::thread::Regs;

/// -ERESTARTNOINTR of include/linux/errno.h: the call starts over in any case.
const ERESTARTNOINTR: i64 = -513;

/// Signals without an effect by default, and none by SIGCONT on a task that runs.
const HARMLESS: [i32; 4] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

/// What a call does that answers EINTR by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// It waits with the signal mask of the thread.
    OwnMask,
    /// It waits with another mask, which is gone by now.
    OtherMask,
}

impl Stopped {
    /// Has a system call start over that was interrupted by nothing but this stop. `dispositions` tells which signals the
    /// task ignores and which it handles; it is asked only if such a call is in progress.
    ///
    /// A timeout of such a call begins anew: the kernel has forgotten what was left of it.
    ///
    /// # Errors
    /// Everything of [`Error`], or what `dispositions` answers.
    pub fn restart_interrupted<E: From<Error>>(
        &self,
        dispositions: impl FnOnce() -> Result<(u64, u64), E>,
    ) -> Result<(), E> {
        let mut regs = self.regs()?;
        if regs::get_signed(&regs, Field::Ax) != -i64::from(libc::EINTR) {
            return Ok(());
        }
        let Some(wait) = interrupted(&regs, self.call_table()?) else { return Ok(()) };
        let (ignored, caught) = dispositions()?;
        let mut pending = 0;
        for info in self.pending(false)?.iter().chain(&self.pending(true)?) {
            pending |= signal_bit(i32::from_le_bytes([info[0], info[1], info[2], info[3]]));
        }
        let blocked = if wait == Wait::OwnMask { self.sigmask()? } else { 0 };
        let harmless = HARMLESS.into_iter().fold(0, |all, signal| all | signal_bit(signal)) & !caught;
        if pending & !(blocked | ignored | harmless) == 0 {
            regs::set(&mut regs, Field::Ax, u64::from_ne_bytes(ERESTARTNOINTR.to_ne_bytes()));
            self.set_regs(&regs)?;
        }
        Ok(())
    }
}

/// Whether the call that a thread comes out of with EINTR is one of these. Numbers: arch/x86/entry/syscalls.
fn interrupted(regs: &Regs, table: Abi) -> Option<Wait> {
    match (table, regs::get(regs, Field::OrigAx)) {
        // rt_sigtimedwait, semop, semtimedop, epoll_wait, io_getevents.
        (Abi::X86_64, 128 | 65 | 220 | 232 | 208) => Some(Wait::OwnMask),
        // epoll_pwait, epoll_pwait2.
        (Abi::X86_64, 281 | 441) => Some(Wait::OtherMask),
        // rt_sigtimedwait, rt_sigtimedwait_time64, semtimedop_time64, epoll_wait, io_getevents.
        (Abi::Ia32, 177 | 421 | 420 | 256 | 247) => Some(Wait::OwnMask),
        // ipc: SEMOP, SEMTIMEDOP, below a version.
        (Abi::Ia32, 117) if matches!(regs::argument(regs, table, 0) & 0xffff, 1 | 4) => Some(Wait::OwnMask),
        // epoll_pwait, epoll_pwait2.
        (Abi::Ia32, 319 | 441) => Some(Wait::OtherMask),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::regs::tests::in_mode;

    fn wait_in(table: Abi, number: u64, first: u64) -> Option<Wait> {
        let mut regs = in_mode(table);
        regs::set(&mut regs, Field::OrigAx, number);
        regs::set(&mut regs, Field::Arg(0), first);
        interrupted(&regs, table)
    }

    #[test]
    fn calls_are_known_by_number_and_table() {
        assert_eq!(wait_in(Abi::X86_64, 128, 0), Some(Wait::OwnMask));
        assert_eq!(wait_in(Abi::Ia32, 177, 0), Some(Wait::OwnMask));
        assert_eq!(wait_in(Abi::X86_64, 281, 0), Some(Wait::OtherMask));
        assert_eq!(wait_in(Abi::X86_64, 177, 0), None);
        assert_eq!(wait_in(Abi::X86_64, u64::MAX, 0), None);
    }

    #[test]
    fn ia32_calls_of_64_bit_code_are_known() {
        let mut regs = in_mode(Abi::X86_64);
        regs::set(&mut regs, Field::OrigAx, 177);
        assert_eq!(interrupted(&regs, Abi::Ia32), Some(Wait::OwnMask));
    }

    #[test]
    fn ipc_is_known_by_its_first_argument() {
        assert_eq!(wait_in(Abi::Ia32, 117, 0x1_0001), Some(Wait::OwnMask));
        assert_eq!(wait_in(Abi::Ia32, 117, 4), Some(Wait::OwnMask));
        assert_eq!(wait_in(Abi::Ia32, 117, 12), None);
    }
}
