/* Tasks that share with each other without being threads, and children that tell their end by another signal. */
#include "workload.h"
#include <sys/socket.h>
#include <sys/un.h>

#define STACK (64 * 1024)
#define SPARE_FD 50

/* What the tasks of a case tell each other, whatever they share. */
struct board {
	volatile int ready;
	volatile int turn;
	/* By place in a chain. */
	volatile int came[8];
};

static struct board *board;
/* Seen by another task only if it is in the same memory. */
static volatile int word;

static void make_board(void)
{
	board = MUST((struct board *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

/* The top of a new stack, which touches no other memory: areas of one history may merge, and others not. */
static char *new_stack(void)
{
	char *memory = map_anonymous(STACK + 2 * PAGE);
	MUST(mprotect(memory, PAGE, PROT_NONE));
	MUST(mprotect(memory + PAGE + STACK, PAGE, PROT_NONE));
	return memory + PAGE + STACK;
}

/* Makes a task that runs body(argument), and waits until it is ready. */
static pid_t make(int flags, int (*body)(void *), void *argument)
{
	int ready = board->ready + 1;
	pid_t pid = MUST(clone(body, new_stack(), flags, argument));
	await(&board->ready, ready);
	await_sleep(pid);
	return pid;
}

static void tell_ready(void)
{
	__atomic_add_fetch(&board->ready, 1, __ATOMIC_SEQ_CST);
}

/* Ends a task that make() has made, and checks how it ended. */
static void end(pid_t pid)
{
	int status = 0;
	pid_t got;
	MUST(kill(pid, SIGUSR1));
	do
		got = waitpid(pid, &status, __WALL);
	while (got == -1 && errno == EINTR);
	CHECK(got == pid && status == 0, "task %d: waitpid gives %d, status %#x", pid, got, status);
}

/* The objects that two tasks have in common, as clone(2) would be told. */
static int common(pid_t a, pid_t b)
{
	/* KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND. */
	static const int flags[4] = { CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND };
	int found = 0;
	for (int kind = 1; kind <= 4; kind++)
		if (MUST(syscall(SYS_kcmp, a, b, kind, 0, 0)) == 0)
			found |= flags[kind - 1];
	return found;
}

static void check_common(pid_t a, pid_t b, int flags)
{
	const int all = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND;
	CHECK(common(a, b) == (flags & all), "tasks %d and %d share %#x, not %#x", a, b, common(a, b), flags & all);
}

static void on_signal(int signal)
{
	(void)signal;
}

/* Changes one of each object that can be shared. */
static void change(int turn)
{
	struct sigaction action = { .sa_handler = on_signal };
	char name[32];
	snprintf(name, sizeof(name), "dir-%d", turn);
	int fd = MUST(open("/dev/null", O_RDONLY));
	MUST(dup2(fd, SPARE_FD + turn));
	close(fd);
	MUST(mkdir(name, 0700));
	MUST(chdir(name));
	umask((mode_t)(020 + turn));
	MUST(sigaction(SIGRTMIN + turn, &action, NULL));
	word = turn;
}

/* Whether this task sees what change(turn) in another one has done, as far as it should. */
static void check_change(int turn, int flags)
{
	struct sigaction action;
	char name[32], path[512];
	bool sees = fcntl(SPARE_FD + turn, F_GETFD) != -1;
	CHECK(sees == !!(flags & CLONE_FILES), "fd %d: %d", SPARE_FD + turn, sees);
	snprintf(name, sizeof(name), "/dir-%d", turn);
	MUST((intptr_t)getcwd(path, sizeof(path)));
	sees = strlen(path) > strlen(name) && strcmp(path + strlen(path) - strlen(name), name) == 0;
	CHECK(sees == !!(flags & CLONE_FS), "current directory %s", path);
	mode_t mask = umask(0);
	umask(mask);
	CHECK((mask == (mode_t)(020 + turn)) == !!(flags & CLONE_FS), "umask %#o", mask);
	MUST(sigaction(SIGRTMIN + turn, NULL, &action));
	CHECK((action.sa_handler == on_signal) == !!(flags & CLONE_SIGHAND), "handler %p", action.sa_handler);
	CHECK((word == turn) == !!(flags & CLONE_VM), "memory: %d", word);
}

static int sharer(void *argument)
{
	int flags = *(int *)argument;
	tell_ready();
	wait_for_go();
	check_change(1, flags);
	change(2);
	board->turn = 2;
	wait_for_go();
	_exit(failed() ? 1 : 0);
}

/* A child that shares these; before and after, each sees of the other what it should. */
static void share(int flags)
{
	make_board();
	pid_t child = make(flags | SIGCHLD, sharer, &flags);
	check_common(getpid(), child, flags);
	checkpoint();
	check_common(getpid(), child, flags);
	change(1);
	MUST(kill(child, SIGUSR1));
	await(&board->turn, 2);
	await_sleep(child);
	check_change(2, flags);
	end(child);
}

CASE(memory)
{
	share(CLONE_VM);
}

CASE(memory_handlers)
{
	share(CLONE_VM | CLONE_SIGHAND);
}

CASE(memory_files)
{
	share(CLONE_VM | CLONE_FILES);
}

CASE(all_but_threads)
{
	share(CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND);
}

CASE(files)
{
	share(CLONE_FILES);
}

CASE(directories)
{
	share(CLONE_FS);
}

CASE(files_directories)
{
	share(CLONE_FILES | CLONE_FS);
}

static int waiter(void *unused)
{
	(void)unused;
	tell_ready();
	wait_for_go();
	_exit(failed() ? 1 : 0);
}

/* Children that tell their end by no signal, by an ordinary one and by a real-time one. */
CASE(exit_signals)
{
	const int signals[3] = { 0, SIGUSR2, SIGRTMIN + 3 };
	pid_t children[LENGTH(signals)];
	sigset_t set;
	int status;
	make_board();
	sigemptyset(&set);
	for (size_t i = 1; i < LENGTH(signals); i++)
		sigaddset(&set, signals[i]);
	sigaddset(&set, SIGCHLD);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	for (size_t i = 0; i < LENGTH(signals); i++)
		children[i] = make(signals[i], waiter, NULL);
	checkpoint();
	CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "an ordinary child: %s", strerror(errno));
	for (size_t i = 0; i < LENGTH(signals); i++) {
		struct timespec none = { 0, 0 };
		siginfo_t info;
		MUST(kill(children[i], SIGUSR1));
		CHECK(waitpid(children[i], &status, __WCLONE) == children[i] && status == 0, "child %d: %#x, %s",
		      children[i], status, strerror(errno));
		int got = sigtimedwait(&set, &info, &none);
		if (signals[i] == 0)
			CHECK(got == -1 && errno == EAGAIN, "signal %d", got);
		else
			CHECK(got == signals[i] && info.si_pid == children[i] && info.si_code == CLD_EXITED,
			      "signal %d of %d, code %d", got, info.si_pid, info.si_code);
	}
}

static void plain_leaf(void *memory)
{
	prepared();
	wait_for_go();
	CHECK_FILL(memory, 8 * PAGE, 7);
}

/* Ordinary children of both ABIs below a task that is none, with memory, files and a directory of their own. */
static int ancestor(void *unused)
{
	char *memory = map_anonymous(8 * PAGE);
	(void)unused;
	fill(memory, 8 * PAGE, 7);
	int fd = MUST(open("ancestor", O_RDWR | O_CREAT, 0600));
	MUST(dup2(fd, 30));
	MUST(fcntl(30, F_SETFD, FD_CLOEXEC));
	MUST(lseek(fd, 10, SEEK_SET));
	close(fd);
	MUST(mkdir("below", 0700));
	MUST(chdir("below"));
	umask(027);
	pid_t below[3] = { spawn(plain_leaf, memory), spawn_abi(other_abi, "elsewhere", "2"),
			   spawn_abi(this_abi, "elsewhere", "1") };
	tell_ready();
	wait_for_go();
	CHECK_FILL(memory, 8 * PAGE, 7);
	CHECK(lseek(30, 0, SEEK_CUR) == 10, "offset %ld", (long)lseek(30, 0, SEEK_CUR));
	for (size_t i = 0; i < LENGTH(below); i++)
		finish(below[i]);
	_exit(failed() ? 1 : 0);
}

/* argv[2]: how many more levels come below, each in the other ABI. */
CASE(elsewhere)
{
	int more = atoi(case_args[0]);
	char argument[16];
	pid_t below = 0;
	char *memory = map_anonymous(16 * PAGE);
	fill(memory, 16 * PAGE, (uint32_t)more);
	MUST(dup2(STDIN_FILENO, 20 + more));
	snprintf(argument, sizeof(argument), "%d", more - 1);
	if (more > 0)
		below = spawn_abi(other_abi, "elsewhere", argument);
	prepared();
	wait_for_go();
	CHECK_FILL(memory, 16 * PAGE, (uint32_t)more);
	CHECK(fcntl(20 + more, F_GETFD) == 0, "fd %d", 20 + more);
	if (more > 0)
		finish(below);
}

CASE(descendants)
{
	make_board();
	pid_t ordinary = spawn(plain_leaf, memset(map_anonymous(8 * PAGE), 0, 0));
	pid_t child = make(0, ancestor, NULL);
	checkpoint();
	end(child);
	MUST(kill(ordinary, SIGKILL));
	MUST(waitpid(ordinary, NULL, 0));
}

/* The same below a task in its parent's memory, with its parent's files. */
CASE(descendants_of_a_sharer)
{
	make_board();
	pid_t child = make(CLONE_VM | CLONE_FILES | SIGCHLD, ancestor, NULL);
	checkpoint();
	end(child);
}

struct link {
	const int *flags;
	int left;
};

static int linked(void *argument);

/* Makes the next task of a chain, and waits until all from it on are ready. */
static pid_t make_link(struct link *next, int flags)
{
	pid_t pid = MUST(clone(linked, new_stack(), flags | SIGCHLD, next));
	await(&board->came[next->left], 1);
	await_sleep(pid);
	return pid;
}

static int linked(void *argument)
{
	struct link *own = argument;
	struct link next = { own->flags + 1, own->left - 1 };
	pid_t below = own->left > 0 ? make_link(&next, own->flags[0]) : 0;
	board->came[own->left] = 1;
	wait_for_go();
	if (own->left > 0) {
		check_common(getpid(), below, own->flags[0]);
		end(below);
	}
	_exit(failed() ? 1 : 0);
}

static void chain(const int *flags, int count)
{
	struct link first = { flags + 1, count - 1 };
	make_board();
	pid_t below = make_link(&first, flags[0]);
	checkpoint();
	check_common(getpid(), below, flags[0]);
	end(below);
}

/* Each shares something else with the next. */
CASE(chain)
{
	static const int flags[] = { CLONE_VM | CLONE_FILES, CLONE_FS, CLONE_FILES | CLONE_FS,
				     CLONE_VM | CLONE_SIGHAND | CLONE_FILES, CLONE_VM };
	chain(flags, LENGTH(flags));
}

/* One in whose memory and table the root is too, made by a child of the root as its sibling. */
static volatile pid_t *sibling;

static int maker(void *argument)
{
	int flags = *(int *)argument;
	*sibling = MUST(clone(waiter, new_stack(), flags | CLONE_PARENT, NULL));
	await(&board->ready, 1);
	tell_ready();
	wait_for_go();
	check_common(getpid(), *sibling, flags);
	_exit(failed() ? 1 : 0);
}

static void siblings(int flags)
{
	make_board();
	sibling = MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t first = MUST(clone(maker, new_stack(), SIGUSR2, &flags));
	await(&board->ready, 2);
	await_sleep(first);
	await_sleep(*sibling);
	checkpoint();
	check_common(getpid(), first, 0);
	check_common(getpid(), *sibling, 0);
	MUST((intptr_t)signal(SIGUSR2, SIG_IGN));
	end(first);
	end(*sibling);
}

CASE(siblings_in_one_memory)
{
	siblings(CLONE_VM | CLONE_SIGHAND);
}

/* What a restore makes beside them. */
CASE(siblings_beside_a_socket)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "socket" };
	int listening = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), client;
	MUST(bind(listening, (struct sockaddr *)&name, sizeof(name)));
	MUST(listen(listening, 5));
	siblings(CLONE_VM | CLONE_SIGHAND);
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(client, (struct sockaddr *)&name, sizeof(name)));
}

