/*
 * The vDSO: its functions, called by addresses that were found before the checkpoint, threads in the middle of them, handlers that
 * return through it, and programs that move it or take it away.
 */
#include "workload.h"
#include "bare.h"
#include <cpuid.h>
#include <link.h>
#include <linux/futex.h>
#include <sys/auxv.h>
#include <sys/resource.h>

/* A function of a vDSO, or NULL: by its dynamic symbols, as a C library finds it. */
static void *find(uintptr_t base, const char *name)
{
	const ElfW(Ehdr) *header = (const void *)base;
	const ElfW(Phdr) *program = (const void *)(base + header->e_phoff);
	const ElfW(Dyn) *dynamic = NULL;
	const ElfW(Sym) *symbols = NULL;
	const char *names = NULL;
	const uint32_t *hash = NULL;
	for (int i = 0; i < header->e_phnum; i++)
		if (program[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(base + program[i].p_vaddr);
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (const void *)(base + dynamic->d_un.d_ptr);
		if (dynamic->d_tag == DT_STRTAB)
			names = (const void *)(base + dynamic->d_un.d_ptr);
		if (dynamic->d_tag == DT_HASH)
			hash = (const void *)(base + dynamic->d_un.d_ptr);
	}
	for (uint32_t i = 1; symbols && names && hash && i < hash[1]; i++)
		if (symbols[i].st_shndx != SHN_UNDEF && strcmp(names + symbols[i].st_name, name) == 0)
			return (void *)(base + symbols[i].st_value);
	return NULL;
}

/* Times as the kernel's own calls of the ABI have them. */
struct kernel_time {
	long seconds, part;
};

struct functions {
	int (*clock_gettime)(clockid_t, struct kernel_time *);
	int (*clock_gettime64)(clockid_t, int64_t *);
	int (*clock_getres)(clockid_t, struct kernel_time *);
	int (*gettimeofday)(struct kernel_time *, void *);
	long (*time)(long *);
	int (*getcpu)(unsigned *, unsigned *, void *);
	ssize_t (*getrandom)(void *, size_t, unsigned, void *, size_t);
};

static struct functions find_all(uintptr_t base)
{
	return (struct functions){
		.clock_gettime = find(base, "__vdso_clock_gettime"),
		.clock_gettime64 = find(base, "__vdso_clock_gettime64"),
		.clock_getres = find(base, "__vdso_clock_getres"),
		.gettimeofday = find(base, "__vdso_gettimeofday"),
		.time = find(base, "__vdso_time"),
		.getcpu = find(base, "__vdso_getcpu"),
		.getrandom = find(base, "__vdso_getrandom"),
	};
}

static double seconds(const struct kernel_time *time, double parts)
{
	return (double)time->seconds + (double)time->part / parts;
}

/* What a function says lies between what the system call says before and after. */
static void check_clock(const struct functions *vdso, clockid_t clock)
{
	struct kernel_time before, said, after;
	MUST(syscall(SYS_clock_gettime, clock, &before));
	CHECK(vdso->clock_gettime(clock, &said) == 0, "clock %d", clock);
	MUST(syscall(SYS_clock_gettime, clock, &after));
	CHECK(seconds(&before, 1e9) <= seconds(&said, 1e9) && seconds(&said, 1e9) <= seconds(&after, 1e9),
	      "clock %d says %f, not between %f and %f", clock, seconds(&said, 1e9), seconds(&before, 1e9),
	      seconds(&after, 1e9));
	if (vdso->clock_gettime64) {
		int64_t wide[2];
		MUST(syscall(SYS_clock_gettime, clock, &before));
		CHECK(vdso->clock_gettime64(clock, wide) == 0, "clock %d", clock);
		MUST(syscall(SYS_clock_gettime, clock, &after));
		double now = (double)wide[0] + (double)wide[1] / 1e9;
		CHECK(seconds(&before, 1e9) <= now && now <= seconds(&after, 1e9), "clock %d says %f", clock, now);
	}
}

/* What getrandom keeps between two calls, in memory of the kind that the function asks for: struct vgetrandom_opaque_params of
   include/uapi/linux/random.h. */
static struct random_state {
	uint32_t size, protection, flags, reserved[13];
	void *memory;
} random_state;

static void check_random(const struct functions *vdso)
{
	uint64_t found[2][4] = { 0 };
	if (random_state.memory == NULL) {
		long needs = (long)vdso->getrandom(NULL, 0, 0, &random_state, ~(size_t)0);
		/* A vDSO that does not have it, behind one that had: who asks then is to make the call by itself. */
		if (needs == -ENOSYS)
			return;
		CHECK(needs == 0, "what getrandom needs: %ld", needs);
		random_state.memory = MUST(mmap(NULL, random_state.size, (int)random_state.protection,
						(int)random_state.flags, -1, 0));
	}
	for (int i = 0; i < 2; i++) {
		ssize_t got = vdso->getrandom(found[i], sizeof(found[i]), 0, random_state.memory, random_state.size);
		CHECK(got == sizeof(found[i]), "getrandom gives %zd", got);
	}
	for (size_t i = 0; i < 4; i++)
		CHECK(found[0][i] != found[1][i] && found[0][i] != 0, "%llx twice", (unsigned long long)found[0][i]);
}

static void check_functions(const struct functions *vdso)
{
	static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,
		                            CLOCK_PROCESS_CPUTIME_ID };
	struct kernel_time said, wanted;
	unsigned cpu = 1u << 30;
	for (size_t i = 0; i < LENGTH(clocks); i++)
		check_clock(vdso, clocks[i]);
	CHECK(vdso->clock_gettime(77, &said) != 0, "there is no clock 77");
	CHECK(vdso->clock_getres(CLOCK_MONOTONIC, &said) == 0, "clock_getres");
	MUST(syscall(SYS_clock_getres, CLOCK_MONOTONIC, &wanted));
	CHECK(said.part == wanted.part, "a resolution of %ld", said.part);
	MUST(syscall(SYS_gettimeofday, &wanted, NULL));
	CHECK(vdso->gettimeofday(&said, NULL) == 0, "gettimeofday");
	CHECK(seconds(&said, 1e6) - seconds(&wanted, 1e6) < 60, "gettimeofday is %f late",
	      seconds(&said, 1e6) - seconds(&wanted, 1e6));
	CHECK(vdso->time(NULL) - wanted.seconds < 60 && vdso->time(NULL) >= wanted.seconds - 1, "time");
	if (vdso->getcpu)
		CHECK(vdso->getcpu(&cpu, NULL, NULL) == 0 && cpu < 4096, "processor %u", cpu);
	if (vdso->getrandom)
		check_random(vdso);
}

