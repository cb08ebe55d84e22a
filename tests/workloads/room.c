/* Tasks in which nothing can be mapped, or no code: at RLIMIT_AS, in a full address space, under PR_SET_MDWE. */
#include "workload.h"
#include <asm/ldt.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/resource.h>
#include <ucontext.h>

enum { SET_MDWE = 65, GET_MDWE, REFUSE_EXEC_GAIN = 1, NO_INHERIT = 2 };
/* Bytes that crr maps to have a task make calls. */
#define EXECUTOR ((size_t)0x23000)

static struct rlimit bytes_allowed(void)
{
	struct rlimit limit;
	MUST(getrlimit(RLIMIT_AS, &limit));
	return limit;
}

/* What /proc/self/NAME holds. */
static size_t read_own(const char *path, char *text, size_t room)
{
	size_t length = 0;
	int fd = MUST(open(path, O_RDONLY));
	for (ssize_t n; (n = MUST(read(fd, text + length, room - 1 - length))) > 0;)
		length += (size_t)n;
	close(fd);
	text[length] = 0;
	return length;
}

/* Lets nothing more be mapped. */
static void allow_no_more(void)
{
	char text[256];
	read_own("/proc/self/statm", text, sizeof(text));
	struct rlimit limit = bytes_allowed();
	limit.rlim_cur = strtoul(text, NULL, 10) * PAGE;
	MUST(setrlimit(RLIMIT_AS, &limit));
}

