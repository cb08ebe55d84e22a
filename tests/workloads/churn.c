/*
 * A tree of both ABIs in which threads and tasks come and go all the time, and signals are on their way: whatever
 * moment a dump picks, something has just begun or just ended. On SIGUSR2 the root answers ALIVE once every part has
 * got on; each part knows what has to come out of its work.
 */
#include "workload.h"
#include <spawn.h>

enum { PARTS = 5, TASKS = 2 };

/* In a file that both tasks map. */
struct progress {
	volatile uint32_t rounds[TASKS][PARTS];
	volatile uint32_t wrong;
	volatile uint32_t stop;
};

static struct progress *progress;
static int own_task;

static void map_progress(void)
{
	int fd = MUST(open("progress", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, sizeof(struct progress)));
	progress = MUST((struct progress *)mmap(NULL, sizeof(struct progress), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
}

#define RIGHT(condition, ...)                                                                     \
	do {                                                                                      \
		CHECK(condition, __VA_ARGS__);                                                    \
		if (failed())                                                                     \
			progress->wrong = 1;                                                      \
	} while (0)

static void got_on(int part)
{
	progress->rounds[own_task][part]++;
}

static bool goes_on(void)
{
	return !progress->stop && !progress->wrong;
}

static void *short_thread(void *argument)
{
	return (char *)argument + 1;
}

/* Threads that end at once; every other one leaves by pthread_exit with signals blocked. */
static void *make_threads(void *unused)
{
	(void)unused;
	for (uintptr_t i = 0; goes_on(); i++) {
		pthread_t threads[4];
		for (size_t n = 0; n < LENGTH(threads); n++)
			MUST0(pthread_create(&threads[n], NULL, short_thread, (void *)(i + n)));
		for (size_t n = 0; n < LENGTH(threads); n++) {
			void *result;
			MUST0(pthread_join(threads[n], &result));
			RIGHT((uintptr_t)result == i + n + 1, "a thread gives %p", result);
		}
		got_on(0);
	}
	return NULL;
}

/* Children that exit, or are killed, at once. */
static void *make_children(void *unused)
{
	(void)unused;
	for (int i = 0; goes_on(); i++) {
		pid_t child = MUST(fork());
		if (child == 0) {
			if (i % 3 == 0)
				kill(getpid(), SIGKILL);
			_exit(i & 0x7f);
		}
		int status = 0;
		pid_t got = waitpid(child, &status, 0);
		bool right = i % 3 == 0 ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL :
					  WIFEXITED(status) && WEXITSTATUS(status) == (i & 0x7f);
		RIGHT(got == child && right, "waitpid(%d) gives %d, status %#x, %s", child, got, status, strerror(errno));
		got_on(1);
	}
	return NULL;
}

/* The child of vfork that execs, in the other ABI half of the time. */
CASE(nothing)
{
	_exit(17);
}

static void *spawn_programs(void *unused)
{
	extern char **environ;
	char program[2][256];
	(void)unused;
	snprintf(program[0], sizeof(program[0]), "%s/%s/churn", getenv("WORKLOADS"), this_abi);
	snprintf(program[1], sizeof(program[1]), "%s/%s/churn", getenv("WORKLOADS"), other_abi);
	for (int i = 0; goes_on(); i++) {
		char *arguments[] = { program[i % 2], "nothing", NULL };
		pid_t child;
		int status = 0;
		MUST0(posix_spawn(&child, program[i % 2], NULL, NULL, arguments, environ));
		pid_t got = waitpid(child, &status, 0);
		RIGHT(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 17,
		      "waitpid(%d) gives %d, status %#x, %s", child, got, status, strerror(errno));
		got_on(2);
	}
	return NULL;
}

/* Numbered signals to the process, one after the other: none is lost, doubled or out of order. */
static void *take_signals(void *unused)
{
	sigset_t set;
	(void)unused;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	for (int expected = 0;; expected++) {
		siginfo_t info;
		int signal;
		while ((signal = sigwaitinfo(&set, &info)) == -1 && errno == EINTR)
			;
		if (info.si_int == -1)
			break;
		RIGHT(signal == SIGRTMIN + 1 && info.si_int == expected, "signal %d with %d instead of %d", signal,
		      info.si_int, expected);
		got_on(3);
	}
	return NULL;
}

static void *send_signals(void *unused)
{
	union sigval value = { .sival_int = 0 };
	(void)unused;
	while (goes_on()) {
		/* A few are always on their way. */
		if (value.sival_int - (int)progress->rounds[own_task][3] < 20) {
			MUST(sigqueue(getpid(), SIGRTMIN + 1, value));
			value.sival_int++;
		} else {
			sched_yield();
		}
		got_on(4);
	}
	value.sival_int = -1;
	MUST(sigqueue(getpid(), SIGRTMIN + 1, value));
	return NULL;
}

static void *(*const parts[])(void *) = { make_threads, make_children, spawn_programs, take_signals, send_signals };
static pthread_t threads[LENGTH(parts)];

static void start_parts(int task)
{
	sigset_t set;
	own_task = task;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (size_t i = 0; i < LENGTH(parts); i++)
		MUST0(pthread_create(&threads[i], NULL, parts[i], NULL));
}

static void join_parts(void)
{
	for (size_t i = 0; i < LENGTH(parts); i++)
		MUST0(pthread_join(threads[i], NULL));
}

CASE(child)
{
	map_progress();
	start_parts(1);
	prepared();
	join_parts();
}

static void answer(int number)
{
	(void)number;
	uint32_t before[TASKS][PARTS];
	memcpy(before, (void *)progress->rounds, sizeof(before));
	for (int task = 0; task < TASKS; task++)
		for (int part = 0; part < PARTS; part++)
			while (progress->rounds[task][part] - before[task][part] < 3 && !progress->wrong)
				usleep(1000);
	MUST(write(STDOUT_FILENO, "ALIVE\n", 6));
}

CASE(tree)
{
	sigset_t all;
	hear_questions();
	map_progress();
	pid_t child = spawn_abi(other_abi, "child", NULL);
	start_parts(0);
	sigfillset(&all);
	answer_questions(&all, answer);
	progress->stop = 1;
	join_parts();
	reap(child);
	CHECK(!progress->wrong, "a part went wrong");
}
