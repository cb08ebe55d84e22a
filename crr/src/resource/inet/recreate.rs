//! Internet sockets made again: with the other files before the first fork, connections in repair mode, in which they say
//! nothing; and brought to life when every task is there.

use super::address::{Shown, on_the_wire, to_nix};
use super::hold::Hold;
use super::inject::{Injector, Own, arrives, has_packet_sent, off_its_device};
use super::{diag, is_from, listens_at, multicast, urgent};
use crate::fault::{self, Point};
use crate::resource::socket::option::{self, SO_REUSEADDR};
use crate::resource::socket::restore_owner;
use crate::sys::socket as sys;
use crate::sys::tcp::{self, Queue, Repair};
use anyhow::{Context, Result, bail};
use images::inet::{
    InetAddress, InetProtocol, InetSocket, InetState, TcpAgreement, TcpConnection, TcpWindow,
};
use images::socket_option::{SocketOption, SocketOptions};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Backlog, MsgFlags, Shutdown, bind, connect, listen, recv, send, shutdown};
use nix::unistd::{Gid, getegid, setegid};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

const SO_RCVBUF: i32 = 8;
const SO_RCVBUFFORCE: i32 = 33;

/// What a user says about sockets at restore.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Connections come back closed (`--tcp-close`).
    pub close: bool,
    /// Local addresses that are others now (`--map-addr`).
    pub map: Vec<(IpAddr, IpAddr)>,
}

/// The records as they are to be restored.
pub(crate) fn as_wished(records: &mut [InetSocket], wishes: &Wishes) {
    let map = |ip: IpAddr| {
        wishes.map.iter().find(|(old, _)| *old == ip.to_canonical()).map_or(ip, |(_, new)| match (ip, new) {
            (IpAddr::V6(_), IpAddr::V4(new)) => IpAddr::V6(new.to_ipv6_mapped()),
            _ => *new,
        })
    };
    let listening: Vec<InetAddress> = (records.iter())
        .filter(|record| matches!(record.state, InetState::Listening(_)))
        .filter_map(|record| record.local)
        .collect();
    let udp = |record: &InetSocket| matches!(record.protocol, InetProtocol::Udp | InetProtocol::UdpLite);
    let senders: Vec<InetAddress> =
        records.iter().filter(|record| udp(record)).filter_map(|record| record.local).collect();
    let is_among = |ours: &[InetAddress], there: &InetAddress| {
        ours.iter().any(|own| listens_at(on_the_wire(own), on_the_wire(there)))
    };
    for record in records {
        let inside = match &record.state {
            InetState::Connected(connection) => connection.other_end.is_some(),
            InetState::Connecting => record.peer.is_some_and(|peer| is_among(&listening, &peer)),
            // It hears only what comes from there.
            InetState::Closed if udp(record) => record.peer.is_some_and(|peer| is_among(&senders, &peer)),
            _ => false,
        };
        if let Some(local) = &mut record.local {
            local.ip = map(local.ip);
        }
        if let Some(peer) = record.peer.as_mut().filter(|_| inside) {
            peer.ip = map(peer.ip);
        }
        for datagram in &mut record.queue {
            datagram.destination.ip = map(datagram.destination.ip);
            if is_among(&senders, &datagram.sender) {
                datagram.sender.ip = map(datagram.sender.ip);
            }
        }
        if wishes.close && !inside && matches!(record.state, InetState::Connected(_) | InetState::Connecting)
        {
            record.state = InetState::Ended(Vec::new());
            record.peer = None;
        }
    }
}

/// The sockets of a tree being restored. Dropped, those that are in repair mode are gone without a word.
#[derive(Debug)]
pub(crate) struct Restored {
    sockets: Vec<Rc<OwnedFd>>,
    hold: Option<Hold>,
    /// The hold was not there before: it goes if the restore fails.
    own_hold: bool,
    /// It is lifted: it comes back if the restore fails after all.
    lifted: bool,
    /// What it holds.
    outside: Vec<(InetAddress, InetAddress)>,
}

