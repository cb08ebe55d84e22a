/*
 * Memory that changes between the rounds of an incremental dump, in every way that memory changes. On SIGUSR2 the
 * next step is done and told; on SIGUSR1 everything is looked at.
 */
#include "workload.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

enum { AREA = 64, STEPS = 2 };

/* Calls step(n) for each SIGUSR2 until SIGUSR1 comes. */
static void rounds(void (*step)(int))
{
	sigset_t all;
	sigfillset(&all);
	hear_questions();
	answer_questions(&all, step);
}

/* What an area of pages is to hold: a seed for each page, 0 for zeros. */
struct pages {
	char *memory;
	uint32_t seed[AREA];
};

static void put(struct pages *area, size_t page, uint32_t seed)
{
	fill(area->memory + page * PAGE, PAGE, seed);
	area->seed[page] = seed;
}

static void put_all(struct pages *area, uint32_t seed)
{
	for (size_t page = 0; page < AREA; page++)
		put(area, page, seed + page);
}

static void look(const struct pages *area, const char *name)
{
	static const char zeros[PAGE];
	for (size_t page = 0; page < AREA; page++) {
		const char *at = area->memory + page * PAGE;
		bool right = area->seed[page] == 0 ? memcmp(at, zeros, PAGE) == 0 :
						     fill_differs(at, PAGE, area->seed[page]) == -1;
		CHECK(right, "page %zu of %s", page, name);
	}
}

static struct pages kept, written, received, dropped, moved, fresh, replaced, hidden, of_file, shared, heap, huge, later;
static pid_t child;

static char *pages(int protection, int flags, int fd)
{
	return MUST((char *)mmap(NULL, AREA * PAGE, protection, flags, fd, 0));
}

static void forked(void *unused)
{
	(void)unused;
	sigset_t waiting;
	put(&kept, 7, 7777);
	sigprocmask(SIG_SETMASK, NULL, &waiting);
	sigdelset(&waiting, SIGUSR1);
	prepared();
	while (!finished)
		sigsuspend(&waiting);
	look(&kept, "kept, in a child");
	look(&written, "written, in a child");
}

/* The kernel writes, not the program. */
static void receive(size_t page, uint32_t seed)
{
	char bytes[PAGE];
	int ends[2];
	MUST(pipe(ends));
	fill(bytes, PAGE, seed);
	MUST(write(ends[1], bytes, PAGE));
	CHECK(read(ends[0], received.memory + page * PAGE, PAGE) == (ssize_t)PAGE, "read: %s", strerror(errno));
	received.seed[page] = seed;
	close(ends[0]);
	close(ends[1]);
}

