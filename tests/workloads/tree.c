/* Trees: who is whose parent, process groups, sessions, and tasks of both ABIs in one tree. */
#include "workload.h"

struct place {
	pid_t pid, parent, group, session;
};

static struct place here(void)
{
	return (struct place){ getpid(), getppid(), getpgid(0), getsid(0) };
}

static void check_here(struct place before)
{
	struct place after = here();
	CHECK(memcmp(&before, &after, sizeof(after)) == 0, "pid %d parent %d group %d session %d, was %d %d %d %d",
	      after.pid, after.parent, after.group, after.session, before.pid, before.parent, before.group,
	      before.session);
}

static void leaf(void *group)
{
	if (group != NULL)
		MUST(setpgid(0, *(pid_t *)group));
	struct place before = here();
	prepared();
	wait_for_go();
	check_here(before);
}

static void group_leader(void *unused)
{
	(void)unused;
	MUST(setpgid(0, 0));
	pid_t own = getpgid(0);
	pid_t members[2] = { spawn(leaf, NULL), spawn(leaf, &own) };
	struct place before = here();
	prepared();
	wait_for_go();
	check_here(before);
	finish(members[0]);
	finish(members[1]);
}

static void session_leader(void *unused)
{
	(void)unused;
	MUST(setsid());
	pid_t own_group = 0;
	pid_t below[3] = { spawn(leaf, NULL), spawn(leaf, &own_group), spawn(group_leader, NULL) };
	struct place before = here();
	prepared();
	wait_for_go();
	check_here(before);
	for (size_t i = 0; i < LENGTH(below); i++)
		finish(below[i]);
}

CASE(family)
{
	pid_t below[4] = { spawn(leaf, NULL), spawn(group_leader, NULL), spawn(session_leader, NULL),
			   spawn(session_leader, NULL) };
	/* A member of a sibling's process group. */
	pid_t joined = spawn(leaf, &below[1]);
	struct place before = here();
	checkpoint();
	check_here(before);
	for (size_t i = 0; i < LENGTH(below); i++)
		finish(below[i]);
	finish(joined);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "one child too many");
}

/* argv[2]: how many more levels come below, each in the other ABI. */
static void level(bool root)
{
	int more = case_args[0] == NULL ? 3 : atoi(case_args[0]);
	char argument[16];
	pid_t below = 0;
	struct place before = here();
	char *memory = map_anonymous(16 * PAGE);
	fill(memory, 16 * PAGE, (uint32_t)more);
	snprintf(argument, sizeof(argument), "%d", more - 1);
	if (more > 0)
		below = spawn_abi(other_abi, "generation", argument);
	if (root) {
		checkpoint();
	} else {
		prepared();
		wait_for_go();
	}
	check_here(before);
	CHECK_FILL(memory, 16 * PAGE, (uint32_t)more);
	if (more > 0)
		finish(below);
}

CASE(generation)
{
	level(false);
}

/* Four generations: each task execs the other ABI. */
CASE(generations)
{
	level(true);
}

/* Children of both ABIs side by side, some exec'd by children of the other. */
CASE(mixed)
{
	pid_t below[4] = { spawn_abi(this_abi, "generation", "0"), spawn_abi(other_abi, "generation", "0"),
			   spawn_abi(other_abi, "generation", "1"), spawn_abi(this_abi, "generation", "2") };
	checkpoint();
	for (size_t i = 0; i < LENGTH(below); i++)
		finish(below[i]);
}

/* A task whose parent ended, taken over by the root. */
static volatile pid_t *orphan;

static void adopted(void *unused)
{
	(void)unused;
	pid_t first_parent = getppid();
	prepared();
	while (getppid() == first_parent)
		sched_yield();
	*orphan = getpid();
	struct place before = here();
	wait_for_go();
	check_here(before);
}

static void short_lived(void *unused)
{
	(void)unused;
	spawn(adopted, NULL);
	prepared();
	_exit(0);
}

CASE(reparented)
{
	orphan = MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t gone = spawn(short_lived, NULL);
	reap(gone);
	while (*orphan == 0)
		sched_yield();
	checkpoint();
	finish(*orphan);
}

