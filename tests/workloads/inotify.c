/* inotify: watches, what they tell after the checkpoint, and what is told of events that were not read. */
#include "workload.h"
#include <limits.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

static int make(const char *name)
{
	return MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
}

static void touch(const char *name)
{
	close(make(name));
}

static int unread(int group)
{
	int bytes = -1;
	MUST(ioctl(group, FIONREAD, &bytes));
	return bytes;
}

/* Takes the next event and checks it; its cookie. */
static uint32_t expect(int group, int wd, uint32_t mask, const char *name)
{
	/* One event at a time: there is room for no second one with a name. */
	_Alignas(struct inotify_event) char buffer[sizeof(struct inotify_event) + NAME_MAX + 1];
	int length = 0;
	struct inotify_event *event = (void *)buffer;
	size_t room = sizeof(*event) + (name == NULL ? 0 : (strlen(name) / 16 + 1) * 16);
	length = (int)read(group, buffer, room);
	CHECK(length >= (int)sizeof(*event), "no event %#x of %d: %d, %s", mask, wd, length, strerror(errno));
	if (length < (int)sizeof(*event))
		return 0;
	CHECK(event->wd == wd && event->mask == mask, "event %#x of %d instead of %#x of %d", event->mask, event->wd,
	      mask, wd);
	CHECK(strcmp(event->len == 0 ? "" : event->name, name == NULL ? "" : name) == 0, "name %s instead of %s",
	      event->len == 0 ? "" : event->name, name == NULL ? "" : name);
	return event->cookie;
}

#define FILE_EVENTS (IN_MODIFY | IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MOVE | IN_DELETE_SELF | IN_MOVE_SELF)

/* Everything that a directory and a file tell; the numbers that new watches get. */
CASE(all)
{
	int group = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	MUST(mkdir("dir", 0700));
	touch("dir/old");
	touch("alone");
	int gone = MUST(inotify_add_watch(group, "alone", IN_OPEN));
	int dir = MUST(inotify_add_watch(group, "dir", FILE_EVENTS | IN_ONLYDIR));
	touch("file");
	int file = MUST(inotify_add_watch(group, "file", FILE_EVENTS));
	MUST(inotify_rm_watch(group, gone));
	expect(group, gone, IN_IGNORED, NULL);
	checkpoint();
	CHECK(unread(group) == 0, "%d bytes of events by themselves", unread(group));
	touch("dir/new");
	expect(group, dir, IN_CREATE, "new");
	int fd = MUST(open("dir/new", O_WRONLY));
	MUST(write(fd, "x", 1));
	close(fd);
	expect(group, dir, IN_MODIFY, "new");
	MUST(rename("dir/new", "dir/newer"));
	uint32_t from = expect(group, dir, IN_MOVED_FROM, "new"), to = expect(group, dir, IN_MOVED_TO, "newer");
	CHECK(from == to && from != 0, "cookies %u and %u", from, to);
	MUST(unlink("dir/newer"));
	expect(group, dir, IN_DELETE, "newer");
	MUST(mkdir("dir/sub", 0700));
	expect(group, dir, IN_CREATE | IN_ISDIR, "sub");
	MUST(chmod("file", 0640));
	expect(group, file, IN_ATTRIB, NULL);
	MUST(unlink("file"));
	expect(group, file, IN_ATTRIB, NULL);
	expect(group, file, IN_DELETE_SELF, NULL);
	expect(group, file, IN_IGNORED, NULL);
	int next = MUST(inotify_add_watch(group, "alone", IN_OPEN));
	CHECK(next > file, "the next watch is %d after %d", next, file);
	close(MUST(open("alone", O_RDONLY)));
	expect(group, next, IN_OPEN, NULL);
	CHECK(MUST(inotify_add_watch(group, "dir", IN_OPEN | IN_MASK_ADD)) == dir, "the directory has another watch");
	MUST(rmdir("dir/sub"));
	expect(group, dir, IN_DELETE | IN_ISDIR, "sub");
	CHECK(unread(group) == 0, "%d bytes more", unread(group));
}

