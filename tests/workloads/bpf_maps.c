/* BPF maps: what they are and what is in them, by whichever description. */
#include "workload.h"
#include <linux/bpf.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/mount.h>

#define ENTRIES 100

static long bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static uint64_t pointer(const void *to)
{
	return (uintptr_t)to;
}

static int make(enum bpf_map_type type, uint32_t key, uint32_t value, uint32_t entries, uint32_t flags, const char *name)
{
	union bpf_attr attributes = { .map_type = type, .key_size = key, .value_size = value, .max_entries = entries,
				      .map_flags = flags };
	strncpy(attributes.map_name, name, sizeof(attributes.map_name) - 1);
	return (int)MUST(bpf(BPF_MAP_CREATE, &attributes));
}

static long put(int map, const void *key, const void *value)
{
	union bpf_attr attributes = { .map_fd = (uint32_t)map, .key = pointer(key), .value = pointer(value) };
	return bpf(BPF_MAP_UPDATE_ELEM, &attributes);
}

static long get(int map, const void *key, void *value)
{
	union bpf_attr attributes = { .map_fd = (uint32_t)map, .key = pointer(key), .value = pointer(value) };
	return bpf(BPF_MAP_LOOKUP_ELEM, &attributes);
}

static void freeze(int map)
{
	union bpf_attr attributes = { .map_fd = (uint32_t)map };
	MUST(bpf(BPF_MAP_FREEZE, &attributes));
}

static struct bpf_map_info look(int map)
{
	struct bpf_map_info info = { 0 };
	union bpf_attr attributes = { .info = { .bpf_fd = (uint32_t)map, .info_len = sizeof(info), .info = pointer(&info) } };
	MUST(bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes));
	return info;
}

/* A further description. */
static int open_again(int map, uint32_t flags)
{
	union bpf_attr attributes = { .map_id = look(map).id, .open_flags = flags };
	return (int)MUST(bpf(BPF_MAP_GET_FD_BY_ID, &attributes));
}

static int count(int map)
{
	uint32_t key, next;
	union bpf_attr attributes = { .map_fd = (uint32_t)map, .next_key = pointer(&next) };
	int found = 0;
	while (bpf(BPF_MAP_GET_NEXT_KEY, &attributes) == 0) {
		found++;
		key = next;
		attributes.key = pointer(&key);
	}
	return found;
}

static void check_all(int map, uint32_t first)
{
	for (uint32_t key = first; key < first + ENTRIES; key++) {
		uint64_t value = 0;
		CHECK(get(map, &key, &value) == 0, "key %u: %s", key, strerror(errno));
		CHECK(value == key * 0x100000001ull, "key %u has %#llx", key, (unsigned long long)value);
	}
}

static void put_all(int map, uint32_t first)
{
	for (uint32_t key = first; key < first + ENTRIES; key++) {
		uint64_t value = key * 0x100000001ull;
		MUST(put(map, &key, &value));
	}
}

CASE(hash)
{
	int map = make(BPF_MAP_TYPE_HASH, 4, 8, ENTRIES, 0, "a.hash_2"),
	    late = make(BPF_MAP_TYPE_HASH, 4, 8, 1000, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG, ""),
	    none = make(BPF_MAP_TYPE_HASH, 4, 8, 10, BPF_F_ZERO_SEED, "");
	put_all(map, 7);
	put_all(late, 1000);
	MUST(fcntl(late, F_SETFL, O_NONBLOCK));
	checkpoint();
	check_all(map, 7);
	check_all(late, 1000);
	CHECK(count(map) == ENTRIES && count(late) == ENTRIES && count(none) == 0, "%d, %d, %d entries", count(map),
	      count(late), count(none));
	struct bpf_map_info info = look(map);
	CHECK(strcmp(info.name, "a.hash_2") == 0, "is called %s", info.name);
	uint32_t key = 1;
	uint64_t value = 1;
	CHECK(put(map, &key, &value) == -1 && errno == E2BIG, "takes more entries: %s", strerror(errno));
	CHECK(put(none, &key, &value) == 0, "takes no entry: %s", strerror(errno));
}

/* Entries that hash to one place: of a map without a secret of its own, in the same order. */
CASE(order)
{
	int map = make(BPF_MAP_TYPE_HASH, 4, 8, ENTRIES, BPF_F_ZERO_SEED, "");
	put_all(map, 0);
	uint32_t keys[ENTRIES], now[ENTRIES] = { 0 };
	for (int round = 0; round < 2; round++) {
		uint32_t *to = round == 0 ? keys : now;
		union bpf_attr attributes = { .map_fd = (uint32_t)map, .next_key = pointer(to) };
		for (int at = 0; at < ENTRIES; at++) {
			MUST(bpf(BPF_MAP_GET_NEXT_KEY, &attributes));
			attributes.key = pointer(to + at);
			attributes.next_key = pointer(to + at + 1);
			if (at == ENTRIES - 2)
				attributes.next_key = pointer(to + ENTRIES - 1);
		}
		if (round == 0)
			checkpoint();
	}
	CHECK(memcmp(keys, now, sizeof(keys)) == 0, "in another order");
}

