/* Named pipes: ends of every kind, what is in them, what poll(2) tells of a writer that is gone or never was, and tasks that wait for the
 * other side. */
#include "workload.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static void make(const char *name)
{
	MUST(mkfifo(name, 0640));
}

static int waiting_in(int fd)
{
	int count = -1;
	MUST(ioctl(fd, FIONREAD, &count));
	return count;
}

static int events_of(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN | POLLOUT };
	MUST(poll(&one, 1, 0));
	return one.revents;
}

/* No memory of their own comes and goes in children: areas that the kernel could join but has not would be joined by a restore. */
static char bytes[1 << 17];

static void put(int fd, size_t length, uint32_t seed)
{
	fill(bytes, length, seed);
	CHECK(write(fd, bytes, length) == (ssize_t)length, "write: %s", strerror(errno));
}

/* Reads exactly what put() made of the seed. */
static void take(int fd, size_t length, uint32_t seed)
{
	size_t have = 0;
	while (have < length) {
		ssize_t got = read(fd, bytes + have, length - have);
		CHECK(got > 0, "read gives %zd after %zu bytes: %s", got, have, strerror(errno));
		if (got <= 0)
			return;
		have += (size_t)got;
	}
	CHECK_FILL(bytes, length, seed);
}

/* Both ends, the one for reading opened first. */
static void open_both(const char *name, int ends[2])
{
	ends[0] = MUST(open(name, O_RDONLY | O_NONBLOCK));
	ends[1] = MUST(open(name, O_WRONLY));
	MUST(fcntl(ends[0], F_SETFL, 0));
}

CASE(contents)
{
	int ends[2], both;
	make("fifo");
	make("both");
	open_both("fifo", ends);
	MUST(fcntl(ends[1], F_SETPIPE_SZ, 16384));
	put(ends[1], 10000, 1);
	both = MUST(open("both", O_RDWR));
	put(both, 65536, 2);
	checkpoint();
	CHECK(fcntl(ends[0], F_GETPIPE_SZ) == 16384, "size %d", fcntl(ends[0], F_GETPIPE_SZ));
	CHECK(fcntl(both, F_GETPIPE_SZ) == 65536, "size %d", fcntl(both, F_GETPIPE_SZ));
	CHECK(waiting_in(ends[0]) == 10000 && waiting_in(both) == 65536, "%d and %d bytes", waiting_in(ends[0]),
	      waiting_in(both));
	take(ends[0], 10000, 1);
	take(both, 65536, 2);
	/* By its name, too. */
	int again = MUST(open("fifo", O_WRONLY | O_NONBLOCK));
	put(again, 5000, 3);
	take(ends[0], 5000, 3);
	close(ends[1]);
	close(again);
	CHECK(read(ends[0], &(char){ 0 }, 1) == 0, "no end of file");
}

