/* Families whose memory is shared copy-on-write: who shares what with whom is looked at from outside (behaviour/cow.rs). */
#include "workload.h"

/* Bytes that each of several children changes, and no other. */
#define SLICE (16 * PAGE)
#define MOST_CHILDREN 100

/* Memory as one task is to see it: filled with one seed, but for slices that were filled with others. */
struct view {
	char *memory;
	size_t length;
	uint32_t seed;
	/* For each slice, the seed of who changed it last, or 0. */
	uint32_t changed[MOST_CHILDREN + 8];
};

/* Memory that touches no other: areas of one history may merge, and others not. */
static char *map_apart(size_t length)
{
	char *memory = map_anonymous(length + 2 * PAGE);
	MUST(mprotect(memory, PAGE, PROT_NONE));
	MUST(mprotect(memory + PAGE + length, PAGE, PROT_NONE));
	return memory + PAGE;
}

static struct view view_of(size_t length, uint32_t seed)
{
	struct view view = { .memory = map_apart(length), .length = length, .seed = seed };
	fill(view.memory, length, seed);
	return view;
}

static void change(struct view *view, size_t slice, uint32_t seed)
{
	fill(view->memory + slice * SLICE, SLICE, seed);
	view->changed[slice] = seed;
}

static void check_view(const struct view *view)
{
	char *whole = malloc(view->length);
	fill(whole, view->length, view->seed);
	for (size_t slice = 0; slice < LENGTH(view->changed); slice++)
		if (view->changed[slice] != 0)
			fill(whole + slice * SLICE, SLICE, view->changed[slice]);
	CHECK(memcmp(whole, view->memory, view->length) == 0, "memory at %p is another", (void *)view->memory);
	free(whole);
}

struct worker {
	struct view *view;
	unsigned number;
};

static void work(void *argument)
{
	struct worker *worker = argument;
	change(worker->view, worker->number, 100 + worker->number);
	prepared();
	wait_for_go();
	check_view(worker->view);
	/* What one writes is seen by nobody else: others check after this, too. */
	fill(worker->view->memory, worker->view->length, 7);
}

static void prefork(size_t length, unsigned count)
{
	struct view view = view_of(length, 1);
	pid_t workers[MOST_CHILDREN];
	for (unsigned i = 0; i < count; i++) {
		struct worker worker = { &view, i };
		workers[i] = spawn(work, &worker);
	}
	checkpoint();
	for (unsigned i = 0; i < count; i++)
		finish(workers[i]);
	check_view(&view);
}

CASE(prefork)
{
	prefork(4 * MIB, 6);
}

CASE(prefork_100)
{
	prefork(16 * MIB, 100);
}

/* The parent changes what its children go on sharing: between their births, and after all of them. */
CASE(parent_changes)
{
	struct view view = view_of(4 * MIB, 2);
	pid_t workers[6];
	for (unsigned i = 0; i < LENGTH(workers); i++) {
		struct worker worker = { &view, i };
		workers[i] = spawn(work, &worker);
		change(&view, 20 + i, 200 + i);
	}
	for (unsigned i = 0; i < 4; i++)
		change(&view, 30 + i, 300 + i);
	checkpoint();
	for (unsigned i = 0; i < LENGTH(workers); i++)
		finish(workers[i]);
	check_view(&view);
}

/* The parent has unmapped what its children share. */
CASE(siblings)
{
	struct view kept = view_of(MIB, 4), gone = view_of(4 * MIB, 3);
	pid_t workers[5];
	for (unsigned i = 0; i < LENGTH(workers); i++) {
		struct worker worker = { &gone, i };
		workers[i] = spawn(work, &worker);
	}
	MUST(munmap(gone.memory, gone.length));
	checkpoint();
	for (unsigned i = 0; i < LENGTH(workers); i++)
		finish(workers[i]);
	check_view(&kept);
}

static void descend(void *argument)
{
	struct worker *worker = argument;
	pid_t child = 0;
	change(worker->view, worker->number, 40 + worker->number);
	if (worker->number < 3) {
		struct worker next = { worker->view, worker->number + 1 };
		child = spawn(descend, &next);
		/* Behind the child's back. */
		change(worker->view, 10 + worker->number, 50 + worker->number);
	}
	prepared();
	wait_for_go();
	check_view(worker->view);
	if (child != 0)
		finish(child);
	check_view(worker->view);
}

