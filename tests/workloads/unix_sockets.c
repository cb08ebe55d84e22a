/* Unix sockets: pairs, what waits in them, who is at the other end, options. */
#include "workload.h"
#include <grp.h>
#include <linux/filter.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

static const int kinds[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };

static void pair_of(int kind, int *ends)
{
	MUST(socketpair(AF_UNIX, kind, 0, ends));
}

static void put(int fd, size_t length, uint32_t seed)
{
	char *bytes = map_anonymous(length + PAGE);
	fill(bytes, length, seed);
	CHECK(send(fd, bytes, length, 0) == (ssize_t)length, "send: %s", strerror(errno));
	MUST(munmap(bytes, length + PAGE));
}

/* The next message of a socket that keeps boundaries, or so many bytes of one that does not. */
static void get(int fd, size_t length, uint32_t seed)
{
	char *bytes = map_anonymous(length + PAGE);
	size_t have = 0;
	int kind = 0;
	socklen_t size = sizeof(kind);
	MUST(getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size));
	do {
		size_t most = kind == SOCK_STREAM ? length - have : length + 1;
		ssize_t got = recv(fd, bytes + have, most, MSG_DONTWAIT);
		CHECK(got >= 0, "recv after %zu bytes: %s", have, strerror(errno));
		if (got <= 0)
			break;
		have += (size_t)got;
	} while (kind == SOCK_STREAM && have < length);
	CHECK(have == length, "%zu bytes instead of %zu", have, length);
	CHECK_FILL(bytes, length, seed);
	MUST(munmap(bytes, length + PAGE));
}

static void nothing_left_in(int fd)
{
	char byte;
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is there than was sent");
}

static int option(int fd, int name)
{
	int value = -1;
	socklen_t length = sizeof(value);
	MUST(getsockopt(fd, SOL_SOCKET, name, &value, &length));
	return value;
}

static void set(int fd, int name, int value)
{
	MUST(setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value)));
}

CASE(pairs)
{
	int ends[LENGTH(kinds)][2];
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		pair_of(kinds[i], ends[i]);
		put(ends[i][0], 100, 1);
		put(ends[i][0], 5000, 2);
		put(ends[i][1], 300, 3);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		CHECK(option(ends[i][0], SO_TYPE) == kinds[i], "type %d", option(ends[i][0], SO_TYPE));
		get(ends[i][1], 100, 1);
		get(ends[i][1], 5000, 2);
		get(ends[i][0], 300, 3);
		put(ends[i][0], 70, 4);
		get(ends[i][1], 70, 4);
		put(ends[i][1], 80, 5);
		get(ends[i][0], 80, 5);
		nothing_left_in(ends[i][0]);
		nothing_left_in(ends[i][1]);
		close(ends[i][1]);
		if (kinds[i] != SOCK_DGRAM)
			CHECK(recv(ends[i][0], &(char){ 0 }, 1, 0) == 0, "no end of file");
	}
}

/* Until not one byte more goes in; in a stream also by single bytes, each a buffer of its own. */
CASE(full)
{
	int ends[LENGTH(kinds)][2], small[2];
	size_t count[LENGTH(kinds)] = { 0 }, bytes = 0;
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		pair_of(kinds[i], ends[i]);
		while (send(ends[i][0], &count[i], sizeof(count[i]), MSG_DONTWAIT) == sizeof(count[i]))
			count[i]++;
		CHECK(errno == EAGAIN && count[i] > 5, "%zu messages, %s", count[i], strerror(errno));
	}
	pair_of(SOCK_STREAM, small);
	while (send(small[0], &(char){ (char)bytes }, 1, MSG_DONTWAIT) == 1)
		bytes++;
	checkpoint();
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		for (size_t j = 0; j < count[i]; j++) {
			size_t number = 0;
			ssize_t got = recv(ends[i][1], &number, sizeof(number), MSG_DONTWAIT);
			CHECK(got == sizeof(number) && number == j, "message %zu is %zu, recv gives %zd", j, number, got);
		}
		nothing_left_in(ends[i][1]);
	}
	for (size_t j = 0; j < bytes; j++) {
		char byte = 0;
		CHECK(recv(small[1], &byte, 1, MSG_DONTWAIT) == 1 && byte == (char)j, "byte %zu is %d", j, byte);
	}
	nothing_left_in(small[1]);
	put(small[0], 1000, 3);
	get(small[1], 1000, 3);
}