CASE(siblings_with_one_table)
{
	siblings(CLONE_FILES | CLONE_FS);
}

/* Directories survive exec, and so does sharing them: with a task of the other ABI. */
CASE(mover)
{
	char path[512];
	prepared();
	wait_for_go();
	MUST((intptr_t)getcwd(path, sizeof(path)));
	CHECK(strlen(path) > 6 && strcmp(path + strlen(path) - 6, "/moved") == 0, "current directory %s", path);
	umask(0123);
}

static void exec_sharing(const char *abi)
{
	pid_t child = spawn_abi_sharing(CLONE_FS, abi, "mover", NULL);
	await_sleep(child);
	checkpoint();
	check_common(getpid(), child, CLONE_FS);
	MUST(mkdir("moved", 0700));
	MUST(chdir("moved"));
	finish(child);
	CHECK(umask(0) == 0123, "umask");
}

CASE(directories_across_exec)
{
	exec_sharing(this_abi);
}

CASE(directories_across_abis)
{
	exec_sharing(other_abi);
}

/* Groups and sessions led by such tasks, joined by others. */
static int leader(void *session)
{
	if (session != NULL)
		MUST(setsid());
	else
		MUST(setpgid(0, 0));
	tell_ready();
	wait_for_go();
	CHECK(getpgid(0) == getpid(), "group %d", getpgid(0));
	CHECK((getsid(0) == getpid()) == (session != NULL), "session %d", getsid(0));
	_exit(failed() ? 1 : 0);
}

