/* POSIX message queues, which stay on the host when their tasks are gone if they have names. */
#include "workload.h"
#include <grp.h>
#include <mqueue.h>
#include <poll.h>
#include <sys/epoll.h>

static char queue_name[64];

/* A queue with a name that no other test has. */
static mqd_t make_with(int flags, struct mq_attr *attributes)
{
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	snprintf(queue_name, sizeof(queue_name), "/crr-test-%lld-%ld-%s", (long long)time.tv_sec, time.tv_nsec, this_abi);
	return MUST(mq_open(queue_name, flags | O_CREAT | O_EXCL, 0600, attributes));
}

/* One for 4 messages of 32 bytes. */
static mqd_t make(int flags)
{
	struct mq_attr attributes = { .mq_maxmsg = 4, .mq_msgsize = 32 };
	return make_with(flags, &attributes);
}

static void send_text(mqd_t queue, const char *text, unsigned priority)
{
	MUST(mq_send(queue, text, strlen(text), priority));
}

#define CHECK_NEXT(queue, text, priority)                                                                 \
	do {                                                                                              \
		char got[33] = "";                                                                        \
		unsigned found = 99;                                                                      \
		CHECK(mq_receive(queue, got, 32, &found) >= 0, "mq_receive: %s", strerror(errno));        \
		CHECK(strcmp(got, text) == 0 && found == (priority), "%s, priority %u", got, found);      \
	} while (0)

static void child_that_sends(void *queue)
{
	prepared();
	wait_for_go();
	send_text((mqd_t)(intptr_t)queue, "from the child", 7);
}

/* Messages with priorities, descriptions with flags, shared by a child. */
CASE(contents)
{
	mqd_t both = make(O_RDWR), reader = MUST(mq_open(queue_name, O_RDONLY | O_NONBLOCK));
	mqd_t writer = MUST(mq_open(queue_name, O_WRONLY));
	MUST(fcntl(writer, F_SETFD, 0));
	send_text(both, "low", 1);
	send_text(writer, "high", 9);
	send_text(writer, "high too", 9);
	char text[16];
	MUST(read(both, text, 3));
	pid_t child = spawn(child_that_sends, (void *)(intptr_t)writer);
	checkpoint();
	finish(child);
	struct mq_attr attributes;
	MUST(mq_getattr(reader, &attributes));
	CHECK(attributes.mq_maxmsg == 4 && attributes.mq_msgsize == 32 && attributes.mq_curmsgs == 4 &&
		      attributes.mq_flags == O_NONBLOCK,
	      "%ld of %ld messages of %ld bytes, flags %#lx", attributes.mq_curmsgs, attributes.mq_maxmsg,
	      attributes.mq_msgsize, attributes.mq_flags);
	CHECK(lseek(both, 0, SEEK_CUR) == 3, "at %ld", (long)lseek(both, 0, SEEK_CUR));
	CHECK_NEXT(reader, "high", 9);
	CHECK_NEXT(both, "high too", 9);
	CHECK_NEXT(reader, "from the child", 7);
	CHECK_NEXT(reader, "low", 1);
	CHECK(mq_receive(reader, text, 32, NULL) == -1 && errno == EAGAIN, "not O_NONBLOCK");
	MUST(mq_unlink(queue_name));
}

static mqd_t empty, full;
static volatile pid_t tids[2];

static void *receive(void *unused)
{
	(void)unused;
	tids[0] = thread_id();
	CHECK_NEXT(empty, "at last", 3);
	return NULL;
}

static void *send_late(void *unused)
{
	(void)unused;
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 1000;
	tids[1] = thread_id();
	CHECK(mq_timedsend(full, "fifth", 5, 0, &until) == 0, "mq_timedsend: %s", strerror(errno));
	return NULL;
}

/* Waited for: a message, and room for one until a given moment. An epoll watches both. */
CASE(waiting)
{
	pthread_t threads[2];
	empty = make(O_RDWR);
	char of_empty[64];
	strcpy(of_empty, queue_name);
	full = make(O_RDWR);
	for (int i = 0; i < 4; i++)
		send_text(full, "one of four", 1);
	int epoll = MUST(epoll_create1(0));
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 1 };
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, empty, &event));
	event.data.u32 = 2;
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, full, &event));
	MUST0(pthread_create(&threads[0], NULL, receive, NULL));
	MUST0(pthread_create(&threads[1], NULL, send_late, NULL));
	for (int i = 0; i < 2; i++) {
		while (tids[i] == 0)
			usleep(1000);
		await_sleep(tids[i]);
	}
	checkpoint();
	CHECK(MUST(epoll_wait(epoll, &event, 1, 0)) == 1 && event.data.u32 == 2, "told %u", event.data.u32);
	send_text(empty, "at last", 3);
	CHECK_NEXT(full, "one of four", 1);
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	for (int i = 0; i < 3; i++)
		CHECK_NEXT(full, "one of four", 1);
	CHECK_NEXT(full, "fifth", 0);
	MUST(mq_unlink(queue_name));
	MUST(mq_unlink(of_empty));
}

