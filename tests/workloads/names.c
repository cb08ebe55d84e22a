/* Every way a file can be named. */
#define _FILE_OFFSET_BITS 64
#include "workload.h"
#include <dirent.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
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

/* One that the task has for itself. */
CASE(claimed)
{
	int control = MUST(open("/dev/loop-control", O_RDWR));
	make_file("disk-file", "");
	MUST(truncate("disk-file", 1 << 20));
	make_disk(control, "disk-file", "disk");
	int disk = MUST(open("disk", O_RDWR | O_EXCL));
	printf("NAME /disk): somebody has this block device for himself (O_EXCL, or it is mounted)\n");
	printf("NAME /fuse): file systems of a program (/dev/fuse) are not supported\n");
	MUST(mknod("fuse", S_IFCHR | 0600, makedev(10, 229)));
	int fuse = open("fuse", O_RDWR);
	CHECK(fuse >= 0, "fuse: %s", strerror(errno));
	fflush(stdout);
	checkpoint();
	CHECK(ioctl(disk, LOOP_CLR_FD) == 0, "LOOP_CLR_FD: %s", strerror(errno));
}

static char *link_of(int fd)
{
	static char target[8192];
	char path[32];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ssize_t length = MUST(readlink(path, target, sizeof(target) - 1));
	target[length] = 0;
	return target;
}

static bool ends(const char *text, const char *end)
{
	return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

/* A file open by several descriptions and mapped, whose name is gone while another one leads to it. */
struct used {
	int reader, appender, path_only;
	char *shared, *private;
};

static struct used use(const char *name)
{
	struct used used = { .reader = MUST(open(name, O_RDONLY | O_NOFOLLOW)), .appender = MUST(open(name, O_RDWR | O_APPEND)),
			     .path_only = MUST(open(name, O_PATH)) };
	used.shared = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, used.appender, 0));
	used.private = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, used.reader, 0));
	used.private[1] = 'E';
	MUST(lseek(used.reader, 2, SEEK_SET));
	return used;
}

static void check_used(struct used used, const char *other, const char *gone)
{
	CHECK(is_file(used.reader, other) && is_file(used.appender, other) && is_file(used.path_only, other),
	      "%s is another file", other);
	CHECK(look(used.reader).st_nlink == 1, "it has %lu names", (unsigned long)look(used.reader).st_nlink);
	CHECK(ends(link_of(used.reader), gone), "the link is %s", link_of(used.reader));
	CHECK(access(gone, F_OK) == -1, "%s is there", gone);
	used.shared[0] = 'T';
	CHECK(used.private[1] == 'E', "the private mapping");
	CHECK(write(used.appender, "!", 1) == 1, "append: %s", strerror(errno));
	check_text(used.reader, 0, "Text!");
	CHECK(lseek(used.reader, 0, SEEK_CUR) == 2, "the offset");
}

CASE(other_name)
{
	make_file("gone", "text");
	MUST(link("gone", "other"));
	struct used used = use("gone");
	MUST(unlink("gone"));
	checkpoint();
	check_used(used, "other", "gone (deleted)");
}

/* The old name is that of another file by now. */
CASE(replaced)
{
	make_file("name", "text");
	make_file("new", "another");
	MUST(link("name", "other"));
	struct used used = use("name");
	MUST(rename("new", "name"));
	checkpoint();
	check_used(used, "other", " (deleted)");
	check_text(MUST(open("name", O_RDONLY)), 0, "another");
}

/* Its other name is in another directory. */
CASE(elsewhere)
{
	MUST(mkdir("here", 0755));
	MUST(mkdir("there", 0755));
	make_file("here/gone", "text");
	MUST(link("here/gone", "there/other"));
	struct used used = use("here/gone");
	MUST(unlink("here/gone"));
	checkpoint();
	check_used(used, "there/other", "here/gone (deleted)");
	CHECK(rmdir("here") == 0, "something is left beside it: %s", strerror(errno));
}

