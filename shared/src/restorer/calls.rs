//! One system call an op, in the layouts of the program's own ABI.
//!
//! # Safety
//! See the parent module: the plan decides what is touched, and it never names the hole.

use super::receive::size;
use super::{Failure, Session, aio, late, lazy, ldt, mempolicy, pkey, seccomp, sysv, timer, vdso};
use crate::abi::common::{CapData, CapHeader, PrctlMmMap, Rlimit64};
use crate::abi::native::{ITimerVal, SigAction, SigEvent, Stack, TimeVal, Word};
use crate::op::{Op, Special};
use crate::sys::{self, Errno, nr};
use core::arch::global_asm;
use core::ffi::c_int;

const MAP_FIXED: u32 = 0x10;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;
/// MADV_HUGEPAGE and MADV_NOHUGEPAGE.
const HUGE_PAGES: [u32; 2] = [14, 15];
const MADV_DONTNEED: usize = 4;
const MADV_POPULATE_WRITE: usize = 23;
/// `__NR_set_robust_list` in the table of the other ABI.
const FOREIGN_SET_ROBUST_LIST: u32 = if cfg!(target_arch = "x86_64") { 311 } else { 273 };
const KERNEL_SIGSET_SIZE: usize = 8;

// Where the coordinator has the hole unmapped from: nothing runs after the call.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl crr_syscall_here", "crr_syscall_here:", "syscall", "ud2");
#[cfg(target_arch = "x86")]
global_asm!(".globl crr_syscall_here", "crr_syscall_here:", "int 0x80", "ud2");

unsafe extern "C" {
    fn crr_syscall_here();
}

/// Address of a system call instruction of this ABI in the hole.
pub(super) fn syscall_address() -> u64 {
    crr_syscall_here as *const () as u64
}

