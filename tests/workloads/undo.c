/* What is to be undone to semaphores of System V when a task ends (SEM_UNDO). */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static void operate(int set, unsigned short number, short change, short flags)
{
	struct sembuf operation = { number, change, flags };
	MUST(semop(set, &operation, 1));
}

static void check_semaphore(int set, int number, int value, pid_t last_user)
{
	int is = MUST(semctl(set, number, GETVAL)), user = MUST(semctl(set, number, GETPID));
	CHECK(is == value && user == last_user, "semaphore %d: %d by %d, not %d by %d", number, is, user, value, last_user);
}

static int make(const unsigned short *values, int count)
{
	int set = MUST(semget(IPC_PRIVATE, count, 0600));
	MUST(semctl(set, 0, SETALL, (unsigned short *)values));
	return set;
}

/* Each kind of sum at a semaphore of its own. */
enum { LOCKED, GIVEN, HIGHEST, LOWEST, TAKEN_BACK, CUT, SHARED, WAITED_AT, SIGNED, BY_ROOT, COUNT };
static const unsigned short beginnings[COUNT] = { 1, 32762, 32767, 0, 32767, 20000, 3, 0, 2, 4 };

static void holder(void *argument)
{
	int set = *(int *)argument;
	operate(set, LOCKED, -1, SEM_UNDO);
	operate(set, GIVEN, 5, SEM_UNDO);
	operate(set, HIGHEST, -32767, SEM_UNDO);
	operate(set, LOWEST, 32767, SEM_UNDO);
	operate(set, LOWEST, -32767, 0);
	operate(set, LOWEST, 1, SEM_UNDO);
	operate(set, TAKEN_BACK, -1, SEM_UNDO);
	operate(set, TAKEN_BACK, 1, SEM_UNDO);
	operate(set, CUT, -15000, SEM_UNDO);
	operate(set, SHARED, -1, SEM_UNDO);
	operate(set, SIGNED, -1, SEM_UNDO);
	prepared();
	wait_for_go();
	/* The lowest sum there is, to the last unit. */
	struct sembuf one_more = { LOWEST, 1, SEM_UNDO }, one_less = { LOWEST, -1, SEM_UNDO | IPC_NOWAIT };
	CHECK(semop(set, &one_more, 1) == -1 && errno == ERANGE, "a sum below the lowest");
	MUST(semop(set, &one_less, 1));
	MUST(semop(set, &one_more, 1));
	/* And the highest. */
	struct sembuf beyond[2] = { { HIGHEST, 1, 0 }, { HIGHEST, -1, SEM_UNDO } };
	CHECK(semop(set, beyond, 2) == -1 && errno == ERANGE, "a sum beyond the highest");
}

static void waiter(void *argument)
{
	int set = *(int *)argument;
	operate(set, SHARED, -1, SEM_UNDO);
	prepared();
	operate(set, WAITED_AT, -1, SEM_UNDO);
	wait_for_go();
}

static void sign(void *argument)
{
	struct sembuf both[2] = { { SIGNED, 1, 0 }, { SIGNED, -1, 0 } };
	MUST(semop(*(int *)argument, both, 2));
	prepared();
}

/* Sums of all sizes, of several tasks at one semaphore; a wait that is to be undone; last users that are others. */
CASE(held)
{
	int set = make(beginnings, COUNT);
	pid_t first = spawn(holder, &set), second = spawn(waiter, &set);
	pid_t third = spawn(sign, &set);
	reap(third);
	operate(set, CUT, 15000, 0);
	operate(set, BY_ROOT, -3, SEM_UNDO);
	await_sleep(second);
	checkpoint();
	check_semaphore(set, LOCKED, 0, first);
	check_semaphore(set, GIVEN, 32767, first);
	check_semaphore(set, HIGHEST, 0, first);
	check_semaphore(set, LOWEST, 1, first);
	check_semaphore(set, TAKEN_BACK, 32767, first);
	check_semaphore(set, CUT, 20000, getpid());
	check_semaphore(set, SHARED, 1, second);
	check_semaphore(set, SIGNED, 1, third);
	check_semaphore(set, BY_ROOT, 1, getpid());
	CHECK(semctl(set, WAITED_AT, GETNCNT) == 1, "nobody waits");
	operate(set, WAITED_AT, 1, 0);
	/* One at a time: each takes back what is its own. */
	finish(first);
	check_semaphore(set, LOCKED, 1, first);
	check_semaphore(set, GIVEN, 32762, first);
	check_semaphore(set, HIGHEST, 32767, first);
	check_semaphore(set, LOWEST, 0, first);
	check_semaphore(set, TAKEN_BACK, 32767, first);
	check_semaphore(set, CUT, 32767, first);
	check_semaphore(set, SHARED, 2, first);
	check_semaphore(set, SIGNED, 2, first);
	check_semaphore(set, WAITED_AT, 0, second);
	finish(second);
	check_semaphore(set, SHARED, 3, second);
	check_semaphore(set, WAITED_AT, 1, second);
	/* The root's own is undone by an operation. */
	operate(set, BY_ROOT, 3, SEM_UNDO);
	check_semaphore(set, BY_ROOT, 4, getpid());
	MUST(semctl(set, 0, IPC_RMID));
}

