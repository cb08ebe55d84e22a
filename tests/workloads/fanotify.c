/* fanotify: what groups are told of after the checkpoint, by marks of files, mounts and file systems. */
#include "workload.h"
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

static void touch(const char *name)
{
	close(MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600)));
}

static int unread(int group)
{
	int bytes = -1;
	MUST(ioctl(group, FIONREAD, &bytes));
	return bytes;
}

/* Takes all events there are; what of them has these bits, all together. The file of the last one, if events come with files. */
static uint64_t told(int group, char *name, bool *by_us)
{
	_Alignas(struct fanotify_event_metadata) char buffer[4096];
	uint64_t all = 0;
	*by_us = false;
	while (unread(group) > 0) {
		ssize_t length = MUST(read(group, buffer, sizeof(buffer)));
		struct fanotify_event_metadata *event = (void *)buffer;
		for (; FAN_EVENT_OK(event, length); event = FAN_EVENT_NEXT(event, length)) {
			all |= event->mask;
			*by_us |= event->pid == getpid();
			if (event->fd >= 0) {
				char link[64];
				snprintf(link, sizeof(link), "/proc/self/fd/%d", event->fd);
				ssize_t end = MUST(readlink(link, name, 255));
				name[end] = 0;
				close(event->fd);
			}
		}
	}
	return all;
}

#define CHECK_TOLD(group, what, file)                                                                       \
	do {                                                                                                \
		char name[256] = "";                                                                        \
		bool by_us;                                                                                 \
		uint64_t mask = told(group, name, &by_us);                                                  \
		CHECK(mask == (what), "%#llx instead of %#llx", (unsigned long long)mask,                   \
		      (unsigned long long)(what));                                                          \
		CHECK(by_us, "caused by somebody else");                                                    \
		const char *end = strrchr(name, '/');                                                       \
		CHECK(strcmp(end == NULL ? "" : end + 1, file) == 0, "%s instead of %s", name, file);       \
	} while (0)

/* Files for who is told; a file and a directory with what is in it. */
CASE(files)
{
	int group = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_UNLIMITED_MARKS, O_RDONLY | O_CLOEXEC));
	MUST(mkdir("dir", 0700));
	touch("dir/in");
	touch("file");
	touch("plain");
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "file"));
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_CLOSE_WRITE | FAN_ONDIR | FAN_EVENT_ON_CHILD, AT_FDCWD, "dir"));
	MUST(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE, AT_FDCWD,
			   "dir/in"));
	touch("dir/out");
	char name[256];
	bool by_us;
	CHECK(told(group, name, &by_us) == FAN_CLOSE_WRITE && by_us, "not told");
	checkpoint();
	CHECK(unread(group) == 0, "told of the restore: %d", unread(group));
	int file = MUST(open("file", O_RDWR));
	CHECK(unread(group) == 0, "told of an open");
	MUST(write(file, "x", 1));
	CHECK_TOLD(group, FAN_MODIFY, "file");
	touch("dir/in");
	touch("plain");
	CHECK(unread(group) == 0, "told of what is to be ignored: %d", unread(group));
	touch("dir/out");
	CHECK_TOLD(group, FAN_CLOSE_WRITE, "out");
}

/* Handles and names for who is told, who has no rights. */
static void by_handle(unsigned flags)
{
	int group = MUST(fanotify_init(flags, 0));
	MUST(mkdir("dir", 0700));
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_CREATE | FAN_DELETE | FAN_ONDIR, AT_FDCWD, "dir"));
	touch("file");
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_ATTRIB, AT_FDCWD, "file"));
	checkpoint();
	CHECK(unread(group) == 0, "told of the restore: %d", unread(group));
	touch("dir/new");
	CHECK_TOLD(group, FAN_CREATE, "");
	MUST(mkdir("dir/sub", 0700));
	CHECK_TOLD(group, FAN_CREATE | FAN_ONDIR, "");
	MUST(chmod("file", 0640));
	CHECK_TOLD(group, FAN_ATTRIB, "");
}

