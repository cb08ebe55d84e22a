/*
 * A task that goes on while its memory is copied from a twin (crr dump --snapshot). On SIGUSR2 everything is changed and given up that another
 * holder could be noticed by; on SIGUSR1 memory is looked at, which is to be as it was before that, or after.
 */
#include "workload.h"
#include <poll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/shm.h>

enum { AREA = 64 * 4096 };

/* Behind what crr reads ahead of what it writes: it is found first, since later areas lie lower. */
enum { BALLAST = 24 };

struct area {
	const char *name;
	char *memory;
	size_t size;
	int protection;
	uint32_t seed;
};

static struct area areas[16];
static size_t count;
static int changes;
static volatile sig_atomic_t ends_of_children;

static struct area *add(const char *name, char *memory, size_t size)
{
	struct area *area = &areas[count++];
	*area = (struct area){ name, memory, size, PROT_READ | PROT_WRITE, (uint32_t)count };
	fill(memory, size, area->seed);
	return area;
}

static char *map(int flags, int fd)
{
	return MUST((char *)mmap(NULL, AREA, PROT_READ | PROT_WRITE, flags, fd, 0));
}

static int sized(int fd)
{
	MUST(fd);
	MUST(ftruncate(fd, AREA));
	return fd;
}

static void advise(const char *name, int advice)
{
	char *memory = map_anonymous(AREA);
	/* Older kernels know less. */
	if (madvise(memory, AREA, advice) == 0)
		add(name, memory, AREA);
}

static void look(void)
{
	for (size_t i = 0; i < count; i++) {
		struct area *area = &areas[i];
		MUST(mprotect(area->memory, area->size, PROT_READ | PROT_WRITE));
		CHECK(fill_differs(area->memory, area->size, area->seed) == -1, "%s after %d changes", area->name, changes);
		MUST(mprotect(area->memory, area->size, area->protection));
	}
}

static void change_memory(void)
{
	look();
	changes++;
	for (size_t i = 0; i < count; i++) {
		struct area *area = &areas[i];
		area->seed += 1000;
		MUST(mprotect(area->memory, area->size, PROT_READ | PROT_WRITE));
		fill(area->memory, area->size, area->seed);
		MUST(mprotect(area->memory, area->size, area->protection));
	}
}

static void tell(const char *line)
{
	MUST(write(STDOUT_FILENO, line, strlen(line)));
}

static void on_end(int signal)
{
	(void)signal;
	ends_of_children++;
}

static int ends[2], locked, sealed, segment;
static char *given_up, *attached;

static void no_children(void)
{
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there is a child: %s", strerror(errno));
	CHECK(ends_of_children == 0, "%d children have ended", (int)ends_of_children);
}

static void change(int number)
{
	(void)number;
	struct pollfd end = { .fd = ends[0], .events = POLLIN };
	struct shmid_ds about;
	char byte;
	no_children();
	change_memory();
	close(ends[1]);
	CHECK(poll(&end, 1, 10000) == 1 && read(ends[0], &byte, 1) == 0, "somebody holds the pipe");
	close(locked);
	locked = MUST(open("locked", O_RDWR));
	CHECK(flock(locked, LOCK_EX | LOCK_NB) == 0, "somebody holds the lock: %s", strerror(errno));
	MUST(munmap(given_up, AREA));
	CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE) == 0, "somebody has it mapped: %s", strerror(errno));
	MUST(shmdt(attached));
	MUST(shmctl(segment, IPC_STAT, &about));
	CHECK(about.shm_nattch == 0, "%d are attached", (int)about.shm_nattch);
	MUST(shmctl(segment, IPC_RMID, NULL));
	tell("CHANGED\n");
}

