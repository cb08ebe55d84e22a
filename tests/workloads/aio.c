/* Contexts of asynchronous I/O, idle and with events that are not read, also while requests are made all the time. */
#include "workload.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

/* struct aio_ring of fs/aio.c. */
struct ring {
	uint32_t id, places;
	volatile uint32_t head, tail;
	uint32_t magic, compatible, incompatible, header_length;
	struct io_event events[];
};

static aio_context_t setup(unsigned events)
{
	/* The kernel writes a word of the ABI. */
	unsigned long context = 0;
	MUST((int)syscall(SYS_io_setup, events, &context));
	return context;
}

static struct ring *ring_of(aio_context_t context)
{
	return (struct ring *)(uintptr_t)context;
}

static int submit(aio_context_t context, struct iocb *request)
{
	struct iocb *list[] = { request };
	return (int)syscall(SYS_io_submit, (unsigned long)context, 1, list);
}

static int get(aio_context_t context, long least, long most, struct io_event *events)
{
	return (int)syscall(SYS_io_getevents, (unsigned long)context, least, most, events, NULL);
}

/* A file of its own. */
static int make_file(const char *name, int flags)
{
	return MUST(open(name, O_RDWR | O_CREAT | O_TRUNC | flags, 0600));
}

static struct iocb request(uint16_t opcode, int fd, void *buffer, size_t length, long long offset, uint64_t data)
{
	return (struct iocb){
		.aio_lio_opcode = opcode,
		.aio_fildes = (uint32_t)fd,
		.aio_buf = (uintptr_t)buffer,
		.aio_nbytes = length,
		.aio_offset = offset,
		.aio_data = data,
	};
}

static struct iocb when_readable(int fd, uint64_t data)
{
	struct iocb poll = request(IOCB_CMD_POLL, fd, NULL, 0, 0, data);
	poll.aio_buf = POLLIN;
	return poll;
}

#define CHECK_EVENT(event, tag, result)                                                                    \
	CHECK((event).data == (uint64_t)(tag) && (event).res == (result), "data %llu, result %lld",          \
	      (unsigned long long)(event).data, (long long)(event).res)

/* Writes and reads back by a context. */
static void use(aio_context_t context, int fd)
{
	char text[8] = "written", back[8] = "";
	struct io_event event = { 0 };
	struct iocb write = request(IOCB_CMD_PWRITE, fd, text, 8, 64, 1), read = request(IOCB_CMD_PREAD, fd, back, 8, 64, 2);
	CHECK(submit(context, &write) == 1, "io_submit: %s", strerror(errno));
	CHECK(get(context, 1, 1, &event) == 1, "io_getevents: %s", strerror(errno));
	CHECK_EVENT(event, 1, 8);
	CHECK(submit(context, &read) == 1, "io_submit: %s", strerror(errno));
	CHECK(get(context, 1, 1, &event) == 1, "io_getevents: %s", strerror(errno));
	CHECK_EVENT(event, 2, 8);
	CHECK(strcmp(back, "written") == 0, "read %s", back);
}

/* Contexts of several sizes, one destroyed meanwhile, used and not. */
CASE(idle)
{
	int fd = make_file("idle", 0);
	aio_context_t contexts[] = { setup(1), setup(10), setup(100), setup(1000), setup(8192) };
	use(contexts[1], fd);
	use(contexts[4], fd);
	MUST((int)syscall(SYS_io_destroy, (unsigned long)contexts[2]));
	checkpoint();
	for (size_t n = 0; n < LENGTH(contexts); n++)
		if (n != 2)
			use(contexts[n], fd);
	unsigned long other = 0;
	CHECK(submit(contexts[2], NULL) == -1 && errno == EINVAL, "a context is back that was destroyed");
	MUST((int)syscall(SYS_io_setup, 5, &other));
	use(other, fd);
	for (size_t n = 0; n < LENGTH(contexts); n++)
		if (n != 2)
			MUST((int)syscall(SYS_io_destroy, (unsigned long)contexts[n]));
}

