//! Sockets of family AF_NETLINK, by which programs ask the kernel and hear of changes.

use crate::socket_option::SocketOptions;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A netlink socket with nothing to be read. It has one open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkSocket {
    /// Its inode number on sockfs at dump, for messages only.
    pub ino: u64,
    /// NETLINK_*.
    pub protocol: u32,
    /// SO_TYPE: SOCK_RAW or SOCK_DGRAM.
    pub kind: u32,
    /// Its own port, 0 while it has none.
    pub port: u32,
    /// Port and groups that it is connected to.
    pub peer: (u32, u32),
    /// Multicast groups that it hears.
    pub groups: Vec<u32>,
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
}
