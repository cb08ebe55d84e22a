/* Every way a file can be named. */
#define _FILE_OFFSET_BITS 64
#include "workload.h"
#include <dirent.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static void make_file(const char *name, const char *text)
{
	int fd = MUST(open(name, O_WRONLY | O_CREAT | O_EXCL, 0644));
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write %s: %s", name, strerror(errno));
	close(fd);
}

static void check_text(int fd, off_t offset, const char *expected)
{
	char text[64] = "";
	ssize_t got = pread(fd, text, sizeof(text) - 1, offset);
	CHECK(got == (ssize_t)strlen(expected) && strcmp(text, expected) == 0, "fd %d gives \"%s\", not \"%s\"", fd, text,
	      expected);
}

static struct stat look(int fd)
{
	struct stat found;
	MUST(fstat(fd, &found));
	return found;
}

static bool is_file(int fd, const char *name)
{
	struct stat found = look(fd), wanted;
	MUST(lstat(name, &wanted));
	return found.st_dev == wanted.st_dev && found.st_ino == wanted.st_ino;
}

/* O_PATH of all kinds: by name only, the link itself, what one has no right to read. */
CASE(path_only)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "socket" };
	static const char *const names[] = { "file", "dir", "link", "socket", "fifo", "/dev/zero", "/dev/console", "through" };
	int fds[LENGTH(names)];
	int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	make_file("file", "text");
	MUST(chmod("file", 0));
	MUST(mkdir("dir", 0700));
	make_file("dir/inside", "inside");
	MUST(symlink("file", "link"));
	MUST(symlink("dir", "through"));
	MUST(mkfifo("fifo", 0600));
	MUST(bind(listener, (struct sockaddr *)&address, sizeof(address)));
	MUST(listen(listener, 1));
	for (size_t i = 0; i < LENGTH(names); i++)
		fds[i] = MUST(open(names[i], O_PATH | (i == 2 || i == 7 ? O_NOFOLLOW : 0) | (i == 0 ? O_CLOEXEC : 0)));
	char path[64], target[64] = "";
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[2]);
	int by_number = MUST(open(path, O_PATH));
	int followed = MUST(open("through", O_PATH | O_DIRECTORY));
	int program = MUST(open(case_argv[0], O_PATH));
	checkpoint();
	for (size_t i = 0; i < LENGTH(names); i++) {
		CHECK(is_file(fds[i], names[i]), "%s is another file", names[i]);
		CHECK(read(fds[i], target, 1) == -1 && errno == EBADF, "%s can be read", names[i]);
		CHECK(fcntl(fds[i], F_GETFL) & O_PATH, "%s has flags %#x", names[i], fcntl(fds[i], F_GETFL));
	}
	CHECK(readlinkat(fds[2], "", target, sizeof(target)) == 4 && strcmp(target, "file") == 0, "link leads to %s", target);
	CHECK(is_file(by_number, "link") && !(fcntl(by_number, F_GETFL) & O_NOFOLLOW), "the link by a number");
	CHECK(is_file(followed, "dir"), "the directory behind a link");
	check_text(MUST(openat(fds[1], "inside", O_RDONLY)), 0, "inside");
	pid_t child = MUST(fork());
	if (child == 0) {
		char *arguments[] = { "names", "nothing", NULL };
		execveat(program, "", arguments, environ, AT_EMPTY_PATH);
		_exit(99);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) != 99, "execveat: %#x", status);
}