CASE(handles)
{
	by_handle(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK);
}

CASE(names)
{
	by_handle(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME | FAN_UNLIMITED_QUEUE);
}

/* By a user without privileges: such a group is not told who else caused an event. */
CASE(ordinary)
{
	MUST(mkdir("dir", 0777));
	MUST(chmod("dir", 0777));
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	int group = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID, 0));
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_CREATE, AT_FDCWD, "dir"));
	checkpoint();
	CHECK(unread(group) == 0, "told of the restore");
	pid_t child = MUST(fork());
	if (child == 0) {
		touch("dir/by-child");
		_exit(0);
	}
	MUST(waitpid(child, NULL, 0));
	struct {
		struct fanotify_event_metadata event;
		char more[200];
	} buffer;
	MUST(read(group, &buffer, sizeof(buffer)));
	CHECK(buffer.event.mask == FAN_CREATE && buffer.event.pid == 0, "%#llx by %d", (unsigned long long)buffer.event.mask,
	      buffer.event.pid);
}

/* All of a mount, and all of a file system; in an epoll, and for a child, too. */
CASE(mounts)
{
	MUST(mkdir("mount", 0700));
	MUST(mount("tmpfs", "mount", "tmpfs", 0, NULL));
	MUST(mkdir("mount/dir", 0700));
	MUST(mkdir("bound", 0700));
	MUST(mount("mount/dir", "bound", NULL, MS_BIND, NULL));
	touch("mount/dir/file");
	int mounted = MUST(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY)), all = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_TID, O_RDONLY)),
	    epoll = MUST(epoll_create1(0));
	MUST(fanotify_mark(mounted, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN, AT_FDCWD, "bound"));
	MUST(fanotify_mark(all, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN | FAN_CLOSE_NOWRITE, AT_FDCWD, "bound"));
	struct epoll_event event = { .events = EPOLLIN };
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, all, &event));
	checkpoint();
	CHECK(epoll_wait(epoll, &event, 1, 0) == 0 && unread(mounted) == 0, "told of the restore");
	close(MUST(open("mount/dir/file", O_RDONLY)));
	CHECK(epoll_wait(epoll, &event, 1, 0) == 1, "the epoll tells nothing");
	CHECK(unread(mounted) == 0, "told of another mount");
	CHECK_TOLD(all, FAN_OPEN | FAN_CLOSE_NOWRITE, "file");
	close(MUST(open("bound/file", O_RDONLY)));
	CHECK_TOLD(mounted, FAN_OPEN, "file");
}

static int group_of_both;

static void child_that_causes(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
	touch("dir/by-child");
	CHECK(unread(group_of_both) > 0, "the child's copy is another group");
}

/* A group that a child has, too, one that waits in read(2), and a mark of a file that is open and has no name. */
static void *read_one(void *group)
{
	struct fanotify_event_metadata event;
	MUST(read((int)(intptr_t)group, &event, sizeof(event)));
	close(event.fd);
	return (void *)(intptr_t)(event.mask == FAN_MODIFY);
}

CASE(shared)
{
	MUST(mkdir("dir", 0700));
	group_of_both = MUST(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY));
	MUST(fanotify_mark(group_of_both, FAN_MARK_ADD, FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD, AT_FDCWD, "dir"));
	pid_t child = spawn(child_that_causes, NULL);
	int other = MUST(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY)), gone = MUST(open("gone", O_RDWR | O_CREAT, 0600));
	MUST(fanotify_mark(other, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "gone"));
	MUST(unlink("gone"));
	pthread_t reader;
	MUST0(pthread_create(&reader, NULL, read_one, (void *)(intptr_t)other));
	checkpoint();
	finish(child);
	char name[256];
	bool by_us;
	CHECK(told(group_of_both, name, &by_us) == FAN_CLOSE_WRITE, "not told of the child");
	MUST(write(gone, "x", 1));
	void *right;
	MUST0(pthread_join(reader, &right));
	CHECK(right != NULL, "told of something else");
}

