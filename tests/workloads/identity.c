/* What a task is to the kernel beside its memory and files: names, limits, credentials, scheduling. */
#include "workload.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/utsname.h>

/* One attribute that a prctl reads. */
static int option(int get)
{
	int value = -1;
	switch (get) {
	case PR_GET_PDEATHSIG:
	case PR_GET_CHILD_SUBREAPER:
		MUST(prctl(get, &value));
		return value;
	default:
		return MUST(prctl(get, 0, 0, 0, 0));
	}
}

static void write_file(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static const int options[] = { PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER, PR_GET_DUMPABLE,  PR_GET_NO_NEW_PRIVS,
			       PR_GET_SECUREBITS, PR_GET_KEEPCAPS,       PR_GET_TIMERSLACK };

static void check_options(const int *before)
{
	for (size_t i = 0; i < LENGTH(options); i++)
		CHECK(option(options[i]) == before[i], "prctl %d gives %d, was %d", options[i], option(options[i]), before[i]);
}

static void save_options(int *values)
{
	for (size_t i = 0; i < LENGTH(options); i++)
		values[i] = option(options[i]);
}

CASE(attributes)
{
	int before[LENGTH(options)];
	char cwd[256], path[300];
	MUST(mkdir("somewhere", 0700));
	MUST(chdir("somewhere"));
	umask(0137);
	MUST(prctl(PR_SET_NAME, "new name (x)"));
	MUST(prctl(PR_SET_PDEATHSIG, SIGHUP));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(prctl(PR_SET_TIMERSLACK, 123456));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(personality(ADDR_NO_RANDOMIZE | (unsigned)personality(0xffffffff)));
	write_file("/proc/self/oom_score_adj", "500");
	write_file("/proc/self/coredump_filter", "0x7b");
	save_options(before);
	checkpoint();
	check_options(before);
	CHECK(umask(0) == 0137, "umask");
	CHECK(getcwd(cwd, sizeof(cwd)) != NULL && strcmp(strrchr(cwd, '/'), "/somewhere") == 0, "in %s", cwd);
	CHECK((unsigned)personality(0xffffffff) & ADDR_NO_RANDOMIZE, "personality");
	snprintf(path, sizeof(path), "%s/new", cwd);
	int fd = MUST(open("new", O_CREAT | O_WRONLY, 0600));
	close(fd);
	CHECK(access(path, F_OK) == 0, "a file made in the working directory is elsewhere");
}

CASE(undumpable)
{
	MUST(prctl(PR_SET_DUMPABLE, 0));
	checkpoint();
	CHECK(option(PR_GET_DUMPABLE) == 0, "dumpable is %d", option(PR_GET_DUMPABLE));
}

CASE(limits)
{
	static const struct {
		int resource;
		struct rlimit limit;
	} wanted[] = {
		{ RLIMIT_NOFILE, { 300, 400 } },       { RLIMIT_CORE, { 0, 0 } },
		{ RLIMIT_STACK, { 4 << 20, 64 << 20 } }, { RLIMIT_FSIZE, { 1 << 30, 1 << 30 } },
		{ RLIMIT_NPROC, { 500, 600 } },        { RLIMIT_CPU, { 1000, 2000 } },
		{ RLIMIT_DATA, { 1 << 30, 1 << 30 } }, { RLIMIT_MEMLOCK, { 65536, 65536 } },
		{ RLIMIT_SIGPENDING, { 100, 100 } },   { RLIMIT_RTPRIO, { 0, 0 } },
	};
	for (size_t i = 0; i < LENGTH(wanted); i++)
		MUST(setrlimit(wanted[i].resource, &wanted[i].limit));
	checkpoint();
	for (size_t i = 0; i < LENGTH(wanted); i++) {
		struct rlimit found;
		MUST(getrlimit(wanted[i].resource, &found));
		CHECK(memcmp(&found, &wanted[i].limit, sizeof(found)) == 0, "limit %d is %ld %ld", wanted[i].resource,
		      (long)found.rlim_cur, (long)found.rlim_max);
	}
	/* Lower than what is open. */
	int last = -1, fd;
	while ((fd = dup(0)) >= 0)
		last = fd;
	CHECK(errno == EMFILE && last == 299, "the last descriptor is %d", last);
}

struct kernel_sched_attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

static struct kernel_sched_attr attributes_of(pid_t tid)
{
	struct kernel_sched_attr found = { 0 };
	MUST(syscall(SYS_sched_getattr, tid, &found, sizeof(found), 0));
	return found;
}

static const struct {
	int policy;
	int priority;
	int nice;
} policies[] = {
	{ SCHED_OTHER, 0, 7 }, { SCHED_BATCH, 0, 3 }, { SCHED_IDLE, 0, 0 },
	{ SCHED_FIFO, 5, 0 },  { SCHED_RR, 9, 0 },    { SCHED_RR | SCHED_RESET_ON_FORK, 2, 0 },
};

static pid_t scheduled[LENGTH(policies)];
static volatile int arrived, leave;

static void *scheduled_thread(void *argument)
{
	size_t i = (size_t)argument;
	struct sched_param parameter = { .sched_priority = policies[i].priority };
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	scheduled[i] = thread_id();
	if (i % 2 == 0)
		MUST(sched_setaffinity(0, sizeof(one), &one));
	/* Class best effort, level i. */
	MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (int)i));
	MUST(setpriority(PRIO_PROCESS, (id_t)scheduled[i], policies[i].nice));
	MUST(sched_setscheduler(0, policies[i].policy, &parameter));
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &leave, 0, 0, NULL);
	return NULL;
}

