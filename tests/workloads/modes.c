/*
 * Threads in the mode of the other ABI: 32-bit code in an x86_64 task, as Wine's new WoW64 does, and 64-bit code in an
 * ia32 task. What the task is does not change by that.
 */
#include "workload.h"
#include <asm/ldt.h>
#include <linux/futex.h>
#include <sys/resource.h>

/* What code of the other mode works with. It lies below 4 GiB, the code behind it. */
struct mode {
	volatile uint32_t rounds; /* 0 */
	volatile uint32_t stop;	  /* 4 */
	uint64_t stack;		  /* 8: of this mode */
	uint32_t back;		  /* 16: where a far jump leads back, with the selector */
	uint16_t selector;	  /* 20 */
	uint16_t segment;	  /* 22: a data segment that begins here, or 0 */
	volatile uint32_t wrong;  /* 24 */
	uint32_t number;	  /* 28: of a system call */
	uint64_t arguments[3];	  /* 32, 40, 48 */
	volatile int64_t result;  /* 56 */
	uint32_t limit;		  /* 64: rounds to make */
	uint16_t code;		  /* 68: code segment to enter */
	uint16_t code_segment;	  /* 70: of the LDT, as the next two */
	uint16_t data_segment;	  /* 72 */
	uint16_t stack_segment;	  /* 74 */
	uint32_t saved_stack;	  /* 76 */
	char buffer[64];
	volatile pid_t tid;
};

extern const char low_start[], low_spin[], low_call[], low_call_int80[], low_segments[], low_back[], low_end[];
/* To code at an offset in the code segment of the mode. */
void enter_other_mode(struct mode *mode, uintptr_t offset);

/*
 * 32-bit code in segments of the LDT. Code begins with the page behind the data, data and stack with the data; the stack
 * segment has 16 bits, so the upper half of its pointer means nothing, and is kept.
 */
#define SEGMENTS                                                                                  \
	".code32\n"                                                                               \
	"low_segments:\n"                                                                         \
	"mov %edi, %ebx\n mov %esp, 76(%ebx)\n"                                                   \
	"movzwl 72(%ebx), %eax\n movzwl 74(%ebx), %ecx\n movzwl 70(%ebx), %esi\n"                 \
	"mov %eax, %ds\n mov %eax, %es\n mov %ecx, %ss\n mov $0x12340ff0, %esp\n"                 \
	"push $0x66666666\n"                                                                      \
	"1: lock incl 0\n"                                                                        \
	"mov %ds, %edx\n cmp %ax, %dx\n jne 2f\n mov %es, %edx\n cmp %ax, %dx\n jne 2f\n"         \
	"mov %ss, %edx\n cmp %cx, %dx\n jne 2f\n mov %cs, %edx\n cmp %si, %dx\n jne 2f\n"         \
	"cmp $0x12340fec, %esp\n jne 2f\n cmpl $0x66666666, %ss:0xfec\n jne 2f\n"                \
	"cmpl $0x66666666, %es:0xfec\n jne 2f\n"                                                 \
	"cmpl $0, 4\n je 1b\n jmp 3f\n"                                                          \
	"2: movl $1, 24\n"                                                                        \
	"3: mov $0x2b, %eax\n mov 76, %edx\n mov %eax, %ds\n mov %eax, %es\n"                     \
	"mov %eax, %ss\n mov %edx, %esp\n ljmp *16(%ebx)\n"