static struct iocb nothing(uint64_t data)
{
	static int null = -1;
	if (null == -1)
		null = MUST(open("/dev/null", O_RDONLY));
	return request(IOCB_CMD_PREAD, null, NULL, 0, 0, data);
}

/* Makes requests that end at once, with numbers from `first` on. */
static void make(aio_context_t context, unsigned first, unsigned count)
{
	for (unsigned n = first; n < first + count; n++) {
		struct iocb one = nothing(n);
		CHECK(submit(context, &one) == 1, "request %u: %s", n, strerror(errno));
	}
}

/* Takes events off the ring, as one call or one by one, with numbers from `first` on. */
static void take(aio_context_t context, unsigned first, unsigned count)
{
	struct io_event *events = calloc(count + 1, sizeof(*events));
	int got = get(context, count, count, events);
	CHECK(got == (int)count, "%d of %u events", got, count);
	for (unsigned n = 0; n < count; n++)
		CHECK_EVENT(events[n], first + n, 0);
	free(events);
}

static void check_empty(aio_context_t context)
{
	struct io_event event;
	CHECK(get(context, 0, 1, &event) == 0, "an event nobody asked for: %llu", (unsigned long long)event.data);
}

/* Events that are not read: of reads and writes, and as many as go past the end of the ring. */
CASE(unread)
{
	int fd = make_file("unread", 0);
	aio_context_t context = setup(8), wrapped = setup(20);
	char text[] = "of the file", back[16] = "";
	struct iocb write = request(IOCB_CMD_PWRITE, fd, text, sizeof(text), 4096, 11),
		    read = request(IOCB_CMD_PREAD, fd, back, sizeof(back), 4096, 12),
		    bad = request(IOCB_CMD_PREAD, fd, (void *)1, 8, 4096, 13);
	CHECK(submit(context, &write) == 1 && submit(context, &read) == 1 && submit(context, &bad) == 1, "io_submit");
	uint32_t places = ring_of(wrapped)->places;
	make(wrapped, 0, places - 30);
	take(wrapped, 0, places - 30);
	make(wrapped, places - 30, 60);
	/* Some are read by the task itself, as libaio does. */
	ring_of(wrapped)->head += 5;
	CHECK(ring_of(wrapped)->tail < ring_of(wrapped)->head, "the ring is not full enough");
	checkpoint();
	struct io_event events[3];
	CHECK(get(context, 3, 3, events) == 3, "io_getevents: %s", strerror(errno));
	CHECK_EVENT(events[0], 11, (long long)sizeof(text));
	CHECK_EVENT(events[1], 12, (long long)sizeof(text));
	CHECK_EVENT(events[2], 13, -EFAULT);
	CHECK(events[1].obj == (uintptr_t)&read, "another request");
	CHECK(strcmp(back, text) == 0, "read %s", back);
	take(wrapped, places - 25, 55);
	make(wrapped, 1000, 3 * places / 4);
	take(wrapped, 1000, 3 * places / 4);
	check_empty(context);
	check_empty(wrapped);
}

static void run_on(int processor)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(processor, &one);
	MUST(sched_setaffinity(0, sizeof(one), &one));
}

/* How many requests there can be is the same each time only for one processor: others may have some places to themselves. */
static void stay(void)
{
	run_on(sched_getcpu());
}

/* Makes requests until there is no place left. */
static unsigned make_all(aio_context_t context, unsigned first)
{
	for (unsigned n = 0;; n++) {
		struct iocb one = nothing(first + n);
		if (submit(context, &one) != 1) {
			CHECK(errno == EAGAIN, "request %u: %s", n, strerror(errno));
			return n;
		}
	}
}

