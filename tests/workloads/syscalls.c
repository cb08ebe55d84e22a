/*
 * System calls in progress at the checkpoint: each goes on and gives what it would have given, without an EINTR that
 * no signal of the program caused.
 */
#include "workload.h"
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/uio.h>

/* Long enough for a dump and a restore on a loaded machine to fall into it. */
enum { SHORT_MS = 4000, LONG_S = 1000 };

static int data[2], empty[2], full[2];
static volatile int word;
static double started;

struct operation {
	const char *name;
	/* Returns what the call gave, or -errno. */
	long (*run)(void);
	long expected;
	/* It ends by its own timeout, not before SHORT_MS have passed. */
	bool times_out;
	volatile pid_t tid;
	long result;
	double ended;
	pthread_t thread;
};

static long errno_of(long result)
{
	return result == -1 ? -errno : result;
}

static long do_read(void)
{
	char bytes[3];
	return errno_of(read(data[0], bytes, sizeof(bytes)));
}

static long do_readv(void)
{
	char bytes[3];
	struct iovec parts[2] = { { bytes, 1 }, { bytes + 1, 2 } };
	return errno_of(readv(data[0], parts, 2));
}

static long do_write(void)
{
	return errno_of(write(full[1], "abcde", 5));
}

static long do_poll(void)
{
	struct pollfd wanted = { .fd = data[0], .events = POLLIN };
	return errno_of(poll(&wanted, 1, LONG_S * 1000));
}

static long do_poll_forever(void)
{
	struct pollfd wanted = { .fd = data[0], .events = POLLIN };
	return errno_of(poll(&wanted, 1, -1));
}

static long do_poll_timeout(void)
{
	struct pollfd wanted = { .fd = empty[0], .events = POLLIN };
	return errno_of(poll(&wanted, 1, SHORT_MS));
}

static long do_ppoll_timeout(void)
{
	struct pollfd wanted = { .fd = empty[0], .events = POLLIN };
	struct timespec limit = { SHORT_MS / 1000, SHORT_MS % 1000 * 1000000 };
	sigset_t mask;
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	sigaddset(&mask, SIGHUP);
	return errno_of(ppoll(&wanted, 1, &limit, &mask));
}

static long do_select(void)
{
	fd_set wanted;
	FD_ZERO(&wanted);
	FD_SET(data[0], &wanted);
	return errno_of(select(data[0] + 1, &wanted, NULL, NULL, NULL));
}

static long do_select_timeout(void)
{
	fd_set wanted;
	struct timeval limit = { SHORT_MS / 1000, SHORT_MS % 1000 * 1000 };
	FD_ZERO(&wanted);
	FD_SET(empty[0], &wanted);
	return errno_of(select(empty[0] + 1, &wanted, NULL, NULL, &limit));
}

static long do_nanosleep(void)
{
	struct timespec time = { SHORT_MS / 1000, SHORT_MS % 1000 * 1000000 }, left;
	return errno_of(nanosleep(&time, &left));
}

static long do_clock_nanosleep(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	time.tv_sec += SHORT_MS / 1000;
	return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static long do_futex(void)
{
	return errno_of(syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL));
}

static long do_futex_timeout(void)
{
	static int nobody;
	struct timespec time = { SHORT_MS / 1000, SHORT_MS % 1000 * 1000000 };
	return errno_of(syscall(SYS_futex, &nobody, FUTEX_WAIT, 0, &time));
}

static long do_futex_bitset(void)
{
	static int nobody;
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	time.tv_sec += SHORT_MS / 1000;
	return errno_of(syscall(SYS_futex, &nobody, FUTEX_WAIT_BITSET, 0, &time, NULL, 1));
}

static long do_sigwait(void)
{
	sigset_t set;
	int signal = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	int result = sigwait(&set, &signal);
	return result != 0 ? -result : signal - SIGRTMIN;
}

/* Without the loop around EINTR that sigwait() has. */
static long do_sigwaitinfo(void)
{
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 4);
	long result = errno_of(sigwaitinfo(&set, &info));
	return result < 0 ? result : result - SIGRTMIN;
}

static int semaphore;

static long do_semop(void)
{
	struct sembuf take = { .sem_num = 0, .sem_op = -1 };
	return errno_of(semop(semaphore, &take, 1));
}

static long do_semtimedop(void)
{
	struct sembuf take = { .sem_num = 1, .sem_op = -1 };
	struct timespec limit = { LONG_S, 0 };
	return errno_of(semtimedop(semaphore, &take, 1, &limit));
}

static int incoming, outgoing;

struct message {
	long type;
	char text[1024];
};

static long do_msgrcv(void)
{
	struct message message;
	return errno_of(msgrcv(incoming, &message, sizeof(message.text), 0, 0));
}

