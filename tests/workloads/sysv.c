/* System V IPC. */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>

/* Segments that a case has to see to itself: they would stay. */
static int make(key_t key, size_t size, int mode)
{
	return MUST(shmget(key, size, IPC_CREAT | IPC_EXCL | mode));
}

static char *attach(int id, const void *address, int flags)
{
	return MUST((char *)shmat(id, address, flags));
}

static struct shmid_ds status_of(int id)
{
	struct shmid_ds status;
	MUST(shmctl(id, IPC_STAT, &status));
	return status;
}

static void remove_segment(int id)
{
	MUST(shmctl(id, IPC_RMID, NULL));
}

/* A place where nothing lies, of this size. */
static char *free_place(size_t length)
{
	char *place = map_anonymous(length);
	MUST(munmap(place, length));
	return place;
}

struct shared {
	int id;
	char *memory;
	volatile int *turn;
};

static void sharer(void *argument)
{
	struct shared *shared = argument;
	prepared();
	wait_for_go();
	CHECK_FILL(shared->memory, PAGE, 1);
	fill(shared->memory + PAGE, PAGE, 2);
	__atomic_store_n(shared->turn, 1, __ATOMIC_SEQ_CST);
	await(shared->turn, 2);
	CHECK_FILL(shared->memory + PAGE, PAGE, 3);
	MUST(shmdt(shared->memory));
}

