/* Unix sockets with addresses: listening, connected, waiting to be accepted; datagrams between them; names whose file is
 * elsewhere or gone. */
#include "workload.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

struct address {
	struct sockaddr_un name;
	socklen_t length;
};

/* A path, or with a leading @ an abstract name. */
static struct address address(const char *name)
{
	struct address made = { .name = { .sun_family = AF_UNIX } };
	size_t length = strlen(name);
	memcpy(made.name.sun_path, name, length);
	made.length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
	if (name[0] == '@') {
		made.name.sun_path[0] = 0;
		made.length--;
	}
	return made;
}

/* Abstract names are shared by all tests that run now. */
static const char *own_name(const char *purpose)
{
	static char names[8][64];
	static int next;
	char *name = names[next++ % 8];
	struct stat here;
	MUST(stat(".", &here));
	snprintf(name, 64, "@crr %s %s %lu", purpose, this_abi, (unsigned long)here.st_ino);
	return name;
}

static int unbound(int kind)
{
	return MUST(socket(AF_UNIX, kind, 0));
}

static void bind_to(int fd, const char *name)
{
	struct address to = address(name);
	MUST(bind(fd, (struct sockaddr *)&to.name, to.length));
}

static int bound(int kind, const char *name)
{
	int fd = unbound(kind);
	bind_to(fd, name);
	return fd;
}

static int listening(int kind, const char *name, int backlog)
{
	int fd = bound(kind, name);
	MUST(listen(fd, backlog));
	return fd;
}

static void connect_to(int fd, const char *name)
{
	struct address to = address(name);
	MUST(connect(fd, (struct sockaddr *)&to.name, to.length));
}

static int connected(int kind, const char *name)
{
	int fd = unbound(kind);
	connect_to(fd, name);
	return fd;
}

static void check_name(int (*ask)(int, struct sockaddr *, socklen_t *), int fd, const char *name, const char *what)
{
	struct sockaddr_un shown = { 0 };
	struct address expected = address(name);
	socklen_t length = sizeof(shown);
	if (name[0] == 0)
		expected.length = offsetof(struct sockaddr_un, sun_path);
	CHECK(ask(fd, (struct sockaddr *)&shown, &length) == 0, "%s of %d: %s", what, fd, strerror(errno));
	CHECK(length == expected.length && memcmp(&shown, &expected.name, length) == 0, "%s of %d is %d bytes %s%s, not %s",
	      what, fd, length, shown.sun_path[0] ? "" : "@", shown.sun_path + !shown.sun_path[0], name);
}

static void check_names(int fd, const char *own, const char *peer)
{
	check_name(getsockname, fd, own, "the name");
	if (peer != NULL)
		check_name(getpeername, fd, peer, "the name of the peer");
}

static void say(int fd, const char *text)
{
	CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "send: %s", strerror(errno));
}

static void hear(int fd, const char *text)
{
	char bytes[256] = "";
	ssize_t got = recv(fd, bytes, sizeof(bytes) - 1, MSG_DONTWAIT);
	CHECK(got == (ssize_t)strlen(text) && strcmp(bytes, text) == 0, "recv of %d gives %zd, '%s' instead of '%s'", fd, got,
	      bytes, text);
}

/* What a server is for: somebody connects, is accepted, is heard. */
static void check_serves(int server, const char *name)
{
	int kind = 0;
	socklen_t length = sizeof(kind);
	MUST(getsockopt(server, SOL_SOCKET, SO_TYPE, &kind, &length));
	int client = unbound(kind);
	struct address to = address(name);
	CHECK(connect(client, (struct sockaddr *)&to.name, to.length) == 0, "connect to %s: %s", name, strerror(errno));
	int accepted = MUST(accept(server, NULL, NULL));
	say(client, "knock");
	hear(accepted, "knock");
	close(client);
	close(accepted);
}