/// Makes all sockets. The traffic of connections whose other end is elsewhere is held from here on by the table of this name.
///
/// # Errors
/// Names the socket, and what the kernel refuses.
pub(crate) fn create_all(records: &[InetSocket], table: Option<&str>) -> Result<Restored> {
    let outside: Vec<(InetAddress, InetAddress)> = records.iter().filter_map(outside).collect();
    let hold = table.map(Hold::named);
    let sockets = Vec::with_capacity(records.len());
    let mut restored = Restored { sockets, own_hold: false, lifted: false, outside, hold };
    refuse_foreign(records)?;
    if let Some(hold) = restored.hold.as_ref().filter(|_| !restored.outside.is_empty()) {
        restored.own_hold = !hold.exists();
        hold.place(&restored.outside)?;
    }
    // The port of a connection is often that of the socket that listens: connections do not mind, it does.
    for record in records {
        restored.sockets.push(Rc::new(create(record).with_context(|| named(record))?));
    }
    // It is acknowledged, so the other end has to be there.
    for (record, socket) in records.iter().zip(&restored.sockets) {
        receive_urgent(socket.as_fd(), record).with_context(|| named(record))?;
    }
    for (record, socket) in records.iter().zip(&restored.sockets) {
        if let (InetState::Listening(backlog), Some(local)) = (&record.state, &record.local) {
            at_port(local, || listen_again(socket, *backlog))
                .context("listen")
                .with_context(|| named(record))?;
        }
    }
    Ok(restored)
}

/// Fails if a packet would have to be sent that leaves this machine: one is made for each datagram in a queue, and for urgent data
/// and the ends of streams.
fn refuse_foreign(records: &[InetSocket]) -> Result<()> {
    let addresses = records.iter().flat_map(|record| {
        let local = record.local.filter(|_| has_packet_sent(record));
        let queued = record.queue.iter().map(|datagram| datagram.destination);
        local.into_iter().chain(queued).map(move |address| (record, address))
    });
    let addresses: Vec<_> = addresses.collect();
    if addresses.is_empty() {
        return Ok(());
    }
    let own = Own::addresses()?;
    match addresses.iter().find(|(_, address)| !own.has(address)) {
        Some((record, address)) => bail!(
            "{}: {} is no address of this machine (--map-addr says which one it is now)",
            named(record),
            address.ip
        ),
        None => Ok(()),
    }
}

/// A connection whose other end is not in the tree.
fn outside(record: &InetSocket) -> Option<(InetAddress, InetAddress)> {
    match &record.state {
        InetState::Connected(connection) if connection.other_end.is_none() => {
            Some((record.local?, record.peer?))
        }
        _ => None,
    }
}

fn named(record: &InetSocket) -> String {
    let at = |address: &Option<InetAddress>| address.as_ref().map(|address| Shown(address).to_string());
    let (local, peer) = (at(&record.local), at(&record.peer));
    let to = peer.map(|peer| format!(" to {peer}")).unwrap_or_default();
    format!("socket:[{}]{}{to}", record.ino, local.map(|local| format!(" at {local}")).unwrap_or_default())
}

fn listen_again(socket: &OwnedFd, backlog: u32) -> nix::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX).min(libc::SOMAXCONN);
    listen(socket, Backlog::new(backlog).unwrap_or(Backlog::MAXCONN))
}

/// Takes a port, at which connections may linger that the program has closed: it was there with them.
fn at_port(local: &InetAddress, take: impl Fn() -> nix::Result<()>) -> Result<()> {
    match take() {
        Err(Errno::EADDRINUSE) => {
            diag::forget_lingering(local.port).context("look for connections that are over")?;
            Ok(take()?)
        }
        taken => Ok(taken?),
    }
}

