//! Packet sockets: what they hear, and how much of that.
//!
//! One that is made again hears nothing until the tree is there, so it is bound last ([`Deaf::hear`]).

mod diag;

use super::Refuse;
use super::inet::{Policy, READ_PACKETS};
use super::path::CLOSE;
use super::socket::{option, restore_owner};
use super::unix_socket::Holder;
use crate::refusal::{Refusal, Refusals};
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::packet::{PacketMembership, PacketSocket};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::InterfaceFlags;
use nix::sys::stat::FileStat;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_FANOUT: i32 = 18;

/// Kinds of groups that share packets out by a program, which nobody can read: PACKET_FANOUT_CBPF, PACKET_FANOUT_EBPF.
const BY_PROGRAM: [u32; 2] = [6, 7];

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    found: Vec<Found>,
    /// What diagnostics tell, asked for when the first one is found.
    known: Option<diag::Known>,
}

#[derive(Debug)]
struct Found {
    record: PacketSocket,
    holder: Holder,
    /// There are packets in its queue.
    unread: bool,
}

impl Sockets {
    /// Adds a socket; `None` when it is refused.
    pub(crate) fn add(
        &mut self,
        fd: BorrowedFd<'_>,
        stat: &FileStat,
        holder: Holder,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<u32>> {
        let known = match self.known.take() {
            Some(known) => known,
            None => diag::query().context("ask for all packet sockets (needs CONFIG_PACKET_DIAG)")?,
        };
        let told = self.known.insert(known).get(&stat.st_ino).cloned().unwrap_or_default();
        let kind = sys::number(fd, libc::SOL_SOCKET, libc::SO_TYPE).context("SO_TYPE")?;
        let (protocol, interface) = bound_to(fd)?;
        let fanout = told
            .shares
            .then(|| sys::number(fd, SOL_PACKET, PACKET_FANOUT).context("PACKET_FANOUT"))
            .transpose()?
            .map(i32::cast_unsigned);
        let events = sys::events(fd).context("poll")?;
        let obstacle = if kind != libc::SOCK_RAW && kind != libc::SOCK_DGRAM {
            Some("a packet socket of the old type (SOCK_PACKET) is not supported")
        } else if told.ring {
            Some("a packet socket with a ring (PACKET_RX_RING, PACKET_TX_RING) is not supported")
        } else if interface < 0 {
            Some("a packet socket whose interface is gone")
        } else if events & libc::POLLERR != 0 {
            Some("has an error to tell, which asking for it would take away")
        } else if sys::filter_length(fd).is_err() {
            Some("a socket with an eBPF filter (SO_ATTACH_BPF) is not supported")
        } else if fanout.is_some() && !is_up(interface.cast_unsigned())? {
            Some(
                "packets are shared out (PACKET_FANOUT) on an interface that is down, where nobody could join that again",
            )
        } else if fanout.is_some_and(|group| BY_PROGRAM.contains(&(group >> 16 & 0xff))) {
            Some("packets that are shared out by a program (PACKET_FANOUT_DATA) are not supported")
        } else {
            None
        };
        if let Some(reason) = obstacle {
            refuse.with_hint(&holder.object, reason, CLOSE);
            return Ok(None);
        }
        let record = PacketSocket {
            ino: stat.st_ino,
            kind: kind.cast_unsigned(),
            protocol,
            interface: interface.cast_unsigned(),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            options: option::dump(fd, &[option::SOCKET, option::PACKET])?,
            filter: sys::filter(fd).context("SO_GET_FILTER")?,
            memberships: told.memberships,
            fanout,
        };
        let index = u32::try_from(self.found.len()).context("too many sockets")?;
        self.found.push(Found { record, holder, unread: events & libc::POLLIN != 0 });
        Ok(Some(index))
    }

    /// Refuses sockets with packets to be read: what is sent again is heard by everybody else, too.
    pub(crate) fn check(&self, policy: Policy, refusals: &mut Refusals) {
        for found in self.found.iter().filter(|found| found.unread && !policy.skip_in_flight) {
            let Holder { pid, name, object } = &found.holder;
            let reason = "has packets to be read, which cannot be put back";
            refusals.task((*pid, name), object, reason, Some(READ_PACKETS));
        }
    }

    /// The inodes of all, each with one who has it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (u64, &Holder)> {
        self.found.iter().map(|found| (found.record.ino, &found.holder))
    }

    /// All records.
    pub(crate) fn into_records(self) -> Vec<PacketSocket> {
        self.found.into_iter().map(|found| found.record).collect()
    }
}