/// Carries out an op that is a plain call.
pub(super) fn call(session: &Session, op: &Op<'_>) -> Result<(), Failure> {
    match *op {
        Op::Map { addr, len, prot, flags, fd, offset } => map(session, addr, len, prot, flags, fd, offset),
        Op::Unmap { addr, len } => plain(nr::__NR_munmap, addr, &[size(addr)?, size(len)?]),
        Op::Attach { id, addr, flags } => sysv::attach(id, addr, flags),
        Op::AttachParts { id, flags, parts } => sysv::attach_parts(id, flags, parts),
        Op::Protect { addr, len, prot } => {
            plain(nr::__NR_mprotect, addr, &[size(addr)?, size(len)?, prot as usize])
        }
        Op::AllocateKeys(last) => pkey::allocate(last),
        Op::AllowKeys => {
            pkey::allow();
            Ok(())
        }
        Op::FreeKeys(keys) => pkey::free(keys),
        Op::ProtectByKey { addr, len, prot, key } => {
            let [start, len, prot] = [size(addr)?, size(len)?, prot as usize];
            match plain(nr::__NR_pkey_mprotect, addr, &[start, len, prot, key as usize]) {
                // Where there are no keys, all memory has this one.
                Err(Failure { errno: EINVAL | ENOSYS, .. }) if key == 0 => {
                    plain(nr::__NR_mprotect, addr, &[start, len, prot])
                }
                other => other,
            }
        }
        Op::Advise { addr, len, advice } => {
            match plain(nr::__NR_madvise, addr, &[size(addr)?, size(len)?, advice as usize]) {
                // A kernel without huge pages does not know it, and needs no advice.
                Err(Failure { errno: EINVAL, .. }) if HUGE_PAGES.contains(&advice) => Ok(()),
                other => other,
            }
        }
        Op::Lock { addr, len, flags } => {
            // ENOMEM: locked, but some of it could not be populated (PROT_NONE, beyond the end of a file), as before.
            match plain(nr::__NR_mlock2, addr, &[size(addr)?, size(len)?, flags as usize]) {
                Err(Failure { errno: ENOMEM, .. }) => Ok(()),
                other => other,
            }
        }
        Op::Seal { addr, len } => plain(nr::__NR_mseal, addr, &[size(addr)?, size(len)?, 0]),
        Op::NameArea { addr, len, name } => {
            const PR_SET_VMA: usize = 0x5356_4d41;
            const PR_SET_VMA_ANON_NAME: usize = 0;
            let args = [PR_SET_VMA, PR_SET_VMA_ANON_NAME, size(addr)?, size(len)?, name.as_ptr().addr()];
            plain(nr::__NR_prctl, addr, &args)
        }
        Op::LockFuture(flags) => plain(nr::__NR_mlockall, 0, &[flags as usize]),
        Op::MemoryPolicy { range, mode, nodes } => mempolicy::set(range, mode, nodes),
        Op::Membarrier(command) => plain(nr::__NR_membarrier, u64::from(command), &[command as usize, 0, 0]),
        Op::Populate { addr, len } => {
            let args = [size(addr)?, size(len)?];
            for advice in [MADV_POPULATE_WRITE, MADV_DONTNEED] {
                // SAFETY: memory that the plan has just mapped, with nothing in it.
                let _ = unsafe { sys::call(nr::__NR_madvise, &[args[0], args[1], advice]) };
            }
            Ok(())
        }
        Op::Place { area, addr } => place(session, area, addr),
        Op::Settle { program, personality, taken } => vdso::settle(session, program, personality, taken),
        Op::Ways { addr, len, functions } => vdso::write_ways(session, addr, len, functions),
        Op::Write { addr, prot, bytes } => write(addr, prot, bytes),
        Op::Layout { addresses, auxv, exe } => layout(session, &addresses, auxv, exe),
        Op::Action { signal, handler, flags, restorer, mask } => {
            let action = SigAction::new(word(handler)?, word(flags)?, word(restorer)?, mask);
            let args = [usize::from(signal), address(&action), 0, KERNEL_SIGSET_SIZE];
            plain(nr::__NR_rt_sigaction, u64::from(signal), &args)
        }
        Op::Prctl { option, args } => prctl(option, args),
        Op::Name(name) => {
            const PR_SET_NAME: usize = 15;
            let mut buffer = [0u8; 16];
            let len = name.len().min(15);
            buffer[..len].copy_from_slice(&name[..len]);
            plain(nr::__NR_prctl, 0, &[PR_SET_NAME, address(&buffer)])
        }
        Op::AltStack { base, size: len, flags } => {
            let stack = Stack::new(word(base)?, flags, word(len)?);
            plain(nr::__NR_sigaltstack, base, &[address(&stack), 0])
        }
        Op::RobustList { head, len } => plain(nr::__NR_set_robust_list, head, &[size(head)?, size(len)?]),
        Op::ForeignRobustList { head, len } => foreign_robust_list(head, len),
        Op::TidAddress(addr) => plain(nr::__NR_set_tid_address, addr, &[size(addr)?]),
        Op::Rseq { area, size: len, flags, signature } => {
            plain(nr::__NR_rseq, area, &[size(area)?, len as usize, flags as usize, signature as usize])
        }
        Op::Queue { thread, info } => queue(thread, info),
        Op::IntervalTimer { which, interval_us, value_us } => {
            let timer = ITimerVal { interval: time(interval_us)?, value: time(value_us)? };
            plain(nr::__NR_setitimer, u64::from(which), &[which as usize, address(&timer), 0])
        }
        Op::TimerCreate { id, clock, notify, thread, signal, value } => {
            let event = SigEvent::new(value as Word, signal, notify, thread);
            timer::create(&event, clock, id, session.start.try_timer_ids != 0)
        }
        Op::TimerStart { id, clock, interval_ns, left_ns, fired, taken } => {
            timer::start(id, &timer::Times { clock, interval_ns, left_ns, fired, taken })
        }
        Op::Groups(groups) => plain(uid_calls::SETGROUPS, 0, &[groups.len() / 4, groups.as_ptr() as usize]),
        Op::Gid(ids) => set_ids(uid_calls::SETRESGID, uid_calls::SETFSGID, ids),
        Op::Uid(ids) => set_ids(uid_calls::SETRESUID, uid_calls::SETFSUID, ids),
        Op::Capabilities { effective, permitted, inheritable } => {
            capabilities(effective, permitted, inheritable)
        }
        Op::Limit { resource, soft, hard } => {
            let limit = Rlimit64 { soft, hard };
            plain(nr::__NR_prlimit64, u64::from(resource), &[0, resource as usize, address(&limit), 0])
        }
        Op::Personality(personality) => plain(nr::__NR_personality, 0, &[personality as usize]),
        Op::CloseOnExec(fd) => {
            const F_SETFD: usize = 2;
            plain(nr::__NR_fcntl, u64::from(fd), &[fd as usize, F_SETFD, 1])
        }
        Op::Ldt { entry, base, limit, flags } => ldt::write(entry, base, limit, flags),
        Op::ArchPrctl { option, arg } => plain(nr::__NR_arch_prctl, arg, &[option as usize, size(arg)?]),
        Op::Filter { flags, at, len } => seccomp::install(session, flags, at, len),
        Op::Hold => {
            seccomp::wait_until_held(session);
            Ok(())
        }
        Op::Programs(bytes) => {
            seccomp::programs(session, bytes);
            Ok(())
        }
        Op::AioContext { addr, len, request, head, tail, events } => {
            aio::make(&aio::Context { addr, len, request, head, tail, events })
        }
        Op::Receive { fd, close_on_exec } => late::receive(fd, close_on_exec),
        Op::Lazy { flags } => lazy::hand_over(session, flags),
        // The leader's loop takes these.
        Op::Join | Op::There | Op::Birth(_) => Err(Failure::wrong(0)),
        Op::Fill { addr, .. } => Err(Failure::wrong(addr)),
        Op::Thread { tid, .. } => Err(Failure::wrong(u64::from(tid.unsigned_abs()))),
    }
}

