/* Sockets of the internet families: TCP connections with what is on its way, listening sockets, datagrams, options. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* include/net/udplite.h, which is no header for programs. */
#define UDPLITE_SEND_CSCOV 10
#define UDPLITE_RECV_CSCOV 11

/* include/uapi/linux/in6.h, which does not go with netinet/in.h. */
#define IPV6_FLOWINFO 11
#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif
#ifndef SO_RESERVE_MEM
#define SO_RESERVE_MEM 73
#endif
#ifndef IPV6_ROUTER_ALERT_ISOLATE
#define IPV6_ROUTER_ALERT_ISOLATE 30
#endif

/* The addresses of this machine that the cases use; the last is an IPv4 address for an IPv6 socket. */
static const char *const hosts[] = { "127.0.0.1", "::1", "::ffff:127.0.0.1" };

struct address {
	struct sockaddr_storage bytes;
	socklen_t length;
};

static struct address at(const char *host, unsigned port)
{
	struct address address = { .length = 0 };
	struct sockaddr_in *v4 = (void *)&address.bytes;
	struct sockaddr_in6 *v6 = (void *)&address.bytes;
	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		address.length = sizeof(*v4);
	} else {
		CHECK(inet_pton(AF_INET6, host, &v6->sin6_addr) == 1, "%s is no address", host);
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t)port);
		address.length = sizeof(*v6);
	}
	return address;
}

static struct address name_of(int fd)
{
	struct address address = { .length = sizeof(address.bytes) };
	MUST(getsockname(fd, (void *)&address.bytes, &address.length));
	return address;
}

static struct address peer_of(int fd)
{
	struct address address = { .length = sizeof(address.bytes) };
	MUST(getpeername(fd, (void *)&address.bytes, &address.length));
	return address;
}

static void check_address(struct address now, struct address before)
{
	CHECK(now.length == before.length && memcmp(&now.bytes, &before.bytes, now.length) == 0, "another address");
}

static int family(const char *host)
{
	return strchr(host, ':') != NULL ? AF_INET6 : AF_INET;
}

static int bound(const char *host, int kind)
{
	struct address address = at(host, 0);
	int fd = MUST(socket(family(host), kind, 0));
	MUST(bind(fd, (void *)&address.bytes, address.length));
	return fd;
}

static int listening(const char *host)
{
	int fd = bound(host, SOCK_STREAM);
	MUST(listen(fd, 5));
	return fd;
}

static int connected_to(int listener, int flags)
{
	struct address address = name_of(listener);
	int fd = MUST(socket(address.bytes.ss_family, SOCK_STREAM | flags, 0));
	if (connect(fd, (void *)&address.bytes, address.length) != 0)
		CHECK(errno == EINPROGRESS, "connect: %s", strerror(errno));
	return fd;
}

/* Both ends of a new connection, and nobody who listens. */
static void connection(const char *host, int *ends)
{
	int listener = listening(host);
	ends[0] = connected_to(listener, 0);
	ends[1] = MUST(accept(listener, NULL, NULL));
	close(listener);
}

static void put(int fd, size_t length, uint32_t seed)
{
	char *bytes = map_anonymous(length + PAGE);
	fill(bytes, length, seed);
	for (size_t have = 0; have < length;) {
		ssize_t sent = send(fd, bytes + have, length - have, MSG_NOSIGNAL);
		CHECK(sent > 0, "send after %zu bytes: %s", have, strerror(errno));
		if (sent <= 0)
			break;
		have += (size_t)sent;
	}
	MUST(munmap(bytes, length + PAGE));
}

static void get(int fd, size_t length, uint32_t seed)
{
	char *bytes = map_anonymous(length + PAGE);
	size_t have = 0;
	while (have < length) {
		ssize_t got = recv(fd, bytes + have, length - have, 0);
		CHECK(got > 0, "recv after %zu bytes: %zd, %s", have, got, strerror(errno));
		if (got <= 0)
			break;
		have += (size_t)got;
	}
	CHECK_FILL(bytes, have, seed);
	MUST(munmap(bytes, length + PAGE));
}

static void nothing_left_in(int fd)
{
	char byte;
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "more is there than was sent");
}

static void ended(int fd)
{
	char byte;
	CHECK(recv(fd, &byte, 1, 0) == 0, "the end of the stream is not there");
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof(value);
	MUST(getsockopt(fd, level, name, &value, &length));
	return value;
}

static unsigned state(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);
	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
	return info.tcpi_state;
}

static void await_tcp_state(int fd, unsigned wanted)
{
	while (state(fd) != wanted)
		sched_yield();
}

static unsigned acked_window_scale(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);
	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
	return (unsigned)info.tcpi_options << 8 | (unsigned)info.tcpi_snd_wscale << 4 | info.tcpi_rcv_wscale;
}

/* With data read and not read, acknowledged and not, in both directions. */
CASE(connected)
{
	int ends[LENGTH(hosts)][2];
	unsigned agreed[LENGTH(hosts)];
	struct address names[LENGTH(hosts)], peers[LENGTH(hosts)];
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		connection(hosts[i], ends[i]);
		put(ends[i][0], 10, 1);
		get(ends[i][1], 10, 1);
		put(ends[i][0], 100, 1);
		put(ends[i][0], 40000, 2);
		put(ends[i][1], 3000, 3);
		names[i] = name_of(ends[i][0]);
		peers[i] = peer_of(ends[i][0]);
		agreed[i] = acked_window_scale(ends[i][0]);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		check_address(name_of(ends[i][0]), names[i]);
		check_address(peer_of(ends[i][0]), peers[i]);
		check_address(name_of(ends[i][1]), peers[i]);
		CHECK(acked_window_scale(ends[i][0]) == agreed[i], "other options are agreed on");
		get(ends[i][1], 100, 1);
		get(ends[i][1], 40000, 2);
		get(ends[i][0], 3000, 3);
		for (uint32_t round = 0; round < 50; round++) {
			put(ends[i][0], 7000, round);
			get(ends[i][1], 7000, round);
			put(ends[i][1], 900, round);
			get(ends[i][0], 900, round);
		}
		nothing_left_in(ends[i][0]);
		nothing_left_in(ends[i][1]);
		close(ends[i][0]);
		ended(ends[i][1]);
		close(ends[i][1]);
	}
}

/* As many words as go in, numbered. Returns how many. */
static uint32_t put_all(int fd)
{
	uint32_t count = 0;
	int flags = MUST(fcntl(fd, F_GETFL));
	MUST(fcntl(fd, F_SETFL, flags | O_NONBLOCK));
	for (;;) {
		uint32_t words[256];
		for (size_t i = 0; i < LENGTH(words); i++)
			words[i] = count + (uint32_t)i;
		ssize_t sent = send(fd, words, sizeof(words), 0);
		if (sent == -1)
			break;
		CHECK(sent % 4 == 0, "%zd bytes are sent", sent);
		count += (uint32_t)sent / 4;
	}
	CHECK(errno == EAGAIN && count > 100000, "%u words, %s", count, strerror(errno));
	MUST(fcntl(fd, F_SETFL, flags));
	return count;
}

static void get_all(int fd, uint32_t count)
{
	for (uint32_t i = 0; i < count && !failed(); i++) {
		uint32_t word = 0;
		CHECK(recv(fd, &word, 4, MSG_WAITALL) == 4 && word == i, "word %u is %u", i, word);
	}
}

/* Until not one byte more goes in: windows are closed, and there is more to send. */
CASE(full)
{
	int ends[2];
	connection("127.0.0.1", ends);
	uint32_t count = put_all(ends[0]);
	checkpoint();
	get_all(ends[1], count);
	nothing_left_in(ends[1]);
	put(ends[1], 1000, 3);
	get(ends[0], 1000, 3);
}

/* What is to be read of a connection whose other end has sent something as urgent. */
struct urgent {
	const char *host;
	/* Bytes before and behind the urgent one. */
	size_t before, behind;
	bool in_line, taken, at_mark, ended;
	int ends[2];
};

static void check_mark(const struct urgent *urgent, bool expected)
{
	int mark = -1;
	MUST(ioctl(urgent->ends[1], SIOCATMARK, &mark));
	CHECK(mark == expected, "%zu bytes before, %zu behind: at the mark: %d", urgent->before, urgent->behind, mark);
}

static volatile sig_atomic_t told;

static void on_urgent(int signal)
{
	(void)signal;
	told = told + 1;
}

static void send_urgent(struct urgent *urgent)
{
	int on = 1, *ends = urgent->ends;
	connection(urgent->host, ends);
	MUST(fcntl(ends[1], F_SETOWN, getpid()));
	put(ends[0], urgent->before, 1);
	CHECK(send(ends[0], "!", 1, MSG_OOB) == 1, "send: %s", strerror(errno));
	put(ends[0], urgent->behind, 2);
	if (urgent->ended)
		MUST(shutdown(ends[0], SHUT_WR));
	/* All of it is there. */
	struct pollfd polled = { .fd = ends[1], .events = POLLPRI };
	CHECK(poll(&polled, 1, 20000) == 1, "poll: %s", strerror(errno));
	for (int left = 1; left != 0; sched_yield())
		MUST(ioctl(ends[0], SIOCOUTQ, &left));
	if (urgent->ended)
		await_tcp_state(ends[1], TCP_CLOSE_WAIT);
	if (urgent->at_mark)
		get(ends[1], urgent->before, 1);
	char byte;
	if (urgent->taken)
		CHECK(recv(ends[1], &byte, 1, MSG_OOB) == 1 && byte == '!', "recv: %s", strerror(errno));
	if (urgent->in_line)
		MUST(setsockopt(ends[1], SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on)));
}

