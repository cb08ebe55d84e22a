//! Connections of unix sockets: pairs, what was connected to a listening socket, what still waits there.
//!
//! A connection shows on both sides who made it: the client sees who listened, the server who connected. So each of these
//! calls is made by a process that is that one (`maker`).

use super::bind::{self, Binder};
use super::maker;
use super::recreate::sock_type;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::socket::{Peer, PeerCredentials, UnixKind, UnixSocket};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, listen, socket, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::dup3;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    /// A record, by index.
    Record(usize),
    /// The closed peer of a record.
    Closed(usize),
}

/// A connection to be made by way of a listening socket.
struct Connection<'a> {
    kind: UnixKind,
    client: End,
    server: End,
    client_address: &'a [u8],
    server_address: &'a [u8],
    /// Who listens: seen by the client.
    listener: Option<&'a PeerCredentials>,
    /// Who connects: seen by the server.
    connector: Option<&'a PeerCredentials>,
}

/// Two connected sockets, of which nothing else is known.
struct Pair<'a> {
    kind: UnixKind,
    ends: [End; 2],
    maker: Option<&'a PeerCredentials>,
}

/// Sockets made so far.
#[derive(Debug)]
pub(super) struct Sockets {
    /// In the order of the records.
    pub(super) made: Vec<Option<OwnedFd>>,
    /// Peers that are to be closed, in the order of the records.
    pub(super) doomed: Vec<Option<OwnedFd>>,
}

impl Sockets {
    fn slot(&mut self, end: End) -> &mut Option<OwnedFd> {
        match end {
            End::Record(index) => &mut self.made[index],
            End::Closed(index) => &mut self.doomed[index],
        }
    }

    fn get(&self, end: End) -> Result<BorrowedFd<'_>> {
        let slot = match end {
            End::Record(index) => &self.made[index],
            End::Closed(index) => &self.doomed[index],
        };
        slot.as_ref().map(AsFd::as_fd).context("a socket that was not made")
    }
}

/// What is to be made of the records.
#[derive(Default)]
struct Work<'a> {
    pairs: Vec<Pair<'a>>,
    connections: Vec<Connection<'a>>,
    /// Datagram sockets connected to one that is closed, and what its address was.
    orphans: Vec<(usize, &'a [u8])>,
}

impl<'a> Work<'a> {
    fn sort(records: &'a [UnixSocket], addresses: &Addresses<'_>) -> Self {
        let mut work = Self::default();
        for (index, record) in records.iter().enumerate() {
            match &record.peer {
                // The other one does it for both.
                Peer::Socket(other) if (*other as usize) < index && is_mutual(records, index) => {}
                Peer::Socket(other) if record.kind != UnixKind::Datagram || is_pair(records, index) => {
                    let other = *other as usize;
                    let address = &records[other].address;
                    work.add(
                        addresses,
                        &records[index],
                        index,
                        End::Record(other),
                        address,
                        records[other].peer_credentials.as_ref(),
                    );
                }
                Peer::Closed { address, .. } if record.kind != UnixKind::Datagram => {
                    work.add(addresses, &records[index], index, End::Closed(index), address, None);
                }
                Peer::Closed { .. } if record.peer_credentials.is_some() => {
                    let ends = [End::Record(index), End::Closed(index)];
                    let maker = record.peer_credentials.as_ref();
                    work.pairs.push(Pair { kind: record.kind, ends, maker });
                }
                Peer::Closed { address, .. } => work.orphans.push((index, address)),
                Peer::None
                | Peer::Socket(_)
                | Peer::Listening { .. }
                | Peer::Waiting { .. }
                | Peer::Elsewhere { .. } => {}
            }
        }
        work
    }

    /// A record and its peer. Without any address they are a pair. Else the server is the one whose address others have,
    /// too: it has that of the socket that listened. Failing that, the one that has an address.
    fn add(
        &mut self,
        addresses: &Addresses<'_>,
        record: &'a UnixSocket,
        index: usize,
        peer: End,
        peer_address: &'a [u8],
        seen_by_peer: Option<&'a PeerCredentials>,
    ) {
        let seen = record.peer_credentials.as_ref();
        let own_address = record.address.as_slice();
        let kind = record.kind;
        if kind == UnixKind::Datagram || (own_address.is_empty() && peer_address.is_empty()) {
            self.pairs.push(Pair { kind, ends: [End::Record(index), peer], maker: seen });
            return;
        }
        let shared = |address| addresses.is_shared(kind, address);
        let is_server = shared(own_address) || (!shared(peer_address) && !own_address.is_empty());
        let own = End::Record(index);
        self.connections.push(if is_server {
            Connection {
                kind,
                client: peer,
                server: own,
                client_address: peer_address,
                server_address: own_address,
                listener: seen_by_peer,
                connector: seen,
            }
        } else {
            Connection {
                kind,
                client: own,
                server: peer,
                client_address: own_address,
                server_address: peer_address,
                listener: seen,
                connector: seen_by_peer,
            }
        });
    }
}

