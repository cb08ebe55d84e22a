/* Mappings of files, and memory that tasks share. */
#include "workload.h"
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

/* A new file of this many pages in the working directory, page i filled with seed + i. */
static int make_file(const char *name, size_t pages, uint32_t seed)
{
	char page[PAGE];
	int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	for (size_t i = 0; i < pages; i++) {
		fill(page, PAGE, seed + (uint32_t)i);
		MUST(write(fd, page, PAGE));
	}
	return fd;
}

static char *map_file(int fd, int flags, int protection, size_t pages, size_t from)
{
	return MUST((char *)mmap(NULL, pages * PAGE, protection, flags, fd, (off_t)(from * PAGE)));
}

static void check_file_page(const char *name, size_t index, uint32_t seed)
{
	char page[PAGE];
	int fd = MUST(open(name, O_RDONLY));
	CHECK(pread(fd, page, PAGE, (off_t)(index * PAGE)) == (ssize_t)PAGE, "read %s", name);
	CHECK_FILL(page, PAGE, seed);
	close(fd);
}

CASE(private_file)
{
	int fd = make_file("private", 16, 100);
	char *memory = map_file(fd, MAP_PRIVATE, PROT_READ | PROT_WRITE, 12, 2);
	close(fd);
	for (size_t i = 0; i < 12; i += 3)
		fill(memory + i * PAGE, PAGE, (uint32_t)(500 + i));
	/* Overwritten with zeros: not what the file has, and a zero page all the same. */
	memset(memory + PAGE, 0, PAGE);
	MUST(mprotect(memory + 6 * PAGE, 3 * PAGE, PROT_READ));
	checkpoint();
	for (size_t i = 0; i < 12; i++) {
		if (i == 1)
			CHECK(memory[PAGE] == 0 && memory[2 * PAGE - 1] == 0, "the zeroed page");
		else
			CHECK_FILL(memory + i * PAGE, PAGE, (uint32_t)(i % 3 == 0 ? 500 + i : 102 + i));
		check_file_page("private", i + 2, (uint32_t)(102 + i));
	}
	fill(memory + 2 * PAGE, PAGE, 7);
	check_file_page("private", 4, 104);
}

CASE(shared_file)
{
	int fd = make_file("shared", 16, 200);
	char *memory = map_file(fd, MAP_SHARED, PROT_READ | PROT_WRITE, 8, 4);
	int reader = MUST(open("shared", O_RDONLY));
	char *view = map_file(reader, MAP_SHARED, PROT_READ, 16, 0);
	close(fd);
	close(reader);
	fill(memory, PAGE, 300);
	checkpoint();
	CHECK_FILL(memory, PAGE, 300);
	CHECK_FILL(view + 4 * PAGE, PAGE, 300);
	CHECK_FILL(view + 5 * PAGE, PAGE, 205);
	fill(memory + PAGE, PAGE, 301);
	CHECK_FILL(view + 5 * PAGE, PAGE, 301);
	check_file_page("shared", 5, 301);
	CHECK(mprotect(view, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
	      "a shared mapping of a read-only file became writable");
	MUST(mprotect(memory, PAGE, PROT_READ));
}

/* Anonymous memory in the name of the device, from its middle on; partly untouched, partly given away. */
CASE(zero_device)
{
	int fd = MUST(open("/dev/zero", O_RDWR));
	char *memory = map_file(fd, MAP_PRIVATE, PROT_READ | PROT_WRITE, 12, 3);
	char *reader = map_file(fd, MAP_PRIVATE, PROT_READ, 2, 0);
	close(fd);
	fill(memory, PAGE, 61);
	fill(memory + 5 * PAGE, PAGE, 62);
	fill(memory + 8 * PAGE, PAGE, 63);
	MUST(madvise(memory + 8 * PAGE, PAGE, MADV_DONTNEED));
	MUST(mprotect(memory + 5 * PAGE, PAGE, PROT_NONE));
	CHECK(memory[2 * PAGE] == 0, "zeros");
	checkpoint();
	CHECK_FILL(memory, PAGE, 61);
	MUST(mprotect(memory + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE));
	CHECK_FILL(memory + 5 * PAGE, PAGE, 62);
	CHECK(memory[2 * PAGE] == 0 && memory[8 * PAGE] == 0 && memory[11 * PAGE] == 0, "untouched");
	CHECK(reader[PAGE] == 0, "read only");
	memory[2 * PAGE] = 1;
	MUST(madvise(memory, PAGE, MADV_DONTNEED));
	CHECK(memory[0] == 0, "given away");
}

static sigjmp_buf bus_jump;

static void on_bus(int signal)
{
	(void)signal;
	siglongjmp(bus_jump, 1);
}

/* Behind the end of the file there is SIGBUS, and behind its last byte zeros. */
CASE(file_tail)
{
	int fd = make_file("tail", 2, 400);
	MUST(ftruncate(fd, (off_t)PAGE + 100));
	char *memory = map_file(fd, MAP_PRIVATE, PROT_READ | PROT_WRITE, 8, 0);
	char *shared = map_file(fd, MAP_SHARED, PROT_READ | PROT_WRITE, 8, 0);
	memory[PAGE + 200] = 9;
	checkpoint();
	CHECK_FILL(memory, PAGE, 400);
	CHECK(memory[PAGE + 200] == 9 && memory[PAGE + 300] == 0, "the last page");
	CHECK(shared[PAGE + 200] == 0, "the last page, shared");
	MUST((intptr_t)signal(SIGBUS, on_bus));
	volatile char byte;
	if (sigsetjmp(bus_jump, 1) == 0) {
		byte = memory[4 * PAGE];
		CHECK(false, "read %d behind the end of the file", byte);
	}
	MUST(ftruncate(fd, (off_t)(8 * PAGE)));
	CHECK(memory[4 * PAGE] == 0 && shared[4 * PAGE] == 0, "the file grew");
}

static bool is_zero(const char *at, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (at[i] != 0)
			return false;
	return true;
}

/* Puts the page of zeros into a private mapping of a file, as KSM does for pages that hold zeros. */
static void put_zeros(char *at, size_t length)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_range range = { (uintptr_t)at, length };
	struct uffdio_register asked = { .range = range, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zeros = { .range = range };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd != -1 && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &asked) == 0) {
		MUST(ioctl(fd, UFFDIO_ZEROPAGE, &zeros));
		MUST(ioctl(fd, UFFDIO_UNREGISTER, &range));
	} else {
		/* A kernel without it: pages of their own that hold zeros. */
		memset(at, 0, length);
	}
	if (fd != -1)
		close(fd);
}