/* Rings with no place left, and with one: small and large, at any place. */
CASE(full)
{
	stay();
	aio_context_t small = setup(1), turned = setup(30), large = setup(3000), last = setup(1);
	unsigned in_small = make_all(small, 0), in_large = make_all(large, 0);
	make(turned, 0, 77);
	take(turned, 0, 77);
	unsigned in_turned = make_all(turned, 77);
	unsigned in_last = make_all(last, 0);
	take(last, 0, 1);
	CHECK(in_small > 30 && in_large > 3000, "%u and %u requests at a time", in_small, in_large);
	checkpoint();
	CHECK(make_all(small, 0) == 0 && make_all(large, 0) == 0 && make_all(turned, 0) == 0, "there is room again");
	take(last, 1, in_last - 1);
	take(small, 0, in_small);
	take(large, 0, in_large);
	take(turned, 77, in_turned);
	CHECK(make_all(small, 5) == in_small && make_all(large, 5) == in_large, "other rings than before");
	take(small, 5, in_small);
	take(large, 5, in_large);
	check_empty(turned);
}

/* Places that are free are counted by each processor for itself. */
CASE(processors)
{
	cpu_set_t all;
	aio_context_t context = setup(100);
	unsigned number = 0;
	MUST(sched_getaffinity(0, sizeof(all), &all));
	for (int round = 0; round < 3; round++)
		for (int processor = 0; processor < CPU_SETSIZE; processor++)
			if (CPU_ISSET(processor, &all)) {
				run_on(processor);
				make(context, number, 11);
				if (number > 0)
					take(context, number - 11, 11);
				number += 11;
			}
	MUST(sched_setaffinity(0, sizeof(all), &all));
	checkpoint();
	cpu_set_t now;
	MUST(sched_getaffinity(0, sizeof(now), &now));
	CHECK(CPU_EQUAL(&all, &now), "other processors than before");
	take(context, number - 11, 11);
	make(context, 0, 50);
	take(context, 0, 50);
	check_empty(context);
}

struct waiter {
	aio_context_t context;
	struct io_event event;
	volatile pid_t tid;
	int got;
};

static void *wait_for_event(void *argument)
{
	struct waiter *waiter = argument;
	waiter->tid = (pid_t)syscall(SYS_gettid);
	waiter->got = get(waiter->context, 1, 1, &waiter->event);
	return NULL;
}

/* A thread waits for an event. */
CASE(waiting)
{
	struct waiter waiter = { .context = setup(4) };
	pthread_t thread;
	MUST0(pthread_create(&thread, NULL, wait_for_event, &waiter));
	while (waiter.tid == 0)
		sched_yield();
	await_sleep(waiter.tid);
	checkpoint();
	make(waiter.context, 7, 1);
	MUST0(pthread_join(thread, NULL));
	CHECK(waiter.got == 1, "io_getevents: %d", waiter.got);
	CHECK_EVENT(waiter.event, 7, 0);
}

static void child_with_contexts(void *argument)
{
	aio_context_t *first = argument, own = setup(3);
	make(own, 40, 2);
	/* It has the memory of its parent's, and not the context. */
	MUST(munmap(ring_of(*first), PAGE));
	prepared();
	wait_for_go();
	take(own, 40, 2);
}

/* Of several tasks, which share pages. */
CASE(family)
{
	char *pages = map_anonymous(MIB);
	fill(pages, MIB, 3);
	aio_context_t context = setup(2);
	make(context, 30, 3);
	pid_t child = spawn(child_with_contexts, &context);
	checkpoint();
	take(context, 30, 3);
	finish(child);
	CHECK_FILL(pages, MIB, 3);
}

