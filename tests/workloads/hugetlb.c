/* Memory of huge pages. */
#include "workload.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HUGE = 2 << 20 };
/* MAP_HUGE_2MB, and the same for memfd_create. */
enum { OF_2_MIB = 21 << 26 };

static char *map_huge(size_t pages, int flags)
{
	return MUST((char *)mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE,
	                         MAP_ANONYMOUS | MAP_HUGETLB | OF_2_MIB | flags, -1, 0));
}

static bool is_zero(const char *at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (at[i] != 0)
			return false;
	return true;
}

/* Filled, untouched and filled in part; one that may only be read, one that reserves nothing. */
CASE(private)
{
	char *memory = map_huge(4, MAP_PRIVATE), *loose = map_huge(2, MAP_PRIVATE | MAP_NORESERVE);
	fill(memory, HUGE, 1);
	fill(memory + 2 * HUGE + 5 * PAGE, 3 * PAGE, 2);
	fill(memory + 3 * HUGE, HUGE, 3);
	MUST(mprotect(memory + 3 * HUGE, HUGE, PROT_READ));
	fill(loose + HUGE, HUGE, 4);
	checkpoint();
	CHECK_FILL(memory, HUGE, 1);
	CHECK(is_zero(memory + HUGE, HUGE) && is_zero(memory + 2 * HUGE, 5 * PAGE), "zeros");
	CHECK_FILL(memory + 2 * HUGE + 5 * PAGE, 3 * PAGE, 2);
	CHECK(is_zero(memory + 2 * HUGE + 8 * PAGE, HUGE - 8 * PAGE), "zeros behind");
	CHECK_FILL(memory + 3 * HUGE, HUGE, 3);
	CHECK(is_zero(loose, HUGE), "loose");
	CHECK_FILL(loose + HUGE, HUGE, 4);
	/* Only huge pages can go one by one, and as a whole. */
	CHECK(munmap(memory + HUGE, PAGE) == -1 && munmap(memory + HUGE, HUGE) == 0, "not of huge pages");
}

static void look_at(void *memory)
{
	prepared();
	wait_for_go();
	CHECK_FILL(memory, 2 * HUGE, 1);
}

/* Of three tasks, which share them since a fork. */
CASE(forked)
{
	char *memory = map_huge(2, MAP_PRIVATE);
	fill(memory, 2 * HUGE, 1);
	pid_t children[] = { spawn(look_at, memory), spawn(look_at, memory) };
	checkpoint();
	CHECK_FILL(memory, 2 * HUGE, 1);
	for (size_t i = 0; i < LENGTH(children); i++)
		finish(children[i]);
}

/* Without a file and with one that never had a name, also mapped in part, by two tasks. */
CASE(shared)
{
	char *memory = map_huge(3, MAP_SHARED);
	fill(memory, HUGE, 1);
	fill(memory + 2 * HUGE, PAGE, 2);
	int fd = MUST(memfd_create("of huge pages", MFD_HUGETLB | OF_2_MIB | MFD_ALLOW_SEALING));
	MUST(ftruncate(fd, 3 * HUGE));
	char *part = MUST((char *)mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, HUGE));
	fill(part, HUGE, 3);
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	int ask[2], answer[2];
	char byte = 0;
	MUST(pipe(ask));
	MUST(pipe(answer));
	pid_t child = MUST(fork());
	if (child == 0) {
		close(ask[1]);
		MUST(munmap(memory, HUGE));
		MUST((int)write(answer[1], &byte, 1));
		while (read(ask[0], &byte, 1) == 1) {
			memory[2 * HUGE + PAGE] = 7;
			part[0] = 8;
			MUST((int)write(answer[1], &byte, 1));
		}
		_exit(0);
	}
	close(ask[0]);
	MUST((int)read(answer[0], &byte, 1));
	checkpoint();
	CHECK_FILL(memory, HUGE, 1);
	CHECK(is_zero(memory + HUGE, HUGE), "zeros");
	CHECK_FILL(memory + 2 * HUGE, PAGE, 2);
	CHECK_FILL(part, HUGE, 3);
	MUST((int)write(ask[1], &byte, 1));
	MUST((int)read(answer[0], &byte, 1));
	CHECK(memory[2 * HUGE + PAGE] == 7 && part[0] == 8, "not shared");
	struct stat stat;
	MUST(fstat(fd, &stat));
	CHECK(stat.st_size == 3 * HUGE && stat.st_blksize == HUGE, "%lld bytes", (long long)stat.st_size);
	CHECK(fcntl(fd, F_GET_SEALS) == F_SEAL_SHRINK, "seals");
	CHECK(read(fd, &byte, 1) == 1 && byte == 0, "offset");
	close(ask[1]);
	MUST(waitpid(child, NULL, 0));
}

