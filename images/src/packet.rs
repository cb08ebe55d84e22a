//! Sockets of family AF_PACKET, by which programs hear and send what passes an interface.

use crate::socket_option::SocketOptions;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A packet socket. It has one open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketSocket {
    /// Its inode number on sockfs at dump, for messages only.
    pub ino: u64,
    /// SO_TYPE: SOCK_RAW or SOCK_DGRAM.
    pub kind: u32,
    /// Which packets it hears: ETH_P_*, 0 for none.
    pub protocol: u16,
    /// Number of the interface that it is bound to, 0 for all.
    pub interface: u32,
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
    /// What more the interfaces are to let in for its sake.
    pub memberships: Vec<PacketMembership>,
    /// The group of sockets among which packets are shared out (PACKET_FANOUT).
    pub fanout: Option<u32>,
}

/// A membership of a packet socket (PACKET_ADD_MEMBERSHIP).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketMembership {
    /// Number of the interface.
    pub interface: u32,
    /// PACKET_MR_*.
    pub kind: u16,
    /// Hardware address.
    #[serde(serialize_with = "crate::readable::hex")]
    pub address: Vec<u8>,
    /// How many times it was added.
    pub count: u32,
}
