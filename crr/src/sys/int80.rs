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
/// a child tries it, once: a dump has that done before the tree stands still.
///
/// # Errors
/// If no child can be made.
pub fn available() -> nix::Result<bool> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    match KNOWN.get() {
        Some(&known) => Ok(known),
        None => try_out().map(|found| *KNOWN.get_or_init(|| found)),
    }
}

/// As [`available`], by trying it.
fn try_out() -> nix::Result<bool> {
    // SAFETY: the child makes two system calls and touches nothing.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            /// `__NR_getpid` of syscall_32.tbl.
            const GETPID: u32 = 20;
            // SAFETY: getpid takes no pointers.
            let worked = unsafe { int80(GETPID, [0; 3]) } > 0;
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!worked)) }
        }
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
