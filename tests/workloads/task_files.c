/* Open files of /proc/PID, and those that stand for namespaces. */
#define _FILE_OFFSET_BITS 64
#include "workload.h"
#include <dirent.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>

static int open_of(pid_t pid, const char *name, int flags)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return MUST(open(path, flags));
}

static char text[2][1 << 16];

/* Reads on to the end, from behind what is there already. */
static size_t read_rest(int fd, char *buffer, size_t have)
{
	for (;;) {
		ssize_t got = MUST(read(fd, buffer + have, sizeof(text[0]) - 1 - have));
		if (got == 0)
			break;
		have += (size_t)got;
	}
	buffer[have] = 0;
	return have;
}

/* The value of a line of status. */
static long number_in(int fd, const char *name)
{
	MUST(lseek(fd, 0, SEEK_SET));
	read_rest(fd, text[0], 0);
	const char *line = strstr(text[0], name);
	CHECK(line != NULL, "fd %d shows no %s", fd, name);
	return line ? atol(line + strlen(name)) : -1;
}

/* In another mount of procfs, as trees of programs of their own have one. */
CASE(elsewhere)
{
	MUST(mkdir("proc", 0755));
	MUST(mount("proc", "proc", "proc", 0, NULL));
	int status = MUST(open("proc/self/status", O_RDONLY)), version = MUST(open("proc/version", O_RDONLY));
	int dir = MUST(open("proc/thread-self/fdinfo", O_RDONLY | O_DIRECTORY)), root = MUST(open("proc", O_PATH));
	int usual = MUST(open("/proc/self/status", O_RDONLY));
	MUST(read(version, text[0], 3));
	checkpoint();
	CHECK(number_in(status, "\nPid:") == getpid() && number_in(usual, "\nPid:") == getpid(), "of another task");
	char name[16];
	snprintf(name, sizeof(name), "%d", version);
	int info = MUST(openat(dir, name, O_RDONLY)), again = MUST(openat(root, "version", O_RDONLY));
	CHECK(number_in(info, "pos:") == 3, "of another file");
	size_t whole = read_rest(again, text[1], 0), rest = read_rest(version, text[0], 0);
	CHECK(rest == whole - 3 && memcmp(text[0], text[1] + 3, rest) == 0, "goes on with %s", text[0]);
}

/* Texts that were read in part, at the start, in a line, and to the end; and directories. */
CASE(own)
{
	int maps = MUST(open("/proc/self/maps", O_RDONLY)), status = MUST(open("/proc/self/status", O_RDONLY));
	int limits = MUST(open("/proc/self/limits", O_RDONLY | O_CLOEXEC)), fresh = MUST(open("/proc/thread-self/stat", O_RDONLY));
	int event = MUST(eventfd(3, 0));
	char name[32];
	snprintf(name, sizeof(name), "fdinfo/%d", event);
	int info = open_of(getpid(), name, O_RDONLY), own_dir = MUST(open("/proc/self", O_RDONLY | O_DIRECTORY));
	snprintf(name, sizeof(name), "fdinfo/%d", info);
	int info_of_info = open_of(getpid(), name, O_RDONLY);
	int comm = MUST(open("/proc/self/comm", O_RDWR | O_APPEND)), adjust = MUST(open("/proc/self/oom_score_adj", O_WRONLY));
	size_t have = (size_t)MUST(read(maps, text[1], 777));
	MUST(read(limits, text[0], 1));
	int to_end = MUST(open("/proc/self/limits", O_RDONLY));
	read_rest(to_end, text[0], 0);
	long pid = number_in(status, "\nPid:");
	MUST(flock(limits, LOCK_EX));
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 4 };
	MUST(fcntl(status, F_SETLK, &lock));
	checkpoint();
	int second = MUST(open("/proc/self/limits", O_RDONLY));
	CHECK(flock(second, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "no lock any more");
	MUST(close(second));
	CHECK(MUST(lseek(maps, 0, SEEK_CUR)) == 777, "at %lld", (long long)lseek(maps, 0, SEEK_CUR));
	size_t whole = read_rest(maps, text[1], have);
	int again = MUST(open("/proc/self/maps", O_RDONLY));
	CHECK(read_rest(again, text[0], 0) == whole && memcmp(text[0], text[1], whole) == 0, "now:\n%s\nread in two parts:\n%s",
	      text[0], text[1]);
	CHECK(MUST(read(to_end, text[0], 1)) == 0, "there is more");
	CHECK(number_in(status, "\nPid:") == pid && pid == getpid(), "of another task");
	CHECK(MUST(read(limits, text[0], 4)) == 4 && memcmp(text[0], "imit", 4) == 0, "goes on with %.4s", text[0]);
	read_rest(fresh, text[0], 0);
	CHECK(atoi(text[0]) == getpid(), "stat of %s", text[0]);
	CHECK(number_in(info, "eventfd-count:") == 3, "of another file");
	CHECK(number_in(info_of_info, "pos:") > 0, "of another file");
	MUST(write(comm, "renamed", 7));
	int by_dir = MUST(openat(own_dir, "comm", O_RDONLY));
	CHECK(read_rest(by_dir, text[0], 0) == 8 && memcmp(text[0], "renamed\n", 8) == 0, "comm is %s", text[0]);
	MUST(write(adjust, "500", 3));
	int adjusted = MUST(open("/proc/self/oom_score_adj", O_RDONLY));
	read_rest(adjusted, text[0], 0);
	CHECK(atoi(text[0]) == 500, "oom_score_adj is %s", text[0]);
}

