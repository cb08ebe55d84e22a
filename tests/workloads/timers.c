/* POSIX timers: the numbers, clocks, signals and times of timer_create(2), by the kernel's own calls. */
#include "workload.h"
#include <dirent.h>

/* What the kernel takes; timer_t of the C library is something else for SIGEV_THREAD. */
static int create(clockid_t clock, int notify, int signal, int value, pid_t thread)
{
	int id = -1;
	struct sigevent event = { .sigev_notify = notify, .sigev_signo = signal };
	event.sigev_value.sival_ptr = NULL;
	event.sigev_value.sival_int = value;
	event._sigev_un._tid = thread;
	MUST(syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

struct times {
	struct {
		long tv_sec;
		long tv_nsec;
	} interval, value;
};

static struct times ms(long interval, long value)
{
	struct times times = { { interval / 1000, interval % 1000 * 1000000 }, { value / 1000, value % 1000 * 1000000 } };
	return times;
}

static void set(int id, int flags, struct times times)
{
	MUST(syscall(SYS_timer_settime, id, flags, &times, NULL));
}

static double left(int id, double *interval)
{
	struct times times;
	MUST(syscall(SYS_timer_gettime, id, &times));
	if (interval != NULL)
		*interval = (double)times.interval.tv_sec + (double)times.interval.tv_nsec / 1e9;
	return (double)times.value.tv_sec + (double)times.value.tv_nsec / 1e9;
}

static void block(int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	MUST0(pthread_sigmask(SIG_BLOCK, &set, NULL));
}

/* The next signal of this number, within some seconds. */
static siginfo_t take(int signal, long seconds)
{
	sigset_t set;
	siginfo_t info = { 0 };
	struct timespec limit = { seconds, 0 };
	sigemptyset(&set);
	sigaddset(&set, signal);
	int got;
	do
		got = sigtimedwait(&set, &info, &limit);
	while (got == -1 && errno == EINTR);
	if (got == -1)
		info.si_signo = 0;
	return info;
}

static volatile int stay = 1;
static volatile pid_t other_tid;

static void *stay_here(void *unused)
{
	(void)unused;
	block(SIGRTMIN + 7);
	other_tid = thread_id();
	while (stay)
		syscall(SYS_futex, &stay, 0, 1, NULL);
	siginfo_t info = take(SIGRTMIN + 7, 20);
	CHECK(info.si_signo == SIGRTMIN + 7 && info.si_code == SI_TIMER && info.si_value.sival_int == 70,
	      "the thread gets signal %d, code %d, value %d", info.si_signo, info.si_code, info.si_value.sival_int);
	return NULL;
}

static pthread_t start_thread(void)
{
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, stay_here, NULL));
	while (other_tid == 0)
		sched_yield();
	await_sleep(other_tid);
	return thread;
}