static void read_urgent(const struct urgent *urgent)
{
	char byte = 0;
	int fd = urgent->ends[1];
	struct pollfd polled = { .fd = fd, .events = POLLPRI };
	CHECK(poll(&polled, 1, 0) == !urgent->taken, "%zu before: %s urgent data", urgent->before, urgent->taken ? "has" : "no");
	if (!urgent->at_mark && urgent->before > 0) {
		check_mark(urgent, false);
		/* Reading does not go past the mark. */
		char *most = map_anonymous(urgent->before + PAGE);
		size_t have = 0;
		while (have < urgent->before) {
			ssize_t got = recv(fd, most + have, urgent->before + PAGE - have, 0);
			CHECK(got > 0 && (size_t)got <= urgent->before - have, "%zd bytes after %zu of %zu", got, have, urgent->before);
			if (got <= 0)
				break;
			have += (size_t)got;
		}
		CHECK_FILL(most, have, 1);
		MUST(munmap(most, urgent->before + PAGE));
	}
	check_mark(urgent, true);
	CHECK(option(fd, SOL_SOCKET, SO_OOBINLINE) == urgent->in_line, "SO_OOBINLINE");
	if (urgent->in_line)
		CHECK(recv(fd, &byte, 1, 0) == 1 && byte == '!', "in line there is %d: %s", byte, strerror(errno));
	else if (urgent->taken)
		CHECK(recv(fd, &byte, 1, MSG_OOB) == -1 && errno == EINVAL, "it is there twice: %s", strerror(errno));
	else
		CHECK(recv(fd, &byte, 1, MSG_OOB) == 1 && byte == '!', "urgent is %d: %s", byte, strerror(errno));
	get(fd, urgent->behind, 2);
	if (urgent->ended)
		ended(fd);
	else
		nothing_left_in(fd);
}

/* Urgent data, not read, or read before what is around it: of all that, nothing is lost, and it is still where it was. */
CASE(urgent)
{
	static struct urgent all[] = {
		{ .host = "127.0.0.1", .before = 3, .behind = 4 },
		{ .host = "::1", .before = 3, .behind = 4, .taken = true },
		{ .host = "::ffff:127.0.0.1", .before = 3, .behind = 4, .in_line = true },
		{ .host = "127.0.0.1", .before = 3, .behind = 4, .at_mark = true },
		{ .host = "127.0.0.1", .before = 3, .behind = 4, .at_mark = true, .taken = true },
		{ .host = "::1", .before = 3, .behind = 4, .at_mark = true, .in_line = true },
		{ .host = "127.0.0.1", .before = 3, .behind = 4, .in_line = true, .taken = true },
		{ .host = "127.0.0.1", .before = 0, .behind = 0 },
		{ .host = "127.0.0.1", .before = 5, .behind = 0, .taken = true },
		{ .host = "127.0.0.1", .before = 20000, .behind = 15000 },
		{ .host = "::1", .before = 15000, .behind = 20000, .in_line = true },
		{ .host = "127.0.0.1", .before = 9, .behind = 2000, .ended = true },
		{ .host = "::1", .before = 0, .behind = 70, .ended = true, .taken = true },
		{ .host = "127.0.0.2", .before = 5, .behind = 0 },
		{ .host = "127.0.0.53", .before = 5, .behind = 6, .taken = true },
	};
	struct sigaction action = { .sa_handler = on_urgent };
	MUST(sigaction(SIGURG, &action, NULL));
	for (size_t i = 0; i < LENGTH(all); i++)
		send_urgent(&all[i]);
	int before = told;
	CHECK(before >= (int)LENGTH(all), "SIGURG came %d times", before);
	checkpoint();
	CHECK(told == before, "SIGURG came %d times, not %d", (int)told, before);
	for (size_t i = 0; i < LENGTH(all) && !failed(); i++) {
		read_urgent(&all[i]);
		/* And again, in the other direction. */
		struct pollfd polled = { .fd = all[i].ends[0], .events = POLLPRI };
		char byte = 0;
		CHECK(send(all[i].ends[1], "ab?", 3, MSG_OOB) == 3, "send: %s", strerror(errno));
		CHECK(poll(&polled, 1, 20000) == 1, "poll: %s", strerror(errno));
		CHECK(recv(polled.fd, &byte, 1, MSG_OOB) == 1 && byte == '?', "urgent is %d: %s", byte, strerror(errno));
	}
}

/* … at an address that this machine takes for its own, and that no interface has. */
CASE(urgent_of_nobody)
{
	struct urgent urgent = { .host = "10.77.0.1", .before = 3, .behind = 4 };
	send_urgent(&urgent);
	checkpoint();
	read_urgent(&urgent);
}

/* … before other data, behind it, and first of all. */
CASE(urgent_within)
{
	static struct urgent all[] = {
		{ .host = "127.0.0.1", .before = 3, .behind = 4 },
		{ .host = "::1", .before = 3, .behind = 1, .taken = true },
		{ .host = "127.0.0.1", .before = 3, .behind = 4, .in_line = true },
		{ .host = "127.0.0.1", .before = 3, .behind = 0 },
		{ .host = "127.0.0.1", .before = 3, .behind = 4, .at_mark = true },
		{ .host = "::1", .before = 0, .behind = 4 },
	};
	for (size_t i = 0; i < LENGTH(all); i++)
		send_urgent(&all[i]);
	checkpoint();
	for (size_t i = 0; i < LENGTH(all); i++)
		read_urgent(&all[i]);
}

/* Urgent data that is announced, and still behind what there is no room for. */
CASE(urgent_announced)
{
	int ends[2], announced = 0;
	connection("127.0.0.1", ends);
	put_all(ends[0]);
	while (send(ends[0], "!", 1, MSG_OOB | MSG_DONTWAIT) != 1) {
		char bytes[4096];
		CHECK(recv(ends[1], bytes, sizeof(bytes), 0) > 0, "recv: %s", strerror(errno));
	}
	while (!announced) {
		char byte;
		announced = recv(ends[1], &byte, 1, MSG_OOB) == -1 && errno == EAGAIN;
		sched_yield();
	}
	checkpoint();
}

/* … of a connection that has ended, before what is not urgent was read. */
CASE(urgent_ended)
{
	int ends[2];
	connection("127.0.0.1", ends);
	CHECK(send(ends[0], "ab!", 3, MSG_OOB) == 3 && send(ends[0], "cd", 2, 0) == 2, "send: %s", strerror(errno));
	for (size_t i = 0; i < 2; i++)
		MUST(shutdown(ends[i], SHUT_WR));
	await_tcp_state(ends[1], TCP_CLOSE);
	checkpoint();
	char bytes[8];
	CHECK(recv(ends[1], bytes, sizeof(bytes), 0) == 2 && memcmp(bytes, "ab", 2) == 0, "recv: %s", strerror(errno));
	CHECK(recv(ends[1], bytes, sizeof(bytes), 0) == 2 && memcmp(bytes, "cd", 2) == 0, "recv: %s", strerror(errno));
	ended(ends[1]);
}

/* Ends that have said that they send no more: one, the other, both; with data behind which that is. */
CASE(half_closed)
{
	int ends[4][2];
	for (size_t i = 0; i < LENGTH(ends); i++) {
		connection(hosts[i % LENGTH(hosts)], ends[i]);
		put(ends[i][0], 500, 1);
		put(ends[i][1], 600, 2);
		if (i & 1)
			MUST(shutdown(ends[i][0], SHUT_WR));
		if (i & 2) {
			if (i & 1)
				await_tcp_state(ends[i][1], TCP_CLOSE_WAIT);
			MUST(shutdown(ends[i][1], SHUT_WR));
		}
	}
	await_tcp_state(ends[1][0], TCP_FIN_WAIT2);
	await_tcp_state(ends[2][1], TCP_FIN_WAIT2);
	checkpoint();
	for (size_t i = 0; i < LENGTH(ends); i++) {
		static const unsigned states[] = { TCP_ESTABLISHED, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_CLOSE };
		CHECK(state(ends[i][0]) == states[i], "connection %zu is in state %u", i, state(ends[i][0]));
		get(ends[i][0], 600, 2);
		get(ends[i][1], 500, 1);
		if (i & 1)
			ended(ends[i][1]);
		else
			nothing_left_in(ends[i][1]);
		if (i & 2)
			ended(ends[i][0]);
		if (i == 1) {
			put(ends[i][1], 20, 9);
			get(ends[i][0], 20, 9);
			close(ends[i][1]);
			ended(ends[i][0]);
		}
		if (i == 2) {
			put(ends[i][0], 20, 9);
			get(ends[i][1], 20, 9);
		}
	}
}

/* Ends that have said that they send no more, behind data for which the other one has no room: so that it is still to be sent. */
CASE(last_words)
{
	static const unsigned states[][2] = { { TCP_FIN_WAIT1, TCP_ESTABLISHED }, { TCP_FIN_WAIT2, TCP_LAST_ACK }, { TCP_CLOSING, TCP_FIN_WAIT2 } };
	static const int talkers[] = { 0, 1, 0 };
	int ends[LENGTH(states)][2];
	uint32_t counts[LENGTH(states)];
	for (size_t i = 0; i < LENGTH(states); i++) {
		connection(hosts[i], ends[i]);
		counts[i] = put_all(ends[i][talkers[i]]);
		MUST(shutdown(ends[i][0], SHUT_WR));
		if (i == 1)
			await_tcp_state(ends[i][1], TCP_CLOSE_WAIT);
		if (i > 0)
			MUST(shutdown(ends[i][1], SHUT_WR));
		for (size_t end = 0; end < 2; end++)
			await_tcp_state(ends[i][end], states[i][end]);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(states); i++) {
		int listener = ends[i][1 - talkers[i]];
		for (size_t end = 0; end < 2; end++)
			CHECK(state(ends[i][end]) == states[i][end], "connection %zu: end %zu is in state %u", i, end, state(ends[i][end]));
		get_all(listener, counts[i]);
		ended(listener);
		if (i > 0) {
			ended(ends[i][talkers[i]]);
			await_tcp_state(ends[i][talkers[i]], TCP_CLOSE);
		} else {
			put(listener, 100, 3);
			get(ends[i][0], 100, 3);
		}
	}
}