/* Messages without contents have a place in the queue, too. */
CASE(empty_messages)
{
	static const size_t lengths[] = { 0, 3, 0, 0, 100000, 0 };
	int ends[2][2];
	for (size_t i = 0; i < 2; i++) {
		pair_of(kinds[i + 1], ends[i]);
		for (size_t j = 0; j < LENGTH(lengths); j++)
			put(ends[i][0], lengths[j], (uint32_t)j);
	}
	checkpoint();
	for (size_t i = 0; i < 2; i++) {
		for (size_t j = 0; j < LENGTH(lengths); j++)
			get(ends[i][1], lengths[j], (uint32_t)j);
		nothing_left_in(ends[i][1]);
	}
}

static short polled(int fd)
{
	struct pollfd entry = { .fd = fd, .events = POLLIN | POLLRDHUP };
	MUST(poll(&entry, 1, 0));
	return entry.revents;
}

/* The other end is closed: before anything was sent, with data left here, with data left there. */
CASE(closed_ends)
{
	int idle[2], full[2], reset[2], packets[2], datagrams[2];
	MUST((intptr_t)signal(SIGPIPE, SIG_IGN));
	pair_of(SOCK_STREAM, idle);
	pair_of(SOCK_STREAM, full);
	pair_of(SOCK_STREAM, reset);
	pair_of(SOCK_SEQPACKET, packets);
	pair_of(SOCK_DGRAM, datagrams);
	put(full[1], 7000, 1);
	put(reset[0], 10, 2);
	put(reset[1], 900, 3);
	put(packets[1], 20, 4);
	put(packets[1], 30, 5);
	put(datagrams[1], 40, 6);
	close(idle[1]);
	close(full[1]);
	close(reset[1]);
	close(packets[1]);
	close(datagrams[1]);
	checkpoint();
	char byte;
	CHECK(polled(idle[0]) == (POLLIN | POLLRDHUP | POLLHUP), "events %#x", polled(idle[0]));
	CHECK(recv(idle[0], &byte, 1, 0) == 0, "no end of file");
	CHECK(send(idle[0], "x", 1, 0) == -1 && errno == EPIPE, "no EPIPE: %s", strerror(errno));
	get(full[0], 7000, 1);
	CHECK(recv(full[0], &byte, 1, 0) == 0, "no end of file after the last bytes");
	CHECK(polled(reset[0]) == (POLLIN | POLLRDHUP | POLLHUP | POLLERR), "events %#x", polled(reset[0]));
	get(reset[0], 900, 3);
	CHECK(recv(reset[0], &byte, 1, 0) == -1 && errno == ECONNRESET, "no ECONNRESET: %s", strerror(errno));
	CHECK(recv(reset[0], &byte, 1, 0) == 0, "no end of file after the error");
	get(packets[0], 20, 4);
	get(packets[0], 30, 5);
	CHECK(recv(packets[0], &byte, 1, 0) == 0, "no end of the packets");
	get(datagrams[0], 40, 6);
	nothing_left_in(datagrams[0]);
	CHECK(send(datagrams[0], "x", 1, 0) == -1 && errno == ECONNREFUSED, "no ECONNREFUSED: %s", strerror(errno));
}

