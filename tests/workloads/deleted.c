/* Files and directories that are in use and have no name any more. */
#define _FILE_OFFSET_BITS 64
#include "workload.h"
#include <sys/xattr.h>

static int make_file(const char *name, size_t length, uint32_t seed)
{
	int fd = MUST(open(name, O_RDWR | O_CREAT | O_EXCL, 0640));
	char *contents = map_anonymous(length);
	fill(contents, length, seed);
	CHECK(write(fd, contents, length) == (ssize_t)length, "write %s: %s", name, strerror(errno));
	MUST(munmap(contents, length));
	return fd;
}

static void check_file(int fd, off_t offset, size_t length, uint32_t seed)
{
	char *contents = map_anonymous(length);
	ssize_t got = pread(fd, contents, length, offset);
	CHECK(got == (ssize_t)length, "pread gives %zd", got);
	CHECK_FILL(contents, length, seed);
	MUST(munmap(contents, length));
}

static bool same_file(int a, int b)
{
	struct stat first, second;
	MUST(fstat(a, &first));
	MUST(fstat(b, &second));
	return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

/* Everything that fstat shows but where it lies. */
static struct stat visible(int fd)
{
	struct stat stat;
	MUST(fstat(fd, &stat));
	stat.st_dev = 0;
	stat.st_ino = 0;
	memset(&stat.st_ctim, 0, sizeof(stat.st_ctim));
	return stat;
}

static void check_visible(int fd, const struct stat *before)
{
	struct stat after = visible(fd);
	CHECK(after.st_mode == before->st_mode && after.st_uid == before->st_uid && after.st_gid == before->st_gid,
	      "mode %o owner %d:%d", after.st_mode, after.st_uid, after.st_gid);
	CHECK(after.st_nlink == before->st_nlink && after.st_size == before->st_size &&
		      after.st_blocks == before->st_blocks,
	      "links %lu size %ld blocks %ld, was %lu %ld %ld", (long)after.st_nlink, (long)after.st_size,
	      (long)after.st_blocks, (long)before->st_nlink, (long)before->st_size, (long)before->st_blocks);
	CHECK(after.st_mtim.tv_sec == before->st_mtim.tv_sec && after.st_mtim.tv_nsec == before->st_mtim.tv_nsec,
	      "modified at %ld, was %ld", (long)after.st_mtim.tv_sec, (long)before->st_mtim.tv_sec);
}

/* One file by several descriptions and a child; owner, attributes, a size that is no multiple of a page. */
static void reader(void *fd)
{
	prepared();
	wait_for_go();
	check_file(*(int *)fd, 0, 10000, 1);
}

CASE(file)
{
	char path[32], value[8] = "";
	int fd = make_file("gone", 10001, 1);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int other = MUST(open(path, O_RDONLY));
	int appends = MUST(open(path, O_WRONLY | O_APPEND));
	MUST(fchown(fd, 1234, 4321));
	MUST(fchmod(fd, 0604));
	MUST(fsetxattr(fd, "user.colour", "green", 5, 0));
	MUST(lseek(fd, 77, SEEK_SET));
	struct timespec times[2] = { { 1000000000, 5 }, { 1100000000, 7 } };
	MUST(futimens(fd, times));
	MUST(unlink("gone"));
	struct stat before = visible(fd);
	pid_t child = spawn(reader, &other);
	checkpoint();
	check_visible(fd, &before);
	CHECK(same_file(fd, other) && same_file(fd, appends), "one file has become several");
	CHECK(lseek(fd, 0, SEEK_CUR) == 77, "offset %ld", (long)lseek(fd, 0, SEEK_CUR));
	CHECK(fgetxattr(fd, "user.colour", value, sizeof(value)) == 5 && memcmp(value, "green", 5) == 0, "xattr %s", value);
	check_file(other, 0, 10000, 1);
	MUST(write(appends, "end", 3));
	CHECK(pread(other, value, 4, 10001) == 3 && memcmp(value, "end", 3) == 0, "what was appended");
	CHECK(access("gone", F_OK) == -1 && errno == ENOENT, "it has a name again");
	finish(child);
}

/* Two that had the same name, which another file has now. */
CASE(same_names)
{
	int fds[2];
	for (int i = 0; i < 2; i++) {
		fds[i] = make_file("twin", PAGE, (uint32_t)i + 5);
		MUST(unlink("twin"));
	}
	checkpoint();
	CHECK(!same_file(fds[0], fds[1]), "two files have become one");
	for (int i = 0; i < 2; i++)
		check_file(fds[i], 0, PAGE, (uint32_t)i + 5);
}

/* Larger than memory, but for holes. */
CASE(sparse)
{
	const off_t far = (off_t)40 << 30;
	int fd = make_file("sparse", 3 * PAGE, 3);
	char *contents = map_anonymous(PAGE);
	fill(contents, PAGE, 4);
	CHECK(pwrite(fd, contents, PAGE, far) == (ssize_t)PAGE, "pwrite: %s", strerror(errno));
	MUST(ftruncate(fd, far + (off_t)(1 << 20)));
	MUST(unlink("sparse"));
	struct stat before = visible(fd);
	checkpoint();
	check_visible(fd, &before);
	check_file(fd, 0, 3 * PAGE, 3);
	check_file(fd, far, PAGE, 4);
}

/* Pages that begin in a hole, or have one in the middle, where blocks are that small. */
CASE(half_pages)
{
	enum { BLOCK = 1024, PAGES = 600 };
	char block[BLOCK], page[PAGE];
	int fd = MUST(open("half", O_RDWR | O_CREAT | O_EXCL, 0600));
	fill(block, BLOCK, 51);
	for (off_t at = 0; at < PAGES; at++) {
		CHECK(pwrite(fd, block, BLOCK, at * (off_t)PAGE + BLOCK) == BLOCK, "pwrite: %s", strerror(errno));
		CHECK(pwrite(fd, block, BLOCK, at * (off_t)PAGE + 3 * BLOCK) == BLOCK, "pwrite: %s", strerror(errno));
	}
	MUST(ftruncate(fd, (PAGES + 5) * (off_t)PAGE));
	MUST(fsync(fd));
	MUST(unlink("half"));
	checkpoint();
	for (off_t at = 0; at < PAGES; at++) {
		CHECK(pread(fd, page, PAGE, at * (off_t)PAGE) == (ssize_t)PAGE, "pread: %s", strerror(errno));
		for (size_t i = 0; i < BLOCK; i++)
			CHECK(page[i] == 0 && page[2 * BLOCK + i] == 0, "a hole of page %ld", (long)at);
		CHECK_FILL(page + BLOCK, BLOCK, 51);
		CHECK_FILL(page + 3 * BLOCK, BLOCK, 51);
	}
}

struct maps {
	char *shared, *private;
};

static void mapper(void *argument)
{
	struct maps *maps = argument;
	prepared();
	wait_for_go();
	CHECK_FILL(maps->shared, 2 * PAGE, 11);
	CHECK_FILL(maps->private + PAGE, PAGE, 12);
	maps->shared[2 * PAGE] = 'c';
}

static struct maps map(int fd)
{
	struct maps maps;
	maps.shared = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	maps.private = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	fill(maps.private + PAGE, PAGE, 12);
	return maps;
}

static void check_maps(struct maps maps, int fd)
{
	pid_t child = spawn(mapper, &maps);
	checkpoint();
	finish(child);
	CHECK(maps.shared[2 * PAGE] == 'c', "the child wrote to another file");
	CHECK(pread(fd, maps.shared, 1, 2 * (off_t)PAGE) == 1 && maps.shared[0] == 'c', "the descriptor is of another file");
	CHECK_FILL(maps.private + PAGE, PAGE, 12);
}

CASE(mapped)
{
	int fd = make_file("mapped", 4 * PAGE, 11);
	MUST(unlink("mapped"));
	check_maps(map(fd), fd);
}

/* No descriptor is left. */
CASE(only_mapped)
{
	int fd = make_file("only", 2 * PAGE, 13);
	char *memory = MUST((char *)mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0));
	MUST(unlink("only"));
	close(fd);
	checkpoint();
	CHECK_FILL(memory, 2 * PAGE, 13);
}

