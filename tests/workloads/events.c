/* Files that tell events: eventfd, timerfd, signalfd; and who is told by a signal what happens to a file. */
#include "workload.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static uint64_t take(int fd)
{
	uint64_t value = 0;
	ssize_t got = read(fd, &value, sizeof(value));
	if (got == -1 && errno == EAGAIN)
		return 0;
	CHECK(got == sizeof(value), "fd %d: read gives %zd: %s", fd, got, strerror(errno));
	return value;
}

static void add(int fd, uint64_t value)
{
	CHECK(write(fd, &value, sizeof(value)) == sizeof(value), "fd %d: write: %s", fd, strerror(errno));
}

CASE(counters)
{
	int empty = MUST(eventfd(0, EFD_NONBLOCK)), some = MUST(eventfd(5, EFD_CLOEXEC)),
	    full = MUST(eventfd(0, EFD_NONBLOCK)), semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK)),
	    beyond = MUST(eventfd(7, EFD_NONBLOCK));
	add(full, UINT64_MAX - 1);
	add(beyond, (uint64_t)1 << 40);
	int duplicate = MUST(dup(some));
	checkpoint();
	CHECK(take(empty) == 0, "the empty one");
	CHECK(take(beyond) == ((uint64_t)1 << 40) + 7, "the one beyond 32 bits");
	uint64_t one = 1;
	CHECK(write(full, &one, sizeof(one)) == -1 && errno == EAGAIN, "the full one takes more");
	CHECK(take(full) == UINT64_MAX - 1, "the full one");
	for (int i = 0; i < 3; i++)
		CHECK(take(semaphore) == 1, "the semaphore at %d", i);
	CHECK(take(semaphore) == 0, "the semaphore has more than it had");
	CHECK(fcntl(some, F_GETFL) == O_RDWR && fcntl(some, F_GETFD) == FD_CLOEXEC, "flags");
	add(duplicate, 2);
	CHECK(take(some) == 7, "the one with a duplicate");
}

static int wanted, crowded, answer;

static void reading_child(void *unused)
{
	(void)unused;
	prepared();
	uint64_t got = take(wanted);
	CHECK(got == 4, "the reader gets %lld", (long long)got);
	add(answer, got);
}

static void writing_child(void *unused)
{
	(void)unused;
	prepared();
	add(crowded, 10);
	add(answer, 100);
}

/* Tasks that wait for a counter to be large or small enough, and share it. */
CASE(counters_waited_for)
{
	wanted = MUST(eventfd(0, 0));
	crowded = MUST(eventfd(0, 0));
	answer = MUST(eventfd(0, EFD_NONBLOCK));
	add(crowded, UINT64_MAX - 5);
	pid_t reader = spawn(reading_child, NULL), writer = spawn(writing_child, NULL);
	await_sleep(reader);
	await_sleep(writer);
	checkpoint();
	CHECK(take(answer) == 0, "somebody went on early");
	add(wanted, 4);
	CHECK(take(crowded) == UINT64_MAX - 5, "the crowded one");
	reap(reader);
	reap(writer);
	CHECK(take(answer) == 104 && take(crowded) == 10, "after both went on");
}

/* Fd 10 is a semaphore, fd 11 takes what comes of it. */
CASE(other_side)
{
	prepared();
	for (int i = 0; i < 3; i++)
		add(11, take(10));
}

CASE(counters_between_abis)
{
	int semaphore = MUST(eventfd(1, EFD_SEMAPHORE | EFD_CLOEXEC)), sum = MUST(eventfd(0, EFD_CLOEXEC));
	MUST(dup2(semaphore, 10));
	MUST(dup2(sum, 11));
	pid_t child = spawn_abi(other_abi, "other_side", NULL);
	struct pollfd first = { .fd = sum, .events = POLLIN };
	MUST(poll(&first, 1, -1));
	await_sleep(child);
	checkpoint();
	add(semaphore, 2);
	reap(child);
	CHECK(take(sum) == 3, "the sum");
}

