/*
 * Tasks whose leader has ended while other threads go on: by pthread_exit(3) or exit(2) of the first thread.
 *
 * Their cases end with end_last_thread(): such a task ends with its last thread.
 */
#include "workload.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

static void check_leader(unsigned code)
{
	unsigned status;
	char state = state_of(getpid(), &status);
	CHECK(state == 'Z' && status == code << 8, "the leader is in state %c with %#x", state, status);
}

/* Has another thread go on with body, and ends. */
static void leave_to(void *(*body)(void *), void *argument, int code)
{
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, body, argument));
	for (;;)
		syscall(SYS_exit, code);
}

static __thread char own[3000];

static void *go_on_alone(void *unused)
{
	int ends[2], pair[2];
	char bytes[8] = "";
	(void)unused;
	await_state(getpid(), 'Z');
	fill(own, sizeof(own), 5);
	MUST(pipe(ends));
	MUST(write(ends[1], "in it", 5));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(write(pair[0], "sent", 4));
	int file = MUST(open("file", O_RDWR | O_CREAT, 0600)), copy = MUST(dup(file));
	MUST(write(file, "0123456789", 10));
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN + 5);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	int queue = MUST(epoll_create1(0)), count = MUST(eventfd(3, 0)), by_signal = MUST(signalfd(-1, &signals, 0));
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 11 };
	MUST(epoll_ctl(queue, EPOLL_CTL_ADD, count, &event));
	event.data.u32 = 12;
	MUST(epoll_ctl(queue, EPOLL_CTL_ADD, by_signal, &event));
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3 };
	MUST(fcntl(file, F_SETLK, &lock));
	umask(037);
	pid_t pid = getpid(), tid = thread_id();
	checkpoint();
	CHECK_FILL(own, sizeof(own), 5);
	CHECK(read(ends[0], bytes, 8) == 5 && memcmp(bytes, "in it", 5) == 0, "the pipe");
	CHECK(read(pair[1], bytes, 8) == 4 && memcmp(bytes, "sent", 4) == 0, "the socket");
	CHECK(lseek(copy, 3, SEEK_SET) == 3 && lseek(file, 0, SEEK_CUR) == 3, "the file is two");
	uint64_t counted = 0;
	CHECK(epoll_wait(queue, &event, 1, 0) == 1 && event.data.u32 == 11, "epoll tells of %u", event.data.u32);
	CHECK(read(count, &counted, 8) == 8 && counted == 3, "the eventfd has %llu", (unsigned long long)counted);
	MUST(kill(getpid(), SIGRTMIN + 5));
	CHECK(epoll_wait(queue, &event, 1, 5000) == 1 && event.data.u32 == 12, "epoll tells of %u", event.data.u32);
	CHECK(getpid() == pid && thread_id() == tid && tid != pid, "pid %d, tid %d", getpid(), thread_id());
	CHECK(umask(0) == 037, "umask");
	if (MUST(fork()) == 0)
		_exit(fcntl(file, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == pid ? 0 : 1);
	int status = 0;
	CHECK(wait(&status) > 0 && status == 0, "the lock is another one");
	check_leader(0);
	end_last_thread();
}

CASE(one)
{
	pthread_t thread;
	MUST(prctl(PR_SET_NAME, "it was I"));
	MUST0(pthread_create(&thread, NULL, go_on_alone, NULL));
	pthread_exit(NULL);
}

enum { MANY = 30 };

static volatile int arrived;
static sem_t release;

static void *one_of_many(void *number)
{
	char name[16], found[16];
	snprintf(name, sizeof(name), "thread %d", (int)(intptr_t)number);
	MUST(prctl(PR_SET_NAME, name));
	fill(own, sizeof(own), (uint32_t)(intptr_t)number);
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	CHECK(sem_wait(&release) == 0, "sem_wait: %s", strerror(errno));
	CHECK_FILL(own, sizeof(own), (uint32_t)(intptr_t)number);
	MUST(prctl(PR_GET_NAME, found));
	CHECK(strcmp(found, name) == 0, "%s is called %s", name, found);
	return number;
}

