//! Raw system calls for programs without a C library.
//!
//! # Safety
//! The functions here pass numbers to the kernel and hand back what it says. What a call does to memory is the
//! caller's concern: every wrapper that can change memory is `unsafe`.
#![allow(unsafe_code)]
// Words, addresses and fd numbers of the program's own ABI change between u32, usize and c_int at every call; what comes
// from the plan is narrowed by checks.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

use crate::abi::common::CloneArgs;
use core::ffi::c_int;

#[cfg(target_arch = "x86")]
mod ia32;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86")]
use ia32 as arch;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

pub use arch::{foreign_call, set_entry, syscall6, take_entry};
pub use linux_raw_sys::general as nr;

/// A kernel error number, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

/// The kernel's answer: -4095 to -1 are errors (include/linux/err.h).
///
/// # Errors
/// If it is one.
pub fn check(ret: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&ret) {
        #[allow(clippy::cast_possible_truncation)] // At most 4095.
        return Err(Errno(ret.unsigned_abs() as u32));
    }
    #[allow(clippy::cast_sign_loss)] // Not negative, or an address.
    Ok(ret as usize)
}

/// A system call with up to six arguments.
///
/// # Safety
/// As the call itself.
pub unsafe fn call(nr: u32, args: &[usize]) -> Result<usize, Errno> {
    let mut all = [0usize; 6];
    all[..args.len()].copy_from_slice(args);
    // SAFETY: the caller's promise.
    check(unsafe { syscall6(nr as usize, all) })
}

unsafe extern "C" {
    fn crr_clone_thread(
        flags: usize,
        stack: usize,
        entry: extern "C" fn(usize) -> !,
        arg: usize,
        tid: i32,
        gone: *mut u32,
    ) -> isize;
    fn crr_clone3_thread(
        args: *const CloneArgs,
        size: usize,
        entry: extern "C" fn(usize) -> !,
        arg: usize,
    ) -> isize;
}

/// clone3 of a thread that runs `entry(arg)` on the stack of `args`.
///
/// # Safety
/// The stack must be the thread's alone.
pub unsafe fn clone3_thread(args: &CloneArgs, entry: extern "C" fn(usize) -> !, arg: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { crr_clone3_thread(args, size_of::<CloneArgs>(), entry, arg) }
}

/// clone of a thread that runs `entry(arg)` on a stack that ends at `stack`, if its id is `tid`; else it ends at once, and
/// with a common address space the kernel clears `gone` then.
///
/// # Safety
/// As [`clone3_thread`].
pub unsafe fn clone_thread(
    flags: usize,
    stack: usize,
    entry: extern "C" fn(usize) -> !,
    arg: usize,
    tid: i32,
    gone: *mut u32,
) -> isize {
    // SAFETY: the caller's promise.
    unsafe { crr_clone_thread(flags, stack, entry, arg, tid, gone) }
}

/// mmap, with a byte offset in both ABIs.
///
/// # Safety
/// Replaces what is mapped at `addr` if `flags` say so.
pub unsafe fn mmap(
    addr: usize,
    len: usize,
    prot: u32,
    flags: u32,
    fd: c_int,
    offset: u64,
) -> Result<usize, Errno> {
    #[cfg(target_arch = "x86_64")]
    let (nr, offset) = (nr::__NR_mmap, offset);
    #[cfg(target_arch = "x86")]
    let (nr, offset) = (nr::__NR_mmap2, offset >> 12);
    #[allow(clippy::cast_possible_truncation)]
    // mmap2 counts pages: 32 bits reach 16 TiB, more than a file mapping can ask for.
    let offset = offset as usize;
    // SAFETY: the caller's promise.
    unsafe { call(nr, &[addr, len, prot as usize, flags as usize, fd as usize, offset]) }
}

/// munmap.
///
/// # Safety
/// Nothing in the range may be used again.
pub unsafe fn munmap(addr: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(nr::__NR_munmap, &[addr, len]) }
}

/// mremap to a fixed place, same size.
///
/// # Safety
/// Replaces what is mapped at `to`; nothing may use `from` again.
pub unsafe fn move_mapping(from: usize, to: usize, len: usize) -> Result<usize, Errno> {
    /// MREMAP_MAYMOVE | MREMAP_FIXED
    const FLAGS: usize = 3;
    // SAFETY: the caller's promise.
    unsafe { call(nr::__NR_mremap, &[from, len, len, FLAGS, to]) }
}

/// preadv with a 64-bit offset.
///
/// # Safety
/// Writes to the buffers.
pub unsafe fn preadv(fd: c_int, iov: &[crate::abi::native::IoVec], offset: u64) -> Result<usize, Errno> {
    let at = iov.as_ptr() as usize;
    #[cfg(target_arch = "x86_64")]
    let (low, high) = (usize::try_from(offset).unwrap_or(0), 0);
    #[cfg(target_arch = "x86")]
    #[allow(clippy::cast_possible_truncation)] // preadv takes the offset in two longs.
    let (low, high) = (offset as usize, (offset >> 32) as usize);
    // SAFETY: the caller's promise.
    unsafe { call(nr::__NR_preadv, &[fd as usize, at, iov.len(), low, high]) }
}

/// Gives a part of a file back; an error has no consequence but that it stays.
pub fn punch_hole(fd: c_int, offset: u64, len: u64) {
    /// FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
    const MODE: usize = 0x01 | 0x02;
    #[cfg(target_arch = "x86_64")]
    let args = [fd as usize, MODE, usize::try_from(offset).unwrap_or(0), usize::try_from(len).unwrap_or(0)];
    #[cfg(target_arch = "x86")]
    #[allow(clippy::cast_possible_truncation)] // fallocate takes offset and length in two words each.
    let args =
        [fd as usize, MODE, offset as usize, (offset >> 32) as usize, len as usize, (len >> 32) as usize];
    // SAFETY: no memory of the program is involved.
    let _ = unsafe { call(nr::__NR_fallocate, &args) };
}

/// close; an error has no consequence here.
pub fn close(fd: c_int) {
    // SAFETY: no memory is involved, and no fd number is owned by Rust code in these programs.
    let _ = unsafe { call(nr::__NR_close, &[fd as usize]) };
}

/// Ends the whole program.
pub fn exit_group(status: u32) -> ! {
    loop {
        // SAFETY: does not return.
        let _ = unsafe { call(nr::__NR_exit_group, &[status as usize]) };
    }
}

/// FUTEX_WAIT while `word` is `value`; may return early.
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32) {
    let at = core::ptr::from_ref(word) as usize;
    // SAFETY: the kernel only reads the word.
    let _ = unsafe { call(nr::__NR_futex, &[at, 0, value as usize, 0]) };
}

/// FUTEX_WAKE of everyone.
pub fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    let at = core::ptr::from_ref(word) as usize;
    // SAFETY: the kernel only takes the address.
    let _ = unsafe { call(nr::__NR_futex, &[at, 1, i32::MAX as usize]) };
}
