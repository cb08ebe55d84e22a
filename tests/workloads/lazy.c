/*
 * Memory that comes when the task runs already. What is looked at after the checkpoint may not be there yet, and no case may need
 * that it is: each runs without crr, too.
 */
#include "workload.h"
#include <sys/uio.h>

enum { AREA = 128, THREADS = 3 };

/* Areas that do not become one with their neighbours, so that each is worth to come late. */
static char *area(uint32_t seed)
{
	size_t length = (AREA + 2) * PAGE;
	char *memory = map_anonymous(length);
	MUST(mprotect(memory, PAGE, PROT_NONE));
	MUST(mprotect(memory + (AREA + 1) * PAGE, PAGE, PROT_NONE));
	fill(memory + PAGE, AREA * PAGE, seed);
	return memory + PAGE;
}

/* Whether so many pages from one on are as fill() made them in an area. */
static void check_pages(const char *memory, size_t first, size_t count, uint32_t seed)
{
	char *expected = malloc(AREA * PAGE);
	fill(expected, AREA * PAGE, seed);
	for (size_t page = first; page < first + count; page++)
		CHECK(memcmp(memory + page * PAGE, expected + page * PAGE, PAGE) == 0, "page %zu of area %u", page, seed);
	free(expected);
}

static void check_zeros(const char *memory, size_t first, size_t count, const char *name)
{
	static const char zeros[PAGE];
	for (size_t page = first; page < first + count; page++)
		CHECK(memcmp(memory + page * PAGE, zeros, PAGE) == 0, "page %zu, %s", page, name);
}

/* A system call reads what has never been touched since. */
CASE(system_calls)
{
	char *sent = area(1), *received = area(2), *looked_at = area(3);
	char bytes[PAGE], there[PAGE];
	int ends[2];
	MUST(pipe(ends));
	checkpoint();
	for (size_t page = 0; page < AREA; page++) {
		MUST(write(ends[1], sent + page * PAGE, PAGE));
		CHECK(read(ends[0], received + page * PAGE, PAGE / 2) == (ssize_t)PAGE / 2, "read: %s", strerror(errno));
		CHECK(read(ends[0], bytes, PAGE / 2) == (ssize_t)PAGE / 2, "read: %s", strerror(errno));
		CHECK(memcmp(bytes, sent + page * PAGE + PAGE / 2, PAGE / 2) == 0, "page %zu sent", page);
		CHECK(memcmp(received + page * PAGE, sent + page * PAGE, PAGE / 2) == 0, "page %zu received", page);
	}
	fill(sent, AREA * PAGE, 2);
	for (size_t page = 0; page < AREA; page++)
		CHECK(memcmp(received + page * PAGE + PAGE / 2, sent + page * PAGE + PAGE / 2, PAGE / 2) == 0,
		      "what was beside what was received in page %zu", page);
	pid_t parent = getpid();
	pid_t child = MUST(fork());
	if (child == 0) {
		struct iovec here = { there, PAGE }, remote = { looked_at + 7 * PAGE, PAGE };
		fill(sent, AREA * PAGE, 3);
		CHECK(process_vm_readv(parent, &here, 1, &remote, 1, 0) == (ssize_t)PAGE, "process_vm_readv: %s", strerror(errno));
		CHECK(memcmp(there, sent + 7 * PAGE, PAGE) == 0, "what a child sees");
		_exit(failed());
	}
	reap(child);
	CHECK_FILL(looked_at, AREA * PAGE, 3);
}

