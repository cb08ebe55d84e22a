//! Restartable sequences: the area that a thread registered, and what becomes of one that was stopped inside a sequence.
//!
//! A stopped thread has left its processor, so the kernel would take it out of the sequence on its way to user mode
//! (rseq_ip_fixup() of kernel/rseq.c). It finds the sequence by where the thread stands; with a call of ours running it would
//! find none, forget the sequence (clear_rseq_cs) and let the thread go on in the middle of it. So that is done first
//! of all, as the kernel does it.

use super::Refuse;
use crate::ptrace::regs::{self, Field};
use crate::ptrace::{Error, Patience, Stopped};
use crate::remote::{Arg, Batch, Call, Executor, Handle};
use crate::sys::vm;
use anyhow::{Context, Result};
use images::thread::{Regs, Rseq};
use images::{Abi, Addr, Pid};
use nix::errno::Errno;

/// What is known of a thread's registration.
#[derive(Debug)]
pub(crate) struct Registration {
    /// It, if there is one.
    pub(crate) rseq: Option<Rseq>,
    /// The thread may run code of ours.
    pub(crate) may_run: bool,
    /// The kernel does not tell, so the thread itself is to be asked ([`ask`]).
    pub(crate) untold: bool,
}

/// Reads the registration of a thread, and takes it out of the sequence it stands in.
pub(crate) fn dump(pid: Pid, thread: &Stopped, refuse: &mut Refuse<'_>) -> Result<Registration> {
    let tid = thread.tid();
    let rseq = match thread.rseq() {
        Ok(rseq) => rseq,
        Err(Error::Request { errno: Errno::EIO, .. }) => {
            // Before 5.13.
            leave_any(pid, thread)?;
            return Ok(Registration { rseq: None, may_run: true, untold: true });
        }
        Err(e) => return Err(e.into()),
    };
    let Some(area) = rseq else { return Ok(Registration { rseq, may_run: true, untold: false }) };
    let regs = thread.regs()?;
    // The kernel compares the whole register, in 32-bit code too.
    let exit = match find_exit(pid, area, regs.0[16]) {
        Ok(Exit::None) => return Ok(Registration { rseq, may_run: true, untold: false }),
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
    Ok(Registration { rseq, may_run: !matches!(exit, Exit::Wrong(_)), untold: false })
}

/// Bytes of the area, and the signature, that C libraries register with (RSEQ_SIG of glibc on x86).
const SIZE: u32 = 32;
const SIGNATURE: u32 = 0x5305_3053;

/// Where a thread may have registered an area: C libraries have it near the thread pointer. What lies there looks like one that the kernel keeps: equal
/// numbers of a processor (rseq_update_cpu_id() of kernel/rseq.c), no flags.
fn candidates(pid: Pid, thread: &Stopped, regs: &Regs) -> Result<Vec<Rseq>> {
    const NEAR: u64 = 4096;
    const MAX_CPUS: u32 = 8192;
    let pointer = match regs::mode(regs) {
        Abi::X86_64 => regs.0[21],
        Abi::Ia32 => {
            let entry = regs::low_half(regs.0[26]) >> 3;
            let area = if (12..15).contains(&entry) { thread.thread_area(entry)? } else { None };
            area.map_or(0, |area| area.base.into())
        }
    };
    let first = pointer.saturating_sub(NEAR) & !(NEAR - 1);
    let mut found = Vec::new();
    for page in (0..3).map(|page| first + page * NEAR) {
        let mut bytes = [0; 4096];
        if pointer == 0 || vm::read_exact(pid, Addr(page), &mut bytes).is_err() {
            continue;
        }
        for (at, area) in (page..).step_by(SIZE as usize).zip(bytes.chunks_exact(SIZE as usize)) {
            let (started, now) = (regs::low_half(word(area, 0)), regs::low_half(word(area, 0) >> 32));
            let flags = regs::low_half(word(area, 16));
            if started == now && now < MAX_CPUS && flags == 0 {
                found.push(Rseq { area: Addr(at), size: SIZE, flags: 0, signature: SIGNATURE });
            }
        }
    }
    Ok(found)
}

/// Takes a thread out of the sequence it stands in, wherever its area is.
fn leave_any(pid: Pid, thread: &Stopped) -> Result<()> {
    let mut regs = thread.regs()?;
    if regs::get_signed(&regs, Field::OrigAx) >= 0 {
        return Ok(());
    }
    for candidate in candidates(pid, thread, &regs)? {
        if let Ok(Exit::To(abort)) = find_exit(pid, candidate, regs.0[16]) {
            regs.0[16] = abort;
            thread.set_regs(&regs)?;
            break;
        }
    }
    Ok(())
}

/// Asks a thread for its registration, on a kernel that does not tell, by having it register: the kernel says EBUSY to who has registered just that, EINVAL
/// to who has registered another area (sys_rseq() of kernel/rseq.c). One who has none gets one, in the executor's
/// area, and gives it back by the next call.
pub(crate) fn ask(
    pid: Pid,
    executor: &Executor,
    thread: &mut Stopped,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Option<Rseq>> {
    const UNREGISTER: u64 = 1;
    let candidates = candidates(pid, thread, &thread.regs()?)?;
    let args = |area, flags| [area, Arg::Value(SIZE.into()), Arg::Value(flags), Arg::Value(SIGNATURE.into())];
    let mut batch = executor.batch(thread)?;
    let own = batch.buffer(SIZE as usize);
    let registered = batch.call(Call::Rseq, &args(Arg::Out(own), 0));
    batch.call(Call::Rseq, &args(Arg::Out(own), UNREGISTER));
    match executor.run(thread, &batch, patience)?.result(registered) {
        Ok(_) | Err(Errno::ENOSYS) => return Ok(None),
        Err(_) => {}
    }
    for some in candidates.chunks(Batch::ROOM) {
        let mut batch = executor.batch(thread)?;
        let handles: Vec<_> = (some.iter())
            .map(|candidate| batch.call(Call::Rseq, &args(Arg::Value(candidate.area.0), 0)))
            .collect();
        let reply = executor.run(thread, &batch, patience)?;
        let busy = |&(_, &handle): &(&Rseq, &Handle)| reply.result(handle) == Err(Errno::EBUSY);
        if let Some((&found, _)) = some.iter().zip(&handles).find(busy) {
            return Ok(Some(found));
        }
    }
    let reason = "has registered a restartable sequence where this kernel does not tell (needs Linux 5.13)";
    refuse.because(format!("thread {}", thread.tid()), reason);
    Ok(None)
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
