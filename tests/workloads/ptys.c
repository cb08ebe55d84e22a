/* Pseudo terminals of which a tree has both ends. */
#include "workload.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

/* A new pair, whose slave can be opened. */
static int new_master(char name[32])
{
	int unlocked = 0, number = -1;
	int master = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
	MUST(ioctl(master, TIOCSPTLCK, &unlocked));
	MUST(ioctl(master, TIOCGPTN, &number));
	snprintf(name, 32, "/dev/pts/%d", number);
	return master;
}

static int new_pair(int *slave)
{
	char name[32];
	int master = new_master(name);
	*slave = MUST(open(name, O_RDWR | O_NOCTTY));
	return master;
}

static int int_of(int fd, unsigned long command)
{
	int value = -1;
	MUST(ioctl(fd, command, &value));
	return value;
}

/* Every setting off, so that bytes stand for themselves. */
static void make_raw(int fd)
{
	struct termios raw;
	MUST(tcgetattr(fd, &raw));
	cfmakeraw(&raw);
	MUST(tcsetattr(fd, TCSANOW, &raw));
}

static void write_all(int fd, const char *text, size_t length)
{
	CHECK(write(fd, text, length) == (ssize_t)length, "wrote less than %zu", length);
}

static void type(int fd, const char *text)
{
	write_all(fd, text, strlen(text));
}

static void expect_bytes(int fd, const char *bytes, size_t length)
{
	static char got[65536];
	size_t have = 0;
	while (have < length) {
		ssize_t more = read(fd, got + have, sizeof(got) - have);
		if (more <= 0) {
			CHECK(more > 0, "after %zu of %zu bytes: %s", have, length, more ? strerror(errno) : "the end");
			return;
		}
		have += (size_t)more;
	}
	CHECK(have == length && memcmp(got, bytes, length) == 0, "%zu bytes: %.*s", have, (int)have, got);
}

static void expect(int fd, const char *text)
{
	expect_bytes(fd, text, strlen(text));
}

/* A single read gives exactly this. */
static void expect_line(int fd, const char *text)
{
	char line[8192];
	ssize_t length = MUST(read(fd, line, sizeof(line)));
	CHECK(length == (ssize_t)strlen(text) && memcmp(line, text, (size_t)length) == 0, "%zd bytes: %.*s, not %s",
	      length, (int)length, line, text);
}

static short events(int fd)
{
	struct pollfd asked = { .fd = fd, .events = POLLIN | POLLOUT | POLLPRI };
	MUST(poll(&asked, 1, 0));
	return asked.revents;
}

static void nothing_left(int fd)
{
	CHECK((events(fd) & (POLLIN | POLLPRI)) == 0, "fd %d: events %#x", fd, events(fd));
}

/* Until what was written to the other end has gone through the line discipline. */
static void await_input(int fd, int bytes)
{
	while (int_of(fd, FIONREAD) != bytes)
		sched_yield();
}