/* Flags of watches. */
CASE(flags)
{
	int group = MUST(inotify_init1(IN_NONBLOCK));
	touch("once");
	touch("hidden");
	MUST(mkdir("target", 0700));
	MUST(mkdir("excluding", 0700));
	touch("excluding/open");
	MUST(symlink("target", "link"));
	int once = MUST(inotify_add_watch(group, "once", IN_OPEN | IN_ONESHOT));
	int link = MUST(inotify_add_watch(group, "link", IN_ATTRIB | IN_MOVE_SELF | IN_DONT_FOLLOW));
	int followed = MUST(inotify_add_watch(group, "link", IN_CREATE));
	int excluding = MUST(inotify_add_watch(group, "excluding", IN_MODIFY | IN_EXCL_UNLINK));
	/* No event at all but that the watch ends. */
	int nothing = MUST(inotify_add_watch(group, "hidden", IN_ONLYDIR | IN_DONT_FOLLOW) == -1 ? 0 : -1);
	nothing = MUST(inotify_add_watch(group, "hidden", IN_DONT_FOLLOW));
	int fd = MUST(open("excluding/open", O_RDWR));
	MUST(unlink("excluding/open"));
	checkpoint();
	CHECK(unread(group) == 0, "%d bytes of events by themselves", unread(group));
	MUST(write(fd, "x", 1));
	MUST(fchmodat(AT_FDCWD, "target", 0750, 0));
	close(MUST(open("once", O_RDONLY)));
	expect(group, once, IN_OPEN, NULL);
	expect(group, once, IN_IGNORED, NULL);
	close(MUST(open("once", O_RDONLY)));
	touch("target/new");
	expect(group, followed, IN_CREATE, "new");
	MUST(rename("link", "renamed"));
	expect(group, link, IN_MOVE_SELF, NULL);
	MUST(unlink("hidden"));
	expect(group, nothing, IN_IGNORED, NULL);
	CHECK(unread(group) == 0 && excluding > 0, "%d bytes more", unread(group));
}

/* Names that have changed since they were watched; several of one file. */
CASE(renamed)
{
	int group = MUST(inotify_init1(IN_NONBLOCK)), second = MUST(inotify_init1(IN_NONBLOCK));
	MUST(mkdir("above", 0700));
	MUST(mkdir("above/below", 0700));
	touch("above/below/file");
	touch("moved");
	touch("linked");
	touch("replaced");
	int below = MUST(inotify_add_watch(group, "above/below", IN_CREATE)),
	    file = MUST(inotify_add_watch(group, "above/below/file", IN_ATTRIB)),
	    moved = MUST(inotify_add_watch(group, "moved", IN_ATTRIB)),
	    linked = MUST(inotify_add_watch(group, "linked", IN_ATTRIB)),
	    replaced = MUST(inotify_add_watch(group, "replaced", IN_ATTRIB));
	MUST(inotify_add_watch(second, "linked", IN_OPEN));
	MUST(rename("above", "a name with \"blanks\"\nand more"));
	MUST(rename("moved", "elsewhere"));
	MUST(link("linked", "again"));
	expect(group, linked, IN_ATTRIB, NULL);
	MUST(unlink("linked"));
	expect(group, linked, IN_ATTRIB, NULL);
	MUST(rename("replaced", "kept"));
	touch("replaced");
	checkpoint();
	MUST(chdir("a name with \"blanks\"\nand more"));
	MUST(chmod("below/file", 0640));
	expect(group, file, IN_ATTRIB, NULL);
	touch("below/new");
	expect(group, below, IN_CREATE, "new");
	MUST(chdir(".."));
	MUST(chmod("elsewhere", 0640));
	expect(group, moved, IN_ATTRIB, NULL);
	MUST(chmod("replaced", 0640));
	MUST(chmod("kept", 0640));
	expect(group, replaced, IN_ATTRIB, NULL);
	MUST(chmod("again", 0640));
	expect(group, linked, IN_ATTRIB, NULL);
	close(MUST(open("again", O_RDONLY)));
	expect(second, 1, IN_OPEN, NULL);
	CHECK(unread(group) == 0 && unread(second) == 0, "more events");
}

