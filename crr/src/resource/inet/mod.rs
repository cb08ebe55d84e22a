//! Sockets of the internet families: TCP with its connections, UDP, ICMP, raw ones.
//!
//! What a socket shows while it is in use by nobody is noted with the other files. Connections are looked at last, when nothing
//! else is in the way of the dump: it takes repair mode, and that what the other ends send is held ([`hold`], [`stream`]).

mod address;
mod check;
mod diag;
pub(crate) mod hold;
mod inject;
mod listed;
mod multicast;
mod queue;
pub(crate) mod recreate;
mod stream;
mod unsent;
mod urgent;

pub(crate) use address::Shown;
pub(crate) use check::READ_PACKETS;
pub(crate) use diag::are_connected;
pub use recreate::Wishes;
pub(crate) use stream::Silenced;

use super::Refuse;
use super::interface;
use super::path::CLOSE;
use super::socket::option;
use super::unix_socket::Holder;
use crate::sys::{socket as sys, tcp};
use anyhow::{Context, Result, bail};
use hold::Hold;
use images::inet::{Datagram, InetAddress, InetProtocol, InetSocket, InetState};
use nix::errno::Errno;
use nix::sys::stat::FileStat;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// What a dump does about connections that reach out of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpPolicy {
    /// Refuses them.
    #[default]
    Refuse,
    /// Dumps them (`--tcp-established`).
    Keep,
    /// Has their sockets come back closed (`--tcp-close`).
    Close,
}

/// How the traffic of connections is held while their tree is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkLock {
    /// By a table of nftables.
    #[default]
    Nftables,
    /// Not by crr: the network is to be cut otherwise.
    Skip,
}

/// What a user says about sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Of connections that reach out of the tree.
    pub tcp: TcpPolicy,
    /// Connections that wait to be accepted, and packets that cannot be put back, are lost, without a refusal (`--skip-in-flight`).
    pub skip_in_flight: bool,
    /// How traffic is held.
    pub lock: NetworkLock,
}

/// A socket with a descriptor of ours on it.
#[derive(Debug)]
struct Found {
    socket: Rc<OwnedFd>,
    holder: Holder,
    record: InetSocket,
    /// State of a TCP socket.
    state: u8,
}

impl Found {
    /// Whether it has a connection that is to be looked at: it is not given up, and not looked at yet.
    fn has_connection(&self) -> bool {
        is_connected(self.state) && self.record.state == InetState::Closed
    }

    /// As an error names it.
    fn named(&self) -> String {
        let Holder { pid, name, object } = &self.holder;
        format!("task {pid} ({name}): {object}")
    }

    /// Where it listens, if it does.
    fn listens_at(&self) -> Option<SocketAddr> {
        let local =
            self.record.local.as_ref().filter(|_| matches!(self.record.state, InetState::Listening(_)));
        local.map(address::on_the_wire)
    }
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    found: Vec<Found>,
    joined: multicast::Joined,
    /// The table that holds the traffic of their connections.
    hold: Option<String>,
}