/* The other side of between_abis. */
CASE(other_side)
{
	mqd_t queue = MUST(mq_open(case_args[0], O_RDWR));
	prepared();
	wait_for_go();
	CHECK_NEXT(queue, "there", 2);
	send_text(queue, "back", 4);
}

CASE(between_abis)
{
	mqd_t queue = make(O_RDWR);
	pid_t child = spawn_abi(other_abi, "other_side", queue_name);
	send_text(queue, "there", 2);
	checkpoint();
	finish(child);
	CHECK_NEXT(queue, "back", 4);
	MUST(mq_unlink(queue_name));
}

/* One that the test looks for and may make anew, with the limits that the kernel gives it. */
CASE(empty)
{
	mqd_t queue = make_with(O_RDWR, NULL);
	int file = MUST(open("name", O_WRONLY | O_CREAT, 0600));
	MUST(write(file, queue_name, strlen(queue_name)));
	checkpoint();
	char text[9000];
	send_text(queue, "works", 1);
	CHECK(MUST(mq_receive(queue, text, sizeof(text), NULL)) == 5, "another message");
	MUST(mq_unlink(queue_name));
}

/* A pair of queues of one name that is gone. Descriptions of a gone one with flags, shared by a child; who waits at one. */
CASE(unlinked)
{
	struct mq_attr attributes = { .mq_maxmsg = 4, .mq_msgsize = 32 };
	mqd_t first = make(O_RDWR), reader = MUST(mq_open(queue_name, O_RDONLY | O_NONBLOCK));
	mqd_t writer = MUST(mq_open(queue_name, O_WRONLY));
	MUST(fchown(first, 33, 34));
	MUST(fchmod(first, 0640));
	MUST(mq_unlink(queue_name));
	empty = MUST(mq_open(queue_name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes));
	MUST(mq_unlink(queue_name));
	send_text(first, "low", 1);
	send_text(writer, "high", 32767);
	send_text(first, "", 1);
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, receive, NULL));
	while (tids[0] == 0)
		usleep(1000);
	await_sleep(tids[0]);
	pid_t child = spawn(child_that_sends, (void *)(intptr_t)writer);
	checkpoint();
	finish(child);
	struct mq_attr now;
	MUST(mq_getattr(reader, &now));
	CHECK(now.mq_maxmsg == 4 && now.mq_msgsize == 32 && now.mq_curmsgs == 4 && now.mq_flags == O_NONBLOCK, "%ld messages",
	      now.mq_curmsgs);
	struct stat status;
	MUST(fstat(reader, &status));
	CHECK(status.st_uid == 33 && status.st_gid == 34 && status.st_mode == (S_IFREG | 0640) && status.st_nlink == 0, "mode %o",
	      status.st_mode);
	CHECK_NEXT(reader, "high", 32767);
	CHECK_NEXT(reader, "from the child", 7);
	CHECK_NEXT(first, "low", 1);
	CHECK_NEXT(first, "", 1);
	send_text(empty, "at last", 3);
	MUST0(pthread_join(thread, NULL));
}

/* One with a name, for the test to take away. */
CASE(named)
{
	mqd_t queue = make(O_RDWR);
	MUST(fchown(queue, 33, 34));
	MUST(fchmod(queue, 0604));
	send_text(queue, "second", 0);
	send_text(queue, "first", 5);
	send_text(queue, "third", 0);
	checkpoint();
	struct stat status;
	MUST(fstat(queue, &status));
	CHECK(status.st_uid == 33 && status.st_gid == 34 && status.st_mode == (S_IFREG | 0604) && status.st_nlink == 1, "mode %o",
	      status.st_mode);
	CHECK_NEXT(queue, "first", 5);
	CHECK_NEXT(queue, "second", 0);
	CHECK_NEXT(queue, "third", 0);
	MUST(mq_unlink(queue_name));
}

/* Those of a user without privileges who has lost the permission to write, one with a name and one without. */
static void read_only(bool is_unlinked)
{
	MUST(setgroups(0, NULL));
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	MUST(prctl(PR_SET_DUMPABLE, 1));
	mqd_t queue = make(O_RDWR);
	send_text(queue, "kept", 1);
	MUST(fchmod(queue, 0400));
	if (is_unlinked)
		MUST(mq_unlink(queue_name));
	checkpoint();
	send_text(queue, "new", 0);
	CHECK_NEXT(queue, "kept", 1);
	CHECK_NEXT(queue, "new", 0);
	if (!is_unlinked)
		MUST(mq_unlink(queue_name));
}

CASE(read_only_named)
{
	read_only(false);
}

CASE(read_only_unlinked)
{
	read_only(true);
}
