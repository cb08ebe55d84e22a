/* Settings that one system call makes and another reads, of address spaces and of threads. */
#include "workload.h"
#include <sys/shm.h>
#include <setjmp.h>
#include <x86intrin.h>

/* include/uapi/linux/prctl.h, membarrier.h and mempolicy.h; the C library's headers may be older. */
enum {
	SET_MDWE = 65, GET_MDWE, SET_MEMORY_MERGE, GET_MEMORY_MERGE,
	SPECULATION_GET = 52,
	TIMER_RESTORE_IDS = 77, RESTORE_IDS_ON = 1, RESTORE_IDS_GET = 2,
	EXCEPT_ADVISED = 2,
	REGISTER_GLOBAL = 1 << 2, REGISTER_PRIVATE = 1 << 4, PRIVATE = 1 << 3, GET_REGISTRATIONS = 1 << 9,
	PREFERRED = 1, BIND = 2, INTERLEAVE = 3, STATIC_NODES = 1 << 15, RELATIVE_NODES = 1 << 14, OF_ADDRESS = 2,
};
#define MASK_BITS 1024

static int membarrier(int command)
{
	return (int)syscall(SYS_membarrier, command, 0, 0);
}

static long huge_pages(void)
{
	return prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
}

static void *rest(void *unused)
{
	(void)unused;
	pause();
	return NULL;
}

/* Forked by a task with everything set: takes some back, so that the two differ. */
static void undo_some(void *unused)
{
	(void)unused;
	MUST(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
	MUST(prctl(SET_MEMORY_MERGE, 0, 0, 0, 0));
	prepared();
	wait_for_go();
	CHECK(huge_pages() == 0, "huge pages of the child: %ld", huge_pages());
	CHECK(prctl(GET_MEMORY_MERGE, 0, 0, 0, 0) == 0, "the child's memory is mergeable");
}

/* Whether the area at an address has "mg" in smaps. */
static bool mergeable(const void *address)
{
	char line[1024], flags[1024] = "";
	unsigned long start, end, wanted = (unsigned long)(uintptr_t)address;
	bool inside = false;
	FILE *smaps = fopen("/proc/self/smaps", "re");
	while (fgets(line, sizeof(line), smaps) != NULL) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= wanted && wanted < end;
		if (inside && strncmp(line, "VmFlags:", 8) == 0)
			strcpy(flags, line);
	}
	fclose(smaps);
	CHECK(flags[0] != 0, "no area at %p", address);
	return strstr(flags, " mg") != NULL;
}

CASE(memory_settings)
{
	pthread_t thread;
	char *apart = map_anonymous(4 * PAGE);
	MUST(prctl(SET_MEMORY_MERGE, 1, 0, 0, 0));
	if (prctl(PR_SET_THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0) == -1)
		MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	long disabled = huge_pages();
	pid_t child = spawn(undo_some, NULL);
	MUST(madvise(apart + PAGE, PAGE, MADV_UNMERGEABLE));
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	checkpoint();
	CHECK(huge_pages() == disabled, "huge pages: %ld, was %ld", huge_pages(), disabled);
	CHECK(prctl(GET_MEMORY_MERGE, 0, 0, 0, 0) == 1, "memory is not mergeable");
	CHECK(mergeable(apart) && !mergeable(apart + PAGE) && mergeable(apart + 2 * PAGE), "what is mergeable");
	CHECK(mergeable(map_anonymous(16 * PAGE)), "new memory is not mergeable");
	finish(child);
}

CASE(barriers)
{
	pthread_t thread;
	MUST(membarrier(REGISTER_PRIVATE));
	MUST(membarrier(REGISTER_GLOBAL));
	int before = membarrier(GET_REGISTRATIONS);
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	checkpoint();
	CHECK(membarrier(PRIVATE) == 0, "a barrier: %s", strerror(errno));
	CHECK(membarrier(GET_REGISTRATIONS) == before, "registrations %#x, were %#x", membarrier(GET_REGISTRATIONS), before);
	CHECK(membarrier(1 << 5) == -1 && errno == EPERM, "a barrier that was not registered for");
}