CASE(shut_down)
{
	int half[LENGTH(kinds)][2], whole[2];
	MUST((intptr_t)signal(SIGPIPE, SIG_IGN));
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		pair_of(kinds[i], half[i]);
		put(half[i][0], 50, 1);
		MUST(shutdown(half[i][0], SHUT_WR));
	}
	pair_of(SOCK_STREAM, whole);
	put(whole[1], 60, 2);
	MUST(shutdown(whole[0], SHUT_RDWR));
	checkpoint();
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		char byte;
		CHECK(send(half[i][0], "x", 1, 0) == -1 && errno == EPIPE, "no EPIPE: %s", strerror(errno));
		get(half[i][1], 50, 1);
		if (kinds[i] != SOCK_DGRAM)
			CHECK(recv(half[i][1], &byte, 1, MSG_DONTWAIT) == 0, "no end of file");
		put(half[i][1], 70, 3);
		get(half[i][0], 70, 3);
	}
	get(whole[0], 60, 2);
	CHECK(recv(whole[0], &(char){ 0 }, 1, 0) == 0, "no end of file");
	CHECK(send(whole[1], "x", 1, 0) == -1 && errno == EPIPE, "no EPIPE: %s", strerror(errno));
}

CASE(unconnected)
{
	int alone[LENGTH(kinds)];
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		alone[i] = MUST(socket(AF_UNIX, kinds[i] | (i == 1 ? SOCK_NONBLOCK | SOCK_CLOEXEC : 0), 0));
		set(alone[i], SO_SNDBUF, 5000 + (int)i);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		CHECK(option(alone[i], SO_TYPE) == kinds[i] && option(alone[i], SO_SNDBUF) == 2 * (5000 + (int)i), "options");
		CHECK(send(alone[i], "x", 1, MSG_NOSIGNAL) == -1 && errno == ENOTCONN, "no ENOTCONN: %s", strerror(errno));
	}
	CHECK(fcntl(alone[1], F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(alone[1], F_GETFD) == FD_CLOEXEC, "flags");
}

/* Reads so much at once, and compares it. */
static void read_at_once(size_t i, int fd, const char *text)
{
	char bytes[20];
	ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	CHECK(got == (ssize_t)strlen(text) && memcmp(bytes, text, (size_t)got) == 0, "stream %zu: %zd bytes (%.*s), %s", i, got,
	      (int)(got < 0 ? 0 : got), bytes, strerror(errno));
}

static bool at_mark(int fd)
{
	int answer = -1;
	MUST(ioctl(fd, SIOCATMARK, &answer));
	return answer == 1;
}