fn create(record: &InetSocket) -> Result<OwnedFd> {
    let family = if record.v6 { libc::AF_INET6 } else { libc::AF_INET };
    let (kind, protocol) = match record.protocol {
        InetProtocol::Tcp => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        InetProtocol::Udp => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        InetProtocol::UdpLite => (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        InetProtocol::Ping if record.v6 => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        InetProtocol::Ping => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        InetProtocol::Raw(protocol) => (libc::SOCK_RAW, protocol.into()),
    };
    fault::point(Point::MakeConnection).context("socket")?;
    let open = || sys::open(family, kind, protocol).context("socket");
    let made = if record.protocol == InetProtocol::Ping { as_pinger(open)? } else { open()? };
    let fd = made.as_fd();
    if let InetProtocol::Raw(_) = record.protocol {
        deafen(fd)?;
    }
    if !record.queue.is_empty() {
        hear_only_this_machine(fd)?;
    }
    option::restore(fd, record.options.iter().filter(|option| !is_late(record, option)))?;
    // Others of the tree are at the same port. What it was is put back in the end.
    sys::set_option(fd, libc::SOL_SOCKET, SO_REUSEADDR, &1i32.to_ne_bytes()).context("SO_REUSEADDR")?;
    match &record.state {
        InetState::Connected(connection) => connected(&made, record, connection)?,
        InetState::Ended(incoming) if !incoming.is_empty() => ended(&made, record, incoming)?,
        _ => {
            if let Some(local) = &record.local {
                at_port(local, || bind(fd.as_raw_fd(), &*to_nix(local))).context("bind")?;
            }
            if let (InetState::Closed, Some(peer), false) =
                (&record.state, &record.peer, connects_late(record))
            {
                connect(fd.as_raw_fd(), &*to_nix(peer)).context("connect")?;
            }
        }
    }
    multicast::restore(fd, &record.memberships)?;
    restore_owner(fd, record.uid, record.gid, record.mode)?;
    Ok(made)
}

/// Makes a socket for ping as a member of a group that may have one (net.ipv4.ping_group_range), as its owner was.
fn as_pinger(open: impl Fn() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").context("ping_group_range")?;
    let mut ends = range.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else { return open() };
    let own = getegid();
    if (first..=last).contains(&own.as_raw()) {
        return open();
    }
    if first > last {
        bail!("nobody may have a socket for ping here: net.ipv4.ping_group_range");
    }
    setegid(Gid::from_raw(first)).context("setegid")?;
    let made = open();
    setegid(own).context("setegid")?;
    made
}

/// Has a raw socket, which gets packets from the moment it is there, take none until its own filter stands: none that crr sends, and
/// none before its tree is there.
fn deafen(fd: BorrowedFd<'_>) -> Result<()> {
    // BPF_RET: of each packet, nothing.
    const NOTHING: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
    sys::attach_filter(fd, &NOTHING).context("hear nothing")?;
    let take = || recv(fd.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC);
    while take().is_ok() {}
    Ok(())
}

/// Has a socket with datagrams in its queue hear only what comes by the loopback device, as what crr sends does, until it has them: on its way there
/// it may be without its device, or its peer, and hear what is for others. Not by a mark, which rules of a firewall may change on the way.
fn hear_only_this_machine(fd: BorrowedFd<'_>) -> Result<()> {
    // BPF_LD | BPF_W | BPF_ABS at SKF_AD_OFF + SKF_AD_IFINDEX, BPF_JMP | BPF_JEQ to LOOPBACK_IFINDEX, BPF_RET of all or of nothing.
    let program: [(u16, u8, u8, u32); 4] =
        [(0x20, 0, 0, 0xffff_f008), (0x15, 0, 1, 1), (0x06, 0, 0, u32::MAX), (0x06, 0, 0, 0)];
    let bytes = |&(code, yes, no, value): &(u16, u8, u8, u32)| {
        [&code.to_ne_bytes()[..], &[yes, no], &value.to_ne_bytes()].concat()
    };
    let program: Vec<u8> = program.iter().flat_map(bytes).collect();
    sys::attach_filter(fd, &program).context("hear this machine alone")
}

/// Whether a socket connects when it has its datagrams: of others than its peer, which it would not hear then, it had got some before it connected.
fn connects_late(record: &InetSocket) -> bool {
    record.peer.is_some_and(|peer| record.queue.iter().any(|one| !is_from(one, &peer)))
}

/// Options that are set when everything else is done.
fn is_late(record: &InetSocket, option: &SocketOption<'_>) -> bool {
    match (option.level.cast_signed(), option.name.cast_signed()) {
        (libc::SOL_SOCKET, name) => [SO_REUSEADDR, option::SO_LOCK_FILTER].contains(&name),
        // The kernel changes them as a connection is made, and as it goes.
        (libc::IPPROTO_TCP, name) => {
            [option::TCP_WINDOW_CLAMP, option::TCP_QUICKACK].contains(&name)
                && !matches!(record.state, InetState::Closed | InetState::Listening(_))
        }
        _ => false,
    }
}

/// What would be in the way of all the rest. An option that cannot be set does not keep the others from it.
fn complete(fd: BorrowedFd<'_>, record: &InetSocket) -> Result<()> {
    if !record.filter.is_empty() {
        sys::attach_filter(fd, &record.filter).context("attach its filter")?;
    } else if matches!(record.protocol, InetProtocol::Raw(_)) || !record.queue.is_empty() {
        sys::detach_filter(fd).context("hear again")?;
    }
    let late = record.options.iter().filter(|option| is_late(record, option));
    late.map(|option| option::restore(fd, [option])).fold(Ok(()), Result::and)
}

/// A connection as it was, in repair mode.
fn connected(socket: &OwnedFd, record: &InetSocket, connection: &TcpConnection) -> Result<()> {
    let fd = socket.as_fd();
    let (local, peer) = super::addresses(record)?;
    make(fd, record, (&local, &peer), connection)?;
    if connection.urgent.is_none() {
        tcp::set_window(fd, &connection.window).context("TCP_REPAIR_WINDOW")?;
    }
    Ok(())
}

/// Brings a socket of UDP or UDP-Lite what was in its queue.
fn receive_datagrams(fd: BorrowedFd<'_>, record: &InetSocket, injector: &mut Injector) -> Result<()> {
    let (sizes, lite) = (Sizes::widen(fd)?, record.protocol == InetProtocol::UdpLite);
    let lost = injector.datagrams(fd, &record.queue, lite)?;
    if lost > 0 {
        let all = record.queue.len();
        log::warn!(
            "{}: {lost} of {all} datagrams that were to be read do not arrive, and are lost",
            named(record)
        );
    }
    if let Some(peer) = record.peer.as_ref().filter(|_| connects_late(record)) {
        connect(fd.as_raw_fd(), &*to_nix(peer)).context("connect")?;
    }
    sizes.put_back(fd, &record.options)
}

/// Brings urgent data to a connection that has received what is before it, and the rest.
fn receive_urgent(fd: BorrowedFd<'_>, record: &InetSocket) -> Result<()> {
    let InetState::Connected(connection) = &record.state else { return Ok(()) };
    let Some(urgent) = connection.urgent else { return Ok(()) };
    let (local, peer) = super::addresses(record)?;
    let sizes = Sizes::widen(fd)?;
    tcp::choose(fd, Queue::Receive).context("TCP_REPAIR_QUEUE")?;
    // For now, so that there is room for one byte where its stream stands.
    let received = tcp::sequence(fd).context("TCP_QUEUE_SEQ")?;
    let window = TcpWindow { snd_wl1: received, rcv_wnd: 1 << 10, rcv_wup: received, ..connection.window };
    tcp::set_window(fd, &window).context("TCP_REPAIR_WINDOW")?;
    urgent::bring(fd, (&local, &peer), connection, urgent)?;
    let behind = connection.incoming.get(urgent.at as usize + 1..).unwrap_or_default();
    fill(fd, behind).with_context(|| format!("put {} bytes back behind urgent data", behind.len()))?;
    sizes.put_back(fd, &record.options)?;
    tcp::set_window(fd, &connection.window).context("TCP_REPAIR_WINDOW")
}

/// A connection in repair mode, with its queues; but for urgent data, and what is behind it.
fn make(
    fd: BorrowedFd<'_>,
    record: &InetSocket,
    (local, peer): (&InetAddress, &InetAddress),
    connection: &TcpConnection,
) -> Result<()> {
    tcp::repair(fd, Repair::On).context("TCP_REPAIR (needs CAP_NET_ADMIN)")?;
    let sent = connection.outgoing.len().saturating_sub(connection.unsent as usize);
    let sent = connection.outgoing.get(..sent).unwrap_or_default();
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).context("a queue of more than 4 GiB");
    for (queue, behind, bytes) in [
        (Queue::Send, connection.send_seq, length(&connection.outgoing)?),
        (Queue::Receive, connection.receive_seq, length(&connection.incoming)?),
    ] {
        tcp::choose(fd, queue).context("TCP_REPAIR_QUEUE")?;
        tcp::set_sequence(fd, behind.wrapping_sub(bytes)).context("TCP_QUEUE_SEQ")?;
    }
    bind(fd.as_raw_fd(), &*to_nix(local)).context("bind")?;
    connect(fd.as_raw_fd(), &*to_nix(peer)).context("connect")?;
    agree(fd, connection)?;
    let sizes = Sizes::widen(fd)?;
    let incoming = connection.incoming.as_slice();
    let received = connection.urgent.map_or(incoming, |urgent| &incoming[..urgent.at as usize]);
    for (queue, bytes) in [(Queue::Receive, received), (Queue::Send, sent)] {
        tcp::choose(fd, queue).context("TCP_REPAIR_QUEUE")?;
        fill(fd, bytes)
            .with_context(|| format!("put {} bytes back into its queue ({queue:?})", bytes.len()))?;
    }
    sizes.put_back(fd, &record.options)
}