#[cfg(target_arch = "x86_64")]
mod uid_calls {
    use crate::sys::nr;
    pub(super) const SETGROUPS: u32 = nr::__NR_setgroups;
    pub(super) const SETRESGID: u32 = nr::__NR_setresgid;
    pub(super) const SETRESUID: u32 = nr::__NR_setresuid;
    pub(super) const SETFSGID: u32 = nr::__NR_setfsgid;
    pub(super) const SETFSUID: u32 = nr::__NR_setfsuid;
}

/// The plain names are the old calls with 16-bit ids.
#[cfg(target_arch = "x86")]
mod uid_calls {
    use crate::sys::nr;
    pub(super) const SETGROUPS: u32 = nr::__NR_setgroups32;
    pub(super) const SETRESGID: u32 = nr::__NR_setresgid32;
    pub(super) const SETRESUID: u32 = nr::__NR_setresuid32;
    pub(super) const SETFSGID: u32 = nr::__NR_setfsgid32;
    pub(super) const SETFSUID: u32 = nr::__NR_setfsuid32;
}

pub(super) fn address<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

fn word(value: u64) -> Result<Word, Failure> {
    Word::try_from(value).map_err(|_| Failure::wrong(value))
}

/// A call whose result is only success or an error.
pub(super) fn plain(nr: u32, value: u64, args: &[usize]) -> Result<(), Failure> {
    // SAFETY: the plan names only memory of the task; structs live in the caller's frame.
    unsafe { sys::call(nr, args) }.map(drop).map_err(|errno| Failure::new(errno, value))
}

fn time(us: u64) -> Result<TimeVal, Failure> {
    Ok(TimeVal { seconds: word(us / 1_000_000)?, micros: word(us % 1_000_000)? })
}

fn working_fd(session: &Session, slot: u32) -> Result<c_int, Failure> {
    session.fds.get(slot as usize).copied().ok_or(Failure::wrong(u64::from(slot)))
}

fn map(
    session: &Session,
    addr: u64,
    len: u64,
    prot: u32,
    flags: u32,
    fd: Option<u32>,
    offset: u64,
) -> Result<(), Failure> {
    let fd = fd.map_or(Ok(-1), |slot| working_fd(session, slot))?;
    // SAFETY: the plan maps only outside of the hole.
    let at = unsafe { sys::mmap(size(addr)?, size(len)?, prot, flags | MAP_FIXED, fd, offset) }
        .map_err(|errno| Failure::new(errno, addr))?;
    if at as u64 == addr { Ok(()) } else { Err(Failure::wrong(at as u64)) }
}

fn place(session: &Session, area: Special, addr: u64) -> Result<(), Failure> {
    let wanted = match area {
        Special::Vvar => 0,
        Special::VvarVclock => 1,
        Special::Vdso => 2,
    };
    let before: u64 = session.start.special[..wanted].iter().map(|area| area.len).sum();
    let (from, to) = (size(session.start.parking_addr + before)?, size(addr)?);
    // It must not move away under the call that moves it.
    let entry = if area == Special::Vdso { sys::take_entry() } else { 0 };
    // SAFETY: nothing of this program uses the area, and the plan's place for it is free.
    unsafe { sys::move_mapping(from, to, size(session.start.special[wanted].len)?) }
        .map_err(|errno| Failure::new(errno, addr))?;
    if entry != 0 {
        sys::set_entry(to + (entry - from));
    }
    Ok(())
}