static void end_thread(pthread_t thread)
{
	stay = 0;
	syscall(SYS_futex, &stay, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

/* Far-off timers of every clock, with gaps in their numbers. What they are is compared by /proc/PID/timers. */
CASE(kinds)
{
	static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI,
					    CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID };
	enum { COUNT = LENGTH(clocks) + 2 };
	int ids[COUNT];
	clockid_t own, others;
	pthread_t thread = start_thread();
	MUST0(clock_getcpuclockid(getpid(), &own));
	MUST0(pthread_getcpuclockid(thread, &others));
	for (int i = 0; i < COUNT; i++) {
		clockid_t clock = i < (int)LENGTH(clocks) ? clocks[i] : i == COUNT - 1 ? own : others;
		for (int gap = 0; gap < i; gap++)
			MUST(syscall(SYS_timer_delete, create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0)));
		ids[i] = create(clock, SIGEV_SIGNAL, SIGRTMIN + i, -i, 0);
		set(ids[i], 0, ms(1500 * (i % 3), 1000000 + 1000 * i));
	}
	int none = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 5, 0);
	set(none, 0, ms(0, 2000000));
	int disarmed = create(CLOCK_MONOTONIC, SIGEV_THREAD, SIGUSR2, 6, 0);
	int for_thread = create(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, SIGRTMIN + 7, 70, other_tid);
	set(for_thread, 0, ms(0, 3000000));
	int by_default = -1;
	MUST(syscall(SYS_timer_create, CLOCK_REALTIME, NULL, &by_default));
	set(by_default, 0, ms(0, 4000000));
	checkpoint();
	for (int i = 0; i < COUNT; i++) {
		double interval, rest = left(ids[i], &interval), expected = 1000 + i;
		CHECK(rest <= expected && rest > expected - 30, "timer %d has %.3f s left, not %.0f", ids[i], rest, expected);
		CHECK(interval == 1.5 * (i % 3), "timer %d has an interval of %.3f s", ids[i], interval);
	}
	double rest = left(none, NULL);
	CHECK(rest <= 2000 && rest > 1970, "the one without a signal has %.3f s left", rest);
	rest = left(by_default, NULL);
	CHECK(rest <= 4000 && rest > 3970, "the one by default has %.3f s left", rest);
	CHECK(left(disarmed, NULL) == 0, "a disarmed timer runs");
	int next = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	CHECK(next > by_default, "the next timer is %d, after %d", next, by_default);
	set(for_thread, 0, ms(0, 1));
	end_thread(thread);
}

/* The number of a timer can be far from 0. */
CASE(sparse)
{
	int id;
	do {
		id = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
		if (id < 5000)
			MUST(syscall(SYS_timer_delete, id));
	} while (id < 5000);
	set(id, 0, ms(0, 1000000));
	checkpoint();
	double rest = left(id, NULL);
	CHECK(rest <= 1000 && rest > 970, "%.3f s left", rest);
}

/* Its signal is pending, and periods pass meanwhile: they are counted as overruns of the one signal. */
CASE(pending)
{
	int often = SIGRTMIN + 1, once = SIGRTMIN + 2, plain = SIGRTMIN + 3;
	block(often);
	block(once);
	block(plain);
	int periodic = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, often, 11, 0);
	set(periodic, 0, ms(50, 50));
	int single = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, once, 12, 0);
	set(single, 0, ms(0, 20));
	/* Not of a timer, though it says so. */
	siginfo_t fake = { .si_signo = plain, .si_code = SI_TIMER };
	fake.si_value.sival_int = 13;
	fake.si_timerid = 77;
	MUST(syscall(SYS_rt_sigqueueinfo, getpid(), plain, &fake));
	sigset_t set_of_pending;
	do
		sigpending(&set_of_pending);
	while (!sigismember(&set_of_pending, often) || !sigismember(&set_of_pending, once));
	checkpoint();
	struct timespec some = { 0, 200000000 };
	while (nanosleep(&some, &some) == -1)
		;
	siginfo_t info = take(often, 5);
	CHECK(info.si_code == SI_TIMER && info.si_timerid == periodic && info.si_value.sival_int == 11 && info.si_overrun >= 3,
	      "code %d, timer %d, value %d, overrun %d", info.si_code, info.si_timerid, info.si_value.sival_int, info.si_overrun);
	CHECK(MUST(syscall(SYS_timer_getoverrun, periodic)) == info.si_overrun, "another overrun count");
	info = take(often, 5);
	CHECK(info.si_value.sival_int == 11 && info.si_overrun < 100, "the next has value %d, overrun %d",
	      info.si_value.sival_int, info.si_overrun);
	info = take(once, 5);
	CHECK(info.si_code == SI_TIMER && info.si_timerid == single && info.si_value.sival_int == 12 && info.si_overrun == 0,
	      "code %d, timer %d, value %d, overrun %d", info.si_code, info.si_timerid, info.si_value.sival_int, info.si_overrun);
	CHECK(left(single, NULL) == 0 && take(once, 0).si_signo == 0, "the single one came again");
	info = take(plain, 5);
	CHECK(info.si_code == SI_TIMER && info.si_timerid == 77 && info.si_value.sival_int == 13, "the false one");
	CHECK(take(plain, 0).si_signo == 0, "the false one came again");
}

