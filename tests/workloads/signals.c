/* Signals: handlers, masks, pending signals with their siginfo, frames on the stack, interval timers. */
#include "workload.h"
#include "bare.h"
#include <sys/ucontext.h>

static struct kernel_sigaction raw_action(int signal)
{
	struct kernel_sigaction found = { 0 };
	MUST(syscall(SYS_rt_sigaction, signal, NULL, &found, 8));
	return found;
}

static void set_raw_action(int signal, void *handler, unsigned long flags, void *restorer, uint64_t mask)
{
	struct kernel_sigaction wanted = { handler, flags, restorer, mask };
	MUST(syscall(SYS_rt_sigaction, signal, &wanted, NULL, 8));
}

static volatile int seen_signal, seen_count, seen_code, seen_value, seen_on_stack;
static char *alternate;

enum { ALTERNATE_SIZE = 64 * 1024 };

static void note(int signal)
{
	char local;
	seen_signal = signal;
	seen_count++;
	seen_on_stack = &local >= alternate && &local < alternate + ALTERNATE_SIZE;
}

static void note_info(int signal, siginfo_t *info, void *context)
{
	ucontext_t *user = context;
	note(signal);
	seen_code = info->si_code;
	seen_value = info->si_value.sival_int;
	CHECK(user->uc_stack.ss_sp == alternate || alternate == NULL, "the frame's altstack");
}

CASE(handlers)
{
	static const struct {
		int signal;
		int flags;
	} wanted[] = {
		{ SIGHUP, 0 },           { SIGINT, SA_RESTART },      { SIGQUIT, SA_NODEFER },
		{ SIGUSR2, SA_SIGINFO }, { SIGTERM, SA_RESETHAND },   { SIGPIPE, SA_ONSTACK | SA_SIGINFO },
		{ SIGCHLD, SA_NOCLDSTOP | SA_NOCLDWAIT | SA_RESTART },
		{ 34, SA_SIGINFO },      { 64, SA_SIGINFO | SA_RESTART | SA_NODEFER },
	};
	struct kernel_sigaction before[65];
	struct sigaction action = { 0 };
	stack_t stack = { .ss_sp = alternate = map_anonymous(ALTERNATE_SIZE), .ss_size = ALTERNATE_SIZE }, found;
	MUST(sigaltstack(&stack, NULL));
	for (size_t i = 0; i < LENGTH(wanted); i++) {
		if (wanted[i].flags & SA_SIGINFO)
			action.sa_sigaction = note_info;
		else
			action.sa_handler = note;
		action.sa_flags = wanted[i].flags;
		sigemptyset(&action.sa_mask);
		sigaddset(&action.sa_mask, 1 + (int)i);
		sigaddset(&action.sa_mask, SIGRTMAX - (int)i);
		/* 34 is SIGRTMIN and below it glibc keeps two for itself. */
		MUST(sigaction(wanted[i].signal, &action, NULL));
	}
	MUST((intptr_t)signal(SIGWINCH, SIG_IGN));
	MUST((intptr_t)signal(SIGTSTP, SIG_IGN));
	for (int i = 1; i <= 64; i++)
		before[i] = raw_action(i);
	checkpoint();
	for (int i = 1; i <= 64; i++) {
		struct kernel_sigaction after = raw_action(i);
		CHECK(memcmp(&before[i], &after, sizeof(after)) == 0, "signal %d: handler %p flags %#lx, was %p %#lx", i,
		      after.handler, after.flags, before[i].handler, before[i].flags);
	}
	MUST(sigaltstack(NULL, &found));
	CHECK(found.ss_sp == stack.ss_sp && found.ss_size == stack.ss_size, "altstack %p", found.ss_sp);
	for (size_t i = 0; i < LENGTH(wanted); i++) {
		int count = seen_count;
		MUST(sigqueue(getpid(), wanted[i].signal, (union sigval){ .sival_int = 40 + (int)i }));
		CHECK(seen_count == count + 1 && seen_signal == wanted[i].signal, "signal %d came as %d, %d times",
		      wanted[i].signal, seen_signal, seen_count - count);
		if (wanted[i].flags & SA_SIGINFO)
			CHECK(seen_code == SI_QUEUE && seen_value == 40 + (int)i, "code %d value %d", seen_code, seen_value);
		CHECK(!(wanted[i].flags & SA_ONSTACK) == !seen_on_stack, "signal %d: on the altstack: %d",
		      wanted[i].signal, seen_on_stack);
	}
	CHECK(raw_action(SIGTERM).handler == SIG_DFL, "SA_RESETHAND");
}