static const char secret[] = "what only memory holds";

/* Memory at any place, those that are negative numbers as offsets included. */
CASE(memory)
{
	char *memory = map_anonymous(PAGE);
	strcpy(memory, secret);
	int low = MUST(open("/proc/self/mem", O_RDWR)), high = MUST(open("/proc/self/mem", O_RDONLY));
	int pages = MUST(open("/proc/self/pagemap", O_RDONLY)), auxv = MUST(open("/proc/self/auxv", O_RDONLY));
	int environment = MUST(open("/proc/self/environ", O_RDONLY)), smaps = MUST(open("/proc/self/smaps", O_RDONLY));
	const off_t vsyscall = (off_t)0xffffffffff600000ull, at = (off_t)(uintptr_t)memory;
	CHECK(lseek(high, vsyscall, SEEK_SET) == vsyscall, "cannot go there");
	MUST(lseek(low, at + 5, SEEK_SET));
	MUST(lseek(pages, at / (off_t)PAGE * 8, SEEK_SET));
	checkpoint();
	CHECK(lseek(high, 0, SEEK_CUR) == vsyscall, "at %llx", (long long)lseek(high, 0, SEEK_CUR));
	CHECK(MUST(read(low, text[0], 4)) == 4 && memcmp(text[0], "only", 4) == 0, "memory holds %.4s", text[0]);
	MUST(write(low, "!", 1));
	CHECK(memory[9] == '!', "written elsewhere");
	uint64_t page = 0;
	CHECK(MUST(read(pages, &page, 8)) == 8 && page >> 63 == 1, "no page at all");
	CHECK(read_rest(auxv, text[0], 0) > 100, "no vector");
	CHECK(read_rest(environment, text[0], 0) > 5, "no environment");
	CHECK(read_rest(smaps, text[0], 0) > 1000, "no areas");
}

/* Positions in directories: what was not listed yet follows. */
CASE(directories)
{
	DIR *dirs[3] = { opendir("/proc/self/fd"), opendir("/proc/self/fdinfo"), opendir("/proc/self/task") };
	int files[100], base = dirfd(dirs[0]);
	for (size_t i = 0; i < LENGTH(files); i++)
		files[i] = MUST(open("/dev/null", O_RDONLY));
	/* Only so many entries at a time as fit here. */
	static char room[200];
	long got = MUST(syscall(SYS_getdents64, base, room, sizeof(room)));
	CHECK(got > 0, "an empty directory");
	off_t at = MUST(lseek(base, 0, SEEK_CUR));
	checkpoint();
	CHECK(MUST(lseek(base, 0, SEEK_CUR)) == at, "at %lld, not %lld", (long long)lseek(base, 0, SEEK_CUR), (long long)at);
	int count = 0, expected = (int)LENGTH(files) + 6 + 2;
	struct entry {
		uint64_t inode, next;
		uint16_t length;
	} *entry;
	MUST(lseek(base, 0, SEEK_SET));
	while ((got = MUST(syscall(SYS_getdents64, base, room, sizeof(room)))) > 0)
		for (long offset = 0; offset < got; offset += entry->length, count++)
			entry = (struct entry *)(void *)(room + offset);
	CHECK(count == expected, "%d entries, not %d", count, expected);
	int threads = 0;
	while (readdir(dirs[2]) != NULL)
		threads++;
	CHECK(threads == 3, "%d entries in task", threads);
}

static int of_parent, shared_status;

static void child_with_some(void *unused)
{
	(void)unused;
	int memory = open_of(getppid(), "mem", O_RDONLY), own = MUST(open("/proc/self/status", O_RDONLY));
	prepared();
	wait_for_go();
	char found[sizeof(secret)];
	CHECK(pread(memory, found, sizeof(found), (off_t)(uintptr_t)secret) == (ssize_t)sizeof(found) && strcmp(found, secret) == 0,
	      "not the memory of the parent");
	CHECK(number_in(own, "\nPid:") == getpid(), "of another task");
	CHECK(number_in(of_parent, "\nPid:") == getppid(), "of another task");
	CHECK(syscall(SYS_kcmp, getpid(), getppid(), 0, shared_status, shared_status) == 0, "no longer one description");
}