#ifdef __x86_64__
__asm__(".text\n"
	/* rdi leads to the data and rsi to the code. The registers that 32-bit code does not see are to be kept. */
	"enter_other_mode:\n"
	"push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
	"mov %rsp, 8(%rdi)\n mov %rdi, %rbx\n lea 4096(%rdi), %rsp\n movzwl 68(%rdi), %ecx\n"
	"movabs $0x8888888888888888, %r8\n movabs $0x9999999999999999, %r9\n movabs $0xaaaaaaaaaaaaaaaa, %r10\n"
	"movabs $0xbbbbbbbbbbbbbbbb, %r11\n movabs $0xcccccccccccccccc, %r12\n movabs $0xffffffffffffffff, %r15\n"
	"mov $0x2b, %eax\n mov %eax, %ds\n mov %eax, %es\n"
	"push %rcx\n push %rsi\n lretq\n"
	"low_start:\n"
	".code32\n"
	"low_spin:\n"
	"movzwl 22(%ebx), %eax\n test %eax, %eax\n je 1f\n mov %eax, %gs\n"
	"1: mov $0x11111111, %ecx\n mov $0x22222222, %edx\n mov $0x33333333, %esi\n mov $0x44444444, %edi\n"
	"mov $0x55555555, %ebp\n mov 64(%ebx), %eax\n push $0x66666666\n fldpi\n"
	"2: lock incl (%ebx)\n"
	"cmp $0x11111111, %ecx\n jne 3f\n cmp $0x22222222, %edx\n jne 3f\n cmp $0x33333333, %esi\n jne 3f\n"
	"cmp $0x44444444, %edi\n jne 3f\n cmp $0x55555555, %ebp\n jne 3f\n cmpl $0x66666666, (%esp)\n jne 3f\n"
	"cmpw $0, 22(%ebx)\n je 5f\n cmp %gs:16, %ebx\n je 3f\n push %ecx\n mov %gs:16, %ecx\n cmp 16(%ebx), %ecx\n"
	"pop %ecx\n jne 3f\n"
	"5: dec %eax\n jz 4f\n"
	"cmpl $0, 4(%ebx)\n je 2b\n jmp 4f\n"
	"3: movl $1, 24(%ebx)\n"
	"4: fstp %st(0)\n ljmp *16(%ebx)\n"
	"low_call:\n"
	"push %ebx\n mov 28(%ebx), %eax\n mov 40(%ebx), %ecx\n mov 48(%ebx), %edx\n mov 32(%ebx), %ebx\n"
	"int $0x80\n"
	"pop %ebx\n cltd\n mov %eax, 56(%ebx)\n mov %edx, 60(%ebx)\n ljmp *16(%ebx)\n"
	SEGMENTS
	"low_back:\n"
	".code64\n"
	"mov %ebx, %ebx\n"
	"movabs $0x8888888888888888, %rax\n cmp %rax, %r8\n jne 1f\n movabs $0x9999999999999999, %rax\n cmp %rax, %r9\n"
	"jne 1f\n movabs $0xaaaaaaaaaaaaaaaa, %rax\n cmp %rax, %r10\n jne 1f\n movabs $0xbbbbbbbbbbbbbbbb, %rax\n"
	"cmp %rax, %r11\n jne 1f\n movabs $0xcccccccccccccccc, %rax\n cmp %rax, %r12\n jne 1f\n cmp $-1, %r15\n je 2f\n"
	"1: movl $2, 24(%rbx)\n"
	"2: mov 8(%rbx), %rsp\n"
	"pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
	"low_end:\n");

