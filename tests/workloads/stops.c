/* Tasks that are stopped by a signal, and what their parents know of it. */
#include "workload.h"

struct board {
	volatile int continued;
	volatile int handled;
	volatile int threads;
};

static struct board *board;

static void make_board(void)
{
	board = MUST((struct board *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

static void on_continue(int signal)
{
	(void)signal;
	__atomic_add_fetch(&board->continued, 1, __ATOMIC_SEQ_CST);
}

static void handle(int signal, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	MUST(sigaction(signal, &action, NULL));
}

static void block(int how, int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	sigprocmask(how, &set, NULL);
}

static bool is_pending(int signal)
{
	sigset_t set;
	sigpending(&set);
	return sigismember(&set, signal) == 1;
}

/* What a parent would be told of a child now; nothing is taken. */
static siginfo_t look(pid_t child)
{
	siginfo_t info = { .si_pid = 0 };
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT));
	return info;
}

static void await_stop(pid_t child)
{
	siginfo_t info;
	int got;
	do
		got = waitid(P_PID, (id_t)child, &info, WSTOPPED | WNOWAIT);
	while (got == -1 && errno == EINTR);
	CHECK(got == 0 && info.si_pid == child, "the stop of %d", child);
}

static void be_told(pid_t child)
{
	siginfo_t info;
	MUST(waitid(P_PID, (id_t)child, &info, WSTOPPED));
}

/* A child in a process group of its own whose body stops itself, or is stopped. */
static void waiting(void *unused)
{
	(void)unused;
	handle(SIGCONT, on_continue, 0);
	setpgid(0, 0);
	prepared();
	wait_for_go();
}

static pid_t stopped_child(void (*body)(void *), int signal)
{
	pid_t child = spawn(body, NULL);
	await_sleep(child);
	MUST(kill(child, signal));
	await_stop(child);
	return child;
}

/* Continues a stopped child, which then ends well. */
static void resume(pid_t child)
{
	int continued = board->continued;
	CHECK(state_of(child, NULL) == 'T', "child %d is in state %c", child, state_of(child, NULL));
	MUST(kill(child, SIGUSR1));
	CHECK(state_of(child, NULL) == 'T' && board->continued == continued, "child %d ran although stopped", child);
	MUST(kill(child, SIGCONT));
	reap(child);
	CHECK(board->continued == continued + 1, "SIGCONT was handled %d times", board->continued - continued);
}

static const int stops[] = { SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU };

/* Each stop signal, told to the parent and not. The parent has SIGCHLD ignored by default. */
CASE(signals)
{
	pid_t untold[LENGTH(stops)], told[LENGTH(stops)];
	make_board();
	for (size_t i = 0; i < LENGTH(stops); i++) {
		untold[i] = stopped_child(waiting, stops[i]);
		told[i] = stopped_child(waiting, stops[i]);
		be_told(told[i]);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(stops); i++) {
		siginfo_t info = look(untold[i]);
		CHECK(info.si_pid == untold[i] && info.si_code == CLD_STOPPED && info.si_status == stops[i],
		      "signal %d: pid %d code %d status %d", stops[i], info.si_pid, info.si_code, info.si_status);
		info = look(told[i]);
		CHECK(info.si_pid == 0, "signal %d: told again: pid %d code %d", stops[i], info.si_pid, info.si_code);
		resume(untold[i]);
		resume(told[i]);
	}
}

static void on_child(int signal)
{
	(void)signal;
	__atomic_add_fetch(&board->handled, 1, __ATOMIC_SEQ_CST);
}

/* A parent that handles SIGCHLD has handled it, and does not once more. */
CASE(handled)
{
	make_board();
	handle(SIGCHLD, on_child, SA_RESTART);
	pid_t child = stopped_child(waiting, SIGTSTP);
	await(&board->handled, 1);
	checkpoint();
	CHECK(board->handled == 1, "SIGCHLD was handled %d times", board->handled);
	CHECK(look(child).si_status == SIGTSTP, "status %d", look(child).si_status);
	handle(SIGCHLD, SIG_DFL, 0);
	resume(child);
}

/* SIGCHLD waits in the queue, with what it says. */
CASE(pending)
{
	sigset_t set;
	siginfo_t info;
	make_board();
	block(SIG_BLOCK, SIGCHLD);
	pid_t child = stopped_child(waiting, SIGTTIN);
	CHECK(is_pending(SIGCHLD), "SIGCHLD is not pending");
	checkpoint();
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	MUST(sigwaitinfo(&set, &info));
	CHECK(info.si_pid == child && info.si_code == CLD_STOPPED && info.si_status == SIGTTIN,
	      "pid %d, not %d, code %d, status %d", info.si_pid, child, info.si_code, info.si_status);
	CHECK(!is_pending(SIGCHLD), "SIGCHLD was pending twice");
	resume(child);
}

/* SIGCHLD was taken off the queue. */
CASE(taken)
{
	sigset_t set;
	siginfo_t info;
	make_board();
	block(SIG_BLOCK, SIGCHLD);
	pid_t child = stopped_child(waiting, SIGSTOP);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	MUST(sigwaitinfo(&set, &info));
	checkpoint();
	CHECK(!is_pending(SIGCHLD), "SIGCHLD is pending");
	CHECK(look(child).si_pid == child, "the stop is forgotten");
	resume(child);
}

static void *thread(void *index)
{
	__atomic_add_fetch(&board->threads, 1, __ATOMIC_SEQ_CST);
	if ((intptr_t)index % 2) {
		struct timespec time = { 3600, 0 };
		while (nanosleep(&time, NULL) == 0)
			;
	} else {
		for (volatile long i = 0;; i++)
			;
	}
	return NULL;
}

static void threaded(void *unused)
{
	enum { THREADS = 4 };
	pthread_t threads[THREADS];
	(void)unused;
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_create(&threads[i], NULL, thread, (void *)(intptr_t)i));
	await(&board->threads, THREADS);
	waiting(NULL);
	/* Any thread may be the one to handle SIGCONT: this one does not end the task before it has. */
	await(&board->continued, 1);
	_exit(failed() ? 1 : 0);
}

