//! Options of sockets: read and set as they are, whatever they mean.

use crate::sys::socket as sys;
use anyhow::{Context, Result, bail};
use images::socket_option::{SocketOption, SocketOptions};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

pub(crate) const SO_LOCK_FILTER: i32 = 44;

/// How an option that getsockopt shows is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// setsockopt with the same value.
    Same,
    /// As [`How::Same`], as far as there is something to be had: sock_reserve_memory() of net/core/sock.c takes it from the memory cgroup of who made the socket, and
    /// the root one has none. Without it the socket works as well.
    Reserve,
    /// As [`How::Same`], by root also beyond the limit of the system; the kernel doubles what it is given.
    Buffer { force: i32 },
}

/// The options of a level that are kept, in the order in which they are set.
pub(crate) type Level = (i32, &'static [(i32, How)]);

/// SOL_SOCKET, by include/uapi/asm-generic/socket.h: the sizes of buffers before what says that they were chosen
/// (SO_BUF_LOCK), what changes how messages are read after everything else.
pub(crate) const SOCKET: Level = (
    libc::SOL_SOCKET,
    &[
        (25, How::Same), // SO_BINDTODEVICE
        (SO_SNDBUF, How::Buffer { force: 32 }),
        (SO_RCVBUF, How::Buffer { force: 33 }),
        (72, How::Same),    // SO_BUF_LOCK
        (73, How::Reserve), // SO_RESERVE_MEM
        (1, How::Same),     // SO_DEBUG
        (SO_REUSEADDR, How::Same),
        (5, How::Same),  // SO_DONTROUTE
        (6, How::Same),  // SO_BROADCAST
        (9, How::Same),  // SO_KEEPALIVE
        (10, How::Same), // SO_OOBINLINE
        (11, How::Same), // SO_NO_CHECK
        (12, How::Same), // SO_PRIORITY
        (13, How::Same), // SO_LINGER
        (15, How::Same), // SO_REUSEPORT
        (16, How::Same), // SO_PASSCRED
        (18, How::Same), // SO_RCVLOWAT
        (20, How::Same), // SO_RCVTIMEO
        (21, How::Same), // SO_SNDTIMEO
        (29, How::Same), // SO_TIMESTAMP
        (35, How::Same), // SO_TIMESTAMPNS
        (60, How::Same), // SO_ZEROCOPY
        (63, How::Same), // SO_TIMESTAMP_NEW
        (64, How::Same), // SO_TIMESTAMPNS_NEW
        (34, How::Same), // SO_PASSSEC
        (36, How::Same), // SO_MARK
        (40, How::Same), // SO_RXQ_OVFL
        (41, How::Same), // SO_WIFI_STATUS
        (43, How::Same), // SO_NOFCS
        (45, How::Same), // SO_SELECT_ERR_QUEUE
        (46, How::Same), // SO_BUSY_POLL
        (47, How::Same), // SO_MAX_PACING_RATE
        (49, How::Same), // SO_INCOMING_CPU
        (61, How::Same), // SO_TXTIME
        (69, How::Same), // SO_PREFER_BUSY_POLL
        (74, How::Same), // SO_TXREHASH
        (75, How::Same), // SO_RCVMARK
        (76, How::Same), // SO_PASSPIDFD
        (82, How::Same), // SO_RCVPRIORITY
        (83, How::Same), // SO_PASSRIGHTS
        (SO_LOCK_FILTER, How::Same),
        (37, How::Same), // SO_TIMESTAMPING
        (65, How::Same), // SO_TIMESTAMPING_NEW
        (SO_PEEK_OFF, How::Same),
    ],
);

/// IPPROTO_IP, by include/uapi/linux/in.h. Where getsockopt shows the default of the system, so does a new socket. Before SOL_SOCKET:
/// IP_TOS changes SO_PRIORITY.
pub(crate) const IP: Level = (
    libc::IPPROTO_IP,
    &[
        (1, How::Same),  // IP_TOS
        (2, How::Same),  // IP_TTL
        (3, How::Same),  // IP_HDRINCL
        (4, How::Same),  // IP_OPTIONS
        (5, How::Same),  // IP_ROUTER_ALERT
        (6, How::Same),  // IP_RECVOPTS
        (7, How::Same),  // IP_RETOPTS
        (8, How::Same),  // IP_PKTINFO
        (10, How::Same), // IP_MTU_DISCOVER
        (11, How::Same), // IP_RECVERR
        (12, How::Same), // IP_RECVTTL
        (13, How::Same), // IP_RECVTOS
        (15, How::Same), // IP_FREEBIND
        (18, How::Same), // IP_PASSSEC
        (19, How::Same), // IP_TRANSPARENT
        (20, How::Same), // IP_RECVORIGDSTADDR
        (21, How::Same), // IP_MINTTL
        (22, How::Same), // IP_NODEFRAG
        (23, How::Same), // IP_CHECKSUM
        (24, How::Same), // IP_BIND_ADDRESS_NO_PORT
        (25, How::Same), // IP_RECVFRAGSIZE
        (26, How::Same), // IP_RECVERR_RFC4884
        (50, How::Same), // IP_UNICAST_IF
        (51, How::Same), // IP_LOCAL_PORT_RANGE
    ],
);

/// IPPROTO_IPV6, by include/uapi/linux/in6.h and ipv6.h.
pub(crate) const IPV6: Level = (
    libc::IPPROTO_IPV6,
    &[
        (26, How::Same), // IPV6_V6ONLY
        (2, How::Same),  // IPV6_2292PKTINFO
        (3, How::Same),  // IPV6_2292HOPOPTS
        (4, How::Same),  // IPV6_2292DSTOPTS
        (5, How::Same),  // IPV6_2292RTHDR
        (8, How::Same),  // IPV6_2292HOPLIMIT
        (11, How::Same), // IPV6_FLOWINFO
        (16, How::Same), // IPV6_UNICAST_HOPS
        (23, How::Same), // IPV6_MTU_DISCOVER
        (25, How::Same), // IPV6_RECVERR
        (31, How::Same), // IPV6_RECVERR_RFC4884
        (33, How::Same), // IPV6_FLOWINFO_SEND
        (49, How::Same), // IPV6_RECVPKTINFO
        (51, How::Same), // IPV6_RECVHOPLIMIT
        (53, How::Same), // IPV6_RECVHOPOPTS
        (54, How::Same), // IPV6_HOPOPTS
        (55, How::Same), // IPV6_RTHDRDSTOPTS
        (56, How::Same), // IPV6_RECVRTHDR
        (57, How::Same), // IPV6_RTHDR
        (58, How::Same), // IPV6_RECVDSTOPTS
        (59, How::Same), // IPV6_DSTOPTS
        (60, How::Same), // IPV6_RECVPATHMTU
        (62, How::Same), // IPV6_DONTFRAG
        (66, How::Same), // IPV6_RECVTCLASS
        (67, How::Same), // IPV6_TCLASS
        (70, How::Same), // IPV6_AUTOFLOWLABEL
        (72, How::Same), // IPV6_ADDR_PREFERENCES
        (73, How::Same), // IPV6_MINHOPCOUNT
        (74, How::Same), // IPV6_RECVORIGDSTADDR
        (75, How::Same), // IPV6_TRANSPARENT
        (76, How::Same), // IPV6_UNICAST_IF
        (77, How::Same), // IPV6_RECVFRAGSIZE
        (30, How::Same), // IPV6_ROUTER_ALERT_ISOLATE
        (78, How::Same), // IPV6_FREEBIND
    ],
);

/// IPPROTO_IP of datagram sockets: of others, the kernel keeps something else there.
pub(crate) const IP_MULTICAST: Level = (
    libc::IPPROTO_IP,
    &[
        (32, How::Same), // IP_MULTICAST_IF
        (33, How::Same), // IP_MULTICAST_TTL
        (34, How::Same), // IP_MULTICAST_LOOP
        (49, How::Same), // IP_MULTICAST_ALL
    ],
);

/// IPPROTO_IPV6 of datagram sockets.
pub(crate) const IPV6_MULTICAST: Level = (
    libc::IPPROTO_IPV6,
    &[
        (17, How::Same), // IPV6_MULTICAST_IF
        (18, How::Same), // IPV6_MULTICAST_HOPS
        (19, How::Same), // IPV6_MULTICAST_LOOP
        (29, How::Same), // IPV6_MULTICAST_ALL
    ],
);

/// IPPROTO_TCP, by include/uapi/linux/tcp.h.
pub(crate) const TCP: Level = (
    libc::IPPROTO_TCP,
    &[
        (1, How::Same), // TCP_NODELAY
        (3, How::Same), // TCP_CORK
        (4, How::Same), // TCP_KEEPIDLE
        (5, How::Same), // TCP_KEEPINTVL
        (6, How::Same), // TCP_KEEPCNT
        (7, How::Same), // TCP_SYNCNT
        (8, How::Same), // TCP_LINGER2
        (9, How::Same), // TCP_DEFER_ACCEPT
        (TCP_QUICKACK, How::Same),
        (TCP_WINDOW_CLAMP, How::Same),
        (13, How::Same), // TCP_CONGESTION
        (16, How::Same), // TCP_THIN_LINEAR_TIMEOUTS
        (18, How::Same), // TCP_USER_TIMEOUT
        (23, How::Same), // TCP_FASTOPEN
        (25, How::Same), // TCP_NOTSENT_LOWAT
        (27, How::Same), // TCP_SAVE_SYN
        (30, How::Same), // TCP_FASTOPEN_CONNECT
        (33, How::Same), // TCP_FASTOPEN_KEY: nothing where the socket has that of the network namespace
        (34, How::Same), // TCP_FASTOPEN_NO_COOKIE
        (36, How::Same), // TCP_INQ
        (37, How::Same), // TCP_TX_DELAY
        (44, How::Same), // TCP_RTO_MAX_MS
        (45, How::Same), // TCP_RTO_MIN_US
        (46, How::Same), // TCP_DELACK_MAX_US
    ],
);

/// IPPROTO_TCP of sockets that are not connected: of others it is what is negotiated that is shown.
pub(crate) const TCP_BEFORE: Level = (
    libc::IPPROTO_TCP,
    &[
        (2, How::Same), // TCP_MAXSEG
    ],
);

/// IPPROTO_UDP, by include/uapi/linux/udp.h; of UDP-Lite, too.
pub(crate) const UDP: Level = (
    libc::IPPROTO_UDP,
    &[
        (1, How::Same),   // UDP_CORK
        (100, How::Same), // UDP_ENCAP
        (101, How::Same), // UDP_NO_CHECK6_TX
        (102, How::Same), // UDP_NO_CHECK6_RX
        (103, How::Same), // UDP_SEGMENT
        (104, How::Same), // UDP_GRO
    ],
);

/// IPPROTO_UDPLITE.
pub(crate) const UDP_LITE: Level = (
    libc::IPPROTO_UDPLITE,
    &[
        (10, How::Same), // UDPLITE_SEND_CSCOV
        (11, How::Same), // UDPLITE_RECV_CSCOV
    ],
);

/// SOL_RAW, by include/uapi/linux/icmp.h and in6.h. For the raw sockets of ICMPv6, the kernel takes IPV6_CHECKSUM at this level only.
pub(crate) const RAW: Level = (
    255,
    &[
        (1, How::Same),  // ICMP_FILTER
        (7, How::Same),  // IPV6_CHECKSUM
        (36, How::Same), // IPV6_HDRINCL
    ],
);

/// SOL_ICMPV6, by include/uapi/linux/icmpv6.h.
pub(crate) const ICMPV6: Level = (
    libc::IPPROTO_ICMPV6,
    &[
        (1, How::Same), // ICMPV6_FILTER
    ],
);

/// SOL_PACKET, by include/uapi/linux/if_packet.h. Not PACKET_STATISTICS, which are counted anew whenever somebody asks.
pub(crate) const PACKET: Level = (
    263,
    &[
        (7, How::Same),  // PACKET_COPY_THRESH
        (8, How::Same),  // PACKET_AUXDATA
        (9, How::Same),  // PACKET_ORIGDEV
        (10, How::Same), // PACKET_VERSION
        (12, How::Same), // PACKET_RESERVE
        (14, How::Same), // PACKET_LOSS
        (15, How::Same), // PACKET_VNET_HDR
        (24, How::Same), // PACKET_VNET_HDR_SZ
        (17, How::Same), // PACKET_TIMESTAMP
        (19, How::Same), // PACKET_TX_HAS_OFF
        (20, How::Same), // PACKET_QDISC_BYPASS
        (23, How::Same), // PACKET_IGNORE_OUTGOING
    ],
);

/// SOL_NETLINK, by include/uapi/linux/netlink.h.
pub(crate) const NETLINK: Level = (
    270,
    &[
        (3, How::Same),  // NETLINK_PKTINFO
        (4, How::Same),  // NETLINK_BROADCAST_ERROR
        (5, How::Same),  // NETLINK_NO_ENOBUFS
        (8, How::Same),  // NETLINK_LISTEN_ALL_NSID
        (10, How::Same), // NETLINK_CAP_ACK
        (11, How::Same), // NETLINK_EXT_ACK
        (12, How::Same), // NETLINK_GET_STRICT_CHK
    ],
);

const LEVELS: [Level; 13] = [
    NETLINK,
    PACKET,
    SOCKET,
    IP,
    IP_MULTICAST,
    IPV6,
    IPV6_MULTICAST,
    TCP,
    TCP_BEFORE,
    UDP,
    UDP_LITE,
    RAW,
    ICMPV6,
];

/// SO_REUSEADDR.
pub(crate) const SO_REUSEADDR: i32 = 2;
/// SO_SNDBUF.
pub(crate) const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
/// SO_PEEK_OFF.
pub(crate) const SO_PEEK_OFF: i32 = 42;
/// TCP_WINDOW_CLAMP.
pub(crate) const TCP_WINDOW_CLAMP: i32 = 10;
/// TCP_QUICKACK: whether what is received is acknowledged at once (1), or with what is sent.
pub(crate) const TCP_QUICKACK: i32 = 12;
/// SO_SNDBUFFORCE.
pub(crate) const SO_SNDBUFFORCE: i32 = 32;

/// Reads all options of these levels that this kernel and this family know.
///
/// # Errors
/// What getsockopt answers other than that.
pub(crate) fn dump(socket: BorrowedFd<'_>, levels: &[Level]) -> Result<SocketOptions> {
    let mut options = SocketOptions::default();
    for &(level, names) in levels {
        for &(name, _) in names {
            match sys::option(socket, level, name) {
                Ok(value) => {
                    let (level, name) = (level.cast_unsigned(), name.cast_unsigned());
                    options.push(&SocketOption { level, name, value: &value });
                }
                Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("getsockopt of option {level}:{name}"));
                }
            }
        }
    }
    options.shrink_to_fit();
    Ok(options)
}

