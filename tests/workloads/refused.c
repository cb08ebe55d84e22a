/* Everything at once that this version of crr does not carry over: a dump has to name each. */
#include "workload.h"
#include <sys/sem.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static int make(const char *name)
{
	return MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
}

/* Prints what the dump has to name, for the harness to look for: "NAME <text>". */
static void name(const char *text)
{
	char line[128];
	snprintf(line, sizeof(line), "NAME %s\n", text);
	MUST(write(STDOUT_FILENO, line, strlen(line)));
}

static void name_fd(int fd)
{
	char text[32];
	snprintf(text, sizeof(text), "fd %d ", fd);
	name(text);
}

static void name_address(const void *address)
{
	char text[32];
	snprintf(text, sizeof(text), "0x%lx", (unsigned long)(uintptr_t)address);
	name(text);
}

/* Works on, and can say so. */
static void check_alive(const int *pair)
{
	char byte = 0;
	MUST(write(pair[0], "s", 1));
	CHECK(read(pair[1], &byte, 1) == 1 && byte == 's', "the socket");
}

/* The root directory of a file system of a type, where the kernel has it. */
static void name_root_of(const char *type)
{
	MUST(mkdir(type, 0700));
	if (mount(type, type, type, 0, NULL) != 0) {
		printf("no %s: %s\n", type, strerror(errno));
		fflush(stdout);
		return;
	}
	char text[64];
	snprintf(text, sizeof(text), "files of %s are not supported", type);
	name_fd(MUST(open(type, O_RDONLY | O_DIRECTORY)));
	name(text);
}

CASE(descriptors)
{
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	struct tpacket_req ring = { .tp_block_size = PAGE, .tp_block_nr = 1, .tp_frame_size = PAGE, .tp_frame_nr = 1 };
	int with_ring = MUST(socket(AF_PACKET, SOCK_RAW, 0));
	MUST(setsockopt(with_ring, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)));
	name_fd(with_ring);
	name_fd(MUST(socket(AF_PACKET, SOCK_PACKET, 0)));
	name_fd(MUST((int)syscall(SYS_pidfd_open, getppid(), 0)));
	name_fd(MUST(open("/dev/kmsg", O_RDONLY)));
	name_fd(MUST(open("/proc/kmsg", O_RDONLY)));
	name_fd(MUST(open("/proc/pressure/cpu", O_RDWR)));
	name_root_of("debugfs");
	name_root_of("tracefs");
	char path[32];
	snprintf(path, sizeof(path), "/proc/%d/maps", getppid());
	name_fd(MUST(open(path, O_RDONLY)));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", MUST(eventfd(3, 0)));
	name_fd(MUST(open(path, O_PATH)));
	checkpoint();
	check_alive(pair);
}

/* What can only be opened when the tasks exist cannot be on its way. */
CASE(late_in_flight)
{
	int pair[2], fd = MUST((int)syscall(SYS_pidfd_open, getpid(), 0));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	char text[1] = "x";
	struct iovec byte = { text, 1 };
	struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	MUST(sendmsg(pair[0], &message, 0));
	name("not yet received: anon_inode:[pidfd]");
	checkpoint();
	CHECK(MUST(recvmsg(pair[1], &message, 0)) == 1, "nothing came");
	CHECK(syscall(SYS_pidfd_send_signal, *(int *)(void *)CMSG_DATA(&control.header), 0, NULL, 0) == 0, "of nobody");
}

CASE(lasts)
{
	wait_for_go();
}

/* Of memory before an exec, of a task that is gone, of a descriptor that is closed. */
CASE(files_of_tasks)
{
	static const char *const of_memory[] = { "mem", "maps", "smaps", "pagemap", "environ", "auxv" };
	char path[64], byte;
	int go[2], done[2];
	MUST(pipe(go));
	MUST(pipe2(done, O_CLOEXEC));
	pid_t child = MUST(fork());
	if (child == 0) {
		MUST(read(go[0], &byte, 1));
		setenv("PREPARED_FD", "1", 1);
		MUST(execl("/proc/self/exe", case_argv[0], "lasts", (char *)NULL));
	}
	for (size_t i = 0; i < LENGTH(of_memory); i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", child, of_memory[i]);
		name_fd(MUST(open(path, O_RDONLY)));
	}
	MUST(write(go[1], "g", 1));
	MUST(close(done[1]));
	CHECK(MUST(read(done[0], &byte, 1)) == 0, "no exec");
	pid_t gone = MUST(fork());
	if (gone == 0) {
		wait_for_go();
		_exit(0);
	}
	snprintf(path, sizeof(path), "/proc/%d/status", gone);
	int status = MUST(open(path, O_RDONLY));
	name_fd(status);
	MUST(kill(gone, SIGUSR1));
	MUST(waitpid(gone, NULL, 0));
	int closed = MUST(open("/dev/null", O_RDONLY));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", closed);
	int info = MUST(open(path, O_RDONLY));
	MUST(dup2(info, 70));
	MUST(close(info));
	MUST(close(closed));
	/* Who looks for it has the kernel notice that it is gone. */
	CHECK(access(path, F_OK) == -1, "there again");
	name_fd(70);
	checkpoint();
	CHECK(read(status, path, 1) == -1 && errno == ESRCH, "a task that is gone");
	finish(child);
}

