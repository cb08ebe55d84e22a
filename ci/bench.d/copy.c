/* copy FILE MIB: how fast this machine copies that much memory into a new file, and that file into new memory, with a
 * thread per processor. Prints both times in ms. It is what a dump and a restore cannot be faster than, unless they
 * copy less. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { step = 1 << 20, most_threads = 64 };

static size_t size;
static long threads;
static unsigned char *memory;
static int fd;

static void need(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "copy: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void *save(void *number)
{
	for (size_t at = (size_t)number * step; at < size; at += (size_t)threads * step)
		need(pwrite(fd, memory + at, step, (off_t)at) == step, "write");
	return NULL;
}

static void *load(void *number)
{
	for (size_t at = (size_t)number * step; at < size; at += (size_t)threads * step)
		need(pread(fd, memory + at, step, (off_t)at) == step, "read");
	return NULL;
}

static double all(void *(*work)(void *))
{
	pthread_t others[most_threads];
	double start = now();
	for (long i = 1; i < threads; i++)
		need(pthread_create(&others[i], NULL, work, (void *)i) == 0, "pthread_create");
	work((void *)0);
	for (long i = 1; i < threads; i++)
		pthread_join(others[i], NULL);
	return now() - start;
}

static void map(void)
{
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap");
}

int main(int argc, char **argv)
{
	need(argc == 3, "usage: copy FILE MIB");
	size = (size_t)atol(argv[2]) << 20;
	threads = sysconf(_SC_NPROCESSORS_ONLN);
	if (threads > most_threads)
		threads = most_threads;
	fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	need(fd >= 0, argv[1]);
	map();
	memset(memory, 1, size);
	double saved = all(save);
	munmap(memory, size);
	map();
	double loaded = all(load);
	unlink(argv[1]);
	printf("%.3f %.3f\n", saved, loaded);
}
