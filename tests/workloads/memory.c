/* Private memory: contents, protections, holes, heap, stacks, advice, locks, extremes of the address space. */
#include "workload.h"
#include <setjmp.h>
#include <sys/ipc.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/shm.h>
#include <sys/sysinfo.h>

CASE(anonymous)
{
	enum { PAGES = 1024 };
	char *memory = map_anonymous(PAGES * PAGE);
	for (size_t i = 0; i < PAGES; i++)
		if (i % 3 != 0)
			fill(memory + i * PAGE, PAGE, (uint32_t)i);
	checkpoint();
	for (size_t i = 0; i < PAGES; i++) {
		if (i % 3 != 0)
			CHECK_FILL(memory + i * PAGE, PAGE, (uint32_t)i);
		else
			for (size_t k = 0; k < PAGE; k++)
				CHECK(memory[i * PAGE + k] == 0, "page %zu, byte %zu", i, k);
	}
	fill(memory, PAGES * PAGE, 99);
	CHECK_FILL(memory, PAGES * PAGE, 99);
}

static bool is_mapped(const void *page)
{
	/* msync answers ENOMEM for what is not mapped, whatever its protection. */
	return msync((void *)page, PAGE, MS_ASYNC) == 0;
}

CASE(holes)
{
	enum { PAGES = 64 };
	char *memory = map_anonymous(PAGES * PAGE);
	fill(memory, PAGES * PAGE, 5);
	for (size_t i = 1; i < PAGES; i += 4)
		MUST(munmap(memory + i * PAGE, PAGE * (1 + i % 3)));
	bool before[PAGES], word_differs = false;
	for (size_t i = 0; i < PAGES; i++)
		before[i] = is_mapped(memory + i * PAGE);
	checkpoint();
	for (size_t i = 0; i < PAGES; i++) {
		CHECK(is_mapped(memory + i * PAGE) == before[i], "page %zu", i);
		if (before[i]) {
			static uint32_t expected[PAGES * PAGE / 4];
			fill(expected, sizeof(expected), 5);
			word_differs |= memcmp(memory + i * PAGE, (char *)expected + i * PAGE, PAGE) != 0;
		}
	}
	CHECK(!word_differs, "pages between the holes");
	/* A hole is free for a new mapping. */
	char *again = mmap(memory + PAGE, PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(again == memory + PAGE, "%s", strerror(errno));
	if (again == memory + PAGE)
		CHECK(*again == 0, "new memory in a hole");
}

CASE(prot_none)
{
	static const int protections[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, PROT_EXEC, PROT_WRITE };
	char *memory[LENGTH(protections)];
	for (size_t i = 0; i < LENGTH(protections); i++) {
		memory[i] = map_anonymous(16 * PAGE);
		fill(memory[i], 16 * PAGE, (uint32_t)i);
		MUST(mprotect(memory[i], 16 * PAGE, protections[i]));
	}
	/* A reservation of which nothing was ever touched. */
	char *reserve = MUST((char *)mmap(NULL, 64 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	checkpoint();
	for (size_t i = 0; i < LENGTH(protections); i++) {
		MUST(mprotect(memory[i], 16 * PAGE, PROT_READ | PROT_WRITE));
		CHECK_FILL(memory[i], 16 * PAGE, (uint32_t)i);
	}
	MUST(mprotect(reserve, 64 * MIB, PROT_READ | PROT_WRITE));
	CHECK(reserve[0] == 0 && reserve[64 * MIB - 1] == 0, "the reservation");
	reserve[32 * MIB] = 1;
}

CASE(code)
{
	/* mov $0x12345678, %eax; ret: the same bytes in both ABIs. */
	static const uint8_t code[] = { 0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3 };
	char *writable = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *fixed = map_anonymous(PAGE);
	memcpy(writable, code, sizeof(code));
	memcpy(fixed, code, sizeof(code));
	MUST(mprotect(fixed, PAGE, PROT_READ | PROT_EXEC));
	checkpoint();
	CHECK(((int (*)(void))(void *)writable)() == 0x12345678, "writable code");
	CHECK(((int (*)(void))(void *)fixed)() == 0x12345678, "fixed code");
}

/* Pages that may not be read, or only be executed. */
CASE(access)
{
	static const int accesses[] = { PROT_WRITE, PROT_EXEC, PROT_WRITE | PROT_EXEC, PROT_NONE };
	char *memory[LENGTH(accesses)];
	for (size_t i = 0; i < LENGTH(accesses); i++) {
		memory[i] = map_anonymous(4 * PAGE);
		fill(memory[i], 3 * PAGE, (uint32_t)i);
		MUST(mprotect(memory[i], 4 * PAGE, accesses[i]));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(accesses); i++) {
		MUST(mprotect(memory[i], 4 * PAGE, PROT_READ));
		CHECK_FILL(memory[i], 3 * PAGE, (uint32_t)i);
		CHECK(memory[i][3 * PAGE] == 0, "untouched");
	}
}

/* Makes as many areas as there may be, but for some. */
static void make_areas(long spare)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
	long limit;
	if (file == NULL || fscanf(file, "%ld", &limit) != 1)
		die(__FILE__, __LINE__, "max_map_count");
	fclose(file);
	long areas = 0;
	file = fopen("/proc/self/maps", "r");
	for (int c; (c = getc(file)) != EOF;)
		areas += c == '\n';
	fclose(file);
	/* Each page in the middle that is protected otherwise makes two more. */
	size_t pages = (size_t)(limit - spare - areas - 2);
	char *memory = MUST((char *)mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	for (size_t i = 1; i + 1 < pages; i += 2)
		MUST(mprotect(memory + i * PAGE, PAGE, PROT_READ));
}

/* What it takes to restore them is left. */
CASE(most_areas)
{
	make_areas(40);
	checkpoint();
}

CASE(too_many_areas)
{
	make_areas(4);
	checkpoint();
}

CASE(heap)
{
	char *start = MUST((char *)sbrk((intptr_t)MIB));
	fill(start, MIB, 1);
	checkpoint();
	CHECK(sbrk(0) == start + MIB, "the break is %p, not %p", sbrk(0), (void *)(start + MIB));
	CHECK_FILL(start, MIB, 1);
	char *more = MUST((char *)sbrk((intptr_t)MIB));
	CHECK(more == start + MIB, "the heap grows at %p", (void *)more);
	CHECK(more[0] == 0 && more[MIB - 1] == 0, "new heap");
	fill(more, MIB, 2);
	CHECK_FILL(start, MIB, 1);
	MUST(sbrk(-(intptr_t)MIB));
	CHECK(sbrk(0) == start + MIB, "the heap shrinks to %p", sbrk(0));
	for (int i = 0; i < 1000; i++) {
		char *block = malloc(1000 + (size_t)i * 7);
		CHECK(block != NULL, "malloc");
		memset(block, i, 1000);
	}
}

static __attribute__((noinline)) unsigned sink(unsigned depth)
{
	volatile char frame[PAGE];
	memset((char *)frame, (int)depth, sizeof(frame));
	unsigned below = depth == 0 ? 0 : sink(depth - 1);
	for (size_t i = 0; i < sizeof(frame); i += 512)
		CHECK(frame[i] == (char)depth, "stack at depth %u", depth);
	return below + 1;
}

CASE(stack)
{
	volatile char local[16 * PAGE];
	fill((char *)local, sizeof(local), 3);
	checkpoint();
	CHECK_FILL((char *)local, sizeof(local), 3);
	/* 4 MiB deeper than the stack was at the dump: it still grows by itself. */
	CHECK(sink(1000) == 1001, "recursion");
}

CASE(grows_down)
{
	const size_t room = 16 * MIB;
	char *base = map_anonymous(room);
	MUST(munmap(base, room));
	char *top = MUST((char *)mmap(base + room - 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
	fill(top, 4 * PAGE, 4);
	/* Grown once before. */
	fill(top - PAGE, PAGE, 5);
	checkpoint();
	CHECK_FILL(top, 4 * PAGE, 4);
	CHECK_FILL(top - PAGE, PAGE, 5);
	for (size_t i = 2; i < 1000; i++)
		top[-(ssize_t)(i * PAGE)] = (char)i;
	for (size_t i = 2; i < 1000; i++)
		CHECK(top[-(ssize_t)(i * PAGE)] == (char)i, "page %zu below", i);
}

CASE(sparse)
{
	const size_t size = 1024 * MIB, step = 16 * MIB;
	char *memory = MUST((char *)mmap(NULL, size, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	MUST(madvise(memory, size, MADV_NOHUGEPAGE));
	for (size_t at = 0; at < size; at += step)
		fill(memory + at, PAGE, (uint32_t)(at / step));
	checkpoint();
	unsigned char present[16 * MIB / PAGE];
	for (size_t at = 0; at < size; at += step) {
		MUST(mincore(memory + at, step, present));
		size_t pages = 0;
		for (size_t i = 0; i < LENGTH(present); i++)
			pages += present[i] & 1;
		CHECK(pages <= 1, "%zu pages present at %zu MiB", pages, at / MIB);
		CHECK_FILL(memory + at, PAGE, (uint32_t)(at / step));
		CHECK(memory[at + step - 1] == 0, "untouched memory");
	}
}

CASE(many_areas)
{
	enum { AREAS = 2000 };
	char *memory = map_anonymous(AREAS * 2 * PAGE);
	for (size_t i = 0; i < AREAS; i++) {
		fill(memory + i * 2 * PAGE, PAGE, (uint32_t)i);
		MUST(mprotect(memory + i * 2 * PAGE, PAGE, PROT_READ));
	}
	checkpoint();
	for (size_t i = 0; i < AREAS; i++)
		CHECK_FILL(memory + i * 2 * PAGE, PAGE, (uint32_t)i);
}

static const uintptr_t extremes[] = {
	0x10000,
#ifdef __x86_64__
	0xfffff000, 0x100000000, 0x7fffffffe000,
#else
	0x7ffff000, 0xbffff000, 0xffffd000,
#endif
};

CASE(extremes)
{
	bool made[LENGTH(extremes)];
	for (size_t i = 0; i < LENGTH(extremes); i++) {
		char *page = mmap((void *)extremes[i], PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		/* The stack may already be in the last page. */
		made[i] = page == (void *)extremes[i];
		if (made[i])
			fill(page, PAGE, (uint32_t)i);
		else
			CHECK(errno == EEXIST, "%#lx: %s", (long)extremes[i], strerror(errno));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(extremes); i++)
		if (made[i])
			CHECK_FILL((char *)extremes[i], PAGE, (uint32_t)i);
}

static const int advices[] = {
	MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_SEQUENTIAL, MADV_RANDOM,
	MADV_NOHUGEPAGE, MADV_HUGEPAGE, MADV_MERGEABLE,
};

static void check_inherited(void *argument)
{
	char **memory = argument;
	CHECK(!is_mapped(memory[0]), "DONTFORK memory was inherited");
	CHECK(memory[2][0] == 0 && memory[2][PAGE] == 0, "WIPEONFORK memory was not wiped");
	CHECK_FILL(memory[3], 8 * PAGE, 3);
	prepared();
}

CASE(advice)
{
	char *memory[LENGTH(advices)];
	for (size_t i = 0; i < LENGTH(advices); i++) {
		/* A page between them keeps areas from merging. */
		memory[i] = map_anonymous(9 * PAGE) + PAGE;
		MUST(mprotect(memory[i] - PAGE, PAGE, PROT_NONE));
		if (madvise(memory[i], 8 * PAGE, advices[i]) != 0)
			CHECK(errno == EINVAL && advices[i] == MADV_MERGEABLE, "advice %d: %s", advices[i], strerror(errno));
		fill(memory[i], 8 * PAGE, (uint32_t)i);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(advices); i++)
		CHECK_FILL(memory[i], 8 * PAGE, (uint32_t)i);
	reap(spawn(check_inherited, memory));
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static sigjmp_buf guard_jump;

static void on_guard(int signal)
{
	(void)signal;
	siglongjmp(guard_jump, 1);
}

static bool is_guarded(const volatile char *page)
{
	if (sigsetjmp(guard_jump, 1) != 0)
		return true;
	(void)*page;
	return false;
}

/* Where the kernel has none of a kind, there is nothing to see; a name says so. */
static bool has(int answer, const char *what)
{
	if (answer == 0)
		return true;
	printf("this kernel has no %s: %s\n", what, strerror(errno));
	return false;
}

/* Of every kind of memory; at the edges of areas, over several of them. */
CASE(guard_pages)
{
	char *private = map_anonymous(16 * PAGE), *locked = map_anonymous(4 * PAGE);
	char *shared = MUST((char *)mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open("/proc/self/exe", O_RDONLY));
	char *file = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0)), first = file[0];
	close(fd);
	fill(private, 16 * PAGE, 1);
	fill(shared, 8 * PAGE, 2);
	char shared_byte = shared[4 * PAGE], private_byte = private[PAGE];
	MUST(mprotect(private + 8 * PAGE, 4 * PAGE, PROT_READ));
	bool here = has(madvise(private, PAGE, MADV_GUARD_INSTALL), "guard pages");
	if (here) {
		MUST(madvise(private + 6 * PAGE, 4 * PAGE, MADV_GUARD_INSTALL));
		MUST(madvise(private + 15 * PAGE, PAGE, MADV_GUARD_INSTALL));
		MUST(madvise(locked + PAGE, PAGE, MADV_GUARD_INSTALL));
	}
	bool of_files = here && has(madvise(shared + 2 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL), "guard pages of files");
	if (of_files)
		MUST(madvise(file + PAGE, PAGE, MADV_GUARD_INSTALL));
	mlock(locked, 4 * PAGE);
	checkpoint();
	MUST((intptr_t)signal(SIGSEGV, on_guard));
	for (size_t i = 0; i < 16; i++) {
		bool guard = here && (i == 0 || (i >= 6 && i < 10) || i == 15);
		CHECK(is_guarded(private + i * PAGE) == guard, "page %zu", i);
	}
	for (size_t i = 0; i < 8; i++)
		CHECK(is_guarded(shared + i * PAGE) == (of_files && (i == 2 || i == 3)), "shared page %zu", i);
	CHECK(is_guarded(locked + PAGE) == here && !is_guarded(locked), "locked");
	CHECK(is_guarded(file + PAGE) == of_files && file[0] == first, "of a file");
	CHECK(private[PAGE] == private_byte && shared[4 * PAGE] == shared_byte, "contents");
}

/* How often the kernel shows a name. */
static int shown(const char *name)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	CHECK(maps != NULL, "maps");
	char line[512];
	int count = 0;
	while (fgets(line, sizeof line, maps) != NULL)
		count += strstr(line, name) != NULL;
	fclose(maps);
	return count;
}

static int name_memory(char *at, size_t len, const char *name)
{
	return prctl(0x53564d41 /* PR_SET_VMA */, 0 /* PR_SET_VMA_ANON_NAME */, at, len, name);
}

/* Neighbours with equal and with different names, with and without right to write, without pages; shared memory; what a child has. */
CASE(area_names)
{
	char *memory = map_anonymous(12 * PAGE);
	fill(memory, 8 * PAGE, 1);
	MUST(mprotect(memory + 2 * PAGE, 2 * PAGE, PROT_READ));
	char *shared = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fill(shared, 4 * PAGE, 2);
	bool here = has(name_memory(memory, 4 * PAGE, "Go: heap"), "names of areas");
	bool of_shared = false;
	if (here) {
		MUST(name_memory(memory + 4 * PAGE, 2 * PAGE, "another"));
		MUST(name_memory(memory + 9 * PAGE, PAGE, "a name that is as long as the kernel lets a name be, with odd characters: !@#%^"));
		of_shared = has(name_memory(shared + PAGE, PAGE, "of shared memory"), "names of shared areas");
	}
	checkpoint();
	CHECK(shown("[anon:Go: heap]") == (here ? 2 : 0), "%d", shown("[anon:Go: heap]"));
	CHECK(shown("[anon:another]") == here && shown("let a name be") == here, "names");
	CHECK(shown("[anon_shmem:of shared memory]") == of_shared, "of shared memory");
	CHECK_FILL(memory, 8 * PAGE, 1);
	CHECK_FILL(shared, 4 * PAGE, 2);
}

/* Of every kind of memory, with and without right to write, next to what is not sealed. */
CASE(sealed)
{
	char *memory = map_anonymous(8 * PAGE);
	fill(memory, 8 * PAGE, 1);
	MUST(mprotect(memory + 2 * PAGE, 2 * PAGE, PROT_READ));
	MUST(mprotect(memory + 4 * PAGE, PAGE, PROT_NONE));
	char *shared = MUST((char *)mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fill(shared, PAGE, 2);
	bool here = has((int)syscall(462, memory + PAGE, 5 * PAGE, 0), "mseal");
	if (here)
		MUST(syscall(462, shared, PAGE, 0));
	checkpoint();
	CHECK_FILL(memory, 4 * PAGE, 1);
	CHECK_FILL(shared, PAGE, 2);
	if (here) {
		for (size_t i = 0; i < 8; i++) {
			bool is_sealed = mprotect(memory + i * PAGE, PAGE, PROT_READ | PROT_WRITE) == -1;
			CHECK(is_sealed == (i >= 1 && i < 6), "page %zu", i);
		}
		CHECK(munmap(shared, PAGE) == -1 && errno == EPERM, "no longer sealed");
	}
	MUST(munmap(shared + PAGE, PAGE));
	memory[PAGE] = 1;
}

/* MAP_DROPPABLE in place of MAP_PRIVATE: the kernel may take pages away, which are zeros then. */
CASE(droppable)
{
	enum { DROPPABLE = 16 << 20 };
	char *memory = mmap(NULL, DROPPABLE, PROT_READ | PROT_WRITE, 0x08 | MAP_ANONYMOUS, -1, 0);
	bool here = has(memory == MAP_FAILED ? -1 : 0, "MAP_DROPPABLE");
	if (here)
		memset(memory, 7, DROPPABLE / 2);
	checkpoint();
	for (size_t at = 5; here && at < DROPPABLE; at += PAGE)
		CHECK(memory[at] == 0 || (at < DROPPABLE / 2 && memory[at] == 7), "at %zu: %d", at, memory[at]);
}

CASE(locked)
{
	char *all = map_anonymous(8 * PAGE);
	MUST(mprotect(all, PAGE, PROT_READ));
	char *part = map_anonymous(8 * PAGE);
	fill(part, 2 * PAGE, 2);
	MUST(mlock(all, 8 * PAGE));
	MUST(mlock2(part, 8 * PAGE, MLOCK_ONFAULT));
	fill(all + PAGE, 7 * PAGE, 1);
	checkpoint();
	CHECK_FILL(all + PAGE, 7 * PAGE, 1);
	CHECK_FILL(part, 2 * PAGE, 2);
	unsigned char present[8];
	MUST(mincore(all, 8 * PAGE, present));
	for (size_t i = 0; i < LENGTH(present); i++)
		CHECK(present[i] & 1, "locked page %zu is not there", i);
	MUST(mincore(part, 8 * PAGE, present));
	CHECK(!(present[5] & 1), "a page locked on fault came before its fault");
}

enum { HUGE = 2 << 20 };

/* New memory that the kernel may make huge pages of. */
static char *map_huge(size_t pages)
{
	char *room = map_anonymous((pages + 2) * HUGE);
	char *memory = (char *)(((uintptr_t)room + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
	MUST(madvise(memory, pages * HUGE, MADV_HUGEPAGE));
	return memory;
}

/* What smaps says of the area that begins at an address. */
static long kib_of(const char *memory, const char *what)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	CHECK(smaps != NULL, "smaps");
	char line[512];
	unsigned long start, end;
	long kib = 0;
	bool here = false;
	while (fgets(line, sizeof(line), smaps) != NULL) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (uintptr_t)memory;
		else if (here && strncmp(line, what, strlen(what)) == 0)
			kib = atol(line + strlen(what));
	}
	fclose(smaps);
	return kib;
}

/* What was huge is huge again, if the kernel has huge pages to give. */
CASE(huge_pages)
{
	static const char huge[] = "AnonHugePages:";
	char *memory = map_huge(2);
	fill(memory, 2 * HUGE, 6);
	long before = kib_of(memory, huge);
	printf("%ld KiB in huge pages\n", before);
	fflush(stdout);
	checkpoint();
	CHECK_FILL(memory, 2 * HUGE, 6);
	char *other = map_huge(2);
	memset(other, 1, 2 * HUGE);
	CHECK(kib_of(memory, huge) >= before || kib_of(other, huge) < before, "%ld KiB in huge pages, not %ld", kib_of(memory, huge),
	      before);
}

/* Of each huge page all was given back but one page, or was never there. */
CASE(huge_pages_sparse)
{
	enum { COUNT = 64 };
	static const char anonymous[] = "Anonymous:";
	char *memory = map_huge(COUNT), *later = map_huge(COUNT);
	MUST(madvise(later, COUNT * HUGE, MADV_NOHUGEPAGE));
	for (size_t i = 0; i < COUNT; i++) {
		char *page = memory + i * HUGE + 5 * PAGE;
		fill(page, PAGE, (uint32_t)i);
		MUST(madvise(memory + i * HUGE, 5 * PAGE, MADV_DONTNEED));
		MUST(madvise(page + PAGE, HUGE - 6 * PAGE, MADV_DONTNEED));
		fill(later + i * HUGE, PAGE, (uint32_t)i);
	}
	MUST(madvise(later, COUNT * HUGE, MADV_HUGEPAGE));
	/* One that cannot be written. */
	MUST(mprotect(later, COUNT / 2 * HUGE, PROT_READ));
	checkpoint();
	/* The kernel may have joined some by itself. */
	const char *const all[] = { memory, later, later + COUNT / 2 * HUGE };
	for (size_t i = 0; i < LENGTH(all); i++)
		CHECK(kib_of(all[i], anonymous) < 20 * 1024, "%ld KiB at %p", kib_of(all[i], anonymous), (const void *)all[i]);
	for (size_t i = 0; i < COUNT; i++) {
		CHECK_FILL(memory + i * HUGE + 5 * PAGE, PAGE, (uint32_t)i);
		CHECK_FILL(later + i * HUGE, PAGE, (uint32_t)i);
	}
}

#ifdef __x86_64__
static size_t half_of_machine(void)
{
	struct sysinfo machine;
	MUST(sysinfo(&machine));
	return (machine.totalram + machine.totalswap) * machine.mem_unit / (2 * PAGE) * PAGE;
}

/* Addresses for an area that has no neighbour like it. */
static char *reserve_apart(size_t length)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	return MUST((char *)mmap(NULL, length + 2 * PAGE, PROT_NONE, flags, -1, 0)) + PAGE;
}

/* Areas that are larger than memory and swap, made piece by piece. */
CASE(beyond_machine)
{
	enum { COUNT = 3 };
	const size_t half = half_of_machine();
	char *areas[3];
	int file = MUST(open("sparse", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(file, (off_t)(COUNT * half)));
	for (size_t i = 0; i < LENGTH(areas); i++) {
		areas[i] = reserve_apart(COUNT * half);
		for (size_t k = 0; k < COUNT; k++) {
			bool anonymous = i < 2;
			int flags = MAP_PRIVATE | MAP_FIXED | (anonymous ? MAP_ANONYMOUS : 0);
			char *piece = MUST((char *)mmap(areas[i] + k * half, half, PROT_READ | PROT_WRITE, flags,
							anonymous ? -1 : file, anonymous ? 0 : (off_t)(k * half)));
			fill(piece + 5 * PAGE, PAGE, (uint32_t)(i + k));
			if (i == 1 && k == 1)
				MUST(mprotect(piece, half, PROT_READ));
		}
	}
	close(file);
	int segment = MUST(shmget(IPC_PRIVATE, 4 * half, IPC_CREAT | 0600 | SHM_NORESERVE));
	char *attached = MUST((char *)shmat(segment, NULL, 0));
	MUST(shmctl(segment, IPC_RMID, NULL));
	fill(attached + 3 * half, PAGE, 9);
	checkpoint();
	for (size_t i = 0; i < LENGTH(areas); i++)
		for (size_t k = 0; k < COUNT; k++)
			CHECK_FILL(areas[i] + k * half + 5 * PAGE, PAGE, (uint32_t)(i + k));
	CHECK_FILL(attached + 3 * half, PAGE, 9);
}

static void hold(void *memory)
{
	prepared();
	wait_for_go();
	CHECK_FILL(memory, PAGE, 3);
}

/* Grown so large after a fork that no fork could copy it now. */
CASE(beyond_machine_forked)
{
	const size_t half = half_of_machine();
	char *memory = reserve_apart(half), *grown = reserve_apart(3 * half);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	MUST(mmap(memory, half, PROT_READ | PROT_WRITE, flags, -1, 0));
	fill(memory, PAGE, 3);
	pid_t child = spawn(hold, memory);
	for (size_t k = 0; k < 3; k++)
		MUST(mmap(grown + k * half, half, PROT_READ | PROT_WRITE, flags, -1, 0));
	checkpoint();
	CHECK_FILL(memory, PAGE, 3);
	grown[2 * half] = 1;
	finish(child);
}
#endif

/* The kernel left room for a stack of a quarter of a gigabyte when the program was executed. */
CASE(stack_room)
{
	const rlim_t limit = 256 * MIB;
	struct rlimit stack;
	MUST(getrlimit(RLIMIT_STACK, &stack));
	if (stack.rlim_cur != limit) {
		stack.rlim_cur = limit;
		MUST(setrlimit(RLIMIT_STACK, &stack));
		MUST(personality((unsigned)MUST(personality(0xffffffff)) | ADDR_NO_RANDOMIZE));
		MUST(execl("/proc/self/exe", case_argv[0], "stack_room", (char *)NULL));
	}
	checkpoint();
	for (size_t size = PAGE; size <= 64 * MIB; size *= 4) {
		char *memory = MUST((char *)mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		uintptr_t top = (uintptr_t)&memory, end = (uintptr_t)memory + size;
		CHECK(end > top || top - end >= limit, "%p is in the way of the stack at %p", (void *)memory, (void *)&memory);
	}
	MUST(getrlimit(RLIMIT_STACK, &stack));
	CHECK(stack.rlim_cur == limit, "the limit is %llu", (unsigned long long)stack.rlim_cur);
}

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Private and shared memory of which the machine has swap; part of it read back since. */
CASE(swapped)
{
	const size_t length = 4 * MIB;
	char *private = map_anonymous(length);
	char *shared = MUST((char *)mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fill(private, length, 1);
	fill(shared, length, 2);
	MUST(madvise(private, length, MADV_PAGEOUT));
	MUST(madvise(shared, length, MADV_PAGEOUT));
	CHECK_FILL(private, length / 4, 1);
	CHECK(kib_of(private, "Swap:") > (long)(length >> 12), "%ld KiB in swap", kib_of(private, "Swap:"));
	CHECK(kib_of(shared, "Swap:") > (long)(length >> 11), "%ld KiB of shared memory in swap", kib_of(shared, "Swap:"));
	checkpoint();
	CHECK_FILL(private, length, 1);
	CHECK_FILL(shared, length, 2);
}

/* Protection keys: pkeys(7). */
static int thread_ready, thread_go, mate_ready;

#ifdef __x86_64__
enum { PKEY_MPROTECT = 329, PKEY_ALLOC = 330, PKEY_FREE = 331 };
#else
enum { PKEY_MPROTECT = 380, PKEY_ALLOC = 381, PKEY_FREE = 382 };
#endif
enum { NO_ACCESS = 1, NO_WRITE = 2 };

static int allocate_key(unsigned rights)
{
	return (int)MUST(syscall(PKEY_ALLOC, 0, rights));
}

static void protect_by_key(char *memory, size_t length, int protection, int key)
{
	MUST(syscall(PKEY_MPROTECT, memory, length, protection, key));
}

static uint32_t key_rights(void)
{
	uint32_t rights, zero;
	__asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(rights), "=d"(zero) : "c"(0)); /* rdpkru */
	return rights;
}

static void set_key_rights(uint32_t rights)
{
	__asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(rights), "c"(0), "d"(0) : "memory"); /* wrpkru */
}

/* Denies something with one key, and allows all else with it. */
static void deny(int key, unsigned rights)
{
	set_key_rights((key_rights() & ~(3u << 2 * key)) | rights << 2 * key);
}

static void check_key(const char *memory, int key)
{
	CHECK(kib_of(memory, "ProtectionKey:") == key, "key %ld at %p, not %d", kib_of(memory, "ProtectionKey:"), (const void *)memory, key);
}

/* Whether the kernel may read, or write, memory on behalf of this thread, which depends on its rights. */
static bool may_read(const char *memory)
{
	int ends[2];
	MUST(pipe(ends));
	bool may = write(ends[1], memory, 1) == 1;
	CHECK(may || errno == EFAULT, "write: %s", strerror(errno));
	close(ends[0]);
	close(ends[1]);
	return may;
}

static bool may_write(char *memory)
{
	int fd = MUST(open("/dev/zero", O_RDONLY));
	bool may = read(fd, memory, 1) == 1;
	CHECK(may || errno == EFAULT, "read: %s", strerror(errno));
	close(fd);
	return may;
}

/* mov eax, 42; ret. */
static char *code_to_write(void)
{
	static const unsigned char code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
	char *memory = map_anonymous(PAGE);
	memcpy(memory, code, sizeof(code));
	return memory;
}

/* The same in memory that may only be executed. */
static char *code_to_execute(void)
{
	char *memory = code_to_write();
	MUST(mprotect(memory, PAGE, PROT_EXEC));
	return memory;
}

static int execute(const char *code)
{
	return ((int (*)(void))(uintptr_t)code)();
}

static struct {
	char *closed, *read_only, *shared, *file, *explicit, *none, *code;
	int a, b, c, d;
} keyed;

/* Has other rights than the one that made it. */
static void *thread_with_keys(void *unused)
{
	(void)unused;
	deny(keyed.a, 0);
	deny(keyed.c, NO_ACCESS);
	uint32_t rights = key_rights();
	__atomic_store_n(&thread_ready, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &thread_go, 0, 0, NULL);
	CHECK(key_rights() == rights, "rights %#x of the thread, not %#x", key_rights(), rights);
	CHECK(may_read(keyed.closed) && !may_read(keyed.shared), "the thread's rights");
	return NULL;
}

/* Has all keys of its parent, and one more. */
static void child_with_keys(void *unused)
{
	(void)unused;
	char *own = map_anonymous(PAGE);
	int key = allocate_key(0);
	fill(own, PAGE, 9);
	protect_by_key(own, PAGE, PROT_READ | PROT_WRITE, key);
	prepared();
	wait_for_go();
	check_key(own, key);
	CHECK_FILL(own, PAGE, 9);
	CHECK(key == keyed.b && allocate_key(0) == 6 && allocate_key(0) == 7, "keys of the child");
	check_key(keyed.shared, keyed.c);
	CHECK(execute(keyed.code) == 42, "the child's code");
}

/* Has the memory of its parent, and waits at a word that has a key. */
static int mate_at_key(void *word)
{
	struct timespec limit = { 1000, 0 };
	__atomic_store_n(&mate_ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n((int *)word, __ATOMIC_SEQ_CST) == 0)
		if (syscall(SYS_futex, word, 0, 0, &limit) == -1 && errno != EAGAIN)
			return errno;
	return 0;
}

/* Of memory of all sorts, with rights that differ by thread; one that is freed, and one that no memory has. */
CASE(keys)
{
	pthread_t thread;
	keyed.a = allocate_key(0), keyed.b = allocate_key(0), keyed.c = allocate_key(0), keyed.d = allocate_key(NO_WRITE);
	keyed.closed = map_anonymous(4 * PAGE);
	fill(keyed.closed, 4 * PAGE, 1);
	protect_by_key(keyed.closed, 2 * PAGE, PROT_READ | PROT_WRITE, keyed.a);
	keyed.read_only = map_anonymous(2 * PAGE);
	fill(keyed.read_only, 2 * PAGE, 2);
	protect_by_key(keyed.read_only, 2 * PAGE, PROT_READ, keyed.c);
	keyed.shared = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fill(keyed.shared, PAGE, 3);
	protect_by_key(keyed.shared, PAGE, PROT_READ | PROT_WRITE, keyed.c);
	int fd = MUST(memfd_create("file", 0));
	MUST(ftruncate(fd, 2 * PAGE));
	keyed.file = MUST((char *)mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	fill(keyed.file, PAGE, 4);
	protect_by_key(keyed.file, 2 * PAGE, PROT_READ | PROT_WRITE, keyed.a);
	keyed.none = map_anonymous(PAGE);
	protect_by_key(keyed.none, PAGE, PROT_NONE, keyed.c);
	/* The kernel takes a key for the first; the others have what the program says. */
	keyed.code = code_to_execute();
	keyed.explicit = code_to_execute();
	protect_by_key(keyed.explicit, PAGE, PROT_EXEC, keyed.a);
	char *unprotected = code_to_execute();
	protect_by_key(unprotected, PAGE, PROT_EXEC, 0);
	check_key(keyed.code, 5);
	check_key(unprotected, 0);
	MUST(syscall(PKEY_FREE, keyed.b));
	MUST0(pthread_create(&thread, NULL, thread_with_keys, NULL));
	while (!__atomic_load_n(&thread_ready, __ATOMIC_SEQ_CST))
		sched_yield();
	pid_t child = spawn(child_with_keys, NULL);
	int *word = (int *)map_anonymous(PAGE);
	protect_by_key((char *)word, PAGE, PROT_READ | PROT_WRITE, keyed.a);
	pid_t mate = MUST(clone(mate_at_key, map_anonymous(16 * PAGE) + 16 * PAGE, CLONE_VM | SIGCHLD, word));
	while (!__atomic_load_n(&mate_ready, __ATOMIC_SEQ_CST))
		sched_yield();
	deny(keyed.a, NO_ACCESS);
	deny(keyed.c, NO_WRITE);
	uint32_t rights = key_rights();
	checkpoint();
	CHECK(key_rights() == rights, "rights %#x, not %#x", key_rights(), rights);
	CHECK(!may_read(keyed.closed) && !may_read(keyed.file), "read in spite of its key");
	CHECK(may_read(keyed.shared) && !may_write(keyed.shared), "written in spite of its key");
	check_key(keyed.closed, keyed.a);
	check_key(keyed.closed + 2 * PAGE, 0);
	check_key(keyed.read_only, keyed.c);
	check_key(keyed.shared, keyed.c);
	check_key(keyed.file, keyed.a);
	check_key(keyed.none, keyed.c);
	check_key(keyed.code, 5);
	check_key(keyed.explicit, keyed.a);
	check_key(unprotected, 0);
	CHECK(execute(keyed.code) == 42 && execute(keyed.explicit) == 42 && execute(unprotected) == 42, "the code");
	thread_go = 1;
	syscall(SYS_futex, &thread_go, 1, 1);
	MUST0(pthread_join(thread, NULL));
	finish(child);
	CHECK(allocate_key(0) == keyed.b && allocate_key(0) == 6, "the next keys");
	deny(keyed.a, 0);
	__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, word, 1, 1);
	reap(mate);
	CHECK_FILL(keyed.closed, 4 * PAGE, 1);
	CHECK_FILL(keyed.read_only, 2 * PAGE, 2);
	CHECK_FILL(keyed.shared, PAGE, 3);
	CHECK_FILL(keyed.file, PAGE, 4);
}

/* Nothing but the key that the kernel has taken, which is not the first. */
CASE(keys_of_code)
{
	int key = allocate_key(0);
	char *code = code_to_execute();
	MUST(syscall(PKEY_FREE, key));
	checkpoint();
	check_key(code, key + 1);
	CHECK(execute(code) == 42, "the code");
	CHECK(allocate_key(0) == key && allocate_key(0) == key + 2, "the next keys");
}

/* Memory that may only be executed and was given the key of all other memory, so that it can be read: the kernel has taken none. */
CASE(keys_unwanted)
{
	char *code = code_to_write();
	protect_by_key(code, PAGE, PROT_EXEC, 0);
	check_key(code, 0);
	checkpoint();
	check_key(code, 0);
	CHECK(may_read(code) && execute(code) == 42, "the code");
	CHECK(allocate_key(0) == 1, "the next key");
}

/* Memory keeps a key that is freed. */
CASE(keys_freed)
{
	int key = allocate_key(0);
	protect_by_key(map_anonymous(PAGE), PAGE, PROT_READ, key);
	MUST(syscall(PKEY_FREE, key));
	checkpoint();
}

/* May use nothing, so it cannot be asked; the kernel is not to write its number of a processor, either. */
static void *thread_without_rights(void *unused)
{
	(void)unused;
	char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
	enum { RSEQ_UNREGISTER = 1, RSEQ_SIGNATURE = 0x53053053 };
	if (__rseq_size != 0)
		MUST(syscall(SYS_rseq, area, 32, RSEQ_UNREGISTER, RSEQ_SIGNATURE));
	__atomic_store_n(&thread_ready, 1, __ATOMIC_SEQ_CST);
	__asm__ volatile(".byte 0x0f, 0x01, 0xef\n1: pause\njmp 1b" : : "a"(3), "c"(0), "d"(0)); /* wrpkru */
	return NULL;
}

CASE(keys_denied)
{
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, thread_without_rights, NULL));
	while (!__atomic_load_n(&thread_ready, __ATOMIC_SEQ_CST))
		sched_yield();
	checkpoint();
}

/* Reading maps the zero page: present, and without contents. */
CASE(zero_page)
{
	enum { PAGES = 4096, WRITTEN = 256 };
	char *memory = map_anonymous(PAGES * PAGE);
	char sum = 0;
	for (size_t i = 0; i < PAGES; i++)
		sum |= ((volatile char *)memory)[i * PAGE];
	/* Written with zeros: pages like all others. */
	char *zeros = map_anonymous(WRITTEN * PAGE);
	memset(zeros, 0, WRITTEN * PAGE);
	checkpoint();
	for (size_t i = 0; i < PAGES * PAGE; i++)
		sum |= memory[i] | zeros[i % (WRITTEN * PAGE)];
	CHECK(sum == 0, "zeros");
	memset(memory, 1, PAGES * PAGE);
}

/* mlockall over what cannot be populated: no access, and beyond the end of a file that is no longer writable. */
CASE(locked_whole)
{
	char *none = MUST(mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open("short", O_CREAT | O_RDWR, 0600));
	MUST(ftruncate(fd, PAGE));
	char *file = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	MUST(mprotect(file + 2 * PAGE, 2 * PAGE, PROT_READ));
	char *data = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill(data, 8 * PAGE, 5);
	MUST(mlockall(MCL_CURRENT));
	checkpoint();
	CHECK_FILL(data, 8 * PAGE, 5);
	MUST(mprotect(none, PAGE, PROT_READ | PROT_WRITE));
	none[0] = 1;
}

/* So much that restoring it takes a while, and a child that is back long before. */
CASE(heavy)
{
	size_t length = 400u << 20;
	char *data = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t at = 0; at < length; at += PAGE)
		data[at] = (char)(at / PAGE);
	pid_t child = MUST(fork());
	if (child == 0) {
		MUST(munmap(data, length));
		wait_for_go();
		_exit(0);
	}
	checkpoint();
	for (size_t at = 0; at < length; at += PAGE)
		CHECK(data[at] == (char)(at / PAGE), "page at %zu", at);
	MUST(kill(child, SIGUSR1));
	MUST(waitpid(child, NULL, 0));
}
