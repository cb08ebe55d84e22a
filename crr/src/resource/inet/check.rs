//! What stands in the way of a dump of internet sockets, found once all of the tree are known.

use super::address::{Shown, on_the_wire};
use super::urgent::{Place, Told};
use super::{
    Ends, Found, Policy, Sockets, TcpPolicy, addresses, diag, inject, is_connected, is_from, listed,
    listens_at, queue, stream, unsent, urgent,
};
use crate::kernel;
use crate::refusal::Refusals;
use crate::resource::Refuse;
use crate::resource::path::CLOSE;
use crate::resource::socket::peek_offset;
use crate::resource::unix_socket::Holder;
use crate::sys::{pipe, socket as sys, tcp};
use anyhow::{Context, Result};
use images::inet::{Datagram, InetAddress, InetProtocol, InetSocket, InetState};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

/// include/uapi/asm-generic/socket.h.
pub(super) const SO_MEMINFO: i32 = 55;

/// Ways out.
const ESTABLISHED: &str =
    "use --tcp-established to keep it, or --tcp-close to have the socket come back closed";
const IN_FLIGHT: &str = "have the program accept them, or use --skip-in-flight to have them reset";
const READ: &str = "have the program read it before the dump";
const COMPLETE: &str = "have the program send the rest before the dump";
pub(crate) const READ_PACKETS: &str =
    "have the program read them before the dump, or use --skip-in-flight to lose them";

/// What a restore could have sent by nobody, since it would leave this machine, and what no dump can look at.
const URGENT_ELSEWHERE: &str =
    "has urgent data (MSG_OOB) to be read at an address that is none of this machine";
const END_ELSEWHERE: &str = "was told of the end of the stream at an address that is none of this machine";
const HIDDEN: &str = "has data to be read before and behind urgent data (MSG_OOB), at which nobody can look before Linux 6.10 (SO_PEEK_OFF)";

/// What is known of the connections of a tree.
#[derive(Default)]
struct Connections {
    /// Connected sockets of the tree.
    ours: HashMap<Ends, usize>,
    /// Where it listens, which is at few places.
    listening: Vec<SocketAddr>,
    /// Those whose other ends wait to be accepted by the tree, too.
    waiting: HashSet<usize>,
    /// Those of the same kind over which something was sent.
    used: HashSet<usize>,
}

impl Connections {
    /// Whether the tree has both ends of a connection.
    fn is_inside(&self, record: &InetSocket) -> Result<bool> {
        Ok(self.ours.contains_key(&Ends::of(record)?.seen_from_there()))
    }

    /// Whether one socket of the tree, and not several (SO_REUSEPORT), can be the one that accepts what comes to an end of a connection.
    fn has_listener(&self, end: &Ends) -> bool {
        self.listening.iter().filter(|&&own| listens_at(own, end.local)).count() == 1
    }
}

