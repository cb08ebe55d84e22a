/* Open files: offsets, flags, what is shared by dup and by fork. */
#include "workload.h"
#include <dirent.h>
#include <sys/resource.h>

static void make_file(const char *name, const char *text)
{
	int fd = MUST(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644));
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static void check_content(const char *name, const char *expected)
{
	char text[256] = "";
	int fd = MUST(open(name, O_RDONLY));
	ssize_t length = MUST(read(fd, text, sizeof(text) - 1));
	text[length] = 0;
	CHECK(strcmp(text, expected) == 0, "%s holds \"%s\" instead of \"%s\"", name, text, expected);
	close(fd);
}

static void check_read(int fd, const char *expected)
{
	char text[64] = "";
	ssize_t got = read(fd, text, strlen(expected));
	CHECK(got == (ssize_t)strlen(expected) && strcmp(text, expected) == 0, "fd %d gives \"%s\", not \"%s\"", fd, text,
	      expected);
}

CASE(regular)
{
	make_file("file", "0123456789abcdefghij");
	make_file("log file", "old\n");
	int reader = MUST(open("file", O_RDONLY));
	int other = MUST(open("file", O_RDONLY));
	int writer = MUST(open("file", O_RDWR | O_NONBLOCK | O_NOATIME));
	int appender = MUST(open("log file", O_WRONLY | O_APPEND));
	int write_only = MUST(open("written", O_WRONLY | O_CREAT, 0200));
	int synchronous = MUST(open("file", O_WRONLY | O_SYNC));
	MUST(lseek(reader, 3, SEEK_SET));
	MUST(lseek(writer, 10, SEEK_SET));
	/* Behind the end of the file. */
	MUST(lseek(write_only, 5, SEEK_SET));
	MUST(write(appender, "one\n", 4));
	checkpoint();
	check_read(reader, "3456");
	check_read(other, "0123");
	MUST(write(writer, "ABC", 3));
	check_content("file", "0123456789ABCdefghij");
	MUST(write(appender, "two\n", 4));
	check_content("log file", "old\none\ntwo\n");
	MUST(write(write_only, "x", 1));
	CHECK(lseek(write_only, 0, SEEK_END) == 6, "the end of a file written behind its end");
	CHECK(read(write_only, (char[1]){ 0 }, 1) == -1 && errno == EBADF, "could read a write-only file");
	CHECK(write(reader, "x", 1) == -1 && errno == EBADF, "could write a read-only file");
	CHECK((fcntl(writer, F_GETFL) & (O_NONBLOCK | O_NOATIME)) == (O_NONBLOCK | O_NOATIME), "flags %#x",
	      fcntl(writer, F_GETFL));
	CHECK((fcntl(synchronous, F_GETFL) & O_SYNC) == O_SYNC, "flags %#x", fcntl(synchronous, F_GETFL));
}

static int shared, duplicate, separate;

static void sharing_child(void *unused)
{
	(void)unused;
	int own = MUST(open("file", O_RDONLY));
	prepared();
	wait_for_go();
	check_read(shared, "23");
	check_read(own, "0123");
}

CASE(descriptions)
{
	make_file("file", "0123456789abcdefghij");
	shared = MUST(open("file", O_RDONLY));
	duplicate = MUST(dup(shared));
	separate = MUST(open("file", O_RDONLY));
	int third = MUST(fcntl(shared, F_DUPFD_CLOEXEC, 100));
	pid_t child = spawn(sharing_child, NULL);
	check_read(shared, "01");
	checkpoint();
	/* What the child reads moves the offset of all who share the description. */
	finish(child);
	check_read(duplicate, "45");
	check_read(third, "67");
	CHECK(lseek(shared, 0, SEEK_CUR) == 8, "the offset is %ld", (long)lseek(shared, 0, SEEK_CUR));
	check_read(separate, "01");
	CHECK((fcntl(third, F_GETFD) & FD_CLOEXEC) && !(fcntl(shared, F_GETFD) & FD_CLOEXEC), "close-on-exec");
	MUST(fcntl(duplicate, F_SETFL, O_NONBLOCK));
	CHECK((fcntl(third, F_GETFL) & O_NONBLOCK) && !(fcntl(separate, F_GETFL) & O_NONBLOCK), "status flags");
}