/* Makes an ia32 call from this 64-bit code. */
static void call_by_int80(struct mode *mode)
{
	int64_t result = mode->number;
	register uint64_t r12 __asm__("r12") = 0xcccccccccccccccc;
	__asm__ volatile("int $0x80"
			 : "+a"(result), "+r"(r12)
			 : "b"(mode->arguments[0]), "c"(mode->arguments[1]), "d"(mode->arguments[2])
			 : "memory", "r8", "r9", "r10", "r11");
	CHECK(r12 == 0xcccccccccccccccc, "r12 is %#lx", r12);
	mode->result = result;
}
static const uint32_t other_read = 3, other_pause = 29;
#else
__asm__(".text\n"
	"enter_other_mode:\n"
	"push %ebx\n push %ebp\n push %esi\n push %edi\n"
	"mov 20(%esp), %edi\n mov 24(%esp), %esi\n"
	"movzwl 68(%edi), %eax\n push %eax\n push %esi\n lret\n"
	"low_start:\n"
	".code64\n"
	/* Signal frames of ia32 hold halves only: what is compared fits in these where signals come (a limit is set). */
	"low_spin:\n"
	"mov %edi, %edi\n mov %esp, %esp\n"
	"movzwl 22(%rdi), %eax\n test %eax, %eax\n je 1f\n mov %eax, %fs\n"
	"1: mov $0x12345678, %ecx\n mov %ecx, %edx\n mov $0x77777777, %ebx\n mov %rbx, %rbp\n mov 64(%rdi), %esi\n"
	"test %esi, %esi\n jne 2f\n"
	"movabs $0x8888888888888888, %r8\n movabs $0x9999999999999999, %r9\n movabs $0xaaaaaaaaaaaaaaaa, %r10\n"
	"movabs $0xffffffffffffffff, %r15\n movabs $0x1234567812345678, %rcx\n mov %rcx, %rdx\n"
	"movabs $0x7777777777777777, %rbx\n mov %rbx, %rbp\n"
	"2: lock incl (%rdi)\n"
	"cmp %rdx, %rcx\n jne 4f\n cmp %rbp, %rbx\n jne 4f\n"
	"cmpw $0, 22(%rdi)\n je 3f\n mov %fs:16, %eax\n cmp 16(%rdi), %eax\n jne 4f\n"
	"3: cmpl $0, 64(%rdi)\n je 6f\n dec %esi\n jz 5f\n jmp 7f\n"
	"6: movabs $0x8888888888888888, %rax\n cmp %rax, %r8\n jne 4f\n movabs $0x9999999999999999, %rax\n cmp %rax, %r9\n"
	"jne 4f\n movabs $0xaaaaaaaaaaaaaaaa, %rax\n cmp %rax, %r10\n jne 4f\n cmp $-1, %r15\n jne 4f\n"
	"7: cmpl $0, 4(%rdi)\n je 2b\n jmp 5f\n"
	"4: movl $1, 24(%rdi)\n"
	"5: pushq $0x23\n mov 16(%rdi), %eax\n push %rax\n lretq\n"
	"low_call:\n"
	"mov %edi, %edi\n mov %esp, %esp\n mov %rdi, %r12\n movabs $0xdddddddddddddddd, %r13\n movabs $0x5555555555555555, %rbx\n"
	"mov 28(%r12), %eax\n mov 40(%r12), %rsi\n mov 48(%r12), %rdx\n mov 32(%r12), %rdi\n"
	"syscall\n"
	"jmp 1f\n"
	"low_call_int80:\n"
	"mov %edi, %edi\n mov %esp, %esp\n mov %rdi, %r12\n movabs $0xdddddddddddddddd, %r13\n"
	"mov 28(%r12), %eax\n mov 40(%r12), %rcx\n mov 48(%r12), %rdx\n mov 32(%r12), %rbx\n"
	"int $0x80\n"
	"movabs $0x5555555555555555, %rbx\n"
	"1: mov %rax, 56(%r12)\n mov %r12, %rdi\n"
	"movabs $0xdddddddddddddddd, %rax\n cmp %rax, %r13\n jne 4b\n"
	"movabs $0x5555555555555555, %rax\n cmp %rax, %rbx\n jne 4b\n jmp 5b\n"
	SEGMENTS
	"low_end:\n"
	".code32\n"
	"low_back: pop %edi\n pop %esi\n pop %ebp\n pop %ebx\n ret\n");
static const uint32_t other_read = 0, other_pause = 34;
#endif

static void enter(struct mode *mode, const char *routine)
{
	mode->code = sizeof(long) == 8 ? 0x23 : 0x33;
	enter_other_mode(mode, (uintptr_t)mode + PAGE + (uintptr_t)(routine - low_start));
}

#ifndef __x86_64__
static void call_by_int80(struct mode *mode)
{
	enter(mode, low_call_int80);
}
#endif