/* Numbers that its state gives when it is back: told, so that two restores can be compared. */
CASE(random)
{
	struct functions vdso = find_all(getauxval(AT_SYSINFO_EHDR));
	uint64_t number = 0;
	if (vdso.getrandom)
		check_random(&vdso);
	checkpoint();
	if (random_state.memory == NULL)
		return;
	ssize_t got = vdso.getrandom(&number, sizeof(number), 0, random_state.memory, random_state.size);
	CHECK(got == sizeof(number), "getrandom gives %zd", got);
	printf("NUMBER %016llx\n", (unsigned long long)number);
	fflush(stdout);
}

CASE(functions)
{
	uintptr_t base = getauxval(AT_SYSINFO_EHDR);
	struct functions before = find_all(base), after;
	CHECK(before.clock_gettime && before.clock_getres && before.gettimeofday && before.time, "the functions");
	check_functions(&before);
	checkpoint();
	CHECK(getauxval(AT_SYSINFO_EHDR) == base, "the auxiliary vector");
	check_functions(&before);
	after = find_all(base);
	CHECK(memcmp(&before, &after, sizeof(before)) == 0, "the symbols");
	check_functions(&after);
}

enum { THREADS = 3 };
static struct functions shared;
static volatile uint32_t rounds[THREADS], stop, ticks;