CASE(settings)
{
	struct winsize size = { .ws_row = 31, .ws_col = 77, .ws_xpixel = 620, .ws_ypixel = 400 }, got;
	/* Without what lies between the members. */
	static struct termios set, after;
	struct {
		uint32_t iflag, oflag, cflag, lflag;
		uint8_t line, cc[19];
	} locks = { .lflag = ECHO }, got_locks;
	struct stat node;
	char name[32];
	int master = new_master(name), on = 1;
	int slave = MUST(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK));
	int second = MUST(open(name, O_WRONLY | O_NOCTTY | O_APPEND));
	int same = MUST(dup(slave));
	MUST(tcgetattr(slave, &set));
	set.c_iflag = IGNPAR | ICRNL | IXON | IXANY | IMAXBEL;
	set.c_oflag = OPOST | ONLCR;
	set.c_lflag = ISIG | ICANON | ECHO | ECHOE | ECHOCTL | IEXTEN | TOSTOP | NOFLSH;
	set.c_cc[VINTR] = 7;
	set.c_cc[VEOF] = 5;
	set.c_cc[VMIN] = 0;
	set.c_cc[VEOL2] = 9;
	cfsetispeed(&set, B9600);
	cfsetospeed(&set, B115200);
	MUST(tcsetattr(slave, TCSANOW, &set));
	MUST(tcgetattr(slave, &set));
	MUST(ioctl(master, TIOCSWINSZ, &size));
	MUST(ioctl(slave, TIOCEXCL));
	MUST(ioctl(master, TIOCSPTLCK, &on));
	/* ECHO cannot be changed. */
	MUST(syscall(SYS_ioctl, slave, TIOCSLCKTRMIOS, &locks));
	MUST(fchmod(slave, 0640));
	MUST(fchown(slave, 33, 34));

	checkpoint();
	MUST(tcgetattr(slave, &after));
	CHECK(memcmp(&set, &after, sizeof(set)) == 0, "iflag %o oflag %o cflag %o lflag %o", after.c_iflag,
	      after.c_oflag, after.c_cflag, after.c_lflag);
	MUST(syscall(SYS_ioctl, slave, TIOCGLCKTRMIOS, &got_locks));
	CHECK(memcmp(&locks, &got_locks, sizeof(locks)) == 0, "locked %o", got_locks.lflag);
	after.c_lflag &= ~(tcflag_t)(ECHO | ECHOE);
	MUST(tcsetattr(slave, TCSANOW, &after));
	MUST(tcgetattr(slave, &after));
	CHECK((after.c_lflag & (ECHO | ECHOE)) == ECHO, "lflag %o", after.c_lflag);
	MUST(tcsetattr(slave, TCSANOW, &set));
	MUST(ioctl(second, TIOCGWINSZ, &got));
	CHECK(memcmp(&size, &got, sizeof(size)) == 0, "%dx%d", got.ws_col, got.ws_row);
	CHECK(int_of(slave, TIOCGEXCL) != 0, "not exclusive any more");
	CHECK(int_of(master, TIOCGEXCL) == 0, "an exclusive master");
	CHECK(int_of(master, TIOCGPTLCK) != 0, "not locked any more");
	CHECK(int_of(master, TIOCGPKT) == 0, "in packet mode");
	MUST(fstat(slave, &node));
	CHECK(node.st_mode == (S_IFCHR | 0640) && node.st_uid == 33 && node.st_gid == 34, "mode %o, owner %d:%d",
	      node.st_mode, node.st_uid, node.st_gid);
	CHECK(strcmp(ttyname(same), name) == 0, "called %s", ttyname(same));
	CHECK(fcntl(slave, F_GETFL) & O_NONBLOCK, "slave blocks");
	CHECK(!(fcntl(second, F_GETFL) & O_NONBLOCK), "second does not block");
	type(second, "out\n");
	expect(master, "out\r\n");
	type(master, "in\r");
	await_input(slave, 3);
	expect_line(same, "in\n");
	expect(master, "in\r\n");
	nothing_left(master);
}

/* Lines, an end of file, a line that ends with a character of its own, and one that is still being typed. */
CASE(lines)
{
	struct termios set;
	int slave, master = new_pair(&slave);
	MUST(tcgetattr(slave, &set));
	set.c_cc[VEOL] = ';';
	MUST(tcsetattr(slave, TCSANOW, &set));
	/* The last but one is a newline taken literally: a line of two lines, were it typed without care. */
	type(master, "one\nmore\4\4semi;a\26\3b\nhalf of th");
	await_input(slave, 4 + 4 + 5 + 4);
	expect(master, "one\r\nmoresemi;a^\b^Cb\r\nhalf of th");
	nothing_left(master);

	checkpoint();
	nothing_left(master);
	expect_line(slave, "one\n");
	expect_line(slave, "more");
	expect_line(slave, "");
	expect_line(slave, "semi;");
	expect_line(slave, "a\3b\n");
	nothing_left(slave);
	/* Erased and completed: it is still edited. */
	type(master, "\177\177the line\n");
	expect_line(slave, "half of the line\n");
	nothing_left(slave);
}

CASE(raw)
{
	static char bytes[256], large[4000];
	int slave, master = new_pair(&slave);
	int slave2, master2 = new_pair(&slave2);
	make_raw(slave);
	make_raw(slave2);
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (char)i;
	fill(large, sizeof(large), 3);
	write_all(master, bytes, sizeof(bytes));
	write_all(slave, bytes, sizeof(bytes));
	write_all(master2, large, sizeof(large));
	write_all(slave2, large, sizeof(large));

	checkpoint();
	expect_bytes(master, bytes, sizeof(bytes));
	expect_bytes(slave, bytes, sizeof(bytes));
	expect_bytes(master2, large, sizeof(large));
	expect_bytes(slave2, large, sizeof(large));
	nothing_left(master);
	nothing_left(slave);
}

