//! Who is connected to whom, and who is not in the tree.

use super::diag::{self, Entry};
use super::half::HalfPolicy;
use super::{Found, READ, Sockets, bind, name, queue};
use crate::proc::tasks::{Outsider, comm_of, outside};
use crate::proc::{Dir, status};
use crate::refusal::Refusals;
use crate::resource::path::CLOSE;
use crate::resource::{Refuse, socket};
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::Pid;
use images::socket::{Peer, PeerCredentials};
use nix::errno::Errno;
use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

/// Ways out.
const ACCEPT: &str = "have the program accept it before the dump";
const ACCEPT_OR_SKIP: &str =
    "have the program accept it before the dump, or use --skip-in-flight to give it up";

/// What the kernel says of all sockets, and which of them are ours.
pub(super) struct Known<'a> {
    pub(super) policy: &'a HalfPolicy,
    pub(super) all: HashMap<u32, Entry>,
    /// By inode.
    ours: HashMap<u32, u32>,
    /// Inodes of clients that wait, each with that of the listening socket.
    waiting: HashMap<u32, u32>,
    /// Those of them that are of the tree and given up, since they have sent something.
    given_up: HashSet<u32>,
    pub(super) outside: Outside,
    skip_in_flight: bool,
}

impl Sockets {
    /// Finds out who is connected to whom. What reaches out of the tree is refused, unless the user wants something else. Connections
    /// that wait to be accepted, by clients that will not be there, can be given up.
    pub(crate) fn relate(
        &mut self,
        policy: &HalfPolicy,
        skip_in_flight: bool,
        refusals: &mut Refusals,
    ) -> Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        let all = diag::query()?;
        let mut ours = HashMap::new();
        for (index, found) in self.found.iter().enumerate() {
            ours.insert(inode(found), u32::try_from(index)?);
        }
        let clients = |(listener, entry): (&u32, &Entry)| {
            let listener = *listener;
            entry.waiting.clone().into_iter().map(move |client| (client, listener))
        };
        let waiting: HashMap<u32, u32> = all.iter().flat_map(clients).collect();
        let given_up = if skip_in_flight { self.used(&waiting)? } else { HashSet::new() };
        let outside = Outside::default();
        let mut known = Known { policy, all, ours, waiting, given_up, outside, skip_in_flight };
        for found in &mut self.found {
            let holder = found.holder.clone();
            let mut refuse = Refuse::new(refusals, holder.pid, &holder.name);
            let related = known.relate(found, &mut refuse).with_context(|| holder.object.clone())?;
            if let Some(peer) = related {
                found.record.peer = peer;
            }
        }
        self.check_senders(&known.all, refusals);
        self.check_waiting(refusals);
        Ok(())
    }

    /// Clients that wait to be accepted, and have sent something.
    fn used(&self, waiting: &HashMap<u32, u32>) -> Result<HashSet<u32>> {
        let mut used = HashSet::new();
        for found in self.found.iter().filter(|found| waiting.contains_key(&inode(found))) {
            if has_sent(found)? {
                used.insert(inode(found));
            }
        }
        Ok(used)
    }

    /// Refuses messages that nobody could send again in the name of who did: one outside of the tree has an abstract name still.
    fn check_senders(&self, all: &HashMap<u32, Entry>, refusals: &mut Refusals) {
        let own: HashSet<&[u8]> = self.found.iter().map(|found| found.record.address.as_slice()).collect();
        for found in &self.found {
            let senders = found.record.queue.iter().map(|message| message.sender.as_slice());
            let mut hidden = senders.filter(|sender| sender.first() == Some(&0) && !own.contains(sender));
            if let Some(sender) = hidden.find(|sender| all.values().any(|entry| entry.name == **sender)) {
                let holder = &found.holder;
                let reason = format!("has a message from {}, outside of the tree", bind::printable(sender));
                refusals.task((holder.pid, &holder.name), &holder.object, reason, Some(READ));
            }
        }
    }

    /// Refuses connections whose clients have been refused.
    fn check_waiting(&self, refusals: &mut Refusals) {
        for (index, found) in self.found.iter().enumerate() {
            let Peer::Listening { waiting, .. } = &found.record.peer else { continue };
            let lost = |client: &&u32| match self.found[**client as usize].record.peer {
                Peer::Waiting { listener, .. } => listener as usize != index,
                _ => true,
            };
            if waiting.iter().any(|client| lost(&client)) && refusals.is_empty() {
                let holder = &found.holder;
                let reason = "a connection that waits to be accepted has no client";
                refusals.task((holder.pid, &holder.name), &holder.object, reason, Some(ACCEPT));
            }
        }
    }
}

/// Whether something that a socket has sent was not received.
fn has_sent(found: &Found) -> Result<bool> {
    Ok(sys::unreceived_bytes(found.socket.as_fd()).context("SIOCOUTQ")? > 0)
}

/// The number by which the kernel's diagnostics know a socket.
fn inode(found: &Found) -> u32 {
    u32::try_from(found.record.ino).unwrap_or(0)
}