/* The current directory and the one above are gone; so is a file that was in there. */
CASE(directory)
{
	char path[512];
	MUST(mkdir("a", 0750));
	MUST(mkdir("a/b", 0700));
	int outer = MUST(open("a", O_RDONLY | O_DIRECTORY));
	MUST(chdir("a/b"));
	int fd = make_file("file", PAGE, 21);
	MUST(unlink("file"));
	MUST(rmdir("../b"));
	MUST(rmdir("../../a"));
	struct stat before = visible(outer);
	checkpoint();
	CHECK(getcwd(path, sizeof(path)) == NULL && errno == ENOENT, "getcwd gives %s", path);
	CHECK(open("new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file can be made in it");
	check_file(fd, 0, PAGE, 21);
	check_visible(outer, &before);
}

/* As root directory, and as current directory by another name. */
CASE(root)
{
	MUST(mkdir("top", 0755));
	int outer = MUST(open(".", O_RDONLY | O_DIRECTORY));
	MUST(chroot("top"));
	MUST(chdir("/"));
	MUST(unlinkat(outer, "top", AT_REMOVEDIR));
	close(outer);
	checkpoint();
	CHECK(open("/new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file can be made in it");
	CHECK(access("/proc", F_OK) == -1 && access("/..", F_OK) == 0, "another root");
	CHECK(chdir("/..") == 0 && access("images-1", F_OK) == -1, "the root does not hold");
}

/* The program itself. */
CASE(program)
{
	if (case_args[0] == NULL) {
		char command[600];
		snprintf(command, sizeof(command), "cp %s copy", case_argv[0]);
		CHECK(system(command) == 0, "%s", command);
		execl("./copy", "./copy", "program", "again", (char *)NULL);
		die(__FILE__, __LINE__, "exec");
	}
	char target[512] = "";
	MUST(unlink("copy"));
	checkpoint();
	MUST(readlink("/proc/self/exe", target, sizeof(target) - 1));
	CHECK(strstr(target, "/copy (deleted)") != NULL, "exe is %s", target);
}

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif

/* memfds: sealed in different ways, mapped, shared with a child. */
CASE(memfd)
{
	static const int seals[] = { 0, F_SEAL_SEAL, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE,
				     F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_EXEC };
	int fds[LENGTH(seals)];
	struct maps maps[LENGTH(seals)];
	char text[2 * PAGE];
	fill(text, sizeof(text), 11);
	for (size_t i = 0; i < LENGTH(seals); i++) {
		fds[i] = MUST((int)syscall(SYS_memfd_create, "buffer of many", i == 1 ? 0 : 2 /* MFD_ALLOW_SEALING */));
		CHECK(write(fds[i], text, sizeof(text)) == sizeof(text), "write");
		MUST(ftruncate(fds[i], 4 * (off_t)PAGE));
		MUST(fchmod(fds[i], 0640));
		maps[i] = map(fds[i]);
		if (seals[i] & F_SEAL_WRITE)
			MUST(munmap(maps[i].shared, 4 * PAGE));
		if (i > 1)
			MUST(fcntl(fds[i], F_ADD_SEALS, seals[i]));
	}
	pid_t child = spawn(mapper, &maps[0]);
	checkpoint();
	for (size_t i = 0; i < LENGTH(seals); i++) {
		int found = MUST(fcntl(fds[i], F_GET_SEALS));
		CHECK(found == seals[i], "seals %#x, were %#x", found, seals[i]);
		check_file(fds[i], 0, sizeof(text), 11);
		CHECK_FILL(maps[i].private + PAGE, PAGE, 12);
		CHECK((visible(fds[i]).st_mode & 07777) == 0640, "mode %o", visible(fds[i]).st_mode);
	}
	CHECK(write(fds[2], "x", 1) == -1 && errno == EPERM, "a sealed file can be written");
	maps[3].shared[3 * PAGE] = 'w';
	finish(child);
	CHECK(maps[0].shared[2 * PAGE] == 'c', "the child wrote to another file");
}

/* Never had a name, or was opened by flags that say how to take one. */
CASE(flags)
{
	int temporary = MUST(open(".", O_TMPFILE | O_RDWR, 0600));
	close(make_file("straight", PAGE, 41));
	int straight = MUST(open("straight", O_RDONLY | O_NOFOLLOW));
	MUST(unlink("straight"));
	CHECK(write(temporary, "text", 4) == 4, "write: %s", strerror(errno));
	int written = MUST(open(".", O_TMPFILE | O_WRONLY | O_APPEND, 0640));
	CHECK(write(written, "one", 3) == 3, "write: %s", strerror(errno));
	char text[8] = "", path[32];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", written);
	int again = MUST(open(path, O_RDONLY));
	struct stat before = visible(written);
	checkpoint();
	CHECK(fcntl(written, F_GETFL) & __O_TMPFILE, "flags %#o", fcntl(written, F_GETFL));
	check_visible(written, &before);
	CHECK(write(written, "two", 3) == 3, "write: %s", strerror(errno));
	CHECK(same_file(written, again) && pread(again, text, 7, 0) == 6 && strcmp(text, "onetwo") == 0, "it holds %s", text);
	MUST(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	CHECK(visible(again).st_nlink == 1 && access("named", F_OK) == 0, "it has no name");
	memset(text, 0, sizeof(text));
	CHECK(pread(temporary, text, 4, 0) == 4 && strcmp(text, "text") == 0, "it holds %s", text);
	check_file(straight, 0, PAGE, 41);
}

/* A program that lies in a memfd. */
CASE(program_in_memory)
{
	if (case_args[0] == NULL) {
		char buffer[65536];
		char *arguments[] = { case_argv[0], "program_in_memory", "again", NULL };
		int from = MUST(open(case_argv[0], O_RDONLY));
		int to = MUST((int)syscall(SYS_memfd_create, "program", 1 /* MFD_CLOEXEC */));
		for (ssize_t got; (got = MUST(read(from, buffer, sizeof(buffer)))) > 0;)
			CHECK(write(to, buffer, (size_t)got) == got, "write: %s", strerror(errno));
		close(from);
		fexecve(to, arguments, environ);
		die(__FILE__, __LINE__, "fexecve");
	}
	char target[512] = "";
	checkpoint();
	MUST(readlink("/proc/self/exe", target, sizeof(target) - 1));
	CHECK(strcmp(target, "/memfd:program (deleted)") == 0, "exe is %s", target);
}

/* A memfd, fd 5, of which it maps a part. */
CASE(mapper)
{
	char *shared = MUST((char *)mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 5, PAGE));
	close(5);
	prepared();
	wait_for_go();
	CHECK_FILL(shared, PAGE, 32);
	CHECK(shared[PAGE] == 0, "never written");
	shared[PAGE + 7] = 'm';
}

/* Memory that tasks of both ABIs map, and no one has open any more. */
CASE(memfd_between_abis)
{
	int fd = MUST(memfd_create("memory", 0));
	MUST(ftruncate(fd, 4 * PAGE));
	MUST(dup2(fd, 5));
	close(fd);
	char *shared = MUST((char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 5, 0));
	fill(shared, PAGE, 31);
	fill(shared + PAGE, PAGE, 32);
	pid_t child = spawn_abi(other_abi, "mapper", NULL);
	close(5);
	checkpoint();
	CHECK_FILL(shared, PAGE, 31);
	CHECK(shared[2 * PAGE + 7] == 0, "already written");
	finish(child);
	CHECK(shared[2 * PAGE + 7] == 'm', "the child wrote to another file");
}

/* A task of the other ABI has the file too: fd 5 and what it maps. */
CASE(inheritor)
{
	char *shared = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 5, 0));
	prepared();
	wait_for_go();
	CHECK_FILL(shared, PAGE / 2, 31);
	shared[PAGE - 1] = 'i';
}

CASE(between_abis)
{
	int fd = make_file("both", PAGE, 31);
	MUST(unlink("both"));
	MUST(dup2(fd, 5));
	char *shared = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	pid_t child = spawn_abi(other_abi, "inheritor", NULL);
	checkpoint();
	finish(child);
	CHECK(shared[PAGE - 1] == 'i', "the child wrote to another file");
}