CASE(array)
{
	int map = make(BPF_MAP_TYPE_ARRAY, 4, 24, 50, BPF_F_MMAPABLE, "array"),
	    closed = make(BPF_MAP_TYPE_ARRAY, 4, 8, ENTRIES, 0, "closed");
	char value[24];
	for (uint32_t key = 0; key < 50; key += 7) {
		fill(value, sizeof(value), key + 1);
		MUST(put(map, &key, value));
	}
	put_all(closed, 0);
	freeze(closed);
	checkpoint();
	for (uint32_t key = 0; key < 50; key++) {
		char zeros[sizeof(value)] = { 0 };
		MUST(get(map, &key, value));
		if (key % 7 == 0)
			CHECK_FILL(value, sizeof(value), key + 1);
		else
			CHECK(memcmp(value, zeros, sizeof(value)) == 0, "%u is not zero", key);
	}
	check_all(closed, 0);
	uint32_t key = 0;
	CHECK(put(closed, &key, value) == -1 && errno == EPERM, "is not frozen: %s", strerror(errno));
	CHECK(put(map, &key, value) == 0, "is frozen");
	char *mapped = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0));
	mapped[0] = 99;
	MUST(get(map, &key, value));
	CHECK(value[0] == 99, "%d", value[0]);
}

/* By one who has no privileges any more. */
CASE(ordinary)
{
	int map = make(BPF_MAP_TYPE_HASH, 4, 8, ENTRIES, 0, "");
	put_all(map, 7);
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	/* Its user may dump it. */
	MUST(prctl(PR_SET_DUMPABLE, 1));
	checkpoint();
	check_all(map, 7);
}

/* A value for each processor. */
CASE(processors)
{
	long all = sysconf(_SC_NPROCESSORS_CONF);
	uint64_t *values = MUST((uint64_t *)calloc((size_t)all + 64, sizeof(uint64_t)));
	int array = make(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 4, 3, 0, ""), hash = make(BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 3, 0, "");
	for (long at = 0; at < all + 64; at++)
		values[at] = (uint64_t)at + 5;
	uint32_t key = 2;
	MUST(put(array, &key, values));
	key = 77;
	MUST(put(hash, &key, values));
	checkpoint();
	for (int round = 0; round < 2; round++) {
		memset(values, 0, ((size_t)all + 64) * sizeof(uint64_t));
		MUST(get(round == 0 ? hash : array, &key, values));
		for (long at = 0; at < all; at++)
			CHECK(values[at] == (uint64_t)at + 5, "%llu for processor %ld", (unsigned long long)values[at], at);
		key = 2;
	}
}

struct prefix {
	uint32_t bits;
	uint8_t address[4];
};

CASE(prefixes)
{
	int map = make(BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix), 4, 8, BPF_F_NO_PREALLOC, "routes");
	static const struct prefix keys[] = { { 0, { 0 } }, { 8, { 10 } }, { 16, { 10, 1 } }, { 32, { 10, 1, 2, 3 } } };
	for (uint32_t at = 0; at < LENGTH(keys); at++)
		MUST(put(map, &keys[at], &at));
	checkpoint();
	static const uint8_t asked[][5] = { { 11, 1, 1, 1, 0 }, { 10, 2, 1, 1, 1 }, { 10, 1, 1, 1, 2 }, { 10, 1, 2, 3, 3 } };
	for (size_t at = 0; at < LENGTH(asked); at++) {
		struct prefix key = { 32, { 0 } };
		memcpy(key.address, asked[at], 4);
		uint32_t value = 99;
		MUST(get(map, &key, &value));
		CHECK(value == asked[at][4], "%zu: %u", at, value);
	}
}

/* Of maps that are queues, empty ones. */
CASE(queues)
{
	int queue = make(BPF_MAP_TYPE_QUEUE, 0, 4, 3, 0, "queue"), stack = make(BPF_MAP_TYPE_STACK, 0, 4, 3, 0, "");
	checkpoint();
	for (uint32_t value = 1; value < 4; value++) {
		MUST(put(queue, NULL, &value));
		MUST(put(stack, NULL, &value));
	}
	uint32_t first, last;
	MUST(get(queue, NULL, &first));
	MUST(get(stack, NULL, &last));
	CHECK(first == 1 && last == 3, "%u and %u", first, last);
}

static void child_that_puts(void *map)
{
	prepared();
	wait_for_go();
	uint32_t key = 1;
	uint64_t value = 0x100000001ull;
	MUST(put((int)(intptr_t)map, &key, &value));
}

