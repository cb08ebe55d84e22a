/* Sockets that hear and send packets: raw ones, those for ping, packet sockets. */
#include "workload.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Of the loopback interface. */
#define LOOPBACK 1
/* For experiments: RFC 3692. */
#define EXPERIMENT 253

static const struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr = { 0x0100007f } };
static const struct sockaddr_in6 here6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof(value);
	MUST(getsockopt(fd, level, name, &value, &length));
	return value;
}

static void set(int fd, int level, int name, int value)
{
	MUST(setsockopt(fd, level, name, &value, sizeof(value)));
}

static void await_packet(int fd)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };
	CHECK(poll(&polled, 1, 20000) == 1 && polled.revents == POLLIN, "nothing comes: %#x", polled.revents);
}

static void nothing_left_in(int fd)
{
	char byte;
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "something is there: %s", strerror(errno));
}

/* What comes next ends with these bytes. */
static void hear(int fd, const char *text)
{
	char bytes[200];
	await_packet(fd);
	ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT), length = (ssize_t)strlen(text);
	CHECK(got >= length && memcmp(bytes + got - length, text, (size_t)length) == 0, "%zd bytes that end otherwise", got);
}

/* The first that comes and ends so. */
static void hear_among_others(int fd, const char *text)
{
	char bytes[200];
	size_t length = strlen(text);
	for (;;) {
		await_packet(fd);
		ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
		if (failed() || (got >= (ssize_t)length && memcmp(bytes + got - length, text, length) == 0))
			return;
	}
}

static uint16_t port_of(int fd)
{
	struct sockaddr_in6 name = { .sin6_port = 0 };
	socklen_t length = sizeof(name);
	MUST(getsockname(fd, (void *)&name, &length));
	return name.sin6_port;
}

/* An echo request, and the answer to it. */
static void ping(int fd, uint8_t request, uint8_t answer, uint16_t id, uint16_t sequence, const void *to, socklen_t length)
{
	struct icmphdr header = { .type = request, .un.echo.sequence = htons(sequence) };
	MUST(sendto(fd, &header, sizeof(header), 0, to, length));
	await_packet(fd);
	memset(&header, 0, sizeof(header));
	CHECK(recv(fd, &header, sizeof(header), MSG_DONTWAIT) == sizeof(header), "recv: %s", strerror(errno));
	CHECK(header.type == answer && header.un.echo.id == id && ntohs(header.un.echo.sequence) == sequence,
	      "type %u, id %u, sequence %u", header.type, header.un.echo.id, ntohs(header.un.echo.sequence));
}

/* As one of the only group that may have such sockets. */
CASE(ping)
{
	int range = MUST(open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY));
	MUST(write(range, "7 7", 3));
	close(range);
	MUST(setegid(7));
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)), fd6 = MUST(socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6));
	int fresh = MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)), deaf = MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
	MUST(setegid(0));
	struct sockaddr_in6 name = here6;
	name.sin6_port = htons(4242);
	MUST(connect(fd, (const void *)&here, sizeof(here)));
	MUST(bind(fd6, (void *)&name, sizeof(name)));
	MUST(connect(deaf, (const void *)&here, sizeof(here)));
	MUST(shutdown(deaf, SHUT_RD));
	set(fd, IPPROTO_IP, IP_TTL, 9);
	uint16_t id = port_of(fd);
	ping(fd, ICMP_ECHO, ICMP_ECHOREPLY, id, 1, NULL, 0);
	ping(fd6, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY, htons(4242), 1, &here6, sizeof(here6));
	checkpoint();
	nothing_left_in(fd);
	CHECK(port_of(fd) == id && option(fd, IPPROTO_IP, IP_TTL) == 9, "another id, or TTL");
	ping(fd, ICMP_ECHO, ICMP_ECHOREPLY, id, 2, NULL, 0);
	ping(fd6, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY, htons(4242), 2, &here6, sizeof(here6));
	CHECK(port_of(fresh) == 0, "the fresh one has an id");
	MUST(connect(fresh, (const void *)&here, sizeof(here)));
	ping(fresh, ICMP_ECHO, ICMP_ECHOREPLY, port_of(fresh), 3, NULL, 0);
	CHECK(recv(deaf, &id, 1, 0) == 0, "the deaf one hears: %s", strerror(errno));
}

