//! The x86_64 program that every restored x86_64 task execs: a shell around [`shared::restorer`].
//!
//! # Safety
//! A freestanding program: it brings its own entry point, stack and memory functions.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

// The kernel's stack lies where the task's memory will be: leave it at once, remembering where it is.
global_asm!(
    ".section .text._start, \"ax\"",
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "lea rsp, [rip + STACK + 65536]",
    "xor ebp, ebp",
    "call {entry}",
    "ud2",
    ".text",
    entry = sym entry,
);

// compiler_builtins has none of these for Linux targets, and a Rust loop could be compiled to a call to itself.
global_asm!(
    ".globl memcpy",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".globl memmove",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2: lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl memcmp",
    "memcmp:",
    ".globl bcmp",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "cmp rcx, rcx",
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "2: ret",
);

shared::program!();
