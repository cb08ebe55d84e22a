/* Process file descriptors: of whom they are, who has them, and what can be done with them afterwards. */
#include "workload.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#define PIDFD_NONBLOCK O_NONBLOCK
#define PIDFD_THREAD O_EXCL
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int open_pidfd(pid_t pid, unsigned flags)
{
	return MUST((int)syscall(SYS_pidfd_open, pid, flags));
}

static bool is_ready(int fd)
{
	struct pollfd asked = { .fd = fd, .events = POLLIN };
	return MUST(poll(&asked, 1, 0)) == 1 && (asked.revents & POLLIN) != 0;
}

/* Whether what a pidfd refers to can be sent signals, which is all that a running process and no other answers to. */
static bool lives(int fd)
{
	return syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0;
}

/* Waits by a pidfd for the end of a child. */
static void check_end(int fd, int code, int status)
{
	siginfo_t info = { 0 };
	CHECK(waitid((idtype_t)P_PIDFD, (id_t)fd, &info, WEXITED) == 0, "fd %d: %s", fd, strerror(errno));
	CHECK(info.si_code == code && info.si_status == status, "fd %d: code %d, status %d", fd, info.si_code,
	      info.si_status);
}

static void send_go(int fd)
{
	MUST(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0));
}

static int of_root, of_sibling;

/* Has one of itself and one of its sibling, the one of its parent from there. */
static void child_with_some(void *unused)
{
	(void)unused;
	int own = open_pidfd(getpid(), 0), parent = open_pidfd(getppid(), PIDFD_NONBLOCK);
	prepared();
	wait_for_go();
	CHECK(lives(own) && lives(parent) && lives(of_root), "who lives does not seem to");
	CHECK(!is_ready(own) && !is_ready(parent), "who lives has ended");
	CHECK(syscall(SYS_kcmp, getpid(), getppid(), 0, of_root, of_root) == 0, "no longer the parent's description");
	send_go(of_sibling);
}

static void child_that_waits(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
}

/* Of oneself, of parents, children and siblings; shared by fork and dup. */
CASE(relatives)
{
	of_root = open_pidfd(getpid(), 0);
	pid_t sibling = spawn(child_that_waits, NULL);
	of_sibling = open_pidfd(sibling, 0);
	pid_t child = spawn(child_with_some, NULL);
	int of_child = open_pidfd(child, PIDFD_NONBLOCK), again = MUST(dup3(of_child, 100, O_CLOEXEC));
	int flags = MUST(fcntl(of_root, F_GETFL));
	MUST(fcntl(of_root, F_SETFL, flags | O_APPEND));
	MUST(fcntl(of_root, F_SETOWN, child));
	MUST(fcntl(of_root, F_SETSIG, SIGRTMIN + 2));
	checkpoint();
	CHECK(fcntl(of_root, F_GETOWN) == child && fcntl(of_root, F_GETSIG) == SIGRTMIN + 2, "owner %d, signal %d",
	      fcntl(of_root, F_GETOWN), fcntl(of_root, F_GETSIG));
	CHECK(MUST(fcntl(of_root, F_GETFL)) == (flags | O_APPEND), "flags %#o", fcntl(of_root, F_GETFL));
	siginfo_t info = { 0 };
	CHECK(waitid((idtype_t)P_PIDFD, (id_t)of_child, &info, WEXITED) == -1 && errno == EAGAIN, "not PIDFD_NONBLOCK");
	CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, of_child, again) == 0, "no longer one description");
	send_go(again);
	struct pollfd asked = { .fd = of_child, .events = POLLIN };
	MUST(poll(&asked, 1, -1));
	check_end(of_child, CLD_EXITED, 0);
	check_end(of_sibling, CLD_EXITED, 0);
	int copy = MUST((int)syscall(SYS_pidfd_getfd, of_root, of_child, 0));
	CHECK(!lives(copy) && lives(of_root), "a copy of another");
}

/* Of children that have ended: not waited for, and waited for. */
static pid_t ended_child(int how)
{
	pid_t child = MUST(fork());
	if (child == 0) {
		if (how >= 0)
			_exit(how);
		kill(getpid(), -how);
	}
	siginfo_t info;
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
	return child;
}

