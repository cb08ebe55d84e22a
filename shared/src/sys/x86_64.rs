//! System calls of x86_64.
//!
//! # Safety
//! See the module above.

use core::arch::{asm, global_asm};

/// A system call.
///
/// # Safety
/// As the call itself.
pub unsafe fn syscall6(nr: usize, args: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the registers are those of the ABI (syscall(2)); the kernel clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => ret,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// A system call of the ia32 table, by `int 0x80`, which takes the low halves.
///
/// # Safety
/// As the call itself.
pub unsafe fn foreign_call(nr: u32, args: [u64; 2]) -> i32 {
    let ret: u32;
    // SAFETY: rbx is reserved by LLVM, so it is swapped in and out; int 0x80 keeps every register but rax,
    // before 4.16 it cleared r8 to r11.
    unsafe {
        asm!(
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) args[0] => _,
            inlateout("eax") nr => ret,
            in("rcx") args[1],
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            options(nostack),
        );
    }
    ret as i32
}

// long crr_clone3_thread(struct clone_args *args, size_t size, void (*entry)(void *), void *arg)
// The child starts on the stack of the arguments, where nothing may be assumed: it calls entry(arg), which does
// not return.
global_asm!(
    ".globl crr_clone3_thread",
    "crr_clone3_thread:",
    "mov r8, rdx",
    "mov r9, rcx",
    "mov eax, 435",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "mov rdi, r9",
    "call r8",
    "ud2",
    "2: ret",
);

// long crr_clone_thread(unsigned long flags, void *stack, void (*entry)(void *), void *arg, int tid, int *gone)
// The child looks at its own id. If it is another one it ends, and has the kernel clear the word then; it touches no memory.
global_asm!(
    ".globl crr_clone_thread",
    "crr_clone_thread:",
    "mov r10, rcx",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "mov eax, 186", // gettid
    "syscall",
    "cmp eax, r8d",
    "jne 3f",
    "xor ebp, ebp",
    "mov rdi, r10",
    "call rdx",
    "ud2",
    "3: mov rdi, r9",
    "mov eax, 218", // set_tid_address
    "syscall",
    "xor edi, edi",
    "mov eax, 60", // exit
    "syscall",
    "ud2",
    "2: ret",
);

/// System calls of x86_64 need no entry point.
pub fn set_entry(_: usize) {}

/// There is none.
pub fn take_entry() -> usize {
    0
}
