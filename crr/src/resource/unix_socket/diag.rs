//! What the kernel's socket diagnostics tell of unix sockets: who is connected to whom, which waits at which.

use crate::resource::socket::diag;
use anyhow::{Context, Result};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::TCP_LISTEN;
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

/// One unix socket of crr's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Inode of the peer; 0 when that has been closed or has not been accepted yet, `None` without a peer.
    pub(crate) peer: Option<u32>,
    /// Of a listening socket: inodes of the clients whose connections have not been accepted, oldest first.
    pub(crate) waiting: Vec<u32>,
    /// Of a listening socket: its backlog.
    pub(crate) backlog: u32,
    /// sk_shutdown: 1 nothing more is received, 2 nothing more is sent.
    pub(crate) shutdown: u32,
    /// It listens.
    pub(crate) listens: bool,
    /// The name it is bound to: a path, or a NUL and an abstract name; empty if it has none.
    pub(crate) name: Vec<u8>,
}

/// All unix sockets of crr's network namespace, by inode.
///
/// # Errors
/// Without CONFIG_UNIX_DIAG.
pub(crate) fn query() -> Result<HashMap<u32, Entry>> {
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX),
        inode: 0,
        show_flags: ShowFlags::NAME | ShowFlags::PEER | ShowFlags::ICONS | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    };
    let mut found = HashMap::new();
    diag::ask(SockDiagMessage::UnixRequest(request), |answer| {
        if let SockDiagMessage::UnixResponse(answer) = answer {
            let listens = answer.header.state == TCP_LISTEN;
            found.insert(answer.header.inode, Entry { listens, ..entry(&answer.nlas) });
        }
    })
    .context("ask for all unix sockets (needs CONFIG_UNIX_DIAG)")?;
    Ok(found)
}

fn entry(attributes: &[Nla]) -> Entry {
    let mut entry = Entry::default();
    for attribute in attributes {
        match attribute {
            Nla::Peer(peer) => entry.peer = Some(*peer),
            Nla::PendingConnections(waiting) => entry.waiting.clone_from(waiting),
            Nla::ReceiveQueueLength(_, backlog) => entry.backlog = *backlog,
            Nla::Name(UnixDiagName::Pathname(path)) => entry.name = path.as_bytes().to_vec(),
            Nla::Name(UnixDiagName::Abstract(name)) => entry.name = [b"\0", name.as_slice()].concat(),
            Nla::Shutdown(shutdown) => entry.shutdown = u32::from(*shutdown),
            _ => {}
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn peers_find_each_other() {
        let inode = |socket: &UnixStream| {
            u32::try_from(nix::sys::stat::fstat(socket.as_fd()).unwrap().st_ino).unwrap()
        };
        let (a, b) = UnixStream::pair().unwrap();
        let (left, gone) = UnixStream::pair().unwrap();
        drop(gone);
        a.shutdown(Shutdown::Read).unwrap();
        let all = query().unwrap();
        assert_eq!(all[&inode(&a)], Entry { peer: Some(inode(&b)), shutdown: 1, ..all[&inode(&a)].clone() });
        assert_eq!(all[&inode(&b)].peer, Some(inode(&a)));
        assert_eq!(all[&inode(&b)].shutdown, 2);
        assert_eq!((all[&inode(&left)].peer, all[&inode(&left)].shutdown), (Some(0), 3));
    }
}
