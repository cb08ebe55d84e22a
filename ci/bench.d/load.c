/* load BEAT KIND N [OTHER]: something to checkpoint, with a heart.
 *
 * Its first thread writes the time to the mapped file BEAT every 100 us and keeps the longest gap it saw: how
 * long it was frozen, measured in the same way for every tool. Asked to by the file, it checks that all it
 * has is still right.
 *
 *   memory N   N MiB of private memory, every page with other contents
 *   sparse N   the same, 64 KiB at a time, strewn over 100 GiB
 *   eight N    the same in eight tasks, an eighth in each
 *   threads N  N threads, the first included
 *   tasks N    N tasks; every second one runs OTHER, this program built for the other ABI
 *   fds N      N descriptors, half of them files and half of them pipes
 *   ten-tables N  N descriptors as above, in ten tasks that have their own
 *   vmas N     N areas of one page each
 *   connections N  N TCP connections within itself, each with something on its way
 *   served N   N TCP connections to a task of its own that is no child of it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The layout is the same in both ABIs; bench.py knows it too. */
struct beat {
	_Atomic uint64_t ready, beats, longest_ns, reset, verify, verdict;
};
enum { RIGHT = 1, WRONG = 2 };

static struct beat *beat;
static long count;
static unsigned char *memory;
static pid_t *children;
static int *fds;
static atomic_long threads_alive;

static void need(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
	return x ^ (x >> 29);
}

enum { page = 4096, words = page / 8 };

/* Of eight words, how many are small numbers. */
static int small_words;

/* Fills or checks a page whose contents depend on its number alone. */
static int page_is(uint64_t *at, uint64_t number, int fill)
{
	uint64_t value = mix(number + 1);
	for (int i = 0; i < words; i++, value += 0x632be59bd9b4e019u) {
		uint64_t word = i % 8 < small_words ? (uint64_t)i % 3 : value;
		if (fill)
			at[i] = word;
		else if (at[i] != word)
			return 0;
	}
	return 1;
}

static int pages_are(long pages, int fill)
{
	for (long i = 0; i < pages; i++)
		if (!page_is((uint64_t *)(memory + i * page), (uint64_t)i, fill))
			return 0;
	return 1;
}

static void map(size_t size)
{
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap");
}

static void make_memory(void)
{
	map((size_t)count << 20);
	pages_are(count << 8, 1);
}
static int check_memory(void) { return pages_are(count << 8, 0); }

/* What can be packed to a third. */
static void make_packable(void)
{
	small_words = 5;
	make_memory();
}

/* A chunk of pages, and where it lies in a mapping of 100 GiB. */
enum { chunk_pages = 16 };
static const uint64_t sparse_size = 100ull << 30;

static int sparse_is(int fill)
{
	long chunks = (count << 8) / chunk_pages;
	uint64_t stride = sparse_size / (uint64_t)chunks / page * page;
	for (long i = 0; i < chunks; i++)
		for (long k = 0; k < chunk_pages; k++) {
			uint64_t *at = (uint64_t *)(memory + (uint64_t)i * stride + (uint64_t)k * page);
			if (!page_is(at, (uint64_t)(i * chunk_pages + k), fill))
				return 0;
		}
	return 1;
}
static void make_sparse(void)
{
	need(sizeof(size_t) == 8, "100 GiB in 32 bits");
	memory = mmap(NULL, (size_t)sparse_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
	              -1, 0);
	need(memory != MAP_FAILED, "mmap");
	sparse_is(1);
}
static int check_sparse(void) { return sparse_is(0); }

static void make_vmas(void)
{
	map((size_t)count * page);
	pages_are(count, 1);
	/* Neighbours with the same protection would be one area. */
	for (long i = 1; i < count; i += 2)
		need(mprotect(memory + i * page, page, PROT_READ) == 0, "mprotect");
}
static int check_vmas(void) { return pages_are(count, 0); }

static void *wait_for_end(void *unused)
{
	threads_alive++;
	for (;;)
		pause();
	return unused;
}
static void make_threads(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	for (long i = 1; i < count; i++)
		need(pthread_create(&thread, &attr, wait_for_end, NULL) == 0, "pthread_create");
	while (threads_alive < count - 1)
		usleep(1000);
}
static int check_threads(void)
{
	FILE *status = fopen("/proc/self/status", "re");
	char line[256];
	long threads = 0;
	while (status && fgets(line, sizeof line, status))
		sscanf(line, "Threads: %ld", &threads);
	if (status)
		fclose(status);
	return threads == count;
}