/* Descriptions of their own with flags of their own, and shared ones, one of them in a message. */
CASE(descriptions)
{
	int ends[2], pair[2];
	make("fifo");
	open_both("fifo", ends);
	int other_reader = MUST(open("fifo", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	int other_writer = MUST(open("fifo", O_WRONLY | O_APPEND | O_NOFOLLOW));
	int duplicate = MUST(dup(ends[0]));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	char control[CMSG_SPACE(sizeof(int))] = "", byte = 'm';
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
				    .cmsg_len = CMSG_LEN(sizeof(int)) };
	memcpy(CMSG_DATA(header), &ends[1], sizeof(int));
	MUST(sendmsg(pair[0], &message, 0));
	/* Is in the message alone now. */
	int flags = fcntl(ends[1], F_GETFL);
	close(ends[1]);
	checkpoint();
	MUST(fcntl(ends[0], F_SETFL, O_NONBLOCK));
	CHECK(fcntl(duplicate, F_GETFL) & O_NONBLOCK, "the duplicate is a description of its own");
	CHECK(fcntl(other_reader, F_GETFD) == FD_CLOEXEC, "close-on-exec");
	CHECK(fcntl(other_writer, F_GETFL) & O_APPEND, "flags %#x", fcntl(other_writer, F_GETFL));
	MUST(recvmsg(pair[1], &message, 0));
	int received;
	memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	CHECK(fcntl(received, F_GETFL) == flags, "flags %#x, not %#x", fcntl(received, F_GETFL), flags);
	put(received, 100, 4);
	take(other_reader, 100, 4);
	put(other_writer, 100, 5);
	take(duplicate, 100, 5);
	CHECK(events_of(ends[0]) == 0, "events %#x", events_of(ends[0]));
	close(received);
	close(other_writer);
	CHECK(events_of(ends[0]) == POLLHUP, "events %#x", events_of(ends[0]));
}

/* Only readers: of a FIFO that has had a writer, that never had one, and both of one FIFO. */
CASE(readers)
{
	int seen[2], both[2];
	make("seen");
	make("never");
	make("both");
	open_both("seen", seen);
	put(seen[1], 700, 6);
	close(seen[1]);
	int never = MUST(open("never", O_RDONLY | O_NONBLOCK));
	open_both("both", both);
	put(both[1], 900, 7);
	close(both[1]);
	int later = MUST(open("both", O_RDONLY | O_NONBLOCK));
	checkpoint();
	CHECK(events_of(never) == 0, "events %#x", events_of(never));
	CHECK(read(never, &(char){ 0 }, 1) == 0, "a read of a pipe without a writer");
	CHECK(events_of(seen[0]) == (POLLIN | POLLHUP), "events %#x", events_of(seen[0]));
	take(seen[0], 700, 6);
	CHECK(read(seen[0], &(char){ 0 }, 1) == 0, "no end of file");
	CHECK(events_of(both[0]) == (POLLIN | POLLHUP) && events_of(later) == POLLIN, "events %#x and %#x",
	      events_of(both[0]), events_of(later));
	take(later, 900, 7);
	CHECK(events_of(both[0]) == POLLHUP && events_of(later) == 0, "events %#x and %#x", events_of(both[0]),
	      events_of(later));
	int writer = MUST(open("never", O_WRONLY | O_NONBLOCK));
	put(writer, 10, 8);
	CHECK(events_of(never) == POLLIN, "events %#x", events_of(never));
	take(never, 10, 8);
	close(writer);
	CHECK(events_of(never) == POLLHUP, "events %#x", events_of(never));
}

/* Only writers; what they wrote is for the next reader. */
CASE(writers)
{
	int ends[2], unread[2];
	MUST((intptr_t)signal(SIGPIPE, SIG_IGN));
	make("fifo");
	make("unread");
	open_both("fifo", ends);
	open_both("unread", unread);
	put(unread[1], 3000, 9);
	close(ends[0]);
	close(unread[0]);
	checkpoint();
	CHECK(events_of(ends[1]) == (POLLOUT | POLLERR), "events %#x", events_of(ends[1]));
	CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE, "no EPIPE: %s", strerror(errno));
	CHECK(open("fifo", O_WRONLY | O_NONBLOCK) != -1 || errno == ENXIO, "open: %s", strerror(errno));
	int reader = MUST(open("unread", O_RDONLY | O_NONBLOCK));
	take(reader, 3000, 9);
	put(unread[1], 50, 10);
	take(reader, 50, 10);
	int late = MUST(open("fifo", O_RDONLY | O_NONBLOCK));
	put(ends[1], 60, 11);
	take(late, 60, 11);
}

/* No name any more. */
CASE(deleted)
{
	int ends[2];
	struct stat status;
	make("fifo");
	MUST(chmod("fifo", 0604));
	MUST(chown("fifo", 11, 12));
	open_both("fifo", ends);
	int later = MUST(open("fifo", O_RDONLY | O_NONBLOCK));
	put(ends[1], 2000, 12);
	MUST(unlink("fifo"));
	MUST(mkdir("gone", 0700));
	make("gone/fifo");
	int alone = MUST(open("gone/fifo", O_RDONLY | O_NONBLOCK));
	MUST(unlink("gone/fifo"));
	MUST(rmdir("gone"));
	struct stat before;
	MUST(fstat(later, &before));
	checkpoint();
	MUST(fstat(later, &status));
	CHECK(status.st_mtime == before.st_mtime && status.st_mtim.tv_nsec == before.st_mtim.tv_nsec, "modified");
	CHECK(status.st_mode == (S_IFIFO | 0604) && status.st_nlink == 0, "mode %#o", status.st_mode);
	CHECK(status.st_uid == 11 && status.st_gid == 12, "owner %u:%u", status.st_uid, status.st_gid);
	CHECK(access("fifo", F_OK) == -1, "it has a name");
	CHECK(access("gone", F_OK) == -1, "its directory is there");
	take(ends[0], 2000, 12);
	close(ends[1]);
	CHECK(read(later, &(char){ 0 }, 1) == 0 && events_of(later) == POLLHUP, "events %#x", events_of(later));
	CHECK(events_of(alone) == 0, "events %#x", events_of(alone));
}