CASE(zombies)
{
	int exited = open_pidfd(ended_child(7), 0), killed = open_pidfd(ended_child(-SIGKILL), PIDFD_NONBLOCK);
	checkpoint();
	CHECK(is_ready(exited) && is_ready(killed), "who has ended is not told");
	check_end(exited, CLD_EXITED, 7);
	check_end(killed, CLD_KILLED, SIGKILL);
	CHECK(!lives(exited) && errno == ESRCH, "there again");
}

/* The wait status of one that has been waited for, or -1 where the kernel does not tell (before Linux 6.15). */
static int status_of(int fd)
{
	struct {
		uint64_t mask, cgroup;
		uint32_t ids[11];
		int32_t exit_code;
	} info = { .mask = 8 };
	if (ioctl(fd, _IOC(_IOC_READ | _IOC_WRITE, 0xff, 11, 64), &info) == -1)
		return -1;
	return (info.mask & 8) != 0 ? info.exit_code : -1;
}

static ino_t inode_of(int fd)
{
	struct stat stat;
	MUST(fstat(fd, &stat));
	return stat.st_ino;
}

CASE(gone)
{
	pid_t exited = ended_child(5), killed = ended_child(-SIGTERM);
	int of_exited = open_pidfd(exited, 0), again = open_pidfd(exited, PIDFD_NONBLOCK), of_killed = open_pidfd(killed, 0);
	MUST(waitpid(exited, NULL, 0));
	MUST(waitpid(killed, NULL, 0));
	int statuses[2] = { status_of(of_exited), status_of(of_killed) };
	bool same = inode_of(of_exited) == inode_of(of_killed);
	checkpoint();
	CHECK(!lives(of_exited) && errno == ESRCH, "there again: %s", strerror(errno));
	CHECK(is_ready(of_exited) && is_ready(again) && is_ready(of_killed), "who has ended is not told");
	CHECK(status_of(of_exited) == statuses[0], "status %#x instead of %#x", status_of(of_exited), statuses[0]);
	CHECK(status_of(of_killed) == statuses[1], "status %#x instead of %#x", status_of(of_killed), statuses[1]);
	CHECK(inode_of(of_exited) == inode_of(again), "no longer of the same process");
	CHECK((inode_of(of_exited) == inode_of(of_killed)) == same, "now of the same process");
	siginfo_t info;
	CHECK(waitid((idtype_t)P_PIDFD, (id_t)of_exited, &info, WEXITED) == -1 && errno == ECHILD, "somebody to wait for");
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child that nobody has made");
}

static volatile pid_t tids[2];
static volatile int turn;

static void *thread(void *number)
{
	tids[(intptr_t)number] = thread_id();
	while (turn == 0)
		usleep(1000);
	return NULL;
}

/* Of threads (Linux 6.9). */
CASE(threads)
{
	pthread_t threads[2];
	int fds[2];
	for (intptr_t i = 0; i < 2; i++) {
		MUST0(pthread_create(&threads[i], NULL, thread, (void *)i));
		while (tids[i] == 0)
			usleep(1000);
		fds[i] = open_pidfd(tids[i], PIDFD_THREAD | (i ? PIDFD_NONBLOCK : 0));
	}
	int leader = open_pidfd(getpid(), PIDFD_THREAD), process = open_pidfd(getpid(), 0);
	checkpoint();
	CHECK(!is_ready(fds[0]) && !is_ready(fds[1]) && !is_ready(leader) && !is_ready(process), "a thread has ended");
	CHECK(lives(fds[0]) && lives(leader) && lives(process), "a thread is gone");
	turn = 1;
	for (int i = 0; i < 2; i++) {
		struct pollfd asked = { .fd = fds[i], .events = POLLIN };
		MUST(poll(&asked, 1, -1));
		MUST0(pthread_join(threads[i], NULL));
		/* That it has ended is told before it is gone. */
		while (lives(fds[i]))
			usleep(1000);
		CHECK(errno == ESRCH, "errno %d of a thread that is gone", errno);
	}
	CHECK(!is_ready(leader), "the leader has ended");
}

static int polled, waited;