/// A connection that has ended, with data that can be read: one is made with it, and reset by the other end, which there is not.
fn ended(socket: &OwnedFd, record: &InetSocket, incoming: &[u8]) -> Result<()> {
    let fd = socket.as_fd();
    let local = record.local.context("a connection without a local address")?;
    let peer = InetAddress { port: local.port ^ 1, ..local };
    let connection = TcpConnection {
        send_seq: 1,
        receive_seq: u32::try_from(incoming.len()).context("a queue of more than 4 GiB")?.wrapping_add(1),
        outgoing: Vec::new(),
        unsent: 0,
        incoming: incoming.to_vec(),
        urgent: None,
        agreed: TcpAgreement { mss: 1400, window_scale: None, sack: false, timestamp: None },
        window: TcpWindow::default(),
        ended_here: false,
        ended_there: false,
        other_end: None,
    };
    make(fd, record, (&local, &peer), &connection)?;
    tcp::repair(fd, Repair::OffSilently).context("TCP_REPAIR")?;
    off_its_device(fd, |_| {
        Injector::default().reset(&local, &peer, connection.receive_seq)?;
        arrives(fd, libc::POLLHUP)
    })?;
    let state = tcp::info(fd).context("TCP_INFO")?.state;
    if state != tcp::CLOSE {
        bail!("in state {state} instead of ended");
    }
    // The error that was told, or never was.
    sys::number(fd, libc::SOL_SOCKET, libc::SO_ERROR).context("SO_ERROR")?;
    Ok(())
}