struct thread {
	int set;
	unsigned short number;
	bool apart;
	volatile int ready, leave;
};

static void *take(void *argument)
{
	struct thread *thread = argument;
	if (thread->apart)
		MUST(unshare(CLONE_SYSVSEM));
	operate(thread->set, thread->number, -1, SEM_UNDO);
	thread->ready = 1;
	while (!thread->leave)
		usleep(1000);
	return NULL;
}

/* Threads with the list of their task, and one with its own, whose end undoes what that one has. */
CASE(threads)
{
	static const unsigned short values[4] = { 1, 1, 1, 1 };
	int set = make(values, 4);
	struct thread common = { .set = set, .number = 0 }, apart = { .set = set, .number = 1, .apart = true };
	struct thread late = { .set = set, .number = 3, .apart = true };
	pthread_t a, b, c;
	MUST0(pthread_create(&a, NULL, take, &common));
	MUST0(pthread_create(&b, NULL, take, &apart));
	await(&common.ready, 1);
	await(&apart.ready, 1);
	operate(set, 2, -1, SEM_UNDO);
	checkpoint();
	for (int i = 0; i < 3; i++)
		check_semaphore(set, i, 0, getpid());
	apart.leave = common.leave = 1;
	MUST0(pthread_join(a, NULL));
	MUST0(pthread_join(b, NULL));
	check_semaphore(set, 0, 0, getpid());
	check_semaphore(set, 2, 0, getpid());
	/* It is undone a moment after the end that a join waits for. */
	while (semctl(set, 1, GETVAL) == 0)
		usleep(1000);
	MUST0(pthread_create(&c, NULL, take, &late));
	await(&late.ready, 1);
	late.leave = 1;
	MUST0(pthread_join(c, NULL));
	/* What a thread has left to its task can be taken back by another one. */
	operate(set, 0, 1, SEM_UNDO);
	MUST(semctl(set, 0, IPC_RMID));
}

CASE(other)
{
	int set = atoi(case_args[0]);
	operate(set, 0, -1, SEM_UNDO);
	prepared();
	wait_for_go();
}

CASE(between_abis)
{
	static const unsigned short values[1] = { 5 };
	int set = make(values, 1);
	char text[16];
	snprintf(text, sizeof(text), "%d", set);
	operate(set, 0, -2, SEM_UNDO);
	pid_t child = spawn_abi(other_abi, "other", text);
	checkpoint();
	check_semaphore(set, 0, 2, child);
	finish(child);
	check_semaphore(set, 0, 3, child);
	operate(set, 0, 2, SEM_UNDO);
	MUST(semctl(set, 0, IPC_RMID));
}

/* Who is outside of the tree: takes one of a semaphore of a set, and goes, or stays with it. */
CASE(take)
{
	operate(atoi(case_args[0]), (unsigned short)atoi(case_args[1]), -1, SEM_UNDO);
	if (case_args[2] == NULL)
		return;
	printf("taken\n");
	fflush(stdout);
	pause();
}

/* One of two is taken, and a lock. */
CASE(lock)
{
	static const unsigned short values[2] = { 2, 1 };
	int set = make(values, 2);
	operate(set, 0, -1, SEM_UNDO);
	operate(set, 1, -1, SEM_UNDO);
	checkpoint();
	CHECK(semctl(set, 0, GETVAL) == 1 && semctl(set, 1, GETVAL) == 0, "what is taken");
	struct sembuf back[2] = { { 0, 1, SEM_UNDO }, { 1, 1, SEM_UNDO } };
	MUST(semop(set, back, 2));
}