CASE(scheduling)
{
	pthread_t threads[LENGTH(policies)];
	struct kernel_sched_attr before[LENGTH(policies)];
	cpu_set_t affinity[LENGTH(policies)], found;
	for (size_t i = 0; i < LENGTH(policies); i++)
		MUST0(pthread_create(&threads[i], NULL, scheduled_thread, (void *)i));
	await(&arrived, LENGTH(policies));
	for (size_t i = 0; i < LENGTH(policies); i++) {
		before[i] = attributes_of(scheduled[i]);
		MUST(sched_getaffinity(scheduled[i], sizeof(affinity[i]), &affinity[i]));
	}
	MUST(setpriority(PRIO_PROCESS, 0, 5));
	checkpoint();
	CHECK(getpriority(PRIO_PROCESS, 0) == 5, "nice %d", getpriority(PRIO_PROCESS, 0));
	for (size_t i = 0; i < LENGTH(policies); i++) {
		struct kernel_sched_attr after = attributes_of(scheduled[i]);
		CHECK(memcmp(&before[i], &after, sizeof(after)) == 0,
		      "thread %zu: policy %u priority %u nice %d flags %#lx, was %u %u %d %#lx", i, after.policy,
		      after.priority, after.nice, (long)after.flags, before[i].policy, before[i].priority, before[i].nice,
		      (long)before[i].flags);
		MUST(sched_getaffinity(scheduled[i], sizeof(found), &found));
		CHECK(CPU_EQUAL(&found, &affinity[i]), "affinity of thread %zu", i);
		long priority = MUST(syscall(SYS_ioprio_get, 1, scheduled[i]));
		CHECK(priority == (2 << 13 | (long)i), "I/O priority of thread %zu is %#lx", i, priority);
	}
	leave = 1;
	syscall(SYS_futex, &leave, 1, 100);
	for (size_t i = 0; i < LENGTH(policies); i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* A thread with a share of each period of its own, which the kernel has to admit; its children do not get one. */
static void *deadline_thread(void *unused)
{
	enum { DEADLINE = 6, RESET_ON_FORK = 1, RECLAIM = 2 };
	struct kernel_sched_attr wanted = {
		.size = sizeof(wanted),
		.policy = DEADLINE,
		.flags = RESET_ON_FORK | RECLAIM,
		.runtime = 2000000,
		.deadline = 20000000,
		.period = 40000000,
	};
	(void)unused;
	MUST(syscall(SYS_sched_setattr, 0, &wanted, 0));
	scheduled[0] = thread_id();
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (!leave)
		syscall(SYS_futex, &leave, 0, 0, NULL);
	return NULL;
}

CASE(deadline)
{
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, deadline_thread, NULL));
	await(&arrived, 1);
	struct kernel_sched_attr before = attributes_of(scheduled[0]);
	checkpoint();
	struct kernel_sched_attr after = attributes_of(scheduled[0]);
	CHECK(memcmp(&before, &after, sizeof(after)) == 0,
	      "policy %u flags %#lx runtime %lu deadline %lu period %lu", after.policy, (long)after.flags,
	      (long)after.runtime, (long)after.deadline, (long)after.period);
	leave = 1;
	syscall(SYS_futex, &leave, 1, 100);
	MUST0(pthread_join(thread, NULL));
}