static void *poll_one(void *unused)
{
	(void)unused;
	tids[0] = thread_id();
	struct pollfd asked = { .fd = polled, .events = POLLIN };
	int ready = poll(&asked, 1, -1);
	CHECK(ready == 1 && (asked.revents & POLLIN) != 0, "poll: %d, %s", ready, strerror(errno));
	return NULL;
}

static void *wait_for_one(void *unused)
{
	(void)unused;
	tids[1] = thread_id();
	check_end(waited, CLD_EXITED, 0);
	return NULL;
}

/* Waited for when the tree is stopped. */
CASE(waiting)
{
	pthread_t threads[2];
	pid_t children[2];
	for (int i = 0; i < 2; i++)
		children[i] = spawn(child_that_waits, NULL);
	polled = open_pidfd(children[0], 0);
	waited = open_pidfd(children[1], 0);
	MUST0(pthread_create(&threads[0], NULL, poll_one, NULL));
	MUST0(pthread_create(&threads[1], NULL, wait_for_one, NULL));
	for (int i = 0; i < 2; i++) {
		while (tids[i] == 0)
			usleep(1000);
		await_sleep(tids[i]);
	}
	checkpoint();
	finish(children[0]);
	MUST(kill(children[1], SIGUSR1));
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* In an epoll, as those who wait for children have them: a child that runs, one that has ended, one that is gone, a second
 * number for the first, an edge that has been told. */
CASE(watched)
{
	pid_t child = spawn(child_that_waits, NULL), gone = ended_child(0);
	int fds[4] = { open_pidfd(child, 0), open_pidfd(ended_child(1), 0), open_pidfd(gone, 0), 0 };
	fds[3] = MUST(dup(fds[0]));
	int level = MUST(epoll_create1(EPOLL_CLOEXEC)), edge = MUST(epoll_create1(0));
	for (int i = 0; i < 4; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)1 << i };
		MUST(epoll_ctl(level, EPOLL_CTL_ADD, fds[i], &event));
		event.events |= EPOLLET;
		MUST(epoll_ctl(edge, EPOLL_CTL_ADD, fds[i], &event));
	}
	MUST(waitpid(gone, NULL, 0));
	struct epoll_event events[8];
	while (epoll_wait(edge, events, 8, 0) > 0)
		;
	checkpoint();
	uint64_t sum = 0;
	int count = MUST(epoll_wait(level, events, 8, 0));
	for (int i = 0; i < count; i++)
		sum += events[i].data.u64;
	CHECK(sum == 6, "told %#llx", (long long)sum);
	CHECK(MUST(epoll_wait(edge, events, 8, 0)) == 0, "told again");
	MUST(kill(child, SIGUSR1));
	sum = 0;
	while (sum < 9) {
		count = MUST(epoll_wait(edge, events, 8, -1));
		for (int i = 0; i < count; i++)
			sum += events[i].data.u64;
	}
	CHECK(sum == 9, "told %#llx", (long long)sum);
	check_end(fds[3], CLD_EXITED, 0);
	check_end(fds[1], CLD_EXITED, 1);
}

/* The other side of between_abis: has one of itself and one of its parent, and the parent's own of that. */
CASE(other_side)
{
	int own = open_pidfd(getpid(), 0), parent = open_pidfd(getppid(), 0), given = atoi(case_args[0]);
	prepared();
	wait_for_go();
	CHECK(lives(own) && lives(parent) && lives(given), "who lives does not seem to");
	CHECK(inode_of(parent) == inode_of(given), "no longer of the same process");
}

CASE(between_abis)
{
	char number[16];
	int own = open_pidfd(getpid(), 0);
	MUST(fcntl(own, F_SETFD, 0));
	snprintf(number, sizeof(number), "%d", own);
	pid_t child = spawn_abi(other_abi, "other_side", number);
	int of_child = open_pidfd(child, 0);
	checkpoint();
	CHECK(lives(own) && lives(of_child), "who lives does not seem to");
	send_go(of_child);
	check_end(of_child, CLD_EXITED, 0);
}