static void make_fds(void)
{
	char name[64];
	int ends[2];
	fds = calloc((size_t)count, sizeof *fds);
	for (long i = 0; i + 3 < count; i += 4) {
		for (int k = 0; k < 2; k++) {
			snprintf(name, sizeof name, "file-%ld", i + k);
			fds[i + k] = open(name, O_RDWR | O_CREAT, 0600);
			need(fds[i + k] >= 0 && write(fds[i + k], name, 5 + (size_t)k) > 0, name);
		}
		need(pipe(ends) == 0 && write(ends[1], &i, sizeof i) == sizeof i, "pipe");
		fds[i + 2] = ends[0];
		fds[i + 3] = ends[1];
	}
}
static int check_fds(void)
{
	for (long i = 0; i + 3 < count; i += 4) {
		long in_pipe = -1;
		if (lseek(fds[i], 0, SEEK_CUR) != 5 || lseek(fds[i + 1], 0, SEEK_CUR) != 6)
			return 0;
		if (read(fds[i + 2], &in_pipe, sizeof in_pipe) != sizeof in_pipe || in_pipe != i)
			return 0;
		if (write(fds[i + 3], &i, sizeof i) != sizeof i)
			return 0;
	}
	return 1;
}

/* Several tasks with a part each: a child checks its own whenever it gets a byte, and answers with the verdict. */
enum { most_parts = 16 };
static long parts;
static int ask[most_parts][2], answer[2];

static void make_family(long size, void (*make)(void), int (*check)(void))
{
	char byte = 0;
	parts = size;
	count /= parts;
	need(pipe(answer) == 0, "pipe");
	for (long i = 1; i < parts; i++) {
		need(pipe(ask[i]) == 0, "pipe");
		pid_t child = fork();
		need(child >= 0, "fork");
		if (child == 0) {
			make();
			need(write(answer[1], &byte, 1) == 1, "answer");
			while (read(ask[i][0], &byte, 1) == 1) {
				byte = (char)check();
				need(write(answer[1], &byte, 1) == 1, "answer");
			}
			_exit(1);
		}
	}
	make();
	for (long i = 1; i < parts; i++)
		need(read(answer[0], &byte, 1) == 1, "a child does not start");
}
static int check_family(int (*check)(void))
{
	char byte = 0;
	int right = check();
	for (long i = 1; i < parts; i++)
		right &= write(ask[i][1], &byte, 1) == 1 && read(answer[0], &byte, 1) == 1 && byte == 1;
	return right;
}

static void make_eight(void) { make_family(8, make_memory, check_memory); }
static int check_eight(void) { return check_family(check_memory); }

static void make_own_fds(void)
{
	char name[32];
	snprintf(name, sizeof name, "fds-of-%d", getpid());
	need(mkdir(name, 0700) == 0 && chdir(name) == 0, name);
	make_fds();
}
static void make_ten_tables(void) { make_family(10, make_own_fds, check_fds); }
static int check_ten_tables(void) { return check_family(check_fds); }