impl Sockets {
    /// Adds a socket; `None` when it is refused. Connections are looked at later.
    pub(crate) fn add(
        &mut self,
        socket: OwnedFd,
        stat: &FileStat,
        holder: Holder,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<u32>> {
        let fd = socket.as_fd();
        let Some(protocol) = protocol(fd)? else {
            refuse.with_hint(&holder.object, format!("{} sockets are not supported", kind_of(fd)?), CLOSE);
            return Ok(None);
        };
        let v6 = sys::number(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).context("SO_DOMAIN")? == libc::AF_INET6;
        if let Some(reason) = obstacle(fd, protocol, v6)? {
            refuse.with_hint(&holder.object, reason, CLOSE);
            return Ok(None);
        }
        let info = (protocol == InetProtocol::Tcp).then(|| tcp::info(fd)).transpose().context("TCP_INFO")?;
        let events = sys::events(fd).context("poll")?;
        let state = match info.map_or(tcp::CLOSE, |info| info.state) {
            tcp::LISTEN => InetState::Listening(info.map_or(0, |info| info.backlog)),
            tcp::SYN_SENT => InetState::Connecting,
            tcp::CLOSE if info.is_some() && events & libc::POLLRDHUP != 0 => InetState::Ended(Vec::new()),
            _ => InetState::Closed,
        };
        let was_connected = info.is_some_and(|info| is_connected(info.state))
            || matches!(state, InetState::Connecting | InetState::Ended(_));
        let record = InetSocket {
            ino: stat.st_ino,
            v6,
            protocol,
            local: address::local(fd).context("getsockname")?,
            peer: address::peer(fd),
            state,
            shutdown: match protocol {
                // datagram_poll() of net/core/datagram.c
                InetProtocol::Udp | InetProtocol::UdpLite | InetProtocol::Ping | InetProtocol::Raw(_)
                    if events & libc::POLLHUP != 0 =>
                {
                    3
                }
                _ => u32::from(events & libc::POLLRDHUP != 0),
            },
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            options: option::dump(fd, &levels(protocol, v6, was_connected))?,
            filter: sys::filter(fd).context("SO_GET_FILTER")?,
            memberships: multicast::dump(fd, protocol, v6, &mut self.joined)?,
            queue: Vec::new(),
        };
        let state = info.map_or(tcp::CLOSE, |info| info.state);
        let index = u32::try_from(self.found.len()).context("too many sockets")?;
        self.found.push(Found { socket: Rc::new(socket), holder, record, state });
        Ok(Some(index))
    }

    /// Whether there are connections to be looked at.
    pub(crate) fn has_connections(&self) -> bool {
        self.found.iter().any(Found::has_connection)
    }

    /// The connected TCP sockets, by what each names its connection.
    fn connected(&self) -> HashMap<Ends, usize> {
        let connected = |(index, found): (usize, &Found)| {
            let ends = Ends::of(&found.record).ok().filter(|_| is_connected(found.state))?;
            Some((ends, index))
        };
        self.found.iter().enumerate().filter_map(connected).collect()
    }

    /// Looks at all connections. The dump is sure to come about otherwise.
    ///
    /// # Errors
    /// If traffic cannot be held, or repair mode is not to be had.
    pub(crate) fn look_at_connections(&mut self, policy: Policy) -> Result<Silenced> {
        let connected: Vec<usize> =
            (0..self.found.len()).filter(|&index| self.found[index].has_connection()).collect();
        let all = self.connected();
        let mut outside = Vec::new();
        for &index in &connected {
            let record = &self.found[index].record;
            if !all.contains_key(&Ends::of(record)?.seen_from_there()) {
                outside.push(addresses(record)?);
            }
        }
        let given_up: Vec<usize> = (0..self.found.len())
            .filter(|&index| {
                is_connected(self.found[index].state)
                    && matches!(self.found[index].record.state, InetState::Ended(_))
            })
            .collect();
        let hold = match policy.lock {
            NetworkLock::Nftables if !outside.is_empty() => Some(Hold::new()?),
            _ => None,
        };
        self.hold = hold.as_ref().map(|hold| hold.table().to_owned());
        let silenced = {
            let sockets = connected.iter().map(|&index| &self.found[index].socket);
            let given_up = given_up.iter().map(|&index| &self.found[index].socket);
            Silenced::new(sockets, given_up, hold, &outside)?
        };
        let named = |at: usize| self.found[connected[at]].named();
        let connections = silenced.look(named)?;
        for (&index, connection) in connected.iter().zip(connections) {
            self.found[index].record.state = InetState::Connected(connection);
        }
        for &index in &connected {
            let there = Ends::of(&self.found[index].record)?.seen_from_there();
            let Some(&other) = all.get(&there) else { continue };
            let InetState::Connected(there) = &self.found[other].record.state else { continue };
            let received = there.receive_seq;
            if let InetState::Connected(here) = &mut self.found[index].record.state {
                here.other_end = Some(u32::try_from(other)?);
                // Sent after this end was looked at, and before the other one was.
                let not_there = here.send_seq.wrapping_sub(received);
                here.unsent = here.unsent.min(not_there);
            }
        }
        self.refuse_foreign(&connected)?;
        Ok(silenced)
    }

    /// Fails if a restore would have to send a packet that leaves this machine, for one of these: by what has come since [`Sockets::check`].
    fn refuse_foreign(&self, connected: &[usize]) -> Result<()> {
        let sent = || {
            connected
                .iter()
                .map(|&index| &self.found[index])
                .filter(|found| inject::has_packet_sent(&found.record))
        };
        if sent().next().is_none() {
            return Ok(());
        }
        let own = inject::Own::addresses()?;
        let foreign = sent().find(|found| found.record.local.is_some_and(|local| !own.has(&local)));
        foreign.map_or(Ok(()), |found| {
            bail!("{}: has urgent data (MSG_OOB), or the end of a stream, to be read at an address that is none of this machine", found.named())
        })
    }

    /// The inodes of all, each with one who has it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (u64, &Holder)> {
        self.found.iter().map(|found| (found.record.ino, &found.holder))
    }