CASE(listening)
{
	const char *abstract = own_name("listening");
	int path = listening(SOCK_STREAM, "server", 5), hidden = listening(SOCK_SEQPACKET, abstract, 3);
	int idle = bound(SOCK_STREAM, "bound");
	struct sockaddr_un automatic = { .sun_family = AF_UNIX };
	int chosen = unbound(SOCK_STREAM);
	MUST(bind(chosen, (struct sockaddr *)&automatic, sizeof(sa_family_t)));
	socklen_t length = sizeof(automatic);
	MUST(getsockname(chosen, (struct sockaddr *)&automatic, &length));
	MUST(listen(chosen, 1));
	MUST(chown("server", 12, 34));
	MUST(chmod("server", 0640));
	umask(0);
	int before = 0, after = 0;
	while (before < 100) {
		int client = unbound(SOCK_STREAM | SOCK_NONBLOCK);
		struct address to = address("server");
		if (connect(client, (struct sockaddr *)&to.name, to.length) != 0)
			break;
		before++;
		close(client);
	}
	while (accept4(path, NULL, NULL, 0) >= 0 && --before > 0)
		after++;
	before = after + 1;
	checkpoint();
	check_names(path, "server", NULL);
	check_names(hidden, abstract, NULL);
	check_names(idle, "bound", NULL);
	struct sockaddr_un again = { 0 };
	socklen_t size = sizeof(again);
	MUST(getsockname(chosen, (struct sockaddr *)&again, &size));
	CHECK(size == length && memcmp(&again, &automatic, size) == 0, "the name that the kernel chose is another");
	struct stat file;
	MUST(stat("server", &file));
	CHECK(S_ISSOCK(file.st_mode) && (file.st_mode & 07777) == 0640 && file.st_uid == 12 && file.st_gid == 34,
	      "mode %#o, owner %u, group %u", file.st_mode, file.st_uid, file.st_gid);
	check_serves(path, "server");
	check_serves(hidden, abstract);
	MUST(listen(idle, 1));
	check_serves(idle, "bound");
	/* As many as before go in without anybody accepting. */
	after = 0;
	for (;; after++) {
		int client = unbound(SOCK_STREAM | SOCK_NONBLOCK);
		struct address to = address("server");
		if (connect(client, (struct sockaddr *)&to.name, to.length) != 0)
			break;
	}
	CHECK(after == before, "%d connections wait instead of %d", after, before);
}

CASE(accepted)
{
	const char *abstract = own_name("accepted"), *named = own_name("client");
	int server = listening(SOCK_STREAM, "server", 5), hidden = listening(SOCK_SEQPACKET, abstract, 5);
	int client[4], accepted[4];
	for (int i = 0; i < 4; i++) {
		client[i] = unbound(i < 2 ? SOCK_STREAM : SOCK_SEQPACKET);
		if (i == 1)
			bind_to(client[i], "client");
		if (i == 3)
			bind_to(client[i], named);
		connect_to(client[i], i < 2 ? "server" : abstract);
		accepted[i] = MUST(accept(i < 2 ? server : hidden, NULL, NULL));
		say(client[i], "from the client");
		say(accepted[i], "from the server");
	}
	/* Connections outlive the socket that accepted them. */
	close(hidden);
	checkpoint();
	for (int i = 0; i < 4; i++) {
		const char *own = i == 1 ? "client" : i == 3 ? named : "";
		check_names(client[i], own, i < 2 ? "server" : abstract);
		check_names(accepted[i], i < 2 ? "server" : abstract, own);
		hear(accepted[i], "from the client");
		hear(client[i], "from the server");
		say(client[i], "more");
		hear(accepted[i], "more");
		say(accepted[i], "yet more");
		hear(client[i], "yet more");
	}
	check_serves(server, "server");
	close(client[0]);
	CHECK(recv(accepted[0], &(char){ 0 }, 1, 0) == 0, "no end of file");
}

static pid_t connector;

static void wait_at_the_door(void *unused)
{
	(void)unused;
	MUST(setresgid(1234, 1234, 1234));
	MUST(setresuid(4321, 4321, 4321));
	int client = connected(SOCK_STREAM, "server");
	prepared();
	wait_for_go();
	say(client, "the child");
}

