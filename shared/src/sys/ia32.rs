//! System calls of ia32.
//!
//! # Safety
//! See the module above.

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

// long crr_clone_thread(unsigned long flags, void *stack, void (*entry)(void *), void *arg, int tid, int *gone)
// The child looks at its own id. If it is another one it ends, and has the kernel clear the word then; it touches no memory.
global_asm!(
    ".globl crr_clone_thread",
    "crr_clone_thread:",
    "push ebx",
    "push esi",
    "push edi",
    "push ebp",
    "mov ebx, [esp + 20]",
    "mov ecx, [esp + 24]",
    "mov edx, [esp + 28]",
    "mov esi, [esp + 32]",
    "mov edi, [esp + 36]",
    "mov ebp, [esp + 40]",
    "mov eax, 120",
    "int 0x80",
    "test eax, eax",
    "jnz 2f",
    "mov eax, 224", // gettid
    "int 0x80",
    "cmp eax, edi",
    "jne 3f",
    "xor ebp, ebp",
    "sub esp, 12",
    "push esi",
    "call edx",
    "ud2",
    "3: mov ebx, ebp",
    "mov eax, 258", // set_tid_address
    "int 0x80",
    "xor ebx, ebx",
    "mov eax, 1", // exit
    "int 0x80",
    "ud2",
    "2: pop ebp",
    "pop edi",
    "pop esi",
    "pop ebx",
    "ret",
);

// int crr_syscall_64(unsigned nr, const unsigned long long args[2]): to 64-bit code by a far return, __USER_CS (0x33) being
// open to every task, and back to __USER32_CS (0x23) by another. The instructions between are 64-bit ones, given as bytes where
// this mode has none.
global_asm!(
    ".globl crr_syscall_64",
    "crr_syscall_64:",
    "push esi",
    "push edi",
    "mov eax, [esp + 12]",
    "mov edx, [esp + 16]",
    "push 0x33",
    "call 2f",
    "2: .byte 0x83, 0x04, 0x24, 3f - 2b", // add dword ptr [esp], 3f - 2b
    "retf",
    "3: .byte 0x48, 0x8b, 0x3a",          // mov rdi, [rdx]
    ".byte 0x48, 0x8b, 0x72, 0x08",       // mov rsi, [rdx + 8]
    ".byte 0x0f, 0x05",                   // syscall
    ".byte 0x6a, 0x23",                   // push 0x23
    ".byte 0xe8, 0, 0, 0, 0",             // call 4f
    "4: .byte 0x83, 0x04, 0x24, 5f - 4b", // add dword ptr [rsp], 5f - 4b
    ".byte 0x48, 0xcb",                   // retfq
    "5: pop edi",
    "pop esi",
    "ret",
);

/// `__kernel_vsyscall`, or 0.
static ENTRY: AtomicUsize = AtomicUsize::new(0);

/// Makes system calls through the vDSO's entry point from now on, which is far quicker than `int 0x80` where that is
/// emulated. Nobody may be in a call while the vDSO moves.
pub fn set_entry(entry: usize) {
    ENTRY.store(entry, Ordering::Relaxed);
}

/// Goes back to `int 0x80`; what the entry point was, or 0.
pub fn take_entry() -> usize {
    ENTRY.swap(0, Ordering::Relaxed)
}

unsafe extern "C" {
    fn crr_syscall6(nr: usize, args: *const usize, entry: usize) -> isize;
    fn crr_syscall_64(nr: u32, args: *const u64) -> i32;
}

/// A system call.
///
/// # Safety
/// As the call itself.
pub unsafe fn syscall6(nr: usize, args: [usize; 6]) -> isize {
    // SAFETY: the routine reads the six words and enters the kernel; the rest is the caller's promise.
    unsafe { crr_syscall6(nr, args.as_ptr(), ENTRY.load(Ordering::Relaxed)) }
}

/// A system call of the x86_64 table, by the instruction that 64-bit code has for it.
///
/// # Safety
/// As the call itself.
pub unsafe fn foreign_call(nr: u32, args: [u64; 2]) -> i32 {
    // SAFETY: the routine reads the two words and enters the kernel; the rest is the caller's promise.
    unsafe { crr_syscall_64(nr, args.as_ptr()) }
}