/* More of them than there are places beside, all ending afterwards. */
CASE(many_on_their_way)
{
	stay();
	aio_context_t context = setup(1);
	int event = MUST(eventfd(0, 0));
	unsigned all = make_all(context, 0);
	take(context, 0, all);
	make(context, 0, 33);
	take(context, 0, 33);
	for (unsigned n = 0; n < all - 30; n++) {
		struct iocb poll = when_readable(event, 1000 + n);
		CHECK(submit(context, &poll) == 1, "poll %u: %s", n, strerror(errno));
	}
	make(context, 1, 20);
	checkpoint();
	take(context, 1, 20);
	check_empty(context);
	MUST(eventfd_write(event, 1));
	/* The last to wait is the first to be told. */
	for (unsigned n = all - 30; n-- > 0;) {
		struct io_event got = { 0 };
		CHECK(get(context, 1, 1, &got) == 1, "io_getevents: %s", strerror(errno));
		CHECK_EVENT(got, 1000 + n, POLLIN);
	}
	CHECK(make_all(context, 7) == all, "another number of requests at a time");
	take(context, 7, all);
}

/* A request that ends soon, by a timer, behind events that are not read, and tells an eventfd. */
CASE(ends_meanwhile)
{
	stay();
	aio_context_t context = setup(1);
	int timer = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
	struct itimerspec second = { .it_value = { .tv_sec = 1 } };
	int told = MUST(eventfd(0, EFD_NONBLOCK));
	struct iocb poll = when_readable(timer, 9);
	poll.aio_flags = IOCB_FLAG_RESFD;
	poll.aio_resfd = (uint32_t)told;
	struct io_event events[3];
	uint64_t count = 0;
	make(context, 1, 2);
	MUST(timerfd_settime(timer, 0, &second, NULL));
	CHECK(submit(context, &poll) == 1, "io_submit: %s", strerror(errno));
	checkpoint();
	CHECK(read(told, &count, sizeof count) == sizeof count && count == 1, "told %llu times", (unsigned long long)count);
	CHECK(get(context, 0, 3, events) == 3, "io_getevents: %s", strerror(errno));
	CHECK_EVENT(events[0], 1, 0);
	CHECK_EVENT(events[1], 2, 0);
	CHECK_EVENT(events[2], 9, POLLIN);
	check_empty(context);
	unsigned all = make_all(context, 0);
	take(context, 0, all);
}

static void child_with_ring(void *argument)
{
	prepared();
	wait_for_go();
	CHECK(submit(*(aio_context_t *)argument, NULL) == -1 && errno == EINVAL, "the context of a parent");
}

/* A child has the ring of its parent, and not the context. */
CASE(ring_of_parent)
{
	aio_context_t context = setup(2);
	make(context, 1, 2);
	pid_t child = spawn(child_with_ring, &context);
	checkpoint();
	take(context, 1, 2);
	finish(child);
}

/* Whoever is in the middle of reading an event by itself finds it where it was. */
static bool take_by_hand(struct ring *ring, struct io_event *event)
{
	uint32_t head = ring->head;
	if (head == ring->tail)
		return false;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	*event = ring->events[head];
	for (volatile int n = 0; n < 200; n++)
		;
	ring->head = (head + 1) % ring->places;
	return true;
}

static volatile bool done;
/* What the threads have got done so far. */
static volatile unsigned blocks_done, events_done;

/* Requests all the time, whose events come in the order in which they were made. */
static void *work_by_hand(void *argument)
{
	(void)argument;
	aio_context_t context = setup(8);
	unsigned made = 0, taken = 0;
	while (!done || taken < made) {
		struct iocb one = nothing(made);
		bool room = made - taken < 20;
		if (!done && room) {
			CHECK(submit(context, &one) == 1, "request %u: %s", made, strerror(errno));
			made++;
		}
		struct io_event event;
		if ((made % 3 == 0 || !room || done) && take_by_hand(ring_of(context), &event)) {
			CHECK_EVENT(event, taken, 0);
			events_done = ++taken;
		}
		if (failed())
			break;
	}
	return NULL;
}

#define BLOCKS 16