/* A queue that is to tell of a message with a value that the kernel does not show. */
CASE(message_queues)
{
	char path[64];
	struct timespec time;
	struct mq_attr attributes = { .mq_maxmsg = 2, .mq_msgsize = 8 };
	clock_gettime(CLOCK_REALTIME, &time);
	snprintf(path, sizeof(path), "/crr-refused-%lld-%ld", (long long)time.tv_sec, time.tv_nsec);
	mqd_t tells = MUST(mq_open(path, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes));
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 42 };
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	MUST(mq_notify(tells, &event));
	name_fd(tells);
	checkpoint();
	MUST(mq_send(tells, "x", 1, 0));
	siginfo_t info = { 0 };
	CHECK(sigwaitinfo(&signals, &info) == SIGRTMIN + 1 && info.si_value.sival_int == 42, "told %d", info.si_value.sival_int);
	MUST(mq_unlink(path));
}

static void operate(int set, unsigned short number, short change)
{
	struct sembuf operation = { number, change, SEM_UNDO };
	MUST(semop(set, &operation, 1));
}

static void name_lease(int fd, const char *what)
{
	char text[128];
	snprintf(text, sizeof(text), "fd %d%s", fd, what);
	name(text);
}

/* Leases that nobody could take again. */
CASE(leases)
{
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	signal(SIGIO, SIG_IGN);
	int deleted = make("deleted"), mapped = make("mapped"), breaking = make("breaking");
	MUST(unlink("deleted"));
	MUST(fcntl(deleted, F_SETLEASE, F_WRLCK));
	name_lease(deleted, " (");
	name("has a lease, and the file has been deleted");
	MUST(ftruncate(mapped, (off_t)PAGE));
	MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, mapped, 0));
	MUST(fcntl(mapped, F_SETLEASE, F_WRLCK));
	name_lease(mapped, ": its lease: is on a file that is mapped, too");
	MUST(fcntl(breaking, F_SETLEASE, F_WRLCK));
	CHECK(open("breaking", O_RDONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "not leased");
	name_lease(breaking, " (");
	name("has a lease that somebody has broken just now");
	checkpoint();
	check_alive(pair);
	CHECK(fcntl(deleted, F_GETLEASE) == F_WRLCK && fcntl(mapped, F_GETLEASE) == F_WRLCK, "the leases");
}

/* A lease of a user who may not take it any more, on a file that is not his. */
CASE(lease_of_another)
{
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int fd = make("leased");
	MUST(fcntl(fd, F_SETLEASE, F_WRLCK));
	MUST(setresuid(4321, 4321, 4321));
	name_lease(fd, ": its lease: is on a file that the task does not own");
	checkpoint();
	check_alive(pair);
}

/* A filter that could leave a call to another process; nobody knows which. */
CASE(listener)
{
	int pair[2];
	struct sock_filter ask[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 9999, 0, 1),
				     BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
				     BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog program = { .len = LENGTH(ask), .filter = ask };
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	name("seccomp filter");
	checkpoint();
	check_alive(pair);
}

/* Memory that no system call may change, and memory that nobody but the task may see. */
CASE(memory_to_itself)
{
	int fd = (int)MUST(syscall(447, 0));
	MUST(ftruncate(fd, (off_t)PAGE));
	char *secret = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	name_address(secret);
	strcpy(secret, "secret");
	checkpoint();
	CHECK(strcmp(secret, "secret") == 0, "%s", secret);
}

static void name_with(int fd, const char *what)
{
	char text[64];
	snprintf(text, sizeof(text), "fd %d (%s", fd, what);
	name(text);
}

static void name_mapping(const void *address, const char *what)
{
	char text[96];
	snprintf(text, sizeof(text), "0x%lx-0x%lx (%s", (unsigned long)(uintptr_t)address,
		 (unsigned long)(uintptr_t)address + PAGE, what);
	name(text);
}

static int make_ring(uint32_t flags)
{
	/* struct io_uring_params: 120 bytes. IORING_SETUP_SQPOLL 2, with its thread for 100 s. */
	uint32_t parameters[30] = { [2] = flags, [4] = 100000 };
	return (int)MUST(syscall(425, 4, parameters));
}

static int load_program(void)
{
	/* BPF_PROG_LOAD of a socket filter: r0 = 0, exit. */
	static const uint64_t code[] = { 0xb7, 0x95 };
	uint64_t attributes[16] = { 1 | (uint64_t)LENGTH(code) << 32, (uintptr_t)code, (uintptr_t) "GPL" };
	return (int)MUST(syscall(SYS_bpf, 5, attributes, sizeof(attributes)));
}

/* Counts the time that this task runs, by software alone. */
static int make_counter(void)
{
	/* struct perf_event_attr as it was first: type PERF_TYPE_SOFTWARE, size, PERF_COUNT_SW_TASK_CLOCK. */
	uint64_t attributes[8] = { 1 | (uint64_t)64 << 32, 1 };
	return (int)MUST(syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0));
}