/// Whether the peer of a socket is connected to it, too.
fn is_mutual(records: &[UnixSocket], index: usize) -> bool {
    let Peer::Socket(other) = records[index].peer else { return false };
    matches!(records[other as usize].peer, Peer::Socket(back) if back as usize == index)
}

/// Whether a datagram socket was made by socketpair(2): connect(2) records nobody.
pub(super) fn is_pair(records: &[UnixSocket], index: usize) -> bool {
    is_mutual(records, index) && records[index].peer_credentials.is_some()
}

/// Who has which address, by type of socket.
#[derive(Default)]
struct Addresses<'a> {
    uses: HashMap<(u8, &'a [u8]), u32>,
    listening: HashMap<(u8, &'a [u8]), usize>,
}

impl<'a> Addresses<'a> {
    fn of(records: &'a [UnixSocket]) -> Self {
        let mut addresses = Self::default();
        for (index, record) in records.iter().enumerate() {
            let kind = record.kind as u8;
            *addresses.uses.entry((kind, &record.address)).or_default() += 1;
            match &record.peer {
                Peer::Closed { address, .. } => *addresses.uses.entry((kind, address)).or_default() += 1,
                Peer::Listening { .. } => {
                    addresses.listening.insert((kind, &record.address), index);
                }
                Peer::None | Peer::Socket(_) | Peer::Waiting { .. } | Peer::Elsewhere { .. } => {}
            }
        }
        addresses
    }

    fn is_shared(&self, kind: UnixKind, address: &[u8]) -> bool {
        !address.is_empty() && self.uses.get(&(kind as u8, address)).is_some_and(|uses| *uses > 1)
    }

    /// The socket that listens there.
    fn listening(&self, kind: UnixKind, address: &[u8]) -> Option<usize> {
        self.listening.get(&(kind as u8, address)).copied()
    }
}

/// Makes all sockets, gives them their addresses, and connects those that are connected otherwise than by the address of
/// a datagram socket.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn create(records: &[UnixSocket], binder: &mut Binder) -> Result<Sockets> {
    let mut sockets = Sockets {
        made: records.iter().map(|_| None).collect(),
        doomed: records.iter().map(|_| None).collect(),
    };
    let addresses = Addresses::of(records);
    let work = Work::sort(records, &addresses);
    make_pairs(&work.pairs, &mut sockets)?;
    let servers: HashSet<End> = work.connections.iter().map(|connection| connection.server).collect();
    for (index, record) in records.iter().enumerate() {
        if sockets.made[index].is_none() && !servers.contains(&End::Record(index)) {
            sockets.made[index] = Some(unconnected(record.kind)?);
        }
    }
    for (index, address) in work.orphans {
        let gone = unconnected(UnixKind::Datagram)?;
        binder.bind_gone(gone.as_fd(), address)?;
        // Its address can be another's by now, who is to get it next.
        let taken =
            records.iter().any(|record| record.kind == UnixKind::Datagram && record.address == address);
        if taken && address.first() == Some(&0) {
            connect(sockets.get(End::Record(index))?, gone.as_fd(), address)?;
        } else {
            sockets.doomed[index] = Some(gone);
        }
    }
    for (index, record) in records.iter().enumerate() {
        if let Some(socket) = &sockets.made[index] {
            let named = || format!("socket:[{}]", record.ino);
            binder.bind(socket.as_fd(), &record.address, record.file.as_ref()).with_context(named)?;
        }
    }
    make_connections(&addresses, &work.connections, &mut sockets, binder)?;
    make_waiting(records, &sockets)?;
    connect_elsewhere(records, &sockets)?;
    for (index, record) in records.iter().enumerate() {
        if let Peer::Listening { backlog, .. } = &record.peer {
            let backlog =
                Backlog::new(i32::try_from(*backlog).unwrap_or(i32::MAX)).unwrap_or(Backlog::MAXCONN);
            let socket = sockets.get(End::Record(index))?;
            maker::act(record.peer_credentials.as_ref(), || listen(&socket, backlog)).context("listen")?;
        }
    }
    Ok(sockets)
}

fn unconnected(kind: UnixKind) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, sock_type(kind), SockFlag::SOCK_CLOEXEC, None).context("make a socket")
}

/// Connects a socket to another one, by the address of that.
///
/// # Errors
/// As connect(2).
pub(super) fn connect(socket: BorrowedFd<'_>, to: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    let (_file, target) = bind::handle(to, address)?;
    sys::connect(socket, &target).with_context(|| format!("connect to {}", bind::printable(address)))
}

