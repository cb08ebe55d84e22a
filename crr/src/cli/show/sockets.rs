//! Sockets: what each is connected to, and what waits in its queue.

use super::printable;
use super::table::Table;
use crate::progress::bytes;
use crate::resource::inet::Shown;
use images::inet::{InetAddress, InetProtocol, InetSocket, InetState};
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
            Peer::Elsewhere { address: at, .. } => format!("again {}", address(at)),
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

pub(super) fn inet(sockets: &[InetSocket]) -> String {
    let mut table = Table::new(["SOCKET", "PROTOCOL", "ADDRESS", "PEER", "STATE", "UNREAD", "UNACKED"]);
    for (index, socket) in sockets.iter().enumerate() {
        let six = if socket.v6 { "6" } else { "" };
        let protocol = match socket.protocol {
            InetProtocol::Tcp => format!("tcp{six}"),
            InetProtocol::Udp => format!("udp{six}"),
            InetProtocol::UdpLite => format!("udp-lite{six}"),
            InetProtocol::Ping => format!("ping{six}"),
            InetProtocol::Raw(number) => format!("raw{six} {number}"),
        };
        let shown = |address: &Option<InetAddress>| {
            address.as_ref().map_or_else(|| "-".to_owned(), |address| Shown(address).to_string())
        };
        let (state, mut unread, unsent) = match &socket.state {
            InetState::Closed => ("-".to_owned(), 0, 0),
            InetState::Listening(backlog) => (format!("listens, backlog {backlog}"), 0, 0),
            InetState::Connecting => ("connecting".to_owned(), 0, 0),
            InetState::Ended(incoming) => ("ended".to_owned(), incoming.len(), 0),
            InetState::Connected(tcp) => {
                let other =
                    tcp.other_end.map_or_else(|| "connected".to_owned(), |other| format!("to inet#{other}"));
                (other, tcp.incoming.len(), tcp.outgoing.len())
            }
        };
        unread += socket.queue.iter().map(|datagram| datagram.bytes.len()).sum::<usize>();
        table.row([
            format!("inet#{index}"),
            protocol,
            shown(&socket.local),
            shown(&socket.peer),
            state,
            bytes(unread as u64),
            bytes(unsent as u64),
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
