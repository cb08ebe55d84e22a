/* Pending signals: a siginfo of every layout, and more signals than the limit allows. */
#include "workload.h"
#include <sys/resource.h>

static volatile int thread_ready, thread_go;

static void queue_to_thread(pid_t tid, int signal, int value)
{
	siginfo_t info = { 0 };
	info.si_signo = signal;
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_int = value;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, &info));
}

/* A siginfo in every layout that the kernel knows, as the program's own ABI has it. */
static siginfo_t siginfo_of(int index)
{
	siginfo_t info = { 0 };
	switch (index) {
	case 0:
		info.si_signo = SIGTERM, info.si_code = SI_USER, info.si_pid = 7, info.si_uid = 8;
		break;
	case 1:
		info.si_signo = SIGHUP, info.si_code = SI_TKILL, info.si_pid = 9, info.si_uid = 10;
		break;
	case 2:
		info.si_signo = SIGRTMIN + 1, info.si_code = SI_QUEUE, info.si_pid = 11, info.si_uid = 12;
		info.si_ptr = (void *)((uintptr_t)&siginfo_of + 1);
		break;
	case 3:
		info.si_signo = SIGRTMIN + 2, info.si_code = SI_TIMER, info.si_timerid = 13, info.si_overrun = 14;
		info.si_ptr = (void *)((uintptr_t)&siginfo_of + 2);
		break;
	case 4:
		info.si_signo = SIGCHLD, info.si_code = CLD_EXITED, info.si_pid = 15, info.si_uid = 16, info.si_status = 17;
		info.si_utime = 18, info.si_stime = 19;
		break;
	case 5:
		info.si_signo = SIGPOLL, info.si_code = POLL_IN, info.si_band = 65, info.si_fd = 20;
		break;
	case 6:
		info.si_signo = SIGSEGV, info.si_code = SEGV_BNDERR, info.si_addr = (void *)((uintptr_t)&siginfo_of + 3);
		info.si_lower = (void *)((uintptr_t)&siginfo_of + 4), info.si_upper = (void *)((uintptr_t)&siginfo_of + 5);
		break;
	case 7:
		info.si_signo = SIGBUS, info.si_code = BUS_MCEERR_AO, info.si_addr = (void *)((uintptr_t)&siginfo_of + 6);
		info.si_addr_lsb = 12;
		break;
	case 8:
		info.si_signo = SIGSYS, info.si_code = 1, info.si_call_addr = (void *)((uintptr_t)&siginfo_of + 7);
		info.si_syscall = 21, info.si_arch = 0x40000003;
		break;
	case 9:
		info.si_signo = SIGFPE, info.si_code = FPE_INTDIV, info.si_addr = (void *)((uintptr_t)&siginfo_of + 8);
		break;
	case 10:
		info.si_signo = SIGRTMIN + 3, info.si_code = SI_MESGQ, info.si_pid = 22, info.si_uid = 23, info.si_int = 24;
		break;
	case 11:
		info.si_signo = SIGRTMIN + 4, info.si_code = SI_SIGIO, info.si_band = 66, info.si_fd = 25;
		break;
	case 12:
		info.si_signo = SIGRTMIN + 5, info.si_code = SI_KERNEL;
		break;
	case 13:
		/* TRAP_PERF: data, type and flags stand behind the address. */
		info.si_signo = SIGTRAP, info.si_code = 6, info.si_addr = (void *)((uintptr_t)&siginfo_of + 9);
		((long *)&info.si_addr)[1] = 26;
		memcpy((char *)&info.si_addr + 2 * sizeof(long), (int[]){ 27, 28 }, 8);
		break;
	default:
		info.si_signo = 0;
	}
	return info;
}

static void check_layouts(const char *whose)
{
	for (int i = 0; siginfo_of(i).si_signo != 0; i++) {
		siginfo_t expected = siginfo_of(i), found;
		struct timespec none = { 0, 0 };
		sigset_t set;
		memset(&found, 0, sizeof(found));
		sigemptyset(&set);
		sigaddset(&set, expected.si_signo);
		int signal = (int)syscall(SYS_rt_sigtimedwait, &set, &found, &none, 8);
		CHECK(signal == expected.si_signo, "%s signal %d: got %d", whose, expected.si_signo, signal);
		CHECK(memcmp(&found, &expected, sizeof(found)) == 0, "%s signal %d, code %d: another siginfo", whose,
		      expected.si_signo, expected.si_code);
	}
}

static void block_everything(void)
{
	uint64_t mask = ~((uint64_t)1 << (SIGUSR1 - 1));
	MUST(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mask, NULL, 8));
}

static void *layouts_of_thread(void *unused)
{
	(void)unused;
	for (int i = 0; siginfo_of(i).si_signo != 0; i++) {
		siginfo_t info = siginfo_of(i);
		MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), thread_id(), info.si_signo, &info));
	}
	thread_ready = 1;
	while (!thread_go)
		syscall(SYS_futex, &thread_go, 0, 0, NULL);
	check_layouts("the thread's");
	return NULL;
}

CASE(layouts)
{
	pthread_t thread;
	block_everything();
	MUST0(pthread_create(&thread, NULL, layouts_of_thread, NULL));
	await(&thread_ready, 1);
	for (int i = 0; siginfo_of(i).si_signo != 0; i++) {
		siginfo_t info = siginfo_of(i);
		MUST(syscall(SYS_rt_sigqueueinfo, getpid(), info.si_signo, &info));
	}
	checkpoint();
	check_layouts("the task's");
	thread_go = 1;
	syscall(SYS_futex, &thread_go, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

enum { MANY = 400 };

static void check_many(int signal, const char *whose)
{
	sigset_t set;
	siginfo_t info;
	struct timespec none = { 0, 0 };
	sigemptyset(&set);
	sigaddset(&set, signal);
	for (int i = 0; i < MANY; i++) {
		int got = sigtimedwait(&set, &info, &none);
		CHECK(got == signal && info.si_int == i, "%s signal %d has value %d", whose, i, info.si_int);
		if (got != signal)
			return;
	}
	CHECK(sigtimedwait(&set, &info, &none) == -1, "%s: one too many", whose);
}

static void *many_of_thread(void *unused)
{
	(void)unused;
	for (int i = 0; i < MANY; i++)
		queue_to_thread(thread_id(), SIGRTMIN + 6, i);
	thread_ready = 1;
	while (!thread_go)
		syscall(SYS_futex, &thread_go, 0, 0, NULL);
	check_many(SIGRTMIN + 6, "the thread's");
	return NULL;
}

/* More signals than RLIMIT_SIGPENDING allows by now. */
CASE(many)
{
	pthread_t thread;
	block_everything();
	MUST0(pthread_create(&thread, NULL, many_of_thread, NULL));
	await(&thread_ready, 1);
	for (int i = 0; i < MANY; i++)
		MUST(sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = i }));
	struct rlimit few = { 10, 10 };
	MUST(setrlimit(RLIMIT_SIGPENDING, &few));
	CHECK(sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = -1 }) == -1 && errno == EAGAIN, "no limit");
	checkpoint();
	CHECK(sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = -1 }) == -1 && errno == EAGAIN, "no limit after");
	check_many(SIGRTMIN + 7, "the task's");
	thread_go = 1;
	syscall(SYS_futex, &thread_go, 1, 1);
	MUST0(pthread_join(thread, NULL));
}