/// What the ends agreed on.
fn agree(fd: BorrowedFd<'_>, connection: &TcpConnection) -> Result<()> {
    // Numbers of TCP options: include/net/tcp.h.
    const MSS: u32 = 2;
    const WINDOW: u32 = 3;
    const SACK: u32 = 4;
    const TIMESTAMP: u32 = 8;
    let agreed = &connection.agreed;
    let mut options = vec![(MSS, agreed.mss)];
    if let Some((sent, received)) = agreed.window_scale {
        options.push((WINDOW, u32::from(sent) | u32::from(received) << 16));
    }
    if agreed.sack {
        options.push((SACK, 0));
    }
    if agreed.timestamp.is_some() {
        options.push((TIMESTAMP, 0));
    }
    tcp::set_agreed(fd, &options).context("TCP_REPAIR_OPTIONS")?;
    if let Some(timestamp) = agreed.timestamp {
        tcp::set_timestamp(fd, timestamp).context("TCP_TIMESTAMP")?;
    }
    Ok(())
}

/// Room for whatever was in the queues: that can be more than what goes in by the sizes of the buffers.
struct Sizes;

impl Sizes {
    fn widen(fd: BorrowedFd<'_>) -> Result<Self> {
        for name in [option::SO_SNDBUFFORCE, SO_RCVBUFFORCE] {
            sys::set_option(fd, libc::SOL_SOCKET, name, &(i32::MAX / 2).to_ne_bytes())
                .context("SO_RCVBUFFORCE")?;
        }
        Ok(Self)
    }