/* Mapped files of a hugetlbfs, which keeps what is in them; a private mapping with a page of its own. */
CASE(files)
{
	MUST(mkdir("huge", 0700));
	MUST(mount("none", "huge", "hugetlbfs", 0, "pagesize=2M"));
	int fd = MUST(open("huge/file", O_CREAT | O_RDWR | O_EXCL, 0600));
	char *shared = MUST((char *)mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *private = MUST((char *)mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	fill(shared, 2 * HUGE, 1);
	fill(private, HUGE, 2);
	checkpoint();
	CHECK_FILL(shared, 2 * HUGE, 1);
	CHECK_FILL(private, HUGE, 2);
	CHECK(memcmp(private + HUGE, shared + HUGE, HUGE) == 0, "the file is not behind it");
	shared[HUGE] ^= 1;
	CHECK(private[HUGE] == shared[HUGE], "a page of its own");
}

static void check_segment(const char *memory, uint32_t seed)
{
	CHECK_FILL(memory, HUGE, seed);
	CHECK(is_zero(memory + HUGE, HUGE), "zeros");
	CHECK_FILL(memory + 2 * HUGE, PAGE, seed + 1);
}

/* Segments of System V: one that stays, one that goes with the tree; with a task that has them in part, and looks on. */
CASE(segments)
{
	int ids[2];
	char *memory[2];
	for (int i = 0; i < 2; i++) {
		ids[i] = MUST(shmget(IPC_PRIVATE, 3 * HUGE - 5 * (size_t)i, SHM_HUGETLB | OF_2_MIB | 0640));
		memory[i] = MUST((char *)shmat(ids[i], NULL, 0));
		fill(memory[i], HUGE, 3 * (uint32_t)i);
		fill(memory[i] + 2 * HUGE, PAGE, 3 * (uint32_t)i + 1);
	}
	int ask[2], answer[2];
	char byte = 0;
	MUST(pipe(ask));
	MUST(pipe(answer));
	pid_t child = MUST(fork());
	if (child == 0) {
		close(ask[1]);
		MUST(munmap(memory[1] + HUGE, HUGE));
		MUST((int)write(answer[1], &byte, 1));
		while (read(ask[0], &byte, 1) == 1) {
			memory[0][HUGE] = 7;
			memory[1][2 * HUGE + PAGE] = 8;
			MUST((int)write(answer[1], &byte, 1));
		}
		_exit(0);
	}
	close(ask[0]);
	MUST((int)read(answer[0], &byte, 1));
	MUST(shmctl(ids[1], IPC_RMID, NULL));
	checkpoint();
	check_segment(memory[0], 0);
	check_segment(memory[1], 3);
	MUST((int)write(ask[1], &byte, 1));
	MUST((int)read(answer[0], &byte, 1));
	CHECK(memory[0][HUGE] == 7 && memory[1][2 * HUGE + PAGE] == 8, "not shared");
	struct shmid_ds status;
	MUST(shmctl(ids[1], IPC_STAT, &status));
	CHECK(status.shm_segsz == 3 * HUGE - 5 && status.shm_nattch == 3, "%zu bytes, %lu areas", (size_t)status.shm_segsz,
	      (unsigned long)status.shm_nattch);
	close(ask[1]);
	MUST(waitpid(child, NULL, 0));
	MUST(shmdt(memory[0]));
	MUST(shmdt(memory[1]));
	MUST(shmctl(ids[0], IPC_RMID, NULL));
	CHECK(shmctl(ids[1], IPC_STAT, &status) == -1, "it stays");
}

/* A file of a hugetlbfs that has no name any more. */
CASE(deleted)
{
	MUST(mkdir("huge", 0700));
	MUST(mount("none", "huge", "hugetlbfs", 0, "pagesize=2M"));
	int fd = MUST(open("huge/file", O_CREAT | O_RDWR | O_EXCL, 0600));
	MUST(ftruncate(fd, 4 * HUGE));
	char *memory = MUST((char *)mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, HUGE));
	fill(memory, HUGE, 1);
	fill(memory + HUGE, PAGE, 2);
	MUST(unlink("huge/file"));
	checkpoint();
	CHECK_FILL(memory, HUGE, 1);
	CHECK_FILL(memory + HUGE, PAGE, 2);
	CHECK(is_zero(memory + HUGE + PAGE, HUGE - PAGE), "zeros");
	memory[5] ^= 1;
	char byte = 0;
	CHECK(pread(fd, &byte, 1, HUGE + 5) == 1 && byte == memory[5], "another file");
	struct stat stat;
	MUST(fstat(fd, &stat));
	CHECK(stat.st_size == 4 * HUGE && stat.st_nlink == 0 && stat.st_blksize == HUGE, "%lld bytes", (long long)stat.st_size);
}
