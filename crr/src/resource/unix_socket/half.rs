//! Connections whose other end is outside of the tree: refused, or what else a user wants to become of them.

use super::relation::{Known, closed, credentials_of, peer_name};
use super::{Found, READ, bind};
use crate::resource::Refuse;
use anyhow::Result;
use images::socket::{Peer, UnixKind};
use nix::sys::stat::{SFlag, stat};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// What a dump does about such connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HalfPolicy {
    /// Refuses them.
    #[default]
    Refuse,
    /// Has the sockets of the tree come back with their other end closed (`--unix-half close`).
    Close,
    /// Has clients connected again, to where they were connected or to this address (`--unix-half reconnect`). All others come back as by
    /// [`HalfPolicy::Close`].
    Reconnect(Option<Vec<u8>>),
}

/// An argument of `--unix-half` that is none.
#[derive(Debug, thiserror::Error)]
#[error("not close, reconnect or reconnect=PATH with an absolute path, or @ and an abstract name")]
pub struct NoPolicy;

impl FromStr for HalfPolicy {
    type Err = NoPolicy;

    fn from_str(text: &str) -> Result<Self, NoPolicy> {
        match (text, text.strip_prefix("reconnect=").map(str::as_bytes)) {
            ("close", _) => Ok(Self::Close),
            ("reconnect", _) => Ok(Self::Reconnect(None)),
            (_, Some([b'@', name @ ..])) if name.len() < ADDRESS_MAX => {
                Ok(Self::Reconnect(Some([b"\0", name].concat())))
            }
            (_, Some(path @ [b'/', ..])) if path.len() <= ADDRESS_MAX => {
                Ok(Self::Reconnect(Some(path.to_vec())))
            }
            _ => Err(NoPolicy),
        }
    }
}

/// `sun_path` of `struct sockaddr_un`.
const ADDRESS_MAX: usize = 108;

impl Known<'_> {
    /// What becomes of a connection with a socket outside of the tree; `None` when that is refused.
    pub(super) fn half(
        &mut self,
        found: &mut Found,
        other: u32,
        accepted: bool,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Peer>> {
        let address = peer_name(found)?;
        let is_client = !address.is_empty() && !self.is_server(found);
        match self.policy {
            HalfPolicy::Refuse => {
                let who = self.outside.describe(other)?;
                let at = if address.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", bind::printable(&address))
                };
                let then = if accepted { "" } else { ", which has not accepted it" };
                let reason = format!("connected to socket:[{other}]{at} of {who}{then}");
                let again = if is_client { "--unix-half reconnect, " } else { "" };
                let hint = format!(
                    "dump a tree that holds both ends, use {again}--unix-half close, or leave it outside with --external unix[{}]",
                    found.record.ino
                );
                refuse.with_hint(&found.holder.object, reason, &hint);
                Ok(None)
            }
            HalfPolicy::Reconnect(path) if is_client => again(found, path.as_deref(), address, refuse),
            HalfPolicy::Close | HalfPolicy::Reconnect(_) => {
                if matches!(self.policy, HalfPolicy::Reconnect(_)) {
                    log::warn!(
                        "task {} ({}): {}: comes back closed, since it is no client of the other end, socket:[{other}]",
                        found.holder.pid,
                        found.holder.name,
                        found.holder.object
                    );
                }
                closed(found).map(Some)
            }
        }
    }

    /// Whether a socket came of accept(2): it has the address of the one that listens, which may be gone.
    fn is_server(&self, found: &Found) -> bool {
        let own = &found.record.address;
        let listens = |entry: &super::diag::Entry| entry.listens && entry.name == *own;
        found.record.kind != UnixKind::Datagram && !own.is_empty() && self.all.values().any(listens)
    }
}

/// A client that is to be connected again, to another path than it was if there is to be one by then.
fn again(
    found: &Found,
    path: Option<&[u8]>,
    address: Vec<u8>,
    refuse: &mut Refuse<'_>,
) -> Result<Option<Peer>> {
    let object = &found.holder.object;
    let is_there = || match address.first() {
        Some(b'/') => stat(OsStr::from_bytes(&address))
            .is_ok_and(|there| there.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits()),
        other => other == Some(&0),
    };
    if !found.record.queue.is_empty() {
        let reason =
            "has data that was not read, which would not come by a new connection (--unix-half reconnect)";
        refuse.with_hint(object, reason, READ);
        return Ok(None);
    }
    if path.is_none() && !is_there() {
        let reason =
            format!("connected to {}, where crr finds no socket from its root", bind::printable(&address));
        refuse.with_hint(object, reason, "say where it is: --unix-half reconnect=PATH");
        return Ok(None);
    }
    let address = path.map_or(address, <[u8]>::to_vec);
    Ok(Some(Peer::Elsewhere { address, connector: credentials_of(found.holder.pid)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        for (text, policy) in [
            ("close", HalfPolicy::Close),
            ("reconnect", HalfPolicy::Reconnect(None)),
            ("reconnect=/run/log", HalfPolicy::Reconnect(Some(b"/run/log".to_vec()))),
            ("reconnect=@log", HalfPolicy::Reconnect(Some(b"\0log".to_vec()))),
        ] {
            assert_eq!(text.parse::<HalfPolicy>().ok(), Some(policy), "{text}");
        }
        let long = format!("reconnect=/{}", "a".repeat(ADDRESS_MAX));
        for wrong in ["", "closed", "reconnect=", "reconnect=log", "close=/a", &long] {
            assert!(wrong.parse::<HalfPolicy>().is_err(), "{wrong}");
        }
    }
}
