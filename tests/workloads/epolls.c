/* epoll: what is watched, under which number, with which flags; what was told and what not yet. */
#include "workload.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static void watch(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { .events = events, .data.u64 = data };
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

static void rearm(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = { .events = events, .data.u64 = data };
	MUST(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event));
}

/* The data of what an epoll tells now, all of it added up; each watch has a bit of its own. */
static uint64_t tells(int epoll)
{
	struct epoll_event events[32];
	uint64_t sum = 0;
	int count = MUST(epoll_wait(epoll, events, 32, 0));
	for (int i = 0; i < count; i++)
		sum += events[i].data.u64;
	return sum;
}

#define CHECK_TELLS(epoll, expected)                                                                 \
	do {                                                                                         \
		uint64_t sum = tells(epoll);                                                         \
		CHECK(sum == (expected), "fd %d tells %#llx instead of %#llx", epoll, (long long)sum, \
		      (long long)(expected));                                                        \
	} while (0)

static void add(int fd, uint64_t value)
{
	MUST(write(fd, &value, sizeof(value)));
}

static int timer_in(double seconds)
{
	int fd = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	struct itimerspec times = { .it_value = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) } };
	MUST(timerfd_settime(fd, 0, &times, NULL));
	return fd;
}

/* All kinds of files, level-triggered: some are ready, some not. */
CASE(kinds)
{
	int ends[2], pair[2], listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	int epoll = MUST(epoll_create1(EPOLL_CLOEXEC)), none = MUST(epoll_create(7));
	MUST(pipe(ends));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	int event = MUST(eventfd(1, 0)), timer = timer_in(1000), device = MUST(open("/dev/random", O_RDONLY));
	watch(epoll, ends[0], EPOLLIN, 0x1);
	watch(epoll, ends[1], EPOLLIN | EPOLLOUT, 0x10);
	watch(epoll, pair[0], EPOLLIN | EPOLLRDHUP | EPOLLPRI, (uint64_t)-1 << 40);
	watch(epoll, listener, EPOLLOUT, 0x100);
	watch(epoll, event, EPOLLIN, 0x1000);
	watch(epoll, timer, EPOLLIN, 0x10000);
	watch(epoll, device, EPOLLOUT, 0x100000);
	watch(epoll, STDIN_FILENO + 700 > 0 ? MUST(fcntl(event, F_DUPFD, 700)) : 0, EPOLLOUT, 0x1000000);
	uint64_t before = tells(epoll);
	checkpoint();
	CHECK_TELLS(epoll, before);
	CHECK_TELLS(none, 0);
	CHECK(fcntl(epoll, F_GETFD) == FD_CLOEXEC && fcntl(none, F_GETFD) == 0, "close-on-exec");
	MUST(write(ends[1], "x", 1));
	CHECK_TELLS(epoll, before + 1);
	MUST(write(pair[1], "x", 1));
	CHECK_TELLS(epoll, before + 1 + ((uint64_t)-1 << 40));
	MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, ends[0], NULL));
	MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, 700, NULL));
	CHECK_TELLS(epoll, before - 0x1000000 + ((uint64_t)-1 << 40));
	/* Watched under this number already. */
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &(struct epoll_event){ 0 }) == -1 && errno == EEXIST, "%s",
	      strerror(errno));
}

/* What was told once is not told again. */
CASE(edges_told)
{
	int read_pipe[2], event = MUST(eventfd(3, EFD_NONBLOCK)), quiet = MUST(eventfd(0, 0)), timer = timer_in(0.001),
	    epoll = MUST(epoll_create1(0)), outer = MUST(epoll_create1(0));
	MUST(pipe(read_pipe));
	MUST(write(read_pipe[1], "abc", 3));
	watch(epoll, read_pipe[0], EPOLLIN | EPOLLET, 0x1);
	watch(epoll, read_pipe[1], EPOLLOUT | EPOLLET, 0x10);
	watch(epoll, event, EPOLLIN | EPOLLET | EPOLLEXCLUSIVE, 0x100);
	watch(epoll, quiet, EPOLLIN, 0x1000);
	watch(epoll, timer, EPOLLIN | EPOLLET, 0x10000);
	watch(outer, epoll, EPOLLIN | EPOLLET, 0x1);
	struct timespec some = { 0, 50000000 };
	nanosleep(&some, NULL);
	CHECK_TELLS(outer, 0x1);
	CHECK_TELLS(epoll, 0x10111);
	CHECK_TELLS(outer, 0);
	checkpoint();
	CHECK_TELLS(outer, 0);
	CHECK_TELLS(epoll, 0);
	MUST(write(read_pipe[1], "d", 1));
	CHECK_TELLS(outer, 0x1);
	CHECK_TELLS(epoll, 0x1);
	add(event, 1);
	CHECK_TELLS(epoll, 0x100);
	add(quiet, 1);
	CHECK_TELLS(epoll, 0x1000);
	CHECK_TELLS(epoll, 0x1000);
}

