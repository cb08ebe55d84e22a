/*
 * Threads that no tracer can stop for now: they wait in vfork(2) for a child that neither ends nor runs another program, or in
 * the kernel for a file server that does not answer. Each case names what a dump has to name, as in refused.c.
 */
#include "workload.h"
#include <linux/fuse.h>
#include <linux/sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <stdarg.h>

static void name(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void name(const char *format, ...)
{
	char line[160] = "NAME ";
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(line + 5, sizeof(line) - 6, format, arguments);
	va_end(arguments);
	strcat(line, "\n");
	MUST(write(STDOUT_FILENO, line, strlen(line)));
}

/* Something else in the way, so that all of it is to be named. */
static void open_unsupported(void)
{
	name("fd %d ", MUST(socket(AF_PACKET, SOCK_PACKET, 0)));
}

enum { PARENTS = 3 };

static struct parent {
	volatile pid_t tid, child;
	int ends[2];
	pthread_t thread;
} parents[PARENTS];

/* In memory that the parent has too: it asks nothing of the C library. */
static void wait_as_child(struct parent *parent)
{
	char byte;
	parent->child = (pid_t)syscall(SYS_getpid);
	_exit(read(parent->ends[0], &byte, 1) == 1 ? 5 : 6);
}

static void check_child(struct parent *parent, pid_t child)
{
	int status = 0;
	CHECK(child == parent->child && waitpid(child, &status, 0) == child && status == 5 << 8,
	      "child %d, seen as %d: status %#x", child, parent->child, status);
}

static void *call_vfork(void *argument)
{
	struct parent *parent = argument;
	parent->tid = thread_id();
	pid_t child = vfork();
	if (child == 0)
		wait_as_child(parent);
	check_child(parent, child);
	return NULL;
}

/* The same by clone with a flag; the child has memory of its own. */
static void *call_clone(void *argument)
{
	struct parent *parent = argument;
	parent->tid = thread_id();
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (child == 0)
		wait_as_child(parent);
	parent->child = child;
	check_child(parent, child);
	return NULL;
}

static void *call_clone3(void *argument)
{
	struct parent *parent = argument;
	struct clone_args args = { .flags = CLONE_VFORK, .exit_signal = SIGCHLD };
	parent->tid = thread_id();
	pid_t child = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (child == 0)
		wait_as_child(parent);
	parent->child = child;
	check_child(parent, child);
	return NULL;
}

static void just_wait(void *unused)
{
	(void)unused;
	open_unsupported();
	prepared();
	wait_for_go();
}

/* The only child of a thread, as the kernel lists it. */
static pid_t child_of(pid_t pid, pid_t tid)
{
	char path[64], text[64];
	ssize_t length;
	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	length = MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	text[length] = 0;
	return atoi(text);
}

CASE(vfork)
{
	static void *(*const calls[PARENTS])(void *) = { call_vfork, call_clone, call_clone3 };
	pid_t other = spawn(just_wait, NULL);
	for (int i = 0; i < PARENTS; i++) {
		MUST(pipe(parents[i].ends));
		MUST0(pthread_create(&parents[i].thread, NULL, calls[i], &parents[i]));
		while (parents[i].tid == 0)
			sched_yield();
		await_state(parents[i].tid, 'D');
		name("thread %d: waits in vfork for task %d (uninterruptible)", parents[i].tid, child_of(getpid(), parents[i].tid));
	}
	checkpoint();
	for (int i = 0; i < PARENTS; i++) {
		MUST(write(parents[i].ends[1], "g", 1));
		MUST0(pthread_join(parents[i].thread, NULL));
	}
	finish(other);
}

/* The child of a vfork forks in its turn, and so on: it is the younger ones that hold up the elder. */
CASE(nested)
{
	struct parent *outer = &parents[0], *inner = &parents[1];
	MUST(pipe(inner->ends));
	pid_t other = spawn(just_wait, NULL);
	pid_t child = MUST(fork());
	if (child == 0) {
		pid_t first = vfork();
		if (first == 0) {
			outer->child = (pid_t)syscall(SYS_getpid);
			pid_t second = vfork();
			if (second == 0)
				wait_as_child(inner);
			_exit(waitpid(second, NULL, 0) == second ? 5 : 6);
		}
		check_child(outer, first);
		_exit(failed() ? 1 : 0);
	}
	await_state(child, 'D');
	pid_t first = child_of(child, child);
	await_state(first, 'D');
	name("thread %d: waits in vfork for task %d (uninterruptible)", child, first);
	name("thread %d: waits in vfork for task %d (uninterruptible)", first, child_of(first, first));
	checkpoint();
	MUST(write(inner->ends[1], "g", 1));
	reap(child);
	finish(other);
}

static volatile pid_t asker;

static void *ask_the_server(void *unused)
{
	struct stat stat_of_it;
	(void)unused;
	asker = thread_id();
	/* The server goes away with an error in the end. */
	CHECK(stat("mounted/file", &stat_of_it) == -1, "there is a file");
	return NULL;
}

/* Answers the first request, by which a mount begins, and no other. */
static void serve(int device)
{
	static char request[1 << 17];
	struct {
		struct fuse_out_header header;
		struct fuse_init_out init;
	} answer = { 0 };
	MUST(read(device, request, sizeof(request)));
	answer.header.len = sizeof(answer);
	answer.header.unique = ((struct fuse_in_header *)request)->unique;
	answer.init.major = FUSE_KERNEL_VERSION;
	answer.init.minor = FUSE_KERNEL_MINOR_VERSION;
	answer.init.max_write = 4096;
	MUST(write(device, &answer, sizeof(answer)));
}

/* An uninterruptible sleep: a request to a file server that was interrupted already waits for its answer. */
CASE(file_server)
{
	pthread_t thread;
	char options[64];
	pid_t other = spawn(just_wait, NULL);
	int device = MUST(open("/dev/fuse", O_RDWR | O_CLOEXEC));
	MUST(mkdir("mounted", 0700));
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	MUST(mount("fuse", "mounted", "fuse", 0, options));
	serve(device);
	MUST0(pthread_create(&thread, NULL, ask_the_server, NULL));
	while (asker == 0)
		sched_yield();
	await_sleep(asker);
	name("thread %d: waits in the kernel (", asker);
	checkpoint();
	close(device);
	MUST0(pthread_join(thread, NULL));
	MUST(umount2("mounted", MNT_DETACH));
	finish(other);
}