/* Connections that nobody has accepted: to one address, to all of them, and to all of both families; one of a child. */
static void call(void *listener)
{
	int fd = connected_to(*(int *)listener, 0);
	prepared();
	wait_for_go();
	put(fd, 100, 9);
}

CASE(not_accepted)
{
	static const char *const hosts[] = { "127.0.0.1", "0.0.0.0", "::1", "::" };
	int listeners[LENGTH(hosts)], clients[LENGTH(hosts)];
	struct address names[LENGTH(hosts)];
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		listeners[i] = listening(hosts[i]);
		clients[i] = connected_to(listeners[i], 0);
		names[i] = name_of(clients[i]);
	}
	pid_t child = spawn(call, &listeners[0]);
	checkpoint();
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		int accepted = MUST(accept(listeners[i], NULL, NULL));
		check_address(peer_of(accepted), names[i]);
		check_address(name_of(clients[i]), names[i]);
		put(clients[i], 5000, 1);
		get(accepted, 5000, 1);
		put(accepted, 300, 2);
		get(clients[i], 300, 2);
	}
	MUST(kill(child, SIGUSR1));
	int accepted = MUST(accept(listeners[0], NULL, NULL));
	get(accepted, 100, 9);
	reap(child);
}

/* The same, with something sent over it, at which nobody can look: given up, it is reset. */
CASE(not_accepted_and_used)
{
	int listener = listening("127.0.0.1"), client = connected_to(listener, 0);
	char byte;
	put(client, 100, 1);
	checkpoint();
	CHECK(recv(client, &byte, 1, MSG_DONTWAIT) == 0, "the connection goes on: %s", strerror(errno));
	CHECK(send(client, &byte, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "no EPIPE: %s", strerror(errno));
	MUST(fcntl(listener, F_SETFL, O_NONBLOCK));
	CHECK(accept(listener, NULL, NULL) == -1 && errno == EAGAIN, "somebody is there");
}

/* Whoever comes is let in as before; several can listen at one port; a backlog is as long as it was. */
CASE(listening)
{
	static const char *const all[] = { "127.0.0.1", "::1", "0.0.0.0", "::" };
	int on = 1, off = 0, fds[LENGTH(all)], group[3], seconds = 4, bytes;
	struct address names[LENGTH(all)], shared;
	for (size_t i = 0; i < LENGTH(all); i++) {
		struct address address = at(all[i], 0);
		fds[i] = MUST(socket(family(all[i]), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
		if (i == 3)
			MUST(setsockopt(fds[i], IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)));
		else if (family(all[i]) == AF_INET6)
			MUST(setsockopt(fds[i], IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)));
		MUST(bind(fds[i], (void *)&address.bytes, address.length));
		MUST(listen(fds[i], 3 + (int)i));
		names[i] = name_of(fds[i]);
	}
	MUST(setsockopt(fds[0], IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds)));
	seconds = option(fds[0], IPPROTO_TCP, TCP_DEFER_ACCEPT);
	for (size_t i = 0; i < LENGTH(group); i++) {
		group[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(setsockopt(group[i], SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)));
		struct address address = i == 0 ? at("127.0.0.1", 0) : shared;
		MUST(bind(group[i], (void *)&address.bytes, address.length));
		MUST(listen(group[i], 8));
		shared = name_of(group[0]);
	}
	/* Accepted from one that still listens: both are at its port. */
	int client = connected_to(fds[2], 0);
	int server;
	while ((server = accept(fds[2], NULL, NULL)) == -1 && errno == EAGAIN)
		sched_yield();
	checkpoint();
	put(client, 100, 1);
	get(server, 100, 1);
	for (size_t i = 0; i < LENGTH(all); i++) {
		struct tcp_info info;
		socklen_t length = sizeof(info);
		check_address(name_of(fds[i]), names[i]);
		MUST(getsockopt(fds[i], IPPROTO_TCP, TCP_INFO, &info, &length));
		CHECK(info.tcpi_state == TCP_LISTEN && info.tcpi_sacked == 3 + i, "backlog %u", info.tcpi_sacked);
		CHECK(accept(fds[i], NULL, NULL) == -1 && errno == EAGAIN, "somebody is there");
		CHECK(option(fds[i], SOL_SOCKET, SO_REUSEADDR) == 0, "SO_REUSEADDR is on");
		int fd = connected_to(fds[i], 0), other;
		put(fd, 10, 1);
		while ((other = accept(fds[i], NULL, NULL)) == -1 && errno == EAGAIN)
			sched_yield();
		get(other, 10, 1);
		close(fd);
		close(other);
	}
	CHECK(option(fds[0], IPPROTO_TCP, TCP_DEFER_ACCEPT) == seconds, "TCP_DEFER_ACCEPT");
	CHECK(option(fds[3], IPPROTO_IPV6, IPV6_V6ONLY) == 0, "IPV6_V6ONLY");
	for (size_t i = 0; i < LENGTH(group); i++) {
		check_address(name_of(group[i]), shared);
		CHECK(option(group[i], SOL_SOCKET, SO_REUSEPORT) == 1, "SO_REUSEPORT is off");
	}
	bytes = connected_to(group[0], 0);
	struct pollfd polled[LENGTH(group)];
	for (size_t i = 0; i < LENGTH(group); i++)
		polled[i] = (struct pollfd){ .fd = group[i], .events = POLLIN };
	CHECK(poll(polled, LENGTH(group), 2000) == 1, "one of the group takes a connection");
	close(bytes);
}

/* Listens at a port at which a connection lingers that it has closed first. */
CASE(lingering)
{
	int listener = listening("127.0.0.1"), client = connected_to(listener, 0);
	int server = MUST(accept(listener, NULL, NULL));
	close(server);
	ended(client);
	close(client);
	checkpoint();
	CHECK(option(listener, SOL_SOCKET, SO_REUSEADDR) == 0, "SO_REUSEADDR is on");
	client = connected_to(listener, 0);
	server = MUST(accept(listener, NULL, NULL));
	put(client, 10, 1);
	get(server, 10, 1);
}

/* Not connected, not even bound, connected no more. */
CASE(idle)
{
	int fresh = MUST(socket(AF_INET, SOCK_STREAM, 0)), fresh6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	int named = bound("127.0.0.1", SOCK_STREAM), ends[2];
	struct linger linger = { .l_onoff = 1, .l_linger = 0 };
	struct address name = name_of(named);
	connection("127.0.0.1", ends);
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	close(ends[0]);
	CHECK(recv(ends[1], &(char){ 0 }, 1, 0) == -1 && errno == ECONNRESET, "recv: %s", strerror(errno));
	checkpoint();
	check_address(name_of(named), name);
	MUST(listen(named, 1));
	int client = connected_to(named, 0);
	close(client);
	CHECK(recv(ends[1], &(char){ 0 }, 1, 0) == 0, "a connection that was reset has no end");
	CHECK(send(ends[1], "", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "send: %s", strerror(errno));
	struct address self = at("127.0.0.1", 9);
	CHECK(connect(fresh, (void *)&self.bytes, self.length) == -1 && errno == ECONNREFUSED, "connect: %s", strerror(errno));
	self = at("::1", 9);
	MUST(connect(fresh6, (void *)&self.bytes, self.length));
}

static const struct {
	int level, name, value;
} settings[] = {
	{ SOL_SOCKET, SO_KEEPALIVE, 1 },
	{ SOL_SOCKET, SO_MARK, 77 },
	{ SOL_SOCKET, SO_RCVLOWAT, 3 },
	{ SOL_SOCKET, SO_RCVBUF, 50000 },
	{ SOL_SOCKET, SO_SNDBUF, 60000 },
	{ SOL_SOCKET, SO_OOBINLINE, 1 },
	{ SOL_SOCKET, SO_REUSEADDR, 1 },
	{ IPPROTO_TCP, TCP_NODELAY, 1 },
	{ IPPROTO_TCP, TCP_KEEPIDLE, 33 },
	{ IPPROTO_TCP, TCP_KEEPINTVL, 5 },
	{ IPPROTO_TCP, TCP_KEEPCNT, 7 },
	{ IPPROTO_TCP, TCP_SYNCNT, 4 },
	{ IPPROTO_TCP, TCP_LINGER2, 20 },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, 90000 },
	{ IPPROTO_TCP, TCP_NOTSENT_LOWAT, 8192 },
	{ IPPROTO_IP, IP_TOS, 0x10 },
	{ SOL_SOCKET, SO_PRIORITY, 4 },
	{ IPPROTO_IP, IP_TTL, 50 },
	{ IPPROTO_IP, IP_MINTTL, 2 },
	{ IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO },
	{ IPPROTO_IP, IP_FREEBIND, 1 },
	{ IPPROTO_IPV6, IPV6_UNICAST_HOPS, 33 },
	{ IPPROTO_IPV6, IPV6_TCLASS, 0x20 },
	{ IPPROTO_IPV6, IPV6_RECVPKTINFO, 1 },
	{ IPPROTO_IPV6, IPV6_DONTFRAG, 1 },
	{ IPPROTO_IPV6, IPV6_2292PKTINFO, 1 },
	{ IPPROTO_IPV6, IPV6_2292HOPOPTS, 1 },
	{ IPPROTO_IPV6, IPV6_2292DSTOPTS, 1 },
	{ IPPROTO_IPV6, IPV6_2292RTHDR, 1 },
	{ IPPROTO_IPV6, IPV6_2292HOPLIMIT, 1 },
	{ IPPROTO_IPV6, IPV6_FLOWINFO, 1 },
	{ IPPROTO_IPV6, IPV6_ROUTER_ALERT_ISOLATE, 1 },
	{ IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP },
};