/* More than 32 bits have, with the low half and the high half different. */
static const off64_t FAR = ((off64_t)5 << 30) + 12345;

static void check_offset(int fd, off64_t expected)
{
	off64_t found = lseek64(fd, 0, SEEK_CUR);
	CHECK(found == expected, "fd %d is at %lld, not %lld", fd, (long long)found, (long long)expected);
}

/* Offsets beyond 4 GiB, in a file that is nearly all hole, and behind its end. */
CASE(far)
{
	int writer = MUST(open("file", O_RDWR | O_CREAT | O_LARGEFILE, 0600));
	CHECK(pwrite64(writer, "0123456789", 10, FAR) == 10, "%s", strerror(errno));
	int reader = MUST(open("file", O_RDONLY | O_LARGEFILE));
	int behind = MUST(open("file", O_RDWR | O_LARGEFILE));
	int appender = MUST(open("file", O_WRONLY | O_APPEND | O_LARGEFILE));
	MUST(lseek64(writer, FAR + 5, SEEK_SET));
	MUST(lseek64(reader, FAR, SEEK_SET));
	MUST(lseek64(behind, FAR + (1LL << 40), SEEK_SET));
	MUST(write(appender, "ab", 2));
	checkpoint();
	check_offset(reader, FAR);
	check_offset(writer, FAR + 5);
	check_offset(behind, FAR + (1LL << 40));
	check_offset(appender, FAR + 12);
	MUST(write(writer, "56", 2));
	MUST(write(appender, "cd", 2));
	check_read(reader, "0123456789abcd");
	check_offset(reader, FAR + 14);
}

enum { COMMON = 40 };

/* Waits until another task has moved the offset here. */
static void await_offset(off64_t offset)
{
	while (lseek64(COMMON, 0, SEEK_CUR) != offset)
		sched_yield();
}

/* Fd COMMON is a description of its parent, of the other ABI. */
CASE(other_reader)
{
	prepared();
	wait_for_go();
	check_read(COMMON, "2345");
	await_offset(FAR + 8);
	check_read(COMMON, "89");
	MUST(fcntl(COMMON, F_SETFL, O_APPEND));
}

/* A file that tasks of both ABIs read by turns, beyond 4 GiB. */
CASE(between_abis)
{
	int file = MUST(open("file", O_RDWR | O_CREAT | O_LARGEFILE, 0600));
	CHECK(pwrite64(file, "0123456789", 10, FAR) == 10, "%s", strerror(errno));
	MUST(lseek64(file, FAR, SEEK_SET));
	MUST(dup2(file, COMMON));
	close(file);
	pid_t child = spawn_abi(other_abi, "other_reader", NULL);
	check_read(COMMON, "01");
	checkpoint();
	MUST(kill(child, SIGUSR1));
	await_offset(FAR + 6);
	check_read(COMMON, "67");
	reap(child);
	check_offset(COMMON, FAR + 10);
	CHECK(fcntl(COMMON, F_GETFL) & O_APPEND, "flags %#x", fcntl(COMMON, F_GETFL));
}

/* What exec closes: the child lists what it has. */
CASE(listed)
{
	prepared();
	CHECK(fcntl(50, F_GETFD) == 0, "fd 50 was to stay open");
	CHECK(fcntl(51, F_GETFD) == -1, "fd 51 was to be closed");
}

CASE(close_on_exec)
{
	int fd = MUST(open("/dev/null", O_RDONLY));
	MUST(dup2(fd, 50));
	MUST(dup3(fd, 51, O_CLOEXEC));
	checkpoint();
	CHECK(fcntl(50, F_GETFD) == 0 && fcntl(51, F_GETFD) == FD_CLOEXEC, "flags %d %d", fcntl(50, F_GETFD),
	      fcntl(51, F_GETFD));
	reap(spawn_abi(this_abi, "listed", NULL));
	reap(spawn_abi(other_abi, "listed", NULL));
}

CASE(numbers)
{
	struct rlimit limit;
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	int last = (int)limit.rlim_cur - 1;
	int fd = MUST(open("/dev/zero", O_RDWR));
	MUST(dup2(fd, 999));
	MUST(dup2(fd, last));
	checkpoint();
	char byte = 1;
	CHECK(read(999, &byte, 1) == 1 && byte == 0, "fd 999");
	byte = 1;
	CHECK(read(last, &byte, 1) == 1 && byte == 0, "fd %d", last);
	CHECK(open("/dev/null", O_RDONLY) == fd + 1, "the next free descriptor");
}