fn make_pairs(pairs: &[Pair<'_>], sockets: &mut Sockets) -> Result<()> {
    for (maker, pairs) in grouped(pairs, |pair| pair.maker) {
        let mut places = pairs
            .iter()
            .map(|_| Ok([place()?, place()?]))
            .collect::<nix::Result<Vec<_>>>()
            .context("make room")?;
        let make = || {
            for (pair, [one, other]) in pairs.iter().zip(&mut places) {
                let made =
                    socketpair(AddressFamily::Unix, sock_type(pair.kind), None, SockFlag::SOCK_CLOEXEC)?;
                dup3(&made.0, one, OFlag::O_CLOEXEC)?;
                dup3(&made.1, other, OFlag::O_CLOEXEC)?;
            }
            Ok(())
        };
        maker::act(maker, make).context("make a pair of sockets")?;
        for (pair, places) in pairs.into_iter().zip(places) {
            for (end, place) in pair.ends.into_iter().zip(places) {
                *sockets.slot(end) = Some(place);
            }
        }
    }
    Ok(())
}

/// A descriptor that makes room for another one.
fn place() -> nix::Result<OwnedFd> {
    nix::fcntl::open(c"/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// What belongs together by whom it was done, in the order in which each first occurs.
fn grouped<T, K: PartialEq>(all: &[T], key: impl Fn(&T) -> K) -> Vec<(K, Vec<&T>)> {
    let mut groups: Vec<(K, Vec<&T>)> = Vec::new();
    for one in all {
        let key = key(one);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(one),
            None => groups.push((key, vec![one])),
        }
    }
    groups
}

/// A socket that listens while connections are made.
struct Listener {
    socket: OwnedFd,
    target: Vec<u8>,
    /// The file that `target` leads to.
    _file: Option<OwnedFd>,
}

impl Listener {
    /// That of the tree, if there is one, else one for the moment.
    fn new(
        addresses: &Addresses<'_>,
        like: &Connection<'_>,
        sockets: &Sockets,
        binder: &mut Binder,
    ) -> Result<Self> {
        let address = like.server_address;
        let socket = match addresses.listening(like.kind, address) {
            Some(index) => sockets.get(End::Record(index))?.try_clone_to_owned()?,
            None => {
                let socket = unconnected(like.kind)?;
                binder.bind_gone(socket.as_fd(), address)?;
                socket
            }
        };
        let (file, target) = bind::handle(socket.as_fd(), address)?;
        Ok(Self { socket, target, _file: file })
    }
}

fn make_connections(
    addresses: &Addresses<'_>,
    connections: &[Connection<'_>],
    sockets: &mut Sockets,
    binder: &mut Binder,
) -> Result<()> {
    for (_, connections) in grouped(connections, |connection| (connection.kind, connection.server_address)) {
        let Some(first) = connections.first() else { continue };
        let listener = Listener::new(addresses, first, sockets, binder)?;
        for ((listens, connects), connections) in grouped(&connections, |one| (one.listener, one.connector)) {
            maker::act(listens, || listen(&listener.socket, Backlog::MAXCONN)).context("listen")?;
            let mut places = Vec::with_capacity(connections.len());
            for connection in &connections {
                if let End::Closed(index) = connection.client {
                    let socket = unconnected(connection.kind)?;
                    binder.bind_gone(socket.as_fd(), connection.client_address)?;
                    sockets.doomed[index] = Some(socket);
                }
                places.push(place().context("make room")?);
            }
            let make = || {
                for (connection, place) in connections.iter().zip(&mut places) {
                    let client = sockets.get(connection.client).map_err(|_| Errno::EBADF)?;
                    sys::connect(client, &listener.target)?;
                    sys::accept(listener.socket.as_fd(), place)?;
                }
                Ok(())
            };
            let name = || format!("connect to {}", bind::printable(first.server_address));
            maker::act(connects, make).with_context(name)?;
            for (connection, place) in connections.into_iter().zip(places) {
                *sockets.slot(connection.server) = Some(place);
            }
        }
    }
    Ok(())
}

/// Connections that nobody has accepted, in their order.
fn make_waiting(records: &[UnixSocket], sockets: &Sockets) -> Result<()> {
    for (index, record) in records.iter().enumerate() {
        let Peer::Listening { waiting, .. } = &record.peer else { continue };
        let socket = sockets.get(End::Record(index))?;
        for &client in waiting {
            let Peer::Waiting { connector, .. } = &records[client as usize].peer else { continue };
            let listens = records[client as usize].peer_credentials.as_ref();
            maker::act(listens, || listen(&socket, Backlog::MAXCONN)).context("listen")?;
            let (_file, target) = bind::handle(socket, &record.address)?;
            let client = sockets.get(End::Record(client as usize))?;
            maker::act(Some(connector), || sys::connect(client, &target)).context("connect")?;
        }
    }
    Ok(())
}

/// Connections to sockets outside of the tree. One whose backlog is full is not waited for.
fn connect_elsewhere(records: &[UnixSocket], sockets: &Sockets) -> Result<()> {
    for (index, record) in records.iter().enumerate() {
        let Peer::Elsewhere { address, connector } = &record.peer else { continue };
        let socket = sockets.get(End::Record(index))?;
        // Its flags are set when it gets its description.
        fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set flags")?;
        maker::act(Some(connector), || sys::connect(socket, address)).with_context(|| {
            format!("socket:[{}]: connect to {} again", record.ino, bind::printable(address))
        })?;
    }
    Ok(())
}
