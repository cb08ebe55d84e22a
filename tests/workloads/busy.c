/*
 * A tree of both ABIs that works all the time and checks itself: what dumps that fail or are killed must not harm.
 * On SIGUSR2 the root answers ALIVE once every thread of every task has got on and nothing was wrong.
 */
#include "workload.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/resource.h>

enum { THREADS = 3, TASKS = 4 };

/* In a file that all tasks map. */
struct progress {
	volatile uint32_t rounds[TASKS][THREADS];
	volatile uint32_t wrong;
	volatile uint32_t stop;
};

static struct progress *progress;
static __thread uint32_t own;

static struct progress *map_progress(void)
{
	int fd = MUST(open("progress", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, sizeof(struct progress)));
	void *mapped = MUST(mmap(NULL, sizeof(struct progress), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	return mapped;
}

struct worker {
	int task, thread;
};

/* Integer, floating-point and memory work whose result is known; system calls whose result is known. */
static void *work(void *argument)
{
	struct worker *worker = argument;
	char *memory = map_anonymous(4 * PAGE);
	pid_t pid = getpid(), tid = thread_id();
	volatile double sum = 0;
	own = (uint32_t)tid;
	for (uint32_t round = 1; !progress->stop; round++) {
		fill(memory, 4 * PAGE, round);
		bool right = fill_differs(memory, 4 * PAGE, round) == -1;
		sum = 0;
		for (int i = 1; i <= 100; i++)
			sum += i * 0.5;
		right = right && sum == 2525.0 && own == (uint32_t)tid;
		struct timespec pause = { 0, 1000000 };
		errno = 0;
		int slept = nanosleep(&pause, NULL);
		right = right && slept == 0 && errno == 0 && thread_id() == tid && (pid_t)syscall(SYS_getpid) == pid;
		if (!right) {
			CHECK(false, "thread %d.%d: sum %g, own %u, nanosleep %d %s", worker->task, worker->thread, sum, own,
			      slept, strerror(errno));
			progress->wrong = 1;
			break;
		}
		progress->rounds[worker->task][worker->thread] = round;
	}
	return NULL;
}

static void start_workers(int task, pthread_t *threads)
{
	static struct worker workers[THREADS];
	for (int i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){ task, i };
		MUST0(pthread_create(&threads[i], NULL, work, &workers[i]));
	}
	/* Only then has each of them the memory that it works with. */
	for (int i = 0; i < THREADS; i++)
		while (progress->rounds[task][i] == 0)
			sched_yield();
}

static void join_workers(pthread_t *threads)
{
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* Lets nothing more be mapped. */
static void allow_no_more(void)
{
	char text[256] = "";
	int fd = MUST(open("/proc/self/statm", O_RDONLY));
	MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	rlim_t bytes = strtoul(text, NULL, 10) * PAGE;
	MUST(setrlimit(RLIMIT_AS, &(struct rlimit){ bytes, bytes }));
}

/* argv[2]: its number, and a letter if it is to have no room. */
CASE(child)
{
	pthread_t threads[THREADS];
	progress = map_progress();
	start_workers(atoi(case_args[0]), threads);
	if (case_args[0][1] != 0)
		allow_no_more();
	prepared();
	join_workers(threads);
}

/* As child, but its leader has ended. */
CASE(leaderless)
{
	pthread_t threads[THREADS];
	progress = map_progress();
	start_workers(atoi(case_args[0]), threads);
	prepared();
	for (;;)
		syscall(SYS_exit, 0);
}

static void answer(int number)
{
	(void)number;
	uint32_t before[TASKS][THREADS];
	memcpy(before, (void *)progress->rounds, sizeof(before));
	for (int task = 0; task < TASKS; task++)
		for (int thread = 0; thread < THREADS; thread++)
			while (progress->rounds[task][thread] - before[task][thread] < 3 && !progress->wrong)
				sched_yield();
	MUST(write(STDOUT_FILENO, "ALIVE\n", 6));
}

static void run_tree(bool cramped)
{
	pthread_t threads[THREADS];
	sigset_t none;
	sigemptyset(&none);
	hear_questions();
	progress = map_progress();
	pid_t children[TASKS - 1] = { spawn_abi(other_abi, "child", cramped ? "1c" : "1"), spawn_abi(this_abi, "child", "2"),
				      spawn_abi(this_abi, "leaderless", "3") };
	start_workers(0, threads);
	if (cramped)
		allow_no_more();
	answer_questions(&none, answer);
	progress->stop = 1;
	join_workers(threads);
	for (int i = 0; i < TASKS - 1; i++)
		reap(children[i]);
	CHECK(!progress->wrong, "a thread went wrong");
}

CASE(tree)
{
	run_tree(false);
}

/* No task may map code, and two of them nothing at all. */
CASE(cramped)
{
	/* PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN. */
	MUST(prctl(65, 1, 0, 0, 0));
	run_tree(true);
}

#define DEADLY(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* Under a filter that kills whoever calls what only crr does: modify_ldt, get_mempolicy, getitimer, membarrier. */
CASE(confined)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_I386, 10, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		DEADLY(154), DEADLY(239), DEADLY(36), DEADLY(324),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		DEADLY(123), DEADLY(275), DEADLY(105), DEADLY(375),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = LENGTH(code), .filter = code };
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	run_tree(false);
}