/* What the kernel does for a task on its own: it has parts that nobody could make again. */
CASE(kernel_helpers)
{
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int ring = make_ring(0), counter = make_counter(), program = load_program(),
	    faults = (int)MUST(syscall(SYS_userfaultfd, 1));
	name_with(ring, "anon_inode:[io_uring]): io_uring is not supported");
	name_with(counter, "anon_inode:[perf_event]): performance counters are not supported");
	name_with(program, "anon_inode:bpf-prog): BPF programs are not supported");
	name_with(faults, "anon_inode:[userfaultfd]): userfaultfd is not supported");
	checkpoint();
	check_alive(pair);
}

/* Rings alone, whose descriptors are closed. */
CASE(rings)
{
	int pair[2], ring = make_ring(0), counter = make_counter();
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	const char *mapped = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0)),
		   *counted = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, counter, 0));
	close(ring);
	close(counter);
	name_mapping(mapped, "anon_inode:[io_uring]): io_uring is not supported");
	name_mapping(counted, "anon_inode:[perf_event]): performance counters are not supported");
	checkpoint();
	check_alive(pair);
}

/* A thread that the kernel runs in the task, and that does not stop for anybody. */
CASE(kernel_thread)
{
	int pair[2], ring = make_ring(2);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	name_with(ring, "anon_inode:[io_uring]): io_uring is not supported");
	name("a thread that the kernel has put into the task");
	checkpoint();
	check_alive(pair);
}

/* Keys that only the task or only one thread can find. */
CASE(keyrings)
{
	char text[64];
	/* KEY_SPEC_THREAD_KEYRING and KEY_SPEC_PROCESS_KEYRING. */
	MUST(syscall(SYS_add_key, "user", "crr:own", "a", 1, -1));
	MUST(syscall(SYS_add_key, "user", "crr:task's", "b", 1, -2));
	snprintf(text, sizeof(text), "thread %d: has a thread keyring", getpid());
	name(text);
	snprintf(text, sizeof(text), "thread %d: has a process keyring", getpid());
	name(text);
	checkpoint();
	CHECK(syscall(SYS_request_key, "user", "crr:own", NULL, 0) > 0, "the key is gone: %s", strerror(errno));
}

/* In a Landlock domain that forbids next to nothing. */
static void restrict_self(void)
{
	/* struct landlock_ruleset_attr as it was first: LANDLOCK_ACCESS_FS_MAKE_BLOCK. */
	uint64_t handled = 1 << 11;
	int ruleset = (int)MUST(syscall(444, &handled, sizeof(handled), 0));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(syscall(446, ruleset, 0));
	close(ruleset);
}

static void name_landlocked(pid_t tid)
{
	char text[64];
	snprintf(text, sizeof(text), "thread %d: is restricted by Landlock", tid);
	name(text);
}

CASE(landlock)
{
	restrict_self();
	name_landlocked(getpid());
	checkpoint();
	CHECK(mknod("block", S_IFBLK | 0600, 0x700) == -1 && errno == EACCES, "no longer restricted");
}

static volatile int restricted, may_end;

static void *restricted_thread(void *unused)
{
	(void)unused;
	restrict_self();
	name_landlocked(thread_id());
	__atomic_store_n(&restricted, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &may_end, 0, 0, NULL);
	return NULL;
}

/* One thread of another user's task: a domain belongs to credentials, and those to a thread. */
CASE(landlock_of_a_thread)
{
	pthread_t thread;
	MUST(setresgid(1234, 1234, 1234));
	MUST(setresuid(4321, 4321, 4321));
	MUST0(pthread_create(&thread, NULL, restricted_thread, NULL));
	await(&restricted, 1);
	checkpoint();
	may_end = 1;
	syscall(SYS_futex, &may_end, 1, 1);
	MUST0(pthread_join(thread, NULL));
}

static volatile int ring_made;

/* A ring in memory of the task's own, which a thread has by index alone: IORING_SETUP_NO_MMAP and IORING_SETUP_REGISTERED_FD_ONLY. */
static void *own_ring(void *unused)
{
	(void)unused;
	char *memory = map_anonymous(2 * PAGE);
	uint64_t parameters[15] = { [1] = 3 << 14, [9] = (uintptr_t)memory + PAGE, [14] = (uintptr_t)memory };
	MUST(syscall(425, 4, parameters));
	__atomic_store_n(&ring_made, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &may_end, 0, 0, NULL);
	/* IORING_ENTER_REGISTERED_RING: it is still there. */
	MUST(syscall(426, 0, 0, 0, 16, 0, 0));
	return NULL;
}

/* Rings that nothing shows but their threads: one of a second thread, in memory of its own, and one at the last index that is not enabled yet. */
CASE(rings_by_index)
{
	pthread_t thread;
	/* IORING_SETUP_R_DISABLED. */
	int pair[2], ring = make_ring(1 << 6);
	/* struct io_uring_rsrc_update, for IORING_REGISTER_RING_FDS. */
	uint64_t last[2] = { 15, (uint64_t)ring };
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(syscall(427, ring, 20, last, 1));
	close(ring);
	name("io_uring is not supported: it has a ring with index 15 (registered)");
	MUST0(pthread_create(&thread, NULL, own_ring, NULL));
	await(&ring_made, 1);
	name("io_uring is not supported: it has a ring with index 0 (registered)");
	checkpoint();
	may_end = 1;
	syscall(SYS_futex, &may_end, 1, 1);
	MUST0(pthread_join(thread, NULL));
	check_alive(pair);
}