/* Bytes out of band: at the front, in the middle, at the end, alone, after an older one, to be read with the others. */
CASE(out_of_band)
{
	static const struct {
		const char *before, *mark, *behind;
		bool in_line;
	} all[] = {
		{ "abc", "!", "def", false }, { "", "!", "def", false }, { "abc", "!", "", false }, { "", "!", "", false },
		{ "abc", "!", "def", true },  { "", "!", "def", true },	 { "a!!b", "!", "!!", false },
	};
	int ends[LENGTH(all)][2], aged[2], on = 1;
	char byte;
	for (size_t i = 0; i < LENGTH(all); i++) {
		pair_of(SOCK_STREAM, ends[i]);
		MUST(setsockopt(ends[i][1], SOL_SOCKET, SO_OOBINLINE, &(int){ all[i].in_line }, sizeof(int)));
		MUST(send(ends[i][0], all[i].before, strlen(all[i].before), 0));
		MUST(send(ends[i][0], all[i].mark, 1, MSG_OOB));
		MUST(send(ends[i][0], all[i].behind, strlen(all[i].behind), 0));
	}
	pair_of(SOCK_STREAM, aged);
	MUST(setsockopt(aged[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	MUST(send(aged[0], "1", 1, MSG_OOB));
	MUST(send(aged[0], "ab", 2, 0));
	MUST(send(aged[0], "2", 1, MSG_OOB));
	checkpoint();
	for (size_t i = 0; i < LENGTH(all); i++) {
		int fd = ends[i][1];
		struct pollfd polled = { .fd = fd, .events = POLLPRI };
		CHECK(poll(&polled, 1, 0) == 1 && polled.revents == POLLPRI, "stream %zu: poll says %#x", i, polled.revents);
		CHECK(at_mark(fd) == (all[i].before[0] == 0), "stream %zu: the mark", i);
		if (all[i].before[0] != 0)
			read_at_once(i, fd, all[i].before);
		CHECK(at_mark(fd), "stream %zu: the mark is elsewhere", i);
		if (all[i].in_line) {
			read_at_once(i, fd, "!def");
		} else {
			CHECK(recv(fd, &byte, 1, MSG_OOB | MSG_DONTWAIT) == 1 && byte == '!', "stream %zu: %s", i, strerror(errno));
			if (all[i].behind[0] != 0)
				read_at_once(i, fd, all[i].behind);
		}
		nothing_left_in(fd);
		CHECK(send(ends[i][0], "on", 2, 0) == 2, "send: %s", strerror(errno));
		read_at_once(i, fd, "on");
	}
	read_at_once(LENGTH(all), aged[1], "1ab");
	CHECK(recv(aged[1], &byte, 1, MSG_OOB | MSG_DONTWAIT) == 1 && byte == '2', "the younger one: %s", strerror(errno));
}

/* Of datagrams, with which some are let in, and which are locked. */
CASE(filters)
{
	struct sock_filter longer[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 100),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog program = { LENGTH(longer), longer };
	int ends[2], on = 1;
	pair_of(SOCK_DGRAM, ends);
	put(ends[0], 2, 1);
	MUST(setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	MUST(setsockopt(ends[1], SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on)));
	put(ends[0], 20, 2);
	checkpoint();
	put(ends[0], 3, 3);
	put(ends[0], 4, 4);
	get(ends[1], 2, 1);
	get(ends[1], 20, 2);
	get(ends[1], 4, 4);
	nothing_left_in(ends[1]);
	CHECK(setsockopt(ends[1], SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof(on)) == -1 && errno == EPERM, "its filter goes");
}

/* Every option that can be set, each with another value than it has. */
CASE(options)
{
	static const struct {
		int name, value, shown;
	} set_to[] = {
		{ SO_SNDBUF, 70000, 140000 },
		{ SO_RCVBUF, 50000, 100000 },
		{ SO_BUF_LOCK, 1, 1 },
		{ SO_PASSCRED, 1, 1 },
		{ SO_PASSSEC, 1, 1 },
		{ SO_RCVLOWAT, 17, 17 },
		{ SO_PRIORITY, 4, 4 },
		{ SO_MARK, 77, 77 },
		{ SO_PEEK_OFF, 3, 3 },
		{ SO_TIMESTAMPNS, 1, 1 },
		{ SO_KEEPALIVE, 1, 1 },
		{ SO_REUSEADDR, 1, 1 },
		{ SO_BROADCAST, 1, 1 },
		{ SO_OOBINLINE, 1, 1 },
		{ SO_NO_CHECK, 1, 1 },
		{ SO_RXQ_OVFL, 1, 1 },
		{ SO_PASSPIDFD, 1, 1 },
		{ SO_PASSRIGHTS, 0, 0 },
	};
	const struct timeval receive = { 3, 200000 }, send = { 7, 500000 };
	const struct linger linger = { 1, 30 };
	int ends[2];
	bool known[LENGTH(set_to)];
	pair_of(SOCK_STREAM, ends);
	for (size_t i = 0; i < LENGTH(set_to); i++) {
		known[i] = setsockopt(ends[0], SOL_SOCKET, set_to[i].name, &set_to[i].value, sizeof(int)) == 0;
		CHECK(known[i] || errno == ENOPROTOOPT, "option %d: %s", set_to[i].name, strerror(errno));
	}
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof(receive)));
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &send, sizeof(send)));
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	/* Beyond what an ordinary user may set. */
	set(ends[1], SO_SNDBUFFORCE, 10000000);
	put(ends[1], 3000, 1);
	checkpoint();
	for (size_t i = 0; i < LENGTH(set_to); i++)
		if (known[i])
			CHECK(option(ends[0], set_to[i].name) == set_to[i].shown, "option %d is %d instead of %d",
			      set_to[i].name, option(ends[0], set_to[i].name), set_to[i].shown);
	CHECK(option(ends[1], SO_SNDBUF) == 20000000, "size %d", option(ends[1], SO_SNDBUF));
	struct timeval time;
	struct linger shown;
	socklen_t length = sizeof(time);
	MUST(getsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, &length));
	CHECK(time.tv_sec == 3 && time.tv_usec == 200000, "%ld.%06ld s", (long)time.tv_sec, (long)time.tv_usec);
	MUST(getsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &time, &length));
	CHECK(time.tv_sec == 7 && time.tv_usec == 500000, "%ld.%06ld s", (long)time.tv_sec, (long)time.tv_usec);
	length = sizeof(shown);
	MUST(getsockopt(ends[0], SOL_SOCKET, SO_LINGER, &shown, &length));
	CHECK(shown.l_onoff == 1 && shown.l_linger == 30, "linger %d, %d", shown.l_onoff, shown.l_linger);
	/* The offset is where a look begins, not where reading does. */
	char *bytes = map_anonymous(PAGE), *expected = map_anonymous(PAGE);
	fill(expected, 3000, 1);
	CHECK(recv(ends[0], bytes, 10, MSG_PEEK) == 10 && memcmp(bytes, expected + 3, 10) == 0, "peeked at another place");
	set(ends[0], SO_PEEK_OFF, -1);
	get(ends[0], 3000, 1);
}