/* Where a file is mapped privately, the page of zeros is not what fresh memory would show. */
CASE(zeros_over_a_file)
{
	MUST(mkdir("small", 0755));
	MUST(mount("small", "small", "tmpfs", 0, NULL));
	int fd = make_file("small/file", 12, 100);
	char *memory = map_file(fd, MAP_PRIVATE, PROT_READ | PROT_WRITE, 12, 0);
	close(fd);
	fill(memory, PAGE, 500);
	put_zeros(memory + 2 * PAGE, 4 * PAGE);
	fill(memory + 6 * PAGE, PAGE, 501);
	put_zeros(memory + 11 * PAGE, PAGE);
	checkpoint();
	CHECK_FILL(memory, PAGE, 500);
	CHECK_FILL(memory + PAGE, PAGE, 101);
	CHECK(is_zero(memory + 2 * PAGE, 4 * PAGE), "zeros show what the file has");
	CHECK_FILL(memory + 6 * PAGE, PAGE, 501);
	CHECK_FILL(memory + 7 * PAGE, PAGE, 107);
	CHECK(is_zero(memory + 11 * PAGE, PAGE), "zeros at the end");
	fill(memory + 2 * PAGE, PAGE, 7);
	check_file_page("small/file", 2, 102);
}

/* What lies behind the last byte, in the last page, is seen by mappings alone, and stays as long as a file in memory does. */
CASE(behind_the_end)
{
	MUST(mkdir("small", 0755));
	MUST(mount("small", "small", "tmpfs", 0, NULL));
	int memfd = MUST((int)syscall(SYS_memfd_create, "short", 0));
	MUST(ftruncate(memfd, 100));
	char *first = map_file(memfd, MAP_SHARED, PROT_READ | PROT_WRITE, 1, 0);
	fill(first, PAGE, 1);
	int gone = make_file("small/gone", 300, 2);
	MUST(ftruncate(gone, (off_t)(299 * PAGE) + 4));
	char *last = map_file(gone, MAP_SHARED, PROT_READ | PROT_WRITE, 1, 299);
	fill(last, PAGE, 3);
	MUST(unlink("small/gone"));
	/* Nothing but zeros in the file itself. */
	int empty = MUST((int)syscall(SYS_memfd_create, "empty", 2 /* MFD_ALLOW_SEALING */));
	MUST(ftruncate(empty, (off_t)PAGE + 1));
	char *beyond = map_file(empty, MAP_SHARED, PROT_READ | PROT_WRITE, 1, 1);
	beyond[PAGE - 1] = 'z';
	MUST(munmap(beyond, PAGE));
	MUST(fcntl(empty, F_ADD_SEALS, F_SEAL_WRITE));
	struct stat before, after;
	MUST(fstat(gone, &before));
	checkpoint();
	CHECK_FILL(first, PAGE, 1);
	CHECK_FILL(last, PAGE, 3);
	beyond = map_file(empty, MAP_PRIVATE, PROT_READ, 1, 1);
	CHECK(is_zero(beyond, PAGE - 1) && beyond[PAGE - 1] == 'z', "behind what was never written");
	MUST(fstat(gone, &after));
	CHECK(after.st_size == before.st_size && after.st_blocks == before.st_blocks, "%ld bytes, %ld blocks",
	      (long)after.st_size, (long)after.st_blocks);
	CHECK(after.st_mtim.tv_sec == before.st_mtim.tv_sec && after.st_mtim.tv_nsec == before.st_mtim.tv_nsec, "modified");
	fill(first, PAGE, 4);
}