impl Known<'_> {
    /// What a socket is connected to; `None` when that is refused.
    fn relate(&mut self, found: &mut Found, refuse: &mut Refuse<'_>) -> Result<Option<Peer>> {
        let object = &found.holder.object;
        let Some(entry) = self.all.get(&inode(found)).cloned() else {
            refuse.with_hint(object, "belongs to another network namespace than crr", CLOSE);
            return Ok(None);
        };
        found.record.shutdown = entry.shutdown;
        if let Peer::Listening { .. } = found.record.peer {
            return self.listening(found, &entry, refuse);
        }
        match entry.peer {
            None => Ok(Some(Peer::None)),
            Some(0) => match self.waiting.get(&inode(found)) {
                Some(&listener) => self.waiting(found, listener, refuse),
                None => closed(found).map(Some),
            },
            Some(peer) => match self.ours.get(&peer) {
                Some(&index) => Ok(Some(Peer::Socket(index))),
                None => self.half(found, peer, true, refuse),
            },
        }
    }

    fn listening(&mut self, found: &Found, entry: &Entry, refuse: &mut Refuse<'_>) -> Result<Option<Peer>> {
        let mut waiting = Vec::new();
        for client in &entry.waiting {
            match (client, self.ours.get(client)) {
                (_, Some(_)) if self.given_up.contains(client) => {}
                (_, None) if self.skip_in_flight || *self.policy != HalfPolicy::Refuse => {}
                (0, _) => {
                    let reason = "a connection waits to be accepted, and its client has closed it";
                    refuse.with_hint(&found.holder.object, reason, ACCEPT_OR_SKIP);
                }
                (_, Some(&index)) => waiting.push(index),
                (_, None) => {
                    let who = self.outside.describe(*client)?;
                    let reason = format!("a connection waits to be accepted, by socket:[{client}] of {who}");
                    refuse.with_hint(&found.holder.object, reason, ACCEPT_OR_SKIP);
                }
            }
        }
        Ok(Some(Peer::Listening { backlog: entry.backlog, waiting }))
    }

    fn waiting(&mut self, found: &mut Found, listener: u32, refuse: &mut Refuse<'_>) -> Result<Option<Peer>> {
        let Some(&index) = self.ours.get(&listener) else {
            return self.half(found, listener, false, refuse);
        };
        if self.given_up.contains(&inode(found)) {
            // As the kernel does when the socket that listens is closed: unix_release_sock() of net/unix/af_unix.c.
            return Ok(Some(Peer::Closed { address: peer_name(found)?, reset: true }));
        }
        if has_sent(found)? {
            let reason = "has sent data over a connection that waits to be accepted: nobody can look at that";
            refuse.with_hint(&found.holder.object, reason, ACCEPT_OR_SKIP);
            return Ok(None);
        }
        Ok(Some(Peer::Waiting { listener: index, connector: credentials_of(found.holder.pid)? }))
    }
}

pub(super) fn closed(found: &Found) -> Result<Peer> {
    Ok(Peer::Closed { address: peer_name(found)?, reset: queue::has_error(found.socket.as_fd())? })
}

pub(super) fn peer_name(found: &Found) -> Result<Vec<u8>> {
    match sys::peer_address(found.socket.as_fd()) {
        Err(Errno::ENOTCONN) => Ok(Vec::new()),
        address => Ok(name(&address.context("getpeername")?)),
    }
}

/// What the kernel would record of a task that connects now.
pub(super) fn credentials_of(pid: Pid) -> Result<PeerCredentials> {
    let mut buffer = Vec::new();
    Dir::task(pid)?.read_record("status", &mut buffer).context("read status")?;
    let status = status::parse(&buffer)?;
    Ok(PeerCredentials { pid, uid: status.uid[1], gid: status.gid[1], groups: status.groups })
}

/// Who holds the sockets outside of the tree: looked for only when somebody is to be named.
#[derive(Debug, Default)]
pub(super) struct Outside {
    holders: Option<HashMap<u64, Pid>>,
}

impl Outside {
    pub(super) fn describe(&mut self, ino: u32) -> Result<String> {
        let holders = match self.holders.take() {
            Some(holders) => holders,
            None => scan()?,
        };
        let holders = self.holders.insert(holders);
        Ok(match holders.get(&u64::from(ino)) {
            Some(&pid) => format!("task {pid} ({}), outside of the tree", comm_of(pid)),
            None => "nobody in sight".to_owned(),
        })
    }
}

/// All sockets of all tasks, each with one that holds it.
fn scan() -> Result<HashMap<u64, Pid>> {
    let mut holders = HashMap::new();
    for Outsider { pid, dir, .. } in outside(&HashSet::new())? {
        let Ok(dir) = dir.dir("fd") else { continue };
        for fd in dir.numbers::<u32>(".").unwrap_or_default() {
            let link = dir.link(&fd.to_string()).unwrap_or_default();
            if let Some(ino) = socket::inode(link.as_bytes()) {
                holders.insert(ino, pid);
            }
        }
    }
    Ok(holders)
}