/* What getsockopt shows, whether it was set or not, of sockets that are connected, listen, or neither. */
CASE(options)
{
	int fds[8], before[LENGTH(fds)][LENGTH(settings)];
	struct timeval timeout = { .tv_sec = 7, .tv_usec = 500000 }, now;
	socklen_t length = sizeof(now);
	char name[16];
	connection("127.0.0.1", fds);
	connection("::1", fds + 2);
	fds[4] = listening("::1");
	fds[5] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	fds[6] = bound("127.0.0.1", SOCK_DGRAM);
	fds[7] = bound("::1", SOCK_DGRAM);
	for (size_t i = 0; i < LENGTH(fds); i++) {
		for (size_t j = 0; j < LENGTH(settings); j++) {
			/* One end of each connection has what it had from the beginning. */
			if (i != 1 && i != 3)
				(void)setsockopt(fds[i], settings[j].level, settings[j].name, &settings[j].value, sizeof(int));
			before[i][j] = -1;
			length = sizeof(int);
			(void)getsockopt(fds[i], settings[j].level, settings[j].name, &before[i][j], &length);
		}
	}
	MUST(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
	MUST(setsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	MUST(setsockopt(fds[6], SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
	CHECK(before[0][7] == 1 && before[0][8] == 33 && before[2][22] == 0x20, "the options are set");
	for (size_t j = 25; j < LENGTH(settings); j++)
		CHECK(before[7][j] == settings[j].value, "option %d:%d is not set", settings[j].level, settings[j].name);
	struct sock_txtime moments = { .clockid = CLOCK_TAI, .flags = SOF_TXTIME_REPORT_ERRORS }, moments_now;
	MUST(setsockopt(fds[6], SOL_SOCKET, SO_TXTIME, &moments, sizeof(moments)));
	checkpoint();
	for (size_t i = 0; i < LENGTH(fds); i++) {
		for (size_t j = 0; j < LENGTH(settings); j++) {
			int value = -1;
			length = sizeof(int);
			(void)getsockopt(fds[i], settings[j].level, settings[j].name, &value, &length);
			CHECK(value == before[i][j], "socket %zu, option %d:%d: %d instead of %d", i, settings[j].level,
			      settings[j].name, value, before[i][j]);
		}
	}
	length = sizeof(now);
	MUST(getsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &now, &length));
	CHECK(now.tv_sec == 7 && now.tv_usec == 500000, "timeout %ld.%06ld", (long)now.tv_sec, (long)now.tv_usec);
	length = sizeof(name);
	MUST(getsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, name, &length));
	CHECK(strcmp(name, "reno") == 0, "congestion control %s", name);
	length = sizeof(moments_now);
	MUST(getsockopt(fds[6], SOL_SOCKET, SO_TXTIME, &moments_now, &length));
	CHECK(memcmp(&moments_now, &moments, sizeof(moments)) == 0, "SO_TXTIME: clock %d, flags %#x", moments_now.clockid, moments_now.flags);
	length = sizeof(name);
	MUST(getsockopt(fds[6], SOL_SOCKET, SO_BINDTODEVICE, name, &length));
	CHECK(strcmp(name, "lo") == 0, "bound to device %s", name);
	put(fds[0], 10, 1);
	get(fds[1], 10, 1);
	put(fds[3], 10, 1);
	get(fds[2], 10, 1);
}

/* What the kernel changes as connections go: of fresh ones, of one whose buffers have grown, of one with values of its own. */
CASE(moving_options)
{
	static const struct {
		int level, name;
	} moving[] = { { IPPROTO_TCP, TCP_QUICKACK }, { IPPROTO_TCP, TCP_WINDOW_CLAMP }, { SOL_SOCKET, SO_RCVBUF }, { SOL_SOCKET, SO_SNDBUF } };
	int ends[LENGTH(hosts)][2], before[LENGTH(hosts)][2][LENGTH(moving)], off = 0, on = 1, clamp = 20000;
	for (size_t i = 0; i < LENGTH(hosts); i++)
		connection(hosts[i], ends[i]);
	/* The kernel lets the buffer of who receives grow, sooner or later; or never, if it has once found that the way takes long, as it does on a busy machine. */
	int small = option(ends[2][1], SOL_SOCKET, SO_RCVBUF);
	for (int i = 1; i <= 20000 && option(ends[0][1], SOL_SOCKET, SO_RCVBUF) <= small; i++) {
		if (i % 500 == 0) {
			MUST(close(ends[0][0]));
			MUST(close(ends[0][1]));
			connection(hosts[0], ends[0]);
		}
		put(ends[0][0], 100000, 1);
		get(ends[0][1], 100000, 1);
	}
	MUST(setsockopt(ends[1][0], IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off)));
	MUST(setsockopt(ends[1][1], IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on)));
	MUST(setsockopt(ends[1][1], IPPROTO_TCP, TCP_WINDOW_CLAMP, &clamp, sizeof(clamp)));
	for (size_t i = 0; i < LENGTH(hosts); i++)
		for (size_t end = 0; end < 2; end++)
			for (size_t j = 0; j < LENGTH(moving); j++)
				before[i][end][j] = option(ends[i][end], moving[j].level, moving[j].name);
	CHECK(before[0][1][2] > before[2][1][2], "the buffer has not grown: %d", before[0][1][2]);
	CHECK(before[1][0][0] == 0 && before[1][1][0] == 1 && before[1][1][1] == clamp, "the options are not set");
	checkpoint();
	for (size_t i = 0; i < LENGTH(hosts); i++)
		for (size_t end = 0; end < 2; end++)
			for (size_t j = 0; j < LENGTH(moving); j++) {
				int now = option(ends[i][end], moving[j].level, moving[j].name);
				/* A size is set by its half. */
				int whole = moving[j].level == SOL_SOCKET ? ~1 : ~0;
				CHECK((now & whole) == (before[i][end][j] & whole), "connection %zu, end %zu, option %d:%d: %d instead of %d",
				      i, end, moving[j].level, moving[j].name, now, before[i][end][j]);
			}
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		put(ends[i][0], 50000, 1);
		get(ends[i][1], 50000, 1);
	}
}

/* What only some sockets have. */
CASE(special_options)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 7 }, linger_now;
	unsigned char key[16] = "a key of 16 byte", shown[32];
	struct {
		int fd, level, name, value;
	} set[] = {
		{ bound("127.0.0.1", SOCK_STREAM), IPPROTO_TCP, TCP_FASTOPEN, 7 },
		{ bound("127.0.0.1", SOCK_STREAM), IPPROTO_TCP, TCP_FASTOPEN, 5 },
		{ bound("127.0.0.1", SOCK_STREAM), IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000 },
		{ bound("127.0.0.1", SOCK_STREAM), IPPROTO_TCP, TCP_QUICKACK, 0 },
		{ bound("127.0.0.1", SOCK_DGRAM), IPPROTO_IP, IP_TRANSPARENT, 1 },
		{ bound("::1", SOCK_DGRAM), IPPROTO_IPV6, IPV6_TRANSPARENT, 1 },
		{ bound("::1", SOCK_DGRAM), IPPROTO_UDP, UDP_NO_CHECK6_TX, 1 },
		{ bound("::1", SOCK_DGRAM), IPPROTO_UDP, UDP_NO_CHECK6_RX, 1 },
		{ bound("127.0.0.1", SOCK_DGRAM), SOL_SOCKET, SO_BUSY_POLL, 50 },
		{ bound("::1", SOCK_STREAM), SOL_SOCKET, SO_BUF_LOCK, 3 },
		{ bound("::1", SOCK_DGRAM), SOL_SOCKET, SO_BUF_LOCK, 2 },
	};
	int ends[2];
	socklen_t length = sizeof(linger_now);
	for (size_t i = 0; i < LENGTH(set); i++) {
		MUST(setsockopt(set[i].fd, set[i].level, set[i].name, &set[i].value, sizeof(int)));
		CHECK(option(set[i].fd, set[i].level, set[i].name) == set[i].value, "option %d:%d is not set", set[i].level, set[i].name);
	}
	MUST(setsockopt(set[0].fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, key, sizeof(key)));
	for (size_t i = 0; i < 3; i++)
		MUST(listen(set[i].fd, 3));
	connection("127.0.0.1", ends);
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	checkpoint();
	for (size_t i = 0; i < LENGTH(set); i++) {
		int now = option(set[i].fd, set[i].level, set[i].name);
		CHECK(now == set[i].value, "option %d:%d: %d instead of %d", set[i].level, set[i].name, now, set[i].value);
	}
	MUST(getsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger_now, &length));
	CHECK(memcmp(&linger_now, &linger, sizeof(linger)) == 0, "SO_LINGER: %d, %d", linger_now.l_onoff, linger_now.l_linger);
	/* One has a key of its own, the others that of all. */
	length = sizeof(shown);
	MUST(getsockopt(set[0].fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, shown, &length));
	CHECK(length == sizeof(key) && memcmp(shown, key, sizeof(key)) == 0, "another key of its own, of %u bytes", length);
	length = sizeof(shown);
	MUST(getsockopt(set[1].fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, shown, &length));
	CHECK(length == 0, "a key that was that of all is its own now");
}

