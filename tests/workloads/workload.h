/*
 * What every workload shares: cases, the checkpoint, checks, children.
 *
 * A program holds several cases; argv[1] names the one to run. A case sets its state up, calls checkpoint() once,
 * and then checks from inside that everything is as it was:
 *
 *     CASE(example)
 *     {
 *         int value = 42;
 *         checkpoint();
 *         CHECK(value == 42, "value is %d", value);
 *     }
 *
 * checkpoint() prints READY and waits in sigsuspend(2) for SIGUSR1: nothing here needs more of crr than plain files
 * and signals. SIGUSR1 is blocked in every thread from the start. A case ends with PASS, or with FAIL lines.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define MIB ((size_t)1 << 20)
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

struct workload_case {
	const char *name;
	void (*run)(void);
	struct workload_case *next;
};

void register_case(struct workload_case *entry);

/* Defines a case and makes it known before main() runs. */
#define CASE(id)                                                                                  \
	static void case_##id(void);                                                              \
	__attribute__((constructor)) static void register_##id(void)                              \
	{                                                                                         \
		static struct workload_case entry = { #id, case_##id, NULL };                     \
		register_case(&entry);                                                            \
	}                                                                                         \
	static void case_##id(void)

/* argv[2] and after, for cases that exec themselves. */
extern char **case_args;
/* argv[0], whose memory a program may overwrite. */
extern char **case_argv;

/* Prints READY and waits for SIGUSR1. Only the root task calls it. */
void checkpoint(void);
/* The waiting alone, for children. */
void wait_for_go(void);

/* For busy cases, which are looked at at any moment. Has SIGUSR2 ask and SIGUSR1 end from here on, both blocked until there is an ear for them. */
void hear_questions(void);
/* Prints READY and calls answer(n) for the nth question, until the end comes; waits with these signals blocked, those two aside. */
void answer_questions(const sigset_t *blocked, void (*answer)(int));
/* The end has come. */
extern volatile sig_atomic_t finished;

/* Prints a FAIL line; the case goes on and cannot pass any more. */
void fail(const char *file, int line, const char *condition, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* Gives up. */
void die(const char *file, int line, const char *what) __attribute__((noreturn));
bool failed(void);

#define CHECK(condition, ...)                                                                     \
	do {                                                                                      \
		if (!(condition))                                                                 \
			fail(__FILE__, __LINE__, #condition, __VA_ARGS__);                        \
	} while (0)

/* For calls that return -1 and set errno. The value of the call is the value of the expression. */
#define MUST(call)                                                                                \
	({                                                                                        \
		__typeof__(call) must_result = (call);                                            \
		if (must_result == (__typeof__(call))-1)                                          \
			die(__FILE__, __LINE__, #call);                                           \
		must_result;                                                                      \
	})

/* For pthread calls, which return the error. */
#define MUST0(call)                                                                               \
	do {                                                                                      \
		errno = (call);                                                                   \
		if (errno != 0)                                                                   \
			die(__FILE__, __LINE__, #call);                                           \
	} while (0)

/* Forks a child that runs body(argument) and exits with 0 if it did not fail. Returns once it called prepared(). */
pid_t spawn(void (*body)(void *), void *argument);
/* In a child: lets spawn() in the parent return. */
void prepared(void);
/* Like spawn, but the child execs `name` of this program, built for the given ABI ("x86_64" or "ia32"). */
pid_t spawn_abi(const char *abi, const char *name, const char *argument);
/* The same for a child that is cloned with these flags, of which exec leaves CLONE_FS as it is. */
pid_t spawn_abi_sharing(int flags, const char *abi, const char *name, const char *argument);
/* Ends the last thread of a task whose leader has ended, by exit(0); the whole task with 1 if it failed. */
void end_last_thread(void) __attribute__((noreturn));
/* Sends SIGUSR1 to a child and checks that it exits with 0. */
void finish(pid_t child);
/* Waits for a child and checks that it exits with 0. */
void reap(pid_t child);

extern const char *const this_abi;
extern const char *const other_abi;

/* Anonymous private memory, never NULL. */
char *map_anonymous(size_t length);
/* Fills memory with a pattern that depends on the seed and on the offset. */
void fill(void *memory, size_t length, uint32_t seed);
/* Offset of the first byte that fill() would have made otherwise, or -1. */
ssize_t fill_differs(const void *memory, size_t length, uint32_t seed);
#define CHECK_FILL(memory, length, seed)                                                          \
	do {                                                                                      \
		ssize_t differs = fill_differs(memory, length, seed);                             \
		CHECK(differs == -1, "contents of %p differ from byte %zd on", (void *)(memory), differs); \
	} while (0)

/* Seconds of a clock. */
double now(clockid_t clock);
/* Waits until all threads that call it have come: a barrier that leaves no thread in a futex of its own. */
void await(const volatile int *counter, int value);
/* The state of a task or thread of this process, as /proc shows it, or 0. The exit code it shows, if that is asked for. */
char state_of(pid_t tid, unsigned *exit_code);
/* Waits until a task or thread of this process is in this state. */
void await_state(pid_t tid, char state);
/* Waits until it sleeps in the kernel. */
void await_sleep(pid_t tid);
pid_t thread_id(void);

#endif