static void tick(int signal)
{
	struct kernel_time now;
	(void)signal;
	CHECK(shared.clock_gettime(CLOCK_REALTIME, &now) == 0, "in a handler");
	ticks++;
}

static void *read_clock(void *argument)
{
	volatile uint32_t *own = argument;
	struct kernel_time last, now;
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
	shared.clock_gettime(CLOCK_REALTIME, &last);
	while (!stop) {
		CHECK(shared.clock_gettime(CLOCK_REALTIME, &now) == 0, "clock_gettime");
		CHECK(seconds(&now, 1e9) >= seconds(&last, 1e9), "from %f back to %f", seconds(&last, 1e9),
		      seconds(&now, 1e9));
		last = now;
		++*own;
	}
	return NULL;
}

static void start(pthread_t threads[THREADS])
{
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_create(&threads[i], NULL, read_clock, (void *)&rounds[i]));
	for (int i = 0; i < THREADS; i++)
		while (rounds[i] == 0)
			sched_yield();
}

/* Threads that are in a function most of the time, with this action for SIGTRAP, whether they block it or not. */
static void with_traps(void (*handler)(int), int how)
{
	pthread_t threads[THREADS];
	struct sigaction action = { .sa_handler = handler }, found;
	sigset_t mask;
	shared = find_all(getauxval(AT_SYSINFO_EHDR));
	MUST(sigaction(SIGTRAP, &action, NULL));
	sigemptyset(&mask);
	sigaddset(&mask, SIGTRAP);
	MUST0(pthread_sigmask(how, &mask, NULL));
	start(threads);
	checkpoint();
	MUST(sigaction(SIGTRAP, NULL, &found));
	CHECK(found.sa_handler == handler, "another action for SIGTRAP: %p", (void *)found.sa_handler);
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_join(threads[i], NULL));
}

CASE(traps)
{
	with_traps(tick, SIG_UNBLOCK);
}

CASE(traps_blocked)
{
	with_traps(tick, SIG_BLOCK);
}

CASE(traps_ignored)
{
	with_traps(SIG_IGN, SIG_UNBLOCK);
}

/* Threads that are in a function most of the time, and take signals there. */
CASE(threads)
{
	pthread_t threads[THREADS];
	uint32_t before[THREADS], ticked;
	/* What is blocked is the same in the handler, so /proc shows the same at any moment. */
	struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART | SA_NODEFER };
	struct itimerval every = { { 0, 3000 }, { 0, 3000 } };
	sigset_t mask;
	shared = find_all(getauxval(AT_SYSINFO_EHDR));
	sigemptyset(&mask);
	sigaddset(&mask, SIGALRM);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	MUST(sigaction(SIGALRM, &action, NULL));
	start(threads);
	MUST(setitimer(ITIMER_REAL, &every, NULL));
	checkpoint();
	ticked = ticks;
	for (int i = 0; i < THREADS; i++)
		before[i] = rounds[i];
	for (int i = 0; i < THREADS; i++)
		while (rounds[i] == before[i])
			sched_yield();
	while (ticks == ticked)
		sched_yield();
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_join(threads[i], NULL));
}

struct area {
	uintptr_t start, end;
};

static struct area area_of(const char *name)
{
	char line[256];
	struct area found = { 0, 0 };
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof(line), maps)) {
		line[strcspn(line, "\n")] = 0;
		size_t length = strlen(line), wanted = strlen(name);
		if (length > wanted && strcmp(line + length - wanted, name) == 0)
			sscanf(line, "%lx-%lx", (unsigned long *)&found.start, (unsigned long *)&found.end);
	}
	if (maps)
		fclose(maps);
	return found;
}