/* Of both families: bound, connected, with headers of their own, filters, checksums, groups; shut down. */
CASE(raw)
{
	int icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)), whole = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
	int own = MUST(socket(AF_INET, SOCK_RAW, EXPERIMENT)), sender = MUST(socket(AF_INET, SOCK_RAW, EXPERIMENT));
	int icmp6 = MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)), six = MUST(socket(AF_INET6, SOCK_RAW, EXPERIMENT));
	int member = MUST(socket(AF_INET, SOCK_RAW, EXPERIMENT + 1)), locked = MUST(socket(AF_INET, SOCK_RAW, EXPERIMENT));
	struct icmp_filter filter = { .data = ~(1u << ICMP_ECHOREPLY) }, filter_now;
	struct icmp6_filter filter6 = { .data = { 1, 2, 3, 4, 5, 6, 7, 8 } }, filter6_now;
	struct ip_mreqn group = { .imr_ifindex = LOOPBACK };
	struct sock_filter nothing[] = { BPF_STMT(BPF_RET | BPF_K, 0) };
	struct sock_fprog program = { LENGTH(nothing), nothing };
	socklen_t length = sizeof(filter_now);
	MUST(setsockopt(icmp, 255, ICMP_FILTER, &filter, sizeof(filter)));
	MUST(connect(icmp, (const void *)&here, sizeof(here)));
	MUST(bind(own, (const void *)&here, sizeof(here)));
	set(own, IPPROTO_IP, IP_RECVTTL, 1);
	set(own, IPPROTO_IP, IP_ROUTER_ALERT, 1);
	set(sender, IPPROTO_IP, IP_HDRINCL, 1);
	MUST(shutdown(sender, SHUT_RD) == 0 || errno == ENOTCONN ? 0 : -1);
	MUST(setsockopt(icmp6, IPPROTO_ICMPV6, ICMPV6_FILTER, &filter6, sizeof(filter6)));
	set(six, IPPROTO_IPV6, IPV6_CHECKSUM, 4);
	MUST(connect(six, (const void *)&here6, sizeof(here6)));
	MUST(inet_pton(AF_INET, "224.0.0.5", &group.imr_multiaddr) - 1);
	MUST(setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group)));
	MUST(setsockopt(locked, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	set(locked, SOL_SOCKET, SO_LOCK_FILTER, 1);
	checkpoint();
	MUST(getsockopt(icmp, 255, ICMP_FILTER, &filter_now, &length));
	CHECK(filter_now.data == filter.data, "ICMP_FILTER %#x", filter_now.data);
	length = sizeof(filter6_now);
	MUST(getsockopt(icmp6, IPPROTO_ICMPV6, ICMPV6_FILTER, &filter6_now, &length));
	CHECK(memcmp(&filter6_now, &filter6, sizeof(filter6)) == 0, "ICMPV6_FILTER");
	CHECK(option(six, IPPROTO_IPV6, IPV6_CHECKSUM) == 4, "IPV6_CHECKSUM of the socket that has it");
	CHECK(option(icmp6, 255, IPV6_CHECKSUM) == 2, "IPV6_CHECKSUM of ICMPv6");
	CHECK(option(own, IPPROTO_IP, IP_RECVTTL) == 1 && option(own, IPPROTO_IP, IP_HDRINCL) == 0, "options");
	CHECK(option(own, IPPROTO_IP, IP_ROUTER_ALERT) == 1, "IP_ROUTER_ALERT");
	CHECK(option(sender, IPPROTO_IP, IP_HDRINCL) == 1 && option(whole, IPPROTO_IP, IP_HDRINCL) == 1, "IP_HDRINCL");
	CHECK(option(locked, SOL_SOCKET, SO_LOCK_FILTER) == 1, "SO_LOCK_FILTER");
	CHECK(setsockopt(locked, SOL_SOCKET, SO_DETACH_FILTER, &length, sizeof(length)) == -1 && errno == EPERM, "its filter goes");
	nothing_left_in(own);
	nothing_left_in(icmp);
	nothing_left_in(six);
	/* Connected: they know where to send. Of ICMP, only answers are heard. */
	struct icmphdr header = { .type = ICMP_ECHO, .checksum = (uint16_t)~ICMP_ECHO };
	MUST(send(icmp, &header, sizeof(header), 0));
	hear(icmp, "\0\0\0\0");
	MUST(send(six, "four****six", 11, 0));
	hear(six, "six");
	/* A header, without lengths and checksum, which are filled in, and one word. */
	unsigned char packet[] = { 0x45, 0, 0, 0, 0, 0, 0, 0, 64, EXPERIMENT, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1, 'w', 'o', 'r', 'd' };
	MUST(sendto(sender, packet, sizeof(packet), 0, (const void *)&here, sizeof(here)));
	hear(own, "word");
	nothing_left_in(locked);
	struct pollfd polled = { .fd = sender, .events = POLLRDHUP };
	CHECK(poll(&polled, 1, 0) == 1 && polled.revents == POLLRDHUP, "the sender is not shut down any more: %#x", polled.revents);
	MUST(setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof(group)));
}

