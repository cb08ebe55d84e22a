//! Packets as other machines would have sent them, for sockets of this one: datagrams that were in a queue, and the end of a
//! stream, or the urgent data in it, that the other end has sent.

use super::address::{Shown, on_the_wire};
use super::check::SO_MEMINFO;
use super::hold::MARK;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use etherparse::checksum::Sum16BitWords;
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};
use images::inet::{Datagram, InetAddress, InetSocket, InetState, TcpConnection, TcpUrgent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// As many as there can be: a socket can want no less of what it receives (IP_MINTTL, IPV6_MINHOPCOUNT).
const HOPS: u8 = 255;

/// How long a packet takes at most that this machine sends to itself.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);

/// Takes a socket off its device for what `task` sends to it: that comes by the loopback device, and a socket of another one does not hear
/// it (inet_sk_bound_dev_eq() of include/net/inet_sock.h). `task` is told whether it was on one: then it has to see that what it sends has arrived.
pub(super) fn off_its_device<T>(fd: BorrowedFd<'_>, task: impl FnOnce(bool) -> Result<T>) -> Result<T> {
    let set = |device: &[u8]| {
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device).context("SO_BINDTODEVICE")
    };
    let device = device(fd)?;
    if device.is_empty() {
        return task(false);
    }
    set(&[0])?;
    let done = task(true);
    set(&device)?;
    done
}

/// The device that a socket is bound to, with its NUL; empty for none.
pub(super) fn device(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    sys::option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE).context("SO_BINDTODEVICE")
}

/// Waits until a socket tells one of these events (POLL*) of what was sent to it; whether it does.
pub(super) fn arrives(fd: BorrowedFd<'_>, events: i16) -> Result<bool> {
    let mut asked = [PollFd::new(fd, PollFlags::from_bits_retain(events))];
    let within = PollTimeout::try_from(ARRIVES_WITHIN).context("poll")?;
    poll(&mut asked, within).context("poll")?;
    // Errors are told unasked.
    Ok(asked[0].revents().is_some_and(|told| told.bits() & events != 0))
}

/// Unicast addresses of this machine: what is sent to another one would leave it.
pub(super) struct Own(BTreeSet<IpAddr>);

impl Own {
    pub(super) fn addresses() -> Result<Self> {
        let all = nix::ifaddrs::getifaddrs().context("list the addresses of this machine")?;
        let addresses = all.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        Ok(Self(addresses.collect()))
    }

    pub(super) fn has(&self, address: &InetAddress) -> bool {
        let ip = address.ip.to_canonical();
        self.0.contains(&ip) || matches!(ip, IpAddr::V4(v4) if is_of_loopback(v4))
    }
}

/// One of 127.0.0.0/8, which are all of the loopback device (fib_add_ifaddr() of net/ipv4/fib_frontend.c), but for the first and the last: these
/// are for all.
fn is_of_loopback(ip: Ipv4Addr) -> bool {
    ip.is_loopback() && ![0x7f00_0000, 0x7fff_ffff].contains(&ip.to_bits())
}

/// Whether a packet is sent to the address of a socket to have it as it was, but for datagrams.
pub(super) fn has_packet_sent(record: &InetSocket) -> bool {
    match &record.state {
        InetState::Connected(connection) => {
            connection.urgent.is_some() || connection.ended_there && connection.other_end.is_none()
        }
        InetState::Ended(incoming) => !incoming.is_empty(),
        _ => false,
    }
}

/// Whether it is so by then.
fn wait_until(deadline: Instant, is_so: impl Fn() -> Result<bool>) -> Result<bool> {
    while !is_so()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::yield_now();
    }
    Ok(true)
}