/* The same of what has no name any more. */
CASE(path_only_deleted)
{
	make_file("file", "text");
	MUST(mkdir("dir", 0700));
	int file = MUST(open("file", O_PATH));
	int dir = MUST(open("dir", O_PATH | O_DIRECTORY));
	MUST(unlink("file"));
	MUST(rmdir("dir"));
	char path[64];
	checkpoint();
	CHECK(look(file).st_size == 4 && look(file).st_nlink == 0, "the file");
	CHECK(S_ISDIR(look(dir).st_mode) && look(dir).st_nlink == 0, "the directory");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	check_text(MUST(open(path, O_RDONLY)), 0, "text");
	CHECK(openat(dir, "new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file can be made in it");
}

static ssize_t read_whole(const char *name, char *text, size_t size)
{
	int fd = MUST(open(name, O_RDONLY));
	ssize_t length = 0;
	for (ssize_t got; (got = MUST(read(fd, text + length, size - (size_t)length))) > 0;)
		length += got;
	close(fd);
	return length;
}

/* Entries of procfs and sysfs: reading goes on where it stood; directories too. */
CASE(views)
{
	static const char *const names[] = { "/proc/version", "/proc/filesystems", "/proc/devices", "/proc/sys/kernel/ostype",
					     "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/notes" };
	int fds[LENGTH(names)];
	static char whole[1 << 16], part[1 << 16];
	for (size_t i = 0; i < LENGTH(names); i++) {
		fds[i] = MUST(open(names[i], O_RDONLY));
		CHECK(read(fds[i], part, 5) == 5, "%s: %s", names[i], strerror(errno));
	}
	int writable = MUST(open("/proc/sys/kernel/hostname", O_RDWR));
	int proc = MUST(open("/proc", O_PATH | O_DIRECTORY));
	int link = MUST(open("/proc/self", O_PATH | O_NOFOLLOW));
	DIR *dirs[] = { opendir("/proc/sys/kernel"), opendir("/sys/kernel") };
	int counts[2] = { 0, 0 };
	for (int i = 0; i < 2; i++) {
		for (; counts[i] < 5; counts[i]++)
			CHECK(readdir(dirs[i]) != NULL, "directory %d", i);
		seekdir(dirs[i], telldir(dirs[i]));
	}
	MUST(chdir("/proc/sys"));
	checkpoint();
	for (size_t i = 0; i < LENGTH(names); i++) {
		ssize_t length = read_whole(names[i], whole, sizeof(whole)), have = 0;
		CHECK(length > 5, "%s has %zd bytes", names[i], length);
		for (ssize_t got; (got = MUST(read(fds[i], part + have, sizeof(part) - (size_t)have))) > 0;)
			have += got;
		CHECK(have == length - 5 && memcmp(part, whole + 5, (size_t)have) == 0, "%s goes on with %zd of %zd bytes",
		      names[i], have, length - 5);
	}
	ssize_t length = read_whole("/proc/sys/kernel/hostname", whole, sizeof(whole));
	CHECK(pwrite(writable, whole, (size_t)length, 0) == length, "write: %s", strerror(errno));
	CHECK(faccessat(proc, "version", R_OK, 0) == 0 && is_file(link, "/proc/self"), "/proc by descriptors");
	for (int i = 0; i < 2; i++) {
		static const char *const paths[] = { "/proc/sys/kernel", "/sys/kernel" };
		DIR *again = opendir(paths[i]);
		int all = 0;
		while (readdir(again) != NULL)
			all++;
		while (readdir(dirs[i]) != NULL)
			counts[i]++;
		CHECK(counts[i] == all, "%s: %d entries, has %d", paths[i], counts[i], all);
	}
	CHECK(access("kernel/ostype", R_OK) == 0, "the current directory");
}

/* A block device that holds the file, by a node of its own. */
static void make_disk(int control, const char *file, const char *name)
{
	struct loop_config config = { .fd = (uint32_t)MUST(open(file, O_RDWR)) };
	for (;;) {
		int number = MUST(ioctl(control, LOOP_CTL_GET_FREE));
		MUST(mknod(name, S_IFBLK | 0600, makedev(7, number)));
		int disk = MUST(open(name, O_RDWR));
		int configured = ioctl(disk, LOOP_CONFIGURE, &config);
		close(disk);
		if (configured == 0)
			break;
		/* Another test was faster. */
		CHECK(errno == EBUSY, "LOOP_CONFIGURE: %s", strerror(errno));
		MUST(unlink(name));
	}
	close((int)config.fd);
}

/* Device nodes without a state of their own. */
CASE(devices)
{
	MUST(mknod("control", S_IFCHR | 0600, makedev(10, 237)));
	int control = MUST(open("control", O_RDWR));
	make_file("disk-file", "");
	MUST(truncate("disk-file", 1 << 20));
	make_disk(control, "disk-file", "disk");
	int disk = MUST(open("disk", O_RDWR));
	CHECK(pwrite(disk, "sector", 6, 512) == 6, "write: %s", strerror(errno));
	int log = MUST(open("/dev/kmsg", O_WRONLY | O_APPEND));
	MUST(lseek(disk, 512, SEEK_SET));
	checkpoint();
	char text[7] = "";
	CHECK(S_ISBLK(look(disk).st_mode) && is_file(disk, "disk"), "another disk");
	CHECK(lseek(disk, 0, SEEK_CUR) == 512, "offset %ld", (long)lseek(disk, 0, SEEK_CUR));
	CHECK(read(disk, text, 6) == 6 && strcmp(text, "sector") == 0, "it holds \"%s\"", text);
	CHECK(ioctl(disk, LOOP_CLR_FD) == 0, "LOOP_CLR_FD: %s", strerror(errno));
	CHECK(S_ISCHR(look(control).st_mode) && look(control).st_rdev == makedev(10, 237), "another device");
	CHECK(write(log, "", 0) == 0, "write: %s", strerror(errno));
}
