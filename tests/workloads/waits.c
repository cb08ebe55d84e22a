/*
 * Calls with a relative time limit that are in progress at checkpoints: each tells how long it took, and the test,
 * which knows how long the program was gone, judges that.
 */
#include "workload.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/select.h>

enum { LIMIT_S = 6 };

struct timespec64 {
	int64_t tv_sec;
	int64_t tv_nsec;
};
struct timespec_native {
	long tv_sec;
	long tv_nsec;
};

static int empty[2];
static uint32_t nobody[8];

struct wait {
	const char *name;
	/* Returns what the call gave, or -errno. */
	long (*run)(void);
	long expected;
	volatile pid_t tid;
	long result;
	double started, ended;
	pthread_t thread;
};

static long errno_of(long result)
{
	return result == -1 ? -errno : result;
}

static long sleep_with_rest(void)
{
	struct timespec time = { LIMIT_S, 0 }, rest;
	return errno_of(nanosleep(&time, &rest));
}

static long sleep_without_rest(void)
{
	struct timespec time = { LIMIT_S, 0 };
	return errno_of(nanosleep(&time, NULL));
}

/* By the old numbers, and through a function that has no number in its code. */
static long raw_sleep(void)
{
	struct timespec_native time = { LIMIT_S, 0 };
	return errno_of(syscall(SYS_nanosleep, &time, NULL));
}

static long raw_sleep_with_rest(void)
{
	struct timespec_native time = { LIMIT_S, 0 }, rest = { -1, -1 };
	return errno_of(syscall(SYS_nanosleep, &time, &rest));
}

static long raw_sleep_into_itself(void)
{
	struct timespec_native time = { LIMIT_S, 0 };
	return errno_of(syscall(SYS_nanosleep, &time, &time));
}

static long raw_clock_sleep(void)
{
	struct timespec_native time = { LIMIT_S, 0 };
	return errno_of(syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &time, NULL));
}

static long clock_sleep(void)
{
	struct timespec time = { LIMIT_S, 0 };
	return -clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static long realtime_sleep_with_rest(void)
{
	struct timespec time = { LIMIT_S, 0 }, rest;
	return -clock_nanosleep(CLOCK_REALTIME, 0, &time, &rest);
}

static long do_poll(void)
{
	struct pollfd wanted = { .fd = empty[0], .events = POLLIN };
	return errno_of(poll(&wanted, 1, LIMIT_S * 1000));
}

static long raw_poll(void)
{
	return errno_of(syscall(SYS_poll, NULL, 0, LIMIT_S * 1000));
}

static long do_ppoll(void)
{
	struct pollfd wanted = { .fd = empty[0], .events = POLLIN };
	struct timespec limit = { LIMIT_S, 0 };
	return errno_of(ppoll(&wanted, 1, &limit, NULL));
}

static long do_select(void)
{
	fd_set wanted;
	struct timeval limit = { LIMIT_S, 0 };
	FD_ZERO(&wanted);
	FD_SET(empty[0], &wanted);
	return errno_of(select(empty[0] + 1, &wanted, NULL, NULL, &limit));
}

static long do_pselect(void)
{
	fd_set wanted;
	struct timespec limit = { LIMIT_S, 0 };
	FD_ZERO(&wanted);
	FD_SET(empty[0], &wanted);
	return errno_of(pselect(empty[0] + 1, &wanted, NULL, NULL, &limit, NULL));
}

static long raw_futex(void)
{
	struct timespec_native limit = { LIMIT_S, 0 };
	return errno_of(syscall(SYS_futex, &nobody[0], FUTEX_WAIT, 0, &limit));
}

static long raw_private_futex(void)
{
	struct timespec_native limit = { LIMIT_S, 0 };
	return errno_of(syscall(SYS_futex, &nobody[1], FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, &limit));
}

#ifdef __i386__
static long raw_clock_sleep_64(void)
{
	struct timespec64 time = { LIMIT_S, 0 };
	return errno_of(syscall(407, CLOCK_MONOTONIC, 0, &time, NULL));
}

static long raw_clock_sleep_64_with_rest(void)
{
	struct timespec64 time = { LIMIT_S, 0 }, rest = { -1, -1 };
	return errno_of(syscall(407, CLOCK_MONOTONIC, 0, &time, &rest));
}

static long raw_futex_64(void)
{
	struct timespec64 limit = { LIMIT_S, 0 };
	return errno_of(syscall(422, &nobody[2], FUTEX_WAIT, 0, &limit));
}
#endif

static struct wait relative[] = {
	{ .name = "nanosleep with rest", .run = sleep_with_rest },
	{ .name = "nanosleep", .run = sleep_without_rest },
	{ .name = "raw nanosleep", .run = raw_sleep },
	{ .name = "raw nanosleep with rest", .run = raw_sleep_with_rest },
	{ .name = "raw nanosleep into itself", .run = raw_sleep_into_itself },
	{ .name = "raw clock_nanosleep", .run = raw_clock_sleep },
	{ .name = "clock_nanosleep", .run = clock_sleep },
	{ .name = "clock_nanosleep with rest", .run = realtime_sleep_with_rest },
	{ .name = "poll", .run = do_poll },
	{ .name = "raw poll", .run = raw_poll },
	{ .name = "ppoll", .run = do_ppoll },
	{ .name = "select", .run = do_select },
	{ .name = "pselect", .run = do_pselect },
	{ .name = "raw futex", .run = raw_futex, .expected = -ETIMEDOUT },
	{ .name = "raw private futex", .run = raw_private_futex, .expected = -ETIMEDOUT },
#ifdef __i386__
	{ .name = "clock_nanosleep_time64", .run = raw_clock_sleep_64 },
	{ .name = "clock_nanosleep_time64 with rest", .run = raw_clock_sleep_64_with_rest },
	{ .name = "futex_time64", .run = raw_futex_64, .expected = -ETIMEDOUT },
#endif
};

/* Those that end at a moment of their clock, however long the program was gone. */
static struct timespec moment(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	time.tv_sec += LIMIT_S;
	return time;
}

static long sleep_until(clockid_t clock)
{
	struct timespec time = moment(clock);
	return -clock_nanosleep(clock, TIMER_ABSTIME, &time, NULL);
}

static long sleep_until_monotonic(void)
{
	return sleep_until(CLOCK_MONOTONIC);
}

static long sleep_until_realtime(void)
{
	return sleep_until(CLOCK_REALTIME);
}

static long futex_until(uint32_t *word, int operation, clockid_t clock)
{
	struct timespec time = moment(clock);
	struct timespec_native limit = { (long)time.tv_sec, (long)time.tv_nsec };
	return errno_of(syscall(SYS_futex, word, operation, 0, &limit, NULL, 1));
}

static long futex_bitset(void)
{
	return futex_until(&nobody[3], FUTEX_WAIT_BITSET, CLOCK_MONOTONIC);
}

static long futex_bitset_realtime(void)
{
	return futex_until(&nobody[4], FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, CLOCK_REALTIME);
}

/* The main thread holds it. */
static long futex_lock(void)
{
	return futex_until(&nobody[5], FUTEX_LOCK_PI, CLOCK_REALTIME);
}

static long timed_lock(void)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	struct timespec time = moment(CLOCK_REALTIME);
	pthread_mutex_lock(&mutex);
	return -pthread_mutex_timedlock(&mutex, &time);
}

