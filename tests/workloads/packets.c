/* Pipes in packet mode (O_DIRECT), what splice(2) and vmsplice(2) put into pipes, and such calls in progress. */
#include "workload.h"
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define BLOCK 512

static void put(int fd, size_t length, uint32_t seed)
{
	char bytes[8192] = "";
	fill(bytes, length, seed);
	CHECK(write(fd, bytes, length) == (ssize_t)length, "write: %s", strerror(errno));
}

/* One read takes what is given, no more and no less, and leaves nothing of it. */
static void one_read(int fd, size_t length, uint32_t seed)
{
	char bytes[8192] = "";
	ssize_t got = read(fd, bytes, sizeof(bytes));
	CHECK(got == (ssize_t)length, "read gives %zd instead of %zu: %s", got, length, strerror(errno));
	CHECK_FILL(bytes, length / 4 * 4, seed);
}

CASE(packets)
{
	int ends[2], none[2];
	MUST(pipe2(ends, O_DIRECT));
	MUST(pipe2(none, O_DIRECT | O_NONBLOCK));
	put(ends[1], 100, 1);
	put(ends[1], 4096, 2);
	put(ends[1], 5000, 3);
	put(ends[1], 4, 4);
	put(ends[1], 300, 5);
	checkpoint();
	CHECK(fcntl(ends[1], F_GETFL) == (O_WRONLY | O_DIRECT), "flags %#x", fcntl(ends[1], F_GETFL));
	one_read(ends[0], 100, 1);
	one_read(ends[0], 4096, 2);
	/* Of one larger than a page, the rest is another one. */
	one_read(ends[0], 4096, 3);
	CHECK(read(ends[0], (char[1000]){ 0 }, 1000) == 904, "the rest");
	/* What a read leaves of a packet is gone. */
	one_read(ends[0], 4, 4);
	CHECK(read(ends[0], (char[10]){ 0 }, 10) == 10, "the beginning");
	CHECK(read(none[0], &(char){ 0 }, 1) == -1 && errno == EAGAIN, "the empty pipe gives");
	put(none[1], 8, 6);
	put(none[1], 12, 7);
	one_read(none[0], 8, 6);
	one_read(none[0], 12, 7);
}

/* The flag comes and goes while something is in the pipe; a FIFO has it by F_SETFL alone. A write goes into the page of the one before if it
 * fits there, flag or not: so the first one fills its page, and only its end is left when crr comes. */
static void mix(int from, int to)
{
	char bytes[4056];
	put(to, 4096, 1);
	CHECK(read(from, bytes, sizeof(bytes)) == sizeof(bytes), "the beginning");
	MUST(fcntl(to, F_SETFL, O_DIRECT));
	put(to, 60, 2);
	put(to, 4, 3);
	MUST(fcntl(to, F_SETFL, 0));
	put(to, 80, 4);
	put(to, 20, 5);
	MUST(fcntl(from, F_SETFL, O_NONBLOCK));
}

static void check_mixed(int from, int to)
{
	char bytes[8192] = "", first[4096];
	fill(first, sizeof(first), 1);
	/* A stream goes on into the packet behind it. */
	CHECK(read(from, bytes, sizeof(bytes)) == 100, "the stream and a packet");
	CHECK(memcmp(bytes, first + 4056, 40) == 0, "its contents");
	CHECK_FILL(bytes + 40, 60, 2);
	one_read(from, 4, 3);
	CHECK(read(from, bytes, sizeof(bytes)) == 100, "the rest");
	CHECK_FILL(bytes, 80, 4);
	CHECK_FILL(bytes + 80, 20, 5);
	CHECK(read(from, bytes, 1) == -1 && errno == EAGAIN, "more");
	put(to, 4, 6);
	put(to, 4, 7);
	CHECK(read(from, bytes, sizeof(bytes)) == 8, "packets without the flag");
}

CASE(mixed)
{
	int ends[2];
	MUST(pipe(ends));
	MUST(mkfifo("fifo", 0600));
	int from = MUST(open("fifo", O_RDONLY | O_NONBLOCK)), to = MUST(open("fifo", O_WRONLY));
	MUST(fcntl(ends[1], F_SETPIPE_SZ, 1 << 20));
	mix(ends[0], ends[1]);
	mix(from, to);
	checkpoint();
	check_mixed(ends[0], ends[1]);
	check_mixed(from, to);
}

