/* Trees with a history: leaders that are dead, orphans, children older than their parent's session. */
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

/* The children of this task as the kernel lists them, orphans it took in included; how many. */
static int children(pid_t list[16])
{
	char path[64];
	int count = 0;
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	FILE *file = fopen(path, "re");
	while (count < 16 && fscanf(file, "%d", &list[count]) == 1)
		count++;
	fclose(file);
	return count;
}

/* Every child ends well, and there are as many as there should be; a child too many would be found dead. */
static void finish_children(int expected)
{
	pid_t list[16];
	sigset_t pending;
	siginfo_t info = { .si_pid = 0 };
	int count = children(list);
	CHECK(count == expected, "%d children instead of %d", count, expected);
	if (count > 0)
		MUST(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT));
	CHECK(info.si_pid == 0, "%d has ended", info.si_pid);
	sigpending(&pending);
	CHECK(!sigismember(&pending, SIGCHLD), "a SIGCHLD of no child");
	for (int i = 0; i < count; i++)
		finish(list[i]);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "one child too many");
}

/* Blocks SIGCHLD, so that one which should not have been sent stays. */
static void block_sigchld(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* Waits for the end of a process that was there for a moment, without leaving its SIGCHLD behind. */
static void gone(pid_t child)
{
	sigset_t set;
	int signal;
	reap(child);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigwait(&set, &signal);
}

/* A task that gets another parent (argv[2], or unchanged) before it is looked at. */
static void member_of(pid_t parent, int below)
{
	prepared();
	while (parent != 0 && getppid() != parent)
		sched_yield();
	struct place before = here();
	wait_for_go();
	check_here(before);
	finish_children(below);
}

CASE(member)
{
	block_sigchld();
	member_of(case_args[0] == NULL ? 0 : atoi(case_args[0]), 0);
}

static void leaf(void *unused)
{
	(void)unused;
	member_of(0, 0);
}

static pid_t exec_member(const char *abi, pid_t parent)
{
	char number[16];
	snprintf(number, sizeof(number), "%d", parent);
	return spawn_abi(abi, "member", number);
}

static void in_group_of(void *group)
{
	MUST(setpgid(0, *(pid_t *)group));
	member_of(0, 0);
}

static pid_t root;

/* A daemon with a pipeline whose first program has ended, in the session of a dead leader. */
static void daemon_with_jobs(void *unused)
{
	(void)unused;
	pid_t own_group = 0, first = spawn(in_group_of, &own_group);
	spawn(in_group_of, &first);
	spawn(in_group_of, &first);
	MUST(kill(first, SIGUSR1));
	gone(first);
	spawn(leaf, NULL);
	member_of(root, 3);
}

/* setsid, several forks, exit: how daemons come about. */
static void double_fork(void *unused)
{
	(void)unused;
	MUST(setsid());
	spawn(daemon_with_jobs, NULL);
	exec_member(other_abi, root);
	exec_member(this_abi, root);
	prepared();
	_exit(0);
}

CASE(daemons)
{
	block_sigchld();
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	root = getpid();
	gone(spawn(double_fork, NULL));
	gone(spawn(double_fork, NULL));
	struct place before = here();
	checkpoint();
	check_here(before);
	finish_children(6);
}

/* A session leader whose children are of its first session, in part. */
static void late_leader(void *depth)
{
	int more = *(int *)depth - 1;
	spawn(leaf, NULL);
	exec_member(other_abi, 0);
	if (more > 0)
		spawn(late_leader, &more);
	MUST(setsid());
	spawn(leaf, NULL);
	member_of(0, more > 0 ? 4 : 3);
}

/* Each task was born in the session of the one above that left it. */
CASE(older_children)
{
	int depth = 3;
	block_sigchld();
	spawn(late_leader, &depth);
	struct place before = here();
	checkpoint();
	check_here(before);
	finish_children(1);
}

static void orphan_maker(void *unused)
{
	(void)unused;
	exec_member(other_abi, root);
	exec_member(this_abi, root);
	prepared();
	_exit(0);
}

static void living_leader(void *unused)
{
	(void)unused;
	MUST(setsid());
	gone(spawn(orphan_maker, NULL));
	spawn(leaf, NULL);
	member_of(0, 1);
}

static void between(void *unused)
{
	(void)unused;
	spawn(living_leader, NULL);
	member_of(0, 1);
}

/* Orphans in a session that is led from further below. */
CASE(orphans)
{
	block_sigchld();
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	root = getpid();
	spawn(between, NULL);
	struct place before = here();
	checkpoint();
	check_here(before);
	finish_children(3);
}

static void wanderer(void *group)
{
	MUST(setpgid(0, 0));
	pid_t own = getpid();
	spawn(in_group_of, &own);
	MUST(setpgid(0, *(pid_t *)group));
	member_of(0, 1);
}

/* Leaders that have gone to each other's groups, and one to a group of nobody. */
CASE(wanderers)
{
	block_sigchld();
	pid_t own = getpgid(0);
	pid_t first = spawn(wanderer, &own);
	pid_t second = spawn(wanderer, &first);
	spawn(wanderer, &second);
	struct place before = here();
	checkpoint();
	check_here(before);
	/* Each group still gets what is sent to it. */
	MUST(kill(-second, 0));
	finish_children(3);
}
