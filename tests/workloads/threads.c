/* Threads: identity, TLS, what the kernel keeps per tid, and synchronisation that crosses the checkpoint. */
#include "workload.h"
#include <linux/futex.h>
#include <linux/rseq.h>
#include <semaphore.h>

static volatile int arrived;
static sem_t release;

static void arrive(void)
{
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
}

/* Without being interrupted: a semaphore wait may end with EINTR only after a handler ran. */
static void wait_for_release(void)
{
	int result = sem_wait(&release);
	CHECK(result == 0, "sem_wait: %s", strerror(errno));
}

static void release_all(int count)
{
	for (int i = 0; i < count; i++)
		MUST(sem_post(&release));
}

enum { MANY = 50 };

static __thread int number = -1;
static __thread char room[3000];

static void *many_thread(void *argument)
{
	int index = (int)(intptr_t)argument;
	pid_t tid = thread_id();
	pthread_t self = pthread_self();
	char name[16], found[16];
	sigset_t mask, old;
	stack_t stack = { .ss_sp = map_anonymous(64 * 1024), .ss_size = (size_t)(16 + index % 8) * 1024 }, old_stack;

	number = index;
	fill(room, sizeof(room), (uint32_t)index);
	snprintf(name, sizeof(name), "thread %d", index);
	MUST(prctl(PR_SET_NAME, name));
	sigemptyset(&mask);
	sigaddset(&mask, 1 + index % 8);
	sigaddset(&mask, SIGRTMIN + index % 16);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	if (index % 4 != 0)
		MUST(sigaltstack(&stack, NULL));
	arrive();
	wait_for_release();

	CHECK(number == index, "TLS: %d in thread %d", number, index);
	CHECK_FILL(room, sizeof(room), (uint32_t)index);
	CHECK(thread_id() == tid, "tid %d, was %d", thread_id(), tid);
	CHECK(pthread_equal(pthread_self(), self), "pthread_self");
	MUST(prctl(PR_GET_NAME, found));
	CHECK(strcmp(found, name) == 0, "%s is called %s", name, found);
	pthread_sigmask(SIG_SETMASK, NULL, &old);
	CHECK(sigismember(&old, 1 + index % 8) && sigismember(&old, SIGRTMIN + index % 16) &&
		      sigismember(&old, SIGUSR1) && !sigismember(&old, SIGPIPE), "mask of %s", name);
	MUST(sigaltstack(NULL, &old_stack));
	if (index % 4 != 0)
		CHECK(old_stack.ss_sp == stack.ss_sp && old_stack.ss_size == stack.ss_size && old_stack.ss_flags == 0,
		      "altstack of %s: %p %zu %d", name, old_stack.ss_sp, old_stack.ss_size, old_stack.ss_flags);
	else
		CHECK(old_stack.ss_flags == SS_DISABLE, "%s has an altstack", name);
	return (void *)(intptr_t)(index + 1000);
}