struct message {
	char bytes[64];
	ssize_t length;
	int fds[8];
	size_t count;
	struct ucred sender;
	bool has_sender;
};

static void send_fds(int to, const char *bytes, size_t length, const int *fds, size_t count)
{
	union {
		char buffer[256];
		struct cmsghdr header;
	} control;
	struct iovec vector = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = length };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1 };
	memset(&control, 0, sizeof(control));
	if (count > 0) {
		header.msg_control = control.buffer;
		header.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
	}
	CHECK(sendmsg(to, &header, 0) == (ssize_t)length, "sendmsg: %s", strerror(errno));
}

static struct message receive(int from, size_t most)
{
	union {
		char buffer[512];
		struct cmsghdr header;
	} control;
	struct message message = { 0 };
	struct iovec vector = { .iov_base = message.bytes, .iov_len = most };
	struct msghdr header = { .msg_iov = &vector,
				 .msg_iovlen = 1,
				 .msg_control = control.buffer,
				 .msg_controllen = sizeof(control.buffer) };
	message.length = recvmsg(from, &header, MSG_DONTWAIT);
	CHECK(message.length >= 0, "recvmsg: %s", strerror(errno));
	for (struct cmsghdr *entry = CMSG_FIRSTHDR(&header); entry != NULL; entry = CMSG_NXTHDR(&header, entry)) {
		if (entry->cmsg_type == SCM_RIGHTS) {
			message.count = (entry->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(message.fds, CMSG_DATA(entry), message.count * sizeof(int));
		}
		if (entry->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&message.sender, CMSG_DATA(entry), sizeof(message.sender));
			message.has_sender = true;
		}
	}
	return message;
}

static bool same_file(int a, int b)
{
	return syscall(SYS_kcmp, getpid(), getpid(), 0, a, b) == 0;
}

