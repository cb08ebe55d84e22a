/* A job of a shell on a terminal. */
#include "workload.h"
#include <termios.h>

/* Answers each line that is typed, until that line is "end". */
CASE(echo)
{
	char line[64];
	struct termios settings;
	pid_t group = getpgrp();
	MUST(tcgetattr(STDIN_FILENO, &settings));
	printf("reading\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL && strcmp(line, "end\n") != 0) {
		printf("answer %s", line);
		fflush(stdout);
	}
	CHECK(feof(stdin) == 0, "the terminal ended");
	CHECK(getpgrp() == group, "group %d", getpgrp());
	CHECK(tcgetpgrp(STDIN_FILENO) == group, "not in the foreground");
}