/// [`restore`] for a socket with this filter of classic BPF, if it is not empty: the lock of the filter (SO_LOCK_FILTER) comes last.
pub(crate) fn restore_with_filter(
    socket: BorrowedFd<'_>,
    options: &SocketOptions,
    filter: &[u8],
) -> Result<()> {
    let locks = |option: &SocketOption<'_>| {
        (option.level.cast_signed(), option.name.cast_signed()) == (libc::SOL_SOCKET, SO_LOCK_FILTER)
    };
    restore(socket, options.iter().filter(|option| !locks(option)))?;
    if !filter.is_empty() {
        sys::attach_filter(socket, filter).context("attach its filter")?;
    }
    restore(socket, options.iter().filter(locks))
}

/// SO_TXREHASH, by which only TCP does anything. Sockets of other families have it, as 0, on Linux 5.18 to 6.12.
const TXREHASH: (i32, i32) = (libc::SOL_SOCKET, 74);

fn is_internet(socket: BorrowedFd<'_>) -> Result<bool> {
    let family = sys::number(socket, libc::SOL_SOCKET, libc::SO_DOMAIN).context("SO_DOMAIN")?;
    Ok(matches!(family, libc::AF_INET | libc::AF_INET6))
}

/// What a kernel without an option does, as the value of that option, where it is not 0: those that came since Linux 5.10.
const WITHOUT: [(i32, i32, i32); 5] = [
    (TXREHASH.0, TXREHASH.1, 1),
    (libc::SOL_SOCKET, 83, 1),        // SO_PASSRIGHTS
    (libc::IPPROTO_TCP, 44, 120_000), // TCP_RTO_MAX_MS: TCP_RTO_MAX_SEC of include/net/tcp.h
    (libc::IPPROTO_TCP, 45, 200_000), // TCP_RTO_MIN_US
    (libc::IPPROTO_TCP, 46, 200_000), // TCP_DELACK_MAX_US
];