static int packets(int type, uint16_t protocol, int interface)
{
	struct sockaddr_ll name = { .sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = interface };
	int fd = MUST(socket(AF_PACKET, type, 0));
	MUST(bind(fd, (void *)&name, sizeof(name)));
	return fd;
}

static void say(const char *text)
{
	static int fds[2];
	struct sockaddr_in name = here;
	if (fds[0] == 0) {
		for (size_t i = 0; i < LENGTH(fds); i++)
			fds[i] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
		name.sin_port = htons(4711);
		MUST(bind(fds[0], (void *)&name, sizeof(name)));
		MUST(connect(fds[1], (void *)&name, sizeof(name)));
	}
	MUST(send(fds[1], text, strlen(text), 0));
}

static bool is_promiscuous(const char *interface)
{
	char line[8] = "", command[100];
	snprintf(command, sizeof(command), "ip -d link show %s | grep -o 'promiscuity [0-9]*' | cut -d ' ' -f 2", interface);
	FILE *told = popen(command, "r");
	CHECK(told != NULL && fgets(line, sizeof(line), told) != NULL, "ip says nothing");
	pclose(told);
	return strcmp(line, "0\n") != 0;
}

/* Of one interface and of all, with filters, memberships, in a group; one that only sends. */
CASE(packet)
{
	int all = packets(SOCK_RAW, ETH_P_ALL, LOOPBACK), cooked = packets(SOCK_DGRAM, ETH_P_IP, 0);
	int group[2] = { packets(SOCK_RAW, ETH_P_IP, LOOPBACK), packets(SOCK_RAW, ETH_P_IP, LOOPBACK) };
	int sender = MUST(socket(AF_PACKET, SOCK_RAW, 0)), deaf = packets(SOCK_RAW, ETH_P_ALL, LOOPBACK);
	struct packet_mreq membership = { .mr_ifindex = LOOPBACK, .mr_type = PACKET_MR_PROMISC };
	struct packet_mreq address = { .mr_ifindex = LOOPBACK, .mr_type = PACKET_MR_MULTICAST, .mr_alen = 6, .mr_address = { 1, 0, 0x5e, 1, 2, 3 } };
	struct sock_filter nothing[] = { BPF_STMT(BPF_RET | BPF_K, 0) };
	struct sock_fprog program = { LENGTH(nothing), nothing };
	MUST(setsockopt(deaf, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	set(deaf, SOL_SOCKET, SO_LOCK_FILTER, 1);
	set(all, SOL_PACKET, PACKET_AUXDATA, 1);
	set(all, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
	set(all, SOL_PACKET, PACKET_RESERVE, 8);
	for (int i = 0; i < 2; i++)
		MUST(setsockopt(all, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership, sizeof(membership)));
	MUST(setsockopt(all, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &address, sizeof(address)));
	set(cooked, SOL_PACKET, PACKET_ORIGDEV, 1);
	set(cooked, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
	for (size_t i = 0; i < LENGTH(group); i++)
		set(group[i], SOL_PACKET, PACKET_FANOUT, PACKET_FANOUT_LB << 16 | 77);
	set(sender, SOL_PACKET, PACKET_QDISC_BYPASS, 1);
	set(sender, SOL_PACKET, PACKET_VNET_HDR, 1);
	int shared = option(group[0], SOL_PACKET, PACKET_FANOUT);
	checkpoint();
	CHECK(option(all, SOL_PACKET, PACKET_AUXDATA) == 1 && option(all, SOL_PACKET, PACKET_VERSION) == TPACKET_V2, "options");
	CHECK(option(all, SOL_PACKET, PACKET_RESERVE) == 8, "PACKET_RESERVE");
	CHECK(option(cooked, SOL_PACKET, PACKET_ORIGDEV) == 1 && option(cooked, SOL_PACKET, PACKET_IGNORE_OUTGOING) == 1, "options");
	CHECK(option(sender, SOL_PACKET, PACKET_QDISC_BYPASS) == 1 && option(sender, SOL_PACKET, PACKET_VNET_HDR) == 1, "options");
	CHECK(option(group[1], SOL_PACKET, PACKET_FANOUT) == shared, "another group");
	CHECK(setsockopt(deaf, SOL_SOCKET, SO_DETACH_FILTER, &shared, sizeof(shared)) == -1 && errno == EPERM, "its filter goes");
	nothing_left_in(all);
	nothing_left_in(cooked);
	nothing_left_in(group[0]);
	nothing_left_in(group[1]);
	say("one");
	/* On its way out, and in. */
	hear(all, "one");
	hear(all, "one");
	hear(cooked, "one");
	nothing_left_in(cooked);
	/* The group hears what comes in, in turns. */
	say("two");
	char bytes[200];
	for (size_t i = 0; i < LENGTH(group); i++) {
		await_packet(group[i]);
		CHECK(recv(group[i], bytes, sizeof(bytes), MSG_DONTWAIT) > 3, "member %zu of the group hears nothing", i);
		nothing_left_in(group[i]);
	}
	/* A header of virtio, addresses, a protocol, two words. */
	static const char frame[] = "\0\0\0\0\0\0\0\0\0\0" "\0\0\0\0\0\0" "\0\0\0\0\0\0" "\x88\xb5" "raw word";
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_ifindex = LOOPBACK };
	MUST(sendto(sender, frame, sizeof(frame) - 1, 0, (void *)&to, sizeof(to)));
	hear_among_others(all, "raw word");
	nothing_left_in(deaf);
	for (int i = 0; i < 2; i++) {
		CHECK(is_promiscuous("lo"), "left after leaving %d times", i);
		MUST(setsockopt(all, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &membership, sizeof(membership)));
	}
	CHECK(!is_promiscuous("lo"), "not left");
	MUST(setsockopt(all, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &address, sizeof(address)));
}

/* An address of an interface. */
static struct sockaddr_in6 on(const char *address, uint32_t interface, uint16_t port)
{
	struct sockaddr_in6 name = { .sin6_family = AF_INET6, .sin6_scope_id = interface, .sin6_port = htons(port) };
	CHECK(inet_pton(AF_INET6, address, &name.sin6_addr) == 1, "%s", address);
	return name;
}

static void check_scope(int (*ask)(int, struct sockaddr *, socklen_t *), int fd, uint32_t interface)
{
	struct sockaddr_in6 name;
	socklen_t length = sizeof(name);
	MUST(ask(fd, (void *)&name, &length));
	CHECK(name.sin6_scope_id == interface, "interface %u of an address, not %u", name.sin6_scope_id, interface);
}

/* Two that are connected with each other, crr0 with fe80::1 and crr1 with fe80::2. They have other numbers afterwards. */
CASE(interfaces)
{
	uint32_t interface = if_nametoindex("crr0"), other = if_nametoindex("crr1");
	struct packet_mreq promiscuous = { .mr_ifindex = (int)interface, .mr_type = PACKET_MR_PROMISC };
	struct ip_mreqn group = { .imr_ifindex = (int)interface };
	struct ipv6_mreq group6 = { .ipv6mr_interface = interface };
	struct sockaddr_in6 own = on("fe80::1", interface, 4711), there = on("fe80::2", interface, 4712), sender;
	/* Of protocols that nobody speaks but this. */
	int bound = packets(SOCK_RAW, 0x88b5, (int)interface), member = packets(SOCK_DGRAM, 0x88b6, (int)other);
	int linked = MUST(socket(AF_INET6, SOCK_DGRAM, 0)), chosen = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	int plain = MUST(socket(AF_INET, SOCK_DGRAM, 0)), device = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	int neighbour = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	char name[IF_NAMESIZE] = "", bytes[100];
	socklen_t length = sizeof(sender);
	MUST(setsockopt(member, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof(promiscuous)));
	MUST(bind(linked, (void *)&own, sizeof(own)));
	there.sin6_scope_id = other;
	MUST(bind(neighbour, (void *)&there, sizeof(there)));
	there.sin6_scope_id = interface;
	MUST(connect(linked, (void *)&there, sizeof(there)));
	set(chosen, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)interface);
	set(chosen, IPPROTO_IPV6, IPV6_UNICAST_IF, (int)htonl(interface));
	set(plain, IPPROTO_IP, IP_UNICAST_IF, (int)htonl(interface));
	MUST(inet_pton(AF_INET, "239.1.2.3", &group.imr_multiaddr) - 1);
	MUST(setsockopt(plain, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group)));
	MUST(inet_pton(AF_INET6, "ff02::1234", &group6.ipv6mr_multiaddr) - 1);
	MUST(setsockopt(chosen, IPPROTO_IPV6, IPV6_JOIN_GROUP, &group6, sizeof(group6)));
	MUST(setsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, "crr0", 5));
	checkpoint();
	interface = if_nametoindex("crr0");
	other = if_nametoindex("crr1");
	struct sockaddr_ll at;
	length = sizeof(at);
	MUST(getsockname(bound, (void *)&at, &length));
	CHECK(at.sll_ifindex == (int)interface, "bound to interface %d, not %u", at.sll_ifindex, interface);
	CHECK(is_promiscuous("crr0"), "not a member");
	promiscuous.mr_ifindex = (int)interface;
	MUST(setsockopt(member, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &promiscuous, sizeof(promiscuous)));
	CHECK(!is_promiscuous("crr0"), "still a member");
	check_scope(getsockname, linked, interface);
	check_scope(getpeername, linked, interface);
	check_scope(getsockname, neighbour, other);
	CHECK(option(chosen, IPPROTO_IPV6, IPV6_MULTICAST_IF) == (int)interface, "IPV6_MULTICAST_IF");
	CHECK(option(chosen, IPPROTO_IPV6, IPV6_UNICAST_IF) == (int)htonl(interface), "IPV6_UNICAST_IF");
	CHECK(option(plain, IPPROTO_IP, IP_UNICAST_IF) == (int)htonl(interface), "IP_UNICAST_IF");
	group.imr_ifindex = (int)interface;
	MUST(setsockopt(plain, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof(group)));
	group6.ipv6mr_interface = interface;
	MUST(setsockopt(chosen, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &group6, sizeof(group6)));
	length = sizeof(name);
	MUST(getsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
	CHECK(strcmp(name, "crr0") == 0, "bound to %s", name);
	/* Over the wire. */
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_ifindex = (int)other };
	static const char frame[] = "\xff\xff\xff\xff\xff\xff" "\0\0\0\0\0\1" "\x88\xb5" "over the wire";
	MUST(sendto(packets(SOCK_RAW, 0, 0), frame, sizeof(frame) - 1, 0, (void *)&to, sizeof(to)));
	hear(bound, "over the wire");
	MUST(send(linked, "hello", 5, 0));
	await_packet(neighbour);
	length = sizeof(sender);
	CHECK(recvfrom(neighbour, bytes, sizeof(bytes), 0, (void *)&sender, &length) == 5, "another message");
}

/* What is in their queues cannot be put back: it is lost, or in the way. */
CASE(unread)
{
	int raw = MUST(socket(AF_INET, SOCK_RAW, EXPERIMENT)), packet = packets(SOCK_DGRAM, ETH_P_IP, LOOPBACK);
	MUST(sendto(raw, "before", 6, 0, (const void *)&here, sizeof(here)));
	await_packet(raw);
	await_packet(packet);
	checkpoint();
	nothing_left_in(raw);
	nothing_left_in(packet);
	MUST(sendto(raw, "after", 5, 0, (const void *)&here, sizeof(here)));
	hear(raw, "after");
	hear(packet, "after");
}
