/*
 * Registers that hold values all the time: threads load every register with a known value and compare it again and
 * again without leaving user code, so that a checkpoint hits them at any instruction.
 */
#include "workload.h"
#include <cpuid.h>

struct spin {
	/* What the registers hold; the assembly knows the offsets. */
	uint64_t values[14];
	volatile uint64_t rounds;
	volatile uint32_t stop;
	volatile uint32_t wrong;
};

#ifdef __x86_64__
/* rax points to the values; 13 registers hold one each. Neither the stack nor a call is used. */
static __attribute__((noinline)) void spin_general(struct spin *spin)
{
	__asm__ volatile(
		"mov %0, %%rax\n"
		"mov 0(%%rax), %%rbx\n mov 8(%%rax), %%rcx\n mov 16(%%rax), %%rdx\n mov 24(%%rax), %%rsi\n"
		"mov 32(%%rax), %%rdi\n mov 40(%%rax), %%r8\n mov 48(%%rax), %%r9\n mov 56(%%rax), %%r10\n"
		"mov 64(%%rax), %%r11\n mov 72(%%rax), %%r12\n mov 80(%%rax), %%r13\n mov 88(%%rax), %%r14\n"
		"mov 96(%%rax), %%r15\n"
		"1: lock incq 112(%%rax)\n"
		"std\n" /* the direction flag is a register like any other */
		"cmp 0(%%rax), %%rbx\n jne 2f\n cmp 8(%%rax), %%rcx\n jne 2f\n"
		"cmp 16(%%rax), %%rdx\n jne 2f\n cmp 24(%%rax), %%rsi\n jne 2f\n"
		"cmp 32(%%rax), %%rdi\n jne 2f\n cmp 40(%%rax), %%r8\n jne 2f\n"
		"cmp 48(%%rax), %%r9\n jne 2f\n cmp 56(%%rax), %%r10\n jne 2f\n"
		"cmp 64(%%rax), %%r11\n jne 2f\n cmp 72(%%rax), %%r12\n jne 2f\n"
		"cmp 80(%%rax), %%r13\n jne 2f\n cmp 88(%%rax), %%r14\n jne 2f\n"
		"cmp 96(%%rax), %%r15\n jne 2f\n"
		"cmpl $0, 120(%%rax)\n je 1b\n jmp 3f\n"
		"2: movl $1, 124(%%rax)\n"
		"3: cld\n"
		:
		: "r"(spin)
		: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
		  "memory", "cc");
}
#else
/* eax points to the values; ebp is pushed, since gcc may keep its frame there. */
static __attribute__((noinline)) void spin_general(struct spin *spin)
{
	__asm__ volatile(
		"push %%ebp\n push %%ebx\n"
		"mov 0(%%eax), %%ebx\n mov 8(%%eax), %%ecx\n mov 16(%%eax), %%edx\n mov 24(%%eax), %%esi\n"
		"mov 32(%%eax), %%edi\n mov 40(%%eax), %%ebp\n"
		"1: lock incl 112(%%eax)\n"
		"std\n"
		"cmp 0(%%eax), %%ebx\n jne 2f\n cmp 8(%%eax), %%ecx\n jne 2f\n"
		"cmp 16(%%eax), %%edx\n jne 2f\n cmp 24(%%eax), %%esi\n jne 2f\n"
		"cmp 32(%%eax), %%edi\n jne 2f\n cmp 40(%%eax), %%ebp\n jne 2f\n"
		"cmpl $0, 120(%%eax)\n je 1b\n jmp 3f\n"
		"2: movl $1, 124(%%eax)\n"
		"3: cld\n pop %%ebx\n pop %%ebp\n"
		: "+a"(spin)
		:
		: "ecx", "edx", "esi", "edi", "memory", "cc");
}
#endif

static void *general_thread(void *argument)
{
	spin_general(argument);
	return NULL;
}

static void await_rounds(const struct spin *spin, uint64_t count)
{
	while (spin->rounds < count && !spin->wrong)
		sched_yield();
}

/* Checks that a thread still works, stops it, and checks that it saw nothing wrong. */
static void stop_spin(struct spin *spin, pthread_t thread, int index)
{
	await_rounds(spin, spin->rounds + 1000);
	spin->stop = 1;
	MUST0(pthread_join(thread, NULL));
	CHECK(!spin->wrong, "a register of thread %d changed after %lu rounds", index, (unsigned long)spin->rounds);
}

CASE(general)
{
	enum { THREADS = 4 };
	static struct spin spins[THREADS];
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++) {
		fill(spins[i].values, sizeof(spins[i].values), (uint32_t)(i + 1));
		MUST0(pthread_create(&threads[i], NULL, general_thread, &spins[i]));
		await_rounds(&spins[i], 1000);
	}
	checkpoint();
	for (int i = 0; i < THREADS; i++)
		stop_spin(&spins[i], threads[i], i);
}

