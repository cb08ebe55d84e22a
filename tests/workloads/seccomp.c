/* seccomp: what a thread may call is the same afterwards, call by call, and nobody gets past it or dies of it. */
#include "workload.h"
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>
#include <grp.h>

#ifdef __x86_64__
#define THIS_ARCH AUDIT_ARCH_X86_64
#else
#define THIS_ARCH AUDIT_ARCH_I386
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)
/* If the call is `number`, the answer. */
#define ANSWER(number, value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), RETURN(value)
#define ANSWER_ERROR(number, error) ANSWER(number, SECCOMP_RET_ERRNO | (error))

/* Calls that nothing here makes, by their numbers in both ABIs. */
enum { GETPPID_64 = 110, ACCT_64 = 163, QUOTACTL_64 = 179, VHANGUP_64 = 153 };
enum { GETPPID_32 = 64, ACCT_32 = 51, QUOTACTL_32 = 131, VHANGUP_32 = 111 };

static void install_with(unsigned flags, struct sock_filter *code, size_t length)
{
	struct sock_fprog program = { .len = (unsigned short)length, .filter = code };
	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}
#define INSTALL(flags, ...)                                                                       \
	do {                                                                                      \
		struct sock_filter code[] = { __VA_ARGS__ };                                      \
		install_with(flags, code, LENGTH(code));                                          \
	} while (0)

/* One filter with rules for both ABIs: an error, a trap, a death, a call that is logged. */
static void install_for_both(void)
{
	INSTALL(0, LOAD(arch), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_I386, 10, 0), LOAD(nr),
		ANSWER_ERROR(GETPPID_64, 77), ANSWER(ACCT_64, SECCOMP_RET_TRAP | 5),
		ANSWER(QUOTACTL_64, SECCOMP_RET_KILL_PROCESS), ANSWER(VHANGUP_64, SECCOMP_RET_LOG),
		RETURN(SECCOMP_RET_ALLOW), LOAD(nr), ANSWER_ERROR(GETPPID_32, 77), ANSWER(ACCT_32, SECCOMP_RET_TRAP | 5),
		ANSWER(QUOTACTL_32, SECCOMP_RET_KILL_PROCESS), ANSWER(VHANGUP_32, SECCOMP_RET_LOG),
		RETURN(SECCOMP_RET_ALLOW));
}

static siginfo_t trapped;

static void on_trap(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	trapped = *info;
}

static void catch_traps(void)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGSYS, &action, NULL));
}

static void check_obedience(void)
{
	CHECK(syscall(SYS_getppid) == -1 && errno == 77, "getppid answers %s", strerror(errno));
	memset(&trapped, 0, sizeof(trapped));
	syscall(SYS_acct, NULL);
	CHECK(trapped.si_signo == SIGSYS && trapped.si_code == 1 && trapped.si_errno == 5 && trapped.si_syscall == SYS_acct &&
		      trapped.si_arch == THIS_ARCH && trapped.si_call_addr != NULL,
	      "signal %d code %d errno %d call %d architecture %#x", trapped.si_signo, trapped.si_code, trapped.si_errno,
	      trapped.si_syscall, trapped.si_arch);
	int status;
	pid_t child = MUST(fork());
	if (child == 0) {
		CHECK(syscall(SYS_getppid) == -1 && errno == 77, "a child does not inherit the filter");
		syscall(SYS_quotactl, 0, NULL, 0, NULL);
		_exit(0);
	}
	MUST(waitpid(child, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "the forbidden call ended with status %#x", status);
}

/* Named by spawn_abi: under the filter that its parent of the other ABI installed. */
CASE(obedient)
{
	catch_traps();
	check_obedience();
	prepared();
	wait_for_go();
	check_obedience();
}

CASE(both_abis)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	catch_traps();
	install_for_both();
	pid_t child = spawn_abi(other_abi, "obedient", NULL);
	checkpoint();
	check_obedience();
	finish(child);
}

/* Of filters that answer alike, the one installed last is heard. */
static void check_answer(int error)
{
	CHECK(syscall(SYS_getppid) == -1 && errno == error, "errno %d, not %d", errno, error);
}

static void third_generation(void *unused)
{
	(void)unused;
	INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, 13), RETURN(SECCOMP_RET_ALLOW));
	prepared();
	wait_for_go();
	check_answer(13);
	INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, 14), RETURN(SECCOMP_RET_ALLOW));
	check_answer(14);
}