/* Without SA_RESTORER ia32 returns from a handler through the vDSO: so that has to be where it was. */
CASE(without_restorer)
{
#ifdef __i386__
	set_raw_action(SIGUSR2, note, 0, NULL, 0);
	set_raw_action(SIGHUP, note_info, SA_SIGINFO, NULL, 0);
	checkpoint();
	MUST(kill(getpid(), SIGUSR2));
	CHECK(seen_signal == SIGUSR2 && seen_count == 1, "the old frame");
	MUST(kill(getpid(), SIGHUP));
	CHECK(seen_signal == SIGHUP && seen_count == 2, "the new frame");
#else
	/* x86_64 has no other way than a restorer. Ours is recognisable. */
	void *restorer = raw_action(SIGUSR1).restorer;
	set_raw_action(SIGUSR2, note, 0x04000000, restorer, 0);
	checkpoint();
	CHECK(raw_action(SIGUSR2).restorer == restorer, "the restorer moved");
	MUST(kill(getpid(), SIGUSR2));
	CHECK(seen_signal == SIGUSR2 && seen_count == 1, "the frame");
#endif
}

struct expected {
	int signal;
	int code;
	int value;
};

static void check_next(const sigset_t *set, struct expected expected)
{
	siginfo_t info;
	struct timespec none = { 0, 0 };
	/* Not by the C library, which makes SI_USER of SI_TKILL. */
	int signal = (int)syscall(SYS_rt_sigtimedwait, set, &info, &none, 8);
	CHECK(signal == expected.signal, "signal %d instead of %d: %s", signal, expected.signal,
	      signal == -1 ? strerror(errno) : "");
	if (signal == expected.signal) {
		CHECK(info.si_code == expected.code, "code %d instead of %d", info.si_code, expected.code);
		CHECK(info.si_pid == getpid() && info.si_uid == getuid(), "from %d", info.si_pid);
		if (expected.code == SI_QUEUE)
			CHECK(info.si_int == expected.value, "value %d instead of %d", info.si_int, expected.value);
	}
}

static void queue_to_thread(pid_t tid, int signal, int value)
{
	siginfo_t info = { 0 };
	info.si_signo = signal;
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_int = value;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, &info));
}

static volatile int thread_ready, thread_go;
static volatile pid_t thread_tid;