CASE(timer_ids)
{
	bool known = prctl(TIMER_RESTORE_IDS, RESTORE_IDS_ON, 0, 0, 0) == 0;
	checkpoint();
	CHECK(!known || prctl(TIMER_RESTORE_IDS, RESTORE_IDS_GET, 0, 0, 0) == 1, "timers get ids of their own");
}

/* KiB of locked memory. */
static long locked(void)
{
	/* Not by stdio, which maps memory of its own. */
	static char text[8192];
	int fd = MUST(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
	text[MUST(read(fd, text, sizeof(text) - 1))] = 0;
	close(fd);
	return atol(strstr(text, "VmLck:") + strlen("VmLck:"));
}

static void check_fresh(bool resident)
{
	unsigned char there[4];
	long before = locked();
	char *fresh = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	long added = locked() - before;
	CHECK(added == 16, "a new mapping adds %ld KiB of locked memory", added);
	MUST(mincore(fresh, 4 * PAGE, there));
	CHECK((there[3] & 1) == resident, "a new page is %s", resident ? "not there" : "there at once");
}

CASE(lock_future)
{
	MUST(mlockall(MCL_FUTURE));
	char *early = map_anonymous(8 * PAGE);
	MUST(munlock(early, 2 * PAGE));
	checkpoint();
	check_fresh(true);
	fill(early, 8 * PAGE, 1);
}

CASE(lock_future_on_fault)
{
	MUST(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT));
	checkpoint();
	check_fresh(false);
}

struct policy {
	int mode;
	uint64_t nodes[MASK_BITS / 64];
};

static struct policy policy_of(const void *address)
{
	struct policy found = { .mode = -1 };
	MUST(syscall(SYS_get_mempolicy, &found.mode, found.nodes, MASK_BITS, address, address ? OF_ADDRESS : 0));
	return found;
}

static void set_policy(void *address, size_t length, int mode)
{
	uint64_t nodes[MASK_BITS / 64] = { mode == 0 ? 0 : 1 };
	if (address != NULL)
		MUST(syscall(SYS_mbind, address, length, mode, nodes, MASK_BITS, 0));
	else
		MUST(syscall(SYS_set_mempolicy, mode, nodes, MASK_BITS));
}

static void check_policy(const void *address, const struct policy *before)
{
	struct policy after = policy_of(address);
	CHECK(memcmp(before, &after, sizeof(after)) == 0, "policy of %p: mode %#x nodes %#lx, was %#x %#lx", address,
	      (unsigned)after.mode, (long)after.nodes[0], (unsigned)before->mode, (long)before->nodes[0]);
}

static volatile int arrived, leave;

static void arrive_and_wait(void)
{
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (!leave)
		syscall(SYS_futex, &leave, 0, 0, NULL);
}

static void let_leave(void)
{
	leave = 1;
	syscall(SYS_futex, &leave, 1, 100);
}

static const int thread_modes[] = { 0, BIND | STATIC_NODES, INTERLEAVE, PREFERRED | RELATIVE_NODES };

static void *with_policy(void *mode)
{
	set_policy(NULL, 0, (int)(intptr_t)mode);
	struct policy before = policy_of(NULL);
	arrive_and_wait();
	check_policy(NULL, &before);
	return NULL;
}

/* Threads with policies of their own under a leader with another. */
CASE(thread_policies)
{
	pthread_t threads[LENGTH(thread_modes)];
	set_policy(NULL, 0, BIND);
	struct policy before = policy_of(NULL);
	CHECK(before.mode == BIND && before.nodes[0] == 1, "mode %#x", (unsigned)before.mode);
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_create(&threads[i], NULL, with_policy, (void *)(intptr_t)thread_modes[i]));
	await(&arrived, LENGTH(threads));
	checkpoint();
	check_policy(NULL, &before);
	let_leave();
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* More areas than are asked about at once, and so many that they are read about all together. */
enum { SOME = 150, MANY = 1500 };