    /// The interfaces that they have to do with, each with who has the socket.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = (u32, &Holder)> {
        self.found
            .iter()
            .flat_map(|found| interface::of_inet(&found.record).map(|number| (number, &found.holder)))
    }

    /// All records, and the table that holds the traffic of connections.
    pub(crate) fn into_records(self) -> (Vec<InetSocket>, Option<String>) {
        (self.found.into_iter().map(|found| found.record).collect(), self.hold)
    }
}

/// A connection as one end of it names it, with addresses as they are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    local: SocketAddr,
    peer: SocketAddr,
}

impl Ends {
    fn of(record: &InetSocket) -> Result<Self> {
        let (local, peer) = addresses(record)?;
        Ok(Self { local: address::on_the_wire(&local), peer: address::on_the_wire(&peer) })
    }

    /// The same connection, as the other end names it.
    fn seen_from_there(self) -> Self {
        Self { local: self.peer, peer: self.local }
    }
}

/// Whether a socket that listens at `own` hears who calls `there`.
fn listens_at(own: SocketAddr, there: SocketAddr) -> bool {
    own.port() == there.port() && (own.ip() == there.ip() || own.ip().is_unspecified())
}

/// Whether a datagram is of this peer of the socket that has it.
fn is_from(datagram: &Datagram, peer: &InetAddress) -> bool {
    address::on_the_wire(&datagram.sender) == address::on_the_wire(peer)
}

/// Whether a TCP socket has a connection that is, or was, established, and has not ended.
fn is_connected(state: u8) -> bool {
    !matches!(state, tcp::CLOSE | tcp::LISTEN | tcp::SYN_SENT)
}

fn addresses(record: &InetSocket) -> Result<(InetAddress, InetAddress)> {
    Ok((
        record.local.context("a connection without a local address")?,
        record.peer.context("… without a peer")?,
    ))
}

/// The protocols that are supported.
fn protocol(fd: BorrowedFd<'_>) -> Result<Option<InetProtocol>> {
    let number = |name| sys::number(fd, libc::SOL_SOCKET, name).context("getsockopt");
    Ok(match (number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => Some(InetProtocol::Tcp),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Some(InetProtocol::Udp),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE) => Some(InetProtocol::UdpLite),
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => Some(InetProtocol::Ping),
        (libc::SOCK_RAW, protocol) => Some(InetProtocol::Raw(u16::try_from(protocol)?)),
        _ => None,
    })
}

/// What to call a socket of another protocol.
fn kind_of(fd: BorrowedFd<'_>) -> Result<String> {
    // include/uapi/linux/in.h.
    const IPPROTO_L2TP: i32 = 115;
    const IPPROTO_SMC: i32 = 256;
    let number = |name| sys::number(fd, libc::SOL_SOCKET, name).context("getsockopt");
    Ok(match (number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?) {
        (_, libc::IPPROTO_SCTP) => "SCTP".to_owned(),
        (_, libc::IPPROTO_MPTCP) => "MPTCP".to_owned(),
        (_, libc::IPPROTO_DCCP) => "DCCP".to_owned(),
        (_, IPPROTO_L2TP) => "L2TP".to_owned(),
        (_, IPPROTO_SMC) => "SMC".to_owned(),
        (_, protocol) => format!("inet (protocol {protocol})"),
    })
}

