//! System calls of the ia32 ABI made by this 64-bit process, and the robust lists that need one.
//!
//! The kernel keeps two robust lists a thread: `get_robust_list` shows the one of the ABI of the call, so the
//! ia32 one is only to be had by `int 0x80`, with pointers below 4 GiB.
//!
//! # Safety
//! `int 0x80` from 64-bit code keeps rbx, rbp and r12-r15 and may clear r8-r11; the block saves rbx, which
//! LLVM reserves, and names the rest. Pointers handed to it lie in a mapping of ours below 4 GiB.
#![allow(unsafe_code)]

use super::check;
use images::thread::RobustList;
use images::{Addr, Pid};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use std::arch::asm;
use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

/// get_robust_list by the 64-bit call; `None` when no list is registered.
///
/// # Errors
/// ESRCH when gone, EPERM.
pub fn robust_list_64(tid: Pid) -> nix::Result<Option<RobustList>> {
    let mut head = 0u64;
    let mut len = 0u64;
    // SAFETY: the kernel writes one word to each.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head != 0).then_some(RobustList { head: Addr(head), len }))
}

/// `__NR_get_robust_list` of arch/x86/entry/syscalls/syscall_32.tbl.
const GET_ROBUST_LIST: u32 = 312;

/// What threads need to ask for ia32 robust lists: each that asks takes a buffer meanwhile.
#[derive(Debug)]
pub struct LowBuffers(Mutex<Vec<LowBuffer>>);

impl LowBuffers {
    /// With one buffer; others are made where several threads ask at the same time.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> nix::Result<Self> {
        Ok(Self(Mutex::new(vec![LowBuffer::new()?])))
    }

    /// get_robust_list by the ia32 call; `None` when no list is registered, and where none can be.
    ///
    /// # Errors
    /// ESRCH when gone, EPERM, ENOMEM.
    pub fn robust_list_32(&self, tid: Pid) -> nix::Result<Option<RobustList>> {
        // A panic of another thread leaves the buffers as they are.
        let spare = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = spare().pop();
        let buffer = one.map_or_else(LowBuffer::new, Ok)?;
        let list = buffer.robust_list_32(tid);
        spare().push(buffer);
        list
    }
}

/// Two words below 4 GiB for the kernel to write to.
#[derive(Debug)]
pub struct LowBuffer {
    base: NonNull<u32>,
}

impl LowBuffer {
    /// Maps one page below 4 GiB (below 2 GiB by MAP_32BIT).
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> nix::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), Self::SIZE, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { base })
    }

    const SIZE: usize = 4096;

    fn robust_list_32(&self, tid: Pid) -> nix::Result<Option<RobustList>> {
        if !available()? {
            return Ok(None);
        }
        let base = u32::try_from(self.base.as_ptr().expose_provenance()).map_err(|_| Errno::EFAULT)?;
        let tid = u32::try_from(tid).map_err(|_| Errno::ESRCH)?;
        // SAFETY: the kernel writes one 32-bit word to each of the first two words of our page.
        let result = unsafe { int80(GET_ROBUST_LIST, [tid, base, base + 4]) };
        if result < 0 {
            return Err(Errno::from_raw(-result));
        }
        // SAFETY: the mapping is ours, readable and aligned; nobody else writes to it now.
        let [head, len] = unsafe { self.base.cast::<[u32; 2]>().read_volatile() };
        Ok((head != 0).then_some(RobustList { head: Addr(u64::from(head)), len: u64::from(len) }))
    }
}

// SAFETY: a mapping is no thread's, and whoever has this is the only one to use its own.
unsafe impl Send for LowBuffer {}

impl Drop for LowBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left. A failure leaves one page mapped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::SIZE) };
    }
}

/// Whether this kernel takes ia32 system calls. Booted with `ia32_emulation=0` it answers `int 0x80` with SIGSEGV, so
/// this is tried, once: a dump has that done before the tree stands still.
///
/// # Errors
/// If it cannot be tried.
pub fn available() -> nix::Result<bool> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    match KNOWN.get() {
        Some(&known) => Ok(known),
        None => try_out().map(|found| *KNOWN.get_or_init(|| found)),
    }
}

/// As [`available`], by trying it: by a child only if crr has seccomp filters, which may kill who makes a call of another architecture. A
/// fork costs a small dump a twentieth of its time, most of it for the pages of crr that it write-protects.
fn try_out() -> nix::Result<bool> {
    // SAFETY: takes no argument.
    let is_filtered = unsafe { libc::prctl(libc::PR_GET_SECCOMP) } != 0;
    if is_filtered { try_by_child() } else { try_here(getpid) }
}

/// Makes a call; whether it got an answer.
fn getpid() -> bool {
    /// `__NR_getpid` of syscall_32.tbl.
    const GETPID: u32 = 20;
    // SAFETY: getpid takes no pointers.
    unsafe { int80(GETPID, [0; 3]) > 0 }
}

