//! Unix sockets made again: pairs first, so that every description exists; then what is in their queues, which can be
//! any description; then what would be in the way of that.

use super::bind::{self, Binder};
use super::connect;
use super::maker::StandIns;
use crate::resource::socket::option::{self, SO_SNDBUFFORCE};
use crate::resource::socket::restore_owner;
use crate::sys::socket as sys;
use anyhow::{Context, Result, bail};
use images::file::Files;
use images::socket::{Message, Peer, UnixKind, UnixSocket};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// SHUT_RD and SHUT_WR as the kernel keeps them.
const BOTH_WAYS: u32 = 3;

/// The sockets of a tree being restored.
#[derive(Debug)]
pub(crate) struct Restored {
    /// In the order of the records.
    sockets: Vec<OwnedFd>,
    /// Peers that are to be closed, in the order of the records.
    doomed: Vec<Option<OwnedFd>>,
    binder: Binder,
}

/// Makes all sockets, with their addresses and connections.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn create_all(records: &[UnixSocket]) -> Result<Restored> {
    let mut binder = Binder::default();
    let made = connect::create(records, &mut binder)?;
    let sockets = made.made.into_iter().collect::<Option<_>>().context("a socket without its peer")?;
    Ok(Restored { sockets, doomed: made.doomed, binder })
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

    /// Completes the sockets, once every description is open. The files that they are bound to are removed again unless
    /// they are told to stay.
    ///
    /// # Errors
    /// Names the socket and what it does not take.
    pub(crate) fn finish(mut self, files: &Files, descriptions: &[Rc<OwnedFd>]) -> Result<Binder> {
        let records = &files.unix_sockets;
        let named = |index: usize| format!("socket:[{}]", records[index].ino);
        let senders = records.iter().flat_map(|record| &record.queue);
        let stand_ins = StandIns::new(senders.filter_map(|message| Some(message.credentials?.pid)))?;
        // A datagram socket that is connected receives from its peer only, but keeps what others sent before.
        let (early, late) =
            (0..records.len()).partition::<Vec<_>, _>(|&index| hears_its_peer_alone(records, index));
        for index in early {
            self.connect_datagrams(index, records).with_context(|| named(index))?;
        }
        for index in 0..records.len() {
            self.fill(index, records, descriptions).with_context(|| named(index))?;
        }
        for index in late {
            self.connect_datagrams(index, records).with_context(|| named(index))?;
        }
        drop(stand_ins);
        for (index, record) in records.iter().enumerate() {
            self.shut(index, record).with_context(|| named(index))?;
        }
        for (index, record) in records.iter().enumerate() {
            self.complete(index, record).with_context(|| named(index))?;
        }
        Ok(self.binder)
    }

    /// Connects a datagram socket by the address of its peer.
    fn connect_datagrams(&self, index: usize, records: &[UnixSocket]) -> Result<()> {
        let record = &records[index];
        if record.kind != UnixKind::Datagram || record.peer_credentials.is_some() {
            return Ok(());
        }
        let own = self.sockets[index].as_fd();
        match (&record.peer, &self.doomed[index]) {
            (Peer::Socket(peer), _) => {
                let (peer, address) = (&self.sockets[*peer as usize], &records[*peer as usize].address);
                connect::connect(own, peer.as_fd(), address)
            }
            (Peer::Closed { address, .. }, Some(gone)) => connect::connect(own, gone.as_fd(), address),
            _ => Ok(()),
        }
    }

    /// Sends what waits in the queue of a socket.
    fn fill(&mut self, index: usize, records: &[UnixSocket], descriptions: &[Rc<OwnedFd>]) -> Result<()> {
        let record = &records[index];
        for message in &record.queue {
            let (sender, by_address) = self.sender(index, records, message).context("find its sender")?;
            // As large as it may be: what was in a queue before can be more than what goes in by the present limit.
            sys::set_option(sender.as_fd(), libc::SOL_SOCKET, SO_SNDBUFFORCE, &(i32::MAX / 2).to_ne_bytes())
                .context("SO_SNDBUFFORCE")?;
            let (_file, to) = match by_address {
                true => bind::handle(self.sockets[index].as_fd(), &record.address)
                    .map(|(file, to)| (file, Some(to)))?,
                false => (None, None),
            };
            send(sender.as_fd(), to.as_deref(), record.kind, message, descriptions)
                .context("put a message in its queue")?;
        }
        Ok(())
    }

    /// Who sends a message to a socket, and whether by its address instead of as its peer.
    fn sender(&mut self, index: usize, records: &[UnixSocket], message: &Message) -> Result<(OwnedFd, bool)> {
        let record = &records[index];
        let peer = match &record.peer {
            Peer::Socket(peer) => Some((&self.sockets[*peer as usize], &records[*peer as usize].address)),
            Peer::Closed { address, .. } => self.doomed[index].as_ref().map(|doomed| (doomed, address)),
            Peer::None | Peer::Listening { .. } | Peer::Waiting { .. } | Peer::Elsewhere { .. } => None,
        };
        let stream = record.kind != UnixKind::Datagram;
        if let Some((peer, address)) = peer
            && (stream || *address == message.sender)
        {
            let mutual = stream || connect::is_pair(records, index) || record.peer_credentials.is_some();
            return Ok((peer.try_clone()?, !mutual));
        }
        let named = |other: &UnixSocket| {
            other.kind == record.kind && !message.sender.is_empty() && other.address == message.sender
        };
        if let Some(other) = records.iter().position(named) {
            return Ok((self.sockets[other].try_clone()?, true));
        }
        let gone = socket(AddressFamily::Unix, sock_type(record.kind), SockFlag::SOCK_CLOEXEC, None)?;
        self.binder.bind(gone.as_fd(), &message.sender, None)?;
        Ok((gone, true))
    }

    /// Shuts a socket down as far as it was, and closes its peer if that was closed.
    fn shut(&mut self, index: usize, record: &UnixSocket) -> Result<()> {
        let socket = &self.sockets[index];
        if let (Peer::Closed { reset: true, .. }, Some(peer)) = (&record.peer, &self.doomed[index]) {
            // Unread when the peer is closed, it is what the error is for: unix_release_sock() in net/unix/af_unix.c.
            sys::send(socket.as_fd(), None, &[0], &[], None, 0)
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

    /// Filter, options and owner.
    fn complete(&self, index: usize, record: &UnixSocket) -> Result<()> {
        let socket = &self.sockets[index];
        if !record.filter.is_empty() {
            sys::attach_filter(socket.as_fd(), &record.filter).context("attach its filter")?;
        }
        option::restore(socket.as_fd(), &record.options)?;
        restore_owner(socket.as_fd(), record.uid, record.gid, record.mode)
    }
}

/// Whether a socket that is connected has nothing in its queue but what its peer sent.
fn hears_its_peer_alone(records: &[UnixSocket], index: usize) -> bool {
    let address = match &records[index].peer {
        Peer::Socket(peer) => &records[*peer as usize].address,
        Peer::Closed { address, .. } => address,
        Peer::None | Peer::Listening { .. } | Peer::Waiting { .. } | Peer::Elsewhere { .. } => return false,
    };
    records[index].queue.iter().all(|message| message.sender == *address)
}

/// Sends a message, in one piece if it is one.
fn send(
    sender: BorrowedFd<'_>,
    to: Option<&[u8]>,
    kind: UnixKind,
    message: &Message,
    descriptions: &[Rc<OwnedFd>],
) -> Result<()> {
    let mut rights: Vec<_> =
        message.descriptions.iter().map(|id| descriptions[id.0 as usize].as_raw_fd()).collect();
    let credentials = message.credentials.map(|who| [who.pid, who.uid.cast_signed(), who.gid.cast_signed()]);
    let flags = if message.out_of_band { libc::MSG_OOB } else { 0 };
    let mut rest = message.bytes.as_slice();
    loop {
        let sent = sys::send(sender, to, rest, &rights, credentials, flags)?;
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