/* The names in /proc follow a file that is renamed, and a directory above it. */
CASE(renamed)
{
	char path[4096];
	MUST(mkdir("dir", 0755));
	MUST(mkdir("dir/deep", 0755));
	make_file("dir/deep/file", "text");
	make_file("old", "old");
	int file = MUST(open("dir/deep/file", O_RDWR)), old = MUST(open("old", O_RDONLY));
	char *memory = MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0));
	MUST(chdir("dir/deep"));
	MUST(rename("../../old", "new"));
	MUST(rename("../../dir", "../../moved"));
	checkpoint();
	CHECK(ends(getcwd(path, sizeof(path)), "/moved/deep"), "current directory %s", path);
	CHECK(is_file(file, "file") && is_file(old, "new"), "other files");
	check_text(old, 0, "old");
	CHECK(memcmp(memory, "text", 4) == 0, "the mapping");
}

/* Names that look like something else, and one as long as can be. */
CASE(odd)
{
	static const char *const names[] = { "new\nline", "tail (deleted)", " (deleted)", "\\040\t\"\xff", "gone (deleted)" };
	int fds[LENGTH(names)];
	char *maps[LENGTH(names)];
	for (size_t i = 0; i < LENGTH(names); i++) {
		make_file(names[i], "text");
		fds[i] = MUST(open(names[i], O_RDONLY));
		maps[i] = MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fds[i], 0));
	}
	/* Beside one that looks as if it were this one's. */
	make_file("gone", "gone");
	int gone = MUST(open("gone", O_RDONLY));
	MUST(unlink("gone"));
	char path[4096], component[201];
	memset(component, 'x', 200);
	component[200] = 0;
	int top = MUST(open(".", O_RDONLY | O_DIRECTORY));
	size_t length = strlen(getcwd(path, sizeof(path)));
	for (; length + 201 < 4093; length += 201) {
		MUST(mkdir(component, 0755));
		MUST(chdir(component));
	}
	component[4095 - length - 1] = 0;
	int last = MUST(open(component, O_RDWR | O_CREAT, 0600));
	CHECK(strlen(link_of(last)) == 4095, "the name has %zu bytes", strlen(link_of(last)));
	MUST(fchdir(top));
	checkpoint();
	for (size_t i = 0; i < LENGTH(names); i++) {
		CHECK(is_file(fds[i], names[i]), "%s", names[i]);
		CHECK(memcmp(maps[i], "text", 4) == 0, "%s: mapped", names[i]);
	}
	check_text(gone, 0, "gone");
	CHECK(strlen(link_of(last)) == 4095, "the name has %zu bytes", strlen(link_of(last)));
}

static int below(const char *dir, const char *name, int flags)
{
	char path[600];
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return MUST(open(path, flags));
}

/* Files by way of mounts: bound, read-only, overlaid; a name that is gone on each. */
CASE(mounts)
{
	static const char *const dirs[] = { "real", "bound", "fixed", "lower", "upper", "work", "merged", "small" };
	for (size_t i = 0; i < LENGTH(dirs); i++)
		MUST(mkdir(dirs[i], 0755));
	make_file("real/file", "text");
	make_file("real/gone", "text");
	MUST(link("real/gone", "real/other"));
	MUST(mount("small", "small", "tmpfs", 0, NULL));
	make_file("small/file", "text");
	make_file("small/gone", "text");
	MUST(link("small/gone", "small/other"));
	MUST(mount("real", "bound", NULL, MS_BIND, NULL));
	MUST(mount("real", "fixed", NULL, MS_BIND, NULL));
	MUST(mount(NULL, "fixed", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
	make_file("lower/file", "lower");
	make_file("lower/changed", "lower");
	/* Its layers are on a file system that can be such in any case. */
	MUST(mkdir("small/upper", 0755));
	MUST(mkdir("small/work", 0755));
	MUST(mount("merged", "merged", "overlay", 0, "lowerdir=lower,upperdir=small/upper,workdir=small/work"));
	make_file("merged/new", "new");
	int fds[] = { below("bound", "file", O_RDWR), below("fixed", "file", O_RDONLY), below("small", "file", O_RDWR),
		      below("merged", "file", O_RDONLY), below("merged", "changed", O_RDWR), below("merged", "new", O_RDWR) };
	int gone[] = { below("bound", "gone", O_RDWR), below("small", "gone", O_RDWR) };
	MUST(unlink("bound/gone"));
	MUST(unlink("small/gone"));
	CHECK(pwrite(fds[4], "L", 1, 0) == 1, "write: %s", strerror(errno));
	char *memory = MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fds[3], 0));
	int dir = MUST(open("merged", O_RDONLY | O_DIRECTORY));
	checkpoint();
	static const char *const names[] = { "bound/file", "fixed/file", "small/file", "merged/file", "merged/changed", "merged/new" };
	for (size_t i = 0; i < LENGTH(fds); i++)
		CHECK(is_file(fds[i], names[i]) && ends(link_of(fds[i]), names[i]), "%s is %s", names[i], link_of(fds[i]));
	CHECK(is_file(gone[0], "bound/other") && ends(link_of(gone[0]), "bound/gone (deleted)"), "bound: %s", link_of(gone[0]));
	CHECK(is_file(gone[1], "small/other") && ends(link_of(gone[1]), "small/gone (deleted)"), "small: %s", link_of(gone[1]));
	CHECK(memcmp(memory, "lower", 5) == 0, "the mapping");
	check_text(MUST(openat(dir, "changed", O_RDONLY)), 0, "Lower");
}