/* One map by several descriptions: with different rights, in a child, on its way in a message; watched by an epoll. */
CASE(descriptions)
{
	int map = make(BPF_MAP_TYPE_HASH, 4, 8, ENTRIES + 5, BPF_F_WRONLY, "shared"), reader = open_again(map, BPF_F_RDONLY),
	    both = open_again(map, 0), epoll = MUST(epoll_create1(0)), sent = open_again(map, BPF_F_RDONLY), pair[2];
	put_all(map, 7);
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 4711 };
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, reader, &event));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	memcpy(CMSG_DATA(&control.header), &sent, sizeof(int));
	struct iovec byte = { "x", 1 };
	struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.room) };
	MUST(sendmsg(pair[0], &message, 0));
	close(sent);
	pid_t child = spawn(child_that_puts, (void *)(intptr_t)both);
	checkpoint();
	finish(child);
	char got;
	byte.iov_base = &got;
	MUST(recvmsg(pair[1], &message, 0));
	memcpy(&sent, CMSG_DATA(&control.header), sizeof(int));
	uint32_t key = 1;
	uint64_t value = 0;
	CHECK(get(reader, &key, &value) == 0 && value == 0x100000001ull, "the child's entry: %#llx", (unsigned long long)value);
	CHECK(get(map, &key, &value) == -1 && errno == EPERM, "can be read by who may write");
	CHECK(put(reader, &key, &value) == -1 && errno == EPERM, "can be written by who may read");
	check_all(both, 7);
	check_all(sent, 7);
	CHECK(look(sent).id == look(map).id && look(reader).id == look(map).id, "more than one");
	CHECK(epoll_wait(epoll, &event, 1, 0) == 1 && event.events == EPOLLERR && event.data.u32 == 4711, "epoll: %#x", event.events);
}

/* Pinned under a name: it is used by a program, too, and of a kind that nobody could make again. */
CASE(pinned)
{
	MUST(mkdir("bpf", 0700));
	MUST(mount("bpf", "bpf", "bpf", 0, NULL));
	MUST(mkdir("bpf/dir", 0700));
	int map = make(BPF_MAP_TYPE_LRU_HASH, 4, 8, 2 * ENTRIES, 0, "pinned"), reader = open_again(map, BPF_F_RDONLY);
	union bpf_attr attributes = { .pathname = pointer("bpf/dir/map"), .bpf_fd = (uint32_t)map };
	MUST(bpf(BPF_OBJ_PIN, &attributes));
	put_all(map, 7);
	uint32_t id = look(map).id;
	checkpoint();
	CHECK(look(map).id == id && look(reader).id == id, "another map");
	check_all(reader, 7);
	put_all(map, 8);
}

static int use_in_program(int map)
{
	/* r1 = the map; r0 = 0; exit. */
	uint64_t code[] = { 0x18 | 1 << 8 | 1 << 12 | (uint64_t)map << 32, 0, 0xb7, 0x95 };
	union bpf_attr attributes = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = LENGTH(code), .insns = pointer(code),
				      .license = pointer("GPL") };
	return (int)MUST(bpf(BPF_PROG_LOAD, &attributes));
}

static void child_that_waits(void *unused)
{
	(void)unused;
	prepared();
	wait_for_go();
}

static void name_it(const char *text, int map)
{
	printf("NAME fd %d (anon_inode:bpf-map): %s\n", map, text);
	fflush(stdout);
}

/* What nobody could make again, or others hold. */
CASE(refused)
{
	uint32_t value = 5, key = 0;
	name_it("a BPF map that drops what was not used for long (LRU)", make(BPF_MAP_TYPE_LRU_HASH, 4, 4, 4, 0, ""));
	name_it("BPF maps that are rings are not supported", make(BPF_MAP_TYPE_RINGBUF, 0, 0, PAGE, 0, ""));
	int queue = make(BPF_MAP_TYPE_QUEUE, 0, 4, 3, 0, "");
	MUST(put(queue, NULL, &value));
	name_it("a BPF queue or stack that is not empty", queue);
	int used = make(BPF_MAP_TYPE_ARRAY, 4, 4, 1, 0, ""), inner = make(BPF_MAP_TYPE_ARRAY, 4, 4, 1, 0, "");
	int program = use_in_program(used);
	name_it("a BPF map that BPF program ", used);
	printf("NAME fd %d (anon_inode:bpf-prog): BPF programs are not supported\n", program);
	union bpf_attr attributes = { .map_type = BPF_MAP_TYPE_ARRAY_OF_MAPS, .key_size = 4, .value_size = 4, .max_entries = 2,
				      .inner_map_fd = (uint32_t)inner };
	int outer = (int)MUST(bpf(BPF_MAP_CREATE, &attributes));
	MUST(put(outer, &key, &inner));
	name_it("BPF maps of maps are not supported", outer);
	name_it("a BPF map that BPF map ", inner);
	int shared = make(BPF_MAP_TYPE_ARRAY, 4, 8, 1, BPF_F_MMAPABLE, "");
	char *mapped = MUST((char *)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, shared, 0));
	unsigned long start = (uintptr_t)mapped;
	printf("NAME 0x%lx-0x%lx (anon_inode:bpf-map): mapped BPF maps are not supported\n", start, start + PAGE);
	fflush(stdout);
	checkpoint();
}

/* A child of it has its map, for a dump of that alone. */
CASE(shared_with_child)
{
	int map = make(BPF_MAP_TYPE_HASH, 4, 8, ENTRIES, 0, "");
	put_all(map, 7);
	pid_t child = spawn(child_that_waits, NULL);
	printf("CHILD %d\n", child);
	fflush(stdout);
	checkpoint();
	finish(child);
	check_all(map, 7);
}