    fn put_back(self, fd: BorrowedFd<'_>, options: &SocketOptions) -> Result<()> {
        const SO_BUF_LOCK: u32 = 72;
        let sizes = [option::SO_SNDBUF.cast_unsigned(), SO_RCVBUF.cast_unsigned(), SO_BUF_LOCK];
        option::restore(
            fd,
            options.iter().filter(|option| {
                option.level == libc::SOL_SOCKET.cast_unsigned() && sizes.contains(&option.name)
            }),
        )
    }
}

fn fill(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    /// The kernel takes what goes into one of its buffers at a time.
    const MOST: usize = 64 << 10;
    while !bytes.is_empty() {
        let part = bytes.get(..MOST).unwrap_or(bytes);
        let sent = send(fd.as_raw_fd(), part, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
        bytes = bytes.get(sent..).unwrap_or_default();
        if sent == 0 {
            bail!("{} bytes are left over", bytes.len());
        }
    }
    Ok(())
}

impl Restored {
    /// The description of a socket, with its flags.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(crate) fn open(&self, index: u32, flags: u32) -> Result<Rc<OwnedFd>> {
        let fd = Rc::clone(&self.sockets[index as usize]);
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed()))).context("set flags")?;
        Ok(fd)
    }

    /// Completes all but the connections, and lets traffic pass: these are silent still, and take what comes.
    ///
    /// # Errors
    /// Names the socket that does not come to the state that it had.
    pub(crate) fn let_traffic_pass(&mut self, records: &[InetSocket]) -> Result<()> {
        let mut injector = Injector::default();
        for (record, socket) in records.iter().zip(&self.sockets) {
            let mut alive = |fd: BorrowedFd<'_>| -> Result<()> {
                match &record.state {
                    InetState::Connected(_) => return Ok(()),
                    InetState::Ended(_) => {
                        // Says that it is not connected, and shuts down all the same: inet_shutdown() of net/ipv4/af_inet.c.
                        let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
                    }
                    InetState::Connecting => connect_again(fd, record)?,
                    InetState::Closed | InetState::Listening(_) => {
                        if !record.queue.is_empty() {
                            receive_datagrams(fd, record, &mut injector)?;
                        }
                        shut(fd, record.shutdown)?;
                    }
                }
                complete(fd, record)
            };
            alive(socket.as_fd()).with_context(|| named(record))?;
        }
        fault::point(Point::ReleaseTraffic).context("let the traffic of TCP connections pass")?;
        if let Some(hold) = &self.hold {
            hold.lift()?;
            self.lifted = true;
        }
        Ok(())
    }

    /// Lets the connections speak, once everything of the tree is there. What is still to be sent is sent, and ends that were
    /// shut down are shut down again. There is no way back from here: what has become of one connection is told, and is for its task
    /// to find out.
    pub(crate) fn speak(&mut self, records: &[InetSocket]) {
        let connections: Vec<_> = records
            .iter()
            .zip(&self.sockets)
            .filter_map(|(record, socket)| match &record.state {
                InetState::Connected(connection) => Some((record, socket.as_fd(), connection)),
                _ => None,
            })
            .collect();
        let told = |record: &InetSocket, outcome: Result<()>| {
            if let Err(e) = outcome {
                log::warn!("{}: {e:#}", named(record));
            }
        };
        for &(record, socket, _) in &connections {
            told(record, tcp::repair(socket, Repair::Off).context("TCP_REPAIR"));
        }
        let mut injector = Injector::default();
        for &(record, socket, connection) in &connections {
            told(record, speak(socket, record, connection, &mut injector));
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        for &(record, socket, _) in connections.iter().filter(|(_, _, connection)| connection.ended_there) {
            let arrived = || sys::events(socket).is_ok_and(|events| events & libc::POLLRDHUP != 0);
            while !arrived() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !arrived() {
                log::warn!("{}: the end of the stream does not arrive", named(record));
            }
        }
        for &(record, socket, _) in &connections {
            // What the sending of the rest may have taken more room for.
            told(record, Sizes.put_back(socket, &record.options));
            told(record, complete(socket, record));
        }
        self.sockets.clear();
        self.hold = None;
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // What was silent when it is closed has said nothing to the other end, which must not be told by others either.
        self.sockets.clear();
        match self.hold.take() {
            Some(hold) if self.own_hold && !self.lifted => drop(hold.lift()),
            Some(hold) if self.lifted && !self.own_hold => drop(hold.place(&self.outside)),
            _ => {}
        }
    }
}