/* As many as it takes; each has a page of its own. */
CASE(full_of_packets)
{
	int ends[2];
	MUST(pipe2(ends, O_DIRECT | O_NONBLOCK));
	int count = 0;
	while (write(ends[1], &(char){ (char)count }, 1) == 1)
		count++;
	checkpoint();
	CHECK(write(ends[1], "x", 1) == -1 && errno == EAGAIN, "the full pipe takes a packet");
	for (int i = 0; i < count; i++) {
		char bytes[2];
		CHECK(read(ends[0], bytes, 2) == 1 && bytes[0] == (char)i, "packet %d", i);
	}
	CHECK(read(ends[0], &(char){ 0 }, 1) == -1 && errno == EAGAIN, "more");
}

/* Pages of memory and of a file that were put into pipes without being copied. */
CASE(spliced)
{
	int ends[2], of_file[2];
	char *memory = map_anonymous(2 * PAGE);
	fill(memory, 2 * PAGE, 8);
	MUST(pipe(ends));
	MUST(pipe(of_file));
	struct iovec part = { memory + 100, PAGE };
	CHECK(vmsplice(ends[1], &part, 1, 0) == PAGE, "vmsplice: %s", strerror(errno));
	int file = MUST(open("file", O_RDWR | O_CREAT, 0600));
	CHECK(write(file, memory, 2 * PAGE) == 2 * PAGE, "write: %s", strerror(errno));
	MUST(lseek(file, 0, SEEK_SET));
	CHECK(splice(file, NULL, of_file[1], NULL, 6000, 0) == 6000, "splice: %s", strerror(errno));
	checkpoint();
	char bytes[8192] = "";
	CHECK(read(ends[0], bytes, sizeof(bytes)) == PAGE, "what vmsplice put there");
	CHECK(memcmp(bytes, memory + 100, PAGE) == 0, "its contents");
	CHECK(read(of_file[0], bytes, sizeof(bytes)) == 6000, "what splice put there");
	CHECK(memcmp(bytes, memory, 6000) == 0, "its contents");
}

static int from[2], to[2];

static void tees(void *unused)
{
	(void)unused;
	prepared();
	ssize_t got = tee(from[0], to[1], BLOCK, 0);
	CHECK(got == BLOCK, "tee gives %zd: %s", got, strerror(errno));
}

static void splices(void *unused)
{
	(void)unused;
	prepared();
	ssize_t got = splice(from[0], NULL, to[1], NULL, BLOCK, 0);
	CHECK(got == BLOCK, "splice gives %zd: %s", got, strerror(errno));
}

static void vmsplices(void *unused)
{
	(void)unused;
	prepared();
	static char memory[BLOCK] __attribute__((aligned(BLOCK)));
	fill(memory, BLOCK, 9);
	struct iovec part = { memory, BLOCK };
	ssize_t got = vmsplice(to[1], &part, 1, 0);
	CHECK(got == BLOCK, "vmsplice gives %zd: %s", got, strerror(errno));
	/* The page is in the pipe until it has been read. */
	wait_for_go();
}

static void through(void (*body)(void *))
{
	MUST(pipe(from));
	MUST(pipe(to));
	pid_t child = spawn(body, NULL);
	await_sleep(child);
	checkpoint();
	await_sleep(child);
	put(from[1], BLOCK, 9);
	reap(child);
	one_read(to[0], BLOCK, 9);
}

/* Wait for something to copy, and to move. */
CASE(tee_waits)
{
	through(tees);
}

CASE(splice_waits)
{
	through(splices);
}

/* Waits for room. */
CASE(vmsplice_waits)
{
	char bytes[8192] = "";
	MUST(pipe(to));
	MUST(fcntl(to[1], F_SETPIPE_SZ, 4096));
	put(to[1], 4096, 10);
	pid_t child = spawn(vmsplices, NULL);
	await_sleep(child);
	checkpoint();
	await_sleep(child);
	one_read(to[0], 4096, 10);
	CHECK(read(to[0], bytes, sizeof(bytes)) == BLOCK, "what vmsplice put there");
	CHECK_FILL(bytes, BLOCK, 9);
	finish(child);
}
