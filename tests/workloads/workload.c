/* The runner behind workload.h: picks the case, waits for the harness, reports. */
#include "workload.h"
#include <stdarg.h>

#ifdef __x86_64__
const char *const this_abi = "x86_64";
const char *const other_abi = "ia32";
#else
const char *const this_abi = "ia32";
const char *const other_abi = "x86_64";
#endif

char **case_args;
char **case_argv;

static struct workload_case *cases;
/* Neither exec'd nor forked by another task of the case. */
static bool is_root;
static volatile sig_atomic_t go;
static volatile int failures;
/* Write end of the pipe by which a child tells its parent that it is prepared, or -1. */
static int prepared_fd = -1;

void register_case(struct workload_case *entry)
{
	entry->next = cases;
	cases = entry;
}

/* One write(2) a line: tasks share the log, and O_APPEND keeps lines whole. */
static void print_line(const char *text)
{
	size_t length = strlen(text);
	if (write(STDOUT_FILENO, text, length) != (ssize_t)length)
		_exit(3);
}

void fail(const char *file, int line, const char *condition, const char *format, ...)
{
	char text[1024];
	va_list arguments;
	const char *name = strrchr(file, '/');
	int start = snprintf(text, sizeof(text), "FAIL %d %s:%d: %s: ", getpid(), name ? name + 1 : file, line,
			     condition);
	va_start(arguments, format);
	vsnprintf(text + start, sizeof(text) - (size_t)start - 1, format, arguments);
	va_end(arguments);
	strcat(text, "\n");
	__atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST);
	print_line(text);
}

void die(const char *file, int line, const char *what)
{
	fail(file, line, what, "%s", strerror(errno));
	_exit(2);
}

bool failed(void)
{
	return failures != 0;
}

static void on_go(int signal)
{
	(void)signal;
	go = 1;
}

void wait_for_go(void)
{
	sigset_t mask;
	sigprocmask(SIG_SETMASK, NULL, &mask);
	sigdelset(&mask, SIGUSR1);
	while (!go)
		sigsuspend(&mask);
	go = 0;
}

void checkpoint(void)
{
	print_line("READY\n");
	wait_for_go();
}

void prepared(void)
{
	if (prepared_fd >= 0) {
		MUST(write(prepared_fd, "p", 1));
		close(prepared_fd);
		prepared_fd = -1;
	}
}

/* Until the child has also closed its end: from then on it has only what belongs to the case. */
static pid_t await_prepared(pid_t child, int pipe_ends[2])
{
	char byte;
	close(pipe_ends[1]);
	if (read(pipe_ends[0], &byte, 1) != 1)
		die(__FILE__, __LINE__, "child ended before it was prepared");
	CHECK(read(pipe_ends[0], &byte, 1) == 0, "something else than the end of the pipe");
	close(pipe_ends[0]);
	return child;
}

/* Forks, or clones with flags; the child has no more than the write end of a new pipe to tell that it is prepared. */
static pid_t clone_with_pipe(int flags, int ends[2])
{
	MUST(pipe(ends));
	pid_t child = MUST(flags ? (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0) : fork());
	if (child == 0) {
		close(ends[0]);
		/* That of a parent which is not prepared itself. */
		if (prepared_fd >= 0)
			close(prepared_fd);
		prepared_fd = ends[1];
		failures = 0;
		is_root = false;
	}
	return child;
}

pid_t spawn(void (*body)(void *), void *argument)
{
	int ends[2];
	pid_t child = clone_with_pipe(0, ends);
	if (child == 0) {
		body(argument);
		_exit(failed() ? 1 : 0);
	}
	return await_prepared(child, ends);
}

pid_t spawn_abi(const char *abi, const char *name, const char *argument)
{
	return spawn_abi_sharing(0, abi, name, argument);
}

pid_t spawn_abi_sharing(int flags, const char *abi, const char *name, const char *argument)
{
	int ends[2];
	char path[512], number[16];
	const char *program = strrchr(case_argv[0], '/');
	snprintf(path, sizeof(path), "%s/%s%s", getenv("WORKLOADS"), abi, program ? program : "");
	pid_t child = clone_with_pipe(flags, ends);
	if (child == 0) {
		snprintf(number, sizeof(number), "%d", ends[1]);
		setenv("PREPARED_FD", number, 1);
		execl(path, path, name, argument, (char *)NULL);
		die(__FILE__, __LINE__, path);
	}
	return await_prepared(child, ends);
}