/* The next two pages below 4 GiB, with data and code; `sharing` is MAP_PRIVATE or MAP_SHARED. */
static struct mode *map_mode(int sharing)
{
	static uintptr_t next = 0x20000000;
	struct mode *mode = MUST((struct mode *)mmap((void *)next, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
						     sharing | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	char *code = (char *)mode + PAGE;
	next += 4 * PAGE;
	memcpy(code, low_start, (size_t)(low_end - low_start));
#ifdef __x86_64__
	mode->back = (uint32_t)(uintptr_t)code + (uint32_t)(low_back - low_start);
#else
	mode->back = (uint32_t)(uintptr_t)low_back;
#endif
	/* Of the caller: __asm__ code of this program. */
	mode->selector = sizeof(long) == 8 ? 0x33 : 0x23;
	return mode;
}

static struct mode *new_mode(void)
{
	return map_mode(MAP_PRIVATE);
}

static void *spin(void *argument)
{
	enter(argument, low_spin);
	return NULL;
}

static void stay_busy(void)
{
	pthread_t thread;
	struct mode *mode = new_mode();
	MUST0(pthread_create(&thread, NULL, spin, mode));
	while (mode->rounds < 1000 && !mode->wrong)
		sched_yield();
	checkpoint();
	uint32_t rounds = mode->rounds;
	while (mode->rounds - rounds < 1000 && !mode->wrong)
		sched_yield();
	mode->stop = 1;
	MUST0(pthread_join(thread, NULL));
	CHECK(!mode->wrong, "a register changed after %u rounds (%u)", mode->rounds, mode->wrong);
}

CASE(busy)
{
	stay_busy();
}

static void *stay_busy_alone(void *unused)
{
	(void)unused;
	stay_busy();
	end_last_thread();
}

/* The leader of the task has ended. */
CASE(leaderless)
{
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, stay_busy_alone, NULL));
	for (;;)
		syscall(SYS_exit, 0);
}

/* The same as busy where nothing more can be mapped. 64-bit code in an ia32 task has no way back by itself from a call that it is made to make. */
CASE(busy_at_limit)
{
	pthread_t thread;
	char text[256] = "";
	struct mode *mode = new_mode();
	MUST0(pthread_create(&thread, NULL, spin, mode));
	while (mode->rounds < 1000 && !mode->wrong)
		sched_yield();
	int fd = MUST(open("/proc/self/statm", O_RDONLY));
	MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	rlim_t bytes = strtoul(text, NULL, 10) * PAGE;
	MUST(setrlimit(RLIMIT_AS, &(struct rlimit){ bytes, bytes }));
	checkpoint();
	uint32_t rounds = mode->rounds;
	while (mode->rounds - rounds < 1000 && !mode->wrong)
		sched_yield();
	mode->stop = 1;
	MUST0(pthread_join(thread, NULL));
	CHECK(!mode->wrong, "a register changed after %u rounds (%u)", mode->rounds, mode->wrong);
}

struct call {
	struct mode *mode;
	void (*make)(struct mode *mode);
	volatile pid_t tid;
	pthread_t thread;
	int ends[2];
};

static void call_in_other_mode(struct mode *mode)
{
	enter(mode, low_call);
}

static void *make_call(void *argument)
{
	struct call *call = argument;
	call->tid = thread_id();
	call->make(call->mode);
	return NULL;
}

static void start_call(struct call *call, void (*make)(struct mode *), uint32_t number)
{
	call->mode = new_mode();
	call->make = make;
	call->mode->number = number;
	MUST(pipe(call->ends));
	uint64_t arguments[3] = { (uint64_t)call->ends[0], (uint64_t)(uintptr_t)call->mode->buffer, 5 };
	memcpy(call->mode->arguments, arguments, sizeof(arguments));
	MUST0(pthread_create(&call->thread, NULL, make_call, call));
	while (call->tid == 0)
		sched_yield();
	await_sleep(call->tid);
}