/// Sends what has not been sent, and the end of the stream; has the end of the other one arrive.
fn speak(
    socket: BorrowedFd<'_>,
    record: &InetSocket,
    connection: &TcpConnection,
    injector: &mut Injector,
) -> Result<()> {
    let sent = connection.outgoing.len().saturating_sub(connection.unsent as usize);
    let rest = connection.outgoing.get(sent..).unwrap_or_default();
    if !rest.is_empty() {
        Sizes::widen(socket)?;
        fill(socket, rest).context("send the rest")?;
    }
    let heard = if connection.ended_there && connection.other_end.is_none() {
        hear_the_end(socket, record, connection, injector)
    } else {
        Ok(())
    };
    // Whatever has come of that.
    if connection.ended_here {
        shutdown(socket.as_raw_fd(), Shutdown::Write).context("shut down")?;
    }
    if record.shutdown & 1 != 0 && !connection.ended_there {
        shutdown(socket.as_raw_fd(), Shutdown::Read).context("shut down")?;
    }
    heard
}

/// Has the end of the stream of an end that is elsewhere arrive again. Whether it does is looked at later, for all connections.
fn hear_the_end(
    socket: BorrowedFd<'_>,
    record: &InetSocket,
    connection: &TcpConnection,
    injector: &mut Injector,
) -> Result<()> {
    let (local, peer) = super::addresses(record)?;
    off_its_device(socket, |off| {
        injector.end(&local, &peer, connection)?;
        if off {
            arrives(socket, libc::POLLRDHUP)?;
        }
        Ok(())
    })
}

/// Calls the other end again.
fn connect_again(fd: BorrowedFd<'_>, record: &InetSocket) -> Result<()> {
    let peer = record.peer.as_ref().context("no peer")?;
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let call = || connect(fd.as_raw_fd(), &*to_nix(peer));
    let called = match call() {
        // The connection that it had at this port lingers.
        Err(Errno::EADDRNOTAVAIL) => {
            let local = record.local.as_ref().context("no address of its own")?;
            diag::forget_lingering(local.port).context("look for connections that are over")?;
            call()
        }
        called => called,
    };
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    match called {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        // What it would have been told otherwise.
        Err(Errno::ECONNREFUSED | Errno::ENETUNREACH | Errno::EHOSTUNREACH) => Ok(()),
        Err(errno) => Err(errno).context("connect"),
    }
}

fn shut(fd: BorrowedFd<'_>, how: u32) -> Result<()> {
    let how = match how {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    match shutdown(fd.as_raw_fd(), how) {
        // One that is not connected: inet_shutdown() of net/ipv4/af_inet.c says so, and does it all the same.
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno).context("shut down"),
    }
}