static void joiner(void *group)
{
	MUST(setpgid(0, *(pid_t *)group));
	prepared();
	wait_for_go();
	CHECK(getpgid(0) == *(pid_t *)group, "group %d", getpgid(0));
}

/* Goes to a group that its own child leads, and so does an ordinary child. */
static void group_maker(void *unused)
{
	(void)unused;
	/* First, so that the others do not have that pipe. */
	prepared();
	pid_t of_group = make(0, leader, NULL), of_session = make(0, leader, board);
	pid_t joined = spawn(joiner, &of_group);
	MUST(setpgid(0, of_group));
	board->turn = 1;
	wait_for_go();
	CHECK(getpgid(0) == of_group, "group %d", getpgid(0));
	finish(joined);
	end(of_session);
	end(of_group);
}

CASE(groups)
{
	make_board();
	pid_t below = spawn(group_maker, NULL);
	await(&board->turn, 1);
	await_sleep(below);
	checkpoint();
	finish(below);
}

/* Threads beside tasks in the same memory, each with what a thread has for itself. */
static void *sleeper(void *memory)
{
	tell_ready();
	sigset_t set;
	int signal;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigwait(&set, &signal);
	CHECK_FILL(memory, 4 * PAGE, 11);
	return NULL;
}

CASE(threads)
{
	pthread_t threads[3];
	sigset_t set;
	char *memory = map_anonymous(4 * PAGE);
	fill(memory, 4 * PAGE, 11);
	make_board();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_create(&threads[i], NULL, sleeper, memory));
	await(&board->ready, 3);
	pid_t tasks[2] = { make(CLONE_VM | CLONE_FILES | SIGCHLD, waiter, NULL), make(CLONE_VM | 0, waiter, NULL) };
	checkpoint();
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_kill(threads[i], SIGUSR2));
	for (size_t i = 0; i < LENGTH(threads); i++)
		MUST0(pthread_join(threads[i], NULL));
	end(tasks[0]);
	end(tasks[1]);
}