static void end_call(struct call *call, int64_t result, const char *contents)
{
	MUST0(pthread_join(call->thread, NULL));
	/* A handler of an ia32 task loses the upper halves of the 64-bit code that it interrupts. */
	bool halves = sizeof(long) == 4 && result == -EINTR;
	CHECK((int32_t)call->mode->result == result, "the call answers %lld", (long long)call->mode->result);
	CHECK(halves || call->mode->result == result, "the call answers %lld", (long long)call->mode->result);
	CHECK(strcmp(call->mode->buffer, contents) == 0, "it read '%s'", call->mode->buffer);
	CHECK(halves || call->mode->wrong == 0, "a register changed (%u)", call->mode->wrong);
}

static void on_signal(int number)
{
	(void)number;
}

static void *alternate_stack(void)
{
	stack_t stack = { .ss_sp = map_anonymous(16 * PAGE), .ss_size = 16 * PAGE };
	MUST(sigaltstack(&stack, NULL));
	return NULL;
}

/* Waiting in calls of the other mode, and in 64-bit code in calls of the ia32 table. */
CASE(waiting)
{
	struct call reads[2], pauses[2];
	struct sigaction action = { .sa_handler = on_signal };
	memset(reads, 0, sizeof(reads));
	memset(pauses, 0, sizeof(pauses));
	MUST(sigaction(SIGUSR2, &action, NULL));
	start_call(&reads[0], call_in_other_mode, other_read);
	start_call(&reads[1], call_by_int80, 3);
	start_call(&pauses[0], call_in_other_mode, other_pause);
	start_call(&pauses[1], call_by_int80, 29);
	checkpoint();
	for (int i = 0; i < 2; i++) {
		await_sleep(reads[i].tid);
		await_sleep(pauses[i].tid);
		MUST(write(reads[i].ends[1], "hello", 5));
		MUST0(pthread_kill(pauses[i].thread, SIGUSR2));
		end_call(&reads[i], 5, "hello");
		end_call(&pauses[i], -EINTR, "");
	}
}

enum { TURNERS = 4 };
static volatile int done;
static volatile uint32_t signals;

static void count_signal(int number)
{
	(void)number;
	__atomic_add_fetch(&signals, 1, __ATOMIC_SEQ_CST);
}

/* Takes turns between the modes; in the other it is signalled, and has a segment of its own from the LDT. */
static void *turn(void *argument)
{
	struct mode *mode = argument;
	mode->tid = thread_id();
	alternate_stack();
	mode->limit = 20000;
	while (!done && !mode->wrong) {
		uint32_t before = mode->rounds;
		enter(mode, low_spin);
		if (mode->rounds - before != mode->limit && !mode->wrong)
			mode->wrong = 3;
	}
	return NULL;
}

static volatile pid_t turners[TURNERS];

/* By the plain system call: pthread_kill blocks all signals for a moment, which /proc would show now and then. */
static void *send_signals(void *unused)
{
	(void)unused;
	for (int i = 0; !done; i++) {
		uint32_t before = signals;
		MUST(syscall(SYS_tgkill, getpid(), turners[i % TURNERS], SIGUSR2));
		/* One at a time: handlers do not nest. A thread that is through takes none any more. */
		while (signals == before && !done)
			sched_yield();
	}
	return NULL;
}

static uint16_t ldt_segment(unsigned entry, const void *base, unsigned contents, bool wide)
{
	struct user_desc segment = {
		.entry_number = entry,
		.base_addr = (unsigned)(uintptr_t)base,
		.limit = PAGE - 1,
		.seg_32bit = wide,
		.contents = contents & 3,
		.useable = 1,
	};
	MUST(syscall(SYS_modify_ldt, 0x11, &segment, sizeof(segment)));
	return (uint16_t)(entry * 8 + 7);
}

