/* File locks: whose they are, which range, who waits. */
#define _FILE_OFFSET_BITS 64
#include "workload.h"
#include <sys/file.h>

#ifndef F_OFD_SETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

static const off_t FAR = (off_t)5 << 30;

static int make(const char *name)
{
	return MUST(open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
}

static void lock(int fd, int command, short type, off_t start, off_t length)
{
	struct flock range = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
	MUST(fcntl(fd, command, &range));
}

/* What stands in the way of an exclusive lock on a range. */
static struct flock obstacle(int fd, off_t start, off_t length)
{
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
	MUST(fcntl(fd, F_GETLK, &range));
	return range;
}

static void check_obstacle(int fd, off_t at, short type, off_t start, off_t length, pid_t pid)
{
	struct flock found = obstacle(fd, at, 1);
	CHECK(found.l_type == type, "at %lld: type %d, not %d", (long long)at, found.l_type, type);
	if (type != F_UNLCK && found.l_type == type)
		CHECK(found.l_start == start && found.l_len == length && found.l_pid == pid,
		      "at %lld: %lld+%lld of %d, not %lld+%lld of %d", (long long)at, (long long)found.l_start,
		      (long long)found.l_len, found.l_pid, (long long)start, (long long)length, pid);
}

/* Looks at the locks of its parent by a description of its own. */
static void observer(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
	int fd = MUST(open("file", O_RDWR));
	check_obstacle(fd, 0, F_UNLCK, 0, 0, 0);
	check_obstacle(fd, 12, F_WRLCK, 10, 5, getppid());
	check_obstacle(fd, 22, F_RDLCK, 20, 5, getppid());
	check_obstacle(fd, FAR + 1, F_WRLCK, FAR, 0, getppid());
	CHECK(flock(MUST(open("whole", O_RDWR)), LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "flock");
	CHECK(flock(MUST(open("shared", O_RDWR)), LOCK_SH | LOCK_NB) == 0, "flock, shared");
	CHECK(flock(MUST(open("shared", O_RDWR)), LOCK_EX | LOCK_NB) == -1, "flock, exclusive");
	fd = MUST(open("ofd", O_RDWR));
	check_obstacle(fd, FAR, F_WRLCK, FAR - 1, 3, -1);
}

CASE(kinds)
{
	int file = make("file"), whole = make("whole"), shared = make("shared"), ofd = make("ofd");
	lock(file, F_SETLK, F_WRLCK, 10, 5);
	lock(file, F_SETLK, F_RDLCK, 20, 5);
	lock(file, F_SETLK, F_WRLCK, FAR, 0);
	/* Mapped, and open twice: closing any of that would drop the locks. */
	MUST(ftruncate(file, PAGE));
	MUST(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0));
	MUST(dup(file));
	MUST(open("file", O_RDONLY));
	MUST(flock(whole, LOCK_EX));
	MUST(flock(shared, LOCK_SH));
	lock(ofd, F_OFD_SETLK, F_WRLCK, FAR - 1, 3);
	pid_t child = spawn(observer, NULL);
	checkpoint();
	finish(child);
	lock(file, F_SETLK, F_UNLCK, 0, 0);
}

static void wait_for_lock(void *unused)
{
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	(void)unused;
	int fd = MUST(open("file", O_RDWR));
	prepared();
	while (fcntl(fd, F_SETLKW, &range) == -1 && errno == EINTR)
		;
	check_obstacle(fd, 0, F_UNLCK, 0, 0, 0);
}

/* One waits for a lock of its parent until that lets go. */
CASE(waited_for)
{
	int fd = make("file");
	lock(fd, F_SETLK, F_RDLCK, 0, 1);
	pid_t child = spawn(wait_for_lock, NULL);
	await_sleep(child);
	checkpoint();
	await_sleep(child);
	CHECK(waitpid(child, NULL, WNOHANG) == 0, "who waits got the lock");
	lock(fd, F_SETLK, F_UNLCK, 0, 1);
	reap(child);
}

static void wait_for_flock(void *unused)
{
	(void)unused;
	int fd = MUST(open("whole", O_RDWR));
	prepared();
	MUST(flock(fd, LOCK_EX));
}

static void wait_for_ofd(void *unused)
{
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = FAR };
	(void)unused;
	int fd = MUST(open("ofd", O_RDWR));
	prepared();
	MUST(fcntl(fd, F_OFD_SETLKW, &range));
}

/* Whether somebody waits for a lock of a file, as the kernel shows it. */
static bool is_waited_for(int fd)
{
	char line[256], inode[32];
	bool found = false;
	struct stat file;
	FILE *locks = fopen("/proc/locks", "r");
	if (locks == NULL)
		die(__FILE__, __LINE__, "/proc/locks");
	MUST(fstat(fd, &file));
	snprintf(inode, sizeof(inode), ":%llu ", (unsigned long long)file.st_ino);
	while (fgets(line, sizeof(line), locks) != NULL)
		found |= strstr(line, "-> ") != NULL && strstr(line, inode) != NULL;
	fclose(locks);
	return found;
}

static void await_waiter(int fd)
{
	while (!is_waited_for(fd))
		sched_yield();
}