fn write(addr: u64, prot: u32, bytes: &[u8]) -> Result<(), Failure> {
    const PROT_READ_WRITE: usize = 3;
    let protect = |prot| plain(nr::__NR_mprotect, addr, &[size(addr)?, bytes.len(), prot]);
    protect(PROT_READ_WRITE)?;
    // SAFETY: private memory of that length, which the plan has mapped for the task; the plan itself lies in the hole.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), size(addr)? as *mut u8, bytes.len()) };
    protect(prot as usize)
}

fn layout(session: &Session, addresses: &[u64; 11], auxv: &[u8], exe: u32) -> Result<(), Failure> {
    const PR_SET_MM: usize = 35;
    const PR_SET_MM_MAP: usize = 14;
    let [
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        arg_start,
        arg_end,
        env_start,
        env_end,
    ] = *addresses;
    #[allow(clippy::cast_possible_truncation)] // The kernel's own vector has some 50 words.
    let map = PrctlMmMap {
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        arg_start,
        arg_end,
        env_start,
        env_end,
        auxv: auxv.as_ptr() as u64,
        auxv_size: auxv.len() as u32,
        exe_fd: u32::try_from(working_fd(session, exe)?).map_err(|_| Failure::wrong(u64::from(exe)))?,
    };
    plain(nr::__NR_prctl, start_brk, &[PR_SET_MM, PR_SET_MM_MAP, address(&map), size_of::<PrctlMmMap>(), 0])
}

fn prctl(option: u32, args: [u64; 3]) -> Result<(), Failure> {
    let args = [option as usize, size(args[0])?, size(args[1])?, size(args[2])?, 0];
    plain(nr::__NR_prctl, u64::from(option), &args)
}

fn foreign_robust_list(head: u64, len: u64) -> Result<(), Failure> {
    // SAFETY: the kernel only notes the address.
    let ret = unsafe { sys::foreign_call(FOREIGN_SET_ROBUST_LIST, [head, len]) };
    if ret == 0 { Ok(()) } else { Err(Failure::new(Errno(ret.unsigned_abs()), head)) }
}

/// The kernel lets a task queue any siginfo to itself (`do_rt_sigqueueinfo`, kernel/signal.c).
fn queue(thread: bool, info: &[u8]) -> Result<(), Failure> {
    let signal = info.first().copied().map_or(0, usize::from);
    // SAFETY: no arguments.
    let pid = unsafe { sys::call(nr::__NR_getpid, &[]) }.map_err(|errno| Failure::new(errno, 0))?;
    // SAFETY: no arguments.
    let tid = unsafe { sys::call(nr::__NR_gettid, &[]) }.map_err(|errno| Failure::new(errno, 0))?;
    let info = info.as_ptr() as usize;
    if thread {
        plain(nr::__NR_rt_tgsigqueueinfo, signal as u64, &[pid, tid, signal, info])
    } else {
        plain(nr::__NR_rt_sigqueueinfo, signal as u64, &[pid, signal, info])
    }
}

fn set_ids(set: u32, set_fs: u32, [real, effective, saved, fs]: [u32; 4]) -> Result<(), Failure> {
    plain(set, u64::from(effective), &[real as usize, effective as usize, saved as usize])?;
    // setfsuid and setfsgid answer with the old id, success or not: ask again.
    // SAFETY: plain numbers.
    let _ = unsafe { sys::call(set_fs, &[fs as usize]) };
    // SAFETY: plain numbers; -1 changes nothing.
    let now = unsafe { sys::syscall6(set_fs as usize, [u32::MAX as usize, 0, 0, 0, 0, 0]) };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // An id, widened by the kernel.
    if now as u32 == fs { Ok(()) } else { Err(Failure::wrong(u64::from(fs))) }
}

fn capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Failure> {
    #[allow(clippy::cast_possible_truncation)] // Two halves of each set.
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    plain(nr::__NR_capset, permitted, &[address(&CapHeader::SELF), address(&data)])
}