static void *pending_thread(void *unused)
{
	sigset_t set;
	(void)unused;
	thread_tid = thread_id();
	/* Also blocks what is pending for the whole task, which only the main thread is to take. */
	sigfillset(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	__atomic_store_n(&thread_ready, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &thread_go, 0, 0, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 5);
	sigaddset(&set, SIGUSR2);
	check_next(&set, (struct expected){ SIGUSR2, SI_TKILL, 0 });
	check_next(&set, (struct expected){ SIGRTMIN + 5, SI_QUEUE, 71 });
	check_next(&set, (struct expected){ SIGRTMIN + 5, SI_QUEUE, 72 });
	return NULL;
}

CASE(pending)
{
	pthread_t thread;
	sigset_t set, pending;
	struct timespec none = { 0, 0 };
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	for (int i = 1; i < 10; i++)
		sigaddset(&set, SIGRTMIN + i);
	sigprocmask(SIG_BLOCK, &set, NULL);
	MUST0(pthread_create(&thread, NULL, pending_thread, NULL));
	await(&thread_ready, 1);
	MUST(kill(getpid(), SIGHUP));
	MUST(kill(getpid(), SIGHUP)); /* merges with the first */
	for (int i = 0; i < 3; i++) {
		MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){ .sival_int = 20 + i }));
		MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 10 + i }));
	}
	queue_to_thread(getpid(), SIGRTMIN + 3, 33);
	MUST(syscall(SYS_tgkill, getpid(), thread_tid, SIGUSR2));
	queue_to_thread(thread_tid, SIGRTMIN + 5, 71);
	queue_to_thread(thread_tid, SIGRTMIN + 5, 72);
	await_sleep(thread_tid);
	checkpoint();
	sigpending(&pending);
	CHECK(sigismember(&pending, SIGHUP) && sigismember(&pending, SIGRTMIN + 1) && !sigismember(&pending, SIGTERM),
	      "the pending set");
	/* The thread's own queue is asked first, then the task's by rising number. */
	check_next(&set, (struct expected){ SIGRTMIN + 3, SI_QUEUE, 33 });
	check_next(&set, (struct expected){ SIGHUP, SI_USER, 0 });
	for (int i = 0; i < 3; i++)
		check_next(&set, (struct expected){ SIGRTMIN + 1, SI_QUEUE, 10 + i });
	for (int i = 0; i < 3; i++)
		check_next(&set, (struct expected){ SIGRTMIN + 2, SI_QUEUE, 20 + i });
	CHECK(sigtimedwait(&set, NULL, &none) == -1 && errno == EAGAIN, "one signal too many");
	thread_go = 1;
	syscall(SYS_futex, &thread_go, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

/* Checkpoints inside of a handler: the frame on the stack is what it returns by, restored or not. */
static void checkpoint_in_handler(int signal)
{
	/* Spoils what the frame is to bring back. */
	volatile double spoiled = signal * 3.14;
	CHECK(spoiled > 1, "arithmetic");
	note(signal);
	checkpoint();
}

static void nested_handler(int signal)
{
	note(signal);
	MUST(raise(SIGHUP));
}

static void check_frame(int first_signal)
{
	CHECK(raise_keeping_state(first_signal) == 0, "the extended state came back otherwise");
	sigset_t mask;
	sigprocmask(SIG_SETMASK, NULL, &mask);
	CHECK(!sigismember(&mask, SIGHUP) && !sigismember(&mask, SIGUSR2) && sigismember(&mask, SIGUSR1),
	      "the mask after the handler");
}

CASE(frame)
{
	set_raw_action(SIGHUP, checkpoint_in_handler, raw_action(SIGUSR1).flags, raw_action(SIGUSR1).restorer, 0);
	check_frame(SIGHUP);
	CHECK(seen_count == 1, "%d signals", seen_count);
}

static void checkpoint_in_info_handler(int signal, siginfo_t *info, void *context)
{
	CHECK(info->si_signo == signal && context != NULL, "siginfo");
	checkpoint_in_handler(signal);
	CHECK(info->si_signo == signal, "siginfo after");
}

CASE(frame_with_info)
{
	struct sigaction action = { .sa_sigaction = checkpoint_in_info_handler, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGHUP, &action, NULL));
	check_frame(SIGHUP);
}