static void name_it(const char *text, int group)
{
	printf("NAME fd %d (anon_inode:[fanotify]): %s\n", group, text);
	fflush(stdout);
}

/* Takes the first event alone: its bits. */
static uint64_t first(int group)
{
	/* Of a group with handles, too. */
	_Alignas(struct fanotify_event_metadata) char buffer[4096];
	struct fanotify_event_metadata *event = (void *)buffer;
	size_t room = sizeof(*event);
	while (read(group, buffer, room) == -1 && errno == EINVAL)
		room += 4;
	if (event->fd >= 0)
		close(event->fd);
	return event->mask;
}

/* Events that were not read: all of them, or one that tells the loss. */
static void lose(unsigned flags, int event_flags)
{
	int group = MUST(fanotify_init(flags, (unsigned)event_flags)), epoll = MUST(epoll_create1(0));
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	touch("one");
	touch("two");
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "one"));
	MUST(fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "two"));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, group, &event));
	touch("two");
	int one = MUST(open("one", O_RDWR));
	MUST(write(one, "x", 1));
	checkpoint();
	CHECK(epoll_wait(epoll, &event, 1, 0) == 1, "nothing to read");
	bool restored = unread(group) == (int)sizeof(struct fanotify_event_metadata);
	touch("two");
	if (restored) {
		uint64_t mask = first(group);
		CHECK(mask == FAN_Q_OVERFLOW, "%#llx", (unsigned long long)mask);
	} else {
		uint64_t masks[2] = { first(group), first(group) };
		CHECK(masks[0] == FAN_OPEN && masks[1] == FAN_MODIFY, "%#llx, %#llx", (unsigned long long)masks[0],
		      (unsigned long long)masks[1]);
		/* As one with the first, or by itself. */
		if (unread(group) == 0)
			return;
	}
	uint64_t mask = first(group);
	CHECK(mask == FAN_OPEN && unread(group) == 0, "%#llx, and %d bytes more", (unsigned long long)mask, unread(group));
}

CASE(unread_events)
{
	lose(FAN_CLASS_NOTIF | FAN_UNLIMITED_MARKS, O_RDWR);
}

CASE(unread_names)
{
	lose(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME | FAN_REPORT_FID, 0);
}

/* What nobody could make again. */
CASE(refused)
{
	touch("file");
	int full = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_UNLIMITED_QUEUE, O_RDONLY)), fickle = MUST(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY));
	MUST(fanotify_mark(full, FAN_MARK_ADD, FAN_MODIFY | FAN_CLOSE, AT_FDCWD, "file"));
	touch("file");
	MUST(fanotify_mark(fickle, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK, FAN_MODIFY, AT_FDCWD, "file"));
	name_it("events that have not been read would be lost", full);
	name_it("it ignores a file until that is changed", fickle);
	checkpoint();
	CHECK(unread(full) > 0, "events are gone");
}

static void *answer_all(void *group)
{
	for (;;) {
		struct fanotify_event_metadata event;
		MUST(read((int)(intptr_t)group, &event, sizeof(event)));
		struct fanotify_response response = { event.fd, FAN_ALLOW };
		MUST(write((int)(intptr_t)group, &response, sizeof(response)));
		close(event.fd);
	}
	return NULL;
}

/* One that is asked about the very files that crr needs. It answers as long as it runs. */
CASE(judge)
{
	int group = MUST(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
	pthread_t judge;
	MUST0(pthread_create(&judge, NULL, answer_all, (void *)(intptr_t)group));
	MUST(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN_PERM, AT_FDCWD, "/"));
	name_it("a fanotify group that is asked for permission", group);
	checkpoint();
	touch("file");
}