/* Areas with and without pages, and one of a file. */
static void check_areas(size_t count)
{
	static const int modes[] = { 0, BIND | STATIC_NODES, INTERLEAVE, PREFERRED };
	char *memory = map_anonymous(2 * count * PAGE);
	static struct policy before[MANY], of_file;
	int fd = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	char *file = MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	close(fd);
	set_policy(file, PAGE, INTERLEAVE | STATIC_NODES);
	of_file = policy_of(file);
	for (size_t i = 0; i < count; i++) {
		char *area = memory + 2 * i * PAGE;
		if (modes[i % 4] != 0)
			set_policy(area, 2 * PAGE, modes[i % 4]);
		if (i % 3 == 0)
			fill(area, 2 * PAGE, (uint32_t)i);
		before[i] = policy_of(area);
	}
	checkpoint();
	check_policy(file, &of_file);
	for (size_t i = 0; i < count; i++) {
		check_policy(memory + 2 * i * PAGE, &before[i]);
		if (i % 3 == 0)
			CHECK_FILL(memory + 2 * i * PAGE, 2 * PAGE, (uint32_t)i);
	}
}

CASE(area_policies)
{
	check_areas(SOME);
}

CASE(policies_of_many_areas)
{
	check_areas(MANY);
}

/* Four pages each: none, one, another, none. */
static void set_policies(char *area)
{
	set_policy(area + 4 * PAGE, 4 * PAGE, BIND | STATIC_NODES);
	set_policy(area + 8 * PAGE, 4 * PAGE, INTERLEAVE);
	fill(area + 6 * PAGE, 4 * PAGE, 1);
}

static void check_policies(char *area, const struct policy *expected)
{
	for (size_t i = 0; i < 4; i++) {
		check_policy(area + 4 * i * PAGE, &expected[i]);
		check_policy(area + (4 * i + 3) * PAGE, &expected[i]);
	}
	CHECK_FILL(area + 6 * PAGE, 4 * PAGE, 1);
}

/* Anonymous, a memfd, a file, a segment. */
enum { OBJECTS = 4 };
static char *objects[OBJECTS];
static struct policy of_objects[OBJECTS][4];
static int memfd;

static void sharer(void *unused)
{
	(void)unused;
	/* In one piece, by which the kernel shows the policies all the same; and one that begins with one. */
	char *whole = MUST((char *)mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0));
	char *part = MUST((char *)mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, memfd, 4 * PAGE));
	MUST(munmap(objects[2] + 4 * PAGE, 4 * PAGE));
	prepared();
	wait_for_go();
	check_policies(whole, of_objects[1]);
	check_policy(part, &of_objects[1][1]);
	check_policy(part + 4 * PAGE, &of_objects[1][2]);
	check_policies(objects[0], of_objects[0]);
	check_policies(objects[3], of_objects[3]);
	check_policy(objects[2] + 8 * PAGE, &of_objects[2][2]);
}

