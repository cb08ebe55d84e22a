//! What the kernel's socket diagnostics tell of internet sockets.

use crate::resource::socket::diag;
use anyhow::{Context, Result};
use images::inet::{InetAddress, InetProtocol, InetSocket};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use std::collections::HashMap;

/// One socket. One that the kernel does not list, which has no port, has nothing of all this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// sk_shutdown.
    pub(super) shutdown: u32,
    /// What it is connected to, or is about to be.
    pub(super) peer: Option<InetAddress>,
}

/// What has been asked for so far: by family and protocol, the sockets by inode.
#[derive(Debug, Default)]
pub(super) struct Known {
    kinds: HashMap<(bool, i32), HashMap<u64, Entry>>,
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
        };
        let kind = (record.v6, protocol);
        let all = match self.kinds.remove(&kind) {
            Some(all) => all,
            None => query(record.v6, protocol)
                .context("ask for all sockets (needs CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG)")?,
        };
        let entry = all.get(&record.ino).copied().unwrap_or_default();
        self.kinds.insert(kind, all);
        Ok(entry)
    }
}

fn query(v6: bool, protocol: i32) -> Result<HashMap<u64, Entry>> {
    let request = InetRequest {
        family: u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET })?,
        protocol: u8::try_from(protocol)?,
        extensions: ExtensionFlags::SHUTDOWN,
        states: StateFlags::from_bits_retain(u32::MAX),
        socket_id: if v6 { SocketId::new_v6() } else { SocketId::new_v4() },
    };
    let mut all = HashMap::new();
    diag::ask(SockDiagMessage::InetRequest(request), |answer| {
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
        let entry =
            Entry { shutdown: shutdown.unwrap_or_default(), peer: Some(peer).filter(|peer| peer.port != 0) };
        all.insert(u64::from(answer.header.inode), entry);
    })?;
    Ok(all)
}