CASE(turns)
{
	pthread_t threads[TURNERS], sender;
	struct mode *modes[TURNERS];
	/* SA_NODEFER: /proc shows the same mask in the handler as outside of it. */
	struct sigaction action = { .sa_handler = count_signal, .sa_flags = SA_ONSTACK | SA_RESTART | SA_NODEFER };
	MUST(sigaction(SIGUSR2, &action, NULL));
	for (int i = 0; i < TURNERS; i++) {
		modes[i] = new_mode();
		modes[i]->segment = ldt_segment((unsigned)i * 3 + 1, modes[i], MODIFY_LDT_CONTENTS_DATA, true);
		MUST0(pthread_create(&threads[i], NULL, turn, modes[i]));
	}
	for (int i = 0; i < TURNERS; i++) {
		while (modes[i]->tid == 0)
			sched_yield();
		turners[i] = modes[i]->tid;
	}
	MUST0(pthread_create(&sender, NULL, send_signals, NULL));
	uint32_t first = signals;
	for (int i = 0; i < TURNERS; i++)
		while ((modes[i]->rounds < 100000 || signals == first) && !modes[i]->wrong)
			sched_yield();
	checkpoint();
	uint32_t before = signals;
	for (int i = 0; i < TURNERS; i++) {
		uint32_t rounds = modes[i]->rounds;
		while ((modes[i]->rounds - rounds < 200000 || signals - before < 100) && !modes[i]->wrong)
			sched_yield();
	}
	done = 1;
	MUST0(pthread_join(sender, NULL));
	for (int i = 0; i < TURNERS; i++) {
		MUST0(pthread_join(threads[i], NULL));
		CHECK(!modes[i]->wrong, "thread %d: wrong (%u) after %u rounds", i, modes[i]->wrong, modes[i]->rounds);
	}
}

static void *spin_in_segments(void *argument)
{
	struct mode *mode = argument;
	mode->code = mode->code_segment;
	enter_other_mode(mode, (uintptr_t)(low_segments - low_start));
	return NULL;
}

/* In 32-bit code of either ABI, with a code, a data and a 16-bit stack segment from the LDT. */
CASE(segments)
{
	pthread_t threads[2];
	struct mode *modes[2];
	for (unsigned i = 0; i < 2; i++) {
		struct mode *mode = modes[i] = new_mode();
		mode->code_segment = ldt_segment(100 * i + 10, (char *)mode + PAGE, MODIFY_LDT_CONTENTS_CODE, true);
		mode->data_segment = ldt_segment(100 * i + 11, mode, MODIFY_LDT_CONTENTS_DATA, true);
		mode->stack_segment = ldt_segment(100 * i + 12, mode, MODIFY_LDT_CONTENTS_DATA, false);
		MUST0(pthread_create(&threads[i], NULL, spin_in_segments, mode));
		while (mode->rounds < 1000 && !mode->wrong)
			sched_yield();
	}
	checkpoint();
	for (int i = 0; i < 2; i++) {
		uint32_t rounds = modes[i]->rounds;
		while (modes[i]->rounds - rounds < 1000 && !modes[i]->wrong)
			sched_yield();
		modes[i]->stop = 1;
		MUST0(pthread_join(threads[i], NULL));
		CHECK(!modes[i]->wrong, "wrong after %u rounds", modes[i]->rounds);
	}
}

static void spin_alone(void *mode)
{
	prepared();
	spin(mode);
	CHECK(!((struct mode *)mode)->wrong, "a register changed (%u)", ((struct mode *)mode)->wrong);
}

static void spin_alone_in_segments(void *argument)
{
	struct mode *mode = argument;
	mode->code_segment = ldt_segment(10, (char *)mode + PAGE, MODIFY_LDT_CONTENTS_CODE, true);
	mode->data_segment = ldt_segment(11, mode, MODIFY_LDT_CONTENTS_DATA, true);
	mode->stack_segment = ldt_segment(12, mode, MODIFY_LDT_CONTENTS_DATA, false);
	prepared();
	spin_in_segments(mode);
	CHECK(!mode->wrong, "wrong after %u rounds", mode->rounds);
}

static void await_rounds(struct mode *mode)
{
	uint32_t before = mode->rounds;
	while (mode->rounds - before < 1000 && !mode->wrong)
		sched_yield();
}