CASE(grandchildren)
{
	struct view view = view_of(4 * MIB, 5);
	struct worker first = { &view, 0 }, second = { &view, 2 };
	pid_t children[2] = { spawn(descend, &first), spawn(descend, &second) };
	checkpoint();
	finish(children[0]);
	finish(children[1]);
	check_view(&view);
}

/* The middle of three generations shares nothing with the others any more. */
static void forget(void *argument)
{
	struct worker *worker = argument;
	struct worker next = { worker->view, 1 };
	pid_t child = spawn(work, &next);
	MUST(munmap(worker->view->memory, worker->view->length));
	prepared();
	wait_for_go();
	finish(child);
}

CASE(over_a_generation)
{
	struct view view = view_of(4 * MIB, 6);
	struct worker worker = { &view, 0 };
	pid_t child = spawn(forget, &worker);
	checkpoint();
	finish(child);
	check_view(&view);
}

/* Children whose parent is gone: what they share they have from each other only. */
CASE(orphans)
{
	static pid_t *pids;
	struct view view = { 0 };
	int status;
	pids = MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	pid_t gone = MUST(fork());
	if (gone == 0) {
		view = view_of(4 * MIB, 8);
		for (unsigned i = 0; i < 4; i++) {
			struct worker worker = { &view, i };
			pids[i] = spawn(work, &worker);
		}
		_exit(0);
	}
	MUST(waitpid(gone, &status, 0));
	checkpoint();
	for (unsigned i = 0; i < 4; i++)
		finish(pids[i]);
}

/* The same program of the other ABI has a family of its own below this one. */
CASE(between_abis)
{
	struct view view = view_of(4 * MIB, 9);
	struct worker worker = { &view, 0 };
	pid_t child = spawn(work, &worker);
	pid_t other = spawn_abi(other_abi, "below", "");
	checkpoint();
	finish(other);
	finish(child);
	check_view(&view);
}

static void have_other(void *argument)
{
	struct worker *worker = argument;
	pid_t other = spawn_abi(other_abi, "leaf", "");
	change(worker->view, worker->number, 60);
	prepared();
	wait_for_go();
	finish(other);
	check_view(worker->view);
}

CASE(leaf)
{
	struct view view = view_of(MIB, 12);
	prepared();
	wait_for_go();
	check_view(&view);
}

CASE(below)
{
	struct view view = view_of(4 * MIB, 10);
	struct worker first = { &view, 0 }, second = { &view, 1 };
	pid_t children[2] = { spawn(work, &first), spawn(have_other, &second) };
	prepared();
	wait_for_go();
	finish(children[0]);
	finish(children[1]);
	check_view(&view);
}

static pthread_barrier_t barrier;
static volatile bool over;

static void *wait_in_thread(void *argument)
{
	char *own = map_apart(8 * PAGE);
	fill(own, 8 * PAGE, 70);
	pthread_barrier_wait(&barrier);
	while (!over)
		pause();
	CHECK_FILL(own, 8 * PAGE, 70);
	return argument;
}

static void on_signal(int signal)
{
	(void)signal;
}

static void start_threads(pthread_t *threads, size_t count)
{
	MUST0(pthread_barrier_init(&barrier, NULL, (unsigned)count + 1));
	for (size_t i = 0; i < count; i++)
		MUST0(pthread_create(&threads[i], NULL, wait_in_thread, NULL));
	pthread_barrier_wait(&barrier);
}

static void end_threads(pthread_t *threads, size_t count)
{
	over = true;
	for (size_t i = 0; i < count; i++) {
		MUST0(pthread_kill(threads[i], SIGUSR2));
		MUST0(pthread_join(threads[i], NULL));
	}
}

static void work_with_threads(void *argument)
{
	struct worker *worker = argument;
	pthread_t threads[3];
	start_threads(threads, LENGTH(threads));
	change(worker->view, worker->number, 100 + worker->number);
	prepared();
	wait_for_go();
	end_threads(threads, LENGTH(threads));
	check_view(worker->view);
}

