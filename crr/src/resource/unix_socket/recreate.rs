//! Unix sockets made again: pairs first, so that every description exists; then what is in their queues, which can be
//! any description; then what would be in the way of that.

use super::maker::{self, Pair, StandIns};
use crate::resource::socket::option::{self, SO_SNDBUFFORCE};
use crate::sys::socket as sys;
use anyhow::{Context, Result, bail};
use images::file::Files;
use images::socket::{Message, Peer, PeerCredentials, UnixKind, UnixSocket};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socket};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// SHUT_RD and SHUT_WR as the kernel keeps them.
const BOTH_WAYS: u32 = 3;

/// The sockets of a tree being restored.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// In the order of the records.
    sockets: Vec<OwnedFd>,
    /// Peers that are to be closed, in the order of the records.
    doomed: Vec<Option<OwnedFd>>,
}

/// A socket that is to be made with its peer.
type Job = (usize, Peer);

/// Makes all sockets, and connects those that are pairs.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn create_all(records: &[UnixSocket]) -> Result<Restored> {
    let mut made: Vec<Option<OwnedFd>> = records.iter().map(|_| None).collect();
    let mut doomed: Vec<Option<OwnedFd>> = records.iter().map(|_| None).collect();
    let mut by_maker: Vec<(Option<&PeerCredentials>, Vec<Job>)> = Vec::new();
    for (index, record) in records.iter().enumerate() {
        match record.peer {
            Peer::None => made[index] = Some(unconnected(record.kind)?),
            // The other one comes by itself.
            Peer::Socket(other) if (other as usize) < index => {}
            peer => {
                let credentials = record.peer_credentials.as_ref();
                match by_maker.iter_mut().find(|(maker, _)| *maker == credentials) {
                    Some((_, jobs)) => jobs.push((index, peer)),
                    None => by_maker.push((credentials, vec![(index, peer)])),
                }
            }
        }
    }
    for (credentials, jobs) in by_maker {
        let kinds: Vec<UnixKind> = jobs.iter().map(|(index, _)| records[*index].kind).collect();
        let pairs = maker::pairs(credentials, &kinds)?;
        for ((index, peer), Pair(one, other)) in jobs.into_iter().zip(pairs) {
            made[index] = Some(one);
            match peer {
                Peer::Socket(peer) => made[peer as usize] = Some(other),
                _ => doomed[index] = Some(other),
            }
        }
    }
    let sockets = made.into_iter().collect::<Option<_>>().context("a socket without its peer")?;
    Ok(Restored { sockets, doomed })
}

fn unconnected(kind: UnixKind) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, sock_type(kind), SockFlag::SOCK_CLOEXEC, None).context("make a socket")
}

/// SOCK_*.
pub(super) fn sock_type(kind: UnixKind) -> SockType {
    match kind {
        UnixKind::Stream => SockType::Stream,
        UnixKind::Datagram => SockType::Datagram,
        UnixKind::Seqpacket => SockType::SeqPacket,
    }
}

impl Restored {
    /// The description of a socket, with its flags.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(crate) fn open(&self, index: u32, flags: u32) -> Result<OwnedFd> {
        let fd = self.sockets[index as usize].try_clone().context("duplicate a socket")?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed()))).context("set flags")?;
        Ok(fd)
    }

    /// Completes the sockets, once every description is open.
    ///
    /// # Errors
    /// Names the socket and what it does not take.
    pub(crate) fn finish(mut self, files: &Files, descriptions: &[OwnedFd]) -> Result<()> {
        let records = &files.unix_sockets;
        let named = |index: usize| format!("socket:[{}]", records[index].ino);
        let senders = records.iter().flat_map(|record| &record.queue);
        let stand_ins = StandIns::new(senders.filter_map(|message| Some(message.credentials?.pid)))?;
        for (index, record) in records.iter().enumerate() {
            self.fill(index, record, descriptions).with_context(|| named(index))?;
        }
        drop(stand_ins);
        for (index, record) in records.iter().enumerate() {
            self.shut(index, record).with_context(|| named(index))?;
        }
        for (index, record) in records.iter().enumerate() {
            self.complete(index, record).with_context(|| named(index))?;
        }
        Ok(())
    }

    /// Sends what waits in the queue of a socket.
    fn fill(&self, index: usize, record: &UnixSocket, descriptions: &[OwnedFd]) -> Result<()> {
        if record.queue.is_empty() {
            return Ok(());
        }
        let sender = match record.peer {
            Peer::Socket(peer) => self.sockets.get(peer as usize),
            Peer::Closed { .. } => self.doomed[index].as_ref(),
            Peer::None => None,
        };
        let sender = sender.context("nobody to send what is in its queue")?;
        // As large as it may be: what was in a queue before can be more than what goes in by the present limit.
        sys::set_option(sender.as_fd(), libc::SOL_SOCKET, SO_SNDBUFFORCE, &(i32::MAX / 2).to_ne_bytes())
            .context("SO_SNDBUFFORCE")?;
        for message in &record.queue {
            send(sender, record.kind, message, descriptions).context("put a message in its queue")?;
        }
        Ok(())
    }

    /// Shuts a socket down as far as it was, and closes its peer if that was closed.
    fn shut(&mut self, index: usize, record: &UnixSocket) -> Result<()> {
        let socket = &self.sockets[index];
        if let (Peer::Closed { reset: true }, Some(peer)) = (record.peer, &self.doomed[index]) {
            // Unread when the peer is closed, it is what the error is for: unix_release_sock() in net/unix/af_unix.c.
            sys::send(socket.as_fd(), &[0], &[], None)
                .with_context(|| format!("have fd {} closed with data unread", peer.as_raw_fd()))?;
        }
        let closes = matches!(record.peer, Peer::Closed { .. });
        let how = match record.shutdown {
            // The peer does it by being closed.
            BOTH_WAYS if closes && record.kind != UnixKind::Datagram => None,
            1 => Some(Shutdown::Read),
            2 => Some(Shutdown::Write),
            BOTH_WAYS => Some(Shutdown::Both),
            _ => None,
        };
        if let Some(how) = how {
            shutdown(socket.as_raw_fd(), how).context("shut down")?;
        }
        self.doomed[index] = None;
        Ok(())
    }

    /// Options and owner.
    fn complete(&self, index: usize, record: &UnixSocket) -> Result<()> {
        let socket = &self.sockets[index];
        option::restore(socket.as_fd(), &record.options)?;
        let now = fstat(socket).context("fstat")?;
        if (now.st_uid, now.st_gid) != (record.uid, record.gid) {
            fchown(socket, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid)))
                .context("fchown")?;
        }
        if now.st_mode != record.mode {
            fchmod(socket, Mode::from_bits_truncate(record.mode)).context("fchmod")?;
        }
        Ok(())
    }
}

/// Sends a message, in one piece if it is one.
fn send(sender: &OwnedFd, kind: UnixKind, message: &Message, descriptions: &[OwnedFd]) -> Result<()> {
    let mut rights: Vec<_> =
        message.descriptions.iter().map(|id| descriptions[id.0 as usize].as_raw_fd()).collect();
    let credentials = message.credentials.map(|who| [who.pid, who.uid.cast_signed(), who.gid.cast_signed()]);
    let mut rest = message.bytes.as_slice();
    loop {
        let sent = sys::send(sender.as_fd(), rest, &rights, credentials)?;
        rest = &rest[sent..];
        if rest.is_empty() {
            return Ok(());
        }
        if kind != UnixKind::Stream || sent == 0 {
            bail!("{} bytes are left over", rest.len());
        }
        rights.clear();
    }
}