struct family {
	/* 32 pages; the child has lost the middle of it, the grandchild sees a part read-only. */
	char *shared;
	/* Of another object. */
	volatile int *turn;
};

static void grandchild(void *argument)
{
	struct family *family = argument;
	MUST(mprotect(family->shared, 4 * PAGE, PROT_READ));
	prepared();
	wait_for_go();
	CHECK_FILL(family->shared, 4 * PAGE, 10);
	CHECK_FILL(family->shared + 20 * PAGE, PAGE, 12);
	await(family->turn, 2);
	CHECK_FILL(family->shared + 24 * PAGE, PAGE, 52);
	fill(family->shared + 25 * PAGE, PAGE, 53);
	__atomic_store_n(family->turn, 3, __ATOMIC_SEQ_CST);
}

static void child(void *argument)
{
	struct family *family = argument;
	MUST(munmap(family->shared + 8 * PAGE, 8 * PAGE));
	fill(family->shared + 20 * PAGE, PAGE, 12);
	pid_t below = spawn(grandchild, family);
	prepared();
	wait_for_go();
	await(family->turn, 1);
	CHECK_FILL(family->shared + 23 * PAGE, PAGE, 51);
	fill(family->shared + 24 * PAGE, PAGE, 52);
	__atomic_store_n(family->turn, 2, __ATOMIC_SEQ_CST);
	finish(below);
}

static char *map_shared(size_t pages)
{
	return MUST((char *)mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

CASE(shared_anonymous)
{
	struct family family = { map_shared(32), (volatile int *)(void *)map_shared(1) };
	fill(family.shared, 4 * PAGE, 10);
	fill(family.shared + 10 * PAGE, PAGE, 11);
	pid_t below = spawn(child, &family);
	checkpoint();
	CHECK_FILL(family.shared, 4 * PAGE, 10);
	CHECK_FILL(family.shared + 10 * PAGE, PAGE, 11);
	CHECK_FILL(family.shared + 20 * PAGE, PAGE, 12);
	CHECK(family.shared[30 * PAGE] == 0, "untouched");
	fill(family.shared + 23 * PAGE, PAGE, 51);
	__atomic_store_n(family.turn, 1, __ATOMIC_SEQ_CST);
	MUST(kill(below, SIGUSR1));
	await(family.turn, 3);
	CHECK_FILL(family.shared + 25 * PAGE, PAGE, 53);
	reap(below);
}

/* One object mapped twice in one task, at different offsets. */
CASE(shared_twice)
{
	char *first = map_shared(8);
	fill(first, 8 * PAGE, 20);
	/* mremap with an old size of 0 maps shared memory once more. */
	char *second = MUST((char *)mremap(first + 2 * PAGE, 0, 4 * PAGE, MREMAP_MAYMOVE));
	MUST(munmap(first, PAGE));
	checkpoint();
	CHECK(memcmp(first + 2 * PAGE, second, 4 * PAGE) == 0, "both views");
	fill(second, PAGE, 21);
	CHECK_FILL(first + 2 * PAGE, PAGE, 21);
	first[3 * PAGE] = 77;
	CHECK(second[PAGE] == 77, "the other way");
}

/* A shared object of 1 GiB with little in it. */
CASE(shared_sparse)
{
	const size_t pages = 1024 * MIB / PAGE;
	char *memory = MUST((char *)mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	for (size_t i = 0; i < pages; i += 8192)
		fill(memory + i * PAGE, PAGE, (uint32_t)i);
	checkpoint();
	for (size_t i = 0; i < pages; i += 8192)
		CHECK_FILL(memory + i * PAGE, PAGE, (uint32_t)i);
	CHECK(memory[PAGE] == 0, "untouched");
}

/* Pages that parent and child still share copy-on-write. */
static void cow_child(void *argument)
{
	char *memory = argument;
	fill(memory, PAGE, 31);
	prepared();
	wait_for_go();
	CHECK_FILL(memory, PAGE, 31);
	CHECK_FILL(memory + PAGE, PAGE, 41);
	fill(memory + PAGE, PAGE, 32);
	CHECK_FILL(memory + PAGE, PAGE, 32);
}

CASE(copy_on_write)
{
	char *memory = map_anonymous(4 * PAGE);
	fill(memory, PAGE, 40);
	fill(memory + PAGE, PAGE, 41);
	pid_t below = spawn(cow_child, memory);
	checkpoint();
	finish(below);
	CHECK_FILL(memory, PAGE, 40);
	CHECK_FILL(memory + PAGE, PAGE, 41);
}