static void outlive_the_root(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
}

static void leave_orphan(void *pid)
{
	*(volatile pid_t *)pid = spawn(outlive_the_root, NULL);
	prepared();
	_exit(0);
}

/* In the root's session and group, and no task of its tree any more. */
CASE(stranger)
{
	char text[64];
	volatile pid_t *stranger =
		MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	reap(spawn(leave_orphan, (void *)stranger));
	snprintf(text, sizeof(text), "session %d: also has task %d", getsid(0), *stranger);
	name(text);
	snprintf(text, sizeof(text), "process group %d: also has task %d", getpgid(0), *stranger);
	name(text);
	checkpoint();
	MUST(kill(*stranger, SIGUSR1));
}

static int stay(void *unused)
{
	(void)unused;
	wait_for_go();
	return 0;
}

static char *new_stack(void)
{
	return map_anonymous(MIB) + MIB;
}

struct stranger {
	int flags;
	volatile pid_t pid;
};

static int between(void *argument)
{
	struct stranger *stranger = argument;
	stranger->pid = MUST(clone(stay, new_stack(), stranger->flags | SIGCHLD, NULL));
	_exit(0);
}

/* By way of a task that is gone, init has a task that shares with the root. */
static pid_t leave_sharer(int flags)
{
	int status;
	struct stranger *stranger =
		MUST((struct stranger *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	stranger->flags = flags;
	pid_t child = MUST(clone(between, new_stack(), flags | SIGCHLD, stranger));
	CHECK(waitpid(child, &status, 0) == child && status == 0, "the task between: status %#x", status);
	await_sleep(stranger->pid);
	return stranger->pid;
}

static void share_with_stranger(int flags, const char *what)
{
	char text[64];
	pid_t stranger = leave_sharer(flags);
	snprintf(text, sizeof(text), "%s: shared with task %d (", what, stranger);
	name(text);
	checkpoint();
	MUST(kill(stranger, SIGUSR1));
}

CASE(stranger_with_memory)
{
	share_with_stranger(CLONE_VM, "memory");
}

CASE(stranger_with_files)
{
	share_with_stranger(CLONE_FILES, "file descriptors");
}

CASE(stranger_with_directories)
{
	share_with_stranger(CLONE_FS, "current directory");
}

/* A file without a name that somebody outside of the tree has open too. */
CASE(stranger_with_deleted_file)
{
	int fd = make("lost");
	MUST(unlink("lost"));
	pid_t stranger = leave_sharer(0);
	name("/lost (deleted): also open or mapped in task ");
	checkpoint();
	close(fd);
	MUST(kill(stranger, SIGUSR1));
}

/* A lock that somebody outside of the tree has too. */
CASE(stranger_with_lock)
{
	int fd = make("locked");
	MUST(flock(fd, LOCK_EX));
	pid_t stranger = leave_sharer(0);
	name("/locked): is locked, and task ");
	checkpoint();
	MUST(kill(stranger, SIGUSR1));
}

/* Sockets that somebody outside of the tree has too: the whole of it would not come back at both places. */
CASE(stranger_with_socket)
{
	int pair[2], fds[3];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fds[0] = pair[0];
	fds[1] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	fds[2] = MUST(socket(AF_NETLINK, SOCK_RAW, 0));
	MUST(listen(fds[1], 1));
	pid_t stranger = leave_sharer(0);
	for (size_t i = 0; i < LENGTH(fds); i++)
		name_fd(fds[i]);
	char text[64];
	snprintf(text, sizeof(text), "also open in task %d (refused), outside of the tree", stranger);
	name(text);
	checkpoint();
	MUST(kill(stranger, SIGUSR1));
}

/* Sockets with what the kernel does not show or take. */
CASE(protected_sockets)
{
	struct sockaddr_in peer = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	struct tcp_md5sig signature = { .tcpm_keylen = 3, .tcpm_key = "key" };
	int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
	memcpy(&signature.tcpm_addr, &peer, sizeof(peer));
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG, &signature, sizeof(signature)));
	MUST(listen(fd, 1));
	name_fd(fd);
	name_fd(MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK)));
	/* TLS, where the kernel has it. */
	int listener = MUST(socket(AF_INET, SOCK_STREAM, 0)), tls = MUST(socket(AF_INET, SOCK_STREAM, 0));
	socklen_t length = sizeof(peer);
	MUST(listen(listener, 1));
	MUST(getsockname(listener, (void *)&peer, &length));
	MUST(connect(tls, (void *)&peer, sizeof(peer)));
	int other = MUST(accept(listener, NULL, NULL));
	if (setsockopt(tls, IPPROTO_TCP, TCP_ULP, "tls", 3) == 0) {
		name_fd(tls);
		name("a protocol on top of TCP in the kernel (tls) is not supported");
	}
	checkpoint();
	CHECK(fcntl(fd, F_GETFD) == 0, "the socket");
	CHECK(send(tls, "on", 2, 0) == 2 && recv(other, &(char[2]){ 0 }, 2, MSG_WAITALL) == 2, "the connection");
}