void end_last_thread(void)
{
	if (failed())
		_exit(1);
	if (is_root)
		print_line("PASS\n");
	for (;;)
		syscall(SYS_exit, 0);
}

void reap(pid_t child)
{
	int status = 0;
	pid_t got;
	do
		got = waitpid(child, &status, 0);
	while (got == -1 && errno == EINTR);
	CHECK(got == child && status == 0, "child %d: waitpid gives %d, status %#x, %s", child, got, status,
	      got == -1 ? strerror(errno) : "");
}

void finish(pid_t child)
{
	MUST(kill(child, SIGUSR1));
	reap(child);
}

char *map_anonymous(size_t length)
{
	return MUST((char *)mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static uint32_t pattern(size_t word, uint32_t seed)
{
	uint32_t x = (uint32_t)word * 2654435761u ^ seed * 0x9e3779b9u;
	x ^= x >> 15;
	x *= 0x85ebca6bu;
	return x ^ x >> 13;
}

void fill(void *memory, size_t length, uint32_t seed)
{
	uint32_t *words = memory;
	for (size_t i = 0; i < length / 4; i++)
		words[i] = pattern(i, seed);
}

ssize_t fill_differs(const void *memory, size_t length, uint32_t seed)
{
	const uint32_t *words = memory;
	for (size_t i = 0; i < length / 4; i++)
		if (words[i] != pattern(i, seed))
			return (ssize_t)(i * 4);
	return -1;
}

double now(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void await(const volatile int *counter, int value)
{
	while (__atomic_load_n(counter, __ATOMIC_SEQ_CST) != value)
		sched_yield();
}

char state_of(pid_t tid, unsigned *exit_code)
{
	char path[64], text[1024], *state, *last;
	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	ssize_t length = MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	text[length] = 0;
	state = strrchr(text, ')');
	last = strrchr(text, ' ');
	if (exit_code != NULL)
		*exit_code = last != NULL ? (unsigned)atoi(last) : 0;
	return state != NULL ? state[2] : 0;
}

void await_state(pid_t tid, char state)
{
	while (state_of(tid, NULL) != state)
		sched_yield();
}

void await_sleep(pid_t tid)
{
	await_state(tid, 'S');
}

pid_t thread_id(void)
{
	return (pid_t)syscall(SYS_gettid);
}

volatile sig_atomic_t finished;
static volatile sig_atomic_t asked;

static void on_question(int signal)
{
	if (signal == SIGUSR2)
		asked = 1;
	else
		finished = 1;
}

void hear_questions(void)
{
	struct sigaction action = { .sa_handler = on_question };
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	MUST(sigaction(SIGUSR1, &action, NULL));
	MUST(sigaction(SIGUSR2, &action, NULL));
}

void answer_questions(const sigset_t *blocked, void (*answer)(int))
{
	sigset_t waiting = *blocked;
	sigdelset(&waiting, SIGUSR1);
	sigdelset(&waiting, SIGUSR2);
	MUST(write(STDOUT_FILENO, "READY\n", 6));
	for (int number = 0; !finished;) {
		sigsuspend(&waiting);
		if (asked) {
			asked = 0;
			answer(++number);
		}
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_go };
	sigset_t blocked;
	const char *number = getenv("PREPARED_FD");

	if (argc < 2) {
		fprintf(stderr, "usage: %s CASE\n", argv[0]);
		return 2;
	}
	case_args = argv + 2;
	case_argv = argv;
	if (number != NULL) {
		prepared_fd = atoi(number);
		unsetenv("PREPARED_FD");
	} else {
		/* Whatever the test runner was started with is no part of the case. */
		syscall(SYS_close_range, 3, ~0u, 0);
	}
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	sigaction(SIGUSR1, &action, NULL);

	for (struct workload_case *entry = cases; entry != NULL; entry = entry->next) {
		if (strcmp(entry->name, argv[1]) != 0)
			continue;
		is_root = number == NULL;
		entry->run();
		/* A child that was exec'd reports by its exit code. */
		if (is_root && !failed())
			print_line("PASS\n");
		return failed() ? 1 : 0;
	}
	fprintf(stderr, "%s: no case %s\n", argv[0], argv[1]);
	return 2;
}