/* Policies of memory that tasks share, whose areas are not all those of the one who set them. */
CASE(shared_policies)
{
	int segment = MUST(shmget(IPC_PRIVATE, 16 * PAGE, 0600)), file = MUST(open("shared", O_CREAT | O_RDWR | O_EXCL, 0600));
	memfd = MUST(memfd_create("shared", 0));
	MUST(ftruncate(memfd, 16 * (off_t)PAGE));
	MUST(ftruncate(file, 16 * (off_t)PAGE));
	objects[0] = MUST((char *)mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	objects[1] = MUST((char *)mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0));
	objects[2] = MUST((char *)mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	objects[3] = MUST((char *)shmat(segment, NULL, 0));
	for (size_t i = 0; i < OBJECTS; i++) {
		set_policies(objects[i]);
		for (size_t j = 0; j < 4; j++)
			of_objects[i][j] = policy_of(objects[i] + 4 * j * PAGE);
	}
	pid_t child = spawn(sharer, NULL);
	MUST(shmctl(segment, IPC_RMID, NULL));
	checkpoint();
	for (size_t i = 0; i < OBJECTS; i++)
		check_policies(objects[i], of_objects[i]);
	finish(child);
}

/* The leader's policy, which numa_maps shows for areas without one. */
CASE(area_policies_under_another)
{
	set_policy(NULL, 0, BIND);
	check_areas(SOME);
}

static sigjmp_buf no_counter;

static void on_fault(int signal)
{
	(void)signal;
	siglongjmp(no_counter, 1);
}

/* Whether this thread may read the time stamp counter. */
static bool counts(void)
{
	if (sigsetjmp(no_counter, 1) != 0)
		return false;
	return __rdtsc() != 0;
}

static void *without_counter(void *unused)
{
	int mode = 0;
	(void)unused;
	MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
	MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
	arrive_and_wait();
	MUST(prctl(PR_GET_TSC, &mode));
	CHECK(mode == PR_TSC_SIGSEGV, "mode of the counter: %d", mode);
	CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_LATE, "machine check policy");
	return NULL;
}

CASE(thread_settings)
{
	pthread_t thread;
	struct sigaction action = { .sa_handler = on_fault };
	MUST(sigaction(SIGSEGV, &action, NULL));
	MUST0(pthread_create(&thread, NULL, without_counter, NULL));
	await(&arrived, 1);
	MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	int speculation[3];
	for (int i = 0; i < 3; i++)
		speculation[i] = prctl(SPECULATION_GET, i, 0, 0, 0);
	checkpoint();
	CHECK(counts(), "the counter is forbidden to the main thread");
	CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY, "machine check policy");
	for (int i = 0; i < 3; i++)
		CHECK(prctl(SPECULATION_GET, i, 0, 0, 0) == speculation[i], "speculation control %d", i);
	let_leave();
	MUST0(pthread_join(thread, NULL));
}

/* The leader alone may not read it. */
CASE(no_counter)
{
	struct sigaction action = { .sa_handler = on_fault };
	MUST(sigaction(SIGSEGV, &action, NULL));
	MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
	checkpoint();
	CHECK(!counts(), "the counter can be read");
}

static unsigned number_in(const char *path)
{
	unsigned number = 0;
	FILE *file = fopen(path, "re");
	CHECK(file != NULL && fscanf(file, "%u", &number) == 1, "%s: %s", path, strerror(errno));
	if (file != NULL)
		fclose(file);
	return number;
}

static void log_in(unsigned uid)
{
	FILE *file = fopen("/proc/self/loginuid", "we");
	CHECK(file != NULL && fprintf(file, "%u", uid) > 0 && fclose(file) == 0, "log in: %s", strerror(errno));
}

static unsigned session_of(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/sessionid", (int)pid);
	return number_in(path);
}

static char *kept;

static void of_another_login(void *unused)
{
	(void)unused;
	log_in(4322);
	prepared();
	wait_for_go();
	CHECK(number_in("/proc/self/loginuid") == 4322, "the child's login: %u", number_in("/proc/self/loginuid"));
	CHECK(kept[0] == 'k', "shared memory");
	CHECK(session_of(getpid()) != session_of(getppid()), "the child is in its parent's session");
}

static void of_the_same_login(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
	CHECK(number_in("/proc/self/loginuid") == 4321, "the sibling's login: %u", number_in("/proc/self/loginuid"));
	CHECK(session_of(getpid()) == session_of(getppid()), "session %u", session_of(getpid()));
}

/* Who logged in, as auditing and getlogin(3) have it: of a task, of a child that shares pages with it, of one from another login. */
CASE(logins)
{
	kept = MUST((char *)mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memset(kept, 'k', 64 * PAGE);
	log_in(4321);
	pid_t other = spawn(of_another_login, NULL), same = spawn(of_the_same_login, NULL);
	checkpoint();
	CHECK(number_in("/proc/self/loginuid") == 4321, "login %u", number_in("/proc/self/loginuid"));
	finish(other);
	finish(same);
}