/* A thread that is in a handler of a signal that came in the middle of a function, behind so many of its instructions. */
struct interrupted {
	pthread_t thread;
	clockid_t clock;
	/* Instructions of it until the handler stays. */
	int left;
	bool entered;
	struct kernel_time before, said, after;
};

static _Thread_local struct interrupted *own;
static struct area vdso_area;
static uint32_t waiting;
static volatile uint32_t released;
/* Handlers end when their threads have been stopped and let go: not preempted, so by a tracer. */
static bool end_when_stopped;

static long stops(void)
{
	struct rusage usage;
	MUST(getrusage(RUSAGE_THREAD, &usage));
	return usage.ru_nvcsw;
}

static void wait_for_release(void)
{
	while (!released)
		syscall(SYS_futex, &released, FUTEX_WAIT, 0, NULL);
}

#ifdef __x86_64__
#define IP REG_RIP
#define STEP "pushf\n orl $0x100, (%%rsp)\n popf\n"
#else
#define IP REG_EIP
#define STEP "pushf\n orl $0x100, (%%esp)\n popf\n"
#endif

static void on_step(int signal, siginfo_t *info, void *context)
{
	enum { TRAP_FLAG = 0x100 };
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	uintptr_t ip = (uintptr_t)registers[IP];
	bool inside = ip >= vdso_area.start && ip < vdso_area.end;
	(void)signal, (void)info;
	if (inside ? own->left-- > 0 : !own->entered) {
		own->entered |= inside;
		return;
	}
	registers[REG_EFL] &= ~TRAP_FLAG;
	long before = stops();
	__atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
	if (end_when_stopped)
		while (stops() == before)
			;
	else
		wait_for_release();
}

static void *be_interrupted(void *argument)
{
	own = argument;
	int (*function)(clockid_t, struct kernel_time *) = shared.clock_gettime;
	MUST(syscall(SYS_clock_gettime, own->clock, &own->before));
	__asm__ volatile(STEP : : : "memory", "cc");
	int result = function(own->clock, &own->said);
	MUST(syscall(SYS_clock_gettime, own->clock, &own->after));
	wait_for_release();
	CHECK(result == 0, "clock %d: %d", own->clock, result);
	return NULL;
}

/* Threads in handlers that return to the middle of a function, behind each `step`th of its first instructions. */
static void interrupt_all(int step)
{
	enum { INSTRUCTIONS = 24 };
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE };
	static struct interrupted all[LENGTH(clocks) * INSTRUCTIONS];
	struct sigaction action = { .sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_NODEFER };
	size_t count = 0;
	shared = find_all(getauxval(AT_SYSINFO_EHDR));
	vdso_area = area_of("[vdso]");
	MUST(sigaction(SIGTRAP, &action, NULL));
	for (size_t i = 0; i < LENGTH(clocks); i++)
		for (int number = 1; number < INSTRUCTIONS; number += step) {
			struct interrupted *one = &all[count++];
			*one = (struct interrupted){ .clock = clocks[i], .left = number };
			MUST0(pthread_create(&one->thread, NULL, be_interrupted, one));
		}
	while (__atomic_load_n(&waiting, __ATOMIC_SEQ_CST) < count)
		sched_yield();
	checkpoint();
	released = 1;
	syscall(SYS_futex, &released, FUTEX_WAKE, INT32_MAX);
	for (size_t i = 0; i < count; i++) {
		const struct interrupted *one = &all[i];
		MUST0(pthread_join(one->thread, NULL));
		double before = seconds(&one->before, 1e9), said = seconds(&one->said, 1e9), after = seconds(&one->after, 1e9);
		CHECK(before <= said && said <= after, "clock %d, thread %zu: %f is not between %f and %f", one->clock, i,
		      said, before, after);
	}
}

CASE(interrupted)
{
	interrupt_all(1);
}

CASE(interrupted_for_a_moment)
{
	end_when_stopped = true;
	interrupt_all(8);
}