/* Writes past the page cache, read back each. */
static void *work_directly(void *argument)
{
	(void)argument;
	int fd = open("direct", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (fd == -1)
		fd = make_file("direct", 0);
	aio_context_t context = setup(BLOCKS);
	char *buffers[2] = { map_anonymous(BLOCKS * PAGE), map_anonymous(BLOCKS * PAGE) };
	for (uint32_t round = 0; !done && !failed(); round++) {
		static const uint16_t opcodes[] = { IOCB_CMD_PWRITE, IOCB_CMD_PREAD };
		fill(buffers[0], BLOCKS * PAGE, round);
		for (int step = 0; step < 2; step++) {
			struct iocb requests[BLOCKS], *list[BLOCKS];
			struct io_event events[BLOCKS];
			for (int n = 0; n < BLOCKS; n++) {
				requests[n] = request(opcodes[step], fd, buffers[step] + (size_t)n * PAGE, PAGE,
						      n * (long long)PAGE, (uint64_t)n);
				list[n] = &requests[n];
			}
			int made = (int)syscall(SYS_io_submit, (unsigned long)context, (long)BLOCKS, list);
			CHECK(made == BLOCKS, "%d requests: %s", made, strerror(errno));
			unsigned seen = 0;
			for (int got = 0; got < BLOCKS && !failed();) {
				int now = get(context, 1, BLOCKS, events);
				/* As after any stop, where a dump is killed before it has put that right. */
				if (now == -1 && errno == EINTR)
					continue;
				CHECK(now > 0, "io_getevents: %s", strerror(errno));
				for (int n = 0; n < now; n++) {
					CHECK(events[n].res == (long long)PAGE, "block %llu: %lld",
					      (unsigned long long)events[n].data, (long long)events[n].res);
					seen |= 1u << events[n].data;
				}
				got += now > 0 ? now : 0;
			}
			CHECK(seen == (1u << BLOCKS) - 1, "blocks %x", seen);
		}
		CHECK_FILL(buffers[1], BLOCKS * PAGE, round);
		blocks_done = round + 1;
	}
	return NULL;
}

/* Both go on working. */
static void answer(int number)
{
	unsigned blocks = blocks_done, events = events_done;
	(void)number;
	while ((blocks_done == blocks || events_done == events) && !failed())
		sched_yield();
	MUST(write(STDOUT_FILENO, "ALIVE\n", 6));
}

/* Threads that go on working meanwhile. */
CASE(busy)
{
	pthread_t threads[2];
	sigset_t none;
	sigemptyset(&none);
	hear_questions();
	MUST0(pthread_create(&threads[0], NULL, work_by_hand, NULL));
	MUST0(pthread_create(&threads[1], NULL, work_directly, NULL));
	answer_questions(&none, answer);
	done = true;
	for (size_t n = 0; n < LENGTH(threads); n++)
		MUST0(pthread_join(threads[n], NULL));
}

/* A request that nothing ends, beside events that are not read. The dump is refused. */
CASE(on_its_way)
{
	stay();
	aio_context_t context = setup(1);
	int event = MUST(eventfd(0, 0));
	uint32_t places = ring_of(context)->places;
	struct iocb poll = when_readable(event, 500);
	make(context, 0, places - 10);
	take(context, 0, places - 10);
	CHECK(submit(context, &poll) == 1, "io_submit: %s", strerror(errno));
	make(context, 1, 25);
	struct ring before = *ring_of(context);
	checkpoint();
	struct ring after = *ring_of(context);
	CHECK(memcmp(&before, &after, sizeof(before)) == 0, "head %u, tail %u, not %u, %u", after.head, after.tail,
	      before.head, before.tail);
	take(context, 1, 25);
	check_empty(context);
	MUST(eventfd_write(event, 1));
	struct io_event got = { 0 };
	CHECK(get(context, 1, 1, &got) == 1, "io_getevents: %s", strerror(errno));
	CHECK_EVENT(got, 500, POLLIN);
	CHECK(got.obj == (uintptr_t)&poll, "another request");
	unsigned all = make_all(context, 0);
	CHECK(all > 30, "%u requests at a time", all);
	take(context, 0, all);
}