/* A file without a name, as tail -f has one after its log was rotated away; other kinds of files. */
CASE(deleted)
{
	int group = MUST(inotify_init1(IN_NONBLOCK));
	int fd = make("rotated");
	MUST(mkfifo("fifo", 0600));
	MUST(mknod("null", S_IFCHR | 0600, makedev(1, 3)));
	char name[64] = "/dev/shm/crr-XXXXXX";
	CHECK(mkdtemp(name) != NULL, "mkdtemp");
	int log = MUST(inotify_add_watch(group, "rotated", IN_MODIFY | IN_DELETE_SELF)),
	    fifo = MUST(inotify_add_watch(group, "fifo", IN_ATTRIB)),
	    null = MUST(inotify_add_watch(group, "null", IN_MODIFY)),
	    memory = MUST(inotify_add_watch(group, name, IN_CREATE));
	MUST(unlink("rotated"));
	checkpoint();
	CHECK(unread(group) == 0, "%d bytes of events by themselves", unread(group));
	MUST(write(fd, "x", 1));
	expect(group, log, IN_MODIFY, NULL);
	MUST(chmod("fifo", 0640));
	expect(group, fifo, IN_ATTRIB, NULL);
	int device = MUST(open("null", O_WRONLY));
	MUST(write(device, "x", 1));
	expect(group, null, IN_MODIFY, NULL);
	char file[80];
	snprintf(file, sizeof(file), "%s/new", name);
	touch(file);
	expect(group, memory, IN_CREATE, "new");
	MUST(unlink(file));
	MUST(rmdir(name));
	expect(group, memory, IN_IGNORED, NULL);
	close(fd);
	expect(group, log, IN_DELETE_SELF, NULL);
	expect(group, log, IN_IGNORED, NULL);
	CHECK(unread(group) == 0, "%d bytes more", unread(group));
}

static int watch(int group, const char *directory, const char *name, uint32_t mask)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return MUST(inotify_add_watch(group, path, mask));
}

/* A file system of two layers: directories and files of one, of the other, of both. */
static void mount_layers(const char *merged, const char *lower, const char *upper)
{
	char path[PATH_MAX], options[PATH_MAX * 4];
	const char *const layers[] = { lower, upper };
	for (size_t i = 0; i < LENGTH(layers); i++) {
		static const char *const names[] = { "", "/both", "/both/inner" };
		for (size_t j = 0; j < LENGTH(names); j++) {
			snprintf(path, sizeof(path), "%s%s", layers[i], names[j]);
			MUST(mkdir(path, 0755));
		}
		snprintf(path, sizeof(path), "%s/both/%s", layers[i], i == 0 ? "lower" : "upper");
		touch(path);
	}
	snprintf(path, sizeof(path), "%s/gone", lower);
	touch(path);
	snprintf(path, sizeof(path), "%s.work", upper);
	MUST(mkdir(path, 0755));
	MUST(mkdir(merged, 0755));
	snprintf(options, sizeof(options), "lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, path);
	MUST(mount("layers", merged, "overlay", 0, options));
}

/* Files of overlayfs that are used by nothing else: of both layers, which are on one file system or on two, changed and renamed since, below
 * another mount. */
CASE(layers)
{
	static const char *const merged[] = { "one", "two" };
	int groups[2], top[2], inner[2], lower[2], upper[2], named[2], below[2];
	MUST(mkdir("small", 0755));
	MUST(mount("small", "small", "tmpfs", 0, NULL));
	mount_layers("one", "small/lower", "small/upper");
	mount_layers("two", "lower", "small/second");
	MUST(mkdir("bound", 0755));
	for (size_t i = 0; i < 2; i++) {
		char path[PATH_MAX], to[PATH_MAX];
		groups[i] = MUST(inotify_init1(IN_NONBLOCK));
		top[i] = watch(groups[i], merged[i], "both", IN_CREATE);
		inner[i] = watch(groups[i], merged[i], "both/inner", IN_CREATE);
		lower[i] = watch(groups[i], merged[i], "both/lower", IN_OPEN);
		upper[i] = watch(groups[i], merged[i], "both/upper", IN_ATTRIB);
		snprintf(path, sizeof(path), "%s/both/before", merged[i]);
		touch(path);
		expect(groups[i], top[i], IN_CREATE, "before");
		named[i] = watch(groups[i], merged[i], "both/before", IN_ATTRIB);
		snprintf(to, sizeof(to), "%s/both/after", merged[i]);
		MUST(rename(path, to));
		snprintf(path, sizeof(path), "%s/gone", merged[i]);
		MUST(unlink(path));
		snprintf(path, sizeof(path), "bound/%s", merged[i]);
		MUST(mkdir(path, 0755));
		snprintf(to, sizeof(to), "%s/both", merged[i]);
		MUST(mount(to, path, NULL, MS_BIND, NULL));
		below[i] = watch(groups[i], path, "inner", IN_CREATE | IN_MASK_ADD);
	}
	checkpoint();
	for (size_t i = 0; i < 2; i++) {
		char path[PATH_MAX];
		CHECK(unread(groups[i]) == 0 && below[i] == inner[i], "%s: %d bytes of events by themselves", merged[i],
		      unread(groups[i]));
		snprintf(path, sizeof(path), "%s/both/new", merged[i]);
		touch(path);
		expect(groups[i], top[i], IN_CREATE, "new");
		snprintf(path, sizeof(path), "%s/both/inner/new", merged[i]);
		touch(path);
		expect(groups[i], inner[i], IN_CREATE, "new");
		snprintf(path, sizeof(path), "%s/both/lower", merged[i]);
		close(MUST(open(path, O_RDONLY)));
		expect(groups[i], lower[i], IN_OPEN, NULL);
		snprintf(path, sizeof(path), "%s/both/upper", merged[i]);
		MUST(chmod(path, 0640));
		expect(groups[i], upper[i], IN_ATTRIB, NULL);
		snprintf(path, sizeof(path), "%s/both/after", merged[i]);
		MUST(chmod(path, 0640));
		expect(groups[i], named[i], IN_ATTRIB, NULL);
		CHECK(unread(groups[i]) == 0, "%s: %d bytes more", merged[i], unread(groups[i]));
	}
}

/* What the restore itself opens, reads, maps and closes is no event. */
CASE(quiet)
{
	int group = MUST(inotify_init1(IN_NONBLOCK));
	MUST(mkdir("data", 0700));
	int lost = make("lost");
	MUST(unlink("lost"));
	MUST(chdir("data"));
	int fd = make("open"), library = make("library");
	MUST(write(fd, "contents", 8));
	MUST(write(library, "contents", 8));
	close(library);
	library = MUST(open("library", O_RDONLY));
	char *mapped = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *code = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, library, 0));
	close(library);
	int file = MUST(inotify_add_watch(group, "open", IN_ALL_EVENTS));
	MUST(inotify_add_watch(group, "library", IN_ALL_EVENTS));
	MUST(inotify_add_watch(group, ".", IN_ALL_EVENTS));
	checkpoint();
	CHECK(unread(group) == 0, "%d bytes of events by themselves", unread(group));
	mapped[0] = 'C';
	char byte;
	CHECK(pread(fd, &byte, 1, 0) == 1 && byte == 'C' && code[0] == 'c', "the files");
	expect(group, 3, IN_ACCESS, "open");
	expect(group, file, IN_ACCESS, NULL);
	close(lost);
}

