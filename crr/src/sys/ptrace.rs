//! The ptrace requests, one function each. [`crate::ptrace`] puts types around them.
//!
//! # Safety
//! Every request that writes to our memory gets the address of a live, writable object of the size that
//! the kernel writes: its own struct, a slice with its length in an iovec, or a fixed 8-byte set.
#![allow(unsafe_code)]

use super::check;
use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use images::Addr;
use images::Pid;
use images::signal::SIGINFO_SIZE;
use images::thread::{Rseq, UserDesc};
use libc::{c_int, c_uint, c_void};
use nix::errno::Errno;

/// x87 state: FXSAVE in 64-bit code, FSAVE in 32-bit code.
pub const NT_PRFPREG: c_int = 2;
/// The XSAVE area, in the non-compacted form.
pub const NT_X86_XSTATE: c_int = 0x202;

/// `PTRACE_GET_THREAD_AREA`, arch/x86/include/uapi/asm/ptrace-abi.h.
const GET_THREAD_AREA: c_uint = 25;
/// `PTRACE_SET_THREAD_AREA`, same file.
const SET_THREAD_AREA: c_uint = 26;

/// Bytes of the kernel's `sigset_t`.
const SIGSET_SIZE: usize = 8;

/// Where faults are injected into requests. A detach has none: it can fail only where nothing is left to let go.
#[inline]
fn may_fail(request: c_uint) -> nix::Result<()> {
    fault::point(match request {
        libc::PTRACE_SEIZE => Point::Seize,
        libc::PTRACE_INTERRUPT => Point::Interrupt,
        libc::PTRACE_SETOPTIONS => Point::TraceOptions,
        libc::PTRACE_CONT | libc::PTRACE_SYSCALL => Point::Resume,
        libc::PTRACE_GETREGS => Point::GetRegisters,
        libc::PTRACE_SETREGS => Point::SetRegisters,
        libc::PTRACE_GETREGSET => Point::GetXstate,
        libc::PTRACE_SETREGSET => Point::SetXstate,
        libc::PTRACE_GETSIGMASK => Point::GetMask,
        libc::PTRACE_SETSIGMASK => Point::SetMask,
        libc::PTRACE_PEEKSIGINFO => Point::PeekSignals,
        GET_THREAD_AREA => Point::GetThreadArea,
        SET_THREAD_AREA => Point::SetThreadArea,
        _ => return Ok(()),
    })
}

/// A request whose address and data are values, not pointers.
fn by_value(request: c_uint, tid: Pid, address: usize, data: usize) -> nix::Result<()> {
    may_fail(request)?;
    // SAFETY: callers pass only requests that dereference neither argument.
    check(unsafe { libc::ptrace(request, tid, address, data) }).map(drop)
}

/// A request that reads or writes `*object`.
fn by_pointer<T>(request: c_uint, tid: Pid, address: usize, object: *mut T) -> nix::Result<usize> {
    may_fail(request)?;
    // SAFETY: callers pass the object that the request is defined for, live for the length of the call.
    let value = check(unsafe { libc::ptrace(request, tid, address, object.cast::<c_void>()) })?;
    Ok(usize::try_from(value).unwrap_or(0))
}

/// PTRACE_SEIZE with `PTRACE_O_*` options.
///
/// # Errors
/// EPERM when traced by others, exiting or not permitted; ESRCH when gone.
pub fn seize(tid: Pid, options: c_int) -> nix::Result<()> {
    by_value(libc::PTRACE_SEIZE, tid, 0, usize::try_from(options).map_err(|_| Errno::EINVAL)?)
}

