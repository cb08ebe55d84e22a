/* System V IPC. */
#include "workload.h"
#include <grp.h>
#include <sys/ipc.h>
#include <sys/msg.h>
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
	fill(code, 4 * PAGE, 7);
	checkpoint();
	CHECK_FILL(again, PAGE, 1);
	/* What lies behind the end, too. */
	CHECK_FILL(code, 4 * PAGE, 7);
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

/* Larger than its segment: what lies beyond is nothing, until that has grown, too, which no segment does. */
CASE(grown)
{
	int id = make(IPC_PRIVATE, 2 * PAGE, 0600);
	char *memory = attach(id, NULL, 0);
	remove_segment(id);
	fill(memory, 2 * PAGE, 1);
	memory = MUST((char *)mremap(memory, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE));
	checkpoint();
	CHECK_FILL(memory, 2 * PAGE, 1);
	MUST((char *)mremap(memory, 4 * PAGE, 2 * PAGE, 0));
	CHECK_FILL(memory, 2 * PAGE, 1);
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

/* A key that no other object of a test has. */
static key_t key_of(int number)
{
	return (key_t)(0x5eef0000 | number << 12 | (getpid() & 0xfff));
}

static void check_semaphore(int set, int number, int value, pid_t last_user)
{
	int is = MUST(semctl(set, number, GETVAL)), user = MUST(semctl(set, number, GETPID));
	CHECK(is == value && user == last_user, "semaphore %d: %d by %d, not %d by %d", number, is, user, value, last_user);
}

struct sets {
	int keyed, private;
};

static void waiter_at_sets(void *argument)
{
	const struct sets *sets = argument;
	operate(sets->keyed, 2, 3, 0);
	prepared();
	operate(sets->keyed, 3, -2, 0);
	wait_for_go();
	operate(sets->private, 0, -1, 0);
}

/* Sets with a key and without, of another owner and creator; used by two tasks, one of which waits; one that is set and never operated on. */
CASE(sets)
{
	MUST(setegid(33));
	MUST(seteuid(34));
	struct sets sets = { MUST(semget(key_of(1), 5, IPC_CREAT | IPC_EXCL | 0640)), 0 };
	MUST(seteuid(0));
	MUST(setegid(0));
	sets.private = MUST(semget(IPC_PRIVATE, 1, 0600));
	int idle_set = MUST(semget(IPC_PRIVATE, 2, 0600));
	struct semid_ds status;
	MUST(semctl(sets.keyed, 0, IPC_STAT, &status));
	status.sem_perm.uid = 35;
	status.sem_perm.mode = 0604;
	MUST(semctl(sets.keyed, 0, IPC_SET, &status));
	unsigned short values[5] = { 0, 32767, 4, 1, 9 };
	MUST(semctl(sets.keyed, 0, SETALL, values));
	MUST(semctl(idle_set, 1, SETVAL, 7));
	pid_t child = spawn(waiter_at_sets, &sets);
	await_sleep(child);
	operate(sets.private, 0, 5, 0);
	operate(sets.keyed, 4, -9, 0);
	checkpoint();
	check_semaphore(sets.keyed, 0, 0, getpid());
	check_semaphore(sets.keyed, 1, 32767, getpid());
	check_semaphore(sets.keyed, 2, 7, child);
	check_semaphore(sets.keyed, 3, 1, getpid());
	check_semaphore(sets.keyed, 4, 0, getpid());
	check_semaphore(sets.private, 0, 5, getpid());
	check_semaphore(idle_set, 0, 0, 0);
	check_semaphore(idle_set, 1, 7, getpid());
	CHECK(semget(key_of(1), 5, 0) == sets.keyed, "another set has its key");
	MUST(semctl(sets.keyed, 0, IPC_STAT, &status));
	CHECK(status.sem_perm.cuid == 34 && status.sem_perm.cgid == 33 && status.sem_otime != 0, "its status");
	MUST(semctl(idle_set, 0, IPC_STAT, &status));
	CHECK(status.sem_otime == 0, "operated on at %ld", (long)status.sem_otime);
	await_sleep(child);
	CHECK(semctl(sets.keyed, 3, GETNCNT) == 1, "nobody waits");
	operate(sets.keyed, 3, 1, 0);
	finish(child);
	check_semaphore(sets.keyed, 3, 0, child);
	check_semaphore(sets.private, 0, 4, child);
	MUST(semctl(sets.keyed, 0, IPC_RMID));
	MUST(semctl(sets.private, 0, IPC_RMID));
	MUST(semctl(idle_set, 0, IPC_RMID));
}

/* A task of a user without privileges, that any process of his may look at. */
static void become_ordinary(void)
{
	MUST(setgroups(0, NULL));
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	MUST(prctl(PR_SET_DUMPABLE, 1));
}

/* Who has a set of his own, with nothing to be undone, beside one of root that is used and private. */
CASE(beside_private)
{
	operate(MUST(semget(IPC_PRIVATE, 3, 0600)), 0, 1, 0);
	become_ordinary();
	int own = MUST(semget(IPC_PRIVATE, 1, 0600));
	operate(own, 0, 2, SEM_UNDO);
	operate(own, 0, -2, SEM_UNDO);
	operate(own, 0, 1, 0);
	checkpoint();
	check_semaphore(own, 0, 1, getpid());
	MUST(semctl(own, 0, IPC_RMID));
}

static void waiter_for_one(void *argument)
{
	const int *set = argument;
	prepared();
	operate(*set, 0, -1, 0);
	wait_for_go();
}

struct message {
	long type;
	char text[2000];
};

static void send_text(int queue, long type, const char *text, size_t length)
{
	struct message message = { .type = type };
	memcpy(message.text, text, length);
	MUST(msgsnd(queue, &message, length, 0));
}

#define CHECK_NEXT(queue, wanted, expected, content, size)                                                  \
	do {                                                                                              \
		struct message message;                                                                   \
		ssize_t got = MUST(msgrcv(queue, &message, sizeof(message.text), wanted, IPC_NOWAIT));     \
		CHECK(got == (ssize_t)(size) && message.type == (expected) && memcmp(message.text, content, size) == 0, \
		      "%zd bytes of type %ld", got, message.type);                                        \
	} while (0)

/* A set that is waited at and a queue that has a message, of root; others may change them, and not read. */
CASE(not_to_read)
{
	int set = MUST(semget(IPC_PRIVATE, 1, 0602)), queue = MUST(msgget(IPC_PRIVATE, 0602));
	become_ordinary();
	send_text(queue, 1, "x", 1);
	pid_t child = spawn(waiter_for_one, &set);
	await_sleep(child);
	checkpoint();
	operate(set, 0, 1, 0);
	finish(child);
}

struct queues {
	int keyed, empty, full;
};

static void waiter_for_message(void *argument)
{
	const struct queues *queues = argument;
	prepared();
	struct message message;
	CHECK(MUST(msgrcv(queues->empty, &message, sizeof(message.text), -9, 0)) == 4 && message.type == 9, "type %ld",
	      message.type);
	wait_for_go();
}

static void waiter_for_room(void *argument)
{
	const struct queues *queues = argument;
	prepared();
	send_text(queues->full, 4, "more", 4);
	wait_for_go();
}

/* Queues with a key and without; messages of several types, without text, of all lengths; who waits at one that was never used, who waits for
 * room in one that is full and was made smaller. */
CASE(queues)
{
	char large[2000];
	fill(large, sizeof(large), 3);
	MUST(setegid(33));
	MUST(seteuid(34));
	struct queues queues = { .keyed = MUST(msgget(key_of(2), IPC_CREAT | IPC_EXCL | 0640)) };
	MUST(seteuid(0));
	MUST(setegid(0));
	queues.empty = MUST(msgget(IPC_PRIVATE, 0600));
	queues.full = MUST(msgget(IPC_PRIVATE, 0600));
	send_text(queues.keyed, 5, "first", 5);
	send_text(queues.keyed, 0x7fffffff, "", 0);
	send_text(queues.keyed, 2, large, sizeof(large));
	send_text(queues.keyed, 5, "last", 4);
	send_text(queues.full, 3, "x", 1);
	for (int i = 0; i < 4; i++)
		send_text(queues.full, 8, large, sizeof(large));
	CHECK_NEXT(queues.full, 3, 3, "x", 1);
	struct msqid_ds status;
	MUST(msgctl(queues.full, IPC_STAT, &status));
	status.msg_qbytes = 100;
	MUST(msgctl(queues.full, IPC_SET, &status));
	pid_t receiver = spawn(waiter_for_message, &queues), sender = spawn(waiter_for_room, &queues);
	await_sleep(receiver);
	await_sleep(sender);
	checkpoint();
	CHECK(msgget(key_of(2), 0) == queues.keyed, "another queue has its key");
	MUST(msgctl(queues.keyed, IPC_STAT, &status));
	CHECK(status.msg_perm.cuid == 34 && status.msg_perm.cgid == 33 && status.msg_lspid == getpid() && status.msg_lrpid == 0,
	      "its status");
	MUST(msgctl(queues.full, IPC_STAT, &status));
	CHECK(status.msg_qbytes == 100 && status.msg_lspid == getpid() && status.msg_lrpid == getpid(), "room for %lu",
	      (unsigned long)status.msg_qbytes);
	CHECK_NEXT(queues.keyed, 0, 5, "first", 5);
	CHECK_NEXT(queues.keyed, -4, 2, large, sizeof(large));
	CHECK_NEXT(queues.keyed, 5, 5, "last", 4);
	CHECK_NEXT(queues.keyed, 0, 0x7fffffff, "", 0);
	for (int i = 0; i < 4; i++)
		CHECK_NEXT(queues.full, 0, 8, large, sizeof(large));
	finish(sender);
	CHECK_NEXT(queues.full, 0, 4, "more", 4);
	send_text(queues.empty, 9, "here", 4);
	finish(receiver);
	MUST(msgctl(queues.keyed, IPC_RMID, NULL));
	MUST(msgctl(queues.empty, IPC_RMID, NULL));
	MUST(msgctl(queues.full, IPC_RMID, NULL));
}

/* The other side of messages: answers what it is sent. */
CASE(answering)
{
	int queue = MUST(msgget((key_t)atoi(case_args[0]), 0));
	prepared();
	struct message message;
	ssize_t got = MUST(msgrcv(queue, &message, sizeof(message.text), 1, 0));
	send_text(queue, 0x40000000, message.text, (size_t)got);
	wait_for_go();
}

CASE(messages_between_abis)
{
	char key[16];
	snprintf(key, sizeof(key), "%d", (int)key_of(3));
	int queue = MUST(msgget(key_of(3), IPC_CREAT | IPC_EXCL | 0600));
	send_text(queue, 2, "kept", 4);
	pid_t child = spawn_abi(other_abi, "answering", key);
	await_sleep(child);
	checkpoint();
	send_text(queue, 1, "question", 8);
	finish(child);
	CHECK_NEXT(queue, 0x40000000, 0x40000000, "question", 8);
	CHECK_NEXT(queue, 0, 2, "kept", 4);
	MUST(msgctl(queue, IPC_RMID, NULL));
}

/* For tests: attaches a segment and stays. */
CASE(hold)
{
	attach(atoi(case_args[0]), NULL, SHM_RDONLY);
	pause();
}

/* For tests: makes a queue with this key, which stays. */
CASE(make_queue)
{
	MUST(msgget((key_t)atoi(case_args[0]), IPC_CREAT | IPC_EXCL | 0600));
}
