//! Unix sockets: what each is connected to, and what waits in its queue.

use super::printable;
use super::table::Table;
use crate::progress::bytes;
use images::socket::{Peer, UnixKind, UnixSocket};

pub(super) fn unix(sockets: &[UnixSocket]) -> String {
    let mut table = Table::new(["SOCKET", "TYPE", "ADDRESS", "PEER", "UNREAD", "FILES ON THEIR WAY"]);
    for (index, socket) in sockets.iter().enumerate() {
        let kind = match socket.kind {
            UnixKind::Stream => "unix stream",
            UnixKind::Datagram => "unix datagram",
            UnixKind::Seqpacket => "unix seqpacket",
        };
        let peer = match &socket.peer {
            Peer::None => "-".to_owned(),
            Peer::Socket(peer) => format!("socket#{peer}"),
            Peer::Listening { waiting, .. } => format!("listens, {} waiting", waiting.len()),
            Peer::Waiting { listener, .. } => format!("socket#{listener}, waiting"),
            Peer::Closed { .. } => "closed".to_owned(),
        };
        let unread: usize = socket.queue.iter().map(|message| message.bytes.len()).sum();
        let files: usize = socket.queue.iter().map(|message| message.descriptions.len()).sum();
        table.row([
            format!("socket#{index}"),
            kind.to_owned(),
            address(&socket.address),
            peer,
            bytes(unread as u64),
            files.to_string(),
        ]);
    }
    table.to_string()
}

/// A path, or an abstract name after an `@`.
fn address(address: &[u8]) -> String {
    match address {
        [] => "-".to_owned(),
        [0, name @ ..] => format!("@{}", printable(name)),
        path => printable(path),
    }
}