CASE(many)
{
	enum { FILES = 500 };
	char name[32], text[32];
	int fds[FILES];
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "many-%d", i);
		snprintf(text, sizeof(text), "%08d", i);
		make_file(name, text);
		fds[i] = MUST(open(name, O_RDWR));
		MUST(lseek(fds[i], i % 8, SEEK_SET));
	}
	checkpoint();
	for (int i = 0; i < FILES; i++) {
		snprintf(text, sizeof(text), "%08d", i);
		check_read(fds[i], text + i % 8);
	}
}

enum { CROSSED = 300 };

/* As its parent has them, but the other way round, and every third of them a second time. */
static void crossing_child(void *first_fd)
{
	int first = *(int *)first_fd;
	char name[32];
	for (int i = 0; i < CROSSED; i++)
		MUST(dup2(first + i, 2000 + i));
	for (int i = 0; i < CROSSED; i++)
		MUST(dup2(2000 + CROSSED - 1 - i, first + i));
	for (int i = 0; i < CROSSED; i++)
		close(2000 + i);
	for (int i = 0; i < CROSSED; i += 3)
		MUST(dup2(first + i, first + CROSSED + i));
	prepared();
	wait_for_go();
	for (int i = 0; i < CROSSED; i++) {
		snprintf(name, sizeof(name), "%08d", CROSSED - 1 - i);
		check_read(first + i, name);
		if (i % 3 == 0)
			CHECK(lseek(first + CROSSED + i, 0, SEEK_CUR) == 8, "fd %d is not the same as %d",
			      first + CROSSED + i, first + i);
		else
			CHECK(fcntl(first + CROSSED + i, F_GETFD) == -1, "fd %d is open", first + CROSSED + i);
	}
}

CASE(crossed)
{
	char name[32], text[32];
	int first = -1;
	for (int i = 0; i < CROSSED; i++) {
		snprintf(name, sizeof(name), "crossed-%d", i);
		snprintf(text, sizeof(text), "%08d", i);
		make_file(name, text);
		int fd = MUST(open(name, O_RDONLY));
		first = i == 0 ? fd : first;
	}
	pid_t child = spawn(crossing_child, &first);
	checkpoint();
	for (int i = 0; i < CROSSED; i++)
		CHECK(lseek(first + i, 0, SEEK_CUR) == 0, "file %d", i);
	finish(child);
	for (int i = 0; i < CROSSED; i++)
		CHECK(lseek(first + i, 0, SEEK_CUR) == 8, "file %d is not the one of the child", i);
}

/* How many there are to be, or as the argument says (to measure what one costs). */
static int count_of(int usual)
{
	return case_args[0] != NULL ? atoi(case_args[0]) : usual;
}

/* Each description has four descriptors, far from each other. */
CASE(thousands)
{
	int count = count_of(10000), files = count / 4;
	struct rlimit limit;
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max;
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	make_file("file", "0123456789abcdefghij");
	int first = MUST(open("file", O_RDONLY));
	for (int i = 1; i < count; i++)
		MUST(i < files ? open("file", O_RDONLY) : dup(first + i % files));
	for (int i = 0; i < files; i++)
		MUST(lseek(first + i, i % 16, SEEK_SET));
	checkpoint();
	char expected[2] = "";
	for (int i = 0; i < files; i++)
		for (int nth = 0; nth < 4; nth++) {
			expected[0] = "0123456789abcdefghij"[i % 16 + nth];
			check_read(first + i + nth * files, expected);
		}
}

/* Shared by all: how many are there, and how often each part of the file was read. */
struct tally {
	int there;
	int read[];
};

static void one_of_many(struct tally *tally, int count)
{
	__atomic_add_fetch(&tally->there, 1, __ATOMIC_SEQ_CST);
	wait_for_go();
	char text[5] = "";
	MUST(read(shared, text, 4));
	int number = atoi(text);
	CHECK(number >= 0 && number < count, "read \"%s\"", text);
	if (number >= 0 && number < count)
		__atomic_add_fetch(&tally->read[number], 1, __ATOMIC_SEQ_CST);
}