struct capabilities {
	struct __user_cap_data_struct sets[2];
};

static struct capabilities capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct capabilities found;
	MUST(syscall(SYS_capget, &header, &found));
	return found;
}

static void set_capabilities(struct capabilities wanted)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	MUST(syscall(SYS_capset, &header, &wanted));
}

static const gid_t groups[] = { 10, 20, 30, 100000 };

static void check_ids(uid_t base)
{
	uid_t real, effective, saved;
	gid_t found[16];
	MUST(getresuid(&real, &effective, &saved));
	CHECK(real == base && effective == base + 1 && saved == base + 2, "uids %u %u %u", real, effective, saved);
	MUST(getresgid(&real, &effective, &saved));
	CHECK(real == base + 10 && effective == base + 11 && saved == base + 12, "gids %u %u %u", real, effective, saved);
	int count = MUST(getgroups(LENGTH(found), found));
	CHECK(count == (int)LENGTH(groups) && memcmp(found, groups, sizeof(groups)) == 0, "%d groups", count);
}

/* An unprivileged user that kept a few capabilities, with everything about them set to something unusual. */
CASE(credentials)
{
	int before[LENGTH(options)];
	struct capabilities wanted, found;
	const uint32_t kept = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_SYS_NICE | 1u << CAP_DAC_OVERRIDE;
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
	MUST(prctl(PR_CAPBSET_DROP, CAP_MKNOD));
	MUST(setgroups(LENGTH(groups), groups));
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS));
	MUST(setresgid(1010, 1011, 1012));
	MUST(setresuid(1000, 1001, 1002));
	wanted = capabilities();
	wanted.sets[0].effective = 1u << CAP_SYS_NICE;
	wanted.sets[0].permitted = kept;
	wanted.sets[0].inheritable = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_SYS_NICE;
	memset(&wanted.sets[1], 0, sizeof(wanted.sets[1]));
	set_capabilities(wanted);
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
	save_options(before);
	checkpoint();
	check_ids(1000);
	check_options(before);
	found = capabilities();
	CHECK(memcmp(&found, &wanted, sizeof(found)) == 0, "effective %#x permitted %#x inheritable %#x",
	      found.sets[0].effective, found.sets[0].permitted, found.sets[0].inheritable);
	CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0) == 1, "ambient");
	CHECK(prctl(PR_CAPBSET_READ, CAP_MKNOD) == 0 && prctl(PR_CAPBSET_READ, CAP_CHOWN) == 1, "bounding set");
	CHECK(setpriority(PRIO_PROCESS, 0, -3) == 0, "CAP_SYS_NICE does not work: %s", strerror(errno));
	CHECK(setresuid(0, 0, 0) == -1 && errno == EPERM, "could become root");
}

/* A task that any process of its user may look at. */
CASE(ordinary)
{
	MUST(setgroups(0, NULL));
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	MUST(prctl(PR_SET_DUMPABLE, 1));
	checkpoint();
	CHECK(getuid() == 1000 && setuid(0) == -1, "user %d", getuid());
}

/* As many groups as the kernel allows, in a thread too. */
enum { MOST_GROUPS = 65536 };
static gid_t many[MOST_GROUPS];

static void check_many(void)
{
	static gid_t found[MOST_GROUPS];
	int count = MUST(getgroups(MOST_GROUPS, found));
	CHECK(count == MOST_GROUPS && memcmp(found, many, sizeof(many)) == 0, "%d groups", count);
}

