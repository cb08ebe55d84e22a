//! Who is connected to whom, and who is not in the tree.

use super::diag::{self, Entry};
use super::{Found, Sockets, bind, name, queue};
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
const CONNECTED_OUTSIDE: &str =
    "dump a tree that holds both ends, or have one of them close it before the dump";
const ACCEPT: &str = "have the program accept it before the dump";

/// What the kernel says of all sockets, and which of them are ours.
struct Known {
    all: HashMap<u32, Entry>,
    /// By inode.
    ours: HashMap<u32, u32>,
    /// Inodes of clients that wait, each with that of the listening socket.
    waiting: HashMap<u32, u32>,
    outside: Outside,
}

impl Sockets {
    /// Finds out who is connected to whom. What reaches out of the tree is refused.
    pub(crate) fn relate(&mut self, refusals: &mut Refusals) -> Result<()> {
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
        let waiting = all.iter().flat_map(clients).collect();
        let mut known = Known { all, ours, waiting, outside: Outside::default() };
        for found in &mut self.found {
            let holder = found.holder.clone();
            let mut refuse = Refuse::new(refusals, holder.pid, &holder.name);
            let related = known.relate(found, &mut refuse).with_context(|| holder.object.clone())?;
            if let Some(peer) = related {
                found.record.peer = peer;
            }
        }
        self.check_waiting(refusals);
        Ok(())
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

/// The number by which the kernel's diagnostics know a socket.
fn inode(found: &Found) -> u32 {
    u32::try_from(found.record.ino).unwrap_or(0)
}

impl Known {
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
                None => {
                    let who = self.outside.describe(peer)?;
                    let address = peer_name(found)?;
                    let to = if address.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", bind::printable(&address))
                    };
                    refuse.with_hint(
                        object,
                        format!("connected to socket:[{peer}]{to} of {who}"),
                        CONNECTED_OUTSIDE,
                    );
                    Ok(None)
                }
            },
        }
    }

    fn listening(&mut self, found: &Found, entry: &Entry, refuse: &mut Refuse<'_>) -> Result<Option<Peer>> {
        let mut waiting = Vec::new();
        for client in &entry.waiting {
            match (client, self.ours.get(client)) {
                (0, _) => {
                    let reason = "a connection waits to be accepted, and its client has closed it";
                    refuse.with_hint(&found.holder.object, reason, ACCEPT);
                }
                (_, Some(&index)) => waiting.push(index),
                (_, None) => {
                    let who = self.outside.describe(*client)?;
                    let reason = format!("a connection waits to be accepted, by socket:[{client}] of {who}");
                    refuse.with_hint(&found.holder.object, reason, ACCEPT);
                }
            }
        }
        Ok(Some(Peer::Listening { backlog: entry.backlog, waiting }))
    }

    fn waiting(&mut self, found: &Found, listener: u32, refuse: &mut Refuse<'_>) -> Result<Option<Peer>> {
        let object = &found.holder.object;
        let Some(&index) = self.ours.get(&listener) else {
            let who = self.outside.describe(listener)?;
            let reason = format!("connected to socket:[{listener}] of {who}, which has not accepted it");
            refuse.with_hint(object, reason, CONNECTED_OUTSIDE);
            return Ok(None);
        };
        if sys::unreceived_bytes(found.socket.as_fd()).context("SIOCOUTQ")? > 0 {
            let reason = "has sent data over a connection that waits to be accepted: nobody can look at that";
            refuse.with_hint(object, reason, ACCEPT);
            return Ok(None);
        }
        Ok(Some(Peer::Waiting { listener: index, connector: credentials_of(found.holder.pid)? }))
    }
}

fn closed(found: &Found) -> Result<Peer> {
    Ok(Peer::Closed { address: peer_name(found)?, reset: queue::has_error(found.socket.as_fd())? })
}

fn peer_name(found: &Found) -> Result<Vec<u8>> {
    match sys::peer_address(found.socket.as_fd()) {
        Err(Errno::ENOTCONN) => Ok(Vec::new()),
        address => Ok(name(&address.context("getpeername")?)),
    }
}

/// What the kernel would record of a task that connects now.
fn credentials_of(pid: Pid) -> Result<PeerCredentials> {
    let mut buffer = Vec::new();
    Dir::task(pid)?.read("status", &mut buffer).context("read status")?;
    let status = status::parse(&buffer)?;
    Ok(PeerCredentials { pid, uid: status.uid[1], gid: status.gid[1], groups: status.groups })
}

/// Who holds the sockets outside of the tree: looked for only when somebody is to be named.
#[derive(Debug, Default)]
struct Outside {
    holders: Option<HashMap<u64, Pid>>,
}

impl Outside {
    fn describe(&mut self, ino: u32) -> Result<String> {
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