/* Sockets of other families and protocols, as far as the kernel has any. */
CASE(socket_families)
{
	static const struct {
		int family, kind, protocol;
		const char *name;
	} others[] = {
		{ 40, SOCK_STREAM, 0, "vsock (AF_VSOCK)" },
		{ 44, SOCK_RAW, 0, "XDP (AF_XDP)" },
		{ AF_ALG, SOCK_SEQPACKET, 0, "kernel crypto (AF_ALG)" },
		{ AF_CAN, SOCK_RAW, 1, "CAN (AF_CAN)" },
		{ AF_KEY, SOCK_RAW, 2, "IPsec key (AF_KEY)" },
		{ AF_TIPC, SOCK_SEQPACKET, 0, "TIPC (AF_TIPC)" },
		{ AF_BLUETOOTH, SOCK_RAW, 1, "Bluetooth (AF_BLUETOOTH)" },
		{ AF_INET, SOCK_STREAM, 132, "SCTP" },
		{ AF_INET6, SOCK_STREAM, 262, "MPTCP" },
	};
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	for (size_t i = 0; i < LENGTH(others); i++) {
		char text[64];
		int fd = socket(others[i].family, others[i].kind, others[i].protocol);
		if (fd == -1)
			continue;
		name_fd(fd);
		snprintf(text, sizeof(text), "%s sockets are not supported", others[i].name);
		name(text);
	}
	checkpoint();
	check_alive(pair);
}

/* Sockets by which the kernel is told what to do with the packets of others, or which packets are whose. */
CASE(routing_sockets)
{
	int on = 1, tunnel = 3, pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int router = socket(AF_INET, SOCK_RAW, IPPROTO_IGMP);
	/* MRT_INIT of linux/mroute.h. */
	if (setsockopt(router, IPPROTO_IP, 200, &on, sizeof(on)) == 0) {
		name_fd(router);
		name("multicast routing (MRT_INIT)");
	}
	int alert = MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_RAW));
	MUST(setsockopt(alert, IPPROTO_IPV6, IPV6_ROUTER_ALERT, &on, sizeof(on)));
	name_fd(alert);
	name("IPV6_ROUTER_ALERT");
	int shared = MUST(socket(AF_PACKET, SOCK_RAW, 0)), by_program = 7 | PACKET_FANOUT_CBPF << 16;
	struct sockaddr_ll loopback = { .sll_family = AF_PACKET, .sll_protocol = htons(3), .sll_ifindex = 1 };
	MUST(bind(shared, (void *)&loopback, sizeof(loopback)));
	MUST(setsockopt(shared, SOL_PACKET, PACKET_FANOUT, &by_program, sizeof(by_program)));
	name_fd(shared);
	name("shared out by a program (PACKET_FANOUT_DATA)");
	int encapsulated = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(setsockopt(encapsulated, IPPROTO_UDP, UDP_ENCAP, &tunnel, sizeof(tunnel)));
	name_fd(encapsulated);
	name("a tunnel of the kernel (UDP_ENCAP)");
	checkpoint();
	check_alive(pair);
}

/* Answers of the kernel that nobody has read. */
CASE(netlink_unread)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
	} request = { .header = { .nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST },
		      .link = { .ifi_index = 1 } };
	char answer[8192];
	int fd = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	MUST(send(fd, &request, sizeof(request), 0));
	struct pollfd polled = { .fd = fd, .events = POLLIN };
	CHECK(poll(&polled, 1, 20000) == 1, "no answer");
	name_fd(fd);
	name("a netlink socket (NETLINK_ROUTE) with something to be read");
	checkpoint();
	CHECK(recv(fd, answer, sizeof(answer), MSG_DONTWAIT) > 0, "the answer is gone: %s", strerror(errno));
}

/* Filters of sockets of each family that nobody can read, since they are eBPF. */
CASE(filters_by_program)
{
	struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = -1 }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
				.insns = (uintptr_t)code,
				.insn_cnt = LENGTH(code),
				.license = (uintptr_t) "MIT" };
	int pair[2], program = (int)MUST(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof(load)));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int fds[] = { pair[1], MUST(socket(AF_INET, SOCK_STREAM, 0)), MUST(socket(AF_INET6, SOCK_DGRAM, 0)),
		      MUST(socket(AF_PACKET, SOCK_RAW, 0)), MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)) };
	for (size_t i = 0; i < LENGTH(fds); i++) {
		MUST(setsockopt(fds[i], SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof(program)));
		name_fd(fds[i]);
	}
	name("a socket with an eBPF filter (SO_ATTACH_BPF) is not supported");
	MUST(close(program));
	checkpoint();
	check_alive(pair);
}