/* Memory of the cgroup. A restore without one is told by a file. */
CASE(reserved)
{
	int fds[] = { bound("127.0.0.1", SOCK_STREAM), bound("::1", SOCK_DGRAM) }, bytes = 3 * 4096;
	for (size_t i = 0; i < LENGTH(fds); i++) {
		MUST(setsockopt(fds[i], SOL_SOCKET, SO_RESERVE_MEM, &bytes, sizeof(bytes)));
		CHECK(option(fds[i], SOL_SOCKET, SO_RESERVE_MEM) == bytes, "nothing is reserved");
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(fds); i++) {
		int now = option(fds[i], SOL_SOCKET, SO_RESERVE_MEM), wanted = access("none", F_OK) == 0 ? 0 : bytes;
		CHECK(now == wanted, "socket %zu: %d bytes are reserved instead of %d", i, now, wanted);
	}
}

/* The kernel asks the other end for signs of life, and tells when there are none. */
CASE(keepalive)
{
	int ends[2], on = 1, seconds = 1, count = 2;
	char byte;
	connection("127.0.0.1", ends);
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)));
	MUST(setsockopt(ends[0], IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds)));
	MUST(setsockopt(ends[0], IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds)));
	MUST(setsockopt(ends[0], IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count)));
	checkpoint();
	put(ends[1], 10, 1);
	get(ends[0], 10, 1);
	CHECK(system("PATH=/usr/sbin:/sbin; nft 'add table inet cut; add chain inet cut in { type filter hook input priority 0; }; "
		     "add rule inet cut in meta l4proto tcp drop'") == 0, "nft");
	CHECK(recv(ends[0], &byte, 1, 0) == -1 && errno == ETIMEDOUT, "recv: %s", strerror(errno));
	CHECK(system("PATH=/usr/sbin:/sbin; nft delete table inet cut") == 0, "nft");
}

/* A segment that waits to be full goes out when it is told to. So does a datagram, of which nothing is there yet. */
CASE(corked)
{
	int ends[2], on = 1, off = 0, ear = bound("127.0.0.1", SOCK_DGRAM), sender = bound("127.0.0.1", SOCK_DGRAM);
	struct address to = name_of(ear);
	char bytes[20];
	MUST(connect(sender, (void *)&to.bytes, to.length));
	MUST(setsockopt(sender, IPPROTO_UDP, UDP_CORK, &on, sizeof(on)));
	connection("127.0.0.1", ends);
	MUST(setsockopt(ends[0], IPPROTO_TCP, TCP_CORK, &on, sizeof(on)));
	put(ends[0], 50, 1);
	nothing_left_in(ends[1]);
	checkpoint();
	CHECK(option(ends[0], IPPROTO_TCP, TCP_CORK) == 1, "TCP_CORK is off");
	put(ends[0], 5, 2);
	MUST(setsockopt(ends[0], IPPROTO_TCP, TCP_CORK, &off, sizeof(off)));
	get(ends[1], 50, 1);
	get(ends[1], 5, 2);
	CHECK(option(sender, IPPROTO_UDP, UDP_CORK) == 1, "UDP_CORK is off");
	MUST(send(sender, "one", 3, 0));
	MUST(send(sender, "two", 3, 0));
	nothing_left_in(ear);
	MUST(setsockopt(sender, IPPROTO_UDP, UDP_CORK, &off, sizeof(off)));
	CHECK(recv(ear, bytes, sizeof(bytes), 0) == 6, "not one datagram of both");
}

static void expect(int fd, struct address sender, const char *text, size_t length)
{
	char bytes[3000];
	struct address from = { .length = sizeof(from.bytes) };
	ssize_t got = recvfrom(fd, bytes, sizeof(bytes), MSG_DONTWAIT, (void *)&from.bytes, &from.length);
	CHECK(got == (ssize_t)length && memcmp(bytes, text, length) == 0, "%zd bytes, %s", got, strerror(errno));
	check_address(from, sender);
}

/* At addresses that are others after the restore. */
CASE(mapped)
{
	static const char *const old[] = { "10.9.8.7", "fd09::7", "::ffff:10.9.8.7" }, *const new[] = { "10.9.8.8", "fd09::8", "::ffff:10.9.8.8" };
	int ends[LENGTH(old)][2], listeners[LENGTH(old)], ears[LENGTH(old)], pairs[LENGTH(old)][2];
	struct address names[LENGTH(old)][6];
	for (size_t i = 0; i < LENGTH(old); i++) {
		connection(old[i], ends[i]);
		put(ends[i][0], 3000, 1);
		put(ends[i][1], 200, 2);
		listeners[i] = listening(old[i]);
		ears[i] = bound(old[i], SOCK_DGRAM);
		struct address to = name_of(ears[i]);
		MUST(sendto(ears[i], "heard", 5, 0, (void *)&to.bytes, to.length));
		names[i][0] = name_of(ends[i][0]);
		names[i][1] = name_of(ends[i][1]);
		names[i][2] = name_of(listeners[i]);
		names[i][3] = to;
		for (size_t j = 0; j < 2; j++) {
			pairs[i][j] = bound(old[i], SOCK_DGRAM);
			names[i][4 + j] = name_of(pairs[i][j]);
		}
		for (size_t j = 0; j < 2; j++)
			MUST(connect(pairs[i][j], (void *)&names[i][5 - j].bytes, names[i][5 - j].length));
		MUST(send(pairs[i][0], "paired", 6, 0));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(old); i++) {
		int fds[] = { ends[i][0], ends[i][1], listeners[i], ears[i], pairs[i][0], pairs[i][1] };
		for (size_t j = 0; j < LENGTH(fds); j++) {
			uint16_t port = ((struct sockaddr_in *)&names[i][j].bytes)->sin_port;
			names[i][j] = at(new[i], ntohs(port));
			check_address(name_of(fds[j]), names[i][j]);
		}
		check_address(peer_of(ends[i][0]), names[i][1]);
		check_address(peer_of(ends[i][1]), names[i][0]);
		get(ends[i][1], 3000, 1);
		get(ends[i][0], 200, 2);
		put(ends[i][0], 400, 3);
		get(ends[i][1], 400, 3);
		expect(ears[i], names[i][3], "heard", 5);
		for (size_t j = 0; j < 2; j++)
			check_address(peer_of(pairs[i][j]), names[i][5 - j]);
		expect(pairs[i][1], names[i][4], "paired", 6);
		MUST(send(pairs[i][1], "back", 4, 0));
		expect(pairs[i][0], names[i][5], "back", 4);
		int client = connected_to(listeners[i], 0), server = MUST(accept(listeners[i], NULL, NULL));
		put(client, 10, 1);
		get(server, 10, 1);
	}
}

/* As many as go into a queue, small and large. */
CASE(datagrams_full)
{
	static const size_t sizes[] = { 1, 700, 60000, 9000 };
	static char bytes[60000], got[60000];
	int fds[2], small = 100000;
	uint32_t counts[2];
	for (size_t i = 0; i < LENGTH(fds); i++) {
		int sender = bound(hosts[i], SOCK_DGRAM);
		fds[i] = bound(hosts[i], SOCK_DGRAM);
		MUST(setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)));
		struct address to = name_of(fds[i]);
		uint32_t dropped = 0, sent = 0;
		while (dropped == 0 && sent < 100000) {
			uint32_t memory[9];
			socklen_t length = sizeof(memory);
			fill(bytes, sizes[sent % LENGTH(sizes)], sent);
			MUST(sendto(sender, bytes, sizes[sent % LENGTH(sizes)], 0, (void *)&to.bytes, to.length));
			sent++;
			MUST(getsockopt(fds[i], SOL_SOCKET, SO_MEMINFO, memory, &length));
			dropped = memory[8];
		}
		counts[i] = sent - dropped;
		CHECK(dropped == 1 && counts[i] > 3, "%u of %u are dropped", dropped, sent);
		close(sender);
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(fds); i++) {
		for (uint32_t count = 0; count < counts[i]; count++) {
			ssize_t length = recv(fds[i], got, sizeof(got), MSG_DONTWAIT);
			CHECK(length == (ssize_t)sizes[count % LENGTH(sizes)], "datagram %u of %u: %zd, %s", count, counts[i], length, strerror(errno));
			CHECK_FILL(got, sizes[count % LENGTH(sizes)], count);
		}
		nothing_left_in(fds[i]);
	}
}

