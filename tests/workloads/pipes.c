/* Pipes: what is in them, how large they are, who holds which end. */
#include "workload.h"
#include <sys/ioctl.h>

static int waiting_in(int fd)
{
	int count = -1;
	MUST(ioctl(fd, FIONREAD, &count));
	return count;
}

/* Reads exactly what fill() makes of the seed. */
static void check_pipe(int fd, size_t length, uint32_t seed)
{
	char *bytes = map_anonymous(length + PAGE);
	size_t have = 0;
	CHECK(waiting_in(fd) == (int)length, "%d bytes are in the pipe instead of %zu", waiting_in(fd), length);
	while (have < length) {
		ssize_t got = read(fd, bytes + have, length - have);
		CHECK(got > 0, "read gives %zd after %zu bytes: %s", got, have, strerror(errno));
		if (got <= 0)
			return;
		have += (size_t)got;
	}
	CHECK_FILL(bytes, length, seed);
}

static void put(int fd, size_t length, uint32_t seed)
{
	char *bytes = map_anonymous(length);
	fill(bytes, length, seed);
	CHECK(write(fd, bytes, length) == (ssize_t)length, "write: %s", strerror(errno));
	MUST(munmap(bytes, length));
}

CASE(contents)
{
	int ends[2];
	MUST(pipe(ends));
	put(ends[1], 10000, 1);
	checkpoint();
	check_pipe(ends[0], 10000, 1);
	put(ends[1], 5000, 2);
	check_pipe(ends[0], 5000, 2);
	close(ends[1]);
	CHECK(read(ends[0], &(char){ 0 }, 1) == 0, "no end of file");
}

/* Full to the last byte; one written in single bytes, where each write may have a page of its own. */
CASE(full)
{
	int ends[2], small[2];
	const size_t size = 65536;
	MUST(pipe(ends));
	MUST(pipe2(small, O_NONBLOCK));
	put(ends[1], size, 3);
	size_t count = 0;
	while (write(small[1], &(char){ (char)count }, 1) == 1)
		count++;
	MUST(fcntl(ends[1], F_SETFL, O_NONBLOCK));
	checkpoint();
	CHECK(write(ends[1], "x", 1) == -1 && errno == EAGAIN, "the full pipe takes a byte");
	check_pipe(ends[0], size, 3);
	CHECK(waiting_in(small[0]) == (int)count, "%d bytes instead of %zu", waiting_in(small[0]), count);
	for (size_t i = 0; i < count; i++) {
		char byte;
		CHECK(read(small[0], &byte, 1) == 1 && byte == (char)i, "byte %zu is %d", i, byte);
	}
}

CASE(sizes)
{
	static const int sizes[] = { 4096, 16384, 65536, 1 << 20 };
	int ends[LENGTH(sizes)][2];
	for (size_t i = 0; i < LENGTH(sizes); i++) {
		MUST(pipe(ends[i]));
		MUST(fcntl(ends[i][0], F_SETPIPE_SZ, sizes[i]));
		put(ends[i][1], (size_t)sizes[i], (uint32_t)i);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(sizes); i++) {
		CHECK(fcntl(ends[i][1], F_GETPIPE_SZ) == sizes[i], "size %d instead of %d", fcntl(ends[i][1], F_GETPIPE_SZ),
		      sizes[i]);
		check_pipe(ends[i][0], (size_t)sizes[i], (uint32_t)i);
	}
}

CASE(closed_ends)
{
	int no_writer[2], no_writer_empty[2], no_reader[2];
	MUST((intptr_t)signal(SIGPIPE, SIG_IGN));
	MUST(pipe(no_writer));
	MUST(pipe(no_writer_empty));
	MUST(pipe(no_reader));
	put(no_writer[1], 100, 4);
	close(no_writer[1]);
	close(no_writer_empty[1]);
	close(no_reader[0]);
	checkpoint();
	check_pipe(no_writer[0], 100, 4);
	CHECK(read(no_writer[0], &(char){ 0 }, 1) == 0, "no end of file after the last bytes");
	CHECK(read(no_writer_empty[0], &(char){ 0 }, 1) == 0, "no end of file");
	CHECK(write(no_reader[1], "x", 1) == -1 && errno == EPIPE, "no EPIPE: %s", strerror(errno));
}

