//! System calls of ia32.
//!
//! # Safety
//! See the module above.

use crate::abi::common::CloneArgs;
use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

// long crr_syscall6(long nr, const long args[6], void *entry): ebx, esi, edi and ebp cannot be named in inline
// assembly, so this is a cdecl routine that saves them. `int 0x80` if there is no entry.
global_asm!(
    ".globl crr_syscall6",
    "crr_syscall6:",
    "push ebp",
    "push ebx",
    "push esi",
    "push edi",
    "mov eax, [esp + 20]",
    "mov ebp, [esp + 24]",
    "mov ebx, [ebp]",
    "mov ecx, [ebp + 4]",
    "mov edx, [ebp + 8]",
    "mov esi, [ebp + 12]",
    "mov edi, [ebp + 16]",
    "mov ebp, [ebp + 20]",
    "cmp dword ptr [esp + 28], 0",
    "jne 3f",
    "int 0x80",
    "2: pop edi",
    "pop esi",
    "pop ebx",
    "pop ebp",
    "ret",
    "3: call dword ptr [esp + 28]",
    "jmp 2b",
    // long crr_clone3_thread(struct clone_args *args, size_t size, void (*entry)(void *), void *arg)
    ".globl crr_clone3_thread",
    "crr_clone3_thread:",
    "push ebx",
    "push esi",
    "push edi",
    "mov ebx, [esp + 16]",
    "mov ecx, [esp + 20]",
    "mov esi, [esp + 24]",
    "mov edi, [esp + 28]",
    "mov eax, 435",
    "int 0x80",
    "test eax, eax",
    "jnz 2f",
    // The child: a fresh stack, so the argument goes there.
    "xor ebp, ebp",
    "sub esp, 12",
    "push edi",
    "call esi",
    "ud2",
    "2: pop edi",
    "pop esi",
    "pop ebx",
    "ret",
);

/// `__kernel_vsyscall`, or 0.
static ENTRY: AtomicUsize = AtomicUsize::new(0);

/// Makes system calls through the vDSO's entry point from now on, which is far quicker than `int 0x80` where that is
/// emulated; 0 goes back. Nobody may be in a call while the vDSO moves.
pub fn set_entry(entry: usize) {
    ENTRY.store(entry, Ordering::Relaxed);
}

unsafe extern "C" {
    fn crr_syscall6(nr: usize, args: *const usize, entry: usize) -> isize;
    fn crr_clone3_thread(
        args: *const CloneArgs,
        size: usize,
        entry: extern "C" fn(usize) -> !,
        arg: usize,
    ) -> isize;
}

/// A system call.
///
/// # Safety
/// As the call itself.
pub unsafe fn syscall6(nr: usize, args: [usize; 6]) -> isize {
    // SAFETY: the routine reads the six words and enters the kernel; the rest is the caller's promise.
    unsafe { crr_syscall6(nr, args.as_ptr(), ENTRY.load(Ordering::Relaxed)) }
}

/// A system call of the ia32 table: here, any system call.
///
/// # Safety
/// As the call itself.
pub unsafe fn syscall_ia32(nr: u32, args: [u32; 2]) -> i32 {
    #[allow(clippy::cast_possible_truncation)] // isize is 32 bits wide here.
    // SAFETY: the caller's promise.
    unsafe {
        syscall6(nr as usize, [args[0] as usize, args[1] as usize, 0, 0, 0, 0]) as i32
    }
}

/// clone3 of a thread that runs `entry(arg)` on the stack of `args`.
///
/// # Safety
/// The stack must be the thread's alone.
pub unsafe fn clone3_thread(args: &CloneArgs, entry: extern "C" fn(usize) -> !, arg: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { crr_clone3_thread(args, core::mem::size_of::<CloneArgs>(), entry, arg) }
}