/* What was not told is told, whatever else is told again by that. */
CASE(edges_not_told)
{
	int early = MUST(eventfd(1, 0)), late = MUST(eventfd(0, 0)), never = MUST(eventfd(0, 0)),
	    epoll = MUST(epoll_create1(0));
	watch(epoll, early, EPOLLIN | EPOLLET, 0x1);
	watch(epoll, late, EPOLLIN | EPOLLET, 0x10);
	watch(epoll, never, EPOLLIN | EPOLLET, 0x100);
	CHECK_TELLS(epoll, 0x1);
	add(late, 1);
	checkpoint();
	uint64_t sum = tells(epoll);
	CHECK((sum & ~(uint64_t)0x1) == 0x10, "%#llx is told", (long long)sum);
	CHECK_TELLS(epoll, 0);
}

/* One-shot watches: armed, and those that have told, of files that are ready and of files that are not. */
CASE(one_shot)
{
	int filled[2], drained[2], pair[2], counter = MUST(eventfd(1, EFD_NONBLOCK)), armed = MUST(eventfd(1, 0)),
	    waiting = MUST(eventfd(0, 0)), timer = timer_in(0.001), epoll = MUST(epoll_create1(0));
	MUST(pipe(filled));
	MUST(pipe(drained));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(write(filled[1], "x", 1));
	MUST(write(drained[1], "x", 1));
	MUST(write(pair[1], "x", 1));
	watch(epoll, filled[0], EPOLLIN | EPOLLONESHOT, 0x1);
	watch(epoll, drained[0], EPOLLIN | EPOLLONESHOT | EPOLLET, 0x10);
	watch(epoll, pair[0], EPOLLIN | EPOLLONESHOT, 0x100);
	watch(epoll, counter, EPOLLIN | EPOLLONESHOT, 0x1000);
	watch(epoll, timer, EPOLLIN | EPOLLONESHOT, 0x10000);
	struct timespec some = { 0, 50000000 };
	nanosleep(&some, NULL);
	CHECK_TELLS(epoll, 0x11111);
	watch(epoll, armed, EPOLLIN | EPOLLONESHOT, 0x100000);
	watch(epoll, waiting, EPOLLIN | EPOLLONESHOT | EPOLLET, 0x1000000);
	char bytes[8];
	MUST(read(drained[0], bytes, 8));
	MUST(read(pair[0], bytes, 8));
	MUST(read(counter, bytes, 8));
	MUST(read(timer, bytes, 8));
	struct itimerspec later = { .it_value = { 1000, 0 } };
	MUST(timerfd_settime(timer, 0, &later, NULL));
	checkpoint();
	CHECK_TELLS(epoll, 0x100000);
	/* Not even of this do they tell. */
	close(drained[1]);
	close(pair[1]);
	add(counter, 1);
	CHECK_TELLS(epoll, 0);
	add(waiting, 1);
	CHECK_TELLS(epoll, 0x1000000);
	MUST(timerfd_gettime(timer, &later));
	CHECK(later.it_value.tv_sec > 960 && read(timer, bytes, 8) == -1, "the timer has %ld s left", (long)later.it_value.tv_sec);
	CHECK(read(drained[0], bytes, 8) == 0, "the drained pipe");
	rearm(epoll, filled[0], EPOLLIN | EPOLLONESHOT, 0x2);
	rearm(epoll, drained[0], EPOLLIN, 0x20);
	rearm(epoll, pair[0], EPOLLRDHUP | EPOLLONESHOT, 0x200);
	rearm(epoll, counter, EPOLLIN | EPOLLONESHOT, 0x2000);
	CHECK_TELLS(epoll, 0x2222);
	CHECK_TELLS(epoll, 0x20);
}

