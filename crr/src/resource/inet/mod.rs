//! Sockets of the internet families: TCP with its connections, UDP.
//!
//! What a socket shows while it is in use by nobody is noted with the other files. Connections are looked at last, when nothing
//! else is in the way of the dump: it takes repair mode, and that what the other ends send is held ([`hold`], [`stream`]).

mod address;
mod diag;
pub(crate) mod hold;
mod inject;
mod multicast;
mod queue;
pub(crate) mod recreate;
mod stream;

pub(crate) use address::Shown;
pub use recreate::Wishes;
pub(crate) use stream::Silenced;

use super::Refuse;
use super::path::CLOSE;
use super::socket::{option, peek_offset};
use super::unix_socket::Holder;
use crate::refusal::Refusals;
use crate::sys::{pipe, socket as sys, tcp};
use anyhow::{Context, Result};
use hold::Hold;
use images::inet::{InetAddress, InetProtocol, InetSocket, InetState};
use nix::errno::Errno;
use nix::sys::stat::FileStat;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    /// Connections that wait to be accepted are lost, without a refusal (`--skip-in-flight`).
    pub skip_in_flight: bool,
    /// How traffic is held.
    pub lock: NetworkLock,
}

/// Ways out.
const ESTABLISHED: &str =
    "use --tcp-established to keep it, or --tcp-close to have the socket come back closed";
const IN_FLIGHT: &str = "have the program accept them, or use --skip-in-flight to have them reset";
const READ: &str = "have the program read it before the dump";