/// Whether a socket of a kernel that does not know an option is as if it had this value.
fn goes_without(level: i32, name: i32, value: &[u8]) -> bool {
    match WITHOUT.iter().find(|(of, option, _)| (*of, *option) == (level, name)) {
        Some((.., wanted)) => value == wanted.to_ne_bytes(),
        None => value.iter().all(|&byte| byte == 0),
    }
}

/// Sets those options that differ from what a socket has now.
///
/// # Errors
/// An option that this kernel does not take, and does not do without.
pub(crate) fn restore<'a>(
    socket: BorrowedFd<'_>,
    options: impl IntoIterator<Item = SocketOption<'a>>,
) -> Result<()> {
    for option in options {
        let (level, name) = (option.level.cast_signed(), option.name.cast_signed());
        let set = || -> Result<()> {
            match sys::option(socket, level, name) {
                Ok(now) if now == option.value => return Ok(()),
                // Sockets of this family do nothing by it, though older kernels kept it for them (SO_TXREHASH of netlink on Linux 6.12).
                Err(Errno::EOPNOTSUPP) => return Ok(()),
                Err(Errno::ENOPROTOOPT) if goes_without(level, name, option.value) => return Ok(()),
                Err(Errno::ENOPROTOOPT) if (level, name) == TXREHASH && !is_internet(socket)? => {
                    return Ok(());
                }
                _ => {}
            }
            let of_level = LEVELS.iter().filter(|(known, _)| *known == level);
            match of_level.flat_map(|(_, names)| *names).find(|(known, _)| *known == name) {
                Some((_, How::Buffer { force })) => set_buffer(socket, *force, name, option.value),
                Some((_, How::Reserve)) => match sys::set_option(socket, level, name, option.value) {
                    Err(errno @ (Errno::EOPNOTSUPP | Errno::ENOMEM)) => {
                        log::warn!("memory of a socket is not reserved (SO_RESERVE_MEM): {}", errno.desc());
                        Ok(())
                    }
                    set => Ok(set?),
                },
                Some((_, How::Same)) => Ok(sys::set_option(socket, level, name, option.value)?),
                None => bail!("unknown"),
            }
        };
        set().with_context(|| format!("socket option {level}:{name}"))?;
    }
    Ok(())
}