/* Of one datagram, the first part: by MSG_MORE and by UDP_CORK, of both families, also with an IPv4 address for an IPv6 socket; of a packet. */
CASE(begun_datagrams)
{
	static const struct {
		int family, kind, protocol;
		bool mapped, cork;
	} begun[] = {
		{ AF_INET, SOCK_DGRAM, 0, false, false },		 { AF_INET, SOCK_DGRAM, 0, false, true },
		{ AF_INET6, SOCK_DGRAM, 0, false, false },		 { AF_INET6, SOCK_DGRAM, 0, true, false },
		{ AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE, false, false }, { AF_INET, SOCK_RAW, 253, false, false },
		{ AF_INET6, SOCK_RAW, 253, false, false },
	};
	int fds[LENGTH(begun)], ears[LENGTH(begun)], on = 1;
	for (size_t i = 0; i < LENGTH(begun); i++) {
		struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
		struct sockaddr_in to4 = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
		socklen_t length = sizeof(to);
		if (begun[i].mapped)
			to.sin6_addr = (struct in6_addr){ .s6_addr = { [10] = 0xff, 0xff, 127, 0, 0, 1 } };
		if (begun[i].family == AF_INET) {
			memcpy(&to, &to4, sizeof(to4));
			length = sizeof(to4);
		}
		ears[i] = MUST(socket(begun[i].family, begun[i].kind, begun[i].protocol));
		fds[i] = MUST(socket(begun[i].family, begun[i].kind, begun[i].protocol));
		MUST(bind(ears[i], (void *)&to, length));
		MUST(getsockname(ears[i], (void *)&to, &length));
		MUST(connect(fds[i], (void *)&to, length));
		if (begun[i].cork)
			MUST(setsockopt(fds[i], IPPROTO_UDP, UDP_CORK, &on, sizeof(on)));
		MUST(send(fds[i], "one, ", 5, begun[i].cork ? 0 : MSG_MORE));
		name_fd(fds[i]);
	}
	name("has a datagram that is not complete (MSG_MORE, UDP_CORK)");
	name("has a packet that is not complete (MSG_MORE), or one that does not leave");
	checkpoint();
	for (size_t i = 0; i < LENGTH(begun); i++) {
		char bytes[64] = "";
		MUST(send(fds[i], "two", 3, 0));
		if (begun[i].cork)
			MUST(setsockopt(fds[i], IPPROTO_UDP, UDP_CORK, &(int){ 0 }, sizeof(int)));
		ssize_t got = recv(ears[i], bytes, sizeof(bytes), 0);
		CHECK(got >= 8 && memcmp(bytes + got - 8, "one, two", 8) == 0, "socket %zu: %zd bytes: %.8s", i, got, bytes);
	}
}

/* The root holds a task outside of the tree. */
CASE(tracer)
{
	char text[64];
	int status;
	volatile pid_t *stranger =
		MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t child = MUST(fork());
	if (child == 0) {
		*stranger = spawn(outlive_the_root, NULL);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0, "the task between: status %#x", status);
	MUST(ptrace(PTRACE_SEIZE, *stranger, 0, 0));
	snprintf(text, sizeof(text), "thread %d (", *stranger);
	name(text);
	name("is traced by this task (ptrace)");
	checkpoint();
	MUST(ptrace(PTRACE_INTERRUPT, *stranger, 0, 0));
	CHECK(waitpid(*stranger, &status, __WALL) == *stranger && WIFSTOPPED(status), "its tracee: %#x", status);
	MUST(ptrace(PTRACE_DETACH, *stranger, 0, 0));
	MUST(kill(*stranger, SIGUSR1));
}

static void name_watch(int epoll, int fd, const char *why)
{
	char text[128];
	snprintf(text, sizeof(text), "fd %d (anon_inode:[eventpoll]): watches %sfd %d, ", epoll, why, fd);
	name(text);
}

static void watch(int epoll, int fd, uint32_t events)
{
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){ .events = events }));
}

static int watched, inherited, signalled;

static void keep_outside(void *pid)
{
	close(inherited);
	close(signalled);
	*(volatile pid_t *)pid = getpid();
	prepared();
	wait_for_go();
}

static void leave_outside(void *pid)
{
	spawn(keep_outside, pid);
	prepared();
}

static void share_epoll(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
}

/* Files that tell events, with somebody outside of the tree in the play, or in a state that nobody could bring back. */
static void only_wait(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
}