/* A file of which every task reads the next part, all at the same time. */
CASE(sharers)
{
	int count = count_of(1000);
	size_t length = sizeof(struct tally) + sizeof(int) * (size_t)count;
	void *memory = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	struct tally *tally = memory;
	pid_t *children = malloc(sizeof(pid_t) * (size_t)count);
	int writer = MUST(open("file", O_WRONLY | O_CREAT | O_TRUNC, 0600));
	shared = MUST(open("file", O_RDONLY));
	for (int i = 0; i < count; i++) {
		MUST(dprintf(writer, "%04d", i));
		children[i] = MUST(fork());
		if (children[i] == 0) {
			one_of_many(tally, count);
			_exit(failed() ? 1 : 0);
		}
	}
	await(&tally->there, count);
	checkpoint();
	for (int i = 0; i < count; i++)
		MUST(kill(children[i], SIGUSR1));
	for (int i = 0; i < count; i++)
		reap(children[i]);
	for (int i = 0; i < count; i++)
		CHECK(tally->read[i] == 1, "part %d was read %d times", i, tally->read[i]);
	CHECK(lseek(shared, 0, SEEK_CUR) == 4 * count, "the offset is %ld", (long)lseek(shared, 0, SEEK_CUR));
	free(children);
}

CASE(directory)
{
	enum { ENTRIES = 40 };
	bool seen[ENTRIES] = { false };
	char name[32];
	MUST(mkdir("dir", 0755));
	for (int i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof(name), "dir/entry-%d", i);
		make_file(name, "");
	}
	DIR *dir = opendir("dir");
	CHECK(dir != NULL, "%s", strerror(errno));
	struct dirent *entry;
	int count = 0;
	long half = 0;
	while (count < ENTRIES / 2 && (entry = readdir(dir)) != NULL) {
		if (sscanf(entry->d_name, "entry-%d", &(int){ 0 }) != 1)
			continue;
		seen[atoi(entry->d_name + 6)] = true;
		count++;
		half = telldir(dir);
	}
	/* The library has read on; go back to where the program stands, in the kernel as well. */
	seekdir(dir, half);
	int here = MUST(open(".", O_RDONLY | O_DIRECTORY));
	checkpoint();
	while ((entry = readdir(dir)) != NULL) {
		if (sscanf(entry->d_name, "entry-%d", &(int){ 0 }) != 1)
			continue;
		int i = atoi(entry->d_name + 6);
		CHECK(!seen[i], "%s came twice", entry->d_name);
		seen[i] = true;
	}
	for (int i = 0; i < ENTRIES; i++)
		CHECK(seen[i], "entry-%d never came", i);
	int fd = MUST(openat(here, "dir/entry-3", O_RDONLY));
	close(fd);
	MUST(fchdir(dirfd(dir)));
	CHECK(access("entry-5", F_OK) == 0, "fchdir");
}

CASE(devices)
{
	static const char *const names[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom" };
	int fds[LENGTH(names)];
	char bytes[16];
	for (size_t i = 0; i < LENGTH(names); i++)
		fds[i] = MUST(open(names[i], O_RDWR | (i % 2 ? O_CLOEXEC : 0)));
	checkpoint();
	for (size_t i = 0; i < LENGTH(names); i++) {
		struct stat status, wanted;
		MUST(fstat(fds[i], &status));
		MUST(stat(names[i], &wanted));
		CHECK(S_ISCHR(status.st_mode) && status.st_rdev == wanted.st_rdev, "%s is another device", names[i]);
	}
	CHECK(read(fds[0], bytes, 16) == 0, "null");
	CHECK(read(fds[1], bytes, 16) == 16 && bytes[15] == 0, "zero");
	CHECK(write(fds[2], bytes, 16) == -1 && errno == ENOSPC, "full");
	CHECK(read(fds[4], bytes, 16) == 16, "urandom");
}

/* stdin, stdout and stderr on other files than at the start, and one of them closed. */
CASE(standard)
{
	make_file("in", "input");
	int in = MUST(open("in", O_RDONLY));
	MUST(dup2(in, STDIN_FILENO));
	close(in);
	close(STDERR_FILENO);
	checkpoint();
	check_read(STDIN_FILENO, "input");
	CHECK(fcntl(STDERR_FILENO, F_GETFD) == -1, "stderr is open");
}
