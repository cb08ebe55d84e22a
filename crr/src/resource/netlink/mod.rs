//! Netlink sockets of the protocols whose sockets have nothing but an address and the groups that they hear.

mod audit;

use super::Refuse;
use super::path::CLOSE;
use super::socket::{option, restore_owner};
use super::unix_socket::Holder;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::netlink::NetlinkSocket;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{NetlinkAddr, bind, connect, getpeername, getsockname};
use nix::sys::stat::FileStat;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;

/// NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_AUDIT, NETLINK_KOBJECT_UEVENT, NETLINK_GENERIC.
const SUPPORTED: [i32; 5] = [0, 4, 9, 15, 16];

/// The record of a socket; `None` when it is refused.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    stat: &FileStat,
    holder: &Holder,
    refuse: &mut Refuse<'_>,
) -> Result<Option<NetlinkSocket>> {
    let number = |name| sys::number(fd, libc::SOL_SOCKET, name).context("getsockopt");
    let protocol = number(libc::SO_PROTOCOL)?;
    let obstacle = if !SUPPORTED.contains(&protocol) {
        Some(format!("netlink sockets of protocol {protocol} ({}) are not supported", name(protocol)))
    } else if sys::filter_length(fd).is_err() {
        Some("a netlink socket with an eBPF filter (SO_ATTACH_BPF) is not supported".to_owned())
    } else if sys::events(fd).context("poll")? & (libc::POLLIN | libc::POLLERR) != 0 {
        Some(format!("a netlink socket ({}) with something to be read", name(protocol)))
    } else {
        None
    };
    if let Some(reason) = obstacle {
        refuse.with_hint(&holder.object, reason, CLOSE);
        return Ok(None);
    }
    if protocol == libc::NETLINK_AUDIT
        && let Some((reason, hint)) = audit::obstacle(stat.st_ino)?
    {
        refuse.with_hint(&holder.object, reason, hint);
        return Ok(None);
    }
    let own = getsockname::<NetlinkAddr>(fd.as_raw_fd()).context("getsockname")?;
    let peer = getpeername::<NetlinkAddr>(fd.as_raw_fd()).context("getpeername")?;
    Ok(Some(NetlinkSocket {
        ino: stat.st_ino,
        protocol: protocol.cast_unsigned(),
        kind: number(libc::SO_TYPE)?.cast_unsigned(),
        port: own.pid(),
        peer: (peer.pid(), peer.groups()),
        groups: groups(fd)?,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        options: option::dump(fd, &[option::SOCKET, option::NETLINK])?,
        filter: sys::filter(fd).context("SO_GET_FILTER")?,
    }))
}

/// What a protocol is called: include/uapi/linux/netlink.h.
fn name(protocol: i32) -> &'static str {
    match protocol {
        0 => "NETLINK_ROUTE",
        2 => "NETLINK_USERSOCK",
        4 => "NETLINK_SOCK_DIAG",
        6 => "NETLINK_XFRM",
        7 => "NETLINK_SELINUX",
        9 => "NETLINK_AUDIT",
        11 => "NETLINK_CONNECTOR",
        12 => "NETLINK_NETFILTER",
        15 => "NETLINK_KOBJECT_UEVENT",
        16 => "NETLINK_GENERIC",
        21 => "NETLINK_CRYPTO",
        _ => "of its own",
    }
}

/// Numbers of the groups that a socket hears: bit n of the answer is group n + 1.
fn groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let bits = sys::option(fd, SOL_NETLINK, LIST_MEMBERSHIPS).context("NETLINK_LIST_MEMBERSHIPS")?;
    let words = bits.chunks_exact(4).filter_map(|word| Some(u32::from_ne_bytes(*word.first_chunk()?)));
    let in_word = |(index, word): (usize, u32)| {
        let first = u32::try_from(index * 32 + 1).unwrap_or(u32::MAX);
        (0..32).filter(move |bit| word >> bit & 1 != 0).map(move |bit| first + bit)
    };
    Ok(words.enumerate().flat_map(in_word).collect())
}

/// Makes a socket again, with the flags of its description.
///
/// # Errors
/// EADDRINUSE if somebody has its port by now.
pub(crate) fn recreate(record: &NetlinkSocket, flags: u32) -> Result<OwnedFd> {
    let make = || -> Result<OwnedFd> {
        let (kind, protocol) = (record.kind.cast_signed(), record.protocol.cast_signed());
        let made = sys::open(libc::AF_NETLINK, kind, protocol).context("socket")?;
        let fd = made.as_fd();
        option::restore_with_filter(fd, &record.options, &record.filter)?;
        if record.port != 0 {
            bind(fd.as_raw_fd(), &NetlinkAddr::new(record.port, 0)).context("bind")?;
        }
        for group in &record.groups {
            sys::set_option(fd, SOL_NETLINK, ADD_MEMBERSHIP, &group.to_ne_bytes())
                .with_context(|| format!("join group {group}"))?;
        }
        if record.peer != (0, 0) {
            connect(fd.as_raw_fd(), &NetlinkAddr::new(record.peer.0, record.peer.1)).context("connect")?;
        }
        restore_owner(fd, record.uid, record.gid, record.mode)?;
        fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed()))).context("set flags")?;
        Ok(made)
    };
    make().with_context(|| format!("socket:[{}], a netlink socket at port {}", record.ino, record.port))
}