/* timer_getoverrun answers for the last signal that was taken. */
CASE(overrun)
{
	int signal = SIGRTMIN + 1;
	struct timespec now_is;
	block(signal);
	int id = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, signal, 1, 0);
	clock_gettime(CLOCK_MONOTONIC, &now_is);
	/* Five seconds ago, every second; the next one late, to be at the checkpoint before. */
	struct times times = { { 1, 0 }, { now_is.tv_sec - 5, now_is.tv_nsec } };
	set(id, TIMER_ABSTIME, times);
	int overrun = take(signal, 5).si_overrun;
	CHECK(overrun >= 4 && MUST(syscall(SYS_timer_getoverrun, id)) == overrun, "overrun %d before", overrun);
	checkpoint();
	int found = MUST((int)syscall(SYS_timer_getoverrun, id));
	CHECK(found == overrun, "overrun %d instead of %d", found, overrun);
	siginfo_t info = take(signal, 5);
	CHECK(info.si_signo == signal && info.si_timerid == id, "signal %d of timer %d", info.si_signo, info.si_timerid);
}

/* Until every other thread of the task is asleep: the C library starts one of its own. */
static void await_threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	if (tasks == NULL)
		die(__FILE__, __LINE__, "opendir");
	while ((entry = readdir(tasks)) != NULL) {
		pid_t tid = atoi(entry->d_name);
		if (tid != 0 && tid != thread_id())
			await_sleep(tid);
	}
	closedir(tasks);
}

static volatile int handled, called;

static void on_timer(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	handled += info->si_code == SI_TIMER ? info->si_value.sival_int : 1000;
}

static void on_expiry(union sigval value)
{
	called += value.sival_int;
}

/* Timers that expire after the restore, or while the tree is gone: not before, and each once. */
CASE(expiring)
{
	struct sigaction action = { .sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART };
	pthread_t thread = start_thread();
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	set(create(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 1, 1, 0), 0, ms(0, 2000));
	set(create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 10, 0), 0, ms(0, 1000));
	set(create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 1, 100, 0), 0, ms(0, 500));
	set(create(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, SIGRTMIN + 7, 70, other_tid), 0, ms(0, 1000));
	/*
	 * The C library's way: a thread of its own takes the signals and starts another for each. That changes the
	 * mappings, so it comes when nobody compares them any more.
	 */
	struct sigevent event = { .sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_expiry };
	event.sigev_value.sival_int = 5;
	timer_t by_thread;
	MUST(timer_create(CLOCK_MONOTONIC, &event, &by_thread));
	struct itimerspec late = { { 0, 0 }, { 1000, 0 } }, soon = { { 0, 0 }, { 0, 1000000 } };
	MUST(timer_settime(by_thread, 0, &late, NULL));
	await_threads();
	checkpoint();
	MUST(timer_settime(by_thread, 0, &soon, NULL));
	double limit = now(CLOCK_MONOTONIC) + 25;
	while ((handled != 111 || called != 5) && now(CLOCK_MONOTONIC) < limit)
		;
	CHECK(handled == 111, "handled %d", handled);
	CHECK(called == 5, "called %d", called);
	end_thread(thread);
}

/* Told by the test how long it should take. */
CASE(took)
{
	int signal = SIGRTMIN + 1;
	block(signal);
	double started = now(CLOCK_MONOTONIC);
	set(create(CLOCK_MONOTONIC, SIGEV_SIGNAL, signal, 0, 0), 0, ms(0, 6000));
	checkpoint();
	take(signal, 30);
	printf("TOOK %.3f one shot\n", now(CLOCK_MONOTONIC) - started);
	fflush(stdout);
}
