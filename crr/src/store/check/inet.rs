//! Internet, netlink and packet sockets: that connections have both ends, and that every address is of the socket's family.

use super::{Check, ensure, inside};
use crate::resource::interface;
use images::file::{Files, Target};
use images::inet::{InetAddress, InetProtocol, InetSocket, InetState};
use images::interface::Interface;
use images::packet::PacketSocket;
use images::socket_option::SocketOptions;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn check(files: &Files) -> Check {
    let known = check_interfaces(&files.interfaces)?;
    for (index, socket) in files.inet_sockets.iter().enumerate() {
        check_socket(index, socket, files)
            .and_then(|()| check_known(interface::of_inet(socket), &known))
            .map_err(inside(format_args!("inet#{index}")))?;
    }
    if let Some(table) = &files.network_hold {
        // It becomes a part of a script.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let ours = table.strip_prefix("crr-").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(plain));
        ensure!(ours, "traffic is held by a table named {table:?}");
    }
    for (index, socket) in files.netlink_sockets.iter().enumerate() {
        check_options(&socket.options, &socket.filter).map_err(inside(format_args!("netlink#{index}")))?;
    }
    for (index, socket) in files.packet_sockets.iter().enumerate() {
        check_packet_socket(socket)
            .and_then(|()| check_known(interface::of_packet(socket), &known))
            .map_err(inside(format_args!("packet#{index}")))?;
    }
    let (mut open, mut netlink, mut packet) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for description in &files.descriptions {
        if let Target::InetSocket(index) = description.target {
            ensure!(open.insert(index), "inet#{index} has two descriptions");
        }
        if let Target::NetlinkSocket(index) = description.target {
            ensure!(netlink.insert(index), "netlink#{index} has two descriptions");
        }
        if let Target::PacketSocket(index) = description.target {
            ensure!(packet.insert(index), "packet#{index} has two descriptions");
        }
    }
    Ok(())
}

fn check_socket(index: usize, socket: &InetSocket, files: &Files) -> Check {
    ensure!(socket.shutdown <= 3, "is shut down as {:#x}", socket.shutdown);
    let queued = socket.queue.iter().flat_map(|one| [one.sender, one.destination]);
    for address in [socket.local, socket.peer].into_iter().flatten().chain(queued) {
        ensure!(is_of(socket, &address), "has the address {}, of another family", address.ip);
    }
    check_options(&socket.options, &socket.filter)?;
    for (number, datagram) in socket.queue.iter().enumerate() {
        let length = datagram.bytes.len();
        ensure!(u16::try_from(length).is_ok(), "datagram {number} has {length} bytes");
    }
    let tcp = socket.protocol == InetProtocol::Tcp;
    ensure!(!tcp || socket.queue.is_empty() && socket.memberships.is_empty(), "has datagrams or groups");
    let packets = matches!(socket.protocol, InetProtocol::Ping | InetProtocol::Raw(_));
    ensure!(!packets || socket.queue.is_empty(), "has packets in its queue, which nobody can put there");
    match &socket.state {
        InetState::Closed => {}
        _ if !tcp => ensure!(false, "has a state of TCP"),
        InetState::Listening(_) => ensure!(socket.local.is_some(), "listens without an address"),
        InetState::Connecting => ensure!(socket.peer.is_some(), "connects to nobody"),
        InetState::Ended(incoming) => {
            ensure!(incoming.is_empty() || socket.local.is_some(), "has data and no address");
        }
        InetState::Connected(connection) => {
            let (Some(local), Some(peer)) = (socket.local, socket.peer) else {
                ensure!(false, "has a connection without addresses");
                return Ok(());
            };
            let unsent = usize::try_from(connection.unsent).unwrap_or(usize::MAX);
            let outgoing = connection.outgoing.len();
            ensure!(unsent <= outgoing, "has not sent {unsent} of {outgoing} bytes");
            let most = i32::MAX as usize;
            ensure!(outgoing.max(connection.incoming.len()) <= most, "has a queue of more than 2 GiB");
            if let Some(urgent) = connection.urgent {
                let received = connection.incoming.len();
                ensure!((urgent.at as usize) < received, "has byte {} of {received} as urgent", urgent.at);
            }
            if let Some(other) = connection.other_end {
                let back = files.inet_sockets.get(other as usize).map(|other| (&other.state, other));
                let mutual = matches!(back, Some((InetState::Connected(there), socket))
                    if there.other_end.is_some_and(|back| back as usize == index)
                        && same(socket.local, Some(peer)) && same(socket.peer, Some(local)));
                ensure!(mutual, "is connected to inet#{other}, which is not connected to it");
            }
        }
    }
    Ok(())
}

fn is_of(socket: &InetSocket, address: &InetAddress) -> bool {
    matches!(address.ip, IpAddr::V6(_)) == socket.v6
}

pub(super) fn check_options(options: &SocketOptions, filter: &[u8]) -> Check {
    for option in options {
        ensure!(option.value.len() <= 256, "option {} has {} bytes", option.name, option.value.len());
    }
    let filter = filter.len();
    ensure!(filter.is_multiple_of(8) && filter <= 8 * 4096, "has a filter of {filter} bytes");
    Ok(())
}

fn check_packet_socket(socket: &PacketSocket) -> Check {
    check_options(&socket.options, &socket.filter)?;
    for membership in &socket.memberships {
        let length = membership.address.len();
        ensure!(length <= 32, "has a membership with an address of {length} bytes");
        ensure!(membership.count > 0, "has a membership that nobody has added");
    }
    Ok(())
}

/// Their numbers.
fn check_interfaces(interfaces: &[Interface]) -> Result<BTreeSet<u32>, String> {
    /// IFNAMSIZ, the final NUL included.
    const NAME_MAX: usize = 16;
    let mut numbers = BTreeSet::new();
    for Interface { number, name } in interfaces {
        ensure!(*number != 0 && numbers.insert(*number), "interface {number} is there twice, or is none");
        let fits = !name.is_empty() && name.len() < NAME_MAX && !name.contains(&0);
        ensure!(fits, "interface {number} cannot have its name");
    }
    Ok(numbers)
}

fn check_known(used: impl Iterator<Item = u32>, known: &BTreeSet<u32>) -> Check {
    for number in used {
        ensure!(known.contains(&number), "has to do with interface {number}, which has no name");
    }
    Ok(())
}

/// An IPv4 address in IPv6 clothes is one.
fn same(one: Option<InetAddress>, other: Option<InetAddress>) -> bool {
    let plain =
        |address: Option<InetAddress>| address.map(|address| (address.ip.to_canonical(), address.port));
    plain(one) == plain(other)
}