/* Bound, connected, with datagrams from several senders, one of them gone, in the queue. */
CASE(datagrams)
{
	static char large[2500];
	int fds[LENGTH(hosts)], peers[LENGTH(hosts)], any = bound("0.0.0.0", SOCK_DGRAM);
	struct address senders[LENGTH(hosts)], gone[LENGTH(hosts)];
	memset(large, 'x', sizeof(large));
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		fds[i] = bound(hosts[i], SOCK_DGRAM);
		peers[i] = bound(hosts[i], SOCK_DGRAM);
		struct address to = name_of(fds[i]);
		MUST(connect(peers[i], (void *)&to.bytes, to.length));
		senders[i] = name_of(peers[i]);
		MUST(send(peers[i], "one", 3, 0));
		MUST(send(peers[i], "", 0, 0));
		int other = bound(hosts[i], SOCK_DGRAM);
		gone[i] = name_of(other);
		MUST(sendto(other, large, sizeof(large), 0, (void *)&to.bytes, to.length));
		close(other);
		MUST(send(peers[i], "four", 4, 0));
	}
	struct address wide = name_of(any);
	struct address to = at("127.0.0.1", ntohs(((struct sockaddr_in *)&wide.bytes)->sin_port));
	MUST(sendto(fds[0], "wide", 4, 0, (void *)&to.bytes, to.length));
	checkpoint();
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		expect(fds[i], senders[i], "one", 3);
		expect(fds[i], senders[i], "", 0);
		expect(fds[i], gone[i], large, sizeof(large));
		expect(fds[i], senders[i], "four", 4);
		nothing_left_in(fds[i]);
		check_address(peer_of(peers[i]), name_of(fds[i]));
		MUST(send(peers[i], "five", 4, 0));
		expect(fds[i], senders[i], "five", 4);
	}
	expect(any, name_of(fds[0]), "wide", 4);
	nothing_left_in(any);
}

/* Connected when there was something in the queue, of others than the peer; at one more address of the loopback device. */
CASE(strangers)
{
	static const char *const all[] = { "127.0.0.1", "::1", "::ffff:127.0.0.1", "127.0.0.53" };
	int fds[LENGTH(all)], peers[LENGTH(all)], others[LENGTH(all)];
	for (size_t i = 0; i < LENGTH(all); i++) {
		fds[i] = bound(all[i], SOCK_DGRAM);
		peers[i] = bound(all[i], SOCK_DGRAM);
		others[i] = bound(all[i], SOCK_DGRAM);
		struct address to = name_of(fds[i]), peer = name_of(peers[i]);
		MUST(sendto(others[i], "early", 5, 0, (void *)&to.bytes, to.length));
		MUST(sendto(peers[i], "hello", 5, 0, (void *)&to.bytes, to.length));
		MUST(connect(fds[i], (void *)&peer.bytes, peer.length));
		(void)sendto(others[i], "not heard", 9, 0, (void *)&to.bytes, to.length);
		MUST(sendto(peers[i], "late", 4, 0, (void *)&to.bytes, to.length));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(all); i++) {
		struct address to = name_of(fds[i]), peer = name_of(peers[i]);
		check_address(peer_of(fds[i]), peer);
		expect(fds[i], name_of(others[i]), "early", 5);
		expect(fds[i], peer, "hello", 5);
		expect(fds[i], peer, "late", 4);
		(void)sendto(others[i], "not heard", 9, 0, (void *)&to.bytes, to.length);
		MUST(sendto(peers[i], "heard", 5, 0, (void *)&to.bytes, to.length));
		expect(fds[i], peer, "heard", 5);
		nothing_left_in(fds[i]);
	}
}

/* Bound to all addresses when it got a datagram at one, and connected from another one since. */
CASE(datagrams_elsewhere)
{
	int fd = bound("0.0.0.0", SOCK_DGRAM), peer = bound("127.0.0.1", SOCK_DGRAM);
	struct address wide = name_of(fd), there = name_of(peer);
	struct address to = at("127.0.0.2", ntohs(((struct sockaddr_in *)&wide.bytes)->sin_port));
	MUST(sendto(peer, "wide", 4, 0, (void *)&to.bytes, to.length));
	MUST(connect(fd, (void *)&there.bytes, there.length));
	checkpoint();
	expect(fd, there, "wide", 4);
}

/* At one port with another socket: with a datagram that is not of its peer. */
CASE(strangers_at_one_port)
{
	int on = 1, fds[2], peer = bound("127.0.0.1", SOCK_DGRAM), stranger = bound("127.0.0.1", SOCK_DGRAM);
	struct address here = at("127.0.0.1", 0), there = name_of(peer);
	for (size_t i = 0; i < LENGTH(fds); i++) {
		fds[i] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
		MUST(setsockopt(fds[i], SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
		MUST(bind(fds[i], (void *)&here.bytes, here.length));
		here = name_of(fds[i]);
		if (i == 0) {
			MUST(sendto(stranger, "early", 5, 0, (void *)&here.bytes, here.length));
			MUST(connect(fds[i], (void *)&there.bytes, there.length));
		}
	}
	checkpoint();
	expect(fds[0], name_of(stranger), "early", 5);
}

/* On a device with a datagram in its queue, at one port with another socket; which is on none, or in its group. */
static void shared_on_a_device(int option, bool both)
{
	int on = 1, fds[2], stranger = bound("127.0.0.1", SOCK_DGRAM);
	struct address here = at("127.0.0.1", 0);
	for (size_t i = 0; i < LENGTH(fds); i++) {
		fds[i] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
		MUST(setsockopt(fds[i], SOL_SOCKET, option, &on, sizeof(on)));
		if (i == 0 || both)
			MUST(setsockopt(fds[i], SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
		MUST(bind(fds[i], (void *)&here.bytes, here.length));
		here = name_of(fds[i]);
		if (i == 0)
			MUST(sendto(stranger, "heard", 5, 0, (void *)&here.bytes, here.length));
	}
	checkpoint();
	expect(fds[0], name_of(stranger), "heard", 5);
}

CASE(shared_on_a_device)
{
	shared_on_a_device(SO_REUSEADDR, false);
}

CASE(group_on_a_device)
{
	shared_on_a_device(SO_REUSEPORT, true);
}

/* UDP-Lite: datagrams of which a part is checked, and of which a part has to be. */
CASE(udp_lite)
{
	int fds[LENGTH(hosts)], peers[LENGTH(hosts)], sent = 20, least = 12;
	struct address senders[LENGTH(hosts)];
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		struct address here = at(hosts[i], 0);
		fds[i] = MUST(socket(family(hosts[i]), SOCK_DGRAM, IPPROTO_UDPLITE));
		MUST(bind(fds[i], (void *)&here.bytes, here.length));
		MUST(setsockopt(fds[i], IPPROTO_UDPLITE, UDPLITE_RECV_CSCOV, &least, sizeof(least)));
		struct address to = name_of(fds[i]);
		peers[i] = MUST(socket(family(hosts[i]), SOCK_DGRAM, IPPROTO_UDPLITE));
		MUST(bind(peers[i], (void *)&here.bytes, here.length));
		MUST(connect(peers[i], (void *)&to.bytes, to.length));
		senders[i] = name_of(peers[i]);
		MUST(setsockopt(peers[i], IPPROTO_UDPLITE, UDPLITE_SEND_CSCOV, &sent, sizeof(sent)));
		MUST(send(peers[i], "the end of this is not checked", 30, 0));
		MUST(send(peers[i], "", 0, 0));
		MUST(send(peers[i], "odd", 3, 0));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(hosts); i++) {
		CHECK(option(fds[i], IPPROTO_UDPLITE, UDPLITE_RECV_CSCOV) == least, "UDPLITE_RECV_CSCOV");
		CHECK(option(peers[i], IPPROTO_UDPLITE, UDPLITE_SEND_CSCOV) == sent, "UDPLITE_SEND_CSCOV");
		expect(fds[i], senders[i], "the end of this is not checked", 30);
		expect(fds[i], senders[i], "", 0);
		expect(fds[i], senders[i], "odd", 3);
		nothing_left_in(fds[i]);
		MUST(send(peers[i], "on we go, as we did before it", 29, 0));
		expect(fds[i], senders[i], "on we go, as we did before it", 29);
	}
}

/* Shut down for reading, for both, connected or not, with a datagram that has come before. */
CASE(datagrams_shut_down)
{
	int fds[4];
	char byte;
	for (size_t i = 0; i < LENGTH(fds); i++) {
		fds[i] = bound("127.0.0.1", SOCK_DGRAM);
		struct address self = name_of(fds[i]);
		if (i & 1)
			MUST(connect(fds[i], (void *)&self.bytes, self.length));
		MUST(sendto(fds[i], "before", 6, 0, (void *)&self.bytes, self.length));
		/* One that is not connected says so, and is shut down all the same. */
		int done = shutdown(fds[i], i & 2 ? SHUT_RDWR : SHUT_RD);
		CHECK((done == 0) == (i & 1), "shutdown: %d, %s", done, strerror(errno));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(fds); i++) {
		struct address self = name_of(fds[i]);
		expect(fds[i], self, "before", 6);
		CHECK(recv(fds[i], &byte, 1, 0) == 0, "socket %zu: %s", i, strerror(errno));
		ssize_t sent = sendto(fds[i], "x", 1, MSG_NOSIGNAL, (void *)&self.bytes, self.length);
		CHECK(sent == (i & 2 ? -1 : 1), "socket %zu sends %zd, %s", i, sent, strerror(errno));
	}
}

/* Groups that a socket has joined, with and without a choice of senders. */
CASE(multicast)
{
	struct ip_mreqn here = { .imr_ifindex = 1 };
	struct group_source_req only = { .gsr_interface = 1 };
	struct ipv6_mreq six = { .ipv6mr_interface = 1 };
	int fds[3], loop = 1;
	struct address names[LENGTH(fds)];
	fds[0] = bound("0.0.0.0", SOCK_DGRAM);
	inet_pton(AF_INET, "239.1.2.3", &here.imr_multiaddr);
	MUST(setsockopt(fds[0], IPPROTO_IP, IP_ADD_MEMBERSHIP, &here, sizeof(here)));
	fds[1] = bound("0.0.0.0", SOCK_DGRAM);
	struct address group = at("239.4.5.6", 0), source = at("127.0.0.1", 0);
	memcpy(&only.gsr_group, &group.bytes, sizeof(group.bytes));
	memcpy(&only.gsr_source, &source.bytes, sizeof(source.bytes));
	MUST(setsockopt(fds[1], IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &only, sizeof(only)));
	fds[2] = bound("::", SOCK_DGRAM);
	inet_pton(AF_INET6, "ff02::1234", &six.ipv6mr_multiaddr);
	MUST(setsockopt(fds[2], IPPROTO_IPV6, IPV6_JOIN_GROUP, &six, sizeof(six)));
	int sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_LOOP, &loop, sizeof(loop)));
	for (size_t i = 0; i < LENGTH(fds); i++)
		names[i] = name_of(fds[i]);
	checkpoint();
	for (size_t i = 0; i < LENGTH(fds); i++)
		check_address(name_of(fds[i]), names[i]);
	/* Who is not a member cannot leave. */
	CHECK(setsockopt(sender, IPPROTO_IP, IP_DROP_MEMBERSHIP, &here, sizeof(here)) == -1, "nobody joined this");
	MUST(setsockopt(fds[0], IPPROTO_IP, IP_DROP_MEMBERSHIP, &here, sizeof(here)));
	MUST(setsockopt(fds[1], IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP, &only, sizeof(only)));
	MUST(setsockopt(fds[2], IPPROTO_IPV6, IPV6_LEAVE_GROUP, &six, sizeof(six)));
}

/* A call in progress, of a thread of its own: what it answers, and how it gets its answer. */
static int waited_for[2], listener_waited_for;

static void *receiver(void *unused)
{
	(void)unused;
	get(waited_for[0], 12345, 6);
	return NULL;
}

static void *acceptor(void *unused)
{
	(void)unused;
	int fd = accept4(listener_waited_for, NULL, NULL, SOCK_CLOEXEC);
	CHECK(fd >= 0, "accept: %s", strerror(errno));
	return NULL;
}

static void *poller(void *unused)
{
	(void)unused;
	struct pollfd polled = { .fd = waited_for[0], .events = POLLRDHUP };
	CHECK(poll(&polled, 1, -1) == 1 && polled.revents & POLLRDHUP, "poll says %#x", polled.revents);
	return NULL;
}

static void *watcher(void *epoll)
{
	struct epoll_event event = { .events = 0 };
	CHECK(epoll_wait(*(int *)epoll, &event, 1, -1) == 1 && event.data.u32 == 9, "epoll_wait: %s", strerror(errno));
	return NULL;
}

CASE(waiting)
{
	void *(*const bodies[])(void *) = { receiver, acceptor, poller, watcher };
	pthread_t threads[LENGTH(bodies)];
	int other[2], epoll = MUST(epoll_create1(0));
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 9 };
	connection("127.0.0.1", waited_for);
	connection("::1", other);
	listener_waited_for = listening("127.0.0.1");
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, other[0], &event));
	for (size_t i = 0; i < LENGTH(bodies); i++)
		MUST0(pthread_create(&threads[i], NULL, bodies[i], &epoll));
	checkpoint();
	put(waited_for[1], 12345, 6);
	MUST(shutdown(waited_for[1], SHUT_WR));
	close(connected_to(listener_waited_for, 0));
	put(other[1], 1, 1);
	for (size_t i = 0; i < LENGTH(bodies); i++)
		MUST0(pthread_join(threads[i], NULL));
}

