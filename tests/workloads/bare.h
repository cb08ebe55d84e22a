/*
 * Signals without the library: actions as the kernel has them, and one that is sent to the own thread without any code of others between
 * loading registers and comparing them, which a handler's frame must bring back.
 */
#ifndef BARE_H
#define BARE_H

#include "workload.h"

/* struct sigaction as the kernel of this ABI has it, so that flags and restorer are seen raw. */
struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
} __attribute__((packed));

/* Returns 0 if the vector registers are the same after the handler ran. */
static __attribute__((unused, noinline, target("general-regs-only"))) int raise_keeping_state(int signal)
{
	static uint8_t before[8 * 16] __attribute__((aligned(16))), after[8 * 16] __attribute__((aligned(16)));
	static uint16_t control_before = 0x0f7f, control_after;
	long result, pid = getpid(), tid = thread_id();
	for (size_t i = 0; i < sizeof(before); i++)
		before[i] = (uint8_t)(i * 7 + 1);
	__asm__ volatile("movdqa 0(%0), %%xmm0\n movdqa 16(%0), %%xmm1\n movdqa 32(%0), %%xmm2\n movdqa 48(%0), %%xmm3\n"
			 "movdqa 64(%0), %%xmm4\n movdqa 80(%0), %%xmm5\n movdqa 96(%0), %%xmm6\n movdqa 112(%0), %%xmm7\n"
			 "fldcw %1\n fld1\n fldpi\n"
			 :
			 : "r"(before), "m"(control_before)
			 : "memory");
#ifdef __x86_64__
	__asm__ volatile("syscall" : "=a"(result) : "0"(SYS_tgkill), "D"(pid), "S"(tid), "d"((long)signal)
			 : "rcx", "r11", "memory");
#else
	__asm__ volatile("int $0x80" : "=a"(result) : "0"(SYS_tgkill), "b"(pid), "c"(tid), "d"(signal) : "memory");
#endif
	uint8_t top[10], below[10];
	__asm__ volatile("movdqa %%xmm0, 0(%0)\n movdqa %%xmm1, 16(%0)\n movdqa %%xmm2, 32(%0)\n movdqa %%xmm3, 48(%0)\n"
			 "movdqa %%xmm4, 64(%0)\n movdqa %%xmm5, 80(%0)\n movdqa %%xmm6, 96(%0)\n movdqa %%xmm7, 112(%0)\n"
			 "fnstcw %1\n fstpt %2\n fstpt %3\n fninit\n"
			 :
			 : "r"(after), "m"(control_after), "m"(top), "m"(below)
			 : "memory");
	static const uint8_t pi[10] = { 0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40 };
	static const uint8_t one[10] = { 0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f };
	return result != 0 || memcmp(before, after, sizeof(before)) != 0 || control_after != control_before ||
	       /* fldpi rounds as the control word says: to zero, which makes the last digit 4 */
	       memcmp(top + 1, pi + 1, 9) != 0 || memcmp(below, one, 10) != 0;
}

#endif
