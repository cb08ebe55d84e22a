//! The i686 program that every restored ia32 task execs: a shell around [`shared::restorer`].
//!
//! # Safety
//! A freestanding program: it brings its own entry point, stack and memory functions.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

// The kernel's stack lies where the task's memory will be: leave it at once, remembering where it is.
// Position-independent: the place of the program is only known when it runs.
global_asm!(
    ".section .text._start, \"ax\"",
    ".globl _start",
    "_start:",
    "movl %esp, %eax",
    "call 2f",
    "2: popl %ecx",
    "leal STACK - 2b + 65536(%ecx), %esp",
    "xorl %ebp, %ebp",
    "subl $12, %esp",
    "pushl %eax",
    "call {entry}",
    "ud2",
    ".text",
    entry = sym entry,
    options(att_syntax),
);

// compiler_builtins has none of these for Linux targets, and a Rust loop could be compiled to a call to itself.
global_asm!(
    ".globl memcpy",
    "memcpy:",
    "push esi",
    "push edi",
    "mov edi, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov ecx, [esp + 20]",
    "mov eax, edi",
    "rep movsb",
    "pop edi",
    "pop esi",
    "ret",
    ".globl memmove",
    "memmove:",
    "push esi",
    "push edi",
    "mov edi, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov ecx, [esp + 20]",
    "mov eax, edi",
    "mov edx, edi",
    "sub edx, esi",
    "cmp edx, ecx",
    "jb 2f",
    "rep movsb",
    "pop edi",
    "pop esi",
    "ret",
    "2: lea edi, [edi + ecx - 1]",
    "lea esi, [esi + ecx - 1]",
    "std",
    "rep movsb",
    "cld",
    "pop edi",
    "pop esi",
    "ret",
    ".globl memset",
    "memset:",
    "push edi",
    "mov edi, [esp + 8]",
    "mov eax, [esp + 12]",
    "mov ecx, [esp + 16]",
    "rep stosb",
    "mov eax, [esp + 8]",
    "pop edi",
    "ret",
    ".globl memcmp",
    "memcmp:",
    ".globl bcmp",
    "bcmp:",
    "push esi",
    "push edi",
    "mov edi, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov ecx, [esp + 20]",
    "xor eax, eax",
    "cmp ecx, ecx",
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [edi - 1]",
    "movzx ecx, byte ptr [esi - 1]",
    "sub eax, ecx",
    "2: pop edi",
    "pop esi",
    "ret",
);

shared::program!();
