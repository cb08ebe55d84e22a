//! What the kernel's socket diagnostics tell of unix sockets: who is connected to whom, which waits at which.

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, nlas::Nla};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use std::collections::HashMap;

/// Room for one answer: the kernel fills up to 32 KiB at a time.
const ANSWER_SIZE: usize = 64 << 10;

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
}

/// All unix sockets of crr's network namespace, by inode.
///
/// # Errors
/// Without CONFIG_UNIX_DIAG.
pub(crate) fn query() -> Result<HashMap<u32, Entry>> {
    let ask = || -> Result<HashMap<u32, Entry>> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&request(), 0)?;
        read_answers(&socket)
    };
    ask().context("ask for all unix sockets (needs CONFIG_UNIX_DIAG)")
}

fn request() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX),
        inode: 0,
        show_flags: ShowFlags::PEER | ShowFlags::ICONS | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::UnixRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn read_answers(socket: &Socket) -> Result<HashMap<u32, Entry>> {
    let mut found = HashMap::new();
    let mut buffer = vec![0u8; ANSWER_SIZE];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..length).context("answer cut off")?;
        while !rest.is_empty() {
            let message = <NetlinkMessage<SockDiagMessage>>::deserialize(rest)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(answer)) => {
                    found.insert(answer.header.inode, entry(&answer.nlas));
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                other => bail!("unexpected answer {other:?}"),
            }
            let whole = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(whole..).unwrap_or_default();
        }
    }
}

fn entry(attributes: &[Nla]) -> Entry {
    let mut entry = Entry::default();
    for attribute in attributes {
        match attribute {
            Nla::Peer(peer) => entry.peer = Some(*peer),
            Nla::PendingConnections(waiting) => entry.waiting.clone_from(waiting),
            Nla::ReceiveQueueLength(_, backlog) => entry.backlog = *backlog,
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