static struct wait absolute[] = {
	{ .name = "clock_nanosleep", .run = sleep_until_monotonic },
	{ .name = "clock_nanosleep realtime", .run = sleep_until_realtime },
	{ .name = "futex bitset", .run = futex_bitset, .expected = -ETIMEDOUT },
	{ .name = "futex bitset realtime", .run = futex_bitset_realtime, .expected = -ETIMEDOUT },
	{ .name = "futex lock_pi", .run = futex_lock, .expected = -ETIMEDOUT },
	{ .name = "mutex", .run = timed_lock, .expected = -ETIMEDOUT },
};

static void *run_wait(void *argument)
{
	struct wait *wait = argument;
	wait->started = now(CLOCK_MONOTONIC);
	wait->tid = thread_id();
	wait->result = wait->run();
	wait->ended = now(CLOCK_MONOTONIC);
	return NULL;
}

static void run_all(struct wait *waits, size_t count)
{
	MUST(pipe(empty));
	for (size_t i = 0; i < count; i++) {
		MUST0(pthread_create(&waits[i].thread, NULL, run_wait, &waits[i]));
		while (waits[i].tid == 0)
			sched_yield();
		await_sleep(waits[i].tid);
	}
	checkpoint();
	for (size_t i = 0; i < count; i++) {
		MUST0(pthread_join(waits[i].thread, NULL));
		CHECK(waits[i].result == waits[i].expected, "%s gives %ld instead of %ld", waits[i].name,
		      waits[i].result, waits[i].expected);
		printf("TOOK %.3f %s\n", waits[i].ended - waits[i].started, waits[i].name);
	}
	fflush(stdout);
}

CASE(relative)
{
	run_all(relative, LENGTH(relative));
}

CASE(absolute)
{
	nobody[5] = (uint32_t)thread_id();
	run_all(absolute, LENGTH(absolute));
}

/* Two hundred threads asleep. */
static void *sleep_long(void *unused)
{
	(void)unused;
	poll(NULL, 0, 600000);
	return NULL;
}

CASE(many)
{
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 16 * PAGE);
	for (int i = 0; i < 200; i++) {
		pthread_t thread;
		MUST0(pthread_create(&thread, &attributes, sleep_long, NULL));
	}
	checkpoint();
}
