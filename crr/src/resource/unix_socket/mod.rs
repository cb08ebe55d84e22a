//! Unix sockets: who is connected to whom, what waits in their queues, what getsockopt shows.

pub(crate) mod bind;
mod connect;
pub(crate) mod diag;
pub(crate) mod half;
pub(crate) mod maker;
mod queue;
pub(crate) mod recreate;
mod relation;

use super::Refuse;
use super::path::CLOSE;
use super::socket::option;
use crate::refusal::Refusals;
use crate::sys::{pipe, socket as sys};
use anyhow::{Context, Result};
use images::socket::{Message, Peer, PeerCredentials, SocketFile, UnixKind, UnixSocket};
use images::{DescriptionId, Pid};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat, lstat};
use queue::Obstacle;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Ways out.
const READ: &str = "have the program read it before the dump";

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
        let kind = kind(socket.as_fd())?;
        let listens =
            sys::number(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN).context("SO_ACCEPTCONN")? != 0;
        let address = name(&sys::local_address(socket.as_fd()).context("getsockname")?);
        let file = match bound_file(socket.as_fd(), &address)? {
            Ok(file) => file,
            Err(path) => {
                let reason = format!("bound to {path}, where crr finds another file or none");
                refuse.with_hint(&holder.object, reason, CLOSE);
                return Ok(None);
            }
        };
        let filter = match sys::filter(socket.as_fd()) {
            Ok(filter) => filter,
            Err(Errno::EACCES) => {
                let reason = "a socket with an eBPF filter (SO_ATTACH_BPF) is not supported";
                refuse.with_hint(&holder.object, reason, CLOSE);
                return Ok(None);
            }
            Err(errno) => return Err(errno).context("SO_GET_FILTER"),
        };
        let record = UnixSocket {
            ino: stat.st_ino,
            kind,
            address,
            file,
            peer: if listens { Peer::Listening { backlog: 0, waiting: Vec::new() } } else { Peer::None },
            shutdown: 0,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            peer_credentials: peer_credentials(socket.as_fd())?,
            options: option::dump(socket.as_fd(), &[option::SOCKET])?,
            filter,
            queue: Vec::new(),
        };
        let index = u32::try_from(self.found.len()).context("too many sockets")?;
        self.found.push(Found { socket, holder, record });
        Ok(Some(index))
    }

    /// Reads the queues that have not been read; what descriptors lie in them is for the caller to look at.
    pub(crate) fn read_queues(&mut self, refusals: &mut Refusals) -> Result<Vec<Arrived>> {
        // In the queue of one that listens are connections, not messages.
        let indices: Vec<usize> = (self.read..self.found.len())
            .filter(|&index| !matches!(self.found[index].record.peer, Peer::Listening { .. }))
            .collect();
        let socket = |&index: &usize| (self.found[index].socket.as_fd(), self.found[index].record.kind);
        let sockets: Vec<_> = indices.iter().map(socket).collect();
        let read = queue::read_all(&sockets)?;
        let mut arrived = Vec::new();
        for (socket, waiting) in indices.into_iter().zip(read) {
            let found = &mut self.found[socket];
            let holder = &found.holder;
            let waiting = match waiting {
                Ok(waiting) => waiting,
                Err(obstacle) => {
                    let reason = match obstacle {
                        Obstacle::Error => {
                            "has messages and an error to tell, which reading them would take away"
                        }
                        Obstacle::OutOfBand => {
                            "has a byte in its queue that was sent out of band (MSG_OOB), where is not to be seen"
                        }
                    };
                    refusals.task((holder.pid, &holder.name), &holder.object, reason, Some(READ));
                    continue;
                }
            };
            for (message, one) in waiting.into_iter().enumerate() {
                let holder = || holder.clone();
                let fds = one.rights.into_iter();
                arrived.extend(fds.map(|fd| Arrived { socket, message, fd, holder: holder() }));
                found.record.queue.push(Message {
                    bytes: one.bytes,
                    // The peer is known otherwise.
                    sender: if found.record.kind == UnixKind::Datagram { one.sender } else { Vec::new() },
                    credentials: one.credentials,
                    descriptions: Vec::new(),
                    out_of_band: one.out_of_band,
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

    /// The inodes of all, each with one who has it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (u64, &Holder)> {
        self.found.iter().map(|found| (found.record.ino, &found.holder))
    }

    /// All records.
    pub(crate) fn into_records(self) -> Vec<UnixSocket> {
        self.found.into_iter().map(|found| found.record).collect()
    }
}

/// Refuses a socket that stays outside if something waits in its queue, which would be gone with the tree: whether it is all right.
pub(crate) fn refuse_unread(
    socket: BorrowedFd<'_>,
    holder: &Holder,
    refuse: &mut Refuse<'_>,
) -> Result<bool> {
    let events = sys::events(socket).context("poll")?;
    let listens = sys::number(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).context("SO_ACCEPTCONN")? != 0;
    // At its end a stream is readable, too.
    let ended = || {
        let unread = pipe::readable_bytes(socket).context("FIONREAD")?;
        anyhow::Ok(events & libc::POLLRDHUP != 0 && unread == 0)
    };
    let unread = !listens && events & libc::POLLIN != 0 && !ended()?;
    if unread {
        refuse.with_hint(&holder.object, "has data that was not read, and is to stay outside", READ);
    }
    Ok(!unread)
}

/// SO_TYPE.
pub(crate) fn kind(socket: BorrowedFd<'_>) -> Result<UnixKind> {
    Ok(match sys::number(socket, libc::SOL_SOCKET, libc::SO_TYPE).context("SO_TYPE")? {
        libc::SOCK_STREAM => UnixKind::Stream,
        libc::SOCK_SEQPACKET => UnixKind::Seqpacket,
        _ => UnixKind::Datagram,
    })
}

/// The name in what getsockname and its kind give: without the NUL at the end of a path.
fn name(address: &[u8]) -> Vec<u8> {
    match address {
        [0, ..] => address.to_vec(),
        _ => address.split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
    }
}

/// The file that a socket is bound to, if it has not been deleted; its path, if it is not to be found there.
fn bound_file(
    socket: BorrowedFd<'_>,
    address: &[u8],
) -> Result<std::result::Result<Option<SocketFile>, String>> {
    if matches!(address.first(), None | Some(0)) {
        return Ok(Ok(None));
    }
    let file = sys::bound_file(socket).context("find the file of a socket (SIOCUNIXFILE)")?;
    let open = fstat(&file).context("fstat")?;
    if open.st_nlink == 0 {
        return Ok(Ok(None));
    }
    let link =
        nix::fcntl::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).context("readlink")?;
    let there = lstat(link.as_os_str());
    if !there.is_ok_and(|there| (there.st_dev, there.st_ino) == (open.st_dev, open.st_ino)) {
        return Ok(Err(link.to_string_lossy().into_owned()));
    }
    Ok(Ok(Some(SocketFile {
        path: link.as_bytes().to_vec(),
        mode: open.st_mode,
        uid: open.st_uid,
        gid: open.st_gid,
        dev: open.st_dev,
        ino: open.st_ino,
    })))
}

/// SO_PEERCRED and SO_PEERGROUPS, of sockets that have recorded somebody.
fn peer_credentials(socket: BorrowedFd<'_>) -> Result<Option<PeerCredentials>> {
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