CASE(events)
{
	int pair[2];
	char text[64];
	sigset_t set;
	volatile pid_t *outside =
		MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	watched = MUST(eventfd(1, 0));
	inherited = MUST(epoll_create1(0));
	signalled = MUST(signalfd(-1, &set, 0));
	int both = MUST(eventfd(1, 0));
	name_fd(both);
	/* Only a task outside has the file, under the number that this one added it by. */
	watch(inherited, watched, EPOLLIN);
	reap(spawn(leave_outside, (void *)outside));
	close(watched);
	name_watch(inherited, watched, "a file, added as ");
	snprintf(text, sizeof(text), "also open in task %d (", *outside);
	name(text);
	/* Signals of one of two tasks. */
	watch(inherited, signalled, EPOLLIN);
	name_watch(inherited, signalled, "");
	pid_t child = spawn(share_epoll, NULL);
	/* One-shot watches that cannot be brought to where they are. */
	int told = MUST(epoll_create1(0)), inner = MUST(epoll_create1(0)), event = MUST(eventfd(1, 0));
	watch(inner, event, EPOLLIN);
	watch(told, inner, EPOLLIN | EPOLLONESHOT);
	struct epoll_event got;
	CHECK(epoll_wait(told, &got, 1, 0) == 1, "nothing to tell");
	name_watch(told, inner, "");
	/* Owners that are not in the tree. */
	int ends[2];
	MUST(pipe(ends));
	MUST(fcntl(ends[0], F_SETOWN, *outside));
	name_fd(ends[0]);
	snprintf(text, sizeof(text), "signals events to task %d", *outside);
	name(text);
	MUST(mkdir("watched", 0700));
	int directory = MUST(open("watched", O_RDONLY));
	MUST(fcntl(directory, F_SETSIG, SIGRTMIN));
	MUST(fcntl(directory, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
	name_fd(directory);
	checkpoint();
	check_alive(pair);
	finish(child);
	MUST(kill(*outside, SIGUSR1));
}

/* On the time of a child; on a moment of a clock that may have been changed since, which the kernel tells by the same mark as its coming. */
CASE(timers)
{
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	struct itimerspec past = { .it_value = { .tv_sec = 1 } };
	clockid_t clock;
	timer_t timer;
	char text[64];
	pid_t child = spawn(only_wait, NULL);
	MUST0(clock_getcpuclockid(child, &clock));
	MUST(timer_create(clock, &event, &timer));
	snprintf(text, sizeof(text), "measures the processor time of %d", child);
	name(text);
	int told = MUST(timerfd_create(CLOCK_REALTIME, 0));
	MUST(timerfd_settime(told, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &past, NULL));
	name_fd(told);
	name("may have been cancelled by a change of the clock");
	checkpoint();
	uint64_t ticks = 0;
	CHECK(read(told, &ticks, sizeof(ticks)) == sizeof(ticks) && ticks == 1, "%lld ticks", (long long)ticks);
	finish(child);
	MUST(timer_delete(timer));
}

/* Those that are no pseudo terminals; of none is the controlling one. */
CASE(terminals)
{
	static const struct {
		const char *file, *kind;
	} terminals[] = {
		{ "/dev/tty1", "a virtual console" },
		{ "/dev/ttyS0", "a serial line" },
		{ "/dev/console", "the console of the machine" },
	};
	char text[96];
	for (size_t i = 0; i < LENGTH(terminals); i++) {
		int fd = open(terminals[i].file, O_RDWR | O_NOCTTY | O_NONBLOCK);
		if (fd < 0)
			continue;
		snprintf(text, sizeof(text), "fd %d (%s): %s", fd, terminals[i].file, terminals[i].kind);
		name(text);
	}
	checkpoint();
}

/* Memory of a virtual processor, without a descriptor that leads to it. */
CASE(device_memory)
{
	enum { CREATE_VM = 0xae01, CREATE_VCPU = 0xae41 };
	int kvm = MUST(open("/dev/kvm", O_RDWR));
	int machine = MUST(ioctl(kvm, CREATE_VM, 0));
	int processor = MUST(ioctl(machine, CREATE_VCPU, 0));
	char *memory = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, processor, 0));
	close(processor);
	close(machine);
	close(kvm);
	memory[0] = 1;
	name_address(memory);
	checkpoint();
	CHECK(memory[0] == 1, "it is another one");
	MUST(munmap(memory, PAGE));
}

static void name_file_watch(int group, int wd, const char *what)
{
	char text[128];
	snprintf(text, sizeof(text), "fd %d (anon_inode:inotify): watch %d of it: %s", group, wd, what);
	name(text);
}

static int only_outside;

static void open_outside(void *pid)
{
	only_outside = make("only outside");
	*(volatile pid_t *)pid = getpid();
	prepared();
	wait_for_go();
}

static void leave_open(void *pid)
{
	spawn(open_outside, pid);
	prepared();
}

