/* Cases by which the harness tests itself. */
#include "workload.h"

CASE(idle)
{
	checkpoint();
}

CASE(failing)
{
	checkpoint();
	CHECK(1 + 1 == 3, "on purpose");
}

CASE(never_ready)
{
	pause();
}

CASE(ends_early)
{
	CHECK(false, "on purpose");
}

/* After SIGUSR1 changes one of everything a snapshot has to see, and waits for another SIGUSR1. */
static void *sleeper(void *unused)
{
	(void)unused;
	pause();
	return NULL;
}

CASE(changing)
{
	pthread_t thread;
	int ends[2];
	char *memory = map_anonymous(4 * PAGE);
	/* Merges with no neighbour, so its range stays and only its contents change. */
	char *apart = MUST((char *)mmap(NULL, PAGE, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(pipe(ends));
	checkpoint();
	umask(0123);
	MUST(chdir("/"));
	MUST(prctl(PR_SET_NAME, "renamed"));
	MUST(munmap(memory, PAGE));
	apart[0] = 1;
	MUST(madvise(memory + 3 * PAGE, PAGE, MADV_DONTFORK));
	MUST(dup2(ends[0], 77));
	MUST(fcntl(ends[1], F_SETFL, O_NONBLOCK));
	MUST((intptr_t)signal(SIGWINCH, SIG_IGN));
	MUST0(pthread_create(&thread, NULL, sleeper, NULL));
	case_argv[1][0] = 'C';
	checkpoint();
}
