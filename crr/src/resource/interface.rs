//! Network interfaces that sockets have to do with: the kernel knows them by numbers, and each is found again by its name.

use super::path::CLOSE;
use super::unix_socket::Holder;
use crate::refusal::{Refusal, Refusals};
use anyhow::{Context, Result};
use images::file::Files;
use images::inet::{InetAddress, InetSocket};
use images::interface::Interface;
use images::packet::PacketSocket;
use images::socket_option::{SocketOption, SocketOptions};
use std::collections::BTreeMap;

/// Options with the number of an interface, by level and name, and whether that is in network byte order: IP_UNICAST_IF, IPV6_MULTICAST_IF,
/// IPV6_UNICAST_IF. IP_MULTICAST_IF is shown as an address.
const OPTIONS: [(i32, u32, bool); 3] =
    [(libc::IPPROTO_IP, 50, true), (libc::IPPROTO_IPV6, 17, false), (libc::IPPROTO_IPV6, 76, true)];

/// SO_BINDTODEVICE, which is shown as a name.
const SO_BINDTODEVICE: u32 = 25;

/// The interfaces that a socket has to do with, by their numbers.
pub(crate) fn of_inet(socket: &InetSocket) -> impl Iterator<Item = u32> {
    let queued = socket.queue.iter().flat_map(|one| [&one.sender, &one.destination]);
    let addresses = socket.local.iter().chain(&socket.peer).chain(queued).map(|address| address.scope);
    let groups = socket.memberships.iter().map(|one| one.interface);
    addresses.chain(groups).chain(socket.options.iter().filter_map(in_option)).filter(|number| *number != 0)
}

/// The same of a packet socket.
pub(crate) fn of_packet(socket: &PacketSocket) -> impl Iterator<Item = u32> {
    let groups = socket.memberships.iter().map(|one| one.interface);
    std::iter::once(socket.interface).chain(groups).filter(|number| *number != 0)
}

/// How an option has its number, if it has that of an interface.
fn order(option: SocketOption<'_>) -> Option<bool> {
    let is =
        |(level, name, _): &&(i32, u32, bool)| (level.cast_unsigned(), *name) == (option.level, option.name);
    OPTIONS.iter().find(is).map(|&(_, _, swapped)| swapped)
}

fn in_option(option: SocketOption<'_>) -> Option<u32> {
    let bytes = *option.value.first_chunk()?;
    order(option).map(|swapped| if swapped { u32::from_be_bytes(bytes) } else { u32::from_ne_bytes(bytes) })
}

/// Gives the interfaces of a socket other numbers.
fn renumber_inet(socket: &mut InetSocket, new: impl Fn(u32) -> u32) {
    let scope = |address: &mut InetAddress| address.scope = new(address.scope);
    socket.local.iter_mut().chain(&mut socket.peer).for_each(scope);
    for datagram in &mut socket.queue {
        [&mut datagram.sender, &mut datagram.destination].into_iter().for_each(scope);
    }
    for membership in &mut socket.memberships {
        membership.interface = new(membership.interface);
    }
    if socket.options.iter().any(|option| in_option(option).is_some_and(|number| new(number) != number)) {
        socket.options = renumber_options(&socket.options, new);
    }
}

fn renumber_options(options: &SocketOptions, new: impl Fn(u32) -> u32) -> SocketOptions {
    let mut renumbered = SocketOptions::default();
    for option in options {
        let mut value = option.value.to_vec();
        if let (Some(swapped), Some(number)) = (order(option), in_option(option)) {
            let number = new(number);
            let bytes = if swapped { number.to_be_bytes() } else { number.to_ne_bytes() };
            value[..bytes.len()].copy_from_slice(&bytes);
        }
        renumbered.push(&SocketOption { value: &value, ..option });
    }
    renumbered
}

fn renumber_packet(socket: &mut PacketSocket, new: impl Fn(u32) -> u32) {
    socket.interface = new(socket.interface);
    for membership in &mut socket.memberships {
        membership.interface = new(membership.interface);
    }
}

/// Those that are there, by number.
fn all() -> Result<BTreeMap<u32, Vec<u8>>> {
    let all = nix::net::if_::if_nameindex().context("list the network interfaces")?;
    Ok(all.iter().map(|one| (one.index(), one.name().to_bytes().to_vec())).collect())
}