CASE(threads)
{
	struct view view = view_of(4 * MIB, 11);
	pthread_t threads[3];
	pid_t children[3];
	/* Without SA_RESTART, so that pause() returns. */
	MUST(sigaction(SIGUSR2, &(struct sigaction){ .sa_handler = on_signal }, NULL));
	start_threads(threads, LENGTH(threads));
	for (unsigned i = 0; i < LENGTH(children); i++) {
		struct worker worker = { &view, i };
		children[i] = spawn(work_with_threads, &worker);
	}
	checkpoint();
	end_threads(threads, LENGTH(threads));
	for (unsigned i = 0; i < LENGTH(children); i++)
		finish(children[i]);
	check_view(&view);
}

/* Areas that fork treats in ways of their own, and what parent and child do to areas of each other's history. */
struct areas {
	char *not_for_children;
	char *wiped;
	char *shared;
	char *locked;
	char *read_only;
	char *in_part;
	char *replaced;
	char *read;
	char *grown;
	char *file;
};

#define AREA (64 * PAGE)

static void change_areas(void *argument)
{
	struct areas *a = argument;
	int fd;
	for (size_t at = 0; at < AREA; at++)
		CHECK(a->wiped[at] == 0, "not wiped at %zu", at);
	MUST(mlock(a->locked, AREA));
	MUST(mprotect(a->read_only, AREA, PROT_READ));
	MUST(mprotect(a->in_part + 8 * PAGE, 8 * PAGE, PROT_NONE));
	MUST(munmap(a->in_part + 32 * PAGE, 8 * PAGE));
	MUST(madvise(a->in_part + 48 * PAGE, 4 * PAGE, MADV_DONTNEED));
	MUST(munmap(a->replaced, AREA));
	fd = MUST(open("areas", O_RDWR));
	a->replaced = MUST((char *)mmap(a->replaced, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0));
	MUST(close(fd));
	fill(a->replaced, 4 * PAGE, 26);
	for (size_t at = 0; at < AREA; at += PAGE)
		CHECK(a->read[at] == 0, "not zero at %zu", at);
	fill(a->file + 2 * PAGE, PAGE, 29);
	/* A new area where the one of the parent that it does not have was. */
	char *here = MUST((char *)mmap(a->not_for_children, AREA, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	fill(here, AREA, 28);
	prepared();
	wait_for_go();
	CHECK_FILL(here, AREA, 28);
	CHECK_FILL(a->locked, AREA, 22);
	CHECK_FILL(a->read_only, AREA, 23);
	CHECK_FILL(a->in_part, 8 * PAGE, 24);
	CHECK_FILL(a->replaced, 4 * PAGE, 26);
	CHECK_FILL(a->shared, AREA, 27);
	CHECK_FILL(a->grown, AREA, 30);
	for (size_t at = 48 * PAGE; at < 52 * PAGE; at++)
		CHECK(a->in_part[at] == 0, "was to be dropped: %zu", at);
	CHECK_FILL(a->file + 2 * PAGE, PAGE, 29);
	CHECK_FILL(a->file, PAGE, 31);
	fill(a->shared, AREA, 33);
}

CASE(areas)
{
	static struct areas a;
	char **areas[] = { &a.not_for_children, &a.wiped, &a.locked, &a.read_only, &a.in_part, &a.replaced, &a.read };
	int fd = MUST(open("areas", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, AREA));
	for (size_t i = 0; i < LENGTH(areas); i++) {
		*areas[i] = map_apart(AREA);
		if (areas[i] != &a.read)
			fill(*areas[i], AREA, 20 + (uint32_t)i);
	}
	fill(a.locked, AREA, 22);
	fill(a.read_only, AREA, 23);
	fill(a.in_part, AREA, 24);
	a.file = MUST((char *)mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	MUST(close(fd));
	fill(a.file, PAGE, 31);
	a.shared = MUST((char *)mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fill(a.shared, AREA, 27);
	a.grown = map_apart(2 * AREA);
	MUST(munmap(a.grown + AREA, AREA));
	fill(a.grown, AREA, 30);
	MUST(madvise(a.not_for_children, AREA, MADV_DONTFORK));
	MUST(madvise(a.wiped, AREA, MADV_WIPEONFORK));
	pid_t children[2] = { spawn(change_areas, &a) };
	/* The parent's area grows, the child's does not; then another child that has the large one. */
	MUST(mremap(a.grown, AREA, AREA + 4 * PAGE, 0));
	fill(a.grown + AREA, 4 * PAGE, 32);
	children[1] = spawn(change_areas, &a);
	MUST(madvise(a.read_only, AREA, MADV_DONTDUMP));
	MUST(mprotect(a.in_part, 4 * PAGE, PROT_READ));
	checkpoint();
	CHECK_FILL(a.not_for_children, AREA, 20);
	CHECK_FILL(a.wiped, AREA, 21);
	CHECK_FILL(a.shared, AREA, 27);
	CHECK_FILL(a.in_part, AREA, 24);
	CHECK_FILL(a.grown, AREA, 30);
	CHECK_FILL(a.grown + AREA, 4 * PAGE, 32);
	MUST(kill(children[0], SIGUSR1));
	reap(children[0]);
	CHECK_FILL(a.shared, AREA, 33);
	fill(a.shared, AREA, 27);
	finish(children[1]);
}

/* A stack and a heap that grew in one of the two only. */
static void __attribute__((noinline)) deeper(unsigned depth, void (*then)(void))
{
	volatile char frame[PAGE];
	memset((char *)frame, (int)depth, sizeof frame);
	if (depth > 0)
		deeper(depth - 1, then);
	else
		then();
	for (size_t at = 0; at < sizeof frame; at++)
		if (frame[at] != (char)depth)
			CHECK(frame[at] == (char)depth, "stack at depth %u", depth);
}

static void wait_deep(void)
{
	prepared();
	wait_for_go();
}

static void grow(void *argument)
{
	struct view *view = argument;
	char *more = MUST((char *)sbrk(64 * (long)PAGE));
	fill(more, 64 * PAGE, 80);
	change(view, 0, 81);
	deeper(100, wait_deep);
	CHECK_FILL(more, 64 * PAGE, 80);
	check_view(view);
}

CASE(growing)
{
	struct view view = view_of(MIB, 13);
	pid_t child = spawn(grow, &view);
	char *more = MUST((char *)sbrk(16 * (long)PAGE));
	fill(more, 16 * PAGE, 82);
	checkpoint();
	finish(child);
	CHECK_FILL(more, 16 * PAGE, 82);
	check_view(&view);
}

/* Groups of their own, users of their own, files of their own. */
static void stand_alone(void *argument)
{
	struct worker *worker = argument;
	int fds[2];
	char byte = 0;
	MUST(setpgid(0, 0));
	MUST(chdir("/"));
	umask(027);
	MUST(pipe(fds));
	MUST(write(fds[1], "x", 1));
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	change(worker->view, worker->number, 90);
	struct worker next = { worker->view, worker->number + 1 };
	pid_t child = spawn(work, &next);
	prepared();
	wait_for_go();
	CHECK(read(fds[0], &byte, 1) == 1 && byte == 'x', "read %d", byte);
	finish(child);
	check_view(worker->view);
}

CASE(apart)
{
	struct view view = view_of(4 * MIB, 14);
	struct worker first = { &view, 0 }, second = { &view, 4 };
	pid_t children[2] = { spawn(stand_alone, &first), spawn(stand_alone, &second) };
	checkpoint();
	finish(children[0]);
	finish(children[1]);
	check_view(&view);
}

static void lead_session(void *argument)
{
	struct worker *worker = argument;
	MUST(setsid());
	change(worker->view, worker->number, 91);
	prepared();
	wait_for_go();
	check_view(worker->view);
}

static void with_a_zombie(void *argument)
{
	struct worker *worker = argument;
	pid_t ended = MUST(fork());
	if (ended == 0)
		_exit(5);
	siginfo_t info;
	MUST(waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT));
	change(worker->view, worker->number, 92);
	prepared();
	wait_for_go();
	int status = 0;
	CHECK(waitpid(ended, &status, 0) == ended && WEXITSTATUS(status) == 5, "status %#x", status);
	check_view(worker->view);
}

/* Where a child cannot be cloned its memory is copied, and all the rest is as ever. */
CASE(copied)
{
	struct view view = view_of(4 * MIB, 15);
	struct worker first = { &view, 0 }, second = { &view, 1 }, third = { &view, 2 };
	pid_t children[3] = { spawn(lead_session, &first), spawn(with_a_zombie, &second), spawn(work, &third) };
	checkpoint();
	for (size_t i = 0; i < LENGTH(children); i++)
		finish(children[i]);
	check_view(&view);
}