/* Of parents, children and zombies, shared by fork and dup. */
CASE(relatives)
{
	of_parent = MUST(open("/proc/self/status", O_RDONLY));
	shared_status = MUST(dup3(of_parent, 77, O_CLOEXEC));
	pid_t child = spawn(child_with_some, NULL), zombie = MUST(fork());
	if (zombie == 0)
		_exit(9);
	await_state(zombie, 'Z');
	int of_child = open_of(child, "status", O_RDONLY), of_zombie = open_of(zombie, "stat", O_RDONLY);
	int children = open_of(child, "", O_RDONLY | O_DIRECTORY);
	checkpoint();
	CHECK(number_in(of_child, "\nPPid:") == getpid(), "of another task");
	read_rest(of_zombie, text[0], 0);
	CHECK(atoi(text[0]) == zombie && strstr(text[0], ") Z ") != NULL, "stat: %s", text[0]);
	MUST(waitpid(zombie, NULL, 0));
	finish(child);
	MUST(lseek(of_child, 0, SEEK_SET));
	CHECK(read(of_child, text[0], 1) == -1 && errno == ESRCH, "a task that is gone");
	CHECK(openat(children, "status", O_RDONLY) == -1, "a task that is gone");
}

static volatile pid_t tid;
static volatile bool over;

static void *thread(void *unused)
{
	(void)unused;
	tid = thread_id();
	while (!over)
		usleep(1000);
	return NULL;
}

CASE(threads)
{
	pthread_t other;
	char name[32];
	MUST0(pthread_create(&other, NULL, thread, NULL));
	while (tid == 0)
		usleep(1000);
	snprintf(name, sizeof(name), "task/%d/comm", tid);
	int comm = open_of(getpid(), name, O_RDWR);
	snprintf(name, sizeof(name), "task/%d", tid);
	int dir = open_of(getpid(), name, O_RDONLY | O_DIRECTORY), direct = open_of(tid, "status", O_RDONLY);
	snprintf(name, sizeof(name), "task/%d/maps", tid);
	int maps = open_of(getpid(), name, O_RDONLY);
	checkpoint();
	MUST(write(comm, "thread", 6));
	int by_dir = MUST(openat(dir, "comm", O_RDONLY));
	CHECK(read_rest(by_dir, text[0], 0) == 7 && memcmp(text[0], "thread\n", 7) == 0, "comm is %s", text[0]);
	CHECK(number_in(direct, "\nPid:") == tid && number_in(direct, "\nTgid:") == getpid(), "of another thread");
	CHECK(read_rest(maps, text[0], 0) > 500, "no areas");
	over = true;
	MUST0(pthread_join(other, NULL));
	/* It is joined a moment before it is gone. */
	for (int gone; (gone = openat(dir, "comm", O_RDONLY)) != -1; close(gone))
		sched_yield();
}

/* The other side of between_abis. */
CASE(other_side)
{
	int given = atoi(case_args[0]), own = MUST(open("/proc/self/maps", O_RDONLY)), parent = open_of(getppid(), "maps", O_RDONLY);
	size_t have = (size_t)MUST(read(parent, text[1], 100));
	prepared();
	wait_for_go();
	CHECK(number_in(given, "\nPid:") == getppid(), "of another task");
	CHECK(read_rest(own, text[0], 0) > 500, "no areas");
	int now = open_of(getppid(), "maps", O_RDONLY);
	size_t whole = read_rest(parent, text[1], have);
	CHECK(read_rest(now, text[0], 0) == whole && memcmp(text[0], text[1], whole) == 0, "now:\n%s\nin two parts:\n%s", text[0],
	      text[1]);
}

CASE(between_abis)
{
	char number[16];
	int status = MUST(open("/proc/self/status", O_RDONLY));
	snprintf(number, sizeof(number), "%d", status);
	pid_t child = spawn_abi(other_abi, "other_side", number);
	int maps = open_of(child, "maps", O_RDONLY);
	checkpoint();
	CHECK(read_rest(maps, text[0], 0) > 500 && strstr(text[0], "/task_files") != NULL, "areas of another:\n%s", text[0]);
	finish(child);
}

CASE(namespaces)
{
	static const char *const names[] = { "mnt", "pid", "pid_for_children", "net", "ipc", "uts", "user", "cgroup", "time" };
	int fds[LENGTH(names)];
	ino_t inodes[LENGTH(names)];
	struct stat shown;
	for (size_t i = 0; i < LENGTH(names); i++) {
		char path[64];
		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		fds[i] = MUST(open(path, O_RDONLY | (i % 2 ? O_CLOEXEC : 0)));
		MUST(fstat(fds[i], &shown));
		inodes[i] = shown.st_ino;
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(names); i++) {
		MUST(fstat(fds[i], &shown));
		CHECK(shown.st_ino == inodes[i], "%s: another one", names[i]);
	}
	CHECK(setns(fds[3], CLONE_NEWNET) == 0 && setns(fds[5], 0) == 0, "setns: %s", strerror(errno));
}