/// A socket with a descriptor of ours on it.
#[derive(Debug)]
struct Found {
    socket: OwnedFd,
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
        if !sys::is_in_own_network(fd).context("look for its network namespace")? {
            refuse.with_hint(&holder.object, "belongs to another network namespace than crr", CLOSE);
            return Ok(None);
        }
        if let Some(reason) = obstacle(fd, protocol)? {
            refuse.with_hint(&holder.object, reason, CLOSE);
            return Ok(None);
        }
        let v6 = sys::number(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).context("SO_DOMAIN")? == libc::AF_INET6;
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
            shutdown: u32::from(events & libc::POLLRDHUP != 0),
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
        self.found.push(Found { socket, holder, record, state });
        Ok(Some(index))
    }

    /// Refuses what cannot be had, once all sockets of the tree are known.
    pub(crate) fn check(&mut self, policy: Policy, refusals: &mut Refusals) -> Result<()> {
        let ends = self.ends();
        let mut known = diag::Known::default();
        let mut queues = Vec::new();
        for index in 0..self.found.len() {
            let found = &self.found[index];
            let Holder { pid, name, object } = found.holder.clone();
            let mut refuse = Refuse::new(refusals, pid, &name);
            let fd = found.socket.as_fd();
            if sys::events(fd).context("poll")? & libc::POLLERR != 0 {
                refuse.with_hint(&object, "has an error to tell, which asking for it would take away", READ);
                continue;
            }
            if found.record.protocol != InetProtocol::Tcp {
                if self.check_datagrams(index, &mut known, &mut refuse)? {
                    queues.push(index);
                }
                continue;
            }
            if found.state != tcp::CLOSE && known.of(&found.record)?.signed {
                refuse.with_hint(
                    &object,
                    "TCP segments that are signed (TCP_MD5SIG) are not supported",
                    CLOSE,
                );
                continue;
            }
            match &found.record.state {
                InetState::Listening(_) => {
                    let waiting = tcp::info(fd).context("TCP_INFO")?.waiting;
                    if waiting > 0 && !policy.skip_in_flight {
                        let reason = format!("{waiting} connections wait to be accepted");
                        refuse.with_hint(&object, reason, IN_FLIGHT);
                    }
                }
                InetState::Ended(_) => {
                    let unread = pipe::readable_bytes(fd).context("FIONREAD")?;
                    if unread > 0 && peek_offset::get(fd).is_ok_and(|offset| offset >= 0) {
                        let reason =
                            "its connection has ended, and its data is looked at by offset (SO_PEEK_OFF)";
                        refuse.with_hint(&object, reason, READ);
                        continue;
                    }
                    let incoming = stream::peek(fd, unread).context("read its queue")?;
                    self.found[index].record.state = InetState::Ended(incoming);
                }
                InetState::Connecting => {
                    self.found[index].record.peer = known.of(&self.found[index].record)?.peer
                }
                _ if !is_connected(found.state) => {}
                _ => {
                    let (local, peer) = addresses(&found.record)?;
                    let inside =
                        ends.contains_key(&(address::on_the_wire(&peer), address::on_the_wire(&local)));
                    if !inside && policy.tcp == TcpPolicy::Refuse {
                        let reason = format!(
                            "connected from {} to {}, outside of the tree",
                            Shown(&local),
                            Shown(&peer)
                        );
                        refuse.with_hint(&object, reason, ESTABLISHED);
                    }
                    if !inside && policy.tcp == TcpPolicy::Close {
                        self.found[index].record.state = InetState::Ended(Vec::new());
                        self.found[index].record.peer = None;
                    } else if sys::events(fd).context("poll")? & libc::POLLPRI != 0 {
                        refuse.with_hint(&object, "has urgent data to be read (MSG_OOB)", READ);
                    }
                }
            }
        }
        self.read_queues(&queues, refusals)
    }

    /// Whether there are connections to be looked at.
    pub(crate) fn has_connections(&self) -> bool {
        self.found.iter().any(Found::has_connection)
    }

    /// TCP connections by their local and their other end, each with its index.
    fn ends(&self) -> HashMap<(std::net::SocketAddr, std::net::SocketAddr), usize> {
        let connected = |(index, found): (usize, &Found)| {
            let (local, peer) = addresses(&found.record).ok().filter(|_| is_connected(found.state))?;
            Some(((address::on_the_wire(&local), address::on_the_wire(&peer)), index))
        };
        self.found.iter().enumerate().filter_map(connected).collect()
    }

    /// Whether a socket has datagrams to be read.
    fn check_datagrams(
        &mut self,
        index: usize,
        known: &mut diag::Known,
        refuse: &mut Refuse<'_>,
    ) -> Result<bool> {
        let found = &mut self.found[index];
        let unsent = sys::unreceived_bytes(found.socket.as_fd()).context("SIOCOUTQ")?;
        let corked = |option: &images::socket::SocketOption| {
            (option.level, option.name) == (libc::IPPROTO_UDP.cast_unsigned(), 1)
                && option.value.first() == Some(&1)
        };
        if unsent > 0 && found.record.options.iter().any(corked) {
            let reason = "has a datagram that is not complete (UDP_CORK)";
            refuse.with_hint(&found.holder.object, reason, "have the program send it before the dump");
        }
        // Only one that is connected can be shut down to anyone's knowledge.
        if found.record.peer.is_some() {
            found.record.shutdown = known.of(&found.record)?.shutdown;
        }
        // One that receives nothing more is always readable.
        let readable = sys::events(found.socket.as_fd()).context("poll")? & libc::POLLIN != 0;
        Ok(readable && found.record.shutdown & 1 == 0)
    }

    /// Reads what waits in the queues of these sockets.
    fn read_queues(&mut self, indices: &[usize], refusals: &mut Refusals) -> Result<()> {
        let sockets: Vec<BorrowedFd<'_>> =
            indices.iter().map(|&index| self.found[index].socket.as_fd()).collect();
        let queues = queue::read_all(&sockets)?;
        if queues.is_empty() {
            return Ok(());
        }
        let own = inject::own_addresses()?;
        for (&index, mut queue) in indices.iter().zip(queues) {
            let Found { holder, record, .. } = &mut self.found[index];
            for datagram in queue.iter_mut().filter(|_| record.v6) {
                if let IpAddr::V4(ip) = datagram.destination.ip {
                    datagram.destination.ip = ip.to_ipv6_mapped().into();
                }
            }
            let others = queue.iter().find(|one| !own.contains(&one.destination.ip.to_canonical()));
            if let Some(datagram) = others {
                let reason =
                    format!("has datagrams to be read that were sent to {}", Shown(&datagram.destination));
                refusals.task((holder.pid, &holder.name), &holder.object, reason, Some(READ));
            }
            record.queue = queue;
        }
        Ok(())
    }

    /// Looks at all connections. The dump is sure to come about otherwise.
    ///
    /// # Errors
    /// If traffic cannot be held, or repair mode is not to be had.
    pub(crate) fn look_at_connections(&mut self, policy: Policy) -> Result<Silenced> {
        let connected: Vec<usize> =
            (0..self.found.len()).filter(|&index| self.found[index].has_connection()).collect();
        let ends = self.ends();
        let mut outside = Vec::new();
        for &index in &connected {
            let (local, peer) = addresses(&self.found[index].record)?;
            if !ends.contains_key(&(address::on_the_wire(&peer), address::on_the_wire(&local))) {
                outside.push((local, peer));
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
        let connections = silenced.look()?;
        for (&index, connection) in connected.iter().zip(connections) {
            self.found[index].record.state = InetState::Connected(connection);
        }
        for &index in &connected {
            let (local, peer) = addresses(&self.found[index].record)?;
            let Some(&other) = ends.get(&(address::on_the_wire(&peer), address::on_the_wire(&local))) else {
                continue;
            };
            let InetState::Connected(there) = &self.found[other].record.state else { continue };
            let received = there.receive_seq;
            if let InetState::Connected(here) = &mut self.found[index].record.state {
                here.other_end = Some(u32::try_from(other)?);
                // Sent after this end was looked at, and before the other one was.
                let not_there = here.send_seq.wrapping_sub(received);
                here.unsent = here.unsent.min(not_there);
            }
        }
        Ok(silenced)
    }

    /// The inodes of all, each with one who has it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (u64, &Holder)> {
        self.found.iter().map(|found| (found.record.ino, &found.holder))
    }

    /// All records, and the table that holds the traffic of connections.
    pub(crate) fn into_records(self) -> (Vec<InetSocket>, Option<String>) {
        (self.found.into_iter().map(|found| found.record).collect(), self.hold)
    }
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
        _ => None,
    })
}

/// What to call a socket of another protocol.
fn kind_of(fd: BorrowedFd<'_>) -> Result<String> {
    let number = |name| sys::number(fd, libc::SOL_SOCKET, name).context("getsockopt");
    Ok(match (number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?) {
        (libc::SOCK_RAW, _) => "raw".to_owned(),
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "ICMP (ping)".to_owned(),
        (_, libc::IPPROTO_SCTP) => "SCTP".to_owned(),
        (_, libc::IPPROTO_MPTCP) => "MPTCP".to_owned(),
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
    }
    if protocol == InetProtocol::Tcp && !was_connected {
        levels.push(option::TCP_BEFORE);
    }
    levels
}

/// What a socket has that cannot be put back.
fn obstacle(fd: BorrowedFd<'_>, protocol: InetProtocol) -> Result<Option<String>> {
    if sys::filter_length(fd).is_err() {
        return Ok(Some("a socket with an eBPF filter (SO_ATTACH_BPF) is not supported".to_owned()));
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