/* As much output as goes in, with everything that output processing would do to it done once. */
CASE(full)
{
	static char got[65536];
	char line[32];
	char name[32];
	int master = new_master(name), lines = 0;
	int slave = MUST(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK));
	size_t total = 0, have = 0;
	for (;; lines++) {
		int length = snprintf(line, sizeof(line), "line %d\n", lines);
		if (!(events(slave) & POLLOUT))
			break;
		int written = MUST((int)write(slave, line, (size_t)length));
		total += (size_t)written;
		if (written < length)
			break;
		total++;
	}
	CHECK(total > 8192, "only %zu bytes went in", total);

	checkpoint();
	while (events(master) & POLLIN)
		have += (size_t)MUST(read(master, got + have, sizeof(got) - have));
	CHECK(have == total, "%zu bytes, not %zu", have, total);
	for (int i = 0, at = 0; i < lines; i++) {
		int length = snprintf(line, sizeof(line), "line %d\r\n", i);
		CHECK(memcmp(got + at, line, (size_t)length) == 0, "line %d: %.12s", i, got + at);
		at += length;
	}
	type(slave, "more\n");
	expect(master, "more\r\n");
}

CASE(packets)
{
	int slave, master = new_pair(&slave), on = 1;
	char got[16];
	struct termios set;
	make_raw(slave);
	MUST(ioctl(master, TIOCPKT, &on));
	MUST(ioctl(master, TIOCEXCL));
	type(slave, "abc");

	checkpoint();
	CHECK(int_of(master, TIOCGPKT) == 1, "no packet mode");
	CHECK(int_of(master, TIOCGEXCL) == 1, "not exclusive");
	CHECK(!(events(master) & POLLPRI), "a status is told");
	expect_bytes(master, "\0abc", 4);
	nothing_left(master);
	MUST(tcgetattr(slave, &set));
	set.c_iflag |= IXON;
	MUST(tcsetattr(slave, TCSANOW, &set));
	CHECK(read(master, got, sizeof(got)) == 1 && got[0] == TIOCPKT_DOSTOP, "status %#x", got[0]);
}

/* Output held up by the stop character, and by tcflow. */
CASE(held_up)
{
	char name[32];
	int masters[2], slaves[2];
	for (int i = 0; i < 2; i++) {
		masters[i] = new_master(name);
		slaves[i] = MUST(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK));
		type(slaves[i], "before\n");
	}
	type(masters[0], "\23");
	while (events(slaves[0]) & POLLOUT)
		sched_yield();
	MUST(tcflow(slaves[1], TCOOFF));

	checkpoint();
	for (int i = 0; i < 2; i++) {
		expect(masters[i], "before\r\n");
		CHECK(write(slaves[i], "x", 1) == -1 && errno == EAGAIN, "terminal %d goes on", i);
		nothing_left(masters[i]);
	}
	/* Each by its own way. */
	type(masters[1], "\21");
	CHECK(!(events(slaves[1]) & POLLOUT), "the start character does what tcflow is for");
	MUST(tcflow(slaves[1], TCOON));
	type(masters[0], "\21");
	for (int i = 0; i < 2; i++) {
		while (!(events(slaves[i]) & POLLOUT))
			sched_yield();
		type(slaves[i], "after\n");
		expect(masters[i], "after\r\n");
	}
}

/* One slave was never opened, one is closed, one is locked and closed; the masters have still something to read. */
CASE(without_slaves)
{
	char never[32], closed[32], locked[32];
	char byte;
	int never_master = new_master(never), closed_master = new_master(closed), locked_master = new_master(locked);
	int on = 1;
	int slave = MUST(open(closed, O_RDWR | O_NOCTTY));
	type(slave, "last words");
	close(slave);
	slave = MUST(open(locked, O_RDWR | O_NOCTTY));
	close(slave);
	MUST(ioctl(locked_master, TIOCSPTLCK, &on));
	fcntl(never_master, F_SETFL, O_NONBLOCK);

	checkpoint();
	CHECK(read(never_master, &byte, 1) == -1 && errno == EAGAIN, "never opened: %s", strerror(errno));
	expect(closed_master, "last words");
	CHECK(read(closed_master, &byte, 1) == -1 && errno == EIO, "closed: %s", strerror(errno));
	CHECK(read(locked_master, &byte, 1) == -1 && errno == EIO, "closed and locked: %s", strerror(errno));
	CHECK(open(locked, O_RDWR | O_NOCTTY) == -1 && errno == EIO, "not locked");
	slave = MUST(open(closed, O_RDWR | O_NOCTTY));
	type(slave, "again");
	expect(closed_master, "again");
	slave = MUST(open(never, O_RDWR | O_NOCTTY));
	type(slave, "first");
	expect(never_master, "first");
}