static void second_generation(void *unused)
{
	(void)unused;
	INSTALL(SECCOMP_FILTER_FLAG_LOG, LOAD(nr), ANSWER_ERROR(SYS_getppid, 12), RETURN(SECCOMP_RET_ALLOW));
	pid_t child = spawn(third_generation, NULL);
	prepared();
	wait_for_go();
	check_answer(12);
	finish(child);
}

CASE(stacked)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	INSTALL(SECCOMP_FILTER_FLAG_SPEC_ALLOW, LOAD(nr), ANSWER_ERROR(SYS_getppid, 10), RETURN(SECCOMP_RET_ALLOW));
	INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, 11), RETURN(SECCOMP_RET_ALLOW));
	pid_t child = spawn(second_generation, NULL);
	checkpoint();
	check_answer(11);
	finish(child);
}

static volatile int arrived, leave;

/* A filter of its own, or for an error of 0 only what was synchronised to it. */
static void *filtered_thread(void *argument)
{
	int error = (int)(intptr_t)argument;
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&leave, __ATOMIC_SEQ_CST) == 0)
		syscall(SYS_futex, &leave, 0, 0, NULL);
	if (error != 0)
		INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, error), RETURN(SECCOMP_RET_ALLOW));
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&leave, __ATOMIC_SEQ_CST) == 1)
		syscall(SYS_futex, &leave, 0, 1, NULL);
	check_answer(error != 0 ? error : 20);
	CHECK(syscall(SYS_acct, NULL) == -1 && errno == 40, "acct answers %d", errno);
	return NULL;
}

static void go_on(int value)
{
	__atomic_store_n(&leave, value, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &leave, 1, 100);
}

CASE(threads)
{
	pthread_t threads[3];
	static const int errors[] = { 0, 21, 22 };
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_create(&threads[i], NULL, filtered_thread, (void *)(intptr_t)errors[i]));
	await(&arrived, LENGTH(threads));
	INSTALL(SECCOMP_FILTER_FLAG_TSYNC, LOAD(nr), ANSWER_ERROR(SYS_getppid, 20), ANSWER_ERROR(SYS_acct, 40),
		RETURN(SECCOMP_RET_ALLOW));
	go_on(1);
	await(&arrived, 2 * LENGTH(threads));
	INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, 23), RETURN(SECCOMP_RET_ALLOW));
	checkpoint();
	check_answer(23);
	go_on(2);
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* As a container manager does: filter first, while it may, then the rights go. There is no no_new_privs. */
CASE(privileged)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2] = { { 0 } };
	uid_t real, effective, saved;
	install_for_both();
	catch_traps();
	MUST(setgroups(0, NULL));
	MUST(setresgid(1010, 1010, 1010));
	MUST(setresuid(1000, 1000, 1000));
	checkpoint();
	check_obedience();
	MUST(getresuid(&real, &effective, &saved));
	CHECK(real == 1000 && effective == 1000 && saved == 1000, "uids %u %u %u", real, effective, saved);
	MUST(syscall(SYS_capget, &header, sets));
	CHECK(sets[0].permitted == 0 && sets[1].permitted == 0, "capabilities are left");
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "no_new_privs came up");
	struct sock_filter allow = RETURN(SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = 1, .filter = &allow };
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == -1 && errno == EACCES, "may install filters");
}

/* A child that answers each byte by its successor, with nothing but read, write and exit. */
struct answering {
	int ask[2], answer[2];
	void (*confine)(void);
};

static void answering_child(void *argument)
{
	struct answering *pipes = argument;
	unsigned char byte;
	close(pipes->ask[1]);
	close(pipes->answer[0]);
	prepared();
	pipes->confine();
	while (syscall(SYS_read, pipes->ask[0], &byte, 1) == 1) {
		byte++;
		syscall(SYS_write, pipes->answer[1], &byte, 1);
	}
	/* Strict mode lacks exit_group. */
	syscall(SYS_exit, 7);
}

