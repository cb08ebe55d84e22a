/* measure FILE CMD...: runs CMD and writes `STATUS WALL_NS PEAK_KB` to FILE.
 *
 * The kernel counts what a process had before exec as part of its peak, so the process that starts CMD must be
 * a small one: this, and not the Python of the bench. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	struct rusage usage;
	int status;
	if (argc < 3)
		return 2;
	FILE *result = fopen(argv[1], "we");
	if (!result)
		return 2;
	long long start = now();
	pid_t child = vfork();
	if (child == 0) {
		execv(argv[2], argv + 2);
		_exit(127);
	}
	if (child < 0 || wait4(child, &status, 0, &usage) != child)
		return 2;
	long long end = now();
	fprintf(result, "%d %lld %ld\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), end - start,
	        usage.ru_maxrss);
	return fclose(result) ? 2 : 0;
}