CASE(many_groups)
{
	for (size_t i = 0; i < MOST_GROUPS; i++)
		many[i] = (gid_t)(i * 65521);
	/* The kernel keeps them sorted. */
	MUST(setgroups(MOST_GROUPS, many));
	MUST(getgroups(MOST_GROUPS, many));
	checkpoint();
	check_many();
}

/* Every securebit with its lock, and an unprivileged user with capabilities to pass on. */
CASE(locked_securebits)
{
	const unsigned long all = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
				  SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS | SECBIT_KEEP_CAPS_LOCKED |
				  SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
	struct capabilities wanted = capabilities(), found;
	wanted.sets[0].inheritable = wanted.sets[0].permitted;
	wanted.sets[1].inheritable = wanted.sets[1].permitted;
	set_capabilities(wanted);
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_NICE, 0, 0));
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
	MUST(prctl(PR_SET_SECUREBITS, all));
	MUST(setresuid(0, 1000, 0));
	checkpoint();
	CHECK(option(PR_GET_SECUREBITS) == (int)all, "securebits %#x", option(PR_GET_SECUREBITS));
	CHECK(prctl(PR_SET_SECUREBITS, 0) == -1 && errno == EPERM, "the locks are open");
	CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_SYS_NICE, 0, 0) == 1 &&
		      prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0) == 1 &&
		      prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0) == 0,
	      "ambient set");
	found = capabilities();
	CHECK(memcmp(&found, &wanted, sizeof(found)) == 0, "effective %#x permitted %#x inheritable %#x",
	      found.sets[0].effective, found.sets[0].permitted, found.sets[0].inheritable);
}

/* The kernel keeps credentials per thread; the C library hides it, the bare system call does not. */
static volatile int thread_arrived;
static volatile int thread_leave;

static void *other_user(void *unused)
{
	(void)unused;
#ifdef __i386__
	MUST(syscall(SYS_setgroups32, LENGTH(groups), groups));
	MUST(syscall(SYS_setresgid32, 2010, 2011, 2012));
	MUST(syscall(SYS_setresuid32, 2000, 2001, 2002));
#else
	MUST(syscall(SYS_setgroups, LENGTH(groups), groups));
	MUST(syscall(SYS_setresgid, 2010, 2011, 2012));
	MUST(syscall(SYS_setresuid, 2000, 2001, 2002));
#endif
	__atomic_store_n(&thread_arrived, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &thread_leave, 0, 0, NULL);
	check_ids(2000);
	return NULL;
}