/* All threads stop, those at work too. */
CASE(threads)
{
	make_board();
	pid_t child = stopped_child(threaded, SIGTSTP);
	checkpoint();
	resume(child);
}

static void with_signals(void *unused)
{
	handle(SIGUSR2, on_child, 0);
	handle(SIGCONT, on_continue, 0);
	block(SIG_BLOCK, SIGTSTP);
	handle(SIGTSTP, on_child, 0);
	waiting(unused);
	CHECK(board->handled == 2, "%d signals were handled", board->handled);
	CHECK(is_pending(SIGTSTP), "SIGTSTP is not pending any more");
}

/* Signals that it will handle when it runs on; and one that would stop it, were it not blocked. */
CASE(signals_waiting)
{
	union sigval value = { .sival_int = 5 };
	make_board();
	pid_t child = stopped_child(with_signals, SIGSTOP);
	be_told(child);
	handle(SIGRTMIN, SIG_IGN, 0);
	MUST(kill(child, SIGUSR2));
	MUST(kill(child, SIGTSTP));
	MUST(sigqueue(child, SIGUSR2, value));
	checkpoint();
	CHECK(board->handled == 0, "%d signals were handled while it was stopped", board->handled);
	/* SIGCONT takes SIGTSTP off the queue: another one is sent after it. */
	MUST(kill(child, SIGCONT));
	await(&board->continued, 1);
	await(&board->handled, 1);
	MUST(kill(child, SIGUSR2));
	await(&board->handled, 2);
	MUST(kill(child, SIGTSTP));
	finish(child);
}

static void sleeper(void *unused)
{
	struct timespec time = { 2, 0 }, left = { 0, 0 };
	int result;
	(void)unused;
	handle(SIGCONT, SIG_DFL, 0);
	prepared();
	do
		result = nanosleep(&time, &left), time = left;
	while (result == -1 && errno == EINTR);
	CHECK(result == 0, "nanosleep: %s", strerror(errno));
	exit(failed() ? 1 : 0);
}

/* A sleep goes on while its task is stopped, and afterwards. */
CASE(sleeping)
{
	make_board();
	pid_t child = stopped_child(sleeper, SIGSTOP);
	be_told(child);
	checkpoint();
	double start = now(CLOCK_MONOTONIC);
	MUST(kill(child, SIGCONT));
	reap(child);
	CHECK(now(CLOCK_MONOTONIC) - start < 2.5, "it slept for %f s", now(CLOCK_MONOTONIC) - start);
}

static void stopped_parent(void *unused)
{
	pid_t child = stopped_child(waiting, SIGTSTP);
	waiting(unused);
	siginfo_t info = look(child);
	CHECK(info.si_pid == child && info.si_status == SIGTSTP, "pid %d status %d", info.si_pid, info.si_status);
	resume(child);
}

/* A stopped parent of a stopped child. */
CASE(both)
{
	make_board();
	pid_t child = spawn(stopped_parent, NULL);
	await_sleep(child);
	MUST(kill(child, SIGSTOP));
	await_stop(child);
	checkpoint();
	MUST(kill(child, SIGUSR1));
	MUST(kill(child, SIGCONT));
	reap(child);
}

/* Below another task, in its own ABI: exec'd. */
CASE(one)
{
	setpgid(0, 0);
	prepared();
	wait_for_go();
}

static pid_t stopped_program(const char *abi)
{
	pid_t child = spawn_abi(abi, "one", NULL);
	await_sleep(child);
	MUST(kill(child, SIGTSTP));
	await_stop(child);
	return child;
}

/* Children of both ABIs. */
CASE(mixed)
{
	pid_t children[] = { stopped_program("x86_64"), stopped_program("ia32") };
	be_told(children[1]);
	checkpoint();
	CHECK(look(children[0]).si_status == SIGTSTP, "status %d", look(children[0]).si_status);
	CHECK(look(children[1]).si_pid == 0, "told again");
	for (size_t i = 0; i < LENGTH(children); i++) {
		MUST(kill(children[i], SIGUSR1));
		MUST(kill(children[i], SIGCONT));
		reap(children[i]);
	}
}

/* Stopped once, and long continued: SIGCONT has been handled, the parent was told of both. */
CASE(continued)
{
	siginfo_t info;
	make_board();
	pid_t child = stopped_child(waiting, SIGSTOP);
	be_told(child);
	MUST(kill(child, SIGCONT));
	MUST(waitid(P_PID, (id_t)child, &info, WCONTINUED));
	await(&board->continued, 1);
	await_sleep(child);
	checkpoint();
	CHECK(look(child).si_pid == 0, "told again");
	CHECK(board->continued == 1, "SIGCONT was handled %d times", board->continued);
	finish(child);
}