static void *go_on_with_many(void *unused)
{
	pthread_t threads[MANY];
	void *result;
	(void)unused;
	await_state(getpid(), 'Z');
	MUST(sem_init(&release, 0, 0));
	for (int i = 0; i < MANY; i++)
		MUST0(pthread_create(&threads[i], NULL, one_of_many, (void *)(intptr_t)i));
	await(&arrived, MANY);
	checkpoint();
	check_leader(0);
	for (int i = 0; i < MANY; i++)
		MUST(sem_post(&release));
	for (int i = 0; i < MANY; i++) {
		MUST0(pthread_join(threads[i], &result));
		CHECK(result == (void *)(intptr_t)i, "thread %d returned %p", i, result);
	}
	end_last_thread();
}

CASE(many)
{
	leave_to(go_on_with_many, NULL, 0);
}

static void *go_on_until_told(void *code)
{
	await_state(getpid(), 'Z');
	prepared();
	wait_for_go();
	check_leader((unsigned)(uintptr_t)code);
	end_last_thread();
}

static void leave_with_code(void *code)
{
	leave_to(go_on_until_told, code, (int)(intptr_t)code);
}

/* What the parent sees when the last thread has ended by itself, by exit(0). */
static int end_of(pid_t child)
{
	siginfo_t info = { 0 };
	MUST(kill(child, SIGUSR1));
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED));
	CHECK(info.si_pid == child && info.si_code == CLD_EXITED, "child %d: code %d, status %d", child, info.si_code,
	      info.si_status);
	return info.si_status;
}

/* It is the code of the leader, or in Linux since 5.19 that of the last thread: as for a task that never was dumped. */
static void check_end(pid_t child, int code)
{
	int status = end_of(child), expected = end_of(spawn(leave_with_code, (void *)(intptr_t)code));
	CHECK(status == expected, "child %d ended with %d, not %d", child, status, expected);
}

CASE(code)
{
	static const int codes[] = { 0, 7, 255 };
	pid_t children[LENGTH(codes)];
	for (size_t i = 0; i < LENGTH(codes); i++)
		children[i] = spawn(leave_with_code, (void *)(intptr_t)codes[i]);
	checkpoint();
	for (size_t i = 0; i < LENGTH(codes); i++)
		check_end(children[i], codes[i]);
}

static void wait_as_child(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
}

static void end_at_once(void *code)
{
	prepared();
	_exit((int)(intptr_t)code);
}

CASE(waits)
{
	prepared();
	wait_for_go();
}

static pid_t younger_child;

static void *make_a_child(void *unused)
{
	(void)unused;
	younger_child = spawn(wait_as_child, NULL);
	return NULL;
}

/* Children of the leader, of a living thread and of one that has ended, one of them a zombie. */
static void *go_on_with_children(void *oldest)
{
	pthread_t maker;
	siginfo_t info = { 0 };
	int status = 0;
	await_state(getpid(), 'Z');
	pid_t zombie = spawn(end_at_once, (void *)3);
	MUST(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT));
	pid_t other = spawn_abi(other_abi, "waits", NULL);
	MUST0(pthread_create(&maker, NULL, make_a_child, NULL));
	MUST0(pthread_join(maker, NULL));
	checkpoint();
	check_leader(0);
	CHECK(waitpid(zombie, &status, 0) == zombie && status == 3 << 8, "the zombie: %#x", status);
	finish(other);
	finish(younger_child);
	finish((pid_t)(intptr_t)oldest);
	end_last_thread();
}

CASE(children)
{
	pid_t oldest = spawn(wait_as_child, NULL);
	leave_to(go_on_with_children, (void *)(intptr_t)oldest, 0);
}

static void *lead_on(void *unused)
{
	(void)unused;
	await_state(getpid(), 'Z');
	pid_t pid = getpid(), child = spawn(wait_as_child, NULL);
	prepared();
	wait_for_go();
	CHECK(getsid(0) == pid && getpgid(0) == pid, "session %d, group %d", getsid(0), getpgid(0));
	CHECK(getsid(child) == pid && getpgid(child) == pid, "child in session %d, group %d", getsid(child),
	      getpgid(child));
	MUST(kill(-pid, 0));
	finish(child);
	check_leader(4);
	end_last_thread();
}

static void lead_session(void *unused)
{
	(void)unused;
	MUST(setsid());
	leave_to(lead_on, NULL, 4);
}

CASE(session)
{
	pid_t child = spawn(lead_session, NULL);
	checkpoint();
	check_end(child, 4);
}