/* Events that were not read are told to be lost; only where there were any. Only those: what happens later is told. */
CASE(unread_events)
{
	int group = MUST(inotify_init1(IN_NONBLOCK)), epoll = MUST(epoll_create1(0)),
	    quiet = MUST(inotify_init1(IN_NONBLOCK));
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	touch("file");
	int file = MUST(inotify_add_watch(group, "file", IN_OPEN | IN_ATTRIB));
	MUST(inotify_add_watch(quiet, "file", IN_DELETE_SELF));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, group, &event));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, quiet, &event));
	close(MUST(open("file", O_RDONLY)));
	MUST(chmod("file", 0640));
	checkpoint();
	CHECK(unread(quiet) == 0, "the quiet one has events");
	CHECK(epoll_wait(epoll, &event, 1, 0) == 1, "nothing to read");
	/* Both of them, or one that tells the loss. */
	bool restored = unread(group) == (int)sizeof(struct inotify_event);
	MUST(chmod("file", 0600));
	if (restored) {
		expect(group, -1, IN_Q_OVERFLOW, NULL);
	} else {
		expect(group, file, IN_OPEN, NULL);
	}
	expect(group, file, IN_ATTRIB, NULL);
	CHECK(unread(group) == 0, "%d bytes more", unread(group));
}

static int shared_group;

static void read_in_child(void *unused)
{
	(void)unused;
	prepared();
	expect(shared_group, 1, IN_ATTRIB, NULL);
}

/* A read in progress, and a group that tasks share. */
CASE(read_in_progress)
{
	shared_group = MUST(inotify_init());
	touch("file");
	MUST(inotify_add_watch(shared_group, "file", IN_ATTRIB));
	pid_t child = spawn(read_in_child, NULL);
	await_sleep(child);
	checkpoint();
	MUST(chmod("file", 0640));
	reap(child);
	MUST(fcntl(shared_group, F_SETFL, O_NONBLOCK));
	MUST(chmod("file", 0600));
	expect(shared_group, 1, IN_ATTRIB, NULL);
}

