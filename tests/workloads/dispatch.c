/* System call user dispatch: which calls of a thread become SIGSYS. */
#include "workload.h"

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif
enum { OFF, ALL_BUT_RANGE, RANGE_ALONE };
/* Values of the selector. */
enum { ALLOW, BLOCK };

extern const char stub_start[], stub_end[];
/* A system call: number and three arguments. Copied to a page of its own. */
typedef long stub_function(long number, long a, long b, long c);
#ifdef __x86_64__
__asm__(".text\n"
	"stub_start: mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n syscall\n ret\n"
	"stub_end:\n");
#else
__asm__(".text\n"
	"stub_start: push %ebx\n mov 8(%esp), %eax\n mov 12(%esp), %ebx\n mov 16(%esp), %ecx\n mov 20(%esp), %edx\n"
	"int $0x80\n pop %ebx\n ret\n"
	"stub_end:\n");
#endif

static volatile char selector = ALLOW;
static volatile int trapped;
static volatile long trapped_number;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	selector = ALLOW;
	trapped_number = info->si_syscall;
	trapped++;
}

static void catch_traps(void)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGSYS, &action, NULL));
}

static stub_function *make_stub(void)
{
	char *page = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memcpy(page, stub_start, (size_t)(stub_end - stub_start));
	return (stub_function *)(void *)page;
}

/* How often a call is trapped that is made by ordinary code, or by a stub. */
static int traps(stub_function *stub, int blocked)
{
	int before = trapped;
	if (blocked)
		selector = BLOCK;
	if (stub)
		stub(SYS_getppid, 0, 0, 0);
	else
		syscall(SYS_getppid);
	selector = ALLOW;
	return trapped - before;
}

struct worker {
	stub_function *stub;
	int pipe_end;
	pthread_t thread;
};

/* Waits by a call from the range while all other calls are blocked. */
static void *work(void *argument)
{
	struct worker *worker = argument;
	static volatile char byte;
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, ALL_BUT_RANGE, worker->stub, PAGE, &selector));
	selector = BLOCK;
	long got = worker->stub(SYS_read, worker->pipe_end, (long)(intptr_t)&byte, 1);
	selector = ALLOW;
	CHECK(got == 1 && byte == 'x', "read gives %ld", got);
	CHECK(trapped == 0, "%d calls were trapped", trapped);
	CHECK(traps(NULL, 1) == 1 && trapped_number == SYS_getppid, "call %ld was trapped", trapped_number);
	CHECK(traps(NULL, 0) == 0, "a call was trapped though the selector lets it through");
	CHECK(traps(worker->stub, 1) == 0, "a call from the range was trapped");
	return NULL;
}

CASE(waiting)
{
	struct worker worker;
	int ends[2];
	catch_traps();
	MUST(pipe(ends));
	worker.stub = make_stub();
	worker.pipe_end = ends[0];
	MUST0(pthread_create(&worker.thread, NULL, work, &worker));
	while (selector != BLOCK)
		sched_yield();
	checkpoint();
	MUST(write(ends[1], "x", 1));
	MUST0(pthread_join(worker.thread, NULL));
	CHECK(traps(NULL, 1) == 0, "the other thread's calls are trapped");
}

/* The opposite: calls from the range become SIGSYS, all others are let through. No selector. */
CASE(range_alone)
{
	stub_function *stub = make_stub();
	catch_traps();
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, RANGE_ALONE, stub, PAGE, NULL));
	checkpoint();
	CHECK(traps(NULL, 0) == 0, "a call from elsewhere was trapped");
	CHECK(traps(stub, 0) == 1, "a call from the range was let through");
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, OFF, 0, 0, 0));
	CHECK(traps(stub, 0) == 0, "a call was trapped after all");
}