static void *link_of_chain(void *depth)
{
	char left[16];
	pid_t child = 0;
	await_state(getpid(), 'Z');
	snprintf(left, sizeof(left), "%d", (int)(intptr_t)depth - 1);
	if (depth != 0)
		child = spawn_abi(other_abi, "chain", left);
	prepared();
	wait_for_go();
	check_leader(0);
	if (child != 0)
		finish(child);
	end_last_thread();
}

/* argv[2]: how many are below it. */
CASE(chain)
{
	leave_to(link_of_chain, (void *)(intptr_t)atoi(case_args[0]), 0);
}

/* Leaders that have ended and ABIs that change, all the way down. */
CASE(mixed)
{
	pid_t child = spawn_abi(other_abi, "chain", "3");
	checkpoint();
	finish(child);
}

static void *go_on_with_timers(void *unused)
{
	sigset_t set, pending;
	siginfo_t info;
	timer_t own_timer, any_timer;
	(void)unused;
	await_state(getpid(), 'Z');
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	sigaddset(&set, SIGRTMIN + 2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	struct sigevent to_own = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 1 };
	struct sigevent to_any = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2 };
	to_own._sigev_un._tid = thread_id();
	MUST(timer_create(CLOCK_MONOTONIC, &to_own, &own_timer));
	MUST(timer_create(CLOCK_MONOTONIC, &to_any, &any_timer));
	struct itimerspec soon = { .it_value.tv_nsec = 1 }, later = { .it_value.tv_sec = 1000 };
	MUST(timer_settime(own_timer, 0, &soon, NULL));
	MUST(timer_settime(any_timer, 0, &later, NULL));
	do
		MUST(sigpending(&pending));
	while (!sigismember(&pending, SIGRTMIN + 1));
	checkpoint();
	CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 1 && info.si_code == SI_TIMER, "signal %d", info.si_signo);
	struct itimerspec left;
	MUST(timer_gettime(any_timer, &left));
	CHECK(left.it_value.tv_sec > 900, "%ld s left", (long)left.it_value.tv_sec);
	MUST(timer_settime(any_timer, 0, &soon, NULL));
	CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 2, "signal %d", info.si_signo);
	end_last_thread();
}

CASE(timers)
{
	leave_to(go_on_with_timers, NULL, 0);
}

static volatile sig_atomic_t death_signals;

static void count_death(int signal)
{
	(void)signal;
	death_signals++;
}

static volatile int asked;

static void *ask_for_signal(void *unused)
{
	int signal = 0;
	(void)unused;
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	asked = 1;
	while (asked == 1)
		usleep(1000);
	MUST(prctl(PR_GET_PDEATHSIG, &signal));
	CHECK(signal == SIGUSR2, "the thread asked for %d", signal);
	return NULL;
}

static void outlive_a_thread(void *unused)
{
	struct sigaction action = { .sa_handler = count_death };
	pthread_t thread;
	int signal = 0;
	(void)unused;
	MUST(sigaction(SIGUSR2, &action, NULL));
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	MUST0(pthread_create(&thread, NULL, ask_for_signal, NULL));
	await(&asked, 1);
	prepared();
	wait_for_go();
	MUST(prctl(PR_GET_PDEATHSIG, &signal));
	CHECK(signal == SIGUSR2 && death_signals == 0, "asked for %d, got %d", signal, (int)death_signals);
	asked = 2;
	MUST0(pthread_join(thread, NULL));
}

static void *go_on_with_mourner(void *unused)
{
	(void)unused;
	await_state(getpid(), 'Z');
	pid_t child = spawn(outlive_a_thread, NULL);
	checkpoint();
	finish(child);
	end_last_thread();
}

/* A parent-death signal comes when the thread ends that is the parent: not when the leader does that was none. */
CASE(death_signal)
{
	leave_to(go_on_with_mourner, NULL, 0);
}

static void *go_on_mourning(void *unused)
{
	struct sigaction action = { .sa_handler = count_death };
	int signal = 0;
	(void)unused;
	await_state(getpid(), 'Z');
	MUST(sigaction(SIGUSR2, &action, NULL));
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	checkpoint();
	MUST(prctl(PR_GET_PDEATHSIG, &signal));
	CHECK(signal == SIGUSR2 && death_signals == 0, "asked for %d, got %d", signal, (int)death_signals);
	end_last_thread();
}

/* The thread that has asked is none that leads; whoever forked the root for a restore ends. */
CASE(mourner)
{
	leave_to(go_on_mourning, NULL, 0);
}