static struct mode *lone[2];

static void lone_get_on(int number)
{
	(void)number;
	await_rounds(lone[0]);
	await_rounds(lone[1]);
	MUST(write(STDOUT_FILENO, "ALIVE\n", 6));
}

/*
 * Tasks whose only thread stands in the other mode, or on a stack in a segment of its own: nobody else could make calls in its
 * place. Their parent sees them get on by memory that they share, and answers ALIVE to SIGUSR2.
 */
CASE(alone)
{
	sigset_t none;
	sigemptyset(&none);
	hear_questions();
	for (int i = 0; i < 2; i++)
		lone[i] = map_mode(MAP_SHARED);
	pid_t children[2] = { spawn(spin_alone, lone[0]), spawn(spin_alone_in_segments, lone[1]) };
	await_rounds(lone[0]);
	await_rounds(lone[1]);
	answer_questions(&none, lone_get_on);
	for (int i = 0; i < 2; i++) {
		await_rounds(lone[i]);
		lone[i]->stop = 1;
		reap(children[i]);
	}
}

/* A robust list as the other ABI has it, in the page of a mode. */
#ifdef __x86_64__
typedef uint32_t foreign;
static const uint32_t other_set_robust_list = 311;
#else
typedef uint64_t foreign;
static const uint32_t other_set_robust_list = 273;
#endif

struct foreign_lists {
	foreign next, futex_offset, pending;
	struct {
		foreign next;
		uint32_t futex;
	} lock;
};

static volatile int locked;

static struct foreign_lists *foreign_lists(struct mode *mode)
{
	return (struct foreign_lists *)((char *)mode + 512);
}

/* Holds a lock of the other ABI and one of its own, and dies with both. */
static void *owner_of_both(void *argument)
{
	struct mode *mode = argument;
	struct foreign_lists *lists = foreign_lists(mode);
	lists->lock.next = lists->pending = 0;
	lists->next = (foreign)(uintptr_t)&lists->lock;
	lists->lock.next = (foreign)(uintptr_t)&lists->next;
	lists->futex_offset = (foreign)((char *)&lists->lock.futex - (char *)&lists->lock);
	lists->lock.futex = (uint32_t)thread_id() | FUTEX_WAITERS;
	mode->number = other_set_robust_list;
	uint64_t arguments[3] = { (uint64_t)(uintptr_t)lists, 3 * sizeof(foreign), 0 };
	memcpy(mode->arguments, arguments, sizeof(arguments));
	enter(mode, low_call);
	CHECK(mode->result == 0, "set_robust_list: %lld", (long long)mode->result);
	MUST0(pthread_mutex_lock((pthread_mutex_t *)((char *)mode + 1024)));
	__atomic_add_fetch(&locked, 1, __ATOMIC_SEQ_CST);
	while (!done)
		sched_yield();
	return NULL;
}

CASE(robust_lists)
{
	pthread_t owners[2];
	struct mode *modes[2];
	pthread_mutexattr_t attributes;
	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	for (int i = 0; i < 2; i++) {
		modes[i] = new_mode();
		MUST0(pthread_mutex_init((pthread_mutex_t *)((char *)modes[i] + 1024), &attributes));
		MUST0(pthread_create(&owners[i], NULL, owner_of_both, modes[i]));
	}
	await(&locked, 2);
	checkpoint();
	done = 1;
	for (int i = 0; i < 2; i++) {
		uint32_t *futex = &foreign_lists(modes[i])->lock.futex, seen;
		while (!((seen = __atomic_load_n(futex, __ATOMIC_SEQ_CST)) & FUTEX_OWNER_DIED))
			syscall(SYS_futex, futex, FUTEX_WAIT, seen, NULL);
		MUST0(pthread_join(owners[i], NULL));
		int result = pthread_mutex_lock((pthread_mutex_t *)((char *)modes[i] + 1024));
		CHECK(result == EOWNERDEAD, "the lock of its own: %s", strerror(result));
	}
}