/// The levels of options that a socket of this protocol has, in the order in which they are set.
fn levels(protocol: InetProtocol, v6: bool, was_connected: bool) -> Vec<option::Level> {
    let mut levels = vec![option::IP];
    if v6 {
        levels.push(option::IPV6);
    }
    levels.push(option::SOCKET);
    if protocol != InetProtocol::Tcp {
        levels.push(option::IP_MULTICAST);
        if v6 {
            levels.push(option::IPV6_MULTICAST);
        }
    }
    match protocol {
        InetProtocol::Tcp => levels.push(option::TCP),
        InetProtocol::Udp => levels.push(option::UDP),
        InetProtocol::UdpLite => levels.extend([option::UDP, option::UDP_LITE]),
        InetProtocol::Ping => {}
        InetProtocol::Raw(_) => levels.extend([option::RAW, option::ICMPV6]),
    }
    if protocol == InetProtocol::Tcp && !was_connected {
        levels.push(option::TCP_BEFORE);
    }
    levels
}

/// What a socket has that cannot be put back.
fn obstacle(fd: BorrowedFd<'_>, protocol: InetProtocol, v6: bool) -> Result<Option<String>> {
    if sys::filter_length(fd).is_err() {
        return Ok(Some("a socket with an eBPF filter (SO_ATTACH_BPF) is not supported".to_owned()));
    }
    if let InetProtocol::Raw(protocol) = protocol
        && may_route_multicast(protocol.into(), v6)?
    {
        return Ok(Some("multicast routing (MRT_INIT) may be its doing, and is not supported".to_owned()));
    }
    const IPV6_ROUTER_ALERT: i32 = 22;
    if protocol == InetProtocol::Raw(255)
        && v6
        && sys::number(fd, libc::IPPROTO_IPV6, IPV6_ROUTER_ALERT).is_ok_and(|on| on != 0)
    {
        return Ok(Some("IPV6_ROUTER_ALERT is on, with a value that the kernel does not show".to_owned()));
    }
    // UDP_ENCAP_L2TPINUDP and what follows: include/uapi/linux/udp.h, as tunnels set it (l2tp_tunnel_register() of net/l2tp/l2tp_core.c).
    const UDP_ENCAP: i32 = 100;
    const ENCAP_BY_KERNEL: i32 = 3;
    if protocol == InetProtocol::Udp
        && sys::number(fd, libc::IPPROTO_UDP, UDP_ENCAP).is_ok_and(|kind| kind >= ENCAP_BY_KERNEL)
    {
        return Ok(Some("a tunnel of the kernel (UDP_ENCAP) is not supported".to_owned()));
    }
    if protocol != InetProtocol::Tcp {
        return Ok(None);
    }
    const TCP_ULP: i32 = 31;
    const TCP_AO_INFO: i32 = 40;
    match sys::option(fd, libc::IPPROTO_TCP, TCP_ULP) {
        Ok(name) if name.iter().any(|byte| *byte != 0) => {
            let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
            return Ok(Some(format!("a protocol on top of TCP in the kernel ({name}) is not supported")));
        }
        Ok(_) | Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {}
        Err(errno) => return Err(errno).context("TCP_ULP"),
    }
    if sys::option(fd, libc::IPPROTO_TCP, TCP_AO_INFO).is_ok() {
        return Ok(Some("TCP authentication (TCP-AO) is not supported".to_owned()));
    }
    Ok(None)
}

/// Whether a raw socket can be the one by which somebody routes multicast packets: the kernel tells only that somebody does.
fn may_route_multicast(protocol: i32, v6: bool) -> Result<bool> {
    let family = match (protocol, v6) {
        (libc::IPPROTO_IGMP, false) => "ipv4",
        (libc::IPPROTO_ICMPV6, true) => "ipv6",
        _ => return Ok(false),
    };
    let path = format!("/proc/sys/net/{family}/conf/all/mc_forwarding");
    match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        text => Ok(text.context(path)?.trim() != "0"),
    }
}