static void *map_page(int prot)
{
	return mmap(NULL, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void check_no_room(void)
{
	errno = 0;
	void *page = map_page(PROT_READ);
	CHECK(page == MAP_FAILED && errno == ENOMEM, "a page could be mapped at %p: %s", page, strerror(errno));
}

static void forbid_code(unsigned long flags)
{
	MUST(prctl(SET_MDWE, flags, 0, 0, 0));
}

static void check_no_code(int flags)
{
	CHECK(prctl(GET_MDWE, 0, 0, 0, 0) == flags, "MDWE is %d", prctl(GET_MDWE, 0, 0, 0, 0));
	errno = 0;
	void *page = map_page(PROT_READ | PROT_WRITE | PROT_EXEC);
	CHECK(page == MAP_FAILED && errno == EACCES, "code could be mapped at %p: %s", page, strerror(errno));
}

/* A page at a time or more, at places of which nobody knows. */
static char *touched;
enum { TOUCHED = 40 };

static void touch(void)
{
	touched = map_anonymous(TOUCHED * PAGE);
	fill(touched, TOUCHED * PAGE, 7);
}

static void check_touched(void)
{
	CHECK_FILL(touched, TOUCHED * PAGE, 7);
}

CASE(limit)
{
	touch();
	allow_no_more();
	struct rlimit before = bytes_allowed();
	check_no_room();
	checkpoint();
	struct rlimit after = bytes_allowed();
	CHECK(before.rlim_cur == after.rlim_cur && before.rlim_max == after.rlim_max, "RLIMIT_AS changed");
	check_no_room();
	check_touched();
}

/* Beyond the limit already, and not at the end of what could be allowed. */
CASE(limit_below)
{
	touch();
	struct rlimit limit = { MIB, RLIM_INFINITY };
	MUST(setrlimit(RLIMIT_AS, &limit));
	check_no_room();
	checkpoint();
	CHECK(bytes_allowed().rlim_cur == MIB && bytes_allowed().rlim_max == RLIM_INFINITY, "RLIMIT_AS changed");
	check_no_room();
	check_touched();
}

enum { THREADS = 4 };
struct waiter {
	pthread_t thread;
	volatile pid_t tid;
	int number, ends[2];
};
static struct waiter waiters[THREADS];

/* Waits in a read or in a poll that ends some day, with something on its stack and below it. */
static void *wait_for_byte(void *argument)
{
	struct waiter *waiter = argument;
	char stack[3 * PAGE], byte = 0;
	fill(stack, sizeof(stack), (uint32_t)waiter->number);
	waiter->tid = thread_id();
	if (waiter->number % 2 == 1) {
		struct pollfd look = { .fd = waiter->ends[0], .events = POLLIN };
		CHECK(poll(&look, 1, 300000) == 1, "poll of thread %d", waiter->number);
	}
	CHECK(read(waiter->ends[0], &byte, 1) == 1 && byte == 'x', "thread %d read %d", waiter->number, byte);
	CHECK_FILL(stack, sizeof(stack), (uint32_t)waiter->number);
	return NULL;
}

static void start_waiters(void)
{
	for (int i = 0; i < THREADS; i++) {
		waiters[i].number = i;
		MUST(pipe(waiters[i].ends));
		MUST0(pthread_create(&waiters[i].thread, NULL, wait_for_byte, &waiters[i]));
		while (waiters[i].tid == 0)
			sched_yield();
		await_sleep(waiters[i].tid);
	}
}

static void end_waiters(void)
{
	for (int i = 0; i < THREADS; i++) {
		MUST(write(waiters[i].ends[1], "x", 1));
		MUST0(pthread_join(waiters[i].thread, NULL));
	}
}

CASE(limit_threads)
{
	start_waiters();
	allow_no_more();
	checkpoint();
	check_no_room();
	end_waiters();
}

CASE(no_code)
{
	touch();
	forbid_code(REFUSE_EXEC_GAIN);
	checkpoint();
	check_no_code(REFUSE_EXEC_GAIN);
	check_touched();
}

static void check_child(void *flags)
{
	prepared();
	wait_for_go();
	if (*(int *)flags == 0)
		CHECK(prctl(GET_MDWE, 0, 0, 0, 0) == 0, "MDWE of the child");
	else
		check_no_code(*(int *)flags);
}

/* Each with a child of the other kind, one of which was forked before. */
CASE(no_code_inherited)
{
	int none = 0, some = REFUSE_EXEC_GAIN;
	pid_t before = spawn(check_child, &none);
	forbid_code(REFUSE_EXEC_GAIN);
	pid_t after = spawn(check_child, &some);
	checkpoint();
	check_no_code(REFUSE_EXEC_GAIN);
	finish(before);
	finish(after);
}

CASE(no_code_not_inherited)
{
	int none = 0;
	forbid_code(REFUSE_EXEC_GAIN | NO_INHERIT);
	pid_t child = spawn(check_child, &none);
	checkpoint();
	check_no_code(REFUSE_EXEC_GAIN | NO_INHERIT);
	finish(child);
	pid_t later = spawn(check_child, &none);
	finish(later);
}

/* Old code stays, and the task may still lock what it maps. */
CASE(no_code_locked)
{
	MUST(mlockall(MCL_FUTURE));
	touch();
	forbid_code(REFUSE_EXEC_GAIN);
	checkpoint();
	check_no_code(REFUSE_EXEC_GAIN);
	check_touched();
	char text[65536], *page = MUST((char *)map_page(PROT_READ | PROT_WRITE)), line[32];
	read_own("/proc/self/maps", text, sizeof(text));
	snprintf(line, sizeof(line), "VmLck:\t");
	read_own("/proc/self/status", text, sizeof(text));
	char *locked = strstr(text, line);
	CHECK(locked != NULL && atol(locked + strlen(line)) >= (long)(TOUCHED + 1) * 4, "%.40s", locked);
	*page = 1;
}

CASE(no_code_threads)
{
	start_waiters();
	forbid_code(REFUSE_EXEC_GAIN);
	checkpoint();
	check_no_code(REFUSE_EXEC_GAIN);
	end_waiters();
}

#define DEADLY(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* Under a filter that kills whoever calls modify_ldt, get_mempolicy, getitimer or membarrier, as crr has it do. */
static void confine(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
#ifdef __x86_64__
		DEADLY(154), DEADLY(239), DEADLY(36), DEADLY(324),
#else
		DEADLY(123), DEADLY(275), DEADLY(105), DEADLY(375),
#endif
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = LENGTH(code), .filter = code };
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

CASE(confined)
{
	confine();
	start_waiters();
	allow_no_more();
	forbid_code(REFUSE_EXEC_GAIN);
	checkpoint();
	check_no_room();
	end_waiters();
}

/* The stack has room for what is to come, and its pages are there. */
__attribute__((noinline)) static void grow_stack(void)
{
	char room[MIB / 8];
	memset(room, 1, sizeof(room));
	__asm__ volatile("" : : "r"(room) : "memory");
}

/* More answers than one batch takes: timers, and a descriptor table. */
CASE(limit_answers)
{
	enum { TIMERS = 130, ENTRIES = 8000 };
	static timer_t timers[TIMERS];
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	struct itimerspec value = { .it_value = { .tv_sec = 100000 } };
	for (int i = 0; i < TIMERS; i++) {
		value.it_interval.tv_sec = i + 1;
		MUST(timer_create(CLOCK_MONOTONIC, &event, &timers[i]));
		MUST(timer_settime(timers[i], 0, &value, NULL));
	}
	struct user_desc last = { .entry_number = ENTRIES, .base_addr = 0x1000, .limit = 0xfff, .seg_32bit = 1, .useable = 1 };
	bool has_table = syscall(SYS_modify_ldt, 1, &last, sizeof(last)) == 0;
	grow_stack();
	allow_no_more();
	checkpoint();
	check_no_room();
	for (int i = 0; i < TIMERS; i++) {
		MUST(timer_gettime(timers[i], &value));
		CHECK(value.it_interval.tv_sec == i + 1 && value.it_value.tv_sec > 90000, "timer %d", i);
	}
	static uint64_t table[ENTRIES + 1];
	if (has_table) {
		CHECK(syscall(SYS_modify_ldt, 0, table, sizeof(table)) == sizeof(table), "the table");
		CHECK(table[ENTRIES] != 0, "its last entry");
	}
}

#ifdef __x86_64__
#define TOP 0x7ffffffff000UL
#else
#define TOP 0xffffe000UL
#endif

/* Maps all gaps of that size or more up to their last `spare` pages. */
static void fill_gaps(int prot, size_t at_least, size_t spare)
{
	static char text[1 << 18];
	unsigned long from = 0x10000, start, end;
	grow_stack();
	read_own("/proc/self/maps", text, sizeof(text));
	for (char *line = text; from < TOP; line = strchr(line, '\n') + 1) {
		if (sscanf(line, "%lx-%lx", &start, &end) != 2 || start > TOP)
			start = end = TOP;
		size_t length = start > from ? start - from : 0;
		if (length >= at_least && length > spare * PAGE)
			MUST(mmap((void *)from, length - spare * PAGE, prot,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0));
		from = end;
	}
}

/* Not a page is left. */
CASE(full)
{
	touch();
	fill_gaps(PROT_NONE, PAGE, 0);
	check_no_room();
	checkpoint();
	check_no_room();
	check_touched();
}

/* Some pages are, but not enough for what crr maps. */
CASE(crowded)
{
	touch();
	fill_gaps(PROT_NONE, EXECUTOR, 2);
	void *page = MUST(map_page(PROT_READ));
	checkpoint();
	MUST(munmap(page, PAGE));
	check_touched();
	errno = 0;
	void *more = mmap(NULL, EXECUTOR, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(more == MAP_FAILED && errno == ENOMEM, "mapped at %p", more);
}

/* Memory that could be used fills it. */
CASE(full_writable)
{
	touch();
	start_waiters();
	fill_gaps(PROT_READ | PROT_WRITE, PAGE, 0);
	volatile char *lowest = (volatile char *)0x10000;
	lowest[0] = 1;
	check_no_room();
	checkpoint();
	check_no_room();
	check_touched();
	CHECK(lowest[0] == 1 && lowest[PAGE] == 0, "the lowest pages");
	end_waiters();
}

/* Full and at its limit, with threads, confined, and without the right to map code. */
CASE(full_in_every_way)
{
	confine();
	start_waiters();
	fill_gaps(PROT_NONE, PAGE, 0);
	allow_no_more();
	forbid_code(REFUSE_EXEC_GAIN);
	check_no_room();
	checkpoint();
	check_no_room();
	CHECK(prctl(GET_MDWE, 0, 0, 0, 0) == REFUSE_EXEC_GAIN, "MDWE");
	end_waiters();
}

static void hold_full(void *unused)
{
	(void)unused;
	fill_gaps(PROT_NONE, PAGE, 0);
	prepared();
	wait_for_go();
	check_no_room();
	check_touched();
}

/* Only a child is full. */
CASE(full_child)
{
	touch();
	pid_t child = spawn(hold_full, NULL);
	checkpoint();
	check_touched();
	finish(child);
}

/* Only a stopped child is. */
CASE(full_stopped)
{
	int status;
	touch();
	pid_t child = spawn(hold_full, NULL);
	/* Not on its way there, which would look as if it ran. */
	await_sleep(child);
	MUST(kill(child, SIGSTOP));
	MUST(waitpid(child, &status, WUNTRACED));
	CHECK(WIFSTOPPED(status), "status %#x", status);
	checkpoint();
	MUST(kill(child, SIGCONT));
	finish(child);
}

static volatile bool mate_went_on;

static int wait_as_mate(void *unused)
{
	(void)unused;
	wait_for_go();
	check_no_room();
	mate_went_on = true;
	_exit(failed() ? 1 : 0);
}

/* Two tasks in one address space. */
CASE(full_shared)
{
	static char stack[64 * 1024] __attribute__((aligned(16)));
	touch();
	pid_t mate = MUST(clone(wait_as_mate, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));
	await_sleep(mate);
	fill_gaps(PROT_NONE, PAGE, 0);
	checkpoint();
	check_no_room();
	check_touched();
	finish(mate);
	CHECK(mate_went_on, "the other one is in other memory");
}

/* A stack pointer right above the lower end of its area, below which there is nothing: there crr is likely to map its own. */
static char *low_stack;
static ucontext_t low_context, usual_context;

static void wait_at_the_end(void)
{
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	char *volatile room = __builtin_alloca((size_t)((char *)__builtin_frame_address(0) - low_stack) - 480);
	room[0] = 1;
	long result;
	do {
#ifdef __x86_64__
		register long size __asm__("r10") = 8;
		__asm__ volatile("syscall"
				 : "=a"(result)
				 : "a"(SYS_rt_sigtimedwait), "D"(&signals), "S"(0), "d"(0), "r"(size)
				 : "rcx", "r11", "memory");
#else
		__asm__ volatile("int $0x80"
				 : "=a"(result)
				 : "a"(SYS_rt_sigtimedwait), "b"(&signals), "c"(0), "d"(0), "S"(8)
				 : "memory");
#endif
	} while (result != SIGUSR1);
	CHECK(room[0] == 1, "the end of the stack");
}

CASE(low_stack)
{
	enum { PAGES = 64, KEPT = 16 };
	char *memory = map_anonymous(PAGES * PAGE);
	low_stack = memory + (PAGES - KEPT) * PAGE;
	MUST(munmap(memory, (PAGES - KEPT) * PAGE));
	MUST0(getcontext(&low_context));
	low_context.uc_stack.ss_sp = low_stack;
	low_context.uc_stack.ss_size = KEPT * PAGE;
	low_context.uc_link = &usual_context;
	makecontext(&low_context, wait_at_the_end, 0);
	MUST(write(STDOUT_FILENO, "READY\n", 6));
	MUST0(swapcontext(&usual_context, &low_context));
}

/* Of code, which cannot be left out for a while: there is no room for what restores it. */
CASE(full_of_code)
{
	touch();
	fill_gaps(PROT_READ | PROT_EXEC, PAGE, 0);
	MUST(write(STDOUT_FILENO, "NAME address space\n", 19));
	checkpoint();
	check_no_room();
	check_touched();
}

/* Whether what is mapped later will be locked is not to be seen, as there is no memory to try it with. */
CASE(limit_locked)
{
	touch();
	MUST(mlock(touched, PAGE));
	allow_no_more();
	MUST(write(STDOUT_FILENO, "NAME mlockall\n", 14));
	checkpoint();
	check_no_room();
	check_touched();
}

/* An area that cannot be touched; with a page before and after, that it does not join with others. */
static void reserve(void)
{
	char *memory = map_anonymous(4 * PAGE);
	MUST(mmap(memory + PAGE, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}

static long locked_kib(void)
{
	static char text[65536];
	read_own("/proc/self/status", text, sizeof(text));
	char *line = strstr(text, "VmLck:");
	return line == NULL ? -1 : atol(line + strlen("VmLck:"));
}

/* At a limit that can be raised, with a locked page, and all that comes to be locked in some way or not. */
static void lock_at_limit(int future)
{
	touch();
	reserve();
	MUST(mlock(touched, PAGE));
	allow_no_more();
	if (future != 0)
		MUST(mlockall(future));
	check_no_room();
	long before = locked_kib();
	checkpoint();
	check_no_room();
	check_touched();
	CHECK(locked_kib() == before, "%ld KiB are locked, were %ld", locked_kib(), before);
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	MUST(setrlimit(RLIMIT_AS, &limit));
	unsigned char resident[4];
	char *fresh = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(mincore(fresh, 4 * PAGE, resident));
	CHECK((locked_kib() == before + 16) == (future != 0), "%ld KiB are locked, were %ld", locked_kib(), before);
	CHECK((resident[0] & 1) == (future == MCL_FUTURE), "a fresh page is there: %d", resident[0]);
}

CASE(limit_locked_now)
{
	lock_at_limit(0);
}

CASE(limit_lock_future)
{
	lock_at_limit(MCL_FUTURE);
}

CASE(limit_lock_on_fault)
{
	lock_at_limit(MCL_FUTURE | MCL_ONFAULT);
}

/* Full, with locked memory beside what lies where crr can be. */
CASE(full_locked)
{
	touch();
	reserve();
	fill_gaps(PROT_NONE, PAGE, 0);
	MUST(mlock(touched, TOUCHED * PAGE));
	check_no_room();
	long before = locked_kib();
	checkpoint();
	check_no_room();
	check_touched();
	CHECK(locked_kib() == before, "%ld KiB are locked, were %ld", locked_kib(), before);
}