static void opens_to_read(void *name)
{
	prepared();
	int fd = open(name, O_RDONLY);
	CHECK(fd != -1, "open: %s", strerror(errno));
	take(fd, 300, 13);
	CHECK(read(fd, &(char){ 0 }, 1) == 0, "no end of file");
}

static void opens_to_write(void *name)
{
	prepared();
	int fd = open(name, O_WRONLY);
	CHECK(fd != -1, "open: %s", strerror(errno));
	put(fd, 400, 14);
}

/* In open(2), each for the other side. */
CASE(opening)
{
	make("to read");
	make("to write");
	pid_t reader = spawn(opens_to_read, "to read"), writer = spawn(opens_to_write, "to write");
	await_sleep(reader);
	await_sleep(writer);
	checkpoint();
	await_sleep(reader);
	await_sleep(writer);
	int to = MUST(open("to read", O_WRONLY));
	put(to, 300, 13);
	close(to);
	reap(reader);
	int from = MUST(open("to write", O_RDONLY));
	take(from, 400, 14);
	CHECK(read(from, &(char){ 0 }, 1) == 0, "no end of file");
	reap(writer);
}

static int given[2];

static void reads(void *unused)
{
	(void)unused;
	close(given[1]);
	prepared();
	take(given[0], 300, 15);
	CHECK(read(given[0], &(char){ 0 }, 1) == 0, "no end of file");
}

static void writes(void *unused)
{
	(void)unused;
	close(given[0]);
	prepared();
	put(given[1], 4096, 16);
}

static void polls(void *unused)
{
	struct pollfd one = { .fd = given[0], .events = POLLIN };
	(void)unused;
	close(given[1]);
	prepared();
	CHECK(poll(&one, 1, -1) == 1 && one.revents == POLLIN, "events %#x: %s", one.revents, strerror(errno));
	take(given[0], 20, 17);
}

/* In read, in a write to a full one, in poll. */
CASE(waiting)
{
	int ends[3][2];
	pid_t children[3];
	static void (*const bodies[])(void *) = { reads, writes, polls };
	static const char *const names[] = { "empty", "full", "polled" };
	for (int i = 0; i < 3; i++) {
		make(names[i]);
		open_both(names[i], given);
		memcpy(ends[i], given, sizeof(given));
		if (i == 1)
			put(given[1], 65536, 18);
		children[i] = spawn(bodies[i], NULL);
		await_sleep(children[i]);
	}
	checkpoint();
	put(ends[0][1], 300, 15);
	close(ends[0][1]);
	/* The children of later rounds have it too. */
	put(ends[2][1], 20, 17);
	reap(children[2]);
	take(ends[1][0], 65536, 18);
	take(ends[1][0], 4096, 16);
	reap(children[1]);
	reap(children[0]);
}

/* A task of the other ABI echoes what comes by one FIFO into another. */
CASE(echo)
{
	ssize_t got;
	int from = MUST(open("to", O_RDONLY | O_NONBLOCK)), to = MUST(open("from", O_RDWR));
	MUST(fcntl(from, F_SETFL, 0));
	prepared();
	/* No end of file before the other side is there. */
	struct pollfd one = { .fd = from, .events = POLLIN };
	MUST(poll(&one, 1, -1));
	while ((got = read(from, bytes, sizeof(bytes))) > 0)
		CHECK(write(to, bytes, (size_t)got) == got, "write: %s", strerror(errno));
}

CASE(between_abis)
{
	make("to");
	make("from");
	pid_t child = spawn_abi(other_abi, "echo", NULL);
	int to = MUST(open("to", O_WRONLY)), from = MUST(open("from", O_RDONLY));
	put(to, 2000, 19);
	while (waiting_in(from) != 2000)
		sched_yield();
	await_sleep(child);
	checkpoint();
	take(from, 2000, 19);
	put(to, 2500, 20);
	while (waiting_in(from) != 2500)
		sched_yield();
	take(from, 2500, 20);
	close(to);
	reap(child);
	CHECK(read(from, &(char){ 0 }, 1) == 0, "no end of file");
}