static struct itimerspec times(double value, double interval)
{
	struct itimerspec times = { { (time_t)interval, (long)((interval - (double)(time_t)interval) * 1e9) },
				    { (time_t)value, (long)((value - (double)(time_t)value) * 1e9) } };
	return times;
}

static int timer(clockid_t clock, int flags, double value, double interval)
{
	int fd = MUST(timerfd_create(clock, TFD_NONBLOCK));
	struct itimerspec set = times(value, interval);
	MUST(timerfd_settime(fd, flags, &set, NULL));
	return fd;
}

static double left(int fd, double *interval)
{
	struct itimerspec times;
	MUST(timerfd_gettime(fd, &times));
	if (interval != NULL)
		*interval = (double)times.it_interval.tv_sec + (double)times.it_interval.tv_nsec / 1e9;
	return (double)times.it_value.tv_sec + (double)times.it_value.tv_nsec / 1e9;
}

static void check_left(int fd, double expected)
{
	double rest = left(fd, NULL);
	CHECK(rest <= expected && rest > expected - 30, "fd %d has %.3f s left, not %.0f", fd, rest, expected);
}

/* Clocks, with none that expires. */
CASE(timers)
{
	static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM,
					    CLOCK_BOOTTIME_ALARM };
	int relative[LENGTH(clocks)], periodic[LENGTH(clocks)], absolute[LENGTH(clocks)];
	double moments[LENGTH(clocks)];
	for (size_t i = 0; i < LENGTH(clocks); i++) {
		relative[i] = timer(clocks[i], 0, 1000 + (double)i, 0);
		periodic[i] = timer(clocks[i], 0, 2000 + (double)i, 7.5);
		/* The clocks that wake the machine are not to be read everywhere. */
		clockid_t readable = i == 3 ? CLOCK_REALTIME : i == 4 ? CLOCK_BOOTTIME : clocks[i];
		moments[i] = now(readable) + 3000;
		absolute[i] = timer(clocks[i], TFD_TIMER_ABSTIME, moments[i], 0);
	}
	int never = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	int stopped = timer(CLOCK_MONOTONIC, 0, 0, 5);
	int watching = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, now(CLOCK_REALTIME) + 5000, 0);
	struct itimerspec endless = { .it_value = { .tv_sec = (time_t)0x7fffffff } };
	int last = MUST(timerfd_create(CLOCK_REALTIME, 0));
	MUST(timerfd_settime(last, TFD_TIMER_ABSTIME, &endless, NULL));
	checkpoint();
	for (size_t i = 0; i < LENGTH(clocks); i++) {
		double interval;
		check_left(relative[i], 1000 + (double)i);
		check_left(periodic[i], 2000 + (double)i);
		left(periodic[i], &interval);
		CHECK(interval == 7.5, "clock %d: an interval of %.3f s", clocks[i], interval);
		clockid_t readable = i == 3 ? CLOCK_REALTIME : i == 4 ? CLOCK_BOOTTIME : clocks[i];
		double off = now(readable) + left(absolute[i], NULL) - moments[i];
		CHECK(off > -0.5 && off < 0.5, "clock %d: the moment moved by %.3f s", clocks[i], off);
		CHECK(take(relative[i]) == 0 && take(absolute[i]) == 0, "clock %d has expired", clocks[i]);
	}
	double interval;
	CHECK(left(never, NULL) == 0 && fcntl(never, F_GETFD) == FD_CLOEXEC, "one that never ran");
	CHECK(left(stopped, &interval) == 0 && interval == 5, "one that was stopped has an interval of %.3f", interval);
	check_left(watching, 5000);
	CHECK(left(last, NULL) > 1e6, "the last one");
}