CASE(flags)
{
	int ends[2], cloexec[2];
	MUST(pipe(ends));
	MUST(pipe2(cloexec, O_CLOEXEC | O_NONBLOCK));
	MUST(fcntl(ends[0], F_SETFL, O_NONBLOCK));
	int duplicate = MUST(dup(ends[0]));
	/* Another description of the same end. */
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", ends[1]);
	int again = MUST(open(path, O_WRONLY | O_NONBLOCK));
	checkpoint();
	CHECK(fcntl(ends[0], F_GETFL) == (O_RDONLY | O_NONBLOCK) && fcntl(ends[1], F_GETFL) == O_WRONLY, "%#x %#x",
	      fcntl(ends[0], F_GETFL), fcntl(ends[1], F_GETFL));
	CHECK(read(ends[0], &(char){ 0 }, 1) == -1 && errno == EAGAIN, "the empty pipe blocks or gives");
	CHECK(fcntl(cloexec[0], F_GETFD) == FD_CLOEXEC && fcntl(ends[0], F_GETFD) == 0, "close-on-exec");
	MUST(fcntl(duplicate, F_SETFL, 0));
	CHECK(fcntl(ends[0], F_GETFL) == O_RDONLY, "the duplicate is a description of its own");
	CHECK((fcntl(again, F_GETFL) & O_NONBLOCK) && !(fcntl(ends[1], F_GETFL) & O_NONBLOCK), "separate flags");
	MUST(write(again, "y", 1));
	char byte = 0;
	CHECK(read(duplicate, &byte, 1) == 1 && byte == 'y', "the other description");
}

/* A task of the other ABI echoes fd 10 to fd 11. */
CASE(echo)
{
	char byte;
	prepared();
	while (read(10, &byte, 1) == 1)
		if (write(11, &byte, 1) != 1)
			break;
}

CASE(between_abis)
{
	int to[2], from[2];
	MUST(pipe2(to, O_CLOEXEC));
	MUST(pipe2(from, O_CLOEXEC));
	MUST(dup2(to[0], 10));
	MUST(dup2(from[1], 11));
	pid_t child = spawn_abi(other_abi, "echo", NULL);
	close(10);
	close(11);
	close(to[0]);
	close(from[1]);
	await_sleep(child);
	put(to[1], 500, 5);
	/* All of it is on its way back by the time the harness looks. */
	while (waiting_in(from[0]) != 500)
		sched_yield();
	checkpoint();
	check_pipe(from[0], 500, 5);
	put(to[1], 700, 6);
	while (waiting_in(from[0]) != 700)
		sched_yield();
	check_pipe(from[0], 700, 6);
	close(to[1]);
	reap(child);
	CHECK(read(from[0], &(char){ 0 }, 1) == 0, "no end of file");
}

static int given[2];

static void reader(void *unused)
{
	(void)unused;
	close(given[1]);
	prepared();
	/* Sleeps in read(2) over the checkpoint. */
	char bytes[4] = "";
	ssize_t got = read(given[0], bytes, sizeof(bytes));
	CHECK(got == 4 && memcmp(bytes, "abcd", 4) == 0, "read gives %zd: %s", got, strerror(errno));
	CHECK(read(given[0], &(char){ 0 }, 1) == 0, "no end of file");
}

CASE(reader_waits)
{
	MUST(pipe(given));
	pid_t child = spawn(reader, NULL);
	close(given[0]);
	await_sleep(child);
	checkpoint();
	MUST(write(given[1], "abcd", 4));
	close(given[1]);
	reap(child);
}

/* Ends that wandered: the only writer is a grandchild, the only reader the root. */
static void far_writer(void *unused)
{
	(void)unused;
	close(given[0]);
	prepared();
	wait_for_go();
	put(given[1], 3000, 8);
}

static void between(void *unused)
{
	(void)unused;
	pid_t below = spawn(far_writer, NULL);
	close(given[0]);
	close(given[1]);
	prepared();
	wait_for_go();
	finish(below);
}

CASE(far_ends)
{
	MUST(pipe(given));
	pid_t child = spawn(between, NULL);
	close(given[1]);
	checkpoint();
	finish(child);
	check_pipe(given[0], 3000, 8);
	CHECK(read(given[0], &(char){ 0 }, 1) == 0, "no end of file");
}