static void step(int number)
{
	uint32_t seed = 1000 * (uint32_t)number;
	for (size_t page = (size_t)number; page < AREA; page += 3)
		put(&written, page, seed + page);
	receive(5 + (size_t)number, seed);
	put(&shared, 3 + (size_t)number, seed);
	put(&huge, 11, seed);
	MUST(mprotect(hidden.memory, AREA * PAGE, PROT_READ | PROT_WRITE));
	put(&hidden, (size_t)number, seed);
	MUST(mprotect(hidden.memory, AREA * PAGE, PROT_NONE));
	if (number == 1) {
		MUST(madvise(dropped.memory, 32 * PAGE, MADV_DONTNEED));
		memset(dropped.seed, 0, 32 * sizeof(dropped.seed[0]));
		/* One of these is the page of zeros now. */
		CHECK(((volatile char *)dropped.memory)[3 * PAGE] == 0, "dropped");
		put(&dropped, 4, seed);
		char *place = pages(PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		char *before = moved.memory;
		moved.memory = MUST((char *)mremap(before, AREA * PAGE, AREA * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place));
		fresh.memory = MUST((char *)mmap(before, AREA * PAGE, PROT_READ | PROT_WRITE,
						 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		put(&fresh, 0, seed);
		MUST(munmap(replaced.memory, AREA * PAGE));
		MUST((char *)mmap(replaced.memory, AREA * PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		memset(replaced.seed, 0, sizeof(replaced.seed));
		put(&replaced, 9, seed);
		put(&of_file, 2, seed);
		heap.memory = MUST((char *)sbrk(AREA * PAGE));
		put_all(&heap, seed);
		child = spawn(forked, NULL);
	} else {
		put(&dropped, 40, seed);
		put(&moved, 1, seed);
		put(&fresh, 1, seed);
		put(&replaced, 10, seed);
		/* What the file has comes back. */
		MUST(madvise(of_file.memory, 2 * PAGE, MADV_DONTNEED));
		of_file.seed[0] = 0;
		of_file.seed[1] = 0;
		put(&heap, 30, seed);
		later.memory = map_anonymous(AREA * PAGE);
		put_all(&later, seed);
	}
}

static void tell(int number)
{
	char line[16];
	int length = snprintf(line, sizeof(line), "STEP %d\n", number);
	MUST(write(STDOUT_FILENO, line, (size_t)length));
}

static void step_and_tell(int number)
{
	step(number);
	tell(number);
}

CASE(steps)
{
	const int both = PROT_READ | PROT_WRITE;
	struct pages *anonymous[] = { &kept, &written, &received, &dropped, &moved, &replaced, &hidden };
	for (size_t i = 0; i < LENGTH(anonymous); i++) {
		anonymous[i]->memory = pages(both, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		put_all(anonymous[i], 100 * (uint32_t)(i + 1));
	}
	MUST(mprotect(hidden.memory, AREA * PAGE, PROT_NONE));
	int fd = MUST(open("zeros", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, AREA * PAGE));
	of_file.memory = pages(both, MAP_PRIVATE, fd);
	close(fd);
	put(&of_file, 0, 42);
	put(&of_file, 1, 43);
	shared.memory = pages(both, MAP_SHARED | MAP_ANONYMOUS, -1);
	put_all(&shared, 50);
	char *aligned = map_anonymous(6 * MIB);
	aligned += -(uintptr_t)aligned & (2 * MIB - 1);
	madvise(aligned, 4 * MIB, MADV_HUGEPAGE);
	huge.memory = aligned;
	put_all(&huge, 60);
	/* Deleted, with something in it. */
	int deleted = MUST(open("deleted", O_RDWR | O_CREAT, 0600));
	MUST(write(deleted, "still here", 10));
	MUST(unlink("deleted"));
	rounds(step_and_tell);
	char text[10];
	CHECK(pread(deleted, text, 10, 0) == 10 && memcmp(text, "still here", 10) == 0, "the deleted file");
	MUST(mprotect(hidden.memory, AREA * PAGE, PROT_READ));
	static const struct {
		const struct pages *area;
		const char *name;
	} all[] = {
		{ &kept, "kept" },	   { &written, "written" },   { &received, "received" }, { &dropped, "dropped" },
		{ &moved, "moved" },	   { &fresh, "fresh" },	      { &replaced, "replaced" }, { &hidden, "hidden" },
		{ &of_file, "of a file" }, { &shared, "shared" },     { &heap, "heap" },	 { &huge, "huge" },
		{ &later, "later" },
	};
	for (size_t i = 0; i < LENGTH(all); i++)
		if (all[i].area->memory != NULL)
			look(all[i].area, all[i].name);
	if (child != 0)
		finish(child);
}

/*
 * What soft-dirty bits do not tell of: a page table that is moved as it is, to where other pages were.
 */
enum { TABLE = 2 * MIB };

static char *arriving, *arrived;

/* A place at a multiple of TABLE, with nothing in it. */
static char *room_for_tables(size_t count)
{
	char *room = MUST((char *)mmap(NULL, (count + 1) * TABLE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	return room + (-(uintptr_t)room & (TABLE - 1));
}

static void move_table(int number)
{
	if (number == 1)
		MUST(mremap(arriving, TABLE, TABLE, MREMAP_MAYMOVE | MREMAP_FIXED, arrived));
	tell(number);
}

CASE(moved)
{
	arriving = room_for_tables(3);
	arrived = arriving + 2 * TABLE;
	char *tables[] = { arriving, arrived };
	for (size_t i = 0; i < LENGTH(tables); i++) {
		MUST(mprotect(tables[i], TABLE, PROT_READ | PROT_WRITE));
		madvise(tables[i], TABLE, MADV_NOHUGEPAGE);
		fill(tables[i], TABLE, 10 + (uint32_t)i);
	}
	rounds(move_table);
	CHECK_FILL(arrived, TABLE, 10);
}

/*
 * Another: a page that may be written since its area is a new one in part, and is not any more when that is joined with an old one.
 */
static char *beside;
static struct pages joining, old;

static void join(int number)
{
	const int both = PROT_READ | PROT_WRITE;
	if (number == 2) {
		char *page = MUST((char *)mmap(beside, PAGE, both, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		page[0] = 1;
		MUST(mprotect(joining.memory, AREA * PAGE, PROT_NONE));
		MUST(mprotect(joining.memory, AREA * PAGE, both));
		put(&joining, 5, 505);
		MUST(mprotect(old.memory, AREA * PAGE, both));
	}
	tell(number);
}

CASE(joined)
{
	beside = room_for_tables(1);
	joining.memory = beside + PAGE;
	old.memory = joining.memory + AREA * PAGE;
	MUST(mprotect(joining.memory, 2 * AREA * PAGE, PROT_READ | PROT_WRITE));
	put_all(&joining, 20);
	put_all(&old, 30);
	MUST(mprotect(old.memory, AREA * PAGE, PROT_READ));
	rounds(join);
	look(&joining, "joining");
	look(&old, "old");
}

/* And a program that uses them itself, as garbage collectors do. */
static void write_and_clear(int number)
{
	put(&written, 7, 1000 * (uint32_t)number);
	int fd = MUST(open("/proc/self/clear_refs", O_WRONLY));
	MUST(write(fd, "4", 1));
	close(fd);
	tell(number);
}

CASE(cleared)
{
	written.memory = map_anonymous(AREA * PAGE);
	put_all(&written, 1);
	rounds(write_and_clear);
	look(&written, "written");
}

/*
 * Rings of io_uring in memory of the program's own (IORING_SETUP_NO_MMAP): they write to pages without any trace in the page tables, here to a buffer that
 * one was given, and to their own memory. The second one has no descriptor (IORING_SETUP_REGISTERED_FD_ONLY), only an index.
 */
static char *ring_memory;
static uint32_t ring_parameters[30];
static int ring, arriving_pipe[2];

static void make_ring(uint32_t flags)
{
	ring_memory = map_anonymous(2 * PAGE);
	uint64_t entries = (uintptr_t)ring_memory, rings = entries + PAGE;
	memset(ring_parameters, 0, sizeof(ring_parameters));
	ring_parameters[2] = 1 << 14 | flags;
	memcpy(&ring_parameters[18], &entries, sizeof(entries));
	memcpy(&ring_parameters[28], &rings, sizeof(rings));
	ring = (int)MUST(syscall(425, 4, ring_parameters));
}

/* Submits the only entry of the ring, and returns its result. */
static int32_t submit(const uint64_t entry[8], uint32_t flags)
{
	char *rings = ring_memory + PAGE;
	uint32_t *tail = (uint32_t *)(void *)(rings + ring_parameters[11]);
	memcpy(ring_memory, entry, 64);
	*(uint32_t *)(void *)(rings + ring_parameters[16]) = 0;
	__atomic_store_n(tail, 1, __ATOMIC_RELEASE);
	/* IORING_ENTER_GETEVENTS. */
	MUST(syscall(426, ring, 1, 1, 1 | flags, 0, 0));
	return *(int32_t *)(void *)(rings + ring_parameters[25] + 8);
}

static bool has_pinned(void)
{
	char text[4096];
	int fd = MUST(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
	ssize_t length = MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	text[length] = 0;
	return strstr(text, "VmPin:\t       0 kB") == NULL;
}

static void use_ring(int number)
{
	if (number == 1) {
		/* IORING_OP_READ_FIXED. */
		uint64_t reads[8] = { 4 | (uint64_t)arriving_pipe[0] << 32, 0, (uintptr_t)received.memory, 2 * PAGE };
		CHECK(submit(reads, 0) == 2 * PAGE, "what was read");
		close(ring);
		while (has_pinned())
			sched_yield();
		make_ring(1 << 15);
	} else {
		uint64_t nothing[8] = { [4] = 4321 };
		CHECK(submit(nothing, 16) == 0, "a ring that does nothing");
		/* IORING_UNREGISTER_RING_FDS, by index: struct io_uring_rsrc_update. */
		uint64_t first[2] = { (uint64_t)ring };
		MUST(syscall(427, ring, 1u << 31 | 21, first, 1));
	}
	tell(number);
}

CASE(rings)
{
	char text[2 * PAGE];
	received.memory = map_anonymous(AREA * PAGE);
	put_all(&received, 1);
	for (size_t page = 0; page < 2; page++) {
		received.seed[page] = 900 + (uint32_t)page;
		fill(text + page * PAGE, PAGE, received.seed[page]);
	}
	MUST(pipe(arriving_pipe));
	MUST(write(arriving_pipe[1], text, sizeof(text)));
	make_ring(0);
	struct iovec buffer = { received.memory, 4 * PAGE };
	/* IORING_REGISTER_BUFFERS. */
	MUST(syscall(427, ring, 0, &buffer, 1));
	rounds(use_ring);
	look(&received, "received");
	/* The user data of the one entry that has ended. */
	CHECK(*(uint64_t *)(void *)(ring_memory + PAGE + ring_parameters[25]) == 4321, "what the ring has told");
}

/*
 * A program that never stops writing: threads count in pages of their own, in order, while most of its memory stays as
 * it is. What a thread has written last is known to itself.
 */
enum { WRITERS = 2, HOT = 64, COLD = 96 };

struct hot {
	volatile uint32_t round[HOT][PAGE / sizeof(uint32_t)];
};

static struct hot *hot[WRITERS];
static volatile bool stop;
static uint32_t reached[WRITERS];

static void *count(void *argument)
{
	uintptr_t own = (uintptr_t)argument;
	for (uint32_t round = 1; !stop; round++) {
		for (size_t page = 0; page < HOT; page++) {
			uint32_t before = hot[own]->round[page][round % 1024];
			uint32_t expected = round < 1024 ? 0 : round - 1024;
			CHECK(before == expected, "page %zu has %u in round %u", page, before, round);
			hot[own]->round[page][round % 1024] = round;
		}
		reached[own] = round;
		if (failed())
			break;
	}
	return NULL;
}

CASE(writer)
{
	pthread_t threads[WRITERS];
	sigset_t blocked;
	char *cold = map_anonymous(COLD * MIB);
	fill(cold, COLD * MIB, 77);
	sigfillset(&blocked);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	for (uintptr_t i = 0; i < WRITERS; i++) {
		hot[i] = (struct hot *)map_anonymous(sizeof(struct hot));
		MUST0(pthread_create(&threads[i], NULL, count, (void *)i));
	}
	rounds(tell);
	stop = true;
	for (size_t i = 0; i < WRITERS; i++) {
		MUST0(pthread_join(threads[i], NULL));
		CHECK(reached[i] > 0, "writer %zu did nothing", i);
	}
	CHECK_FILL(cold, COLD * MIB, 77);
}

/*
 * A task outside of the tree that has the same memory, and writes each page once: when the tree is seen to stand still for a round, which
 * it does not itself.
 */
enum { COMMON = 16384 };

static char *common;
static pid_t tree;
static volatile pid_t outsider;
static volatile bool round_is_over;

static bool is_traced(pid_t pid)
{
	char name[32], text[2048];
	snprintf(name, sizeof(name), "/proc/%d/status", pid);
	int fd = MUST(open(name, O_RDONLY));
	ssize_t length = MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	text[length] = '\0';
	const char *tracer = strstr(text, "TracerPid:\t");
	return tracer != NULL && tracer[11] != '0';
}

static int write_from_outside(void *unused)
{
	(void)unused;
	/* The end of a group and of a session that others are in would be seen. */
	setsid();
	/* Where the processors are busy, it can miss the moment: then there is nothing to be tried. */
	while (!is_traced(tree) && !round_is_over)
		;
	for (size_t page = 0; page < COMMON; page++) {
		fill(common + page * PAGE, PAGE, 100000 + (uint32_t)page);
		for (volatile int i = 0; i < 2000; i++)
			;
	}
	return 0;
}

static void share(int number)
{
	static char stack[64 * PAGE] __attribute__((aligned(16)));
	if (number == 1) {
		tree = getpid();
		MUST(clone(write_from_outside, stack + sizeof(stack),
			   CLONE_VM | CLONE_PARENT | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID, NULL, &outsider, NULL, &outsider));
	} else {
		round_is_over = true;
		while (outsider != 0)
			sched_yield();
	}
	tell(number);
}

CASE(outsider)
{
	common = map_anonymous(COMMON * PAGE);
	madvise(common, COMMON * PAGE, MADV_NOHUGEPAGE);
	for (size_t page = 0; page < COMMON; page++)
		fill(common + page * PAGE, PAGE, 1 + (uint32_t)page);
	rounds(share);
	for (size_t page = 0; page < COMMON; page++)
		CHECK(fill_differs(common + page * PAGE, PAGE, 100000 + (uint32_t)page) == -1, "page %zu", page);
}

/*
 * An area that is mapped anew between rounds, and whose pages are protected by a userfaultfd of the program's own, which somebody else then has.
 */
enum { WATCHER = 60 };

static void watch(int number)
{
	if (number == 1) {
		MUST(munmap(replaced.memory, AREA * PAGE));
		MUST((char *)mmap(replaced.memory, AREA * PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		put_all(&replaced, 900);
		/* UFFD_USER_MODE_ONLY; UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_ASYNC. */
		int fd = MUST((int)syscall(SYS_userfaultfd, O_CLOEXEC | 1));
		struct uffdio_api api = { .api = UFFD_API, .features = 1 | 1 << 13 | 1 << 15 };
		MUST(ioctl(fd, UFFDIO_API, &api));
		struct uffdio_range range = { .start = (uintptr_t)replaced.memory, .len = AREA * PAGE };
		struct uffdio_register watched = { .range = range, .mode = UFFDIO_REGISTER_MODE_WP };
		MUST(ioctl(fd, UFFDIO_REGISTER, &watched));
		struct uffdio_writeprotect protection = { .range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
		MUST(ioctl(fd, UFFDIO_WRITEPROTECT, &protection));
		MUST(dup2(fd, WATCHER));
		close(fd);
	} else {
		close(WATCHER);
	}
	tell(number);
}

CASE(watched)
{
	struct pages *all[] = { &kept, &replaced };
	for (size_t i = 0; i < LENGTH(all); i++) {
		/* Not joined with the other one. */
		map_anonymous(PAGE);
		all[i]->memory = pages(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		put_all(all[i], 100 * (uint32_t)(i + 1));
	}
	rounds(watch);
	look(&kept, "kept");
	look(&replaced, "replaced");
}

/*
 * A task whose leader has ended, so that it is reached by another thread; that one ends while its memory is copied, and another task gets its id, with
 * other contents at the same addresses.
 */
enum { LEFT = 16 * MIB };

static char *left;
static pid_t deputy, stranger;
static int to_deputy[2], from_stranger[2];

static void *be_deputy(void *unused)
{
	char byte;
	deputy = thread_id();
	MUST(read(to_deputy[0], &byte, 1));
	return unused;
}

static void take_its_place(int number)
{
	char byte = 0;
	if (number == 1) {
		MUST(write(to_deputy[1], &byte, 1));
		while (syscall(SYS_tgkill, getpid(), deputy, 0) == 0)
			sched_yield();
		/* struct clone_args of linux/sched.h. */
		struct {
			uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size;
		} args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&deputy, .set_tid_size = 1 };
		/* The id is free a moment after the thread is gone. */
		do
			stranger = (pid_t)syscall(435, &args, sizeof(args));
		while (stranger == -1 && errno == EEXIST);
		MUST(stranger);
		if (stranger == 0) {
			memset(left, 1, LEFT);
			MUST(write(from_stranger[1], &byte, 1));
			for (;;)
				pause();
		}
		MUST(read(from_stranger[0], &byte, 1));
	} else {
		MUST(kill(stranger, SIGKILL));
		MUST(waitpid(stranger, NULL, 0));
	}
	tell(number);
}

static void *go_on(void *unused)
{
	(void)unused;
	await_state(getpid(), 'Z');
	rounds(take_its_place);
	CHECK_FILL(left, LEFT, 5);
	end_last_thread();
}

CASE(deputy)
{
	pthread_t threads[2];
	sigset_t blocked;
	sigfillset(&blocked);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	left = map_anonymous(LEFT);
	fill(left, LEFT, 5);
	MUST(pipe(to_deputy));
	MUST(pipe(from_stranger));
	/* The first one is looked at. */
	MUST0(pthread_create(&threads[0], NULL, be_deputy, NULL));
	MUST0(pthread_create(&threads[1], NULL, go_on, NULL));
	for (;;)
		syscall(SYS_exit, 0);
}