/* Descriptors of every kind on their way, in streams between other bytes. */
CASE(descriptors_in_flight)
{
	int stream[2], packets[2], ends[2], other[2];
	int file = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(file, "abcdef", 6));
	MUST(lseek(file, 2, SEEK_SET));
	MUST(pipe(ends));
	MUST(write(ends[1], "in the pipe", 11));
	pair_of(SOCK_STREAM, stream);
	pair_of(SOCK_SEQPACKET, packets);
	pair_of(SOCK_STREAM, other);
	put(other[0], 50, 9);
	put(stream[0], 10, 1);
	send_fds(stream[0], "xy", 2, (int[]){ file, ends[0] }, 2);
	put(stream[0], 20, 2);
	/* What nobody holds but the queue. */
	send_fds(packets[0], "q", 1, (int[]){ other[1] }, 1);
	send_fds(packets[0], "r", 1, NULL, 0);
	send_fds(packets[0], "s", 1, (int[]){ ends[1], file }, 2);
	close(other[1]);
	close(ends[0]);
	checkpoint();
	get(stream[1], 10, 1);
	struct message message = receive(stream[1], 64);
	CHECK(message.length == 2 && message.count == 2 && memcmp(message.bytes, "xy", 2) == 0, "%zd bytes, %zu descriptors",
	      message.length, message.count);
	CHECK(message.count == 2 && same_file(message.fds[0], file), "the file is another one");
	char bytes[16] = "";
	CHECK(read(file, bytes, 2) == 2 && memcmp(bytes, "cd", 2) == 0, "the offset of the file");
	CHECK(read(message.fds[1], bytes, 16) == 11 && memcmp(bytes, "in the pipe", 11) == 0, "the pipe");
	get(stream[1], 20, 2);
	nothing_left_in(stream[1]);
	message = receive(packets[1], 64);
	CHECK(message.bytes[0] == 'q' && message.count == 1, "%zu descriptors", message.count);
	get(message.fds[0], 50, 9);
	put(message.fds[0], 60, 10);
	get(other[0], 60, 10);
	message = receive(packets[1], 64);
	CHECK(message.bytes[0] == 'r' && message.count == 0, "%zu descriptors", message.count);
	message = receive(packets[1], 64);
	CHECK(message.bytes[0] == 's' && message.count == 2 && same_file(message.fds[0], ends[1]) &&
		      same_file(message.fds[1], file),
	      "%zu descriptors", message.count);
	nothing_left_in(packets[1]);
}

static const char flying[] = "sent by another one";

/* Sends a descriptor that nobody else has, and no other kind of it. */
static void send_own(int to)
{
	int ends[2];
	MUST(pipe(ends));
	MUST(write(ends[1], flying, sizeof(flying)));
	send_fds(to, "f", 1, &ends[0], 1);
	close(ends[0]);
	close(ends[1]);
}

static void send_and_stay(void *end)
{
	send_own(*(int *)end);
	prepared();
	wait_for_go();
}

/* The same, of the other ABI, over fd 10. */
CASE(passes_on)
{
	send_own(10);
	prepared();
	wait_for_go();
}

/* Descriptors on their way that are sent by others than who is to receive them: a task of each ABI, and one that is gone. */
CASE(descriptors_of_others)
{
	int ends[3][2];
	pid_t children[2];
	for (size_t i = 0; i < LENGTH(ends); i++)
		pair_of(kinds[i], ends[i]);
	children[0] = spawn(send_and_stay, &ends[0][0]);
	MUST(dup2(ends[1][0], 10));
	children[1] = spawn_abi(other_abi, "passes_on", NULL);
	close(10);
	pid_t gone = MUST(fork());
	if (gone == 0) {
		send_own(ends[2][0]);
		_exit(0);
	}
	reap(gone);
	/* The sending ends are with those who sent. */
	close(ends[0][0]);
	close(ends[1][0]);
	checkpoint();
	for (size_t i = 0; i < LENGTH(ends); i++) {
		char bytes[64] = "";
		struct message message = receive(ends[i][1], 64);
		CHECK(message.bytes[0] == 'f' && message.count == 1, "socket %zu: %zu descriptors", i, message.count);
		ssize_t got = read(message.fds[0], bytes, sizeof(bytes));
		CHECK(got == sizeof(flying) && strcmp(bytes, flying) == 0, "socket %zu: %zd bytes", i, got);
		CHECK(read(message.fds[0], bytes, sizeof(bytes)) == 0, "socket %zu: somebody can write", i);
	}
	for (size_t i = 0; i < LENGTH(children); i++)
		finish(children[i]);
}