CASE(many)
{
	pthread_t threads[MANY];
	void *result;
	MUST(sem_init(&release, 0, 0));
	for (int i = 0; i < MANY; i++)
		MUST0(pthread_create(&threads[i], NULL, many_thread, (void *)(intptr_t)i));
	await(&arrived, MANY);
	checkpoint();
	release_all(MANY);
	for (int i = 0; i < MANY; i++) {
		MUST0(pthread_join(threads[i], &result));
		CHECK((intptr_t)result == i + 1000, "thread %d returns %ld", i, (long)(intptr_t)result);
	}
	/* New ones start, with their TLS as the program has it. */
	for (int i = 0; i < MANY; i++)
		MUST0(pthread_create(&threads[i], NULL, many_thread, (void *)(intptr_t)i));
	release_all(MANY);
	for (int i = 0; i < MANY; i++)
		MUST0(pthread_join(threads[i], NULL));
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t other_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static bool flag;
static pid_t waiting[5];

static void *mutex_thread(void *argument)
{
	waiting[(intptr_t)argument] = thread_id();
	arrive();
	MUST0(pthread_mutex_lock(&other_mutex));
	MUST0(pthread_mutex_unlock(&other_mutex));
	return NULL;
}

static void *condition_thread(void *argument)
{
	MUST0(pthread_mutex_lock(&mutex));
	waiting[(intptr_t)argument] = thread_id();
	arrive();
	while (!flag)
		MUST0(pthread_cond_wait(&condition, &mutex));
	MUST0(pthread_mutex_unlock(&mutex));
	return NULL;
}

static void *barrier_thread(void *argument)
{
	waiting[(intptr_t)argument] = thread_id();
	arrive();
	int result = pthread_barrier_wait(&barrier);
	CHECK(result == 0 || result == PTHREAD_BARRIER_SERIAL_THREAD, "%d", result);
	return NULL;
}

static void *rwlock_thread(void *argument)
{
	waiting[(intptr_t)argument] = thread_id();
	arrive();
	MUST0(pthread_rwlock_wrlock(&rwlock));
	MUST0(pthread_rwlock_unlock(&rwlock));
	return NULL;
}

static pthread_t joined;

/* Waits for another thread's end: a futex on the word that the kernel clears at its exit. */
static void *join_thread(void *argument)
{
	void *result;
	waiting[(intptr_t)argument] = thread_id();
	arrive();
	MUST0(pthread_join(joined, &result));
	CHECK(result == (void *)7, "the joined thread returns %p", result);
	return NULL;
}

static void *joined_thread(void *unused)
{
	(void)unused;
	wait_for_release();
	return (void *)7;
}

CASE(waiting)
{
	static void *(*const bodies[])(void *) = { mutex_thread, condition_thread, barrier_thread, rwlock_thread,
						   join_thread };
	pthread_t threads[LENGTH(bodies)];
	MUST(sem_init(&release, 0, 0));
	MUST0(pthread_barrier_init(&barrier, NULL, 2));
	MUST0(pthread_mutex_lock(&other_mutex));
	MUST0(pthread_rwlock_rdlock(&rwlock));
	MUST0(pthread_create(&joined, NULL, joined_thread, NULL));
	for (size_t i = 0; i < LENGTH(bodies); i++)
		MUST0(pthread_create(&threads[i], NULL, bodies[i], (void *)i));
	await(&arrived, LENGTH(bodies));
	for (size_t i = 0; i < LENGTH(bodies); i++)
		await_sleep(waiting[i]);
	checkpoint();
	MUST0(pthread_mutex_unlock(&other_mutex));
	MUST0(pthread_rwlock_unlock(&rwlock));
	MUST0(pthread_mutex_lock(&mutex));
	flag = true;
	MUST0(pthread_cond_signal(&condition));
	MUST0(pthread_mutex_unlock(&mutex));
	int result = pthread_barrier_wait(&barrier);
	CHECK(result == 0 || result == PTHREAD_BARRIER_SERIAL_THREAD, "%d", result);
	release_all(1);
	for (size_t i = 0; i < LENGTH(bodies); i++)
		MUST0(pthread_join(threads[i], NULL));
}

static pthread_mutex_t robust;

static void *robust_owner(void *unused)
{
	(void)unused;
	MUST0(pthread_mutex_lock(&robust));
	arrive();
	wait_for_release();
	/* Ends as the owner. */
	return NULL;
}

CASE(robust_mutex)
{
	pthread_mutexattr_t attributes;
	pthread_t thread;
	MUST(sem_init(&release, 0, 0));
	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	MUST0(pthread_mutex_init(&robust, &attributes));
	MUST0(pthread_create(&thread, NULL, robust_owner, NULL));
	await(&arrived, 1);
	checkpoint();
	CHECK(pthread_mutex_trylock(&robust) == EBUSY, "the mutex is free");
	release_all(1);
	MUST0(pthread_join(thread, NULL));
	int result = pthread_mutex_lock(&robust);
	CHECK(result == EOWNERDEAD, "locking after the owner's death: %s", strerror(result));
	MUST0(pthread_mutex_consistent(&robust));
	MUST0(pthread_mutex_unlock(&robust));
}

/* Same between processes, in memory they share. */
static void robust_child(void *argument)
{
	MUST0(pthread_mutex_lock(argument));
	prepared();
	wait_for_go();
	_exit(0);
}

CASE(robust_shared)
{
	pthread_mutexattr_t attributes;
	pthread_mutex_t *shared = MUST((pthread_mutex_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
							      MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	MUST0(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
	MUST0(pthread_mutex_init(shared, &attributes));
	pid_t child = spawn(robust_child, shared);
	checkpoint();
	CHECK(pthread_mutex_trylock(shared) == EBUSY, "the mutex is free");
	finish(child);
	int result = pthread_mutex_lock(shared);
	CHECK(result == EOWNERDEAD, "locking after the owner's death: %s", strerror(result));
}

/* What the kernel was told about a thread: the addresses it writes to. */
struct registrations {
	void *robust_head;
	size_t robust_length;
	void *tid_address;
};

static struct registrations registrations(void)
{
	struct registrations found = { 0 };
	MUST(syscall(SYS_get_robust_list, 0, &found.robust_head, &found.robust_length));
	MUST(prctl(PR_GET_TID_ADDRESS, &found.tid_address));
	return found;
}

static void check_registrations(struct registrations before)
{
	struct registrations after = registrations();
	CHECK(after.robust_head == before.robust_head && after.robust_length == before.robust_length,
	      "robust list %p, was %p", after.robust_head, before.robust_head);
	CHECK(after.tid_address == before.tid_address, "tid address %p, was %p", after.tid_address, before.tid_address);
}

extern const ptrdiff_t __rseq_offset;
extern const unsigned int __rseq_size;

static struct rseq *rseq_area(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* The kernel fills the CPU number in, and answers a second registration by what is wrong with it. */
static void check_rseq(void)
{
	cpu_set_t all, one;
	struct rseq *area = rseq_area();
	MUST(sched_getaffinity(0, sizeof(all), &all));
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		MUST(sched_setaffinity(0, sizeof(one), &one));
		uint32_t seen = __atomic_load_n(&area->cpu_id, __ATOMIC_SEQ_CST);
		CHECK(seen == (uint32_t)cpu, "rseq says CPU %u on CPU %d", seen, cpu);
	}
	MUST(sched_setaffinity(0, sizeof(all), &all));
	CHECK(syscall(SYS_rseq, area, 32, 0, 0x53053053) == -1 && errno == EBUSY, "again: %s", strerror(errno));
	CHECK(syscall(SYS_rseq, area, 32, 0, 0x12345678) == -1 && errno == EPERM, "signature: %s", strerror(errno));
	CHECK(syscall(SYS_rseq, (char *)area + 64, 32, 0, 0x53053053) == -1 && errno == EINVAL, "address: %s",
	      strerror(errno));
}

static void *registered_thread(void *unused)
{
	(void)unused;
	struct registrations before = registrations();
	arrive();
	wait_for_release();
	check_registrations(before);
	check_rseq();
	return NULL;
}

CASE(registrations)
{
	enum { THREADS = 4 };
	pthread_t threads[THREADS];
	struct registrations before = registrations();
	CHECK(__rseq_size > 0, "glibc registered no rseq area");
	MUST(sem_init(&release, 0, 0));
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_create(&threads[i], NULL, registered_thread, NULL));
	await(&arrived, THREADS);
	checkpoint();
	release_all(THREADS);
	check_registrations(before);
	check_rseq();
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* A thread in every task of a family. */
static void *relative_thread(void *argument)
{
	number = (int)(intptr_t)argument;
	arrive();
	wait_for_release();
	CHECK(number == (int)(intptr_t)argument, "TLS is %d", number);
	return NULL;
}

static void relative(void *argument)
{
	pthread_t threads[3];
	arrived = 0;
	for (intptr_t i = 0; i < 3; i++)
		MUST0(pthread_create(&threads[i], NULL, relative_thread, (void *)((intptr_t)argument * 10 + i)));
	await(&arrived, 3);
	prepared();
	wait_for_go();
	release_all(3);
	for (int i = 0; i < 3; i++)
		MUST0(pthread_join(threads[i], NULL));
}

CASE(in_children)
{
	pid_t children[4];
	MUST(sem_init(&release, 0, 0));
	for (intptr_t i = 0; i < (intptr_t)LENGTH(children); i++)
		children[i] = spawn(relative, (void *)i);
	checkpoint();
	for (size_t i = 0; i < LENGTH(children); i++)
		finish(children[i]);
}

/* Locks in memory that tasks of both ABIs share: one that its owner dies with, and one with priority inheritance. */
struct shared_locks {
	uint32_t robust;
	uint32_t inheriting;
	/* In the owner's robust list. */
	void *entry;
};

static struct shared_locks *shared_locks(void)
{
	int fd = MUST(open("locks", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, (off_t)PAGE));
	struct shared_locks *locks = MUST((struct shared_locks *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
								     fd, 0));
	close(fd);
	return locks;
}

CASE(lock_owner)
{
	static struct robust_list_head head;
	struct shared_locks *locks = shared_locks();
	locks->robust = (uint32_t)thread_id() | FUTEX_WAITERS;
	head.list.next = (struct robust_list *)&locks->entry;
	locks->entry = &head;
	head.futex_offset = (char *)&locks->robust - (char *)&locks->entry;
	MUST(syscall(SYS_set_robust_list, &head, sizeof(head)));
	MUST(syscall(SYS_futex, &locks->inheriting, FUTEX_LOCK_PI, 0, NULL));
	prepared();
	wait_for_go();
	MUST(syscall(SYS_futex, &locks->inheriting, FUTEX_UNLOCK_PI));
}

static struct shared_locks *locks;

static void *robust_waiter(void *unused)
{
	uint32_t seen;
	(void)unused;
	waiting[0] = thread_id();
	while (!((seen = __atomic_load_n(&locks->robust, __ATOMIC_SEQ_CST)) & FUTEX_OWNER_DIED))
		syscall(SYS_futex, &locks->robust, FUTEX_WAIT, seen, NULL);
	CHECK(seen & FUTEX_WAITERS, "the lock is %#x", seen);
	return NULL;
}

static void *inheriting_waiter(void *unused)
{
	(void)unused;
	waiting[1] = thread_id();
	MUST(syscall(SYS_futex, &locks->inheriting, FUTEX_LOCK_PI, 0, NULL));
	CHECK((locks->inheriting & FUTEX_TID_MASK) == (uint32_t)thread_id(), "the lock is %#x", locks->inheriting);
	wait_for_release();
	MUST(syscall(SYS_futex, &locks->inheriting, FUTEX_UNLOCK_PI));
	return NULL;
}

CASE(mixed_locks)
{
	pthread_t threads[2];
	MUST(sem_init(&release, 0, 0));
	locks = shared_locks();
	pid_t owner = spawn_abi(other_abi, "lock_owner", NULL);
	MUST0(pthread_create(&threads[0], NULL, robust_waiter, NULL));
	MUST0(pthread_create(&threads[1], NULL, inheriting_waiter, NULL));
	for (int i = 0; i < 2; i++) {
		while (__atomic_load_n(&waiting[i], __ATOMIC_SEQ_CST) == 0)
			sched_yield();
		await_sleep(waiting[i]);
	}
	checkpoint();
	CHECK((locks->robust & FUTEX_TID_MASK) == (uint32_t)owner, "the robust lock is %#x", locks->robust);
	await_sleep(waiting[1]);
	long result = syscall(SYS_futex, &locks->inheriting, FUTEX_TRYLOCK_PI);
	CHECK(result == -1 && errno == EAGAIN, "trying the lock: %ld, %s", result, strerror(errno));
	finish(owner);
	MUST0(pthread_join(threads[0], NULL));
	release_all(1);
	MUST0(pthread_join(threads[1], NULL));
	CHECK((locks->inheriting & FUTEX_TID_MASK) == 0, "the lock is %#x", locks->inheriting);
}

/*
 * A thread that stays in a restartable sequence. Whatever takes it off its processor sends it to the abort handler; while
 * it is inside, the kernel must not have forgotten that it is.
 */
struct sequence {
	volatile uint32_t rounds;
	volatile uint32_t stop;
	volatile uint32_t aborts;
	volatile uint32_t forgotten;
};

void run_sequence(struct rseq *area, struct sequence *sequence);
#ifdef __x86_64__
__asm__(".data\n .balign 32\n"
	"sequence_descriptor: .long 0, 0\n .quad sequence_start, sequence_end - sequence_start, sequence_abort\n"
	".text\n"
	"run_sequence: lea sequence_descriptor(%rip), %rax\n"
	"1: mov %rax, 8(%rdi)\n"
	"sequence_start: cmp %rax, 8(%rdi)\n jne 2f\n incl (%rsi)\n cmpl $0, 4(%rsi)\n je sequence_start\n"
	"sequence_end: movq $0, 8(%rdi)\n ret\n"
	"2: movl $1, 12(%rsi)\n jmp sequence_end\n"
	".long 0x53053053\n"
	"sequence_abort: incl 8(%rsi)\n cmpl $0, 4(%rsi)\n je 1b\n ret\n");
#else
__asm__(".data\n .balign 32\n"
	"sequence_descriptor: .long 0, 0, sequence_start, 0, sequence_end - sequence_start, 0, sequence_abort, 0\n"
	".text\n"
	"run_sequence: push %esi\n push %edi\n mov 12(%esp), %edi\n mov 16(%esp), %esi\n"
	"call 3f\n 3: pop %eax\n add $_GLOBAL_OFFSET_TABLE_ + (. - 3b), %eax\n"
	"lea sequence_descriptor@GOTOFF(%eax), %eax\n movl $0, 12(%edi)\n"
	"1: mov %eax, 8(%edi)\n"
	"sequence_start: cmp %eax, 8(%edi)\n jne 2f\n incl (%esi)\n cmpl $0, 4(%esi)\n je sequence_start\n"
	"sequence_end: movl $0, 8(%edi)\n 4: pop %edi\n pop %esi\n ret\n"
	"2: movl $1, 12(%esi)\n jmp sequence_end\n"
	".long 0x53053053\n"
	"sequence_abort: incl 8(%esi)\n cmpl $0, 4(%esi)\n je 1b\n jmp 4b\n");
#endif

static void *sequence_thread(void *sequence)
{
	run_sequence(rseq_area(), sequence);
	return NULL;
}

CASE(sequence)
{
	static struct sequence sequence;
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, sequence_thread, &sequence));
	while (sequence.rounds < 1000 && !sequence.forgotten)
		sched_yield();
	checkpoint();
	uint32_t rounds = sequence.rounds;
	while (sequence.rounds - rounds < 1000 && !sequence.forgotten)
		sched_yield();
	sequence.stop = 1;
	MUST0(pthread_join(thread, NULL));
	CHECK(!sequence.forgotten, "in a sequence that the kernel forgot, after %u rounds", sequence.rounds);
	CHECK(sequence.aborts > 0, "never aborted");
}