/* Under a number beyond RLIMIT_NOFILE by now, with no number free, no rights and a filter. */
CASE(confined)
{
	int own = open_pidfd(getpid(), 0), high = MUST(fcntl(own, F_DUPFD_CLOEXEC, 900));
	struct rlimit limit = { 20, 20 };
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	while (dup(own) != -1)
		;
	MUST(setresgid(65534, 65534, 65534));
	MUST(setresuid(65534, 65534, 65534));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	/* No recvmsg, no dup3, no close: whoever tries is killed. */
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_recvmsg, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_dup3, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog filter = { LENGTH(program), program };
	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
	checkpoint();
	CHECK(lives(own) && lives(high), "who lives does not seem to");
	CHECK(dup(own) == -1 && errno == EMFILE, "a number is free");
}

#define STACK (64 * 1024)

static int of_mate;

static int mate(void *has_table)
{
	wait_for_go();
	bool same = inode_of(of_mate) == inode_of(of_root);
	return lives(of_root) && lives(of_mate) && same == (has_table != NULL) ? 0 : 1;
}

static void mates(int flags)
{
	char *stack = map_anonymous(STACK + 2 * PAGE);
	MUST(mprotect(stack, PAGE, PROT_NONE));
	MUST(mprotect(stack + PAGE + STACK, PAGE, PROT_NONE));
	of_root = open_pidfd(getpid(), 0);
	of_mate = MUST(dup(of_root));
	pid_t child = MUST(clone(mate, stack + PAGE + STACK, flags, flags & CLONE_FILES ? NULL : stack));
	int of_child = open_pidfd(child, 0);
	/* Seen by the mate if the table is shared. */
	MUST(dup2(of_child, of_mate));
	await_sleep(child);
	checkpoint();
	CHECK(lives(of_child) && lives(of_mate), "a mate is gone");
	send_go(of_child);
	int status;
	MUST(waitpid(child, &status, __WALL));
	CHECK(status == 0, "status %#x", status);
	CHECK(!lives(of_child), "a mate is still there");
}

CASE(shared_table)
{
	mates(CLONE_FILES | SIGCHLD);
}

CASE(shared_memory)
{
	mates(CLONE_VM | CLONE_FILES | SIGCHLD);
}

CASE(shared_memory_alone)
{
	mates(CLONE_VM | SIGCHLD);
}

CASE(other_signal)
{
	mates(SIGURG);
}

/* Of a task that is stopped, which has one of its parent. */
static void child_that_stops(void *unused)
{
	(void)unused;
	int parent = open_pidfd(getppid(), 0);
	prepared();
	MUST(kill(getpid(), SIGSTOP));
	wait_for_go();
	CHECK(lives(parent), "the parent is gone");
}

CASE(stopped)
{
	pid_t child = spawn(child_that_stops, NULL);
	int fd = open_pidfd(child, 0);
	await_state(child, 'T');
	checkpoint();
	CHECK(lives(fd) && !is_ready(fd), "a stopped task has ended");
	MUST(syscall(SYS_pidfd_send_signal, fd, SIGCONT, NULL, 0));
	finish(child);
	CHECK(is_ready(fd), "its end is not told");
}

/* The one that goes on when the leader has ended. */
static void *last_thread(void *unused)
{
	(void)unused;
	await_state(getpid(), 'Z');
	int process = open_pidfd(getpid(), 0), own = open_pidfd(thread_id(), PIDFD_THREAD);
	checkpoint();
	CHECK(lives(process) && lives(own) && !is_ready(process) && !is_ready(own), "a task has ended with its leader");
	end_last_thread();
}

CASE(leader_ended)
{
	pthread_t last;
	MUST0(pthread_create(&last, NULL, last_thread, NULL));
	syscall(SYS_exit, 0);
}

/* So much that restoring it takes a while, and a child that is back long before but for a pidfd, which it has to wait for. */
CASE(heavy)
{
	size_t length = 400u << 20;
	char *data = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t at = 0; at < length; at += PAGE)
		data[at] = (char)(at / PAGE);
	int own = open_pidfd(getpid(), 0);
	pid_t child = MUST(fork());
	if (child == 0) {
		MUST(munmap(data, length));
		wait_for_go();
		_exit(lives(own) ? 0 : 1);
	}
	checkpoint();
	finish(child);
}