/* What is dropped, moved, replaced, cut and grown is so, and nothing comes to it afterwards. */
CASE(changed)
{
	char *dropped = area(1), *freed = area(2), *moved = area(3), *cut = area(4), *grown = area(5), *closed = area(6);
	char *over = area(7), *shrunk = area(8), *kept = area(9);
	checkpoint();
	MUST(madvise(dropped, AREA / 2 * PAGE, MADV_DONTNEED));
	check_zeros(dropped, 0, AREA / 2, "dropped");
	check_pages(dropped, AREA / 2, AREA / 2, 1);
	MUST(munmap(freed, AREA * PAGE));
	CHECK(MUST((char *)mmap(freed, AREA * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)) == freed,
	      "mapped elsewhere");
	check_zeros(freed, 0, AREA, "mapped anew");
	char *place = map_anonymous(AREA * PAGE);
	char *to = MUST((char *)mremap(moved, AREA * PAGE, AREA * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place));
	check_pages(to, 0, AREA, 3);
	CHECK(MUST((char *)mmap(moved, AREA * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)) == moved,
	      "mapped elsewhere");
	check_zeros(moved, 0, AREA, "where something was moved from");
	MUST(munmap(cut + 30 * PAGE, 40 * PAGE));
	check_pages(cut, 0, 30, 4);
	check_pages(cut, 70, AREA - 70, 4);
	grown = MUST((char *)mremap(grown, AREA * PAGE, 2 * AREA * PAGE, MREMAP_MAYMOVE));
	check_pages(grown, 0, AREA, 5);
	check_zeros(grown, AREA, AREA, "grown");
	MUST(mprotect(closed, AREA / 2 * PAGE, PROT_NONE));
	MUST(mprotect(closed, AREA / 2 * PAGE, PROT_READ));
	CHECK_FILL(closed, AREA * PAGE, 6);
	/* Over an area that has not come either. */
	to = MUST((char *)mremap(kept, 20 * PAGE, 20 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, over + 50 * PAGE));
	check_pages(over, 0, 50, 7);
	check_pages(over, 70, AREA - 70, 7);
	check_pages(over + 50 * PAGE, 0, 20, 9);
	check_pages(kept, 20, AREA - 20, 9);
	shrunk = MUST((char *)mremap(shrunk, AREA * PAGE, 10 * PAGE, 0));
	check_pages(shrunk, 0, 10, 8);
	/* Again, when all has come. */
	check_zeros(dropped, 0, AREA / 2, "dropped");
	check_zeros(freed, 0, AREA, "mapped anew");
	check_zeros(moved, 0, AREA, "where something was moved from");
}

static char *inherited, *hidden;

static void generation(int left)
{
	/* Before anybody else has seen it. */
	MUST(madvise(inherited + left * 8 * PAGE, 4 * PAGE, MADV_DONTNEED));
	memset(inherited + (size_t)(left * 8 + 4) * PAGE, left, PAGE);
	if (left > 0) {
		pid_t child = MUST(fork());
		if (child == 0) {
			generation(left - 1);
			_exit(failed());
		}
		reap(child);
	}
	/* What descendants have changed is theirs. */
	check_pages(inherited, 0, (size_t)left * 8, 1);
	check_zeros(inherited, (size_t)left * 8, 4, "dropped");
	check_pages(inherited, 64, 64, 1);
	check_pages(hidden, left * 10, 10, 2);
}