/* The parent-death signal of a task whose parent dies after the restore. */
static void survivor(void *unused)
{
	sigset_t set;
	int signal;
	(void)unused;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	MUST(prctl(PR_SET_PDEATHSIG, SIGTERM));
	prepared();
	CHECK(sigwait(&set, &signal) == 0 && signal == SIGTERM, "sigwait");
	*orphan = getpid();
}

static void dying_parent(void *unused)
{
	(void)unused;
	spawn(survivor, NULL);
	prepared();
	wait_for_go();
	_exit(0);
}

CASE(parent_death)
{
	int status;
	orphan = MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t parent = spawn(dying_parent, NULL);
	checkpoint();
	finish(parent);
	pid_t got = waitpid(-1, &status, 0);
	CHECK(got == *orphan && status == 0, "waitpid gives %d, status %#x", got, status);
}

/* A busy pipeline of both ABIs: 4-byte numbers in order, none lost, none doubled. */
CASE(producer)
{
	prepared();
	for (uint32_t i = 0; write(STDIN_FILENO, &i, sizeof(i)) == sizeof(i); i++)
		;
}

CASE(filter)
{
	uint32_t value;
	prepared();
	while (read(10, &value, sizeof(value)) == sizeof(value)) {
		value ^= 0xa5a5a5a5;
		if (write(11, &value, sizeof(value)) != sizeof(value))
			break;
	}
}

static volatile sig_atomic_t stop;

static void on_stop(int signal)
{
	stop = signal;
}

CASE(stream)
{
	int first[2], second[2];
	struct sigaction action = { .sa_handler = on_stop, .sa_flags = SA_RESTART };
	uint32_t value;
	sigset_t set;
	MUST((intptr_t)signal(SIGPIPE, SIG_IGN));
	MUST(pipe2(first, O_CLOEXEC));
	MUST(pipe2(second, O_CLOEXEC));
	/* The descriptors by which the other two know their ends. */
	int null = MUST(fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 20));
	MUST(dup2(first[1], STDIN_FILENO));
	pid_t producer = spawn_abi(other_abi, "producer", NULL);
	MUST(dup2(null, STDIN_FILENO));
	MUST(dup2(first[0], 10));
	MUST(dup2(second[1], 11));
	close(first[0]);
	close(first[1]);
	close(second[1]);
	pid_t filter = spawn_abi(this_abi, "filter", NULL);
	close(10);
	close(11);
	/* This task works on as well: it checks the stream until SIGUSR1 comes. */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	MUST(sigaction(SIGUSR1, &action, NULL));
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	MUST(write(STDOUT_FILENO, "READY\n", 6));
	/* And a thousand numbers more, so that all three have worked after the restore. */
	uint32_t expected = 0, more = 1000;
	while ((!stop || more-- > 0) && !failed()) {
		ssize_t got = read(second[0], &value, sizeof(value));
		CHECK(got == sizeof(value) && (value ^ 0xa5a5a5a5) == expected, "%zd bytes, %u instead of %u", got,
		      value ^ 0xa5a5a5a5, expected);
		expected++;
	}
	close(second[0]);
	MUST(waitpid(filter, NULL, 0));
	MUST(waitpid(producer, NULL, 0));
}

enum { BRANCHES = 20, LEAVES = 49 };

/* Children of both ABIs, one after the other. */
static void spread(int count, const char *name, pid_t *children)
{
	for (int i = 0; i < count; i++)
		children[i] = spawn_abi(i % 2 ? other_abi : this_abi, name, NULL);
}

CASE(one_leaf)
{
	leaf(NULL);
}

CASE(branch)
{
	pid_t leaves[LEAVES];
	spread(LEAVES, "one_leaf", leaves);
	struct place before = here();
	prepared();
	wait_for_go();
	check_here(before);
	for (int i = 0; i < LEAVES; i++)
		finish(leaves[i]);
}

/* A thousand tasks of both ABIs and the root. */
CASE(thousand)
{
	pid_t branches[BRANCHES];
	spread(BRANCHES, "branch", branches);
	checkpoint();
	for (int i = 0; i < BRANCHES; i++)
		finish(branches[i]);
}