/* Files that nobody could find again, and a group that somebody outside of the tree reads, too. */
CASE(watches)
{
	int pair[2];
	char text[64];
	volatile pid_t *outside =
		MUST((pid_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int both = MUST(inotify_init());
	reap(spawn(leave_open, (void *)outside));
	int group = MUST(inotify_init());
	int gone = MUST(inotify_add_watch(group, "only outside", IN_MODIFY));
	MUST(unlink("only outside"));
	name_file_watch(group, gone, "a deleted file that no task of the tree has open");
	int kernel = MUST(inotify_add_watch(group, "/proc/version", IN_OPEN));
	name_file_watch(group, kernel, "on a file system that does not tell its name");
	int both_in = MUST(inotify_add_watch(both, ".", IN_DELETE_SELF));
	CHECK(both_in == 1, "watch %d", both_in);
	name_fd(both);
	snprintf(text, sizeof(text), "also open in task %d (", *outside);
	name(text);
	checkpoint();
	check_alive(pair);
	MUST(kill(*outside, SIGUSR1));
}

/* In another namespace than crr. */
CASE(namespace)
{
	int pair[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(unshare(CLONE_NEWUTS));
	name("uts");
	checkpoint();
	check_alive(pair);
}

static void ignore_signal(int signal)
{
	(void)signal;
}

/* In a namespace of process ids of its own, where another process has the id that it has in crr's: what is meant for the one must not come to the other. Its signals
 * that do nothing by default are caught, so that those are no way out. */
CASE(namespace_of_ids)
{
	int pair[2], end[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(pipe(end));
	MUST(unshare(CLONE_NEWPID));
	pid_t target = MUST(fork());
	if (target == 0) {
		char link[16] = "";
		pid_t outside;
		MUST(readlink("/proc/self", link, sizeof(link) - 1));
		outside = (pid_t)atoi(link);
		struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&outside, .set_tid_size = 1};
		pid_t namesake = (pid_t)MUST(syscall(SYS_clone3, &args, sizeof(args)));
		if (namesake != 0) {
			CHECK(namesake == outside, "has id %d instead of %d", namesake, outside);
			MUST(close(end[1]));
			signal(SIGURG, ignore_signal);
			signal(SIGWINCH, ignore_signal);
			signal(SIGCHLD, ignore_signal);
			signal(SIGPIPE, SIG_IGN);
			MUST(write(pair[0], "r", 1));
		}
		for (;;)
			pause();
	}
	MUST(close(end[1]));
	char byte;
	CHECK(read(pair[1], &byte, 1) == 1 && byte == 'r', "the task in a namespace of its own");
	char text[64];
	snprintf(text, sizeof(text), "task %d (", target);
	name(text);
	name("namespace pid (pid:[");
	checkpoint();
	check_alive(pair);
	struct pollfd alive = {.fd = end[0], .events = POLLIN};
	CHECK(poll(&alive, 1, 100) == 0, "the one that has its id was ended");
	MUST(kill(target, SIGKILL));
	MUST(waitpid(target, NULL, 0));
}

/* Traced by the harness. */
CASE(traced)
{
	checkpoint();
}

static volatile pid_t waiting;
static volatile int waited;

static void *wait_for_signal(void *unused)
{
	sigset_t set;
	siginfo_t info;
	(void)unused;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 4);
	waiting = thread_id();
	waited = sigwaitinfo(&set, &info);
	CHECK(waited == SIGRTMIN + 4, "sigwaitinfo gives %d, %s", waited, strerror(errno));
	return NULL;
}

/* Waits by a call that answers EINTR when it is stopped: it is not to notice the dump. */
CASE(waiting_for_a_signal)
{
	int pair[2];
	pthread_t thread;
	sigset_t set;
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	name_fd(MUST(socket(AF_PACKET, SOCK_PACKET, 0)));
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 4);
	sigprocmask(SIG_BLOCK, &set, NULL);
	MUST0(pthread_create(&thread, NULL, wait_for_signal, NULL));
	while (waiting == 0)
		sched_yield();
	await_sleep(waiting);
	checkpoint();
	CHECK(waited == 0, "the wait ended early");
	MUST(kill(getpid(), SIGRTMIN + 4));
	MUST0(pthread_join(thread, NULL));
	check_alive(pair);
}

static volatile int elsewhere;

static void *live_elsewhere(void *pair)
{
	MUST(unshare(CLONE_NEWUTS));
	elsewhere = 1;
	char byte;
	CHECK(read(*(int *)pair, &byte, 1) == 0, "the socket");
	return NULL;
}

/* One thread alone is in another namespace than crr. */
CASE(namespace_of_a_thread)
{
	int pair[2], quiet[2];
	pthread_t thread;
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(pipe(quiet));
	MUST0(pthread_create(&thread, NULL, live_elsewhere, &quiet[0]));
	while (!elsewhere)
		sched_yield();
	name("thread");
	name("namespace uts");
	checkpoint();
	check_alive(pair);
	close(quiet[1]);
	MUST0(pthread_join(thread, NULL));
}

static int undo_too(void *set)
{
	operate(*(int *)set, 0, -1);
	wait_for_go();
	return 0;
}

/* What is to be undone when the last of two tasks ends. It still is after the dump was refused. */
CASE(undo_of_two_tasks)
{
	int pair[2], set = MUST(semget(IPC_PRIVATE, 1, 0600));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	operate(set, 0, 5);
	char text[96];
	pid_t child = MUST(clone(undo_too, new_stack(), CLONE_SYSVSEM | SIGCHLD, &set));
	await_sleep(child);
	snprintf(text, sizeof(text), "thread %d: has a list of semaphores to undo (SEM_UNDO) with thread %d of task %d", child, getpid(),
	         getpid());
	name(text);
	checkpoint();
	check_alive(pair);
	CHECK(semctl(set, 0, GETVAL) == 4 && semctl(set, 0, GETPID) == child, "%d", semctl(set, 0, GETVAL));
	finish(child);
	CHECK(semctl(set, 0, GETVAL) == 4, "what the child did is undone: %d", semctl(set, 0, GETVAL));
	operate(set, 0, -4);
	MUST(semctl(set, 0, IPC_RMID));
}

/* Somebody outside of the tree has the list, too. */
CASE(undo_of_a_stranger)
{
	int pair[2], set = MUST(semget(IPC_PRIVATE, 1, 0600));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	operate(set, 0, 5);
	char text[96];
	pid_t stranger = leave_sharer(CLONE_SYSVSEM);
	snprintf(text, sizeof(text), "thread %d: has a list of semaphores to undo (SEM_UNDO) with task %d, outside", getpid(), stranger);
	name(text);
	checkpoint();
	check_alive(pair);
	MUST(kill(stranger, SIGUSR1));
	MUST(semctl(set, 0, IPC_RMID));
}