/* A socket in its own queue, and two in each other's. */
CASE(descriptor_cycles)
{
	int own[2], one[2], two[2];
	pair_of(SOCK_STREAM, own);
	pair_of(SOCK_DGRAM, one);
	pair_of(SOCK_STREAM, two);
	send_fds(own[0], "o", 1, (int[]){ own[1] }, 1);
	send_fds(one[0], "1", 1, (int[]){ two[1] }, 1);
	send_fds(two[0], "2", 1, (int[]){ one[1] }, 1);
	close(two[1]);
	checkpoint();
	struct message message = receive(own[1], 64);
	CHECK(message.count == 1 && same_file(message.fds[0], own[1]), "%zu descriptors", message.count);
	message = receive(one[1], 64);
	CHECK(message.count == 1, "%zu descriptors", message.count);
	message = receive(message.fds[0], 64);
	CHECK(message.bytes[0] == '2' && message.count == 1 && same_file(message.fds[0], one[1]), "%zu descriptors",
	      message.count);
}

static int shared[2];
static pid_t sender_of[2];

static void sender(void *user)
{
	if (user != NULL) {
		MUST(setresgid(1234, 1234, 1234));
		MUST(setresuid(4321, 4321, 4321));
	}
	MUST(send(shared[0], "child", 5, 0));
	prepared();
	wait_for_go();
}

/* Who sent what is on its way: this task, another user, one that is gone. */
CASE(senders)
{
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		pair_of(kinds[i], shared);
		/* Sent before anybody asked. */
		MUST(send(shared[0], "nobody", 6, 0));
		set(shared[1], SO_PASSCRED, 1);
		MUST(dup2(shared[0], 20 + (int)i));
		MUST(dup2(shared[1], 30 + (int)i));
		MUST(send(shared[0], "self", 4, 0));
		if (i == 0)
			sender_of[0] = spawn(sender, "another user");
		else
			MUST(send(shared[0], "again", 5, 0));
		pid_t gone = MUST(fork());
		if (gone == 0) {
			MUST(send(shared[0], "gone!", 5, 0));
			_exit(0);
		}
		reap(gone);
		if (i == 0)
			sender_of[1] = gone;
		else
			MUST(send(shared[0], (char *)&gone, sizeof(gone), 0));
		close(shared[0]);
		close(shared[1]);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(kinds); i++) {
		int from = 30 + (int)i;
		struct message message = receive(from, 64);
		CHECK(message.length == 6 && message.has_sender && message.sender.pid == 0, "%zd bytes by %d", message.length,
		      message.sender.pid);
		message = receive(from, 64);
		CHECK(message.length == 4 && message.sender.pid == getpid() && message.sender.uid == 0, "%zd bytes by %d",
		      message.length, message.sender.pid);
		message = receive(from, 64);
		if (i == 0)
			CHECK(message.length == 5 && message.sender.pid == sender_of[0] && message.sender.uid == 4321 &&
				      message.sender.gid == 1234,
			      "%zd bytes by %d, user %d", message.length, message.sender.pid, message.sender.uid);
		message = receive(from, 64);
		pid_t gone = sender_of[1];
		if (i != 0) {
			struct message last = receive(from, 64);
			memcpy(&gone, last.bytes, sizeof(gone));
		}
		CHECK(message.length == 5 && message.sender.pid == gone, "%zd bytes by %d instead of %d", message.length,
		      message.sender.pid, gone);
	}
	finish(sender_of[0]);
}