/// Sends packets of either family.
#[derive(Debug, Default)]
pub(super) struct Injector {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Injector {
    /// Datagrams that were in the queue of a socket of UDP or UDP-Lite. Returns how many do not arrive: another socket at the same port may
    /// have taken them.
    pub(super) fn datagrams(&mut self, fd: BorrowedFd<'_>, queue: &[Datagram], lite: bool) -> Result<usize> {
        let used = || -> Result<u32> {
            let memory = sys::option(fd, libc::SOL_SOCKET, SO_MEMINFO).context("SO_MEMINFO")?;
            Ok(memory.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)))
        };
        off_its_device(fd, |_| {
            let mut lost = 0;
            for datagram in queue {
                let before = used()?;
                self.datagram(datagram, lite)?;
                // Where one is lost, others are, and nobody waits for each.
                let patience = if lost == 0 { ARRIVES_WITHIN } else { Duration::ZERO };
                let deadline = Instant::now() + patience;
                lost += usize::from(!wait_until(deadline, || Ok(used()? != before))?);
            }
            Ok(lost)
        })
    }

    fn datagram(&mut self, datagram: &Datagram, lite: bool) -> Result<()> {
        let (from, to) = (on_the_wire(&datagram.sender), on_the_wire(&datagram.destination));
        let builder = ip(from.ip(), to.ip())?.udp(from.port(), to.port());
        let mut packet = Vec::with_capacity(builder.size(datagram.bytes.len()));
        builder.write_to_vec(&mut packet, &datagram.bytes).context("make a packet")?;
        if lite {
            make_lite(&mut packet, from.ip(), to.ip()).context("make a packet")?;
        }
        self.send(&packet, &datagram.destination)
    }

    /// The end of the stream that the other end of a connection sent.
    pub(super) fn end(
        &mut self,
        local: &InetAddress,
        peer: &InetAddress,
        connection: &TcpConnection,
    ) -> Result<()> {
        let builder = segment(local, peer, connection, connection.receive_seq)?.fin();
        let mut packet = Vec::with_capacity(builder.size(0));
        builder.write_to_vec(&mut packet, &[]).context("make a packet")?;
        self.send(&packet, local)
    }

    /// The byte that the other end of a connection sent as urgent.
    pub(super) fn urgent(
        &mut self,
        local: &InetAddress,
        peer: &InetAddress,
        connection: &TcpConnection,
        urgent: TcpUrgent,
    ) -> Result<()> {
        let byte = connection.incoming.get(urgent.at as usize).context("no such byte")?;
        let behind = u32::try_from(connection.incoming.len()).context("incoming queue")? - urgent.at;
        // A pointer that is 0 is to the first byte, whatever net.ipv4.tcp_stdurg is: tcp_check_urg() of net/ipv4/tcp_input.c.
        let builder = segment(local, peer, connection, connection.receive_seq.wrapping_sub(behind))?.urg(0);
        let mut packet = Vec::with_capacity(builder.size(1));
        builder.write_to_vec(&mut packet, &[*byte]).context("make a packet")?;
        self.send(&packet, local)
    }

    /// The other end of a connection resets it.
    pub(super) fn reset(&mut self, local: &InetAddress, peer: &InetAddress, receive_seq: u32) -> Result<()> {
        let (from, to) = (on_the_wire(peer), on_the_wire(local));
        let builder = ip(from.ip(), to.ip())?.tcp(from.port(), to.port(), receive_seq, 0).rst();
        let mut packet = Vec::with_capacity(builder.size(0));
        builder.write_to_vec(&mut packet, &[]).context("make a packet")?;
        self.send(&packet, local)
    }

    /// Several interfaces can have the same link-local address: the scope tells which.
    fn send(&mut self, packet: &[u8], to: &InetAddress) -> Result<()> {
        let none = MsgFlags::empty();
        match on_the_wire(to) {
            SocketAddr::V4(v4) => {
                let socket = open(&mut self.v4, AddressFamily::Inet)?;
                sendto(socket, packet, &SockaddrIn::from(SocketAddrV4::new(*v4.ip(), 0)), none)
            }
            SocketAddr::V6(v6) => {
                let socket = open(&mut self.v6, AddressFamily::Inet6)?;
                sendto(socket, packet, &SockaddrIn6::from(SocketAddrV6::new(*v6.ip(), 0, 0, to.scope)), none)
            }
        }
        .with_context(|| format!("send a packet to {}", Shown(to)))
        .map(drop)
    }
}

/// A segment from the other end of a connection, which acknowledges what it has acknowledged.
fn segment(
    local: &InetAddress,
    peer: &InetAddress,
    connection: &TcpConnection,
    sequence: u32,
) -> Result<PacketBuilderStep<TcpHeader>> {
    let (from, to) = (on_the_wire(peer), on_the_wire(local));
    let outgoing = u32::try_from(connection.outgoing.len()).context("outgoing queue")?;
    let shift = connection.agreed.window_scale.map_or(0, |(sent, _)| sent);
    let window = u16::try_from(connection.window.snd_wnd >> shift).unwrap_or(u16::MAX);
    let builder = ip(from.ip(), to.ip())?.tcp(from.port(), to.port(), sequence, window);
    Ok(builder.ack(connection.send_seq.wrapping_sub(outgoing)))
}

fn ip(from: IpAddr, to: IpAddr) -> Result<PacketBuilderStep<IpHeaders>> {
    Ok(match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ip(IpHeaders::Ipv4(
            etherparse::Ipv4Header::new(0, HOPS, etherparse::IpNumber(0), from.octets(), to.octets())
                .context("make a packet")?,
            Default::default(),
        )),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ip(IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                hop_limit: HOPS,
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            },
            Default::default(),
        )),
        _ => anyhow::bail!("from {from} to {to}"),
    })
}

/// Makes a packet of UDP one of UDP-Lite, whose checksum covers all of it: another number, 0 in place of the length (RFC 3828), and the
/// checksum that goes with both.
fn make_lite(packet: &mut [u8], from: IpAddr, to: IpAddr) -> Option<()> {
    const UDP_LITE: u8 = 136;
    let (number_at, header_size) = if to.is_ipv4() { (9, 20) } else { (6, 40) };
    *packet.get_mut(number_at)? = UDP_LITE;
    let rest = packet.get_mut(header_size..)?;
    rest.get_mut(4..8)?.fill(0);
    let mut pseudo = Vec::new();
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => pseudo.extend(ip.octets()),
            IpAddr::V6(ip) => pseudo.extend(ip.octets()),
        }
    }
    pseudo.extend(u32::try_from(rest.len()).ok()?.to_be_bytes());
    pseudo.extend([0, 0, 0, UDP_LITE]);
    let sum = Sum16BitWords::new().add_slice(&pseudo).add_slice(rest).to_ones_complement_with_no_zero();
    rest.get_mut(6..8)?.copy_from_slice(&sum.to_ne_bytes());
    Some(())
}

/// A raw socket that takes whole packets, marked as crr's.
fn open(socket_of: &mut Option<OwnedFd>, family: AddressFamily) -> Result<i32> {
    if let Some(socket) = socket_of {
        return Ok(socket.as_raw_fd());
    }
    let made = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .context("open a raw socket")?;
    sys::set_option(made.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &MARK.to_ne_bytes()).context("SO_MARK")?;
    Ok(socket_of.insert(made).as_raw_fd())
}