/* Its frame is larger than what lies below that of its caller, and nothing is written to most of it. */
static __attribute__((noinline)) void checkpoint_above_room(void)
{
	volatile char room[32 << 10];
	/* What two looks at the tree take, each of which wakes this thread twice, and the questions that it is asked. */
	enum { WAKES = 20 };
	room[0] = 1;
	long before = stops();
	checkpoint();
	CHECK(stops() - before <= WAKES, "woken %ld times", stops() - before);
	CHECK(room[0] == 1, "the stack");
}

/* What a handler returned by that has ended long ago, on a part of the stack that is in use again. */
CASE(stale)
{
	static struct interrupted one = { .clock = CLOCK_MONOTONIC, .left = 3 };
	struct sigaction action = { .sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_NODEFER };
	shared = find_all(getauxval(AT_SYSINFO_EHDR));
	vdso_area = area_of("[vdso]");
	released = 1;
	MUST(sigaction(SIGTRAP, &action, NULL));
	be_interrupted(&one);
	CHECK(waiting == 1, "interrupted");
	checkpoint_above_room();
}

static volatile int handled;

static void checkpoint_in_handler(int signal)
{
	handled = signal;
	checkpoint();
}

/* Without a restorer ia32 returns from a handler through the vDSO, whose address is in the frame. */
CASE(frame)
{
	struct kernel_sigaction found, wanted = { .handler = checkpoint_in_handler };
#ifdef __i386__
	/* Else there is nothing to return through. */
	MUST(getauxval(AT_SYSINFO_EHDR) != 0 ? 0 : -1);
#endif
#ifdef __x86_64__
	MUST(syscall(SYS_rt_sigaction, SIGUSR1, NULL, &found, 8));
	wanted.flags = found.flags;
	wanted.restorer = found.restorer;
#endif
	MUST(syscall(SYS_rt_sigaction, SIGHUP, &wanted, &found, 8));
	MUST(kill(getpid(), SIGHUP));
	CHECK(handled == SIGHUP, "the handler");
	sigset_t mask;
	sigprocmask(SIG_SETMASK, NULL, &mask);
	CHECK(!sigismember(&mask, SIGHUP), "the mask after the handler");
}

#ifdef __i386__
/* getpid by the bare instruction: the kernel returns to its vDSO, which takes three words off the stack. */
static int sysenter_getpid(void)
{
	int result;
	__asm__ volatile("call 1f\n jmp 2f\n"
			 "1: push %%ecx\n push %%edx\n push %%ebp\n mov %%esp, %%ebp\n sysenter\n"
			 "2:\n"
			 : "=a"(result)
			 : "0"(SYS_getpid)
			 : "memory");
	return result;
}

static bool has_sysenter(void)
{
	unsigned eax, vendor[3];
	__cpuid(0, eax, vendor[0], vendor[2], vendor[1]);
	return memcmp(vendor, "GenuineIntel", 12) == 0;
}

/* Where the C library enters the kernel. */
static void set_entry(void *entry)
{
	__asm__ volatile("movl %0, %%gs:0x10" : : "r"(entry) : "memory");
}
#endif

/* A bare sysenter; x86_64 code does not go through the vDSO. */
CASE(sysenter)
{
#ifdef __i386__
	if (has_sysenter())
		CHECK(sysenter_getpid() == getpid(), "before");
#endif
	checkpoint();
#ifdef __i386__
	if (has_sysenter())
		CHECK(sysenter_getpid() == getpid(), "after");
#endif
}

static const char *const names[] = { "[vvar]", "[vvar_vclock]", "[vdso]" };

/* No library code between the move and the new entry. */
static long bare_call(long number, long a, long b, long c, long d, long e)
{
	long result;
#ifdef __x86_64__
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
#else
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory");
#endif
	return result;
}