/* A slave without its master; one that was hung up beside one that was opened since. */
CASE(hung_up)
{
	char gone[32], reopened[32], byte;
	int master = new_master(gone), other = new_master(reopened);
	int slave = MUST(open(gone, O_RDWR | O_NOCTTY));
	int old = MUST(open(reopened, O_RDWR | O_NOCTTY));
	struct termios set;
	close(master);
	MUST(ioctl(old, TIOCVHANGUP));
	int new = MUST(open(reopened, O_RDWR | O_NOCTTY));
	make_raw(new);

	checkpoint();
	CHECK(read(slave, &byte, 1) == 0, "something to read");
	CHECK(write(slave, "x", 1) == -1 && errno == EIO, "write: %s", strerror(errno));
	CHECK(tcgetattr(slave, &set) == -1 && errno == EIO, "tcgetattr: %s", strerror(errno));
	CHECK(access(gone, F_OK) == -1, "%s is there", gone);
	CHECK(read(old, &byte, 1) == 0, "something to read");
	CHECK(write(old, "x", 1) == -1 && errno == EIO, "write: %s", strerror(errno));
	type(new, "x\n");
	expect(other, "x\n");
	type(other, "y");
	expect(new, "y");
	nothing_left(other);
}

/* What the tasks of a session share with the test. */
struct session {
	pid_t leader, background, foreground, without;
	int master, number;
	volatile int ready;
};
static struct session *session;

static void in_group(void *number)
{
	pid_t group = getpid();
	MUST(setpgid(0, 0));
	int tty = number ? -1 : MUST(open("/dev/tty", O_RDWR));
	prepared();
	wait_for_go();
	CHECK(getpgrp() == group, "group %d", getpgrp());
	if (tty >= 0) {
		CHECK(int_of(tty, TIOCGPGRP) == session->foreground, "foreground %d", int_of(tty, TIOCGPGRP));
		CHECK(tcgetsid(tty) == session->leader, "session %d", tcgetsid(tty));
		CHECK(write(tty, "by /dev/tty\n", 12) == 12, "%s", strerror(errno));
	}
}

static void without_terminal(void *unused)
{
	int tty = MUST(open("/dev/tty", O_RDWR));
	MUST(ioctl(tty, TIOCNOTTY));
	close(tty);
	prepared();
	wait_for_go();
	CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "it has a terminal");
	CHECK(unused == NULL, "never");
}

static volatile sig_atomic_t signals;

static void count(int signal)
{
	(void)signal;
	signals++;
}

/* A leader as a shell is: a job in the foreground, one in the background, and a child that has let go of the terminal. */
static void lead(const char *name)
{
	struct sigaction action = { .sa_handler = count };
	int told[] = { SIGHUP, SIGWINCH, SIGTTOU, SIGTTIN, SIGCONT, SIGINT };
	for (size_t i = 0; i < LENGTH(told); i++)
		MUST(sigaction(told[i], &action, NULL));
	MUST(setsid());
	session->leader = getpid();
	/* Opened without O_NOCTTY, it becomes the controlling terminal. */
	int tty = MUST(open(name, O_RDWR));
	int direct = MUST(open("/dev/tty", O_RDWR | O_NONBLOCK));
	session->background = spawn(in_group, NULL);
	session->foreground = spawn(in_group, NULL);
	session->without = spawn(without_terminal, NULL);
	sigset_t ttou, old;
	sigemptyset(&ttou);
	sigaddset(&ttou, SIGTTOU);
	sigprocmask(SIG_BLOCK, &ttou, &old);
	MUST(tcsetpgrp(tty, session->foreground));
	sigprocmask(SIG_SETMASK, &old, NULL);
	prepared();
	wait_for_go();
	CHECK(signals == 0, "%d signals came", signals);
	CHECK(tcgetpgrp(direct) == session->foreground, "foreground %d", tcgetpgrp(direct));
	CHECK(tcgetsid(tty) == session->leader, "session %d", tcgetsid(tty));
	finish(session->background);
	finish(session->foreground);
	finish(session->without);
	sigprocmask(SIG_BLOCK, &ttou, &old);
	MUST(tcsetpgrp(tty, getpgrp()));
	sigprocmask(SIG_SETMASK, &old, NULL);
	/* A key that interrupts, and the hangup at the end. */
	CHECK(write(tty, "ready\n", 6) == 6, "%s", strerror(errno));
	while (signals == 0)
		sched_yield();
}