/* Expirations that are not read yet, and those that a periodic one has not counted. */
CASE(expired)
{
	int once = timer(CLOCK_MONOTONIC, 0, 0.001, 0), often = timer(CLOCK_MONOTONIC, 0, 0.001, 0.01),
	    seldom = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME, now(CLOCK_REALTIME) - 2500, 1000);
	struct timespec some = { 0, 300000000 };
	nanosleep(&some, NULL);
	checkpoint();
	CHECK(take(once) == 1, "the one that expired once");
	CHECK(take(once) == 0 && left(once, NULL) == 0, "it did so again");
	uint64_t count = take(often);
	CHECK(count >= 30 && count < 3000, "the one that expires often did so %lld times", (long long)count);
	double interval, rest = left(often, &interval);
	CHECK(rest > 0 && rest <= 0.01 && interval == 0.01, "it has %.4f s left of %.4f", rest, interval);
	count = take(seldom);
	rest = left(seldom, NULL);
	CHECK(count == 3 && rest > 470 && rest <= 500, "the absolute one: %lld times, %.3f s left", (long long)count, rest);
}

static int soon;

static void *read_timer(void *result)
{
	*(pid_t *)result = thread_id();
	uint64_t count = take(soon);
	CHECK(count == 1, "the reader gets %lld", (long long)count);
	return NULL;
}

/* Told by the test how long it should take: relative time does not run while the tree is gone. */
CASE(timer_took)
{
	pthread_t thread;
	volatile pid_t tid = 0;
	double started = now(CLOCK_MONOTONIC);
	struct itimerspec set = times(6, 0);
	soon = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
	MUST(timerfd_settime(soon, 0, &set, NULL));
	MUST0(pthread_create(&thread, NULL, read_timer, (void *)&tid));
	while (tid == 0)
		sched_yield();
	await_sleep(tid);
	checkpoint();
	MUST0(pthread_join(thread, NULL));
	printf("TOOK %.3f timerfd\n", now(CLOCK_MONOTONIC) - started);
	fflush(stdout);
}

CASE(moment_took)
{
	pthread_t thread;
	volatile pid_t tid = 0;
	double started = now(CLOCK_MONOTONIC);
	struct itimerspec set = times(now(CLOCK_REALTIME) + 6, 0);
	soon = MUST(timerfd_create(CLOCK_REALTIME, 0));
	MUST(timerfd_settime(soon, TFD_TIMER_ABSTIME, &set, NULL));
	MUST0(pthread_create(&thread, NULL, read_timer, (void *)&tid));
	while (tid == 0)
		sched_yield();
	await_sleep(tid);
	checkpoint();
	MUST0(pthread_join(thread, NULL));
	printf("TOOK %.3f timerfd until a moment\n", now(CLOCK_MONOTONIC) - started);
	fflush(stdout);
}

static sigset_t signals(int first, int second)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, first);
	sigaddset(&set, second);
	return set;
}

static void check_signal(int fd, int expected, int value)
{
	struct signalfd_siginfo info = { 0 };
	ssize_t got = read(fd, &info, sizeof(info));
	CHECK(got == sizeof(info) && (int)info.ssi_signo == expected && info.ssi_int == value,
	      "fd %d gives %zd bytes: signal %d with %d instead of %d with %d", fd, got, info.ssi_signo, info.ssi_int,
	      expected, value);
}

static void signal_child(void *fd)
{
	prepared();
	/* Its own signals, by the description that it shares. */
	check_signal(*(int *)fd, SIGRTMIN + 1, 9);
}

static int waited_for;

static void *wait_for_signal(void *tid)
{
	*(volatile pid_t *)tid = thread_id();
	check_signal(waited_for, SIGRTMIN + 3, 3);
	return NULL;
}

static void queue(pid_t pid, int signal, int value)
{
	MUST(sigqueue(pid, signal, (union sigval){ .sival_int = value }));
}