/*
 * Extended state, whatever of it the CPU has: a crafted XSAVE area is loaded, and from then on the thread saves its
 * state again and again and compares. New components join by a line in the table.
 */
enum { XSAVE_MAX = 16384 };

struct extended {
	struct spin spin;
	const uint8_t *crafted;
	uint8_t *expected;
	uint8_t *found;
	uint32_t size;
	uint32_t features;
};

/* Components that may hold any bit pattern. The legacy area is filled by hand. */
static const int patterned[] = {
	2, /* AVX: upper halves of ymm */
	5, /* AVX-512: opmasks */
	6, /* AVX-512: upper halves of zmm 0-15 */
#ifdef __x86_64__
	7, /* AVX-512: zmm 16-31, which 32-bit code cannot load: whether it counts as in use there, processors tell differently */
#endif
};

static uint32_t enabled_features(void)
{
	uint32_t low, high;
	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	(void)high;
	return low;
}

static void craft(struct extended *extended, uint32_t seed)
{
	uint32_t a, b, c, d, want = 3;
	uint8_t *area = extended->expected;
	fill(area + 160, 256, seed); /* xmm0-15; ia32 code has 8 of them and leaves the others alone */
	for (int i = 0; i < 8; i++) {
		/* st0-7: normal numbers, a mantissa with its top bit set and an exponent. */
		fill(area + 32 + i * 16, 8, seed + (uint32_t)i);
		area[32 + i * 16 + 7] |= 0x80;
		area[32 + i * 16 + 8] = (uint8_t)(i + 1);
		area[32 + i * 16 + 9] = 0x40;
	}
	*(uint16_t *)(void *)(area + 0) = 0x0f7f; /* FCW: round to zero, all masked */
	area[4] = 0xff;                           /* FTW: all eight in use */
	*(uint32_t *)(void *)(area + 24) = 0x7f80; /* MXCSR: round to zero, all masked */
	*(uint32_t *)(void *)(area + 28) = 0xffff;
	/* Less usual states, by thread. */
	switch (seed / 1000) {
	case 2: /* some registers empty, TOP at 5, conditions; SSE exceptions seen, rounding up */
		area[4] = 0x35;
		*(uint16_t *)(void *)(area + 2) = 5 << 11 | 0x4500;
		*(uint32_t *)(void *)(area + 24) = 0x5fbf;
		break;
	case 3: /* MMX: TOP at 0, exponents all ones */
		for (int i = 0; i < 8; i++)
			area[32 + i * 16 + 8] = area[32 + i * 16 + 9] = 0xff;
		break;
	case 4: /* nothing masked, all registers empty, denormals to zero */
		*(uint16_t *)(void *)(area + 0) = 0x0240;
		area[4] = 0;
		*(uint32_t *)(void *)(area + 24) = 0x8040;
		break;
	}
	for (size_t i = 0; i < LENGTH(patterned); i++) {
		if (!(extended->features & 1u << patterned[i]))
			continue;
		__cpuid_count(13, patterned[i], a, b, c, d);
		fill(area + b, a, seed + 50 + (uint32_t)i);
		want |= 1u << patterned[i];
	}
	extended->features = want;
	*(uint64_t *)(void *)(area + 512) = want;
}

/*
 * Loads the state, then: save, compare, count, until told to stop. The compiler must not use vector registers
 * meanwhile, not even to park an integer.
 */
static __attribute__((noinline, target("general-regs-only"))) void spin_extended(struct extended *extended)
{
	uintptr_t wrong = 0;
	uint32_t mxcsr;
	uint8_t *expected = extended->expected, *found = extended->found;
	volatile uint32_t *stop = &extended->spin.stop, *rounds = (volatile uint32_t *)&extended->spin.rounds;
	uintptr_t size = extended->size;
	__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
	__asm__ volatile("xrstor (%0)" : : "r"(expected), "a"(extended->features), "d"(0) : "memory");
	/* The first save shows what this CPU writes into the fields that are not state. From here on no library
	 * function may run: memcpy and its like use vector registers. */
	__asm__ volatile("xsave (%0)" : : "r"(found), "a"(extended->features), "d"(0) : "memory");
	{
		uint8_t *to = expected, *from = found;
		uintptr_t count = size;
		__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
	}
	while (!*stop && !wrong) {
		uint8_t *left = expected, *right = found;
		uintptr_t count = size;
		__asm__ volatile("xsave (%0)" : : "r"(found), "a"(extended->features), "d"(0) : "memory");
		__asm__ volatile("repe cmpsb\n setne %b3\n movzbl %b3, %k3"
				 : "+D"(left), "+S"(right), "+c"(count), "=&q"(wrong)
				 :
				 : "memory", "cc");
		__atomic_add_fetch(rounds, 1, __ATOMIC_SEQ_CST);
	}
	__asm__ volatile("fninit\n ldmxcsr %0" : : "m"(mxcsr));
	extended->spin.wrong = (uint32_t)wrong;
}