/* Files that are not any more what their numbers said. */
CASE(moved)
{
	int ends[2], epoll = MUST(epoll_create1(0));
	MUST(pipe(ends));
	int first = MUST(eventfd(1, 0)), second = MUST(eventfd(1, 0)), third = MUST(eventfd(1, 0));
	watch(epoll, first, EPOLLIN, 0x1);
	watch(epoll, second, EPOLLIN, 0x10);
	watch(epoll, third, EPOLLIN, 0x100);
	/* One lives on under another number, two have changed places, and one number has had two files. */
	int elsewhere = MUST(fcntl(first, F_DUPFD, 90)), other = MUST(dup(second));
	close(first);
	MUST(dup2(third, second));
	MUST(dup2(other, third));
	watch(epoll, second, EPOLLIN, 0x1000);
	watch(epoll, elsewhere, EPOLLOUT, 0x10000);
	/* Even the number of the epoll itself, and that of the standard input. */
	int copy = MUST(fcntl(epoll, F_DUPFD, 60));
	MUST(dup2(ends[1], epoll));
	watch(copy, epoll, EPOLLOUT, 0x100000);
	int input = MUST(dup(STDIN_FILENO));
	MUST(dup2(ends[0], STDIN_FILENO));
	watch(copy, STDIN_FILENO, EPOLLIN, 0x1000000);
	MUST(dup2(input, STDIN_FILENO));
	close(input);
	CHECK_TELLS(copy, 0x111111);
	checkpoint();
	CHECK_TELLS(copy, 0x111111);
	MUST(write(ends[1], "x", 1));
	CHECK_TELLS(copy, 0x1111111);
	uint64_t value;
	MUST(read(elsewhere, &value, 8));
	CHECK_TELLS(copy, 0x1111110);
	MUST(read(third, &value, 8));
	CHECK_TELLS(copy, 0x1111100);
	CHECK(epoll_ctl(copy, EPOLL_CTL_DEL, third, NULL) == -1 && errno == ENOENT, "%s", strerror(errno));
	MUST(epoll_ctl(copy, EPOLL_CTL_DEL, second, NULL));
	CHECK_TELLS(copy, 0x1110100);
	/* Closed for good, it is watched no more. */
	close(elsewhere);
	close(second);
	close(third);
	close(other);
	CHECK_TELLS(copy, 0x1100000);
}

static int shared_epoll, shared_number;

static void sharing_child(void *unused)
{
	(void)unused;
	/* The number means a file of its own to it; both are watched. */
	int own = MUST(eventfd(1, 0));
	MUST(dup2(own, shared_number));
	close(own);
	watch(shared_epoll, shared_number, EPOLLIN, 0x10);
	prepared();
	wait_for_go();
	CHECK_TELLS(shared_epoll, 0x11);
	uint64_t value;
	MUST(read(shared_number, &value, 8));
	CHECK_TELLS(shared_epoll, 0x1);
}

CASE(shared)
{
	shared_epoll = MUST(epoll_create1(0));
	shared_number = MUST(eventfd(1, 0));
	watch(shared_epoll, shared_number, EPOLLIN, 0x1);
	pid_t child = spawn(sharing_child, NULL);
	checkpoint();
	CHECK_TELLS(shared_epoll, 0x11);
	finish(child);
	/* With the child its file is gone. */
	CHECK_TELLS(shared_epoll, 0x1);
}

CASE(nested)
{
	int event = MUST(eventfd(1, 0)), other = MUST(eventfd(0, 0)), outer = MUST(epoll_create1(0)),
	    middle = MUST(epoll_create1(0)), inner = MUST(epoll_create1(0)), side = MUST(epoll_create1(0));
	watch(outer, middle, EPOLLIN, 0x1);
	watch(middle, inner, EPOLLIN | EPOLLET, 0x10);
	watch(inner, event, EPOLLIN, 0x100);
	watch(outer, side, EPOLLIN, 0x1000);
	watch(side, inner, EPOLLIN, 0x10000);
	watch(side, other, EPOLLIN | EPOLLWAKEUP, 0x100000);
	checkpoint();
	CHECK_TELLS(outer, 0x1001);
	CHECK_TELLS(middle, 0x10);
	CHECK_TELLS(side, 0x10000);
	uint64_t value;
	MUST(read(event, &value, 8));
	CHECK_TELLS(outer, 0);
	add(other, 1);
	CHECK_TELLS(outer, 0x1000);
	CHECK_TELLS(side, 0x100000);
}