static void check_confined_child(void (*confine)(void))
{
	struct answering pipes = { .confine = confine };
	int status;
	MUST(pipe(pipes.ask));
	MUST(pipe(pipes.answer));
	pid_t child = spawn(answering_child, &pipes);
	close(pipes.ask[0]);
	close(pipes.answer[1]);
	for (int round = 0; round < 2; round++) {
		unsigned char byte = (unsigned char)(40 + round);
		MUST(write(pipes.ask[1], &byte, 1));
		CHECK(read(pipes.answer[0], &byte, 1) == 1 && byte == 41 + round, "answered %d in round %d", byte, round);
		if (round == 0) {
			await_sleep(child);
			checkpoint();
		}
	}
	close(pipes.ask[1]);
	MUST(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child ended with status %#x", status);
}

static void confine_strictly(void)
{
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
}

CASE(strict)
{
	check_confined_child(confine_strictly);
}

/* Not even the return from a signal handler, nor a restart of a sleep. */
static void confine_tightly(void)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	INSTALL(0, LOAD(nr), ANSWER(SYS_read, SECCOMP_RET_ALLOW), ANSWER(SYS_write, SECCOMP_RET_ALLOW),
		ANSWER(SYS_exit, SECCOMP_RET_ALLOW), RETURN(SECCOMP_RET_KILL_PROCESS));
}

CASE(tight)
{
	check_confined_child(confine_tightly);
}

/* A sleep that was interrupted goes on by restart_syscall(2), of which this filter has not heard. */
static void sleeping_child(void *argument)
{
	int done = *(int *)argument;
	struct timespec pause = { 3, 0 };
	prepared();
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	INSTALL(0, LOAD(nr), ANSWER(SYS_nanosleep, SECCOMP_RET_ALLOW), ANSWER(SYS_write, SECCOMP_RET_ALLOW),
		ANSWER(SYS_exit, SECCOMP_RET_ALLOW), RETURN(SECCOMP_RET_KILL_PROCESS));
	long slept = syscall(SYS_nanosleep, &pause, NULL);
	syscall(SYS_write, done, slept == 0 ? "s" : "e", 1);
	syscall(SYS_exit, 7);
}

CASE(asleep)
{
	int done[2], status;
	char byte = 0;
	MUST(pipe(done));
	pid_t child = spawn(sleeping_child, &done[1]);
	close(done[1]);
	await_sleep(child);
	checkpoint();
	CHECK(read(done[0], &byte, 1) == 1 && byte == 's', "the sleep ended with '%c'", byte);
	MUST(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child ended with status %#x", status);
}

/* What a tracer sees of the filters of a child: all that the kernel keeps. */
#define SEEN 3
struct seen {
	struct sock_filter programs[SEEN][16];
	long lengths[SEEN];
	struct {
		uint64_t offset, flags;
	} metadata[SEEN];
};

static void look(pid_t child, struct seen *seen)
{
	int status;
	memset(seen, 0, sizeof(*seen));
	MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
	MUST(ptrace(PTRACE_INTERRUPT, child, 0, 0));
	MUST(waitpid(child, &status, __WALL));
	for (size_t i = 0; i < SEEN; i++) {
		seen->metadata[i].offset = i;
		seen->lengths[i] = MUST(ptrace(PTRACE_SECCOMP_GET_FILTER, child, i, seen->programs[i]));
		MUST(ptrace(PTRACE_SECCOMP_GET_METADATA, child, sizeof(seen->metadata[i]), &seen->metadata[i]));
	}
	CHECK(ptrace(PTRACE_SECCOMP_GET_FILTER, child, SEEN, NULL) == -1 && errno == ENOENT, "one filter more");
	MUST(ptrace(PTRACE_DETACH, child, 0, 0));
}

static void child_to_look_at(void *unused)
{
	(void)unused;
	INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, 30), RETURN(SECCOMP_RET_ALLOW));
	INSTALL(SECCOMP_FILTER_FLAG_LOG, LOAD(nr), ANSWER_ERROR(SYS_getppid, 31), RETURN(SECCOMP_RET_LOG));
	INSTALL(0, LOAD(nr), ANSWER_ERROR(SYS_getppid, 30), RETURN(SECCOMP_RET_ALLOW));
	prepared();
	wait_for_go();
	check_answer(30);
}

CASE(as_a_tracer_sees)
{
	struct seen before, after;
	pid_t child = spawn(child_to_look_at, NULL);
	look(child, &before);
	CHECK(before.lengths[0] == 4 && before.metadata[0].flags == 0 && before.metadata[1].flags == SECCOMP_FILTER_FLAG_LOG,
	      "the test looks at something else");
	checkpoint();
	look(child, &after);
	CHECK(memcmp(&before, &after, sizeof(before)) == 0, "filters differ");
	finish(child);
}