/// PTRACE_INTERRUPT.
///
/// # Errors
/// ESRCH when gone or not ours.
pub fn interrupt(tid: Pid) -> nix::Result<()> {
    by_value(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// A debug register in `struct user`, where PTRACE_PEEKUSER finds it.
const fn debug_register(number: usize) -> usize {
    std::mem::offset_of!(libc::user, u_debugreg) + number * size_of::<u64>()
}

const DEBUG_STATUS: usize = debug_register(6);
const DEBUG_CONTROL: usize = debug_register(7);

/// How many places [`set_breakpoints`] takes.
pub const BREAKPOINTS: usize = 4;

/// PTRACE_POKEUSER of the debug registers: from now on the thread gets SIGTRAP before it runs an instruction at one of these places.
/// Without any, all is off.
///
/// # Errors
/// ESRCH when gone, EINVAL for a place that no task has, ENOSPC where all registers are in use. All is off then.
pub fn set_breakpoints(tid: Pid, places: &[Addr]) -> nix::Result<()> {
    let poke = |register, word: u64| {
        by_value(libc::PTRACE_POKEUSER, tid, register, usize::try_from(word).map_err(|_| Errno::EINVAL)?)
    };
    poke(DEBUG_CONTROL, 0)?;
    let mut control = 0;
    for (number, place) in places.iter().enumerate().take(BREAKPOINTS) {
        poke(debug_register(number), place.0)?;
        // Its bit for this task; the kind 0 is that of instructions.
        control |= 1 << (2 * number);
    }
    if control == 0 { Ok(()) } else { poke(DEBUG_CONTROL, control) }
}

/// PTRACE_PEEKUSER of debug register 6.
///
/// # Errors
/// ESRCH when gone.
pub fn peek_debug_status(tid: Pid) -> nix::Result<u64> {
    let address = std::ptr::without_provenance_mut(DEBUG_STATUS);
    let word = nix::sys::ptrace::read_user(nix::unistd::Pid::from_raw(tid), address)?;
    Ok(word.cast_unsigned())
}

/// PTRACE_POKEUSER of debug register 6: the kernel keeps the word as it is, and the processor never sees it.
///
/// # Errors
/// ESRCH when gone.
pub fn poke_debug_status(tid: Pid, word: u64) -> nix::Result<()> {
    by_value(libc::PTRACE_POKEUSER, tid, DEBUG_STATUS, usize::try_from(word).map_err(|_| Errno::EINVAL)?)
}

/// How a stopped thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// PTRACE_CONT.
    Cont,
    /// PTRACE_SYSCALL: until the next system call entry or exit.
    Syscall,
    /// PTRACE_SINGLESTEP.
    Step,
    /// PTRACE_DETACH.
    Detach,
}

/// Resumes a stopped thread, injecting `signal` (0 for none) where it stopped for a signal.
///
/// # Errors
/// ESRCH when gone.
pub fn resume(tid: Pid, how: Resume, signal: c_int) -> nix::Result<()> {
    let request = match how {
        Resume::Cont => libc::PTRACE_CONT,
        Resume::Syscall => libc::PTRACE_SYSCALL,
        Resume::Step => libc::PTRACE_SINGLESTEP,
        Resume::Detach => libc::PTRACE_DETACH,
    };
    by_value(request, tid, 0, usize::try_from(signal).map_err(|_| Errno::EINVAL)?)
}

/// PTRACE_GETREGS: `struct user_regs_struct` of x86_64 whatever the mode of the thread, other than the register set
/// NT_PRSTATUS, which leaves out what 32-bit code does not see (arch_ptrace() of arch/x86/kernel/ptrace.c).
///
/// # Errors
/// ESRCH when gone.
pub fn get_regs(tid: Pid) -> nix::Result<[u64; 27]> {
    let mut regs = [0u64; 27];
    by_pointer(libc::PTRACE_GETREGS, tid, 0, &raw mut regs)?;
    Ok(regs)
}

/// PTRACE_SETREGS. They are set in their order up to the first that is rejected.
///
/// # Errors
/// ESRCH when gone, EIO for a selector or segment base that the kernel does not set.
pub fn set_regs(tid: Pid, regs: &[u64; 27]) -> nix::Result<()> {
    let mut regs = *regs;
    by_pointer(libc::PTRACE_SETREGS, tid, 0, &raw mut regs).map(drop)
}

/// Whether the system call that a thread is in, or was in last, is one of the ia32 table
/// (PTRACE_GET_SYSCALL_INFO); `None` on kernels before 5.3.
///
/// # Errors
/// ESRCH when gone.
pub fn call_is_ia32(tid: Pid) -> nix::Result<Option<bool>> {
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    if is_disabled(Switch::PtraceSyscallInfo) {
        return Ok(None);
    }
    // struct ptrace_syscall_info up to its union: op and flags, arch, ip, sp.
    let mut info = [0u32; 6];
    match by_pointer(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of_val(&info), info.as_mut_ptr()) {
        Ok(_) => Ok(Some(info[1] == AUDIT_ARCH_I386)),
        Err(Errno::EIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// PTRACE_GETREGSET: fills `buffer` as far as the set goes and returns its length.
///
/// # Errors
/// ESRCH when gone, ENODEV when the processor has no such set.
pub fn get_regset(tid: Pid, note: c_int, buffer: &mut [u8]) -> nix::Result<usize> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    by_pointer(libc::PTRACE_GETREGSET, tid, usize::try_from(note).unwrap_or(0), &raw mut iov)?;
    Ok(iov.iov_len)
}

/// PTRACE_SETREGSET.
///
/// # Errors
/// ESRCH when gone, EINVAL or EFAULT when the kernel rejects the contents.
pub fn set_regset(tid: Pid, note: c_int, contents: &[u8]) -> nix::Result<()> {
    let mut iov = libc::iovec { iov_base: contents.as_ptr().cast_mut().cast(), iov_len: contents.len() };
    by_pointer(libc::PTRACE_SETREGSET, tid, usize::try_from(note).unwrap_or(0), &raw mut iov).map(drop)
}

/// Bytes of the FXSAVE area.
pub const FXSAVE_SIZE: usize = 512;

/// PTRACE_GETFPREGS: the FXSAVE area of a thread in any mode, which is all of the extended state on a processor without XSAVE.
///
/// # Errors
/// ESRCH when gone.
pub fn get_fxsave(tid: Pid) -> nix::Result<[u8; FXSAVE_SIZE]> {
    let mut area = [0u8; FXSAVE_SIZE];
    by_pointer(libc::PTRACE_GETFPREGS, tid, 0, &raw mut area)?;
    Ok(area)
}

/// PTRACE_SETFPREGS.
///
/// # Errors
/// ESRCH when gone.
pub fn set_fxsave(tid: Pid, area: &[u8; FXSAVE_SIZE]) -> nix::Result<()> {
    let mut area = *area;
    by_pointer(libc::PTRACE_SETFPREGS, tid, 0, &raw mut area).map(drop)
}

/// PTRACE_GETSIGMASK. Inside `sigsuspend` and its kin this is the mask that will be put back.
///
/// # Errors
/// ESRCH when gone.
pub fn get_sigmask(tid: Pid) -> nix::Result<u64> {
    let mut mask = 0u64;
    by_pointer(libc::PTRACE_GETSIGMASK, tid, SIGSET_SIZE, &raw mut mask)?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK.
///
/// # Errors
/// ESRCH when gone.
pub fn set_sigmask(tid: Pid, mask: u64) -> nix::Result<()> {
    let mut mask = mask;
    by_pointer(libc::PTRACE_SETSIGMASK, tid, SIGSET_SIZE, &raw mut mask).map(drop)
}

/// `struct ptrace_peeksiginfo_args`.
#[repr(C)]
struct PeekArgs {
    offset: u64,
    flags: u32,
    count: i32,
}

/// PTRACE_PEEKSIGINFO: pending signals, oldest first, without taking them. `shared` picks the queue of the
/// task over that of the thread.
///
/// # Errors
/// ESRCH when gone.
pub fn peek_siginfo(tid: Pid, shared: bool) -> nix::Result<Vec<[u8; SIGINFO_SIZE]>> {
    const BATCH: usize = 16;
    let mut all: Vec<[u8; SIGINFO_SIZE]> = Vec::new();
    loop {
        let mut args = PeekArgs { offset: all.len() as u64, flags: u32::from(shared), count: 16 };
        let mut batch = [[0u8; SIGINFO_SIZE]; BATCH];
        let args = (&raw mut args).addr_for_kernel();
        let count = by_pointer(libc::PTRACE_PEEKSIGINFO, tid, args, batch.as_mut_ptr())?;
        all.extend_from_slice(&batch[..count]);
        if count < BATCH {
            return Ok(all);
        }
    }
}

/// The address of an object that the kernel reads during one call.
trait KernelAddress {
    fn addr_for_kernel(self) -> usize;
}

impl<T> KernelAddress for *mut T {
    fn addr_for_kernel(self) -> usize {
        self.expose_provenance()
    }
}

/// GDT_ENTRY_TLS_MIN to GDT_ENTRY_TLS_MAX of 64-bit kernels, arch/x86/include/asm/segment.h.
pub const TLS_SLOTS: std::ops::RangeInclusive<u32> = 12..=14;
/// Bytes of a `struct user_desc`.
const USER_DESC_SIZE: usize = 16;

/// What a `struct user_desc` tells of a slot; `None` when that is empty.
fn slot(desc: [u32; 4]) -> Option<UserDesc> {
    let found = UserDesc { entry: desc[0], base: desc[1], limit: desc[2], flags: desc[3] };
    // fill_user_desc() of arch/x86/kernel/tls.c shows an empty slot as not present, read-only, all else 0.
    let empty = found.base == 0 && found.limit == 0 && matches!(found.flags, 0 | UserDesc::EMPTY);
    (!empty).then_some(found)
}

/// PTRACE_GET_THREAD_AREA: one GDT TLS slot; `None` when it is empty.
///
/// # Errors
/// ESRCH when gone, EIO when the kernel has no 32-bit side.
pub fn get_thread_area(tid: Pid, entry: u32) -> nix::Result<Option<UserDesc>> {
    let mut desc = [0u32; 4];
    by_pointer(GET_THREAD_AREA, tid, usize::try_from(entry).unwrap_or(0), desc.as_mut_ptr())?;
    Ok(slot(desc))
}

/// NT_386_TLS: the GDT TLS slots in use of a thread in 32-bit code.
///
/// # Errors
/// ESRCH when gone, EINVAL for a thread in 64-bit code.
pub fn get_thread_areas(tid: Pid) -> nix::Result<Vec<UserDesc>> {
    const NT_386_TLS: c_int = 0x200;
    fault::point(Point::GetThreadArea)?;
    let mut descs = [0u8; USER_DESC_SIZE * 3];
    let len = get_regset(tid, NT_386_TLS, &mut descs)?;
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    let desc = |bytes: &[u8]| [0, 4, 8, 12].map(|at| word(&bytes[at..at + 4]));
    Ok(descs[..len].chunks_exact(USER_DESC_SIZE).filter_map(|bytes| slot(desc(bytes))).collect())
}

/// PTRACE_SET_THREAD_AREA.
///
/// # Errors
/// ESRCH when gone, EINVAL for a descriptor that the kernel does not allow.
pub fn set_thread_area(tid: Pid, tls: UserDesc) -> nix::Result<()> {
    let mut desc = [tls.entry, tls.base, tls.limit, tls.flags];
    by_pointer(SET_THREAD_AREA, tid, usize::try_from(tls.entry).unwrap_or(0), desc.as_mut_ptr()).map(drop)
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// PTRACE_GET_RSEQ_CONFIGURATION; `None` when no area is registered.
///
/// # Errors
/// ESRCH when gone, EIO on kernels before 5.13.
pub fn get_rseq(tid: Pid) -> nix::Result<Option<Rseq>> {
    if is_disabled(Switch::PtraceRseq) {
        return Err(Errno::EIO);
    }
    let mut conf = RseqConfiguration::default();
    by_pointer(libc::PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of::<RseqConfiguration>(), &raw mut conf)?;
    Ok((conf.pointer != 0).then_some(Rseq {
        area: Addr(conf.pointer),
        size: conf.size,
        signature: conf.signature,
        flags: conf.flags,
    }))
}

/// `struct ptrace_sud_config` of include/uapi/linux/ptrace.h: mode (0 off, 1 calls from the range are let through), selector, offset, length.
pub type DispatchConfig = [u64; 4];

/// System call user dispatch (PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG).
///
/// # Errors
/// ESRCH when gone, EIO on kernels before 6.4.
pub fn syscall_user_dispatch(tid: Pid) -> nix::Result<DispatchConfig> {
    let mut config = DispatchConfig::default();
    by_pointer(
        libc::PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of_val(&config),
        config.as_mut_ptr(),
    )?;
    Ok(config)
}

/// Sets it (PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG).
///
/// # Errors
/// ESRCH when gone, EIO on kernels before 6.4, EINVAL for a range that wraps.
pub fn set_syscall_user_dispatch(tid: Pid, mut config: DispatchConfig) -> nix::Result<()> {
    let request = libc::PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG;
    by_pointer(request, tid, size_of_val(&config), config.as_mut_ptr()).map(drop)
}

/// PTRACE_SETOPTIONS of a stopped thread.
///
/// # Errors
/// ESRCH when gone; what an option answers.
pub fn set_options(tid: Pid, options: c_int) -> nix::Result<()> {
    by_value(libc::PTRACE_SETOPTIONS, tid, 0, usize::try_from(options).map_err(|_| Errno::EINVAL)?)
}

/// `PTRACE_SECCOMP_GET_FILTER`, include/uapi/linux/ptrace.h.
const SECCOMP_GET_FILTER: c_uint = 0x420c;
/// `PTRACE_SECCOMP_GET_METADATA`, same file.
const SECCOMP_GET_METADATA: c_uint = 0x420d;

/// PTRACE_SECCOMP_GET_FILTER: the program of a filter, 0 being the first that was installed; `None` beyond the last.
///
/// # Errors
/// ESRCH when gone, EACCES without CAP_SYS_ADMIN or when the caller is under seccomp itself, EMEDIUMTYPE for a program that is not
/// classic BPF.
pub fn seccomp_filter(tid: Pid, index: usize) -> nix::Result<Option<Vec<u8>>> {
    use images::seccomp::{INSTRUCTION, MAX_INSTRUCTIONS};
    // The kernel is not told how much room there is: as much as any program takes.
    let mut program = vec![[0u8; INSTRUCTION]; MAX_INSTRUCTIONS];
    match by_pointer(SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr()) {
        Ok(count) => Ok(Some(program[..count].concat())),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// PTRACE_SECCOMP_GET_METADATA: the SECCOMP_FILTER_FLAG_* that the kernel tells of a filter.
///
/// # Errors
/// As [`seccomp_filter`]; EIO before Linux 4.16.
pub fn seccomp_flags(tid: Pid, index: usize) -> nix::Result<u64> {
    // struct seccomp_metadata: filter_off, flags.
    let mut metadata = [u64::try_from(index).map_err(|_| Errno::EINVAL)?, 0];
    by_pointer(SECCOMP_GET_METADATA, tid, size_of_val(&metadata), metadata.as_mut_ptr())?;
    Ok(metadata[1])
}