/* A socket that listens, where, and descriptors for as many connections as can be had. */
static int listen_for_many(struct sockaddr_in *address)
{
	*address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t length = sizeof *address;
	struct rlimit limit;
	need(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
	limit.rlim_cur = limit.rlim_max;
	need(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	need(bind(listener, (void *)address, length) == 0 && listen(listener, 4096) == 0, "listen");
	need(getsockname(listener, (void *)address, &length) == 0, "getsockname");
	return listener;
}

static void make_connections(void)
{
	struct sockaddr_in address;
	socklen_t length = sizeof address;
	int listener = listen_for_many(&address);
	fds = calloc((size_t)count * 2, sizeof *fds);
	for (long i = 0; i < count; i++) {
		int *ends = fds + 2 * i;
		ends[0] = socket(AF_INET, SOCK_STREAM, 0);
		need(connect(ends[0], (void *)&address, length) == 0, "connect");
		ends[1] = accept(listener, NULL, NULL);
		need(ends[1] >= 0 && write(ends[i % 2], &i, sizeof i) == sizeof i, "a connection");
	}
}
static int check_connections(void)
{
	for (long i = 0; i < count; i++) {
		int *ends = fds + 2 * i;
		long heard = -1;
		if (read(ends[1 - i % 2], &heard, sizeof heard) != sizeof heard || heard != i)
			return 0;
		if (write(ends[i % 2], &i, sizeof i) != sizeof i)
			return 0;
	}
	return 1;
}

/* Sends back what comes, over as many connections as there are to be. */
static void echo(const struct sockaddr_in *address)
{
	struct epoll_event event = {.events = EPOLLIN};
	int epoll = epoll_create1(0);
	char bytes[64];
	for (long i = 0; i < count; i++) {
		event.data.fd = socket(AF_INET, SOCK_STREAM, 0);
		need(connect(event.data.fd, (const void *)address, sizeof *address) == 0, "connect");
		need(epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event) == 0, "epoll_ctl");
	}
	for (;;) {
		need(epoll_wait(epoll, &event, 1, -1) == 1, "epoll_wait");
		ssize_t got = read(event.data.fd, bytes, sizeof bytes);
		need(got > 0 && write(event.data.fd, bytes, (size_t)got) == got, "the server");
	}
}
static void make_served(void)
{
	struct sockaddr_in address;
	int listener = listen_for_many(&address), status;
	pid_t child = fork();
	if (child == 0) {
		close(listener);
		setsid();
		if (fork() == 0)
			echo(&address);
		_exit(0);
	}
	need(child > 0 && waitpid(child, &status, 0) == child, "fork");
	fds = calloc((size_t)count, sizeof *fds);
	for (long i = 0; i < count; i++) {
		fds[i] = accept(listener, NULL, NULL);
		need(fds[i] >= 0, "accept");
	}
}
static int check_served(void)
{
	for (long i = 0; i < count; i++)
		if (write(fds[i], &i, sizeof i) != sizeof i)
			return 0;
	for (long i = 0; i < count; i++) {
		long heard = -1;
		if (read(fds[i], &heard, sizeof heard) != sizeof heard || heard != i)
			return 0;
	}
	return 1;
}

static const char *other;

static void make_tasks(void)
{
	int ends[2];
	char byte;
	need(pipe(ends) == 0, "pipe");
	children = calloc((size_t)count, sizeof *children);
	for (long i = 1; i < count; i++) {
		children[i] = fork();
		need(children[i] >= 0, "fork");
		if (children[i] == 0) {
			dup2(ends[1], 1);
			close(ends[0]);
			close(ends[1]);
			execl(i % 2 ? other : "/proc/self/exe", "load", "-", "child", "0", NULL);
			_exit(127);
		}
	}
	close(ends[1]);
	for (long i = 1; i < count; i++)
		need(read(ends[0], &byte, 1) == 1, "a child does not start");
	close(ends[0]);
}
static int check_tasks(void)
{
	for (long i = 1; i < count; i++)
		if (kill(children[i], 0))
			return 0;
	return 1;
}

/* Children that have all the memory of their parent in common. */
static void make_prefork(void)
{
	enum { mib = 200 };
	map((size_t)mib << 20);
	pages_are(mib << 8, 1);
	children = calloc((size_t)count, sizeof *children);
	for (long i = 1; i < count; i++) {
		children[i] = fork();
		need(children[i] >= 0, "fork");
		if (children[i] == 0)
			for (;;)
				pause();
	}
}

static const struct kind {
	const char *name;
	void (*make)(void);
	int (*check)(void);
} kinds[] = {
	{"memory", make_memory, check_memory}, {"sparse", make_sparse, check_sparse},
	{"packable", make_packable, check_memory},
	{"eight", make_eight, check_eight},    {"vmas", make_vmas, check_vmas},
	{"threads", make_threads, check_threads}, {"fds", make_fds, check_fds},
	{"ten-tables", make_ten_tables, check_ten_tables},
	{"tasks", make_tasks, check_tasks},   {"connections", make_connections, check_connections},
	{"served", make_served, check_served},
	{"prefork", make_prefork, check_tasks},
};

static void live(const struct kind *kind)
{
	const struct timespec pause_time = {0, 100000};
	uint64_t last = now();
	prctl(PR_SET_TIMERSLACK, 1);
	for (;;) {
		uint64_t at = now();
		if (beat->reset) {
			beat->longest_ns = 0;
			beat->reset = 0;
		} else if (at - last > beat->longest_ns) {
			beat->longest_ns = at - last;
		}
		last = at;
		beat->beats++;
		if (beat->verify) {
			beat->verify = 0;
			beat->verdict = kind->check() ? RIGHT : WRONG;
			last = now();
		}
		nanosleep(&pause_time, NULL);
	}
}

int main(int argc, char **argv)
{
	need(argc >= 4, "usage: load BEAT KIND N [OTHER]");
	if (strcmp(argv[2], "child") == 0) {
		need(write(1, "x", 1) == 1, "say ready");
		close(1);
		for (;;)
			pause();
	}
	count = atol(argv[3]);
	other = argc > 4 ? argv[4] : NULL;
	int fd = open(argv[1], O_RDWR);
	need(fd >= 0, argv[1]);
	beat = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	need(beat != MAP_FAILED, "mmap");
	close(fd);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (strcmp(argv[2], kinds[i].name) == 0) {
			kinds[i].make();
			beat->ready = 1;
			live(&kinds[i]);
		}
	need(0, "unknown kind");
}