static void check_maker(int fd, pid_t pid, uid_t uid, gid_t gid)
{
	struct ucred maker = { 0 };
	socklen_t length = sizeof(maker);
	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &maker, &length));
	CHECK(maker.pid == pid && maker.uid == uid && maker.gid == gid, "%d %d %d instead of %d %d %d", maker.pid, maker.uid,
	      maker.gid, pid, uid, gid);
}

static void make_pair(void *user)
{
	int ends[2];
	if (user != NULL) {
		const gid_t groups[] = { 7, 5000 };
		MUST(setgroups(2, groups));
		MUST(setresgid(1234, 1234, 1234));
		MUST(setresuid(4321, 4321, 4321));
	}
	pair_of(SOCK_STREAM, ends);
	send_fds(shared[0], "m", 1, ends, 2);
	prepared();
	if (user != NULL)
		return;
	wait_for_go();
}

/* Who made a pair: this task, its child, one of another user that is gone. */
CASE(makers)
{
	int own[2];
	pid_t pids[2];
	struct message made[2];
	pair_of(SOCK_STREAM, own);
	pair_of(SOCK_STREAM, shared);
	pids[0] = spawn(make_pair, NULL);
	made[0] = receive(shared[1], 64);
	pids[1] = spawn(make_pair, "another user");
	reap(pids[1]);
	made[1] = receive(shared[1], 64);
	checkpoint();
	check_maker(own[0], getpid(), 0, 0);
	check_maker(own[1], getpid(), 0, 0);
	for (int i = 0; i < 2; i++) {
		check_maker(made[0].fds[i], pids[0], 0, 0);
		check_maker(made[1].fds[i], pids[1], 4321, 1234);
		gid_t groups[4] = { 0 };
		socklen_t length = sizeof(groups);
		MUST(getsockopt(made[1].fds[i], SOL_SOCKET, SO_PEERGROUPS, groups, &length));
		CHECK(length == 2 * sizeof(gid_t) && groups[0] == 7 && groups[1] == 5000, "groups %u, %u", groups[0], groups[1]);
	}
	finish(pids[0]);
}

/* A task of the other ABI echoes what comes over fd 10. */
CASE(echo)
{
	char bytes[4096];
	ssize_t got;
	prepared();
	while ((got = recv(10, bytes, sizeof(bytes), 0)) > 0)
		CHECK(send(10, bytes, (size_t)got, 0) == got, "send: %s", strerror(errno));
}

CASE(between_abis)
{
	int ends[2];
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
	MUST(dup2(ends[1], 10));
	pid_t child = spawn_abi(other_abi, "echo", NULL);
	close(10);
	close(ends[1]);
	await_sleep(child);
	checkpoint();
	for (uint32_t i = 0; i < 10; i++) {
		put(ends[0], 100 + i, i);
		while (polled(ends[0]) == 0)
			sched_yield();
		get(ends[0], 100 + i, i);
	}
	close(ends[0]);
	reap(child);
}

static void receiver(void *unused)
{
	(void)unused;
	close(shared[1]);
	prepared();
	char bytes[8] = "";
	ssize_t got = recv(shared[0], bytes, sizeof(bytes), 0);
	CHECK(got == 4 && memcmp(bytes, "abcd", 4) == 0, "recv gives %zd: %s", got, strerror(errno));
	struct pollfd entry = { .fd = shared[0], .events = POLLIN };
	CHECK(poll(&entry, 1, -1) == 1 && recv(shared[0], bytes, 8, 0) == 0, "no end of file");
}

CASE(receiver_waits)
{
	pair_of(SOCK_STREAM, shared);
	pid_t child = spawn(receiver, NULL);
	close(shared[0]);
	await_sleep(child);
	checkpoint();
	put(shared[1], 0, 0);
	MUST(send(shared[1], "abcd", 4, 0));
	await_sleep(child);
	close(shared[1]);
	reap(child);
}