/* One with a key, one without; of others, with a size that is no whole number of pages; read-only and twice in a task; shared by a child. */
CASE(attached)
{
	int first = make(0x5eed0000 | (getpid() & 0xffff), 16 * PAGE, 0640), second = make(IPC_PRIVATE, 3 * PAGE + 100, 0600);
	MUST(setegid(33));
	MUST(seteuid(34));
	int third = make(IPC_PRIVATE, 1, 0666);
	MUST(seteuid(0));
	MUST(setegid(0));
	struct shmid_ds owner = status_of(third);
	owner.shm_perm.uid = 35;
	owner.shm_perm.mode = 0604;
	MUST(shmctl(third, IPC_SET, &owner));
	struct shared shared = { first, attach(first, NULL, 0), NULL };
	shared.turn = (volatile int *)(void *)(shared.memory + 8 * PAGE);
	fill(shared.memory, PAGE, 1);
	pid_t child = spawn(sharer, &shared);
	char *again = attach(first, NULL, SHM_RDONLY), *code = attach(second, NULL, SHM_EXEC);
	attach(third, NULL, 0);
	fill(code, 3 * PAGE + 100, 7);
	checkpoint();
	CHECK_FILL(again, PAGE, 1);
	CHECK_FILL(code, 3 * PAGE + 100, 7);
	CHECK(code[3 * PAGE + 100] == 0, "behind the end");
	CHECK(mprotect(again, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "attached for reading");
	MUST(kill(child, SIGUSR1));
	await(shared.turn, 1);
	CHECK_FILL(again + PAGE, PAGE, 2);
	fill(shared.memory + PAGE, PAGE, 3);
	__atomic_store_n(shared.turn, 2, __ATOMIC_SEQ_CST);
	reap(child);
	CHECK(status_of(first).shm_nattch == 2, "attached %lu times", (unsigned long)status_of(first).shm_nattch);
	MUST(shmdt(again));
	MUST(shmdt(shared.memory));
	CHECK(status_of(first).shm_nattch == 0, "attached after all");
	CHECK(status_of(third).shm_perm.cuid == 34 && status_of(third).shm_perm.uid == 35, "owner and creator");
	remove_segment(first);
	remove_segment(second);
	remove_segment(third);
}

/* Those that were removed are there for as long as they are attached. */
CASE(removed)
{
	int id = make(0x5eee0000 | (getpid() & 0xffff), 64 * PAGE, 0600), locked = make(IPC_PRIVATE, 2 * PAGE, 0600);
	struct shared shared = { id, attach(id, NULL, 0), NULL };
	char *in_memory = attach(locked, NULL, 0);
	MUST(shmctl(locked, SHM_LOCK, NULL));
	shared.turn = (volatile int *)(void *)(shared.memory + 8 * PAGE);
	fill(shared.memory, PAGE, 1);
	fill(shared.memory + 40 * PAGE, PAGE, 4);
	fill(in_memory, PAGE, 5);
	remove_segment(id);
	remove_segment(locked);
	pid_t child = spawn(sharer, &shared);
	checkpoint();
	CHECK_FILL(in_memory, PAGE, 5);
	CHECK_FILL(shared.memory + 40 * PAGE, PAGE, 4);
	/* It can still be attached. */
	char *again = attach(id, NULL, 0);
	MUST(kill(child, SIGUSR1));
	await(shared.turn, 1);
	CHECK_FILL(again + PAGE, PAGE, 2);
	fill(again + PAGE, PAGE, 3);
	__atomic_store_n(shared.turn, 2, __ATOMIC_SEQ_CST);
	reap(child);
	CHECK(status_of(id).shm_nattch == 2, "attached %lu times", (unsigned long)status_of(id).shm_nattch);
	MUST(shmdt(again));
	MUST(shmdt(shared.memory));
	CHECK(shmctl(id, IPC_STAT, &(struct shmid_ds){ 0 }) == -1 && errno == EINVAL, "it is still there");
}

/* Parts that are detached, protected, moved. shmdt takes all that is left at its place. */
CASE(parts)
{
	int id = make(IPC_PRIVATE, 16 * PAGE, 0600);
	char *whole = attach(id, NULL, 0), *partial = attach(id, NULL, 0), *apart = attach(id, NULL, 0);
	for (size_t i = 0; i < 16; i++)
		fill(whole + i * PAGE, PAGE, (uint32_t)(100 + i));
	MUST(mprotect(whole + 2 * PAGE, 3 * PAGE, PROT_READ));
	MUST(mprotect(whole + 9 * PAGE, PAGE, PROT_NONE));
	MUST(munmap(partial, 2 * PAGE));
	MUST(munmap(partial + 5 * PAGE, 4 * PAGE));
	/* Something else in the gap. */
	char *between = MUST((char *)mmap(partial + 6 * PAGE, PAGE, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	fill(between, PAGE, 50);
	char *place = free_place(4 * PAGE);
	char *moved = MUST((char *)mremap(apart + 10 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + PAGE));
	checkpoint();
	for (size_t i = 0; i < 16; i++)
		if (i != 9)
			CHECK_FILL(whole + i * PAGE, PAGE, (uint32_t)(100 + i));
	CHECK_FILL(partial + 3 * PAGE, PAGE, 103);
	CHECK_FILL(between, PAGE, 50);
	CHECK_FILL(moved, PAGE, 110);
	fill(moved + PAGE, PAGE, 1);
	CHECK_FILL(partial + 11 * PAGE, PAGE, 1);
	MUST(mprotect(whole + 9 * PAGE, PAGE, PROT_READ | PROT_WRITE));
	CHECK_FILL(whole + 9 * PAGE, PAGE, 109);
	MUST(shmdt(whole));
	/* Two areas of this, two of the third and one that has moved away from it. */
	CHECK(status_of(id).shm_nattch == 5, "%lu areas", (unsigned long)status_of(id).shm_nattch);
	MUST(shmdt(partial));
	CHECK(status_of(id).shm_nattch == 3, "%lu areas", (unsigned long)status_of(id).shm_nattch);
	CHECK_FILL(between, PAGE, 50);
	MUST(shmdt(apart));
	CHECK(status_of(id).shm_nattch == 1, "%lu areas", (unsigned long)status_of(id).shm_nattch);
	MUST(shmdt(moved - 10 * PAGE));
	CHECK(status_of(id).shm_nattch == 0, "%lu areas", (unsigned long)status_of(id).shm_nattch);
	remove_segment(id);
}

CASE(other)
{
	int id = atoi(case_args[0]);
	char *memory = attach(id, NULL, 0);
	CHECK_FILL(memory, PAGE, 1);
	prepared();
	wait_for_go();
	CHECK_FILL(memory, PAGE, 2);
	fill(memory + PAGE, PAGE, 3);
}

CASE(between_abis)
{
	int id = make(IPC_PRIVATE, 16 * PAGE, 0600);
	char *memory = attach(id, NULL, 0), text[16];
	fill(memory, PAGE, 1);
	snprintf(text, sizeof(text), "%d", id);
	pid_t child = spawn_abi(other_abi, "other", text);
	remove_segment(id);
	checkpoint();
	fill(memory, PAGE, 2);
	finish(child);
	CHECK_FILL(memory + PAGE, PAGE, 3);
}

static void *idle(void *ready)
{
	__atomic_store_n((int *)ready, 1, __ATOMIC_SEQ_CST);
	pause();
	return NULL;
}

static void operate(int set, unsigned short number, short change, short flags)
{
	struct sembuf operation = { number, change, flags };
	MUST(semop(set, &operation, 1));
}

/* With a list of what is to be undone, in which nothing is; with values of all sizes; with threads. */
CASE(semaphores)
{
	int set = MUST(semget(IPC_PRIVATE, 5, 0600)), ready = 0;
	unsigned short values[5] = { 0, 1, 2, 32766, 32767 }, now[5];
	MUST(semctl(set, 0, SETALL, values));
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, idle, &ready));
	await(&ready, 1);
	for (unsigned short i = 1; i < 5; i++) {
		operate(set, i, -1, SEM_UNDO);
		operate(set, i, 1, SEM_UNDO);
	}
	checkpoint();
	MUST(semctl(set, 0, GETALL, now));
	CHECK(memcmp(values, now, sizeof(now)) == 0, "%d %d %d %d %d", now[0], now[1], now[2], now[3], now[4]);
	operate(set, 1, -1, SEM_UNDO | IPC_NOWAIT);
	MUST(semctl(set, 0, IPC_RMID));
}

/* For tests: attaches a segment and stays. */
CASE(hold)
{
	attach(atoi(case_args[0]), NULL, SHM_RDONLY);
	pause();
}