static void check_told(int epoll, int signal_fd, int signal, uint64_t data)
{
	struct signalfd_siginfo info = { 0 };
	CHECK_TELLS(epoll, data);
	CHECK(read(signal_fd, &info, sizeof(info)) == sizeof(info) && (int)info.ssi_signo == signal, "signal %d instead of %d",
	      info.ssi_signo, signal);
}

static void signal_loop(void *unused)
{
	(void)unused;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int epoll = MUST(epoll_create1(0)), fd = MUST(signalfd(-1, &set, SFD_NONBLOCK));
	watch(epoll, fd, EPOLLIN, 0x7);
	prepared();
	struct epoll_event event = { 0 };
	int got = epoll_wait(epoll, &event, 1, -1);
	CHECK(got == 1 && event.data.u64 == 0x7, "epoll_wait gives %d: %s", got, strerror(errno));
	check_told(epoll, fd, SIGRTMIN + 1, 0x7);
}

/* A signalfd in an epoll tells of the signals of the task that added it. */
CASE(signals)
{
	sigset_t first, second;
	sigemptyset(&first);
	sigaddset(&first, SIGRTMIN + 1);
	sigemptyset(&second);
	sigaddset(&second, SIGRTMIN + 2);
	sigprocmask(SIG_BLOCK, &first, NULL);
	sigprocmask(SIG_BLOCK, &second, NULL);
	pid_t waiting = spawn(signal_loop, NULL);
	int epoll = MUST(epoll_create1(0)), outer = MUST(epoll_create1(0)), idle = MUST(signalfd(-1, &first, SFD_NONBLOCK)),
	    edge = MUST(signalfd(-1, &second, SFD_NONBLOCK));
	watch(epoll, idle, EPOLLIN, 0x1);
	watch(epoll, edge, EPOLLIN | EPOLLET, 0x10);
	watch(outer, epoll, EPOLLIN | EPOLLET, 0x100);
	CHECK_TELLS(outer, 0);
	MUST(kill(getpid(), SIGRTMIN + 2));
	await_sleep(waiting);
	checkpoint();
	CHECK_TELLS(outer, 0x100);
	check_told(epoll, edge, SIGRTMIN + 2, 0x10);
	CHECK_TELLS(epoll, 0);
	MUST(kill(getpid(), SIGRTMIN + 1));
	CHECK_TELLS(outer, 0x100);
	check_told(epoll, idle, SIGRTMIN + 1, 0x1);
	MUST(kill(waiting, SIGRTMIN + 1));
	reap(waiting);
}

static int waits_for[4], epolls[4];

static void *wait_for_event(void *number)
{
	int n = *(int *)number;
	struct epoll_event event = { 0 };
	struct timespec limit = { 1000, 0 };
	sigset_t mask;
	sigprocmask(SIG_SETMASK, NULL, &mask);
	*(volatile int *)number = thread_id();
	int got = -1;
	switch (n) {
	case 0:
		got = epoll_wait(epolls[n], &event, 1, -1);
		break;
	case 1:
		got = epoll_wait(epolls[n], &event, 1, 1000000);
		break;
	case 2:
		got = epoll_pwait(epolls[n], &event, 1, -1, &mask);
		break;
	case 3: {
		struct {
			int64_t seconds, nanoseconds;
		} wide = { limit.tv_sec, 0 };
		got = (int)syscall(441, epolls[n], &event, 1, &wide, NULL, 8);
		break;
	}
	}
	CHECK(got == 1 && event.data.u64 == (uint64_t)n, "wait %d gives %d, data %lld: %s", n, got,
	      (long long)event.data.u64, strerror(errno));
	return NULL;
}

CASE(waiting)
{
	pthread_t threads[4];
	int numbers[4];
	for (int i = 0; i < 4; i++) {
		epolls[i] = MUST(epoll_create1(0));
		waits_for[i] = MUST(eventfd(0, 0));
		watch(epolls[i], waits_for[i], EPOLLIN | (i % 2 ? EPOLLET : 0), (uint64_t)i);
		numbers[i] = i;
		MUST0(pthread_create(&threads[i], NULL, wait_for_event, &numbers[i]));
		while (*(volatile int *)&numbers[i] == i)
			sched_yield();
		await_sleep(numbers[i]);
	}
	checkpoint();
	for (int i = 0; i < 4; i++) {
		add(waits_for[i], 1);
		MUST0(pthread_join(threads[i], NULL));
	}
}