/// Refuses a restore where interfaces are missing that packet sockets are bound to or members on.
pub(crate) fn preflight(sockets: &[PacketSocket], refusals: &mut Refusals) -> Result<()> {
    if sockets.is_empty() {
        return Ok(());
    }
    let there = interfaces()?;
    for socket in sockets {
        let own = std::iter::once(socket.interface).chain(socket.memberships.iter().map(|one| one.interface));
        let missing: BTreeSet<u32> =
            own.filter(|number| *number != 0 && !there.contains_key(number)).collect();
        let down = socket.fanout.is_some() && there.get(&socket.interface) == Some(&false);
        let mut refuse = |number: u32, reason: &str, hint: &str| {
            refusals.push(Refusal {
                task: None,
                object: format!("packet socket {}: network interface {number}", socket.ino),
                reason: reason.into(),
                hint: Some(hint.into()),
            });
        };
        for number in missing {
            refuse(number, "is not there", "restore where the interfaces have the numbers that they had");
        }
        if down {
            refuse(socket.interface, "is down, so nobody can share out what comes there", "set it up first");
        }
    }
    Ok(())
}

/// The numbers of the network interfaces, and whether each is up.
fn interfaces() -> Result<BTreeMap<u32, bool>> {
    let all = nix::ifaddrs::getifaddrs().context("list the network interfaces")?;
    let number = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    let up = |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP);
    Ok(all.filter_map(|one| Some((number(&one.interface_name)?, up(one.flags)))).collect())
}

/// Whether an interface is up; 0 stands for all.
fn is_up(interface: u32) -> Result<bool> {
    Ok(interface == 0 || interfaces()?.get(&interface).copied().unwrap_or(false))
}

/// Protocol and interface, of `struct sockaddr_ll`.
fn bound_to(fd: BorrowedFd<'_>) -> Result<(u16, i32)> {
    let address = sys::local_address(fd).context("getsockname")?;
    let part = |at: usize| address.get(at..).context("a short address");
    let protocol = *part(0)?.first_chunk().context("a short address")?;
    let interface = *part(2)?.first_chunk().context("a short address")?;
    Ok((u16::from_be_bytes(protocol), i32::from_ne_bytes(interface)))
}

/// Sockets that were made again, and hear nothing yet.
#[derive(Debug, Default)]
pub(crate) struct Deaf(Vec<(Rc<OwnedFd>, PacketSocket)>);

impl Deaf {
    /// Makes a socket again, with the flags of its description.
    ///
    /// # Errors
    /// Names the option that the kernel does not take.
    pub(crate) fn open(&mut self, record: &PacketSocket, flags: u32) -> Result<Rc<OwnedFd>> {
        let make = || -> Result<OwnedFd> {
            let made = sys::open(libc::AF_PACKET, record.kind.cast_signed(), 0).context("socket")?;
            let fd = made.as_fd();
            option::restore_with_filter(fd, &record.options, &record.filter)?;
            restore_owner(fd, record.uid, record.gid, record.mode)?;
            fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed())))
                .context("set flags")?;
            Ok(made)
        };
        let made = Rc::new(make().with_context(|| named(record))?);
        self.0.push((Rc::clone(&made), record.clone()));
        Ok(made)
    }

    /// Lets them hear, once the tree is there.
    ///
    /// # Errors
    /// Names the interface that is not there.
    pub(crate) fn hear(&mut self) -> Result<()> {
        for (socket, record) in self.0.drain(..) {
            hear(socket.as_fd(), &record).with_context(|| named(&record))?;
        }
        Ok(())
    }
}

fn named(record: &PacketSocket) -> String {
    format!("socket:[{}], a packet socket at interface {}", record.ino, record.interface)
}

fn hear(fd: BorrowedFd<'_>, record: &PacketSocket) -> Result<()> {
    if (record.protocol, record.interface) != (0, 0) {
        sys::bind_to_interface(fd, record.protocol, record.interface).context("bind")?;
        // That the interface is down was told before the dump.
        sys::number(fd, libc::SOL_SOCKET, libc::SO_ERROR).context("SO_ERROR")?;
    }
    for membership in &record.memberships {
        for _ in 0..membership.count {
            sys::set_option(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request(membership))
                .with_context(|| format!("membership of interface {}", membership.interface))?;
        }
    }
    if let Some(group) = record.fanout {
        sys::set_option(fd, SOL_PACKET, PACKET_FANOUT, &group.to_ne_bytes())
            .with_context(|| format!("join group {} (PACKET_FANOUT)", group & 0xffff))?;
    }
    Ok(())
}

/// `struct packet_mreq_max` of net/packet/internal.h: interface, kind, length of the address, and room for the longest one.
fn request(membership: &PacketMembership) -> Vec<u8> {
    const LONGEST: usize = 32;
    let mut bytes = membership.interface.to_ne_bytes().to_vec();
    bytes.extend(membership.kind.to_ne_bytes());
    bytes.extend(u16::try_from(membership.address.len()).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(&membership.address);
    bytes.resize(8 + LONGEST, 0);
    bytes
}