static long do_msgsnd(void)
{
	struct message message = { .type = 2 };
	return errno_of(msgsnd(outgoing, &message, sizeof(message.text), 0));
}

/* struct futex_waitv: 64-bit fields in both ABIs. */
static long do_futex_waitv(void)
{
	struct {
		uint64_t value, address;
		uint32_t flags, reserved;
	} wanted = { 0, (uintptr_t)&word, 2, 0 };
	return errno_of(syscall(449, &wanted, 1, 0, NULL, 0));
}

static long do_futex_bitset_forever(void)
{
	return errno_of(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 1));
}

static long do_ppoll(void)
{
	struct pollfd wanted = { .fd = data[0], .events = POLLIN };
	return errno_of(ppoll(&wanted, 1, NULL, NULL));
}

static struct operation operations[] = {
	{ .name = "read", .run = do_read, .expected = 3 },
	{ .name = "readv", .run = do_readv, .expected = 3 },
	{ .name = "write", .run = do_write, .expected = 5 },
	{ .name = "poll", .run = do_poll, .expected = 1 },
	{ .name = "poll forever", .run = do_poll_forever, .expected = 1 },
	{ .name = "poll with timeout", .run = do_poll_timeout, .expected = 0, .times_out = true },
	{ .name = "ppoll with timeout", .run = do_ppoll_timeout, .expected = 0, .times_out = true },
	{ .name = "select", .run = do_select, .expected = 1 },
	{ .name = "select with timeout", .run = do_select_timeout, .expected = 0, .times_out = true },
	{ .name = "nanosleep", .run = do_nanosleep, .expected = 0, .times_out = true },
	{ .name = "clock_nanosleep", .run = do_clock_nanosleep, .expected = 0, .times_out = true },
	{ .name = "futex", .run = do_futex, .expected = 0 },
	{ .name = "futex with timeout", .run = do_futex_timeout, .expected = -ETIMEDOUT, .times_out = true },
	{ .name = "futex bitset", .run = do_futex_bitset, .expected = -ETIMEDOUT, .times_out = true },
	{ .name = "sigwait", .run = do_sigwait, .expected = 3 },
	{ .name = "sigwaitinfo", .run = do_sigwaitinfo, .expected = 4 },
	{ .name = "semop", .run = do_semop, .expected = 0 },
	{ .name = "semtimedop", .run = do_semtimedop, .expected = 0 },
	{ .name = "msgrcv", .run = do_msgrcv, .expected = 5 },
	{ .name = "msgsnd", .run = do_msgsnd, .expected = 0 },
	{ .name = "futex_waitv", .run = do_futex_waitv, .expected = 0 },
	{ .name = "futex bitset forever", .run = do_futex_bitset_forever, .expected = 0 },
	{ .name = "ppoll", .run = do_ppoll, .expected = 1 },
};

static void *run_operation(void *argument)
{
	struct operation *operation = argument;
	operation->tid = thread_id();
	operation->result = operation->run();
	operation->ended = now(CLOCK_MONOTONIC);
	return NULL;
}

static void fill_pipe(int fd)
{
	static char bytes[PAGE];
	int flags = MUST(fcntl(fd, F_GETFL));
	MUST(fcntl(fd, F_SETFL, flags | O_NONBLOCK));
	while (write(fd, bytes, sizeof(bytes)) > 0)
		;
	MUST(fcntl(fd, F_SETFL, flags));
}

static void start(bool timed)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	sigaddset(&set, SIGRTMIN + 4);
	sigprocmask(SIG_BLOCK, &set, NULL);
	MUST(pipe(data));
	MUST(pipe(empty));
	MUST(pipe(full));
	fill_pipe(full[1]);
	semaphore = MUST(semget(IPC_PRIVATE, 2, 0600));
	incoming = MUST(msgget(IPC_PRIVATE, 0600));
	outgoing = MUST(msgget(IPC_PRIVATE, 0600));
	struct message filler = { .type = 1 };
	while (msgsnd(outgoing, &filler, sizeof(filler.text), IPC_NOWAIT) == 0)
		;
	started = now(CLOCK_MONOTONIC);
	for (size_t i = 0; i < LENGTH(operations); i++) {
		if (operations[i].times_out != timed)
			continue;
		MUST0(pthread_create(&operations[i].thread, NULL, run_operation, &operations[i]));
		while (operations[i].tid == 0)
			sched_yield();
		await_sleep(operations[i].tid);
	}
}