/// The names of interfaces that sockets have to do with. One that is gone could not be found again.
///
/// # Errors
/// If the kernel does not list them.
pub(crate) fn dump<'a>(
    numbers: impl Iterator<Item = (u32, &'a Holder)>,
    refusals: &mut Refusals,
) -> Result<Vec<Interface>> {
    let used: BTreeMap<u32, &Holder> = numbers.collect();
    if used.is_empty() {
        return Ok(Vec::new());
    }
    let mut there = all()?;
    let mut found = Vec::new();
    for (number, Holder { pid, name: comm, object }) in used {
        match there.remove(&number) {
            Some(name) => found.push(Interface { number, name }),
            None => {
                let reason = format!("has to do with network interface {number}, which is gone");
                refusals.task((*pid, comm), object, reason, Some(CLOSE));
            }
        }
    }
    Ok(found)
}

/// Gives the interfaces of all sockets the numbers that they have here. Refuses a restore where one is missing.
///
/// # Errors
/// If the kernel does not list them.
pub(crate) fn find(files: &mut Files, refusals: &mut Refusals) -> Result<()> {
    let options = files.inet_sockets.iter().flat_map(|one| &one.options);
    let options = options.chain(files.packet_sockets.iter().flat_map(|one| &one.options));
    let options = options.chain(files.netlink_sockets.iter().flat_map(|one| &one.options));
    let options = options.chain(files.unix_sockets.iter().flat_map(|one| &one.options));
    let bound: Vec<&[u8]> = options.filter_map(device).collect();
    if bound.is_empty() && files.interfaces.is_empty() {
        return Ok(());
    }
    let there: BTreeMap<Vec<u8>, u32> = all()?.into_iter().map(|(number, name)| (name, number)).collect();
    let names = files.interfaces.iter().map(|one| &one.name[..]);
    for name in bound.into_iter().chain(names).filter(|name| !there.contains_key(*name)) {
        refusals.push(Refusal {
            task: None,
            object: format!("network interface {}", name.escape_ascii()),
            reason: "is not there, and a socket of the tree has to do with it".into(),
            hint: Some("make one of that name, or give one that name (ip link)".into()),
        });
    }
    let numbers: BTreeMap<u32, u32> =
        files.interfaces.iter().filter_map(|one| Some((one.number, *there.get(&one.name)?))).collect();
    let new = |number: u32| numbers.get(&number).copied().unwrap_or(number);
    files.inet_sockets.iter_mut().for_each(|socket| renumber_inet(socket, new));
    files.packet_sockets.iter_mut().for_each(|socket| renumber_packet(socket, new));
    for interface in &mut files.interfaces {
        interface.number = new(interface.number);
    }
    Ok(())
}

/// The name of the interface that a socket is bound to by it.
fn device(option: SocketOption<'_>) -> Option<&[u8]> {
    let is = (option.level, option.name) == (libc::SOL_SOCKET.cast_unsigned(), SO_BINDTODEVICE);
    let name = option.value.split(|byte| *byte == 0).next()?;
    (is && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::inet::{Datagram, InetProtocol, InetState, Membership};
    use std::net::Ipv6Addr;

    #[test]
    fn all_numbers_become_others() {
        let address = |scope| InetAddress { ip: Ipv6Addr::LOCALHOST.into(), port: 1, scope };
        let mut options = SocketOptions::default();
        for (level, name, value) in [
            (libc::IPPROTO_IP, 50, 6u32.to_be_bytes()),
            (libc::IPPROTO_IPV6, 17, 7u32.to_ne_bytes()),
            (libc::IPPROTO_IPV6, 76, 8u32.to_be_bytes()),
            (libc::IPPROTO_IPV6, 16, 64u32.to_ne_bytes()),
        ] {
            options.push(&SocketOption { level: level.cast_unsigned(), name, value: &value });
        }
        let mut socket = InetSocket {
            ino: 1,
            v6: true,
            protocol: InetProtocol::Udp,
            local: Some(address(1)),
            peer: Some(address(2)),
            state: InetState::Closed,
            shutdown: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            options,
            filter: Vec::new(),
            memberships: vec![Membership {
                group: Ipv6Addr::LOCALHOST.into(),
                interface: 5,
                only_these: false,
                sources: Vec::new(),
            }],
            queue: vec![Datagram { sender: address(3), destination: address(4), bytes: Vec::new() }],
        };
        assert_eq!(of_inet(&socket).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
        renumber_inet(&mut socket, |number| number + 0x100);
        assert_eq!(
            of_inet(&socket).collect::<Vec<_>>(),
            [0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108]
        );
        assert_eq!(socket.options.iter().last().unwrap().value, 64u32.to_ne_bytes());
    }
}
