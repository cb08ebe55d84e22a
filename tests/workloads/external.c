/* Files that somebody outside of the tree has a part in. Their names, which the harness puts down in the file "names", lead to descriptors
 * of it, so they are opened as if they had been inherited. */
#include "workload.h"
#include <termios.h>

static int open_next(FILE *names, int flags)
{
	char name[256];
	if (fgets(name, sizeof(name), names) == NULL)
		die(__FILE__, __LINE__, "the next name");
	name[strcspn(name, "\n")] = 0;
	return MUST(open(name, flags));
}

static void say(int fd, const char *text)
{
	ssize_t length = (ssize_t)strlen(text);
	CHECK(write(fd, text, (size_t)length) == length, "write: %s", strerror(errno));
}

static void hear(int fd, const char *text)
{
	char got[64] = "";
	CHECK(read(fd, got, sizeof(got) - 1) == (ssize_t)strlen(text) && strcmp(got, text) == 0, "got \"%s\": %s", got,
	      strerror(errno));
}

/* One pipe to somebody, by two descriptions, and one from somebody. */
CASE(pipes)
{
	FILE *names = fopen("names", "r");
	int to = open_next(names, O_WRONLY), also_to = open_next(names, O_WRONLY | O_NONBLOCK | O_APPEND);
	int from = open_next(names, O_RDONLY | O_CLOEXEC);
	fclose(names);
	int duplicate = MUST(dup(to));
	int flags = fcntl(to, F_GETFL), also_flags = fcntl(also_to, F_GETFL), from_flags = fcntl(from, F_GETFL);
	checkpoint();
	CHECK(fcntl(to, F_GETFL) == flags && fcntl(also_to, F_GETFL) == also_flags && fcntl(from, F_GETFL) == from_flags,
	      "flags %#x %#x %#x", fcntl(to, F_GETFL), fcntl(also_to, F_GETFL), fcntl(from, F_GETFL));
	CHECK(fcntl(from, F_GETFD) == FD_CLOEXEC, "close-on-exec");
	MUST(fcntl(to, F_SETFL, flags | O_NONBLOCK));
	CHECK(fcntl(duplicate, F_GETFL) & O_NONBLOCK, "the duplicate is a description of its own");
	say(to, "one ");
	say(also_to, "two ");
	say(duplicate, "three\n");
	hear(from, "hello\n");
	CHECK(read(from, &(char){ 0 }, 1) == 0, "no end of file");
}

/* A file, a terminal, and a named pipe. */
CASE(files)
{
	FILE *names = fopen("names", "r");
	int file = open_next(names, O_WRONLY | O_APPEND), terminal = open_next(names, O_RDWR | O_NOCTTY);
	int fifo = open_next(names, O_WRONLY);
	fclose(names);
	say(file, "before\n");
	checkpoint();
	CHECK(fcntl(file, F_GETFL) & O_APPEND, "flags %#x", fcntl(file, F_GETFL));
	CHECK(isatty(terminal), "no terminal");
	say(file, "after\n");
	say(terminal, "to the terminal\n");
	say(fifo, "to the pipe\n");
}

/* Files that are open by their names, in place of which others are given. */
CASE(named)
{
	int writer = MUST(open("old", O_WRONLY | O_CREAT, 0600)), reader = MUST(open("old", O_RDONLY));
	checkpoint();
	say(writer, "written");
	hear(reader, "written");
}

/* A service that reports to a log program line by line, without a pause. */
CASE(service)
{
	char line[32];
	struct timespec pause = { .tv_nsec = 100000 };
	FILE *names = fopen("names", "r");
	int log = open_next(names, O_WRONLY);
	sigset_t pending;
	fclose(names);
	say(STDOUT_FILENO, "READY\n");
	for (int number = 0;; number++) {
		snprintf(line, sizeof(line), "line %d\n", number);
		say(log, line);
		sigpending(&pending);
		if (sigismember(&pending, SIGUSR1))
			break;
		nanosleep(&pause, NULL);
	}
	say(log, "end\n");
}