/* Fd 10 is an epoll that the parent made, fd 11 what it watches and tells by the parent's data. */
CASE(other_side)
{
	struct epoll_event event = { 0 };
	prepared();
	for (int i = 0; i < 2; i++) {
		int got = epoll_wait(10, &event, 1, -1);
		uint64_t value;
		CHECK(got == 1 && event.data.u64 == 0xfedcba9876543210, "epoll_wait gives %d, data %llx", got,
		      (long long)event.data.u64);
		MUST(read(11, &value, 8));
		MUST(write(12, "x", 1));
	}
}

CASE(between_abis)
{
	int ends[2], epoll = MUST(epoll_create1(EPOLL_CLOEXEC)), event = MUST(eventfd(1, EFD_CLOEXEC));
	MUST(pipe2(ends, O_CLOEXEC));
	watch(epoll, event, EPOLLIN | EPOLLET, 0xfedcba9876543210);
	MUST(dup2(epoll, 10));
	MUST(dup2(event, 11));
	MUST(dup2(ends[1], 12));
	pid_t child = spawn_abi(other_abi, "other_side", NULL);
	close(10);
	close(11);
	close(12);
	char byte;
	MUST(read(ends[0], &byte, 1));
	await_sleep(child);
	checkpoint();
	add(event, 5);
	reap(child);
}

/* As many as a busy server has. */
CASE(many)
{
	enum { FILES = 900 };
	int fds[FILES], epoll = MUST(epoll_create1(0));
	for (int i = 0; i < FILES; i++) {
		fds[i] = MUST(eventfd(0, 0));
		watch(epoll, fds[i], EPOLLIN | (i % 3 ? EPOLLET : 0), (uint64_t)i);
	}
	checkpoint();
	for (int i = 0; i < FILES; i++) {
		uint64_t value;
		add(fds[i], 1);
		CHECK_TELLS(epoll, (uint64_t)i);
		MUST(read(fds[i], &value, 8));
	}
}

/* An epoll, and what it watches, that nobody has: both are on their way in a message. */
CASE(in_flight)
{
	int pair[2], sent[3];
	char control[CMSG_SPACE(sizeof(sent))], byte = 'm';
	struct iovec bytes = { &byte, 1 };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	memset(control, 0, sizeof(control));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	sent[0] = MUST(epoll_create1(0));
	sent[1] = MUST(eventfd(0, EFD_SEMAPHORE));
	sent[2] = timer_in(1000);
	watch(sent[0], sent[1], EPOLLIN, 0x1);
	watch(sent[0], pair[0], EPOLLIN, 0x10);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(sent)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(header), sent, sizeof(sent));
	MUST(sendmsg(pair[1], &message, 0));
	for (size_t i = 0; i < LENGTH(sent); i++)
		close(sent[i]);
	checkpoint();
	MUST(recvmsg(pair[0], &message, 0));
	memcpy(sent, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(sent));
	CHECK_TELLS(sent[0], 0);
	add(sent[1], 2);
	CHECK_TELLS(sent[0], 0x1);
	MUST(write(pair[1], "x", 1));
	CHECK_TELLS(sent[0], 0x11);
	struct itimerspec left;
	MUST(timerfd_gettime(sent[2], &left));
	CHECK(left.it_value.tv_sec > 960, "the timer has %ld s left", (long)left.it_value.tv_sec);
}

/* Added by a task that cannot be forked again: it tells its end by no signal. */
CASE(signals_of_cloned)
{
	int ends[2], status;
	MUST(pipe(ends));
	pid_t child = MUST((pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL));
	if (child == 0) {
		close(ends[0]);
		MUST(dup2(ends[1], 40));
		close(ends[1]);
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGRTMIN + 1);
		sigprocmask(SIG_BLOCK, &set, NULL);
		int epoll = MUST(epoll_create1(0)), fd = MUST(signalfd(-1, &set, SFD_NONBLOCK));
		watch(epoll, fd, EPOLLIN | EPOLLET, 0x7);
		close(40);
		struct epoll_event event = { 0 };
		int got = epoll_wait(epoll, &event, 1, -1);
		CHECK(got == 1 && event.data.u64 == 0x7, "epoll_wait gives %d: %s", got, strerror(errno));
		_exit(failed() ? 1 : 0);
	}
	close(ends[1]);
	CHECK(read(ends[0], &(char){ 0 }, 1) == 0, "the child");
	close(ends[0]);
	await_sleep(child);
	checkpoint();
	MUST(kill(child, SIGRTMIN + 1));
	CHECK(waitpid(child, &status, __WALL) == child && status == 0, "its end: %#x", status);
}