/* Of the other ABI: the leader alone, with its arguments. */
CASE(leader)
{
	char name[32];
	int fd = MUST(open("session", O_RDWR));
	session = MUST((struct session *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	snprintf(name, sizeof(name), "/dev/pts/%d", session->number);
	lead(name);
}

static void control_a_session(bool other)
{
	char name[32], key = 3;
	int fd = MUST(open("session", O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, PAGE));
	session = MUST((struct session *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	session->master = new_master(name);
	session->number = int_of(session->master, TIOCGPTN);
	fcntl(session->master, F_SETFD, FD_CLOEXEC);
	pid_t child = spawn_abi(other ? other_abi : this_abi, "leader", "");

	checkpoint();
	CHECK(int_of(session->master, TIOCGPGRP) == session->foreground, "foreground %d",
	      int_of(session->master, TIOCGPGRP));
	CHECK(int_of(session->master, TIOCGSID) == session->leader, "session %d", int_of(session->master, TIOCGSID));
	MUST(kill(child, SIGUSR1));
	expect(session->master, "by /dev/tty\r\nby /dev/tty\r\nready\r\n");
	write_all(session->master, &key, 1);
	reap(child);
}

CASE(session)
{
	control_a_session(false);
}

CASE(session_of_other_abi)
{
	control_a_session(true);
}

/* A leader that only its parent can clone. */
static int lead_as_clone(void *name)
{
	MUST(setsid());
	session->leader = session->foreground = getpid();
	int tty = MUST(open(name, O_RDWR)), direct = MUST(open("/dev/tty", O_RDWR));
	session->background = spawn(in_group, NULL);
	session->ready = 1;
	wait_for_go();
	CHECK(tcgetpgrp(direct) == getpid(), "foreground %d", tcgetpgrp(direct));
	CHECK(tcgetsid(tty) == getpid(), "session %d", tcgetsid(tty));
	finish(session->background);
	CHECK(write(direct, "ready\n", 6) == 6, "%s", strerror(errno));
	_exit(failed() ? 1 : 0);
}

CASE(cloned_leader)
{
	enum { STACK = 64 * 1024 };
	char name[32];
	int status = -1;
	session = MUST((struct session *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	session->master = new_master(name);
	pid_t child = MUST(clone(lead_as_clone, map_anonymous(STACK) + STACK, SIGUSR2, name));
	await(&session->ready, 1);
	await_sleep(child);
	checkpoint();
	CHECK(int_of(session->master, TIOCGPGRP) == child, "foreground %d", int_of(session->master, TIOCGPGRP));
	CHECK(int_of(session->master, TIOCGSID) == child, "session %d", int_of(session->master, TIOCGSID));
	MUST((intptr_t)signal(SIGUSR2, SIG_IGN));
	MUST(kill(child, SIGUSR1));
	expect(session->master, "by /dev/tty\r\nready\r\n");
	CHECK(waitpid(child, &status, __WALL) == child && status == 0, "status %#x", status);
}

/* Numbers with gaps, three in one task and two descriptors of a child on each. */
CASE(several)
{
	int masters[6], slaves[6];
	char name[32];
	for (int i = 0; i < 6; i++) {
		masters[i] = new_pair(&slaves[i]);
		make_raw(slaves[i]);
	}
	for (int i = 0; i < 6; i += 2) {
		close(masters[i]);
		close(slaves[i]);
	}
	checkpoint();
	for (int i = 1; i < 6; i += 2) {
		snprintf(name, sizeof(name), "/dev/pts/%d", int_of(masters[i], TIOCGPTN));
		CHECK(strcmp(ttyname(slaves[i]), name) == 0, "%s, not %s", ttyname(slaves[i]), name);
		type(slaves[i], name);
		expect(masters[i], name);
	}
}

/* A reader that waits while the tree is gone. */
static void wait_for_line(void *slave)
{
	prepared();
	expect_line(*(int *)slave, "a line\n");
}

CASE(reader_waits)
{
	int slave, master = new_pair(&slave);
	pid_t child = spawn(wait_for_line, &slave);
	await_sleep(child);
	checkpoint();
	type(master, "a line\n");
	reap(child);
}

/* Refused: a status that is not yet told. */
CASE(status)
{
	int slave, master = new_pair(&slave), on = 1;
	MUST(ioctl(master, TIOCPKT, &on));
	MUST(tcflow(slave, TCOOFF));
	printf("NAME still to be told of a change\n");
	fflush(stdout);
	checkpoint();
	char got[4];
	CHECK(read(master, got, sizeof(got)) == 1 && got[0] == TIOCPKT_STOP, "status %#x", got[0]);
}
