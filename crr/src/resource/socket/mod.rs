//! What sockets of all families have in common: options, and how those that are not supported are called.

pub(crate) mod before;
pub(crate) mod diag;
pub(crate) mod option;
pub(crate) mod peek_offset;

use crate::sys::socket as sys;
use anyhow::{Context, Result};
use nix::sys::stat::{Mode, fchmod, fstat, stat};
use nix::unistd::{Gid, Uid, fchown};
use std::os::fd::BorrowedFd;

/// The inode number of a socket, from its link in `/proc/PID/fd`.
pub(crate) fn inode(link: &[u8]) -> Option<u64> {
    crate::proc::decimal(link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)
}

/// crr's own network namespace, by device and inode: looked for when the first socket is to be compared with it.
#[derive(Debug, Default)]
pub(crate) struct OwnNetwork(Option<(u64, u64)>);

impl OwnNetwork {
    /// Whether a socket belongs to it.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub(crate) fn has(&mut self, socket: BorrowedFd<'_>) -> Result<bool> {
        let own = match self.0 {
            Some(own) => own,
            None => {
                let own = stat("/proc/self/ns/net").context("look for the network namespace of crr")?;
                *self.0.insert((own.st_dev, own.st_ino))
            }
        };
        let its = fstat(sys::network(socket).context("look for its network namespace")?).context("fstat")?;
        Ok((its.st_dev, its.st_ino) == own)
    }
}

/// SO_DOMAIN: the family.
///
/// # Errors
/// ENOTSOCK.
pub(crate) fn family(socket: BorrowedFd<'_>) -> nix::Result<i32> {
    sys::number(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)
}

/// Gives a socket itself, not a file that it is bound to, its owner and mode.
///
/// # Errors
/// As fchown(2) and fchmod(2).
pub(crate) fn restore_owner(socket: BorrowedFd<'_>, uid: u32, gid: u32, mode: u32) -> Result<()> {
    let now = fstat(socket).context("fstat")?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        fchown(socket, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context("fchown")?;
    }
    if now.st_mode != mode {
        fchmod(socket, Mode::from_bits_truncate(mode)).context("fchmod")?;
    }
    Ok(())
}