/* Connections that nobody has accepted yet. */
CASE(waiting)
{
	int server = listening(SOCK_STREAM, "server", 5), client[3];
	MUST(chmod("server", 0777));
	client[0] = connected(SOCK_STREAM, "server");
	client[1] = bound(SOCK_STREAM, "client");
	connect_to(client[1], "server");
	connector = spawn(wait_at_the_door, NULL);
	client[2] = connected(SOCK_STREAM, "server");
	checkpoint();
	say(client[0], "first");
	say(client[1], "second");
	say(client[2], "last");
	for (int i = 0; i < 4; i++) {
		int accepted = MUST(accept(server, NULL, NULL));
		struct ucred peer;
		socklen_t length = sizeof(peer);
		MUST(getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &peer, &length));
		if (i == 2) {
			CHECK(peer.pid == connector && peer.uid == 4321 && peer.gid == 1234, "%d %u %u", peer.pid, peer.uid, peer.gid);
			finish(connector);
			hear(accepted, "the child");
		} else {
			CHECK(peer.pid == getpid() && peer.uid == 0, "%d %u", peer.pid, peer.uid);
			hear(accepted, i == 0 ? "first" : i == 1 ? "second" : "last");
		}
		check_names(accepted, "server", i == 1 ? "client" : "");
	}
	check_serves(server, "server");
}

/* The same, with something sent over some of them, at which nobody can look: given up, these are closed as if nobody listened any more. */
CASE(waiting_and_used)
{
	const char *abstract = own_name("used");
	int servers[] = { listening(SOCK_STREAM, "server", 5), listening(SOCK_SEQPACKET, abstract, 5) }, clients[2];
	int kept = connected(SOCK_STREAM, "server");
	clients[0] = connected(SOCK_STREAM, "server");
	say(clients[0], "too early");
	clients[1] = bound(SOCK_SEQPACKET, "client");
	connect_to(clients[1], abstract);
	say(clients[1], "too early");
	close(connected(SOCK_STREAM, "server"));
	checkpoint();
	for (size_t i = 0; i < LENGTH(clients); i++) {
		struct pollfd polled = { .fd = clients[i], .events = POLLIN };
		char byte;
		check_names(clients[i], i == 0 ? "" : "client", i == 0 ? "server" : abstract);
		CHECK(poll(&polled, 1, 0) == 1 && polled.revents & POLLHUP, "client %zu: %#x", i, polled.revents);
		CHECK(recv(clients[i], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "client %zu: %s", i, strerror(errno));
		CHECK(recv(clients[i], &byte, 1, MSG_DONTWAIT) == 0, "client %zu: %s", i, strerror(errno));
		CHECK(send(clients[i], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "client %zu: %s", i, strerror(errno));
	}
	say(kept, "in time");
	int accepted = MUST(accept(servers[0], NULL, NULL));
	hear(accepted, "in time");
	for (size_t i = 0; i < LENGTH(servers); i++) {
		MUST(fcntl(servers[i], F_SETFL, O_NONBLOCK));
		CHECK(accept(servers[i], NULL, NULL) == -1 && errno == EAGAIN, "somebody is there");
		check_serves(servers[i], i == 0 ? "server" : abstract);
	}
}

static int shared_server;

static void stay_with_server(void *unused)
{
	(void)unused;
	MUST(listen(shared_server, 5));
	prepared();
	wait_for_go();
}

static void check_peer(int fd, pid_t pid)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);
	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length));
	CHECK(peer.pid == pid, "%d instead of %d", peer.pid, pid);
}

static void connect_and_stay(void *place)
{
	*(int *)place = connected(SOCK_STREAM, "server");
	prepared();
	wait_for_go();
	check_peer(*(int *)place, connector);
}

/* Each side of a connection shows who made it. */
CASE(peers)
{
	int place;
	shared_server = bound(SOCK_STREAM, "server");
	connector = spawn(stay_with_server, NULL);
	pid_t client = spawn(connect_and_stay, &place);
	int accepted = MUST(accept(shared_server, NULL, NULL));
	int own = connected(SOCK_STREAM, "server");
	checkpoint();
	check_peer(accepted, client);
	check_peer(own, connector);
	check_peer(shared_server, connector);
	finish(client);
	finish(connector);
}

