//! What procfs lists of raw sockets and of those for ping: a kernel has no diagnostics of the latter, and seldom of the former
//! (CONFIG_INET_RAW_DIAG).

use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::inet::{InetAddress, InetProtocol, InetSocket};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// Peers of connected sockets by inode.
type Peers = HashMap<u64, (IpAddr, u16)>;

/// The lists that were needed so far, by their names.
#[derive(Debug, Default)]
pub(super) struct Listed(HashMap<&'static str, Peers>);

impl Listed {
    /// What such a socket is connected to. getpeername(2) says that it is not where the port is 0 (inet_getname() of net/ipv4/af_inet.c),
    /// which has no meaning here, so that most have that.
    pub(super) fn peer(
        &mut self,
        socket: BorrowedFd<'_>,
        record: &InetSocket,
    ) -> Result<Option<InetAddress>> {
        let name = match (record.protocol, record.v6) {
            (InetProtocol::Raw(_), false) => "raw",
            (InetProtocol::Raw(_), true) => "raw6",
            (InetProtocol::Ping, false) => "icmp",
            (InetProtocol::Ping, true) => "icmp6",
            (InetProtocol::Tcp | InetProtocol::Udp | InetProtocol::UdpLite, _) => return Ok(record.peer),
        };
        let peers = match self.0.entry(name) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(slot) => {
                let path = format!("/proc/self/net/{name}");
                slot.insert(parse(&std::fs::read_to_string(&path).context(path)?))
            }
        };
        let Some(&(ip, port)) = peers.get(&record.ino) else { return Ok(None) };
        let scope = if is_link_local(ip) { interface(socket)? } else { 0 };
        Ok(Some(InetAddress { ip, port, scope }))
    }
}

/// Whether an address means something only on one interface: __ipv6_addr_needs_scope_id() of include/net/ipv6.h.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || matches!(ip.segments()[0] & 0xff0f, 0xff01 | 0xff02),
    }
}

/// The interface that a socket is bound to, as one is by being connected to a link-local address.
fn interface(socket: BorrowedFd<'_>) -> Result<u32> {
    const SO_BINDTOIFINDEX: i32 = 62;
    let index = sys::number(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX).context("SO_BINDTOIFINDEX")?;
    Ok(index.cast_unsigned())
}

/// A line for each socket: number, own and other address, state, and six fields further the inode.
fn parse(text: &str) -> Peers {
    const ESTABLISHED: &str = "01";
    let mut peers = Peers::new();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, peer, ESTABLISHED, _, _, _, _, _, inode, ..] = words[..] else { continue };
        if let (Ok(inode), Some(peer)) = (inode.parse(), address(peer)) {
            peers.insert(inode, peer);
        }
    }
    peers
}

/// Hexadecimal, the address in words that are printed as the numbers that their bytes are on this machine.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if ip.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0u8; 16];
        for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
            part.copy_from_slice(&word(8 * index)?);
        }
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_parsed() {
        let found = parse(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                1: 0100007F:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 120 2 0000000000000000 0\n\
              255: 00000000:00FF 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 121 2 0000000000000000 0\n",
        );
        assert_eq!(found, [(120, ("127.0.0.1".parse().unwrap(), 0))].into());
        let six = parse(
            "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
               58: 00000000000000000000000000000000:003A 000080FE000000000000000001000000:0002 01 00000000:00000000 00:00000000 00000000     0        0 122 2 0000000000000000 0\n",
        );
        let (ip, port) = six[&122];
        assert_eq!((ip, port), ("fe80::1".parse().unwrap(), 2));
        assert!(is_link_local(ip));
    }
}