/* Two frames, the inner one on the altstack. */
CASE(frame_nested)
{
	struct sigaction inner = { .sa_sigaction = checkpoint_in_info_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct sigaction outer = { .sa_handler = nested_handler };
	stack_t stack = { .ss_sp = alternate = map_anonymous(ALTERNATE_SIZE), .ss_size = ALTERNATE_SIZE }, found;
	MUST(sigaltstack(&stack, NULL));
	MUST(sigaction(SIGHUP, &inner, NULL));
	MUST(sigaction(SIGUSR2, &outer, NULL));
	check_frame(SIGUSR2);
	CHECK(seen_count == 2, "%d signals", seen_count);
	MUST(sigaltstack(NULL, &found));
	CHECK(found.ss_sp == stack.ss_sp && found.ss_flags == 0, "altstack %p flags %d", found.ss_sp, found.ss_flags);
}

static volatile int alarms[3];

static void on_alarm(int signal)
{
	alarms[signal == SIGALRM ? 0 : signal == SIGVTALRM ? 1 : 2]++;
}

CASE(interval_timers)
{
	static const int signals[] = { SIGALRM, SIGVTALRM, SIGPROF };
	/* The real one also runs while nothing else does: it is blocked until after the checkpoint. */
	struct itimerval soon = { { 0, 20000 }, { 0, 30000 } }, found;
	sigset_t mask;
	sigemptyset(&mask);
	for (int i = 0; i < 3; i++) {
		struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
		MUST(sigaction(signals[i], &action, NULL));
		sigaddset(&mask, signals[i]);
	}
	sigprocmask(SIG_BLOCK, &mask, NULL);
	struct itimerval late = { { 1000, 500000 }, { 5000, 0 } };
	MUST(setitimer(ITIMER_REAL, &late, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &soon, NULL));
	MUST(setitimer(ITIMER_PROF, &soon, NULL));
	checkpoint();
	MUST(getitimer(ITIMER_REAL, &found));
	CHECK(found.it_interval.tv_sec == 1000 && found.it_interval.tv_usec == 500000 && found.it_value.tv_sec >= 4800 &&
		      found.it_value.tv_sec <= 5000,
	      "ITIMER_REAL is %ld s every %ld s", (long)found.it_value.tv_sec, (long)found.it_interval.tv_sec);
	MUST(getitimer(ITIMER_PROF, &found));
	CHECK(found.it_interval.tv_usec == 20000, "ITIMER_PROF every %ld us", (long)found.it_interval.tv_usec);
	MUST(setitimer(ITIMER_REAL, &soon, NULL));
	sigprocmask(SIG_UNBLOCK, &mask, NULL);
	double limit = now(CLOCK_MONOTONIC) + 20;
	while ((alarms[0] < 3 || alarms[1] < 3 || alarms[2] < 3) && now(CLOCK_MONOTONIC) < limit)
		for (volatile int i = 0; i < 10000; i++)
			;
	CHECK(alarms[0] >= 3 && alarms[1] >= 3 && alarms[2] >= 3, "%d real, %d virtual, %d profiling ticks", alarms[0],
	      alarms[1], alarms[2]);
}

/* A real timer that ticks all the time, also while the tree is stopped. */
CASE(ticking)
{
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct itimerval tick = { { 0, 5000 }, { 0, 5000 } };
	MUST(sigaction(SIGALRM, &action, NULL));
	MUST(setitimer(ITIMER_REAL, &tick, NULL));
	checkpoint();
	int count = alarms[0];
	double limit = now(CLOCK_MONOTONIC) + 20;
	while (alarms[0] < count + 5 && now(CLOCK_MONOTONIC) < limit)
		pause();
	CHECK(alarms[0] >= count + 5, "it stopped ticking after %d", count);
}

/* Signals sent before the restore are there after it, the very first instruction on. */
CASE(delivered_at_once)
{
	struct sigaction action = { .sa_handler = note };
	sigset_t mask;
	MUST(sigaction(SIGUSR2, &action, NULL));
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	MUST(kill(getpid(), SIGUSR2));
	checkpoint();
	CHECK(seen_count == 0, "delivered although blocked");
	sigprocmask(SIG_UNBLOCK, &mask, NULL);
	CHECK(seen_count == 1, "delivered %d times", seen_count);
}

/* The two signals that the C library keeps for itself, blocked and pending. */
static void keep_library_signals(void)
{
	uint64_t mask = (uint64_t)3 << 31, pending = 0;
	MUST(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mask, NULL, 8));
	MUST(syscall(SYS_tgkill, getpid(), getpid(), 32));
	MUST(syscall(SYS_tgkill, getpid(), getpid(), 33));
	checkpoint();
	MUST(syscall(SYS_rt_sigpending, &pending, 8));
	CHECK(pending == mask, "pending %llx", (unsigned long long)pending);
}

CASE(library_signals)
{
	keep_library_signals();
}

/* So much memory that crr has threads, whose library uses these signals. */
CASE(library_signals_of_a_large_task)
{
	static volatile char memory[8 << 20];
	for (size_t at = 0; at < sizeof memory; at += PAGE)
		memory[at] = 1;
	keep_library_signals();
}