static void *go_on_confined(void *unused)
{
	(void)unused;
	await_state(getpid(), 'Z');
	checkpoint();
	CHECK(syscall(SYS_getpriority, 0, 0) == -1 && errno == ENOTTY, "getpriority is allowed");
	check_leader(9);
	/* Its parent is the harness, which expects 0. */
	if (!failed())
		MUST(write(STDOUT_FILENO, "PASS\n", 5));
	_exit(failed() ? 1 : 0);
}

/* Under a filter that forbids exit(2) from then on: nothing is to be judged by it during a restore. */
CASE(confined)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 9, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = LENGTH(code), .filter = code };
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	leave_to(go_on_confined, NULL, 9);
}

static char stack[64 * 1024] __attribute__((aligned(16)));
static volatile int shared_word;

static int sharer(void *unused)
{
	(void)unused;
	while (shared_word == 0)
		syscall(SYS_futex, &shared_word, 0, 0, NULL);
	shared_word = 2;
	syscall(SYS_exit_group, 0);
	return 0;
}

/* A child in the memory, with the files and directories of a task without a leader. */
static void *go_on_with_sharer(void *unused)
{
	(void)unused;
	await_state(getpid(), 'Z');
	memset(stack, 1, sizeof(stack));
	pid_t child = MUST(clone(sharer, stack + sizeof(stack), CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD, NULL));
	await_sleep(child);
	checkpoint();
	check_leader(0);
	shared_word = 1;
	MUST(syscall(SYS_futex, &shared_word, 1, 1));
	reap(child);
	CHECK(shared_word == 2, "the memory is two");
	end_last_thread();
}

CASE(sharer)
{
	leave_to(go_on_with_sharer, NULL, 0);
}

/* A child that tells its end by another signal has to be cloned by its parent's own code; it has lost its leader, too. */
CASE(cloned)
{
	char path[64], text[512], *state;
	siginfo_t info = { 0 };
	pid_t child = (pid_t)MUST(syscall(SYS_clone, SIGURG, 0, 0, 0, 0));
	if (child == 0)
		leave_with_code((void *)7);
	snprintf(path, sizeof(path), "/proc/%d/stat", child);
	do {
		sched_yield();
		int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
		ssize_t length = MUST(read(fd, text, sizeof(text) - 1));
		close(fd);
		text[length] = 0;
		state = strrchr(text, ')');
	} while (state == NULL || state[2] != 'Z');
	checkpoint();
	MUST(kill(child, SIGUSR1));
	MUST(waitid(P_PID, (id_t)child, &info, WEXITED | __WALL));
	CHECK(info.si_pid == child && info.si_code == CLD_EXITED && info.si_status % 7 == 0, "child %d: code %d, status %d",
	      child, info.si_code, info.si_status);
}

static volatile pid_t sleeper;

static void *sleep_long(void *unused)
{
	struct timespec hour = { .tv_sec = 3600 };
	(void)unused;
	sleeper = thread_id();
	nanosleep(&hour, NULL);
	CHECK(false, "an hour is over");
	return NULL;
}

/* The leader was another user's, and set up in its own way. */
static void *go_on_as_root(void *unused)
{
	pthread_t thread;
	(void)unused;
	await_state(getpid(), 'Z');
	MUST0(pthread_create(&thread, NULL, sleep_long, NULL));
	while (sleeper == 0)
		sched_yield();
	await_sleep(sleeper);
	checkpoint();
	CHECK(getuid() == 0, "user %d", getuid());
	check_leader(0);
	if (!failed())
		MUST(write(STDOUT_FILENO, "PASS\n", 5));
	_exit(failed() ? 1 : 0);
}

CASE(properties)
{
	pthread_t thread;
	cpu_set_t one;
	struct sched_param none = { 0 };
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 3);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	MUST0(pthread_create(&thread, NULL, go_on_as_root, NULL));
	MUST(prctl(PR_SET_NAME, "(late) leader"));
	MUST(prctl(PR_SET_TIMERSLACK, 77777));
	MUST(sched_setaffinity(0, sizeof(one), &one));
	MUST(sched_setscheduler(0, SCHED_BATCH, &none));
	MUST(syscall(SYS_setresgid, 1235, 1235, 1235));
	MUST(syscall(SYS_setresuid, 4321, 4322, 4323));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &set, NULL, 8);
	for (;;)
		syscall(SYS_exit, 0);
}