/* The other end is closed, and its name still shows. */
CASE(gone)
{
	int server = listening(SOCK_STREAM, "server", 5), left[4];
	left[0] = connected(SOCK_STREAM, "server");
	int end = MUST(accept(server, NULL, NULL));
	say(end, "farewell");
	close(end);
	end = bound(SOCK_STREAM, "client");
	connect_to(end, "server");
	left[1] = MUST(accept(server, NULL, NULL));
	say(left[1], "unread");
	close(end);
	/* Never accepted, by a server that is no more. */
	int other = listening(SOCK_SEQPACKET, "other", 5);
	left[2] = connected(SOCK_SEQPACKET, "other");
	close(other);
	int target = bound(SOCK_DGRAM, "target");
	left[3] = connected(SOCK_DGRAM, "target");
	close(target);
	checkpoint();
	check_names(left[0], "", "server");
	hear(left[0], "farewell");
	hear(left[0], "");
	check_names(left[1], "server", "client");
	char byte;
	CHECK(recv(left[1], &byte, 1, 0) == -1 && errno == ECONNRESET, "no ECONNRESET: %s", strerror(errno));
	CHECK(recv(left[1], &byte, 1, 0) == 0, "no end of file");
	check_names(left[2], "", "other");
	CHECK(recv(left[2], &byte, 1, 0) == -1 && errno == ECONNRESET, "no ECONNRESET: %s", strerror(errno));
	check_names(left[3], "", "target");
	CHECK(send(left[3], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "no ECONNREFUSED: %s", strerror(errno));
	check_serves(server, "server");
}

static void hear_from(int fd, const char *sender, const char *text)
{
	char bytes[64] = "";
	struct sockaddr_un from = { 0 };
	socklen_t length = sizeof(from);
	struct address expected = address(sender);
	/* The kernel says nothing of a sender that has no name. */
	if (sender[0] == 0)
		expected.length = 0;
	ssize_t got = recvfrom(fd, bytes, sizeof(bytes) - 1, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
	CHECK(got == (ssize_t)strlen(text) && strcmp(bytes, text) == 0, "%zd bytes '%s' instead of '%s'", got, bytes, text);
	CHECK(length == expected.length && memcmp(&from, &expected.name, length) == 0, "sent by %s (%d), not by %s",
	      from.sun_path, length, sender);
}

CASE(datagrams)
{
	const char *abstract = own_name("datagrams");
	int server = bound(SOCK_DGRAM, "server"), hidden = bound(SOCK_DGRAM, abstract);
	int named = bound(SOCK_DGRAM, "named"), nameless = connected(SOCK_DGRAM, "server");
	connect_to(named, "server");
	say(named, "one");
	say(nameless, "two");
	say(named, "");
	int gone = bound(SOCK_DGRAM, "gone");
	connect_to(gone, "server");
	say(gone, "three");
	close(gone);
	struct address to = address("server");
	MUST(sendto(hidden, "four", 4, 0, (struct sockaddr *)&to.name, to.length));
	/* Connected to each other; what a third one had sent before stays. */
	int left = bound(SOCK_DGRAM, "left"), right = bound(SOCK_DGRAM, "right");
	to = address("left");
	MUST(sendto(hidden, "from hidden", 11, 0, (struct sockaddr *)&to.name, to.length));
	connect_to(left, "right");
	connect_to(right, "left");
	say(right, "from right");
	say(left, "from left");
	checkpoint();
	hear_from(server, "named", "one");
	hear_from(server, "", "two");
	hear_from(server, "named", "");
	hear_from(server, "gone", "three");
	hear_from(server, abstract, "four");
	hear_from(left, abstract, "from hidden");
	hear_from(left, "right", "from right");
	hear_from(right, "left", "from left");
	check_names(named, "named", "server");
	check_names(nameless, "", "server");
	check_names(left, "left", "right");
	say(nameless, "again");
	hear_from(server, "", "again");
	say(named, "again");
	hear_from(server, "named", "again");
	to = address("left");
	CHECK(sendto(hidden, "x", 1, 0, (struct sockaddr *)&to.name, to.length) == -1 && errno == EPERM, "a third one: %s",
	      strerror(errno));
}

static void be_in_a_root_of_its_own(void *unused)
{
	(void)unused;
	MUST(mkdir("root", 0755));
	MUST(mkdir("root/run", 0755));
	MUST(chroot("root"));
	MUST(chdir("/"));
	int server = listening(SOCK_STREAM, "/run/server", 5);
	prepared();
	wait_for_go();
	check_names(server, "/run/server", NULL);
	check_serves(server, "/run/server");
}

/* Names that do not lead to the file from here. */
CASE(names)
{
	MUST(mkdir("directory", 0755));
	MUST(chdir("directory"));
	int relative = listening(SOCK_STREAM, "server", 5), above = listening(SOCK_STREAM, "../above", 5);
	MUST(chdir(".."));
	int deleted = listening(SOCK_STREAM, "deleted", 5);
	int client = connected(SOCK_STREAM, "deleted"), accepted = MUST(accept(deleted, NULL, NULL));
	MUST(unlink("deleted"));
	int replaced = listening(SOCK_STREAM, "replaced", 5);
	MUST(unlink("replaced"));
	int replacing = listening(SOCK_STREAM, "replaced", 5);
	int overwritten = listening(SOCK_STREAM, "overwritten", 5);
	MUST(unlink("overwritten"));
	close(MUST(open("overwritten", O_CREAT | O_WRONLY, 0600)));
	int renamed = listening(SOCK_STREAM, "old", 5);
	MUST(rename("old", "new"));
	MUST(symlink("directory", "link"));
	int linked = listening(SOCK_STREAM, "link/linked", 5);
	pid_t child = spawn(be_in_a_root_of_its_own, NULL);
	checkpoint();
	check_names(relative, "server", NULL);
	check_serves(relative, "directory/server");
	check_names(above, "../above", NULL);
	check_serves(above, "above");
	check_names(deleted, "deleted", NULL);
	check_names(client, "", "deleted");
	check_names(accepted, "deleted", "");
	CHECK(access("deleted", F_OK) == -1 && errno == ENOENT, "the deleted file is back");
	say(client, "still here");
	hear(accepted, "still here");
	check_names(replaced, "replaced", NULL);
	check_names(replacing, "replaced", NULL);
	check_serves(replacing, "replaced");
	struct stat file;
	MUST(stat("overwritten", &file));
	CHECK(S_ISREG(file.st_mode), "a file that was there has been replaced");
	check_names(overwritten, "overwritten", NULL);
	check_names(renamed, "old", NULL);
	CHECK(access("old", F_OK) == -1 && errno == ENOENT, "the renamed file is back");
	check_serves(renamed, "new");
	check_names(linked, "link/linked", NULL);
	check_serves(linked, "link/linked");
	finish(child);
}

static void serve(const char *name)
{
	int server = listening(SOCK_STREAM, name, 5);
	prepared();
	for (;;) {
		char byte;
		int client = MUST(accept(server, NULL, NULL));
		while (recv(client, &byte, 1, 0) == 1)
			CHECK(send(client, &byte, 1, MSG_NOSIGNAL) == 1, "send: %s", strerror(errno));
		close(client);
		if (byte == 'q')
			break;
	}
	close(server);
}

CASE(server)
{
	serve(case_args[0]);
}

/* A server of the other ABI: it sleeps in accept(2), later in recv(2). */
CASE(between_abis)
{
	pid_t waits = spawn_abi(other_abi, "server", "one"), talks = spawn_abi(other_abi, "server", "two");
	int client = connected(SOCK_STREAM, "two");
	char byte = 0;
	await_sleep(waits);
	say(client, "a");
	CHECK(recv(client, &byte, 1, 0) == 1 && byte == 'a', "no echo");
	await_sleep(talks);
	checkpoint();
	int late = connected(SOCK_STREAM, "one");
	for (char letter = 'b'; letter <= 'q'; letter++) {
		say(client, &(char[]){ letter, 0 }[0]);
		CHECK(recv(client, &byte, 1, 0) == 1 && byte == letter, "echo %c", byte);
		say(late, &(char[]){ letter, 0 }[0]);
		CHECK(recv(late, &byte, 1, 0) == 1 && byte == letter, "echo %c", byte);
	}
	close(client);
	close(late);
	reap(waits);
	reap(talks);
}

static int held[2];

static void hold_an_end(void *unused)
{
	(void)unused;
	close(held[0]);
	int server = listening(SOCK_STREAM, "of the child", 5);
	prepared();
	wait_for_go();
	close(server);
}

/* Refused, if only the child is dumped: the other ends are elsewhere. */
CASE(other_end)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, held));
	pid_t child = spawn(hold_an_end, NULL);
	close(held[1]);
	int client = connected(SOCK_STREAM, "of the child");
	checkpoint();
	close(client);
	finish(child);
}
