/* Unix sockets whose other end is outside of the tree. Servers of the harness are there under the names that are used here. */
#include "workload.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un at(const char *name, socklen_t *length)
{
	struct sockaddr_un made = { .sun_family = AF_UNIX };
	strncpy(made.sun_path, name, sizeof(made.sun_path) - 1);
	*length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1);
	return made;
}

/* Paths below the directory that the case runs in, by their whole names. */
static struct sockaddr_un here(const char *name, socklen_t *length)
{
	char directory[108], path[128];
	if (getcwd(directory, sizeof(directory)) == NULL)
		die(__FILE__, __LINE__, "getcwd");
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return at(path, length);
}

/* The abstract name that the harness gives to a server of this case. */
static struct sockaddr_un hidden(socklen_t *length)
{
	struct sockaddr_un made = here("hidden", length);
	memmove(made.sun_path + 1, made.sun_path, sizeof(made.sun_path) - 1);
	made.sun_path[0] = 0;
	return made;
}

static int connected(int kind, struct sockaddr_un (*name)(const char *, socklen_t *), const char *text)
{
	socklen_t length;
	struct sockaddr_un to = name(text, &length);
	int fd = MUST(socket(AF_UNIX, kind, 0));
	MUST(connect(fd, (struct sockaddr *)&to, length));
	return fd;
}

static void say(int fd, const char *text)
{
	CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text), "send to %d: %s", fd, strerror(errno));
}

static void hear(int fd, const char *text)
{
	char bytes[64] = "";
	ssize_t got = recv(fd, bytes, sizeof(bytes) - 1, 0);
	CHECK(got == (ssize_t)strlen(text) && strcmp(bytes, text) == 0, "recv of %d gives %zd, '%s' instead of '%s'", fd, got, bytes,
	      text);
}

/* Waits for something to be read, and leaves it there. */
static void await_data(int fd)
{
	struct pollfd entry = { .fd = fd, .events = POLLIN };
	MUST(poll(&entry, 1, -1));
}

static void is_closed(int fd)
{
	char byte;
	CHECK(recv(fd, &byte, 1, 0) == 0, "no end of file of %d", fd);
	CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "no EPIPE of %d: %s", fd, strerror(errno));
}

/* A descriptor that the server hands over. */
static int received(int from)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	int fd = -1;
	CHECK(MUST(recvmsg(from, &message, 0)) == 1 && CMSG_FIRSTHDR(&message) != NULL, "no descriptor");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* Clients of servers elsewhere, one of which lives under an abstract name, an end of a pair, a server with clients elsewhere. */
CASE(closed)
{
	socklen_t length;
	struct sockaddr_un own = here("own", &length), secret;
	int server = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(server, (struct sockaddr *)&own, length));
	MUST(listen(server, 5));
	int client = connected(SOCK_STREAM, here, "server");
	secret = hidden(&length);
	int other = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(other, (struct sockaddr *)&secret, length));
	int log = connected(SOCK_DGRAM, here, "journal");
	/* Told to begin, the harness connects, sends, and hands over an end of a pair. */
	say(client, "begin\n");
	int pair = received(client), accepted = MUST(accept(server, NULL, NULL));
	await_data(client);
	await_data(other);
	await_data(accepted);
	say(accepted, "unread");
	checkpoint();
	hear(client, "farewell");
	is_closed(client);
	hear(other, "farewell");
	is_closed(other);
	hear(accepted, "request");
	is_closed(accepted);
	is_closed(pair);
	/* The name is the one that it had. */
	struct sockaddr_un shown = { 0 }, expected = here("journal", &length);
	socklen_t size = sizeof(shown);
	CHECK(getpeername(log, (struct sockaddr *)&shown, &size) == 0 && strcmp(shown.sun_path, expected.sun_path) == 0,
	      "connected to %s", shown.sun_path);
	CHECK(send(log, "x", 1, 0) == -1 && errno == ECONNREFUSED, "no ECONNREFUSED: %s", strerror(errno));
	/* It serves. */
	int again = connected(SOCK_STREAM, here, "own");
	accepted = MUST(accept(server, NULL, NULL));
	say(again, "knock");
	hear(accepted, "knock");
}

static void be_a_client(void *unused)
{
	(void)unused;
	MUST(setresgid(1234, 1234, 1234));
	MUST(setresuid(4321, 4321, 4321));
	int fd = connected(SOCK_STREAM, here, "server");
	prepared();
	wait_for_go();
	say(fd, "the child\n");
	hear(fd, "welcome");
}

/* Clients that are connected again. */
CASE(again)
{
	socklen_t length;
	struct sockaddr_un secret = hidden(&length);
	int client = connected(SOCK_STREAM, here, "server"), log = connected(SOCK_DGRAM, here, "journal");
	int other = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
	MUST(connect(other, (struct sockaddr *)&secret, length));
	MUST(shutdown(other, SHUT_RD));
	pid_t child = spawn(be_a_client, NULL);
	say(log, "before");
	checkpoint();
	say(client, "parent\n");
	hear(client, "welcome");
	say(log, "after");
	say(other, "more\n");
	CHECK(recv(other, &(char){ 0 }, 1, 0) == 0, "it is not shut down");
	CHECK(fcntl(other, F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(client, F_GETFL) == O_RDWR, "flags");
	finish(child);
}

/* A message whose sender is elsewhere, under a name that nobody else can have. */
CASE(heard)
{
	socklen_t length;
	struct sockaddr_un own = here("mailbox", &length);
	int mailbox = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(bind(mailbox, (struct sockaddr *)&own, length));
	await_data(mailbox);
	checkpoint();
	hear(mailbox, "letter");
}

/* A client of a server that is elsewhere then. */
CASE(elsewhere)
{
	int client = connected(SOCK_STREAM, here, "server");
	checkpoint();
	hear(client, "welcome");
}

/* Ends of pairs, and a socket that listens, which somebody else has, too. */
CASE(given)
{
	int client = connected(SOCK_STREAM, here, "server");
	say(client, "begin\n");
	int pair = received(client), extra = received(client), listening = received(client);
	close(client);
	checkpoint();
	hear(pair, "from the other pair");
	say(pair, "answer");
	hear(extra, "unread");
	is_closed(extra);
	int accepted = MUST(accept(listening, NULL, NULL));
	hear(accepted, "knock");
}