/* A server of one ABI, and a client of the other one that inherits its end. */
CASE(between_abis)
{
	int ends[2];
	char number[16];
	connection("127.0.0.1", ends);
	snprintf(number, sizeof(number), "%d", ends[1]);
	pid_t child = spawn_abi(other_abi, "other_end", number);
	close(ends[1]);
	put(ends[0], 5000, 1);
	checkpoint();
	kill(child, SIGUSR1);
	put(ends[0], 5000, 2);
	get(ends[0], 9000, 3);
	ended(ends[0]);
	reap(child);
}

CASE(other_end)
{
	int fd = atoi(case_args[0]);
	prepared();
	wait_for_go();
	get(fd, 5000, 1);
	get(fd, 5000, 2);
	put(fd, 9000, 3);
}

/* Serves whoever comes, by one task: what it gets is sent back with every byte plus one. Ends when it is told to. */
static volatile sig_atomic_t over;

static void on_usr1(int signal)
{
	(void)signal;
	over = 1;
}

static void serve(const char *host, const char *host6)
{
	struct sigaction action = { .sa_handler = on_usr1 };
	sigset_t none;
	int listener = listening(host), listener6 = listening(host6), epoll = MUST(epoll_create1(0));
	struct epoll_event event = { .events = EPOLLIN };
	struct address address = name_of(listener), address6 = name_of(listener6);
	for (int i = 0; i < 2; i++) {
		event.data.fd = i == 0 ? listener : listener6;
		MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event));
	}
	MUST(sigaction(SIGUSR1, &action, NULL));
	MUST(sigprocmask(SIG_BLOCK, NULL, &none));
	sigdelset(&none, SIGUSR1);
	printf("%d %d\nREADY\n", ntohs(((struct sockaddr_in *)&address.bytes)->sin_port),
	       ntohs(((struct sockaddr_in6 *)&address6.bytes)->sin6_port));
	fflush(stdout);
	while (!over) {
		static unsigned char bytes[65536];
		if (epoll_pwait(epoll, &event, 1, -1, &none) != 1)
			continue;
		if (event.data.fd == listener || event.data.fd == listener6) {
			event.data.fd = MUST(accept(event.data.fd, NULL, NULL));
			MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event));
			continue;
		}
		int fd = event.data.fd;
		ssize_t got = recv(fd, bytes, sizeof(bytes), 0);
		CHECK(got >= 0 || errno == ECONNRESET, "recv: %s", strerror(errno));
		for (ssize_t i = 0; i < got; i++)
			bytes[i]++;
		for (ssize_t done = 0; done < got;) {
			ssize_t sent = send(fd, bytes + done, (size_t)(got - done), MSG_NOSIGNAL);
			CHECK(sent > 0 || errno == ECONNRESET || errno == EPIPE, "send: %s", strerror(errno));
			if (sent <= 0)
				got = -1;
			done += sent;
		}
		if (got <= 0)
			close(fd);
	}
}

CASE(server)
{
	serve("127.0.0.1", "::1");
}

CASE(server_for_all)
{
	serve("0.0.0.0", "::");
}

/* Has sockets that hear one interface only, and a connection that takes only what was sent from beside it: with a datagram in a queue, and the end of a stream. */
CASE(on_a_device)
{
	static const char device[] = "here";
	int listener = listening("10.1.1.2"), ear = bound("10.1.1.2", SOCK_DGRAM), most = 255, any = 0;
	MUST(setsockopt(ear, SOL_SOCKET, SO_BINDTODEVICE, device, sizeof(device)));
	struct address address = name_of(listener), heard = name_of(ear);
	printf("%d %d\nLISTENS\n", ntohs(((struct sockaddr_in *)&address.bytes)->sin_port), ntohs(((struct sockaddr_in *)&heard.bytes)->sin_port));
	fflush(stdout);
	int fd = MUST(accept(listener, NULL, NULL));
	MUST(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, sizeof(device)));
	await_tcp_state(fd, TCP_CLOSE_WAIT);
	struct pollfd polled = { .fd = ear, .events = POLLIN };
	CHECK(poll(&polled, 1, 20000) == 1, "poll: %s", strerror(errno));
	MUST(setsockopt(fd, IPPROTO_IP, IP_MINTTL, &most, sizeof(most)));
	checkpoint();
	CHECK(option(fd, IPPROTO_IP, IP_MINTTL) == most, "packets from further away are taken");
	MUST(setsockopt(fd, IPPROTO_IP, IP_MINTTL, &any, sizeof(any)));
	char bytes[8], name[IFNAMSIZ] = "";
	socklen_t length = sizeof(name);
	MUST(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
	CHECK(strcmp(name, device) == 0, "on device %s", name);
	length = sizeof(name);
	MUST(getsockopt(ear, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
	CHECK(strcmp(name, device) == 0, "on device %s", name);
	CHECK(recv(ear, bytes, sizeof(bytes), MSG_DONTWAIT) == 5 && memcmp(bytes, "heard", 5) == 0, "recv: %s", strerror(errno));
	CHECK(recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) == 3 && memcmp(bytes, "abc", 3) == 0, "recv: %s", strerror(errno));
	ended(fd);
	CHECK(send(fd, "bbbb", 4, 0) == 4, "send: %s", strerror(errno));
}

/* A connection of somebody elsewhere who has told the end of the stream. */
static int accept_who_ends(void)
{
	int listener = listening("0.0.0.0");
	struct address address = name_of(listener);
	printf("%d\nLISTENS\n", ntohs(((struct sockaddr_in *)&address.bytes)->sin_port));
	fflush(stdout);
	int fd = MUST(accept(listener, NULL, NULL));
	await_tcp_state(fd, TCP_CLOSE_WAIT);
	return fd;
}

/* Has a connection, half closed by the other end, of which it sends the rest when it is told to. */
CASE(closed_there)
{
	int fd = accept_who_ends();
	checkpoint();
	CHECK(state(fd) == TCP_CLOSE_WAIT, "in state %u", state(fd));
	char bytes[4000];
	CHECK(recv(fd, bytes, sizeof(bytes), MSG_WAITALL) == sizeof(bytes), "recv: %s", strerror(errno));
	for (size_t i = 0; i < sizeof(bytes); i++)
		CHECK(bytes[i] == 'a', "byte %zu is %d", i, bytes[i]);
	ended(fd);
	memset(bytes, 'b', sizeof(bytes));
	CHECK(send(fd, bytes, sizeof(bytes), 0) == sizeof(bytes), "send: %s", strerror(errno));
}

/* Errors that have not been told: of a connection that was reset, and of a datagram that nobody takes. */
CASE(errors)
{
	struct linger reset = { .l_onoff = 1 };
	int ends[2], error = 0, nobody = bound("127.0.0.1", SOCK_DGRAM), fd = bound("127.0.0.1", SOCK_DGRAM);
	socklen_t length = sizeof(error);
	struct address to = name_of(nobody);
	close(nobody);
	MUST(connect(fd, (void *)&to.bytes, to.length));
	MUST(send(fd, "lost", 4, 0));
	connection("127.0.0.1", ends);
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)));
	close(ends[0]);
	struct pollfd polled[] = { { .fd = fd }, { .fd = ends[1] } };
	for (size_t i = 0; i < LENGTH(polled); i++)
		CHECK(poll(&polled[i], 1, 20000) == 1 && (polled[i].revents & POLLERR) != 0, "events %#x", polled[i].revents);
	checkpoint();
	MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
	CHECK(error == ECONNREFUSED, "the datagram: %s", strerror(error));
	MUST(getsockopt(ends[1], SOL_SOCKET, SO_ERROR, &error, &length));
	CHECK(error == ECONNRESET, "the connection: %s", strerror(error));
}