/// What getsockopt shows is twice what setsockopt was given, or a lower limit.
fn set_buffer(socket: BorrowedFd<'_>, force: i32, name: i32, value: &[u8]) -> Result<()> {
    let wanted = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).context("not a number")?;
    let half = (wanted / 2).to_ne_bytes();
    sys::set_option(socket, libc::SOL_SOCKET, force, &half)?;
    let now = sys::number(socket, libc::SOL_SOCKET, name)?;
    // An odd size is one that the kernel has chosen by itself, and may change again.
    if now != wanted && now != wanted - 1 {
        bail!("is {now} instead of {wanted} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn options_move_from_one_socket_to_another() {
        let (a, b) = UnixStream::pair().unwrap();
        let set = |name, value: i32| {
            sys::set_option(a.as_fd(), libc::SOL_SOCKET, name, &value.to_ne_bytes()).unwrap();
        };
        for (name, value) in [(7, 100_000), (12, 3), (16, 1), (18, 77), (SO_PEEK_OFF, 5), (64, 1)] {
            set(name, value);
        }
        let dumped = dump(a.as_fd(), &[SOCKET]).unwrap();
        assert_ne!(dump(b.as_fd(), &[SOCKET]).unwrap(), dumped);
        restore(b.as_fd(), &dumped).unwrap();
        assert_eq!(dump(b.as_fd(), &[SOCKET]).unwrap(), dumped);
    }

    #[test]
    fn an_option_that_is_not_known_may_be_as_it_is_without() {
        let (socket, _) = UnixStream::pair().unwrap();
        let level = libc::SOL_SOCKET.cast_unsigned();
        let set = |name, value: i32| {
            restore(socket.as_fd(), [SocketOption { level, name, value: &value.to_ne_bytes() }])
        };
        set(10_000, 0).unwrap();
        assert!(set(10_000, 1).is_err());
        // SO_TXREHASH, which unix sockets do not have.
        assert!(goes_without(libc::SOL_SOCKET, 74, &1i32.to_ne_bytes()));
        assert!(!goes_without(libc::SOL_SOCKET, 74, &0i32.to_ne_bytes()));
        set(74, 0).unwrap();
    }
}