static int leaver(void *argument)
{
	pid_t below = make(CLONE_FILES | SIGCHLD, waiter, argument);
	MUST(unshare(CLONE_FILES));
	board->turn = 1;
	wait_for_go();
	end(below);
	_exit(failed() ? 1 : 0);
}

/* The root and its grandchild share what the task between them no longer has. */
CASE(apart)
{
	make_board();
	pid_t child = MUST(clone(leaver, new_stack(), CLONE_FILES | SIGCHLD, NULL));
	await(&board->turn, 1);
	await_sleep(child);
	checkpoint();
	end(child);
}

/* argv[2]: a child from before the exec. */
CASE(changed)
{
	prepared();
	wait_for_go();
	end((pid_t)atoi(case_args[0]));
}

static void changing(int pipe_end)
{
	char argument[16];
	pid_t child = MUST((pid_t)syscall(SYS_clone, SIGUSR2, 0, 0, 0, 0));
	if (child == 0) {
		close(pipe_end);
		wait_for_go();
		_exit(0);
	}
	snprintf(argument, sizeof(argument), "%d", child);
	execl(case_argv[0], case_argv[0], "changed", argument, (char *)NULL);
	die(__FILE__, __LINE__, "exec");
}

/* A task with a child that was to tell its end by another signal, to a program that is no more. */
CASE(parent_changed)
{
	make_board();
	int ends[2];
	char number[16], byte;
	MUST(pipe(ends));
	pid_t child = MUST(fork());
	if (child == 0) {
		close(ends[0]);
		snprintf(number, sizeof(number), "%d", ends[1]);
		setenv("PREPARED_FD", number, 1);
		changing(ends[1]);
	}
	close(ends[1]);
	CHECK(read(ends[0], &byte, 1) == 1 && read(ends[0], &byte, 1) == 0, "the child");
	close(ends[0]);
	await_sleep(child);
	checkpoint();
	finish(child);
}
