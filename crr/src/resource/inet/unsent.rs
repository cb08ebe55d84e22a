//! What a program has begun to send and not completed (MSG_MORE, UDP_CORK): it is in the kernel alone, where nobody can read it.

use super::address::to_nix;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::inet::InetAddress;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendto};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// include/linux/socket.h: nothing is sent (ip_append_data() of net/ipv4/ip_output.c).
const MSG_PROBE: i32 = 0x10;

/// Whether a UDP or UDP-Lite socket that has a port has begun a datagram.
///
/// udp_sendmsg() and udpv6_sendmsg() (net/ipv4/udp.c, net/ipv6/udp.c) go on with such a datagram before they look at where it is to go; else port 0 is
/// none. So nothing, with more to come, is added to one that there is, and nothing is changed in either case. The address is not ::, which can be taken for
/// one of IPv4 (udpv6_sendmsg() again).
pub(super) fn has_begun(socket: BorrowedFd<'_>, v6: bool) -> Result<bool> {
    let ip = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let nowhere = to_nix(&InetAddress { ip, port: 0, scope: 0 });
    let flags = MsgFlags::from_bits_retain(MSG_PROBE | libc::MSG_MORE | libc::MSG_DONTWAIT);
    match sendto(socket.as_raw_fd(), &[], &*nowhere, flags) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// How long packets may take to leave. The tree stands still, so nothing comes after them.
#[derive(Debug, Default)]
pub(super) struct Patience(Option<Instant>);

impl Patience {
    const LASTS: Duration = Duration::from_millis(50);

    /// Whether something of a raw socket does not leave: a packet that is begun, which nothing tells from one that waits for its device.
    pub(super) fn is_stuck(&mut self, socket: BorrowedFd<'_>) -> Result<bool> {
        while sys::unreceived_bytes(socket).context("SIOCOUTQ")? > 0 {
            if Instant::now() >= *self.0.get_or_insert_with(|| Instant::now() + Self::LASTS) {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }
}
