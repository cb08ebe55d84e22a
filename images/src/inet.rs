//! Sockets of the internet families: addresses, connections, what waits in their queues, options.

use crate::socket_option::SocketOptions;
use alloc::vec::Vec;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// A socket of family AF_INET or AF_INET6. It has one open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetSocket {
    /// Its inode number on sockfs at dump, for messages only.
    pub ino: u64,
    /// SO_DOMAIN is AF_INET6.
    pub v6: bool,
    /// SO_PROTOCOL, with the type that it has.
    pub protocol: InetProtocol,
    /// The address it is bound to, by itself or by being connected.
    pub local: Option<InetAddress>,
    /// What it is connected to.
    pub peer: Option<InetAddress>,
    /// How far it has come.
    pub state: InetState,
    /// sk_shutdown: bit 0, nothing more is received; bit 1, nothing more is sent.
    pub shutdown: u32,
    /// `st_mode`.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What getsockopt shows.
    pub options: SocketOptions,
    /// Its filter (SO_GET_FILTER): instructions of classic BPF, 8 bytes each.
    #[serde(serialize_with = "crate::readable::hex")]
    pub filter: Vec<u8>,
    /// Multicast groups that it has joined.
    pub memberships: Vec<Membership>,
    /// Datagrams received and not yet read, oldest first.
    pub queue: Vec<Datagram>,
}

/// An address of the internet families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InetAddress {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Interface of a link-local IPv6 address; else 0.
    pub scope: u32,
}

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InetProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// ICMP of its family, for echo requests alone (SOCK_DGRAM): its port is the id of these.
    Ping,
    /// Any, by packets (SOCK_RAW).
    Raw(u16),
}

/// How far a socket has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InetState {
    /// Not connected; of UDP, perhaps with a peer.
    Closed,
    /// Listens: the backlog given to listen(2).
    Listening(u32),
    /// A TCP connection is being opened: nothing but its SYN was sent.
    Connecting,
    /// A TCP connection.
    Connected(TcpConnection),
    /// Was a TCP connection that has ended: what was received and has not been read yet.
    Ended(#[serde(serialize_with = "crate::readable::text")] Vec<u8>),
}

/// A TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// Sequence number of the byte that is written next, without the end of the stream.
    pub send_seq: u32,
    /// Sequence number of the byte that is received next, without the end of the stream.
    pub receive_seq: u32,
    /// Written, and not yet acknowledged by the other end.
    #[serde(serialize_with = "crate::readable::text")]
    pub outgoing: Vec<u8>,
    /// How many bytes at the end of these have not been sent yet.
    pub unsent: u32,
    /// Received, and not yet read.
    #[serde(serialize_with = "crate::readable::text")]
    pub incoming: Vec<u8>,
    /// The byte of these that was sent as urgent (MSG_OOB).
    pub urgent: Option<TcpUrgent>,
    /// What the ends agreed on.
    pub agreed: TcpAgreement,
    /// Windows (TCP_REPAIR_WINDOW).
    pub window: TcpWindow,
    /// It has sent the end of its stream (FIN): nothing more is written.
    pub ended_here: bool,
    /// The other end has sent the end of its stream.
    pub ended_there: bool,
    /// Index of the socket at the other end, if that is in the tree.
    pub other_end: Option<u32>,
}

/// A byte in the stream that was sent as urgent. Reading stops before it, and passes over it where it is not read in line (SO_OOBINLINE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpUrgent {
    /// How many bytes of the queue are before it.
    pub at: u32,
    /// It was read on its own.
    pub read: bool,
}

/// Options of TCP that both ends agreed on when they connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpAgreement {
    /// Largest segment that the other end takes.
    pub mss: u32,
    /// Shifts of the windows, sent and received.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// TCP_TIMESTAMP: the clock that time stamps are of.
    pub timestamp: Option<u32>,
}

/// `struct tcp_repair_window`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpWindow {
    /// Sequence number of the segment that last changed the window.
    pub snd_wl1: u32,
    /// Window that the other end offers.
    pub snd_wnd: u32,
    /// The largest that it ever offered.
    pub max_window: u32,
    /// Window that is offered to the other end.
    pub rcv_wnd: u32,
    /// Sequence number at which it was last offered.
    pub rcv_wup: u32,
}

/// A multicast group that a socket has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub group: IpAddr,
    /// Number of the interface.
    pub interface: u32,
    /// Of the sources: only these are heard, not all but these.
    pub only_these: bool,
    /// Sources.
    pub sources: Vec<IpAddr>,
}

/// A datagram that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Who sent it.
    pub sender: InetAddress,
    /// Where it was sent to: the address that the socket is bound to, if it is to one.
    pub destination: InetAddress,
    /// Contents.
    #[serde(serialize_with = "crate::readable::text")]
    pub bytes: Vec<u8>,
}