CASE(kinds)
{
	sigset_t blocked;
	struct sigaction action = { .sa_handler = on_end, .sa_flags = SA_RESTART };
	MUST(sigaction(SIGCHLD, &action, NULL));
	add("private memory", map_anonymous(AREA), AREA);
	add("hidden memory", map_anonymous(AREA), AREA)->protection = PROT_NONE;
	MUST(mprotect(areas[1].memory, AREA, PROT_NONE));
	add("locked memory", map_anonymous(AREA), AREA);
	MUST(mlock(areas[2].memory, AREA));
	advise("memory that is not forked", MADV_DONTFORK);
	advise("memory that is wiped", MADV_WIPEONFORK);
	add("shared memory", map(MAP_SHARED | MAP_ANONYMOUS, -1), AREA);
	/* Not shared by name: what files hold is not part of a checkpoint. */
	int file = sized(open("private", O_RDWR | O_CREAT, 0600));
	add("a private file", map(MAP_PRIVATE, file), AREA);
	close(file);
	int deleted = sized(open("deleted", O_RDWR | O_CREAT, 0600));
	MUST(unlink("deleted"));
	add("a deleted file", map(MAP_SHARED, deleted), AREA);
	close(deleted);
	char *aligned = map_anonymous(4 * MIB);
	aligned += -(uintptr_t)aligned & (2 * MIB - 1);
	madvise(aligned, 2 * MIB, MADV_HUGEPAGE);
	add("a huge page", aligned, 2 * MIB);
	sealed = sized(memfd_create("sealed", MFD_ALLOW_SEALING));
	given_up = map(MAP_SHARED, sealed);
	segment = MUST(shmget(IPC_PRIVATE, AREA, IPC_CREAT | 0600));
	attached = MUST((char *)shmat(segment, NULL, 0));
	MUST(pipe(ends));
	locked = MUST(open("locked", O_RDWR | O_CREAT, 0600));
	MUST(flock(locked, LOCK_EX));
	add("much memory", map_anonymous(BALLAST * MIB), BALLAST * MIB);
	sigemptyset(&blocked);
	hear_questions();
	answer_questions(&blocked, change);
	look();
	no_children();
	if (changes == 0)
		MUST(shmctl(segment, IPC_RMID, NULL));
}

enum { BLOCKS = 12 };

/* A child that shares all but some blocks with its parent. */
static void waits(void *unused)
{
	(void)unused;
	for (size_t i = 0; i < count; i += 3) {
		areas[i].seed += 500;
		fill(areas[i].memory, areas[i].size, areas[i].seed);
	}
	prepared();
	wait_for_go();
	look();
}

CASE(other)
{
	add("private memory", map_anonymous(4 * MIB), 4 * MIB);
	prepared();
	wait_for_go();
	look();
}

static pid_t children[3];

static void change_and_fork(int number)
{
	(void)number;
	change_memory();
	for (size_t i = 0; i < LENGTH(children); i++)
		CHECK(waitpid(children[i], NULL, WNOHANG) == 0, "child %zu is gone", i);
	pid_t child = MUST(fork());
	if (child == 0)
		_exit(0);
	reap(child);
	tell("CHANGED\n");
}

/* Children that share pages with their parent, and one of the other ABI. */
CASE(family)
{
	sigset_t blocked;
	for (size_t i = 0; i < BLOCKS; i++)
		add("a block", map_anonymous(2 * MIB), 2 * MIB);
	children[0] = spawn(waits, NULL);
	children[1] = spawn(waits, NULL);
	children[2] = spawn_abi(other_abi, "other", NULL);
	sigemptyset(&blocked);
	hear_questions();
	answer_questions(&blocked, change_and_fork);
	for (size_t i = 0; i < LENGTH(children); i++)
		finish(children[i]);
	look();
}

/* Is killed, and with it the parent of its twin. */
static void ends_early(void *unused)
{
	(void)unused;
	add("private memory", map_anonymous(4 * MIB), 4 * MIB);
	prepared();
	pause();
}

/* A task that takes in orphans, and waits for its own child alone. */
CASE(takes_in)
{
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t child = spawn(ends_early, NULL);
	checkpoint();
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, NULL, 0));
	no_children();
}