static void check_all(bool timed)
{
	for (size_t i = 0; i < LENGTH(operations); i++) {
		struct operation *operation = &operations[i];
		if (operation->times_out != timed)
			continue;
		MUST0(pthread_join(operation->thread, NULL));
		CHECK(operation->result == operation->expected, "%s gives %ld instead of %ld", operation->name,
		      operation->result, operation->expected);
		if (timed)
			CHECK(operation->ended - started > SHORT_MS / 1000.0 - 0.01, "%s took only %.3f s", operation->name,
			      operation->ended - started);
	}
}

/* Calls that wait for something that happens after the restore. */
CASE(waiting)
{
	start(false);
	checkpoint();
	for (size_t i = 0; i < LENGTH(operations); i++)
		CHECK(operations[i].times_out || operations[i].ended == 0, "%s ended early with %ld", operations[i].name,
		      operations[i].result);
	/* The pollers look and leave it; each of the two readers takes three bytes, and the rest stays readable. */
	MUST(write(data[1], "def", 3));
	MUST(write(data[1], "more", 4));
	static char bytes[2 * PAGE];
	MUST(read(full[0], bytes, sizeof(bytes)));
	word = 1;
	MUST(syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX));
	MUST(kill(getpid(), SIGRTMIN + 3));
	MUST(kill(getpid(), SIGRTMIN + 4));
	MUST(semop(semaphore, &(struct sembuf){ .sem_num = 0, .sem_op = 1 }, 1));
	MUST(semop(semaphore, &(struct sembuf){ .sem_num = 1, .sem_op = 1 }, 1));
	struct message message = { .type = 3 };
	MUST(msgsnd(incoming, &message, 5, 0));
	MUST(msgrcv(outgoing, &message, sizeof(message.text), 1, 0));
	check_all(false);
	MUST(semctl(semaphore, 0, IPC_RMID));
	MUST(msgctl(incoming, IPC_RMID, NULL));
	MUST(msgctl(outgoing, IPC_RMID, NULL));
}

/* Calls that end by their timeout, which goes on. */
CASE(timing_out)
{
	start(true);
	checkpoint();
	check_all(true);
}

static void do_nothing(int signal)
{
	(void)signal;
}

static void wait_in_child(void *argument)
{
	const char *how = argument;
	struct sigaction action = { .sa_handler = do_nothing };
	sigset_t mask;
	MUST(sigaction(SIGUSR2, &action, NULL));
	sigprocmask(SIG_SETMASK, NULL, &mask);
	sigdelset(&mask, SIGUSR1);
	int result;
	prepared();
	if (strcmp(how, "pause") == 0) {
		sigprocmask(SIG_SETMASK, &mask, NULL);
		result = pause();
	} else {
		result = sigsuspend(&mask);
	}
	/* This one is right: a handler ran. */
	CHECK(result == -1 && errno == EINTR, "%s gives %d, %s", how, result, strerror(errno));
}

CASE(signal_waits)
{
	pid_t pausing = spawn(wait_in_child, "pause"), suspended = spawn(wait_in_child, "sigsuspend");
	await_sleep(pausing);
	await_sleep(suspended);
	checkpoint();
	finish(pausing);
	finish(suspended);
}

static void exit_later(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
	_exit(0);
}

static pid_t awaited, awaited_by_id;

static void *wait_for_child(void *tid)
{
	int status = -1;
	*(volatile pid_t *)tid = thread_id();
	pid_t got = waitpid(awaited, &status, 0);
	CHECK(got == awaited && status == 0, "waitpid gives %d, status %#x, %s", got, status, strerror(errno));
	return NULL;
}

static void *wait_for_child_by_id(void *tid)
{
	siginfo_t info = { 0 };
	*(volatile pid_t *)tid = thread_id();
	int got = waitid(P_PID, (id_t)awaited_by_id, &info, WEXITED);
	CHECK(got == 0 && info.si_pid == awaited_by_id && info.si_status == 0, "waitid gives %d, pid %d, status %d, %s", got,
	      info.si_pid, info.si_status, strerror(errno));
	return NULL;
}

CASE(waitpid)
{
	pthread_t thread, by_id;
	volatile pid_t tid = 0, tid_by_id = 0;
	awaited_by_id = spawn(exit_later, NULL);
	MUST0(pthread_create(&by_id, NULL, wait_for_child_by_id, (void *)&tid_by_id));
	while (tid_by_id == 0)
		sched_yield();
	await_sleep(tid_by_id);
	awaited = spawn(exit_later, NULL);
	MUST0(pthread_create(&thread, NULL, wait_for_child, (void *)&tid));
	while (tid == 0)
		sched_yield();
	await_sleep(tid);
	checkpoint();
	MUST(kill(awaited, SIGUSR1));
	MUST(kill(awaited_by_id, SIGUSR1));
	MUST0(pthread_join(thread, NULL));
	MUST0(pthread_join(by_id, NULL));
}