static volatile sig_atomic_t told, told_fd;

static void on_event(int signal, siginfo_t *info, void *context)
{
	(void)context;
	told = signal;
	told_fd = info->si_fd;
}

/* Told by a signal; on its way to another task. */
CASE(signals_and_messages)
{
	struct sigaction action = { .sa_sigaction = on_event, .sa_flags = SA_SIGINFO | SA_RESTART };
	int group = MUST(inotify_init1(IN_NONBLOCK)), sent = MUST(inotify_init1(IN_NONBLOCK)), pair[2];
	touch("file");
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	MUST(fcntl(group, F_SETOWN, getpid()));
	MUST(fcntl(group, F_SETSIG, SIGRTMIN + 1));
	MUST(fcntl(group, F_SETFL, O_ASYNC | O_NONBLOCK));
	MUST(inotify_add_watch(group, "file", IN_ATTRIB));
	MUST(inotify_add_watch(sent, "file", IN_OPEN));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	char byte = 'a', control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &sent, sizeof(int));
	MUST(sendmsg(pair[0], &message, 0));
	close(sent);
	checkpoint();
	CHECK(told == 0, "signal %d", told);
	MUST(chmod("file", 0640));
	CHECK(told == SIGRTMIN + 1 && told_fd == group, "signal %d, fd %d", told, told_fd);
	expect(group, 1, IN_ATTRIB, NULL);
	MUST(recvmsg(pair[1], &message, 0));
	memcpy(&sent, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	CHECK(unread(sent) == 0, "%d bytes of events by themselves", unread(sent));
	close(MUST(open("file", O_RDONLY)));
	expect(sent, 1, IN_OPEN, NULL);
}

/* Fd 10 is a group. */
CASE(other_side)
{
	prepared();
	expect(10, 1, IN_ATTRIB, NULL);
	expect(10, 2, IN_CREATE, "new");
}

CASE(between_abis)
{
	int group = MUST(inotify_init1(IN_CLOEXEC)), epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 77 };
	touch("file");
	MUST(mkdir("dir", 0700));
	MUST(inotify_add_watch(group, "file", IN_ATTRIB));
	MUST(inotify_add_watch(group, "dir", IN_CREATE));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, group, &event));
	MUST(dup2(group, 10));
	pid_t child = spawn_abi(other_abi, "other_side", NULL);
	await_sleep(child);
	checkpoint();
	CHECK(epoll_wait(epoll, &event, 1, 0) == 0, "something to read");
	MUST(chmod("file", 0640));
	touch("dir/new");
	reap(child);
	CHECK(epoll_wait(epoll, &event, 1, 0) == 0, "still something to read");
	touch("dir/newer");
	CHECK(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 77, "nothing to read");
	MUST(fcntl(group, F_SETFL, O_NONBLOCK));
	expect(group, 2, IN_CREATE, "newer");
}

#define MANY 10000

/* As many watches as a large source tree takes, and numbers up to the highest. */
CASE(many)
{
	int group = MUST(inotify_init1(IN_NONBLOCK));
	char name[32];
	MUST(mkdir("tree", 0700));
	for (int i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "tree/%d", i);
		MUST(mkdir(name, 0700));
		CHECK(inotify_add_watch(group, name, IN_CREATE) == i + 1, "watch %d", i);
	}
	int far = MUST(inotify_init1(IN_NONBLOCK));
	/* INOTIFY_IOC_SETNEXTWD. */
	MUST(ioctl(far, _IOW('I', 0, int32_t), INT32_MAX - 1));
	CHECK(inotify_add_watch(far, "tree/0", IN_CREATE) == INT32_MAX - 1, "a high number");
	CHECK(inotify_add_watch(far, "tree/1", IN_CREATE) == INT32_MAX, "the highest");
	CHECK(inotify_add_watch(far, "tree/2", IN_CREATE) == 1, "starting over");
	checkpoint();
	for (int i = 0; i < MANY; i += 999) {
		snprintf(name, sizeof(name), "tree/%d/new", i);
		touch(name);
		expect(group, i + 1, IN_CREATE, "new");
	}
	expect(far, INT32_MAX - 1, IN_CREATE, "new");
	touch("tree/1/new");
	expect(far, INT32_MAX, IN_CREATE, "new");
	expect(group, 2, IN_CREATE, "new");
	CHECK(MUST(inotify_add_watch(far, "tree/3", IN_CREATE)) > 0, "one more");
}