/* One waits for a lock of a description by flock, another by fcntl. */
CASE(descriptions_waited_for)
{
	int whole = make("whole"), ofd = make("ofd");
	MUST(flock(whole, LOCK_SH));
	lock(ofd, F_OFD_SETLK, F_RDLCK, 0, 0);
	pid_t children[] = { spawn(wait_for_flock, NULL), spawn(wait_for_ofd, NULL) };
	await_waiter(whole);
	await_waiter(ofd);
	checkpoint();
	await_waiter(whole);
	await_waiter(ofd);
	for (size_t i = 0; i < LENGTH(children); i++)
		CHECK(waitpid(children[i], NULL, WNOHANG) == 0, "who waits got the lock");
	MUST(flock(whole, LOCK_UN));
	lock(ofd, F_OFD_SETLK, F_UNLCK, 0, 0);
	for (size_t i = 0; i < LENGTH(children); i++)
		reap(children[i]);
}

/* A description and its lock by way of the other ABI: fd 5. */
CASE(inheritor)
{
	prepared();
	wait_for_go();
	CHECK(flock(5, LOCK_EX | LOCK_NB) == 0, "the description lost its lock: %s", strerror(errno));
	int other = MUST(open("whole", O_RDWR));
	CHECK(flock(other, LOCK_EX | LOCK_NB) == -1, "the lock is gone");
	CHECK(obstacle(other, 10, 1).l_pid == getppid(), "of %d", obstacle(other, 10, 1).l_pid);
}

CASE(between_abis)
{
	int fd = make("whole");
	MUST(dup2(fd, 5));
	close(fd);
	MUST(flock(5, LOCK_EX));
	lock(5, F_SETLK, F_WRLCK, 10, 1);
	pid_t child = spawn_abi(other_abi, "inheritor", NULL);
	checkpoint();
	finish(child);
}

static volatile sig_atomic_t broken, broken_fd;

static void on_break(int signal, siginfo_t *info, void *context)
{
	(void)context;
	broken = signal;
	broken_fd = info->si_fd;
}

static void check_lease(int fd, int type, const char *name, int signal)
{
	CHECK(MUST(fcntl(fd, F_GETLEASE)) == type, "the lease of %s is %d", name, fcntl(fd, F_GETLEASE));
	pid_t child = MUST(fork());
	if (child == 0) {
		close(fd);
		int opened = open(name, O_RDWR | O_NONBLOCK);
		_exit(opened == -1 && errno == EWOULDBLOCK ? 0 : 1);
	}
	int status = 0;
	while (waitpid(child, &status, 0) == -1 && errno == EINTR)
		;
	CHECK(status == 0, "%s was opened", name);
	for (int i = 0; i < 1000 && broken == 0; i++)
		usleep(1000);
	CHECK(broken == signal && broken_fd == (signal == SIGIO ? broken_fd : fd), "%s: signal %d, fd %d", name, broken,
	      broken_fd);
	broken = 0;
	MUST(fcntl(fd, F_SETLEASE, F_UNLCK));
	close(MUST(open(name, O_RDWR | O_NONBLOCK)));
}

/* Leases of both kinds, by a descriptor for reading and one for writing, with signals of all sorts. */
CASE(leases)
{
	struct sigaction action = { .sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART };
	MUST(sigaction(SIGIO, &action, NULL));
	MUST(sigaction(SIGRTMIN + 2, &action, NULL));
	MUST(sigaction(SIGRTMIN + 3, &action, NULL));
	close(make("read"));
	close(make("read by"));
	int writer = make("write"), reader = MUST(open("read", O_RDONLY)), other = MUST(open("read by", O_RDONLY));
	MUST(fcntl(writer, F_SETSIG, SIGRTMIN + 2));
	MUST(fcntl(writer, F_SETLEASE, F_WRLCK));
	MUST(fcntl(reader, F_SETLEASE, F_RDLCK));
	MUST(fcntl(other, F_SETSIG, SIGRTMIN + 3));
	MUST(fcntl(other, F_SETLEASE, F_WRLCK));
	checkpoint();
	CHECK(broken == 0, "signal %d", broken);
	check_lease(writer, F_WRLCK, "write", SIGRTMIN + 2);
	check_lease(reader, F_RDLCK, "read", SIGIO);
	check_lease(other, F_WRLCK, "read by", SIGRTMIN + 3);
}

/* Fd 10 has a lease of the parent. */
CASE(other_side)
{
	prepared();
	wait_for_go();
	CHECK(fcntl(10, F_GETLEASE) == F_WRLCK, "the lease is %d", fcntl(10, F_GETLEASE));
	MUST(fcntl(10, F_SETLEASE, F_UNLCK));
}

/* A description with a lease that tasks of both ABIs have, taken by the second of them. */
CASE(leases_between_abis)
{
	struct sigaction action = { .sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART };
	MUST(sigaction(SIGRTMIN + 2, &action, NULL));
	int fd = make("file");
	MUST(dup2(fd, 10));
	MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 2));
	MUST(fcntl(fd, F_SETLEASE, F_WRLCK));
	pid_t child = spawn_abi(other_abi, "other_side", NULL);
	checkpoint();
	CHECK(fcntl(fd, F_GETLEASE) == F_WRLCK, "the lease is %d", fcntl(fd, F_GETLEASE));
	finish(child);
	CHECK(fcntl(fd, F_GETLEASE) == F_UNLCK, "the lease is %d", fcntl(fd, F_GETLEASE));
}
