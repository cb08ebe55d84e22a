//! Restartable sequences: the area that a thread registered, and what becomes of one that was stopped inside a sequence.
//!
//! A stopped thread has left its processor, so the kernel would take it out of the sequence on its way to user mode
//! (rseq_ip_fixup() of kernel/rseq.c). It finds the sequence by where the thread stands; with a call of ours running it would
//! find none, forget the sequence (clear_rseq_cs) and let the thread go on in the middle of it. So that is done first
//! of all, as the kernel does it.

use super::Refuse;
use crate::ptrace::regs::{self, Field};
use crate::ptrace::{Error, Stopped};
use crate::sys::vm;
use anyhow::{Context, Result};
use images::thread::Rseq;
use images::{Addr, Pid};
use nix::errno::Errno;

/// What is known of a thread's registration.
#[derive(Debug)]
pub(crate) struct Registration {
    /// It, if there is one.
    pub(crate) rseq: Option<Rseq>,
    /// The thread may run code of ours.
    pub(crate) may_run: bool,
}

/// Reads the registration of a thread, and takes it out of the sequence it stands in.
pub(crate) fn dump(pid: Pid, thread: &Stopped, refuse: &mut Refuse<'_>) -> Result<Registration> {
    let tid = thread.tid();
    let rseq = match thread.rseq() {
        Ok(rseq) => rseq,
        Err(Error::Request { errno: Errno::EIO, .. }) => {
            let reason = "this kernel cannot tell its rseq registration (needs Linux 5.13)";
            refuse.because(format!("thread {tid}"), reason);
            return Ok(Registration { rseq: None, may_run: false });
        }
        Err(e) => return Err(e.into()),
    };
    let Some(area) = rseq else { return Ok(Registration { rseq, may_run: true }) };
    let regs = thread.regs()?;
    // The kernel compares the whole register, in 32-bit code too.
    let exit = match find_exit(pid, area, regs.0[16]) {
        Ok(Exit::None) => return Ok(Registration { rseq, may_run: true }),
        Ok(exit) if regs::get_signed(&regs, Field::OrigAx) < 0 => exit,
        Ok(_) => Exit::Wrong("makes a system call inside of a restartable sequence"),
        Err(errno) => return Err(errno).with_context(|| format!("thread {tid}: read its rseq area")),
    };
    match exit {
        Exit::None => {}
        Exit::To(abort) => {
            let mut regs = regs;
            regs.0[16] = abort;
            thread.set_regs(&regs)?;
        }
        Exit::Wrong(reason) => refuse.because(format!("thread {tid}"), reason),
    }
    Ok(Registration { rseq, may_run: !matches!(exit, Exit::Wrong(_)) })
}

/// How a thread leaves the sequence it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// It stands in none.
    None,
    /// To the abort handler.
    To(u64),
    /// Not at all: the kernel ends the task.
    Wrong(&'static str),
}

fn find_exit(pid: Pid, rseq: Rseq, ip: u64) -> nix::Result<Exit> {
    // struct rseq: rseq_cs at 8, flags at 16.
    let mut area = [0u8; 20];
    vm::read_exact(pid, rseq.area, &mut area)?;
    let descriptor = Addr(word(&area, 8));
    if descriptor.0 == 0 {
        return Ok(Exit::None);
    }
    let mut section = [0u8; 32];
    let Ok(()) = vm::read_exact(pid, descriptor, &mut section) else {
        return Ok(Exit::Wrong("its restartable sequence has no descriptor"));
    };
    let section = Section::of(&section);
    let mut signature = [0u8; 4];
    let signature = match vm::read_exact(pid, Addr(section.abort.wrapping_sub(4)), &mut signature) {
        Ok(()) => Some(u32::from_le_bytes(signature)),
        Err(_) => None,
    };
    let thread_flags = regs::low_half(word(&area, 12) >> 32);
    Ok(section.exit(ip, thread_flags, signature == Some(rseq.signature)))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// `struct rseq_cs`, include/uapi/linux/rseq.h.
#[derive(Clone, Copy, Debug)]
struct Section {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}

impl Section {
    fn of(bytes: &[u8; 32]) -> Self {
        let first = word(bytes, 0);
        let (version, flags) = (regs::low_half(first), regs::low_half(first >> 32));
        Self { version, flags, start: word(bytes, 8), length: word(bytes, 16), abort: word(bytes, 24) }
    }

    /// As rseq_get_rseq_cs() and rseq_need_restart() of kernel/rseq.c decide; flags ask not to be restarted, which the
    /// kernel does not grant since 6.0.
    fn exit(self, ip: u64, thread_flags: u32, signature_matches: bool) -> Exit {
        let holds = |address: u64| address.wrapping_sub(self.start) < self.length;
        let overflows = self.start.checked_add(self.length).is_none();
        if self.version != 0 || overflows || holds(self.abort) || !signature_matches {
            return Exit::Wrong("its restartable sequence is one that the kernel does not accept");
        }
        if !holds(ip) {
            return Exit::None;
        }
        if self.flags | thread_flags != 0 {
            return Exit::Wrong("its restartable sequence asks not to be restarted");
        }
        Exit::To(self.abort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: Section = Section { version: 0, flags: 0, start: 0x1000, length: 0x10, abort: 0x2000 };

    #[test]
    fn a_thread_leaves_to_the_abort_handler() {
        for (ip, exit) in [
            (0xfff, Exit::None),
            (0x1000, Exit::To(0x2000)),
            (0x100f, Exit::To(0x2000)),
            (0x1010, Exit::None),
            (0x2000, Exit::None),
        ] {
            assert_eq!(SECTION.exit(ip, 0, true), exit, "{ip:#x}");
        }
    }

    #[test]
    fn what_the_kernel_rejects_is_not_left() {
        let wrong = |section: Section, flags, signature| {
            matches!(section.exit(0x1000, flags, signature), Exit::Wrong(_))
        };
        assert!(wrong(SECTION, 0, false));
        assert!(wrong(SECTION, 1, true));
        assert!(wrong(Section { version: 1, ..SECTION }, 0, true));
        assert!(wrong(Section { flags: 4, ..SECTION }, 0, true));
        assert!(wrong(Section { abort: 0x1008, ..SECTION }, 0, true));
        assert!(wrong(Section { length: u64::MAX, ..SECTION }, 0, true));
    }

    #[test]
    fn fields_lie_where_the_header_has_them() {
        let mut bytes = [0u8; 32];
        for (at, byte) in [(0, 1), (4, 2), (8, 3), (16, 4), (24, 5)] {
            bytes[at] = byte;
        }
        let Section { version, flags, start, length, abort } = Section::of(&bytes);
        assert_eq!((version, flags, start, length, abort), (1, 2, 3, 4, 5));
    }
}
