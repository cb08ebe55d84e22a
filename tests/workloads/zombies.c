/* Children that have ended and are waited for only after the checkpoint. */
#include "workload.h"
#include <grp.h>
#include <sys/resource.h>

static void end_with(void *status)
{
	sigset_t none;
	int number = *(int *)status;
	prepared();
	if (number >= 0)
		_exit(number);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_DUMPABLE, 0);
	raise(-number);
}

static void end_as_other(void *unused)
{
	gid_t groups[] = { 7, 70000 };
	(void)unused;
	prctl(PR_SET_NAME, "somebody (else)");
	MUST(setgroups(LENGTH(groups), groups));
	MUST(setresgid(1001, 1002, 1003));
	MUST(setresuid(2001, 2002, 2003));
	prepared();
	_exit(42);
}

/* argv[2]: how it is to end. */
CASE(end)
{
	int number = atoi(case_args[0]);
	end_with(&number);
}

/* Without waiting for it. */
static pid_t ended(pid_t child)
{
	siginfo_t info;
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
	return child;
}

static void check_end(pid_t child, int code, int status, uid_t uid)
{
	siginfo_t info = { .si_pid = 0 };
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG));
	CHECK(info.si_pid == child && info.si_code == code && info.si_status == status && info.si_uid == uid,
	      "zombie %d: pid %d, code %d, status %d, uid %d", child, info.si_pid, info.si_code, info.si_status,
	      info.si_uid);
}

/* Exit codes and signals, of both ABIs; in the order in which they were born. */
CASE(ends)
{
	static const int how[] = { 0, 1, 255, -SIGKILL, -SIGTERM, -SIGSEGV, -SIGUSR2, -40 };
	pid_t children[LENGTH(how) + 3];
	size_t count = 0;
	sigset_t pending;
	for (; count < LENGTH(how); count++)
		children[count] = ended(spawn(end_with, (void *)&how[count]));
	children[count++] = ended(spawn_abi(other_abi, "end", "17"));
	children[count++] = ended(spawn_abi(other_abi, "end", "-15"));
	children[count++] = ended(spawn(end_as_other, NULL));
	checkpoint();
	/* SIGCHLD is not blocked, and has no effect: none is pending. */
	sigpending(&pending);
	CHECK(!sigismember(&pending, SIGCHLD), "a SIGCHLD is pending");
	for (size_t i = 0; i < LENGTH(how); i++)
		check_end(children[i], how[i] < 0 ? CLD_KILLED : CLD_EXITED, abs(how[i]), 0);
	check_end(children[count - 3], CLD_EXITED, 17, 0);
	check_end(children[count - 2], CLD_KILLED, SIGTERM, 0);
	check_end(children[count - 1], CLD_EXITED, 42, 2001);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "one child too many");
}

static volatile sig_atomic_t signals;

static void count_signal(int signal)
{
	(void)signal;
	signals++;
}

/* One SIGCHLD that is pending stays one, with what it tells; where it was taken before, none comes. */
CASE(pending)
{
	struct sigaction action = { .sa_handler = count_signal };
	int three = 3, four = 4;
	struct timespec at_once = { 0, 0 };
	siginfo_t info;
	sigset_t set;
	MUST(sigaction(SIGCHLD, &action, NULL));
	pid_t taken = ended(spawn(end_with, &three));
	/* Its handler runs before waitid() returns. */
	CHECK(signals == 1, "%d signals before", signals);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pid_t waiting = ended(spawn(end_with, &four));
	checkpoint();
	CHECK(sigtimedwait(&set, &info, &at_once) == SIGCHLD && info.si_pid == waiting && info.si_status == 4,
	      "the pending SIGCHLD: pid %d, status %d", info.si_pid, info.si_status);
	CHECK(sigtimedwait(&set, &info, &at_once) == -1 && errno == EAGAIN, "a second SIGCHLD");
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	CHECK(signals == 1, "%d signals after", signals);
	pid_t first = waitpid(-1, NULL, WNOHANG), second = waitpid(-1, NULL, WNOHANG);
	CHECK(first == taken && second == waiting, "waited for %d, %d instead of %d, %d", first, second, taken,
	      waiting);
}

static void live_on(void *unused)
{
	(void)unused;
	pid_t group = getpgid(0), session = getsid(0);
	prepared();
	wait_for_go();
	CHECK(getpgid(0) == group && getsid(0) == session, "group %d, session %d", getpgid(0), getsid(0));
}

static void end_as_session_leader(void *orphan)
{
	MUST(setsid());
	*(volatile pid_t *)orphan = spawn(live_on, NULL);
	prepared();
	_exit(0);
}

static void end_as_group_leader(void *unused)
{
	(void)unused;
	MUST(setpgid(0, 0));
	prepared();
	wait_for_go();
}

static void join(void *group)
{
	MUST(setpgid(0, *(pid_t *)group));
	live_on(NULL);
}

/* Leaders of a session and of a group with living members. */
CASE(leaders)
{
	volatile pid_t *orphan =
		MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t session = ended(spawn(end_as_session_leader, (void *)orphan));
	pid_t group = spawn(end_as_group_leader, NULL);
	pid_t member = spawn(join, &group);
	MUST(kill(group, SIGUSR1));
	ended(group);
	checkpoint();
	CHECK(getsid(*orphan) == session, "session %d", getsid(*orphan));
	CHECK(getpgid(member) == group, "group %d", getpgid(member));
	finish(member);
	finish(*orphan);
	reap(session);
	reap(group);
}

/* A parent that began to ignore its children when one had ended: that one stays, others never are zombies. */
CASE(ignored)
{
	int three = 3, status = 0;
	pid_t before = ended(spawn(end_with, &three));
	MUST((intptr_t)signal(SIGCHLD, SIG_IGN));
	checkpoint();
	CHECK(waitpid(before, &status, 0) == before && WEXITSTATUS(status) == 3, "waitpid gives status %#x", status);
	if (MUST(fork()) == 0)
		_exit(0);
	CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "a zombie of a parent that ignores its children");
}

static void wait_for_end(void *unused)
{
	(void)unused;
	prepared();
	for (;;)
		pause();
}

/* A child of which nothing is left as soon as it has ended, which it is to have by the end. */
CASE(unmissed)
{
	MUST((intptr_t)signal(SIGCHLD, SIG_IGN));
	spawn(wait_for_end, NULL);
	checkpoint();
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there is a child");
}

/* A child that ended by a signal and left a core, which nobody has looked at. */
CASE(core)
{
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	siginfo_t end;
	pid_t child = MUST(fork());
	if (child == 0) {
		MUST(setrlimit(RLIMIT_CORE, &all));
		/* Little to write. */
		int filter = MUST(open("/proc/self/coredump_filter", O_WRONLY));
		MUST(write(filter, "0", 1));
		abort();
	}
	MUST(waitid(P_PID, (id_t)child, &end, WEXITED | WNOWAIT));
	CHECK(end.si_code == CLD_DUMPED, "it has left no core: code %d", end.si_code);
	checkpoint();
	MUST(waitid(P_PID, (id_t)child, &end, WEXITED));
	CHECK(end.si_code == CLD_DUMPED && end.si_status == SIGABRT, "code %d, signal %d", end.si_code, end.si_status);
}