/* On a file system that is read-only by now. */
CASE(read_only)
{
	MUST(mkdir("dir", 0755));
	MUST(mount("small", "dir", "tmpfs", 0, NULL));
	make_file("dir/gone", "text");
	MUST(link("dir/gone", "dir/other"));
	int fd = MUST(open("dir/gone", O_RDONLY));
	MUST(unlink("dir/gone"));
	MUST(mount(NULL, "dir", NULL, MS_REMOUNT | MS_RDONLY, NULL));
	checkpoint();
	CHECK(is_file(fd, "dir/other"), "it is %s", link_of(fd));
}

/* What is refused: a name with something mounted over it, one that no call takes. */
CASE(lost)
{
	char component[201];
	MUST(mkdir("dir", 0755));
	make_file("dir/file", "text");
	int hidden = MUST(open("dir/file", O_RDONLY));
	MUST(mount("over", "dir", "tmpfs", 0, NULL));
	printf("NAME fd %d (%s): the name does not lead to it: something is mounted over it\n", hidden, link_of(hidden));
	memset(component, 'x', 200);
	component[200] = 0;
	int top = MUST(open(".", O_RDONLY | O_DIRECTORY));
	for (int i = 0; i < 25; i++) {
		MUST(mkdir(component, 0755));
		MUST(chdir(component));
	}
	int last = MUST(open("file", O_RDWR | O_CREAT, 0600));
	char *memory = MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, last, 0));
	printf("NAME fd %d (): its name is longer than any call takes (PATH_MAX)\n", last);
	printf("NAME /file): its name is longer than any call takes (PATH_MAX)\n");
	printf("NAME cwd (): its name is longer than any call takes (PATH_MAX)\n");
	fflush(stdout);
	checkpoint();
	MUST(fchdir(top));
	MUST(munmap(memory, PAGE));
	close(last);
	check_text(hidden, 0, "text");
}

/* Sets attributes of a file (chattr), where its file system has them. */
static bool set_attributes(int fd, int attributes)
{
	return ioctl(fd, FS_IOC_SETFLAGS, &attributes) == 0;
}

static char *map_one(int fd, int protection, int flags)
{
	return MUST((char *)mmap(NULL, PAGE, protection, flags, fd, 0));
}

/* Refused, since it is from before what forbids it: code on a mount that is noexec by now; deleted files where nothing can be made any more; files that nobody may
 * write to any more. */