/* Children have what their parents had when they were born, whatever has come by then. */
CASE(forks)
{
	char *not_inherited = area(3);
	inherited = area(1);
	hidden = area(2);
	MUST(madvise(not_inherited, AREA * PAGE, MADV_DONTFORK));
	checkpoint();
	pid_t other = MUST(fork());
	if (other == 0) {
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	reap(other);
	generation(3);
	CHECK_FILL(not_inherited, AREA * PAGE, 3);
}

/* A child that outlives its parent. */
CASE(orphan)
{
	char *memory = area(1);
	int ends[2];
	char answer = 'x';
	MUST(pipe(ends));
	checkpoint();
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t child = MUST(fork());
	if (child == 0) {
		if (MUST(fork()) == 0) {
			CHECK_FILL(memory, AREA * PAGE, 1);
			answer = failed() ? 'n' : 'y';
			MUST(write(ends[1], &answer, 1));
		}
		_exit(0);
	}
	reap(child);
	CHECK(read(ends[0], &answer, 1) == 1 && answer == 'y', "the orphan says %c", answer);
	MUST(waitpid(-1, NULL, 0));
	CHECK_FILL(memory, AREA * PAGE, 1);
}

static char *common;
static volatile int arrived;

static void *reader(void *argument)
{
	uintptr_t own = (uintptr_t)argument;
	sigset_t go;
	sigemptyset(&go);
	sigaddset(&go, SIGUSR2);
	int signal;
	sigwait(&go, &signal);
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	await(&arrived, THREADS + 1);
	for (size_t page = 0; page < AREA; page++) {
		size_t at = (page + own * 17) % AREA;
		if (at % THREADS == own)
			common[at * PAGE + 8 * (own + 1)] ^= 0x55;
		else if (at % 5 == 0)
			CHECK(((volatile char *)common)[at * PAGE] != 99, "never");
	}
	return NULL;
}

/* Threads that want the same pages at once, while others go away. */
CASE(threads)
{
	pthread_t threads[THREADS];
	char *going = area(9), *expected = malloc(AREA * PAGE);
	common = area(4);
	sigset_t go;
	sigemptyset(&go);
	sigaddset(&go, SIGUSR2);
	MUST0(pthread_sigmask(SIG_BLOCK, &go, NULL));
	for (uintptr_t i = 0; i < THREADS; i++)
		MUST0(pthread_create(&threads[i], NULL, reader, (void *)i));
	checkpoint();
	for (size_t i = 0; i < THREADS; i++)
		MUST0(pthread_kill(threads[i], SIGUSR2));
	arrived++;
	for (size_t page = 0; page < AREA; page += 4) {
		MUST(madvise(going + page * PAGE, 2 * PAGE, MADV_DONTNEED));
		MUST(munmap(going + (page + 2) * PAGE, PAGE));
	}
	for (size_t i = 0; i < THREADS; i++)
		MUST0(pthread_join(threads[i], NULL));
	fill(expected, AREA * PAGE, 4);
	for (size_t page = 0; page < AREA; page++)
		expected[page * PAGE + 8 * (page % THREADS + 1)] ^= 0x55;
	CHECK(memcmp(common, expected, AREA * PAGE) == 0, "what threads have changed");
	for (size_t page = 0; page < AREA; page += 4) {
		check_zeros(going, page, 2, "dropped");
		check_pages(going, page + 3, 1, 9);
	}
}

static void child_of_many(void *argument)
{
	char *shared = argument;
	char *own = area(20);
	shared[3 * PAGE] = 1;
	prepared();
	wait_for_go();
	CHECK_FILL(own, AREA * PAGE, 20);
	CHECK(shared[3 * PAGE] == 1, "its own page");
	shared[3 * PAGE] = 0;
	fill(own, AREA * PAGE, 10);
	CHECK(memcmp(shared + PAGE, own + PAGE, 2 * PAGE) == 0, "what it has in common");
	CHECK(memcmp(shared + 4 * PAGE, own + 4 * PAGE, (AREA - 4) * PAGE) == 0, "what it has in common");
}

/* Tasks that share pages and have others of their own. */
CASE(family)
{
	char *shared = area(10);
	pid_t children[3];
	for (size_t i = 0; i < LENGTH(children); i++)
		children[i] = spawn(child_of_many, shared);
	char *own = area(11);
	checkpoint();
	CHECK_FILL(own, AREA * PAGE, 11);
	for (size_t i = 0; i < LENGTH(children); i++)
		finish(children[i]);
	CHECK_FILL(shared, AREA * PAGE, 10);
}

/* Large enough that a restore is seen to be faster without it. */
CASE(large)
{
	size_t length = 128 * MIB;
	char *memory = map_anonymous(length);
	fill(memory, length, 5);
	checkpoint();
	CHECK_FILL(memory, length, 5);
}

/* On SIGUSR2, a child that does nothing until it is told to, by SIGUSR1; then both look at their memory. */
static char *memory_of_both;
static pid_t waiting;

static void look_at_last(void *unused)
{
	(void)unused;
	sigset_t waiting_for;
	sigprocmask(SIG_SETMASK, NULL, &waiting_for);
	sigdelset(&waiting_for, SIGUSR1);
	prepared();
	while (!finished)
		sigsuspend(&waiting_for);
	CHECK_FILL(memory_of_both, AREA * PAGE, 6);
}

static void have_child(int number)
{
	(void)number;
	waiting = spawn(look_at_last, NULL);
	MUST(write(STDOUT_FILENO, "CHILD\n", 6));
}

CASE(child_that_waits)
{
	sigset_t all;
	memory_of_both = area(6);
	sigfillset(&all);
	hear_questions();
	answer_questions(&all, have_child);
	CHECK_FILL(memory_of_both, AREA * PAGE, 6);
	if (waiting != 0)
		finish(waiting);
}
