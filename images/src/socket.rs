//! Unix sockets: addresses, who is connected to whom, what waits to be read, options.

use crate::id::{DescriptionId, Pid};
use crate::socket_option::SocketOptions;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A socket of family AF_UNIX. It has one open file description at most; one that nobody holds lies in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Its inode number on sockfs at dump, for messages only.
    pub ino: u64,
    /// SO_TYPE.
    pub kind: UnixKind,
    /// The name it is bound to: a path, or a NUL and an abstract name; empty if it has none.
    #[serde(serialize_with = "crate::readable::text")]
    pub address: Vec<u8>,
    /// The file it is bound to, if that is still there.
    pub file: Option<SocketFile>,
    /// What it is connected to.
    pub peer: Peer,
    /// sk_shutdown: bit 0, nothing more is received; bit 1, nothing more is sent.
    pub shutdown: u32,
    /// `st_mode` of the socket itself, not of the file it is bound to.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// SO_PEERCRED and SO_PEERGROUPS, where it has recorded somebody.
    pub peer_credentials: Option<PeerCredentials>,
    /// What getsockopt shows.
    pub options: SocketOptions,
    /// Its filter (SO_GET_FILTER): instructions of classic BPF, 8 bytes each.
    #[serde(serialize_with = "crate::readable::hex")]
    pub filter: Vec<u8>,
    /// What was sent to it and not yet read, oldest first.
    pub queue: Vec<Message>,
}

/// The type of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixKind {
    /// SOCK_STREAM.
    Stream,
    /// SOCK_DGRAM.
    Datagram,
    /// SOCK_SEQPACKET.
    Seqpacket,
}

/// The file of a bound unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// Absolute, as seen from the root of `crr dump`.
    #[serde(serialize_with = "crate::readable::text")]
    pub path: Vec<u8>,
    /// `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `st_dev` at dump.
    pub dev: u64,
    /// `st_ino` at dump.
    pub ino: u64,
}

/// What a unix socket is connected to: sockets of the tree are indices into [`crate::file::Files::unix_sockets`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Nothing.
    None,
    /// Another socket of the tree, which is connected to this one; of datagram sockets, perhaps not.
    Socket(u32),
    /// Nothing: it listens.
    Listening {
        /// As given to listen(2).
        backlog: u32,
        /// Clients whose connections have not been accepted, oldest first.
        waiting: Vec<u32>,
    },
    /// A listening socket of the tree, which has not accepted the connection.
    Waiting {
        /// Which.
        listener: u32,
        /// Who connected: what the other side will see.
        connector: PeerCredentials,
    },
    /// One that has been closed.
    Closed {
        /// The name that it had.
        #[serde(serialize_with = "crate::readable::text")]
        address: Vec<u8>,
        /// It was closed with data unread, and this socket has not been told yet (ECONNRESET).
        reset: bool,
    },
    /// One outside of the tree, to which it is connected again.
    Elsewhere {
        /// Where that is: an absolute path, or a NUL and an abstract name.
        #[serde(serialize_with = "crate::readable::text")]
        address: Vec<u8>,
        /// Who connects: what the other side will see.
        connector: PeerCredentials,
    },
}

/// Who stood at the other end when the connection was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCredentials {
    /// Process.
    pub pid: Pid,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Something sent and not yet read: a datagram, or a part of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Contents.
    #[serde(serialize_with = "crate::readable::text")]
    pub bytes: Vec<u8>,
    /// Of a datagram, the address of the sender.
    #[serde(serialize_with = "crate::readable::text")]
    pub sender: Vec<u8>,
    /// SCM_CREDENTIALS, where the socket asks for them (SO_PASSCRED) and the message has some.
    pub credentials: Option<Credentials>,
    /// SCM_RIGHTS: descriptions on their way, in order.
    pub descriptions: Vec<DescriptionId>,
    /// The byte of a stream that was sent out of band (MSG_OOB) last.
    pub out_of_band: bool,
}

/// Sender of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Process.
    pub pid: Pid,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