/* Has a connection over which the other end has sent something urgent, and the end of its stream. */
CASE(urgent_there)
{
	int fd = accept_who_ends(), mark = 0;
	checkpoint();
	char bytes[8];
	CHECK(recv(fd, bytes, sizeof(bytes), 0) == 3 && memcmp(bytes, "abc", 3) == 0, "recv: %s", strerror(errno));
	MUST(ioctl(fd, SIOCATMARK, &mark));
	CHECK(mark == 1, "not at the mark");
	CHECK(recv(fd, bytes, sizeof(bytes), MSG_OOB) == 1 && bytes[0] == '!', "urgent is %d: %s", bytes[0], strerror(errno));
	CHECK(recv(fd, bytes, sizeof(bytes), 0) == 3 && memcmp(bytes, "def", 3) == 0, "recv: %s", strerror(errno));
	ended(fd);
	CHECK(send(fd, "bbbb", 4, 0) == 4, "send: %s", strerror(errno));
}

/* Datagrams in the queues of sockets at the same link-local address of two interfaces. */
CASE(link_local)
{
	static const char *const names[] = { "crr0", "crr1" };
	int fds[LENGTH(names)];
	struct sockaddr_in6 own[LENGTH(names)];
	for (size_t i = 0; i < LENGTH(names); i++) {
		own[i] = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = htons(4711) };
		own[i].sin6_scope_id = if_nametoindex(names[i]);
		CHECK(inet_pton(AF_INET6, "fe80::1", &own[i].sin6_addr) == 1, "inet_pton");
		fds[i] = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
		MUST(bind(fds[i], (void *)&own[i], sizeof(own[i])));
		MUST(sendto(fds[i], names[i], strlen(names[i]), 0, (void *)&own[i], sizeof(own[i])));
	}
	checkpoint();
	for (size_t i = 0; i < LENGTH(names); i++) {
		char bytes[8] = "";
		struct sockaddr_in6 sender;
		socklen_t length = sizeof(sender);
		MUST(recvfrom(fds[i], bytes, sizeof(bytes), MSG_DONTWAIT, (void *)&sender, &length));
		CHECK(strcmp(bytes, names[i]) == 0, "%s got %s", names[i], bytes);
		CHECK(sender.sin6_scope_id == own[i].sin6_scope_id, "from interface %u", sender.sin6_scope_id);
	}
}

/* Its SYN is answered by nobody for now. */
CASE(connecting)
{
	struct address address = at("127.0.0.1", 4242);
	int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), error = -1;
	socklen_t length = sizeof(error);
	CHECK(connect(fd, (void *)&address.bytes, address.length) == -1 && errno == EINPROGRESS, "connect: %s", strerror(errno));
	CHECK(state(fd) == TCP_SYN_SENT, "in state %u", state(fd));
	checkpoint();
	struct pollfd polled = { .fd = fd, .events = POLLOUT };
	CHECK(poll(&polled, 1, 20000) == 1, "poll: %s", strerror(errno));
	MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
	CHECK(error == 0 && state(fd) == TCP_ESTABLISHED, "error %d, state %u", error, state(fd));
	CHECK(send(fd, "hello", 5, 0) == 5, "send: %s", strerror(errno));
}

/* Filters of its own: what it does not let in does not come in after either. */
CASE(filters)
{
	/* Datagrams of 8 bytes header and exactly 4 bytes are let in. */
	struct sock_filter code[] = {
		{ 0x80, 0, 0, 0 },
		{ 0x15, 0, 1, 12 },
		{ 0x06, 0, 0, 0xffff },
		{ 0x06, 0, 0, 0 },
	};
	struct sock_fprog program = { .len = LENGTH(code), .filter = code };
	int on = 1, ends[2], fd = bound("127.0.0.1", SOCK_DGRAM), sender = bound("127.0.0.1", SOCK_DGRAM);
	struct address to = name_of(fd), from = name_of(sender);
	MUST(sendto(sender, "early", 5, 0, (void *)&to.bytes, to.length));
	MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	MUST(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on)));
	connection("127.0.0.1", ends);
	code[1].k = 0;
	code[3].k = 0xffff;
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	checkpoint();
	expect(fd, from, "early", 5);
	MUST(sendto(sender, "three", 5, 0, (void *)&to.bytes, to.length));
	MUST(sendto(sender, "four", 4, 0, (void *)&to.bytes, to.length));
	expect(fd, from, "four", 4);
	nothing_left_in(fd);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof(on)) == -1 && errno == EPERM, "it is not locked");
	put(ends[1], 100, 1);
	get(ends[0], 100, 1);
	MUST(setsockopt(ends[0], SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof(on)));
}

/* Sockets to the kernel: what was asked is answered, and what is to be heard is. */
CASE(netlink)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
	} request = { .header = { .nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = 7 },
		      .link = { .ifi_index = 1 } };
	struct sockaddr_nl name = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK }, now;
	/* Lets nothing pass, or the header of each message: programs that hear of devices have a filter. */
	struct sock_filter none = { 0x06, 0, 0, 0 }, header_alone = { 0x06, 0, 0, sizeof(struct nlmsghdr) };
	struct sock_fprog of_none = { .len = 1, .filter = &none }, of_header = { .len = 1, .filter = &header_alone };
	int fds[5], on = 1, group = RTNLGRP_IPV6_RULE;
	socklen_t length = sizeof(name);
	fds[0] = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
	MUST(bind(fds[0], (void *)&name, sizeof(name)));
	MUST(setsockopt(fds[0], 270, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)));
	MUST(setsockopt(fds[0], 270, NETLINK_EXT_ACK, &on, sizeof(on)));
	MUST(getsockname(fds[0], (void *)&name, &length));
	fds[1] = MUST(socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT));
	MUST(setsockopt(fds[1], SOL_SOCKET, SO_ATTACH_FILTER, &of_none, sizeof(of_none)));
	MUST(setsockopt(fds[1], SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on)));
	fds[2] = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));
	fds[3] = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	MUST(setsockopt(fds[3], SOL_SOCKET, SO_ATTACH_FILTER, &of_header, sizeof(of_header)));
	/* As whoever tells something to be audited has one. */
	fds[4] = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT));
	CHECK(name.nl_pid != 0 && (name.nl_groups & RTMGRP_LINK) != 0, "port %u, groups %#x", name.nl_pid, name.nl_groups);
	checkpoint();
	length = sizeof(now);
	MUST(getsockname(fds[0], (void *)&now, &length));
	CHECK(now.nl_pid == name.nl_pid && now.nl_groups == name.nl_groups, "port %u, groups %#x", now.nl_pid, now.nl_groups);
	uint32_t groups[4] = { 0 };
	length = sizeof(groups);
	MUST(getsockopt(fds[0], 270, NETLINK_LIST_MEMBERSHIPS, groups, &length));
	CHECK(groups[0] == (RTMGRP_LINK | 1u << (RTNLGRP_IPV6_RULE - 1)), "groups %#x", groups[0]);
	CHECK(option(fds[0], 270, NETLINK_EXT_ACK) == 1, "NETLINK_EXT_ACK");
	CHECK(option(fds[1], SOL_SOCKET, SO_PROTOCOL) == NETLINK_KOBJECT_UEVENT, "another protocol");
	CHECK(fcntl(fds[1], F_GETFL) & O_NONBLOCK, "it blocks");
	CHECK(option(fds[4], SOL_SOCKET, SO_PROTOCOL) == NETLINK_AUDIT, "another protocol");
	CHECK(setsockopt(fds[1], SOL_SOCKET, SO_DETACH_FILTER, &on, sizeof(on)) == -1 && errno == EPERM, "it is not locked");
	static char answer[8192];
	struct nlmsghdr *header = (void *)answer;
	MUST(send(fds[3], &request, sizeof(request), 0));
	ssize_t size = MUST(recv(fds[3], answer, sizeof(answer), 0));
	CHECK(size == sizeof(*header) && header->nlmsg_type == RTM_NEWLINK, "the filter lets %zd bytes pass", size);
	MUST(send(fds[0], &request, sizeof(request), 0));
	CHECK(recv(fds[0], answer, sizeof(answer), 0) > 0 && header->nlmsg_type == RTM_NEWLINK && header->nlmsg_seq == 7,
	      "the answer is of type %u", header->nlmsg_type);
}
