//! Multicast groups that a socket has joined.
//!
//! The kernel lists for each interface the groups that somebody has joined; which socket did, it tells only when asked about
//! one socket, group and interface (MCAST_MSFILTER).

use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::inet::{InetProtocol, Membership};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// `struct group_filter`: its interface, group, mode, number of sources, and where these begin.
const GROUP: usize = 8;
const MODE: usize = 136;
const SOURCES: usize = 144;
/// `struct sockaddr_storage`.
const ADDRESS: usize = 128;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_INCLUDE: u32 = 1;

/// Interfaces and the groups that somebody has joined there, listed when first needed.
#[derive(Debug, Default)]
pub(super) struct Joined(Option<BTreeSet<(u32, IpAddr)>>);

/// What a socket has joined, of the groups of its family and, for an IPv6 socket, of both. Streams join nothing.
pub(super) fn dump(
    socket: BorrowedFd<'_>,
    protocol: InetProtocol,
    v6: bool,
    joined: &mut Joined,
) -> Result<Vec<Membership>> {
    if protocol == InetProtocol::Tcp {
        return Ok(Vec::new());
    }
    let all = match joined.0.take() {
        Some(all) => all,
        None => joined_by_anybody().context("list multicast groups")?,
    };
    let mut found = Vec::new();
    for &(interface, group) in joined.0.insert(all).iter().filter(|(_, group)| v6 || group.is_ipv4()) {
        match filter(socket, interface, group) {
            Ok(membership) => found.push(membership),
            Err(Errno::EADDRNOTAVAIL | Errno::ENOPROTOOPT | Errno::ENODEV) => {}
            Err(errno) => return Err(errno).with_context(|| format!("multicast group {group}")),
        }
    }
    Ok(found)
}

/// Joins again.
pub(super) fn restore(socket: BorrowedFd<'_>, memberships: &[Membership]) -> Result<()> {
    for membership in memberships {
        let join = || -> nix::Result<()> {
            let mut bytes = head(membership.interface, membership.group);
            let level = level(membership.group);
            sys::set_option(socket, level, MCAST_JOIN_GROUP, &bytes)?;
            if membership.only_these || !membership.sources.is_empty() {
                bytes.extend(u32::from(membership.only_these).to_ne_bytes());
                bytes.extend(u32::try_from(membership.sources.len()).unwrap_or(u32::MAX).to_ne_bytes());
                bytes.extend(membership.sources.iter().flat_map(|source| address(*source)));
                sys::set_option(socket, level, MCAST_MSFILTER, &bytes)?;
            }
            Ok(())
        };
        join().with_context(|| {
            format!("join multicast group {} on interface {}", membership.group, membership.interface)
        })?;
    }
    Ok(())
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn filter(socket: BorrowedFd<'_>, interface: u32, group: IpAddr) -> nix::Result<Membership> {
    let mut room = 16;
    loop {
        let mut value = head(interface, group);
        value.extend([0; 4]);
        value.extend(u32::try_from(room).unwrap_or(0).to_ne_bytes());
        value.resize(SOURCES + room * ADDRESS, 0);
        sys::option_about(socket, level(group), MCAST_MSFILTER, &mut value)?;
        let word = |at: usize| {
            value.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let count = word(MODE + 4) as usize;
        if count > room {
            room = count;
            continue;
        }
        let sources = value.get(SOURCES..).unwrap_or_default().chunks_exact(ADDRESS).take(count);
        return Ok(Membership {
            group,
            interface,
            only_these: word(MODE) == MCAST_INCLUDE,
            sources: sources.filter_map(ip).collect(),
        });
    }
}

/// `struct group_req`, with which the filter begins.
fn head(interface: u32, group: IpAddr) -> Vec<u8> {
    let mut bytes = interface.to_ne_bytes().to_vec();
    bytes.resize(GROUP, 0);
    bytes.extend(address(group));
    bytes
}

/// `struct sockaddr_storage` without a port.
fn address(ip: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ADDRESS);
    match ip {
        IpAddr::V4(v4) => {
            bytes.extend(libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0).to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.extend(libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0).to_ne_bytes());
            bytes.extend([0; 6]);
            bytes.extend(v6.octets());
        }
    }
    bytes.resize(ADDRESS, 0);
    bytes
}

fn ip(address: &[u8]) -> Option<IpAddr> {
    let family = i32::from(u16::from_ne_bytes(*address.first_chunk()?));
    match family {
        libc::AF_INET => Some(IpAddr::V4(Ipv4Addr::from(*address.get(4..)?.first_chunk::<4>()?))),
        libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(*address.get(8..)?.first_chunk::<16>()?))),
        _ => None,
    }
}

/// Interfaces and the groups that somebody has joined there.
fn joined_by_anybody() -> Result<BTreeSet<(u32, IpAddr)>> {
    let mut found = BTreeSet::new();
    let read = |name: &str| match std::fs::read_to_string(format!("/proc/self/net/{name}")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    parse_igmp(&read("igmp")?, &mut found);
    parse_igmp6(&read("igmp6")?, &mut found);
    Ok(found)
}

/// A line for each interface, with its number first, and below it a line for each group.
fn parse_igmp(text: &str, found: &mut BTreeSet<(u32, IpAddr)>) {
    let mut interface = 0;
    for line in text.lines().skip(1) {
        let Some(first) = line.split_whitespace().next() else { continue };
        if !line.starts_with('\t') {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            // Printed as the number that the bytes are on this machine.
            found.insert((interface, IpAddr::V4(Ipv4Addr::from(group.to_ne_bytes()))));
        }
    }
}

/// A line for each group of each interface: number, name, group.
fn parse_igmp6(text: &str, found: &mut BTreeSet<(u32, IpAddr)>) {
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let interface = fields.next().and_then(|number| number.parse().ok());
        let group = fields.nth(1).and_then(|group| u128::from_str_radix(group, 16).ok());
        if let (Some(interface), Some(group)) = (interface, group) {
            found.insert((interface, IpAddr::V6(Ipv6Addr::from(group))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_groups_are_parsed() {
        let mut found = BTreeSet::new();
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            4\teth0      :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        parse_igmp(text, &mut found);
        parse_igmp6("1    lo              ff020000000000000000000000000001     1 0000000C 0\n", &mut found);
        let expected: [(u32, IpAddr); 2] =
            [(1, "ff02::1".parse().unwrap()), (4, "224.0.0.1".parse().unwrap())];
        assert_eq!(found, expected.into());
    }
}