static void *extended_thread(void *argument)
{
	spin_extended(argument);
	return NULL;
}

static void check_same(const char *what, const uint8_t *found, const uint8_t *expected, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (found[i] == expected[i])
			continue;
		CHECK(false, "%s: byte %zu is %#x instead of %#x", what, i, found[i], expected[i]);
		return;
	}
}

CASE(extended)
{
	enum { THREADS = 4 };
	static struct extended states[THREADS];
	pthread_t threads[THREADS];
	uint32_t a, b, c, d;
	__cpuid_count(13, 0, a, b, c, d);
	CHECK(b <= XSAVE_MAX, "the XSAVE area has %u bytes", b);
	for (int i = 0; i < THREADS; i++) {
		states[i].features = enabled_features();
		states[i].size = b;
		states[i].expected = (uint8_t *)map_anonymous(XSAVE_MAX);
		states[i].found = (uint8_t *)map_anonymous(XSAVE_MAX);
		craft(&states[i], (uint32_t)(i + 1) * 1000);
		memcpy(states[i].found, states[i].expected, XSAVE_MAX);
		states[i].crafted = memcpy(map_anonymous(XSAVE_MAX), states[i].expected, XSAVE_MAX);
		MUST0(pthread_create(&threads[i], NULL, extended_thread, &states[i]));
		await_rounds(&states[i].spin, 100);
		/* What the thread found in its registers at first is what was crafted for them. */
		check_same("x87 and xmm0-7", states[i].expected + 32, states[i].crafted + 32, 256);
		check_same("all of it", states[i].expected + 512, states[i].crafted + 512, b - 512);
	}
	checkpoint();
	for (int i = 0; i < THREADS; i++) {
		stop_spin(&states[i].spin, threads[i], i);
		check_same("the XSAVE area", states[i].found, states[i].expected, b);
	}
}

/* Loads the state, reads a byte in a bare system call and exits with 0 if the state is the same afterwards. */
static __attribute__((noinline, noreturn, target("general-regs-only"))) void
sleep_extended(const struct extended *extended, int fd, uintptr_t size)
{
	static uint8_t first[XSAVE_MAX];
	uint8_t byte, *to = first, *from = extended->found;
	uintptr_t count = size, differs;
	long result;
	__asm__ volatile("xrstor (%0)" : : "r"(extended->expected), "a"(extended->features), "d"(0) : "memory");
	__asm__ volatile("xsave (%0)" : : "r"(extended->found), "a"(extended->features), "d"(0) : "memory");
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
#ifdef __x86_64__
	__asm__ volatile("syscall" : "=a"(result) : "0"(SYS_read), "D"(fd), "S"(&byte), "d"(1) : "rcx", "r11", "memory");
#else
	__asm__ volatile("int $0x80" : "=a"(result) : "0"(SYS_read), "b"(fd), "c"(&byte), "d"(1) : "memory");
#endif
	__asm__ volatile("xsave (%0)" : : "r"(extended->found), "a"(extended->features), "d"(0) : "memory");
	to = first, from = extended->found, count = size;
	__asm__ volatile("repe cmpsb\n setne %b3\n movzbl %b3, %k3"
			 : "+D"(to), "+S"(from), "+c"(count), "=&q"(differs)
			 :
			 : "memory", "cc");
	_exit(result == 1 && !differs ? 0 : 1);
}

/* A thread blocked in a system call has extended state as well. */
CASE(extended_asleep)
{
	static struct extended state;
	uint32_t a, b, c, d;
	state.features = enabled_features();
	__cpuid_count(13, 0, a, b, c, d);
	(void)a, (void)c, (void)d;
	state.expected = (uint8_t *)map_anonymous(XSAVE_MAX);
	state.found = (uint8_t *)map_anonymous(XSAVE_MAX);
	craft(&state, 77);
	int ends[2];
	MUST(pipe(ends));
	pid_t child = MUST(fork());
	if (child == 0) {
		close(ends[1]);
		sleep_extended(&state, ends[0], b);
	}
	close(ends[0]);
	await_sleep(child);
	checkpoint();
	MUST(write(ends[1], "x", 1));
	reap(child);
}
