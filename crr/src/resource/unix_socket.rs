//! Unix sockets: who is connected to whom, what waits in their queues, what getsockopt shows.

pub(crate) mod diag;
mod keeper;
mod maker;
mod queue;
pub(crate) mod recreate;

use super::Refuse;
use super::path::CLOSE;
use super::socket::option;
use crate::refusal::Refusals;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::socket::{Message, Peer, PeerCredentials, UnixKind, UnixSocket};
use images::{DescriptionId, Pid};
use nix::errno::Errno;
use nix::sys::stat::FileStat;
use queue::Obstacle;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// Ways out.
const READ: &str = "have the program read it before the dump";
const CONNECTED_OUTSIDE: &str = "dump a tree that holds both ends";

/// A socket with a descriptor of ours on it.
#[derive(Debug)]
struct Found {
    socket: OwnedFd,
    /// The task, its name, the descriptor and how that is called.
    holder: Holder,
    record: UnixSocket,
}

/// Who leads to a socket.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) pid: Pid,
    pub(crate) name: String,
    pub(crate) object: String,
}

/// A descriptor that was found in a queue, now one of ours.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) socket: usize,
    pub(crate) message: usize,
    pub(crate) fd: OwnedFd,
    /// Who leads to the socket in whose queue it is.
    pub(crate) holder: Holder,
}

/// The unix sockets of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    found: Vec<Found>,
    /// How many of them have had their queues read.
    read: usize,
}

impl Sockets {
    /// Adds a socket; `None` when it is refused. Its queue is read later, and its peer found.
    pub(crate) fn add(
        &mut self,
        socket: OwnedFd,
        stat: &FileStat,
        holder: Holder,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<u32>> {
        let number = |name| sys::number(socket.as_fd(), libc::SOL_SOCKET, name).context("getsockopt");
        let kind = match number(libc::SO_TYPE)? {
            libc::SOCK_STREAM => UnixKind::Stream,
            libc::SOCK_SEQPACKET => UnixKind::Seqpacket,
            _ => UnixKind::Datagram,
        };
        if number(libc::SO_ACCEPTCONN)? != 0 {
            refuse.with_hint(&holder.object, "a listening unix socket is not supported", CLOSE);
            return Ok(None);
        }
        let address = sys::local_address(socket.as_fd()).context("getsockname")?;
        if !address.is_empty() {
            refuse.with_hint(&holder.object, "a unix socket with an address is not supported", CLOSE);
            return Ok(None);
        }
        if !matches!(sys::filter_length(socket.as_fd()), Ok(0) | Err(Errno::ENOPROTOOPT)) {
            refuse.with_hint(&holder.object, "a unix socket with a filter is not supported", CLOSE);
            return Ok(None);
        }
        let record = UnixSocket {
            ino: stat.st_ino,
            kind,
            peer: Peer::None,
            shutdown: 0,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            peer_credentials: peer_credentials(socket.as_fd())?,
            options: option::dump(socket.as_fd())?,
            queue: Vec::new(),
        };
        let index = u32::try_from(self.found.len()).context("too many sockets")?;
        self.found.push(Found { socket, holder, record });
        Ok(Some(index))
    }

    /// Reads the queues that have not been read; what descriptors lie in them is for the caller to look at.
    pub(crate) fn read_queues(&mut self, refusals: &mut Refusals) -> Result<Vec<Arrived>> {
        let new = &mut self.found[self.read..];
        let sockets: Vec<_> = new.iter().map(|found| (found.socket.as_fd(), found.record.kind)).collect();
        let read = queue::read_all(&sockets)?;
        let mut arrived = Vec::new();
        for (index, (found, waiting)) in new.iter_mut().zip(read).enumerate() {
            let holder = &found.holder;
            let waiting = match waiting {
                Ok(waiting) => waiting,
                Err(obstacle) => {
                    let reason = match obstacle {
                        Obstacle::Error => {
                            "has messages and an error to tell, which reading them would take away"
                        }
                        Obstacle::OutOfBand => "has a byte in its queue that was sent out of band (MSG_OOB)",
                    };
                    refusals.task((holder.pid, &holder.name), &holder.object, reason, Some(READ));
                    continue;
                }
            };
            for (message, one) in waiting.into_iter().enumerate() {
                let socket = self.read + index;
                let holder = || holder.clone();
                let fds = one.rights.into_iter();
                arrived.extend(fds.map(|fd| Arrived { socket, message, fd, holder: holder() }));
                found.record.queue.push(Message {
                    bytes: one.bytes,
                    credentials: one.credentials,
                    descriptions: Vec::new(),
                });
            }
        }
        self.read = self.found.len();
        Ok(arrived)
    }

    /// Says which description an arrived descriptor is.
    pub(crate) fn found_description(&mut self, arrived: &Arrived, id: DescriptionId) {
        self.found[arrived.socket].record.queue[arrived.message].descriptions.push(id);
    }

    /// Finds out who is connected to whom. Peers outside of the tree are refused.
    pub(crate) fn relate(&mut self, refusals: &mut Refusals) -> Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        let all = diag::query()?;
        let indices: HashMap<u64, usize> =
            self.found.iter().enumerate().map(|(index, found)| (found.record.ino, index)).collect();
        for found in &mut self.found {
            let holder = &found.holder;
            let mut refuse = Refuse::new(refusals, holder.pid, &holder.name);
            let entry = u32::try_from(found.record.ino).ok().and_then(|ino| all.get(&ino));
            let Some(entry) = entry else {
                refuse.with_hint(&holder.object, "belongs to another network namespace than crr", CLOSE);
                continue;
            };
            found.record.shutdown = entry.shutdown;
            found.record.peer = match entry.peer {
                None => Peer::None,
                Some(0) => Peer::Closed { reset: queue::has_error(found.socket.as_fd())? },
                Some(ino) => match indices.get(&u64::from(ino)) {
                    Some(&index) => Peer::Socket(u32::try_from(index)?),
                    None => {
                        let reason = format!("connected to socket:[{ino}], which is outside of the tree");
                        refuse.with_hint(&holder.object, reason, CONNECTED_OUTSIDE);
                        continue;
                    }
                },
            };
        }
        Ok(())
    }

    /// All records.
    pub(crate) fn into_records(self) -> Vec<UnixSocket> {
        self.found.into_iter().map(|found| found.record).collect()
    }
}

/// SO_PEERCRED and SO_PEERGROUPS, of sockets that have recorded somebody.
fn peer_credentials(socket: std::os::fd::BorrowedFd<'_>) -> Result<Option<PeerCredentials>> {
    const NOBODY: u32 = u32::MAX;
    let value = sys::option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED).context("SO_PEERCRED")?;
    let words: Vec<u32> =
        value.chunks_exact(4).filter_map(|word| Some(u32::from_ne_bytes(*word.first_chunk()?))).collect();
    let [pid, uid, gid] = words[..] else { return Ok(None) };
    if uid == NOBODY && gid == NOBODY {
        return Ok(None);
    }
    let groups = match sys::option(socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS) {
        Err(Errno::ENODATA) => Vec::new(),
        value => value.context("SO_PEERGROUPS")?,
    };
    let groups =
        groups.chunks_exact(4).filter_map(|word| Some(u32::from_ne_bytes(*word.first_chunk()?))).collect();
    Ok(Some(PeerCredentials { pid: pid.cast_signed(), uid, gid, groups }))
}