/// Does something in which an ia32 call fails where the kernel does not take it. One thread at a time: the action for SIGSEGV is that of all.
fn try_here<T>(call: impl FnOnce() -> T) -> nix::Result<T> {
    static TURN: Mutex<()> = Mutex::new(());
    // A panic of another thread leaves nothing to mend.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let catch = SigAction::new(SigHandler::SigAction(skip_call), SaFlags::SA_ONSTACK, SigSet::empty());
    // A blocked signal that the kernel forces on a thread ends the process, whatever its handler.
    let mask = SigSet::from(Signal::SIGSEGV).thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
    // SAFETY: the handler changes nothing but where its own thread goes on.
    let before = unsafe { sigaction(Signal::SIGSEGV, &catch) }?;
    let answer = call();
    // SAFETY: what had been there.
    unsafe { sigaction(Signal::SIGSEGV, &before) }?;
    mask.thread_set_mask()?;
    Ok(answer)
}

/// Lets the call that the kernel did not take fail, and ends the process by anything else.
extern "C" fn skip_call(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const INT_80: [u8; 2] = [0xcd, 0x80];
    const LEN: i64 = 2;
    // SAFETY: the kernel gives the handler the context of its own thread.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = usize::try_from(registers[libc::REG_RIP as usize]).unwrap_or_default();
    let code = std::ptr::with_exposed_provenance::<[u8; 2]>(at);
    // SAFETY: the thread was about to run what is there; one that jumped to nowhere faults again, in here, which ends it.
    if unsafe { code.read_unaligned() } == INT_80 {
        registers[libc::REG_RIP as usize] += LEN;
        registers[libc::REG_RAX as usize] = -i64::from(libc::ENOSYS);
    } else {
        // SAFETY: the default action, by which the same fault ends the process.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    }
}

fn try_by_child() -> nix::Result<bool> {
    // SAFETY: the child makes two system calls and touches nothing.
    match unsafe { nix::unistd::fork() }? {
        // SAFETY: ends the child at once.
        nix::unistd::ForkResult::Child => unsafe { libc::_exit(i32::from(!getpid())) },
        nix::unistd::ForkResult::Parent { child } => loop {
            match super::wait::wait(child.as_raw(), true) {
                Ok(status) => return Ok(status == Some(0)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        },
    }
}

/// One ia32 system call with three arguments.
///
/// # Safety
/// As the call demands; pointers must be below 4 GiB.
unsafe fn int80(number: u32, arguments: [u32; 3]) -> i32 {
    let result: i32;
    // SAFETY: the registers that the call may change are named; rbx is put back.
    unsafe {
        asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) u64::from(arguments[0]) => _,
            inlateout("eax") number => result,
            in("ecx") arguments[1],
            in("edx") arguments[2],
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// `__NR_openat` of arch/x86/entry/syscalls/syscall_32.tbl.
const OPENAT: u32 = 295;

impl LowBuffer {
    /// open by the ia32 call, which unlike the 64-bit one does not add O_LARGEFILE to the flags.
    ///
    /// # Errors
    /// As open(2); ENAMETOOLONG for a path of a page or more.
    pub fn open(&self, path: &CStr, flags: i32) -> nix::Result<OwnedFd> {
        let bytes = path.to_bytes_with_nul();
        if bytes.len() > Self::SIZE {
            return Err(Errno::ENAMETOOLONG);
        }
        // SAFETY: the page is ours, large enough (checked), and nobody else uses it now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().cast(), bytes.len()) };
        let base = u32::try_from(self.base.as_ptr().expose_provenance()).map_err(|_| Errno::EFAULT)?;
        // SAFETY: the kernel reads the string from our page.
        let fd = unsafe { int80(OPENAT, [libc::AT_FDCWD.cast_unsigned(), base, flags.cast_unsigned()]) };
        if fd < 0 {
            return Err(Errno::from_raw(-fd));
        }
        // SAFETY: a number that the kernel has just handed out.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_the_kernel_does_not_take_fails() {
        const PAGE: usize = 4096;
        const RETURN: u8 = 0xc3;
        let (writable, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping touches nothing that exists.
        let pages = unsafe { libc::mmap(std::ptr::null_mut(), 2 * PAGE, writable, flags, -1, 0) };
        assert_ne!(pages, libc::MAP_FAILED);
        let code = pages.cast::<u8>().wrapping_add(PAGE - 2);
        // SAFETY: three bytes of that mapping.
        unsafe { std::ptr::copy_nonoverlapping([0xcd, 0x80, RETURN].as_ptr(), code, 3) };
        let second = pages.wrapping_byte_add(PAGE);
        // SAFETY: the same mapping. What follows the call can be run, the call itself cannot.
        let done = unsafe { libc::mprotect(second, PAGE, libc::PROT_READ | libc::PROT_EXEC) };
        assert_eq!(done, 0);
        // SAFETY: a function that returns what is in rax, which the handler puts there.
        let function = unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> i64>(code) };
        assert_eq!(try_here(|| function()).unwrap(), -i64::from(libc::ENOSYS));
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(pages, 2 * PAGE) };
    }

    #[test]
    fn both_ways_of_trying_agree() {
        assert_eq!(try_here(getpid).unwrap(), try_by_child().unwrap());
    }
}