impl Sockets {
    /// Refuses what cannot be had.
    pub(crate) fn check(&mut self, policy: Policy, refusals: &mut Refusals) -> Result<()> {
        let mut known = diag::Known::default();
        let listening = self.found.iter().filter_map(Found::listens_at).collect();
        let mut connections = Connections { ours: self.connected(), listening, ..Connections::default() };
        for index in 0..self.found.len() {
            self.find_waiting(index, &mut connections, &mut known)?;
        }
        let mut listed = listed::Listed::default();
        let mut patience = unsent::Patience::default();
        let (mut queues, mut ended, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..self.found.len() {
            let found = &self.found[index];
            let Holder { pid, name, object } = found.holder.clone();
            let mut refuse = Refuse::new(refusals, pid, &name);
            let fd = found.socket.as_fd();
            if sys::events(fd).context("poll")? & libc::POLLERR != 0 {
                refuse.with_hint(&object, "has an error to tell, which asking for it would take away", READ);
                continue;
            }
            match found.record.protocol {
                InetProtocol::Tcp => {}
                InetProtocol::Udp | InetProtocol::UdpLite => {
                    if self.check_datagrams(index, &mut known, &mut refuse)? {
                        queues.push(index);
                    }
                    continue;
                }
                InetProtocol::Ping | InetProtocol::Raw(_) => {
                    self.check_packets(index, policy, &mut listed, &mut patience, &mut refuse)?;
                    continue;
                }
            }
            if found.state != tcp::CLOSE && known.of(&found.record)?.signed {
                let reason = "TCP segments that are signed (TCP_MD5SIG) are not supported";
                refuse.with_hint(&object, reason, CLOSE);
                continue;
            }
            match &found.record.state {
                InetState::Listening(_) => self.check_listening(index, policy, &connections, &mut refuse)?,
                InetState::Ended(_) => ended.push(index),
                InetState::Connecting => {
                    self.found[index].record.peer = known.of(&self.found[index].record)?.peer;
                }
                _ if is_connected(found.state) => {
                    let is_kept = self.check_connected(index, policy, &connections, &mut refuse)?;
                    kept.extend(is_kept.then_some(index));
                }
                _ => {}
            }
        }
        self.read_ended(&ended, refusals)?;
        self.check_incoming(&kept, &connections, refusals)?;
        self.read_queues(&queues, refusals)
    }

    /// Notes a connection that a socket of the tree has made, and that another one has not accepted.
    fn find_waiting(
        &self,
        index: usize,
        connections: &mut Connections,
        known: &mut diag::Known,
    ) -> Result<()> {
        let found = &self.found[index];
        if found.state != tcp::ESTABLISHED {
            return Ok(());
        }
        let there = Ends::of(&found.record)?.seen_from_there();
        if connections.ours.contains_key(&there) || !connections.has_listener(&there) {
            return Ok(());
        }
        let unacknowledged = tcp::unacknowledged(found.socket.as_fd()).context("SIOCOUTQ")?;
        match known.received_without_holder(&there)? {
            Some(0) if unacknowledged == 0 => drop(connections.waiting.insert(index)),
            Some(_) => drop(connections.used.insert(index)),
            None => {}
        }
        Ok(())
    }

    /// Refuses connections that wait to be accepted and would be lost.
    fn check_listening(
        &self,
        index: usize,
        policy: Policy,
        connections: &Connections,
        refuse: &mut Refuse<'_>,
    ) -> Result<()> {
        let found = &self.found[index];
        let waiting = tcp::info(found.socket.as_fd()).context("TCP_INFO")?.waiting as usize;
        let mut ours = 0;
        for &client in &connections.waiting {
            let there = Ends::of(&self.found[client].record)?.seen_from_there();
            ours += usize::from(found.listens_at().is_some_and(|own| listens_at(own, there.local)));
        }
        if waiting > ours && !policy.skip_in_flight {
            let at = found.record.local.as_ref().map(|local| format!(" at {}", Shown(local)));
            let reason =
                format!("{} connections wait to be accepted{}", waiting - ours, at.unwrap_or_default());
            refuse.with_hint(&found.holder.object, reason, IN_FLIGHT);
        }
        Ok(())
    }

    /// Reads what is left of connections that have ended.
    fn read_ended(&mut self, ended: &[usize], refusals: &mut Refusals) -> Result<()> {
        let mut unread = Vec::new();
        for &index in ended {
            if has_unread(self.found[index].socket.as_fd())? {
                unread.push(index);
            }
        }
        if unread.is_empty() {
            return Ok(());
        }
        let own = inject::Own::addresses()?;
        let sockets: Vec<BorrowedFd<'_>> =
            unread.iter().map(|&index| self.found[index].socket.as_fd()).collect();
        for (index, place) in unread.into_iter().zip(urgent::among(&sockets)?) {
            let found = &mut self.found[index];
            let fd = found.socket.as_fd();
            let reason = if place != Place::Nowhere {
                "its connection has ended, with urgent data (MSG_OOB) among what is to be read"
            } else if peek_offset::get(fd).is_ok_and(|offset| offset >= 0) {
                "its connection has ended, and its data is looked at by offset (SO_PEEK_OFF)"
            } else if found.record.local.is_some_and(|local| !own.has(&local)) {
                "its connection has ended, with data to be read, at an address that is none of this machine"
            } else {
                let bytes = pipe::readable_bytes(fd).context("FIONREAD")?;
                found.record.state = InetState::Ended(stream::peek(fd, bytes).context("read its queue")?);
                continue;
            };
            let Holder { pid, name, object } = &found.holder;
            Refuse::new(refusals, *pid, name).with_hint(object, reason, READ);
        }
        Ok(())
    }

    /// Refuses connections of which a restore would have to send a packet that leaves this machine, and urgent data that nobody can look at.
    fn check_incoming(
        &self,
        kept: &[usize],
        connections: &Connections,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let mut looked = Vec::new();
        for found in kept.iter().map(|&index| &self.found[index]) {
            let has_ended = stream::has_ended_there(found.state) && !connections.is_inside(&found.record)?;
            if has_ended || has_unread(found.socket.as_fd())? {
                looked.push((found, has_ended));
            }
        }
        if looked.is_empty() {
            return Ok(());
        }
        let (own, sees_behind) = (inject::Own::addresses()?, kernel::has_tcp_peek_offset());
        let is_foreign = |found: &Found| found.record.local.is_some_and(|local| !own.has(&local));
        looked.retain(|(found, _)| !sees_behind || is_foreign(found));
        let sockets: Vec<BorrowedFd<'_>> = looked.iter().map(|(found, _)| found.socket.as_fd()).collect();
        for ((found, has_ended), place) in looked.into_iter().zip(urgent::among(&sockets)?) {
            let (reason, hint) = match place {
                Place::Within if !sees_behind => (HIDDEN, READ),
                _ if !is_foreign(found) => continue,
                Place::Within | Place::AtAnEnd => (URGENT_ELSEWHERE, READ),
                Place::Nowhere if has_ended => (END_ELSEWHERE, CLOSE),
                Place::Nowhere => continue,
            };
            let Holder { pid, name, object } = &found.holder;
            Refuse::new(refusals, *pid, name).with_hint(object, reason, hint);
        }
        Ok(())
    }

    /// Refuses a connection that reaches out of the tree, unless it is to be kept or given up. Whether it will be looked at.
    fn check_connected(
        &mut self,
        index: usize,
        policy: Policy,
        connections: &Connections,
        refuse: &mut Refuse<'_>,
    ) -> Result<bool> {
        let found = &mut self.found[index];
        if connections.waiting.contains(&index) {
            // It connects again, to the one that listens again.
            found.record.state = InetState::Connecting;
            return Ok(false);
        }
        if connections.used.contains(&index) {
            // Given up, it is reset, as the kernel does to connections whose listening socket is closed.
            found.record.state = InetState::Ended(Vec::new());
            found.record.peer = None;
            if !policy.skip_in_flight {
                let reason = "has a connection that waits to be accepted, over which data was sent: nobody can look at that";
                refuse.with_hint(&found.holder.object, reason, IN_FLIGHT);
            }
            return Ok(false);
        }
        let inside = connections.is_inside(&found.record)?;
        if !inside && policy.tcp == TcpPolicy::Refuse {
            let (local, peer) = addresses(&found.record)?;
            let reason = format!(
                "connected from {} to {} ({}), outside of the tree",
                Shown(&local),
                Shown(&peer),
                tcp::name(found.state)
            );
            refuse.with_hint(&found.holder.object, reason, ESTABLISHED);
            return Ok(false);
        }
        if !inside && policy.tcp == TcpPolicy::Close {
            found.record.state = InetState::Ended(Vec::new());
            found.record.peer = None;
        } else if urgent::told(found.socket.as_fd()).context("look for urgent data")? == Told::Announced {
            let reason = "has urgent data announced that has not come yet (MSG_OOB)";
            refuse.with_hint(&found.holder.object, reason, READ);
        }
        Ok(found.has_connection())
    }

    /// Whether a socket has datagrams to be read.
    fn check_datagrams(
        &mut self,
        index: usize,
        known: &mut diag::Known,
        refuse: &mut Refuse<'_>,
    ) -> Result<bool> {
        let found = &mut self.found[index];
        let fd = found.socket.as_fd();
        // Sending takes a port.
        if found.record.local.is_some()
            && unsent::has_begun(fd, found.record.v6).context("look for a datagram")?
        {
            let reason = "has a datagram that is not complete (MSG_MORE, UDP_CORK)";
            refuse.with_hint(&found.holder.object, reason, COMPLETE);
        }
        // Only one that is connected can be shut down to anyone's knowledge.
        if found.record.peer.is_some() {
            found.record.shutdown = known.of(&found.record)?.shutdown;
        }
        // One that receives nothing more is always readable, and may have something to be read.
        Ok(sys::events(fd).context("poll")? & libc::POLLIN != 0)
    }

    /// Refuses a raw socket, or one for ping, with something to be read: only the first packet could be looked at (raw_recvmsg() and ping_recvmsg()
    /// know no peek offset, and rawv6_recvmsg() takes what is told of path MTUs away), and one that is sent again is answered again.
    fn check_packets(
        &mut self,
        index: usize,
        policy: Policy,
        listed: &mut listed::Listed,
        patience: &mut unsent::Patience,
        refuse: &mut Refuse<'_>,
    ) -> Result<()> {
        let found = &mut self.found[index];
        let fd = found.socket.as_fd();
        found.record.peer = listed.peer(fd, &found.record)?;
        let object = &found.holder.object;
        if matches!(found.record.peer, Some(peer) if peer.ip.to_canonical() != peer.ip) {
            refuse.with_hint(object, "is connected to an IPv4 address in IPv6 clothes", CLOSE);
        }
        if let InetProtocol::Raw(_) = found.record.protocol
            && patience.is_stuck(fd)?
        {
            let reason = "has a packet that is not complete (MSG_MORE), or one that does not leave";
            refuse.with_hint(object, reason, COMPLETE);
        }
        // SK_MEMINFO_RMEM_ALLOC comes first. That there is something to be read is also told of who has shut reading down.
        let queued = sys::option(fd, libc::SOL_SOCKET, SO_MEMINFO).context("SO_MEMINFO")?;
        if queued.iter().take(4).any(|&byte| byte != 0) && !policy.skip_in_flight {
            refuse.with_hint(object, "has packets to be read, which cannot be put back", READ_PACKETS);
        }
        Ok(())
    }

    /// Reads what waits in the queues of these sockets.
    fn read_queues(&mut self, indices: &[usize], refusals: &mut Refusals) -> Result<()> {
        let sockets: Vec<BorrowedFd<'_>> =
            indices.iter().map(|&index| self.found[index].socket.as_fd()).collect();
        let queues = queue::read_all(&sockets)?;
        if queues.is_empty() {
            return Ok(());
        }
        let own = inject::Own::addresses()?;
        for (&index, mut queue) in indices.iter().zip(queues) {
            let shares_address = !queue.is_empty() && self.shares_address(index)?;
            let Found { socket, holder, record, .. } = &mut self.found[index];
            for datagram in queue.iter_mut().filter(|_| record.v6) {
                if let IpAddr::V4(ip) = datagram.destination.ip {
                    datagram.destination.ip = ip.to_ipv6_mapped().into();
                }
            }
            if let Some(reason) = queue_obstacle(socket.as_fd(), record, &queue, &own, shares_address)? {
                refusals.task((holder.pid, &holder.name), &holder.object, reason, Some(READ));
            }
            record.queue = queue;
        }
        Ok(())
    }

    /// Whether another socket of the same kind, at the address of this one, hears what comes by the loopback device.
    fn shares_address(&self, index: usize) -> Result<bool> {
        let address = |found: &Found| found.record.local.as_ref().map(on_the_wire);
        let own = &self.found[index];
        for (at, other) in self.found.iter().enumerate() {
            if at != index
                && other.record.protocol == own.record.protocol
                && address(other) == address(own)
                && [b"".as_slice(), b"lo\0"].contains(&inject::device(other.socket.as_fd())?.as_slice())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a TCP socket has something to be read.
fn has_unread(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(pipe::readable_bytes(fd).context("FIONREAD")? > 0 || sys::at_mark(fd).context("SIOCATMARK")?)
}

/// Why datagrams would not come to a socket again by which it got them.
fn queue_obstacle(
    fd: BorrowedFd<'_>,
    record: &InetSocket,
    queue: &[Datagram],
    own: &inject::Own,
    shares_address: bool,
) -> Result<Option<String>> {
    // Bound to all addresses, one has had others before it connected: inet_saddr is set then.
    let local = record.local.map(|local| local.ip.to_canonical()).filter(|ip| !ip.is_unspecified());
    let is_heard = |to: &InetAddress| own.has(to) && local.is_none_or(|local| local == to.ip.to_canonical());
    if let Some(datagram) = queue.iter().find(|one| !is_heard(&one.destination)) {
        let to = Shown(&datagram.destination);
        return Ok(Some(format!("has datagrams to be read that were sent to {to}")));
    }
    let stranger = record.peer.and_then(|peer| queue.iter().find(|one| !is_from(one, &peer)));
    if let Some(datagram) = stranger.filter(|_| shares_address) {
        let from = Shown(&datagram.sender);
        return Ok(Some(format!(
            "has datagrams to be read of {from}, which is not its peer, and others are at its port"
        )));
    }
    // Taken off its device for them, it would compete with others, and leave its group for good: udp_lib_rehash() of net/ipv4/udp.c.
    let in_group = || sys::number(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT).context("SO_REUSEPORT");
    if !queue.is_empty() && !inject::device(fd)?.is_empty() && (shares_address || in_group()? != 0) {
        let reason = "has datagrams to be read, on a device (SO_BINDTODEVICE), at a port that others have or may have (SO_REUSEPORT)";
        return Ok(Some(reason.to_owned()));
    }
    Ok(None)
}