CASE(moved)
{
	struct area areas[LENGTH(names)], vdso = area_of("[vdso]");
	uintptr_t lowest = UINTPTR_MAX;
	for (size_t i = 0; i < LENGTH(names); i++) {
		areas[i] = area_of(names[i]);
		if (areas[i].start && areas[i].start < lowest)
			lowest = areas[i].start;
	}
	/* A range that is free now. */
	char *room = map_anonymous(vdso.end - lowest + 2 * PAGE);
	uintptr_t by = (uintptr_t)room + PAGE - lowest;
	MUST(munmap(room, vdso.end - lowest + 2 * PAGE));
#ifdef __i386__
	char *entry = find(vdso.start, "__kernel_vsyscall");
#endif
	for (size_t i = 0; i < LENGTH(names); i++) {
		size_t length = areas[i].end - areas[i].start;
		if (length && bare_call(SYS_mremap, areas[i].start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
		                        areas[i].start + by) != (long)(areas[i].start + by))
			_exit(3);
	}
#ifdef __i386__
	set_entry(entry + by);
#endif
	struct functions moved = find_all(vdso.start + by);
	check_functions(&moved);
	checkpoint();
	check_functions(&moved);
}

#ifdef __i386__
__asm__("enter_by_int: int $0x80\n ret\n"
	"return_by_int: mov $173, %eax\n int $0x80");
extern char enter_by_int[], return_by_int[];

/* A C library of ia32 has its handlers return through the vDSO. */
static void set_restorer(int signal)
{
	struct kernel_sigaction action;
	MUST(syscall(SYS_rt_sigaction, signal, NULL, &action, 8));
	action.flags |= SA_SIGINFO | 0x04000000;
	action.restorer = return_by_int;
	MUST(syscall(SYS_rt_sigaction, signal, &action, NULL, 8));
}
#endif

CASE(unmapped)
{
	struct area areas[LENGTH(names)];
	for (size_t i = 0; i < LENGTH(names); i++)
		areas[i] = area_of(names[i]);
#ifdef __i386__
	set_entry(enter_by_int);
	set_restorer(SIGUSR1);
#endif
	for (size_t i = 0; i < LENGTH(names); i++)
		if (areas[i].start)
			MUST(munmap((void *)areas[i].start, areas[i].end - areas[i].start));
	checkpoint();
	CHECK(area_of("[vdso]").start == 0, "it has one again");
}

/* Takes nearly all of where the vDSO of a new program would come to lie. */
static void crowd(void)
{
	enum { LEFT = 32 * PAGE };
	const uintptr_t span = (uintptr_t)(sizeof(void *) == 8 ? 1ull << 42 : 1ull << 29);
	uintptr_t end = area_of("[stack]").start - (16 << 20), at = end - span, from[64], to[64];
	int gaps = 0;
	char line[256];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof(line), maps) && gaps < 64) {
		unsigned long start, stop;
		sscanf(line, "%lx-%lx", &start, &stop);
		uintptr_t until = start < end ? start : end;
		if (until > at + LEFT) {
			from[gaps] = at + LEFT;
			to[gaps++] = until;
		}
		if (stop > at)
			at = stop;
	}
	if (maps)
		fclose(maps);
	for (int i = 0; i < gaps; i++)
		MUST(mmap((void *)from[i], to[i] - from[i], PROT_NONE,
		          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0));
}

CASE(crowded)
{
	struct functions found = find_all(getauxval(AT_SYSINFO_EHDR));
	crowd();
	checkpoint();
	check_functions(&found);
}

CASE(child_of_crowded)
{
	prepared();
	wait_for_go();
	check_functions((struct functions[]){ find_all(getauxval(AT_SYSINFO_EHDR)) });
}

/* Its child has to be cloned by it, and execs. */
CASE(crowded_across_abis)
{
	struct functions found = find_all(getauxval(AT_SYSINFO_EHDR));
	pid_t child = spawn_abi_sharing(CLONE_FS, other_abi, "child_of_crowded", NULL);
	crowd();
	await_sleep(child);
	checkpoint();
	check_functions(&found);
	finish(child);
}
