//! What the kernel's socket diagnostics tell of internet sockets.

use super::Ends;
use crate::resource::socket::diag;
use crate::sys::tcp;
use anyhow::{Context, Result};
use images::inet::{InetAddress, InetProtocol, InetSocket};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// One socket. One that the kernel does not list, which has no port, has nothing of all this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// sk_shutdown.
    pub(super) shutdown: u32,
    /// What it is connected to, or is about to be.
    pub(super) peer: Option<InetAddress>,
    /// It has keys for TCP_MD5SIG.
    pub(super) signed: bool,
}

/// The sockets of a family and protocol.
#[derive(Debug, Default)]
struct All {
    by_inode: HashMap<u64, Entry>,
    /// Ends of connections that nobody has: over, or not accepted yet. With the state, and how many bytes have been received.
    without_holder: HashMap<Ends, (u8, u32)>,
}

/// What has been asked for so far, by family and protocol.
#[derive(Debug, Default)]
pub(super) struct Known {
    kinds: HashMap<(bool, i32), All>,
}

impl Known {
    /// A socket.
    ///
    /// # Errors
    /// Without CONFIG_INET_DIAG.
    pub(super) fn of(&mut self, record: &InetSocket) -> Result<Entry> {
        let protocol = match record.protocol {
            InetProtocol::Tcp => libc::IPPROTO_TCP,
            InetProtocol::Udp => libc::IPPROTO_UDP,
            InetProtocol::UdpLite => libc::IPPROTO_UDPLITE,
            InetProtocol::Ping | InetProtocol::Raw(_) => return Ok(Entry::default()),
        };
        let all = self.all(record.v6, protocol)?;
        Ok(all.by_inode.get(&record.ino).copied().unwrap_or_default())
    }

    /// How many bytes an established TCP connection has received at an end that nobody has accepted; `None` if there is no such end. That of
    /// an IPv4 address can be a socket of either family.
    pub(super) fn received_without_holder(&mut self, end: &Ends) -> Result<Option<u32>> {
        for v6 in [false, true] {
            if let Some(&(tcp::ESTABLISHED, received)) =
                self.all(v6, libc::IPPROTO_TCP)?.without_holder.get(end)
            {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    fn all(&mut self, v6: bool, protocol: i32) -> Result<&All> {
        Ok(match self.kinds.entry((v6, protocol)) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(slot) => slot.insert(
                query(v6, protocol)
                    .context("ask for all sockets (needs CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG)")?,
            ),
        })
    }
}

fn query(v6: bool, protocol: i32) -> Result<All> {
    let mut all = All::default();
    diag::ask(SockDiagMessage::InetRequest(request(v6, protocol)?), |answer| {
        let SockDiagMessage::InetResponse(answer) = answer else { return };
        let id = &answer.header.socket_id;
        let peer = InetAddress {
            ip: id.destination_address,
            port: id.destination_port,
            scope: if v6 { id.interface_id } else { 0 },
        };
        let shutdown = answer.nlas.iter().find_map(|attribute| match attribute {
            Nla::Shutdown(shutdown) => Some(u32::from(*shutdown)),
            _ => None,
        });
        /// INET_DIAG_MD5SIG of include/uapi/linux/inet_diag.h.
        const MD5SIG: u16 = 18;
        let entry = Entry {
            shutdown: shutdown.unwrap_or_default(),
            peer: Some(peer).filter(|peer| peer.port != 0),
            signed: answer.nlas.iter().any(|attribute| netlink_packet_core::Nla::kind(attribute) == MD5SIG),
        };
        if answer.header.inode == 0 {
            let end = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            let ends = Ends {
                local: end(id.source_address, id.source_port),
                peer: end(id.destination_address, id.destination_port),
            };
            all.without_holder.insert(ends, (answer.header.state, answer.header.recv_queue));
        } else {
            all.by_inode.insert(u64::from(answer.header.inode), entry);
        }
    })?;
    Ok(all)
}

/// Whether any of these sockets has a TCP connection, as far as the kernel tells.
pub(crate) fn are_connected(inodes: &HashSet<u64>) -> bool {
    let mut found = false;
    for v6 in [false, true].into_iter().filter(|_| !inodes.is_empty()) {
        let asked = request(v6, libc::IPPROTO_TCP).and_then(|request| {
            let of_connections = InetRequest { states: connected(), ..request };
            diag::ask(SockDiagMessage::InetRequest(of_connections), |answer| {
                let SockDiagMessage::InetResponse(answer) = answer else { return };
                found |= inodes.contains(&u64::from(answer.header.inode));
            })
        });
        if let Err(e) = asked {
            log::debug!("look for TCP connections: {e:#}");
        }
    }
    found
}

/// The states that `super::is_connected` means.
fn connected() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::CLOSING
        | StateFlags::LAST_ACK
}

fn request(v6: bool, protocol: i32) -> Result<InetRequest> {
    Ok(InetRequest {
        family: u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET })?,
        protocol: u8::try_from(protocol)?,
        // With INFO come the keys of TCP_MD5SIG: inet_sk_diag_fill() of net/ipv4/inet_diag.c.
        extensions: ExtensionFlags::SHUTDOWN | ExtensionFlags::INFO,
        states: StateFlags::from_bits_retain(u32::MAX),
        socket_id: if v6 { SocketId::new_v6() } else { SocketId::new_v4() },
    })
}

/// Has the kernel forget TCP connections that were at a port and are over: nobody has them, and both ends have said all.
pub(super) fn forget_lingering(port: u16) -> Result<()> {
    for v6 in [false, true] {
        let mut lingering = Vec::new();
        let states = StateFlags::TIME_WAIT | StateFlags::FIN_WAIT2;
        let of_all = InetRequest { states, ..request(v6, libc::IPPROTO_TCP)? };
        diag::ask(SockDiagMessage::InetRequest(of_all), |answer| {
            if let SockDiagMessage::InetResponse(answer) = answer
                && answer.header.inode == 0
                && answer.header.socket_id.source_port == port
            {
                lingering.push(answer.header.socket_id);
            }
        })?;
        for socket_id in lingering {
            let one = InetRequest { socket_id, ..request(v6, libc::IPPROTO_TCP)? };
            // It may be over by now; and what is still in the way is told by the bind.
            let _ = diag::destroy(SockDiagMessage::InetRequest(one));
        }
    }
    Ok(())
}
