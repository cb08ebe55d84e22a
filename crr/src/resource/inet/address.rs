//! Addresses, between the images and nix.

use images::inet::InetAddress;
use nix::sys::socket::{SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, getpeername, getsockname};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The address that a socket is bound to; `None` if it is to none.
pub(super) fn local(socket: BorrowedFd<'_>) -> nix::Result<Option<InetAddress>> {
    let found = getsockname::<SockaddrStorage>(socket.as_raw_fd()).map(|address| from(&address))?;
    Ok(found.filter(|address| address.port != 0 || !address.ip.is_unspecified()))
}

/// What it is connected to.
pub(super) fn peer(socket: BorrowedFd<'_>) -> Option<InetAddress> {
    getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok().and_then(|address| from(&address))
}

pub(super) fn from(address: &SockaddrStorage) -> Option<InetAddress> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(InetAddress { ip: IpAddr::V4(v4.ip()), port: v4.port(), scope: 0 });
    }
    let v6 = address.as_sockaddr_in6()?;
    Some(InetAddress { ip: IpAddr::V6(v6.ip()), port: v6.port(), scope: v6.scope_id() })
}

/// For a socket of this family.
pub(super) fn to_nix(address: &InetAddress) -> Box<dyn SockaddrLike> {
    match address.ip {
        IpAddr::V4(ip) => Box::new(SockaddrIn::from(SocketAddrV4::new(ip, address.port))),
        IpAddr::V6(ip) => Box::new(SockaddrIn6::from(SocketAddrV6::new(ip, address.port, 0, address.scope))),
    }
}

/// As it is on the wire: an IPv4 address in IPv6 clothes is one.
pub(super) fn on_the_wire(address: &InetAddress) -> SocketAddr {
    SocketAddr::new(address.ip.to_canonical(), address.port)
}

/// An address as people write it.
pub(crate) struct Shown<'a>(pub(crate) &'a InetAddress);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.ip {
            IpAddr::V6(ip) if self.0.scope != 0 && ip != Ipv6Addr::UNSPECIFIED => {
                write!(f, "[{ip}%{}]:{}", self.0.scope, self.0.port)
            }
            ip => write!(f, "{}", SocketAddr::new(ip, self.0.port)),
        }
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`, as the kernel writes it.
pub(super) fn parse(bytes: &[u8]) -> Option<InetAddress> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(InetAddress { ip: IpAddr::from(ip), port, scope: 0 })
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(InetAddress { ip: IpAddr::from(ip), port, scope })
        }
        _ => None,
    }
}