CASE(signals)
{
	sigset_t blocked = signals(SIGRTMIN + 1, SIGRTMIN + 2), other = signals(SIGRTMIN + 3, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	sigprocmask(SIG_BLOCK, &other, NULL);
	int both = MUST(signalfd(-1, &blocked, SFD_NONBLOCK)), shared = MUST(signalfd(-1, &blocked, SFD_CLOEXEC));
	waited_for = MUST(signalfd(-1, &other, 0));
	pid_t child = spawn(signal_child, &shared);
	pthread_t thread;
	volatile pid_t tid = 0;
	MUST0(pthread_create(&thread, NULL, wait_for_signal, (void *)&tid));
	while (tid == 0)
		sched_yield();
	await_sleep(tid);
	await_sleep(child);
	queue(getpid(), SIGRTMIN + 2, 5);
	queue(getpid(), SIGRTMIN + 1, 4);
	checkpoint();
	check_signal(both, SIGRTMIN + 1, 4);
	check_signal(both, SIGRTMIN + 2, 5);
	CHECK(read(both, &(struct signalfd_siginfo){ 0 }, sizeof(struct signalfd_siginfo)) == -1 && errno == EAGAIN,
	      "more than there was");
	queue(child, SIGRTMIN + 1, 9);
	reap(child);
	queue(getpid(), SIGRTMIN + 3, 3);
	MUST0(pthread_join(thread, NULL));
	queue(getpid(), SIGRTMIN + 2, 6);
	check_signal(shared, SIGRTMIN + 2, 6);
}

static volatile int told, told_fd, told_code;

static void on_event(int signal, siginfo_t *info, void *context)
{
	(void)context;
	told = signal;
	told_fd = info->si_fd;
	told_code = info->si_code;
}

static void set_owner(int fd, int kind, pid_t owner)
{
	struct {
		int type;
		pid_t pid;
	} who = { kind, owner };
	MUST(fcntl(fd, F_SETOWN_EX, &who));
}

static void check_owner(int fd, int kind, pid_t owner, int uid, int euid)
{
	struct {
		int type;
		pid_t pid;
	} who = { -1, -1 };
	unsigned uids[2] = { 0 };
	MUST(fcntl(fd, F_GETOWN_EX, &who));
	CHECK(who.type == kind && who.pid == owner, "fd %d: owner %d of kind %d instead of %d of %d", fd, who.pid, who.type,
	      owner, kind);
	if (owner != 0) {
		MUST(fcntl(fd, 17 /* F_GETOWNER_UIDS */, uids));
		CHECK((int)uids[0] == uid && (int)uids[1] == euid, "fd %d: set by %d %d instead of %d %d", fd, uids[0], uids[1],
		      uid, euid);
	}
}

static void check_told(int signal, int fd)
{
	double limit = now(CLOCK_MONOTONIC) + 10;
	while (told == 0 && now(CLOCK_MONOTONIC) < limit)
		;
	CHECK(told == signal && (fd == -1 || told_fd == fd), "told by signal %d of fd %d instead of %d of %d", told, told_fd,
	      signal, fd);
	told = 0;
}

static void handled_child(void *fd)
{
	prepared();
	while (told == 0)
		pause();
	CHECK(told == SIGIO, "signal %d", told);
	CHECK(read(*(int *)fd, &(char){ 0 }, 1) == 1, "nothing to read");
}

static volatile pid_t idle_tid;
static int idle_pipe[2];

static void *idle(void *unused)
{
	idle_tid = thread_id();
	CHECK(read(idle_pipe[0], &(char){ 0 }, 1) == 0, "the idle thread");
	return unused;
}

CASE(owners)
{
	struct sigaction action = { .sa_sigaction = on_event, .sa_flags = SA_SIGINFO | SA_RESTART };
	int plain[2], chosen[2], pair[2], quiet[2], others[2], grouped[2], threaded[2];
	MUST(sigaction(SIGIO, &action, NULL));
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	MUST(pipe(plain));
	MUST(pipe(chosen));
	MUST(pipe(quiet));
	MUST(pipe(others));
	MUST(pipe(grouped));
	MUST(pipe(threaded));
	MUST(pipe(idle_pipe));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, idle, NULL));
	while (idle_tid == 0)
		sched_yield();
	await_sleep(idle_tid);
	pid_t child = spawn(handled_child, &others[0]), gone = spawn(handled_child, &others[0]);

	MUST(fcntl(plain[0], F_SETOWN, getpid()));
	MUST(fcntl(plain[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	/* The signal names the number that O_ASYNC was set by. */
	int moved = MUST(fcntl(chosen[0], F_DUPFD, 150));
	close(chosen[0]);
	set_owner(moved, 1, getpid());
	MUST(fcntl(moved, F_SETSIG, SIGRTMIN + 1));
	MUST(fcntl(moved, F_SETFL, O_ASYNC));
	set_owner(pair[0], 0, getpid());
	MUST(fcntl(pair[0], F_SETSIG, SIGRTMIN + 1));
	MUST(fcntl(pair[0], F_SETFL, O_ASYNC));
	set_owner(quiet[0], 1, getpid());
	MUST(fcntl(others[0], F_SETOWN, child));
	MUST(fcntl(others[0], F_SETFL, O_ASYNC));
	MUST(fcntl(grouped[1], F_SETOWN, -getpgrp()));
	set_owner(threaded[0], 0, idle_tid);
	MUST(setresuid(33, 34, 0));
	set_owner(threaded[1], 1, getpid());
	MUST(setresuid(0, 0, 0));
	MUST(prctl(PR_SET_DUMPABLE, 1));
	/* One whose owner is gone by now. */
	MUST(fcntl(quiet[1], F_SETOWN, gone));
	MUST(kill(gone, SIGKILL));
	MUST(waitpid(gone, NULL, 0));
	await_sleep(child);

	checkpoint();
	check_owner(plain[0], 1, getpid(), 0, 0);
	check_owner(pair[0], 0, getpid(), 0, 0);
	check_owner(pair[1], 0, 0, 0, 0);
	check_owner(quiet[0], 1, getpid(), 0, 0);
	check_owner(quiet[1], 1, 0, 0, 0);
	check_owner(grouped[1], 2, getpgrp(), 0, 0);
	check_owner(threaded[0], 0, idle_tid, 0, 0);
	check_owner(threaded[1], 1, getpid(), 33, 34);
	CHECK(fcntl(plain[0], F_GETFL) == (O_RDONLY | O_ASYNC | O_NONBLOCK), "flags %#x", fcntl(plain[0], F_GETFL));
	CHECK(fcntl(moved, F_GETSIG) == SIGRTMIN + 1 && fcntl(plain[0], F_GETSIG) == 0, "signals of their own");
	CHECK(told == 0, "told before anything happened");
	MUST(write(plain[1], "x", 1));
	check_told(SIGIO, -1);
	MUST(write(chosen[1], "x", 1));
	check_told(SIGRTMIN + 1, moved);
	MUST(write(pair[1], "x", 1));
	check_told(SIGRTMIN + 1, pair[0]);
	MUST(write(quiet[1], "x", 1));
	CHECK(told == 0, "told of what is not asynchronous");
	MUST(write(others[1], "x", 1));
	reap(child);
	CHECK(told == 0, "told of what is the child's");
	close(idle_pipe[1]);
	MUST0(pthread_join(thread, NULL));
}

/* A terminal tells its owner of input. */
CASE(owner_of_terminal)
{
	struct sigaction action = { .sa_sigaction = on_event, .sa_flags = SA_SIGINFO | SA_RESTART };
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	int master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	int slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	set_owner(slave, 1, getpid());
	MUST(fcntl(slave, F_SETSIG, SIGRTMIN + 1));
	MUST(fcntl(slave, F_SETFL, O_RDWR | O_ASYNC));
	checkpoint();
	CHECK(told == 0, "told before anything happened");
	check_owner(slave, 1, getpid(), 0, 0);
	CHECK(fcntl(slave, F_GETFL) == (O_RDWR | O_ASYNC | (fcntl(master, F_GETFL) & ~O_RDWR)), "flags %#x",
	      fcntl(slave, F_GETFL));
	MUST(write(master, "x\n", 2));
	check_told(SIGRTMIN + 1, slave);
}