CASE(forbidden)
{
	static const char *const dirs[] = { "bare", "noexec", "fixed", "locked" };
	char text[64] = "text";
	for (size_t i = 0; i < LENGTH(dirs); i++)
		MUST(mkdir(dirs[i], 0755));
	MUST(mount("bare", "bare", "tmpfs", 0, NULL));
	MUST(mount("bare", "noexec", NULL, MS_BIND, NULL));
	MUST(mount("bare", "fixed", NULL, MS_BIND, NULL));
	make_file("bare/code", "text");
	make_file("bare/gone", "text");
	make_file("bare/immutable", "text");
	make_file("bare/grows", "text");
	int code = MUST(open("noexec/code", O_RDONLY)), gone = MUST(open("fixed/gone", O_RDONLY));
	char *mapped = map_one(code, PROT_READ | PROT_EXEC, MAP_PRIVATE), *data = map_one(code, PROT_READ, MAP_PRIVATE);
	close(code);
	MUST(unlink("fixed/gone"));
	MUST(mount(NULL, "noexec", NULL, MS_BIND | MS_REMOUNT | MS_NOEXEC, NULL));
	MUST(mount(NULL, "fixed", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
	printf("NAME noexec/code): is mapped as code, and its mount is noexec by now\n");
	printf("NAME fd %d (%s): the file has been deleted, and nothing can be made where it was\n", gone, link_of(gone));
	int immutable = MUST(open("bare/immutable", O_RDWR)), reader = MUST(open("bare/immutable", O_RDONLY));
	int grows = MUST(open("bare/grows", O_RDWR)), appends = MUST(open("bare/grows", O_WRONLY | O_APPEND));
	char *shared = map_one(immutable, PROT_READ, MAP_SHARED);
	if (set_attributes(immutable, FS_IMMUTABLE_FL) && set_attributes(grows, FS_APPEND_FL)) {
		printf("NAME fd %d (%s): is there for writing, and immutable by now\n", immutable, link_of(immutable));
		printf("NAME bare/immutable): is there for writing, and immutable by now\n");
		printf("NAME fd %d (%s): is there for writing, and append-only by now\n", grows, link_of(grows));
	}
	fflush(stdout);
	checkpoint();
	check_text(gone, 0, text);
	check_text(reader, 0, text);
	CHECK(memcmp(mapped, text, 4) == 0 && memcmp(data, text, 4) == 0 && memcmp(shared, text, 4) == 0, "mappings");
	CHECK(write(appends, text, 4) == 4, "append: %s", strerror(errno));
}

/* The same mounts and attributes, and nothing that they forbid. */
CASE(permitted)
{
	MUST(mkdir("bare", 0755));
	MUST(mount("bare", "bare", "tmpfs", MS_NOEXEC, NULL));
	make_file("bare/immutable", "text");
	make_file("bare/grows", "text");
	int reader = MUST(open("bare/immutable", O_RDONLY)), appends = MUST(open("bare/grows", O_RDWR | O_APPEND));
	int name = MUST(open("bare/immutable", O_PATH));
	char *shared = map_one(reader, PROT_READ, MAP_SHARED), *private = map_one(reader, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	private[0] = 'T';
	bool set = set_attributes(reader, FS_IMMUTABLE_FL) && set_attributes(appends, FS_APPEND_FL);
	checkpoint();
	CHECK(memcmp(shared, "text", 4) == 0 && memcmp(private, "Text", 4) == 0, "mappings");
	CHECK(write(appends, "more", 4) == 4, "append: %s", strerror(errno));
	check_text(appends, 0, "textmore");
	CHECK(is_file(name, "bare/immutable"), "it is %s", link_of(name));
	CHECK(!set || (open("bare/immutable", O_RDWR) == -1 && errno == EPERM), "it can be written to");
}

/* Files of lower layers that are gone from an overlay, one of them since it was replaced: overlayfs goes on to show a link. Layers on one file system and on two. */
CASE(overlaid)
{
	static const char *const lowers[] = { "lower", "small/lower" };
	char name[64], options[128], *memory[LENGTH(lowers)];
	int fds[LENGTH(lowers)], others[LENGTH(lowers)];
	MUST(mkdir("small", 0755));
	MUST(mount("small", "small", "tmpfs", 0, NULL));
	for (size_t i = 0; i < LENGTH(lowers); i++) {
		MUST(mkdir(lowers[i], 0755));
		snprintf(name, sizeof(name), "%s/library", lowers[i]);
		make_file(name, "library");
		snprintf(name, sizeof(name), "%s/replaced", lowers[i]);
		make_file(name, "before");
		snprintf(options, sizeof(options), "mkdir small/upper%zu small/work%zu merged%zu", i, i, i);
		CHECK(system(options) == 0, "%s", options);
		snprintf(name, sizeof(name), "merged%zu", i);
		snprintf(options, sizeof(options), "lowerdir=%s,upperdir=small/upper%zu,workdir=small/work%zu", lowers[i], i, i);
		MUST(mount("merged", name, "overlay", 0, options));
		int dir = MUST(open(name, O_RDONLY | O_DIRECTORY));
		fds[i] = MUST(openat(dir, "library", O_RDONLY));
		others[i] = MUST(openat(dir, "replaced", O_RDONLY));
		memory[i] = map_one(fds[i], PROT_READ | PROT_EXEC, MAP_PRIVATE);
		MUST(unlinkat(dir, "library", 0));
		int new = MUST(openat(dir, "new", O_WRONLY | O_CREAT, 0644));
		CHECK(write(new, "after", 5) == 5, "write: %s", strerror(errno));
		close(new);
		MUST(renameat(dir, "new", dir, "replaced"));
		/* The next one has its name for itself. */
		MUST(unlinkat(dir, "replaced", 0));
		close(dir);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(lowers); i++) {
		CHECK(ends(link_of(fds[i]), "/library (deleted)"), "it is %s", link_of(fds[i]));
		check_text(fds[i], 0, "library");
		CHECK(memcmp(memory[i], "library", 7) == 0, "the mapping");
		check_text(others[i], 0, "before");
		snprintf(name, sizeof(name), "merged%zu/library", i);
		CHECK(access(name, F_OK) == -1 && errno == ENOENT, "it has a name again");
	}
}

static char *read_all(const char *name, size_t *length)
{
	struct stat found;
	int fd = MUST(open(name, O_RDONLY));
	MUST(fstat(fd, &found));
	*length = (size_t)found.st_size;
	char *text = map_anonymous(*length);
	CHECK(read(fd, text, *length) == (ssize_t)*length, "read %s: %s", name, strerror(errno));
	close(fd);
	return text;
}

/* A program, and a library of it, of which nothing has been touched yet: copies of this one. */
CASE(program)
{
	size_t length;
	if (case_args[0] == NULL) {
		char command[1200];
		snprintf(command, sizeof(command), "cp %s copy && cp %s library", case_argv[0], case_argv[0]);
		CHECK(system(command) == 0, "%s", command);
		execl("./copy", "./copy", "program", case_argv[0], (char *)NULL);
		die(__FILE__, __LINE__, "exec");
	}
	char *original = read_all(case_args[0], &length);
	int fd = MUST(open("library", O_RDONLY));
	char *library = MUST((char *)mmap(NULL, length, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0));
	close(fd);
	checkpoint();
	CHECK(memcmp(library, original, length) == 0, "the library has changed");
	size_t running;
	char *program = read_all("/proc/self/exe", &running);
	CHECK(running == length && memcmp(program, original, length) == 0, "the program has changed");
}

/* A program whose name is gone, with another one beside it. */
CASE(program_elsewhere)
{
	if (case_args[0] == NULL) {
		char command[600];
		snprintf(command, sizeof(command), "cp %s copy && ln copy other", case_argv[0]);
		CHECK(system(command) == 0, "%s", command);
		execl("./copy", "./copy", "program_elsewhere", "again", (char *)NULL);
		die(__FILE__, __LINE__, "exec");
	}
	char target[512] = "";
	MUST(unlink("copy"));
	checkpoint();
	MUST(readlink("/proc/self/exe", target, sizeof(target) - 1));
	CHECK(ends(target, "/copy (deleted)"), "exe is %s", target);
	CHECK(is_file(MUST(open("/proc/self/exe", O_RDONLY)), "other"), "another program");
}