CASE(thread_credentials)
{
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, other_user, NULL));
	await(&thread_arrived, 1);
	checkpoint();
	CHECK(geteuid() == 0, "the main thread is user %d", geteuid());
	thread_leave = 1;
	syscall(SYS_futex, &thread_leave, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

CASE(chrooted)
{
	char cwd[256];
	MUST(mkdir("top", 0755));
	MUST(mkdir("top/inside", 0755));
	MUST(chroot("top"));
	MUST(chdir("/inside"));
	checkpoint();
	CHECK(getcwd(cwd, sizeof(cwd)) != NULL && strcmp(cwd, "/inside") == 0, "in %s", cwd);
	CHECK(access("/inside", F_OK) == 0 && access("/proc", F_OK) == -1, "another root");
}

/* As daemons do that show their state: the argument's memory is overwritten, and a new environment is in the heap. */
CASE(arguments)
{
	memset(case_argv[1], '#', strlen(case_argv[1]));
	MUST(setenv("ADDED", "after start", 1));
	checkpoint();
	CHECK(case_argv[1][0] == '#' && case_argv[2] == NULL, "argv");
	CHECK(strcmp(getenv("ADDED"), "after start") == 0 && getenv("WORKLOADS") != NULL, "environment");
}

/* Every bit but those that decide about the address space at the next exec, which have a case each. */
CASE(personality)
{
	const unsigned bits = PER_LINUX32 | UNAME26 | FDPIC_FUNCPTRS | MMAP_PAGE_ZERO | ADDR_COMPAT_LAYOUT |
			      READ_IMPLIES_EXEC | SHORT_INODE | WHOLE_SECONDS | STICKY_TIMEOUTS;
	struct utsname name;
	MUST(personality(bits));
	checkpoint();
	CHECK((unsigned)personality(0xffffffff) == bits, "personality %#x", (unsigned)personality(0xffffffff));
	MUST(uname(&name));
	CHECK(strcmp(name.machine, "i686") == 0, "machine %s", name.machine);
	CHECK(strncmp(name.release, "2.6.", 4) == 0, "release %s", name.release);
	/* ret. */
	char *code = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	code[0] = (char)0xc3;
	((void (*)(void))(void *)code)();
}

static unsigned personality_of(pid_t thread)
{
	char path[64], text[16] = "";
	snprintf(path, sizeof(path), "/proc/self/task/%d/personality", thread);
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	MUST((int)read(fd, text, sizeof(text) - 1));
	close(fd);
	return (unsigned)strtoul(text, NULL, 16);
}

static pid_t second_thread;

static void *execute_data(void *unused)
{
	(void)unused;
	second_thread = thread_id();
	__atomic_store_n(&thread_arrived, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &thread_leave, 0, 0, NULL);
	/* ret. */
	char *code = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	code[0] = (char)0xc3;
	((void (*)(void))(void *)code)();
	return NULL;
}

/* Each thread has a personality of its own. */
CASE(personality_of_threads)
{
	const unsigned bits = PER_LINUX | ADDR_NO_RANDOMIZE | MMAP_PAGE_ZERO | READ_IMPLIES_EXEC;
	pthread_t thread;
	MUST(personality(bits));
	MUST0(pthread_create(&thread, NULL, execute_data, NULL));
	await(&thread_arrived, 1);
	CHECK(personality_of(second_thread) == bits, "personality %#x at first", personality_of(second_thread));
	checkpoint();
	CHECK(personality_of(getpid()) == bits, "personality %#x", personality_of(getpid()));
	CHECK(personality_of(second_thread) == bits, "personality %#x of the thread", personality_of(second_thread));
	thread_leave = 1;
	syscall(SYS_futex, &thread_leave, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

/* One that has changed its own: data can be executed that it maps, but not what others do. */
static void *with_executable_data(void *unused)
{
	MUST(personality(PER_LINUX | READ_IMPLIES_EXEC));
	return execute_data(unused);
}

CASE(personality_of_one_thread)
{
	pthread_t thread;
	MUST(personality(PER_LINUX | ADDR_NO_RANDOMIZE));
	MUST0(pthread_create(&thread, NULL, with_executable_data, NULL));
	await(&thread_arrived, 1);
	checkpoint();
	CHECK(personality_of(getpid()) == (PER_LINUX | ADDR_NO_RANDOMIZE), "personality %#x", personality_of(getpid()));
	CHECK(personality_of(second_thread) == READ_IMPLIES_EXEC, "personality %#x of the thread", personality_of(second_thread));
	thread_leave = 1;
	syscall(SYS_futex, &thread_leave, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

/* A page at address 0, as System V had it. */
CASE(page_zero)
{
	unsigned persona = (unsigned)MUST(personality(0xffffffff));
	if (!(persona & MMAP_PAGE_ZERO)) {
		MUST(personality(persona | MMAP_PAGE_ZERO));
		MUST(execl("/proc/self/exe", "identity", "page_zero", NULL));
	}
	const char *volatile zero = NULL;
	CHECK(*zero == 0, "it holds %d", *zero);
	checkpoint();
	CHECK(*zero == 0, "it holds %d", *zero);
	CHECK((unsigned)personality(0xffffffff) & MMAP_PAGE_ZERO, "personality");
}

/* An ia32 address space of 3 GiB instead of 4; x86_64 does not heed it. */
CASE(three_gigabytes)
{
	unsigned persona = (unsigned)MUST(personality(0xffffffff));
	if (!(persona & ADDR_LIMIT_3GB)) {
		MUST(personality(persona | ADDR_LIMIT_3GB));
		MUST(execl("/proc/self/exe", "identity", "three_gigabytes", NULL));
	}
	char *data = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	CHECK(sizeof(void *) == 8 || (uintptr_t)data < 0xc0000000u, "mapped at %p", (void *)data);
	checkpoint();
	CHECK((unsigned)personality(0xffffffff) & ADDR_LIMIT_3GB, "personality");
	data[0] = 1;
}
