//! Files that stay outside of a checkpoint (`--external`) and are given to the tree when it is restored (`--inherit-fd`).
//!
//! Keys are spelled as CRIU spells them.

pub(crate) mod given;

use super::path::file_type;
use super::{pipe, unix_socket};
use anyhow::{Context, Result};
use images::external::{External, ExternalKind};
use images::file::Files;
use nix::sys::stat::{FileStat, SFlag, major, minor};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

/// What a file that stays outside goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A pipe without a name, by inode.
    Pipe(u64),
    /// A unix socket, by inode.
    UnixSocket(u64),
    /// A file with a name, by the mount that it was opened on, and inode.
    File(u32, u64),
    /// A terminal, by its own device and that of its file system.
    Terminal(u64, u64),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe(ino) => write!(f, "pipe:[{ino}]"),
            Self::UnixSocket(ino) => write!(f, "unix[{ino}]"),
            Self::File(mount, ino) => write!(f, "file[{mount:x}:{ino:x}]"),
            Self::Terminal(rdev, dev) => write!(f, "tty[{rdev:x}:{dev:x}]"),
        }
    }
}

/// A key that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "not pipe[INO], unix[INO], file[MNT_ID:INODE] or tty[RDEV:DEV], the last two with hexadecimal numbers"
)]
pub struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let (kind, rest) = text.split_once('[').ok_or(NoKey)?;
        let inside = rest.strip_suffix(']').ok_or(NoKey)?;
        let pair = || {
            let (first, second) = inside.split_once(':')?;
            Some((crate::proc::hex(first.as_bytes())?, crate::proc::hex(second.as_bytes())?))
        };
        match kind {
            "pipe" | "pipe:" => crate::proc::decimal(inside.as_bytes()).map(Self::Pipe),
            "unix" | "unix:" => crate::proc::decimal(inside.as_bytes()).map(Self::UnixSocket),
            "file" => pair().and_then(|(mount, ino)| Some(Self::File(u32::try_from(mount).ok()?, ino))),
            "tty" => pair().map(|(rdev, dev)| Self::Terminal(rdev, dev)),
            _ => None,
        }
        .ok_or(NoKey)
    }
}

impl Key {
    /// The keys that an open file can go by, the best one first.
    pub(crate) fn all_of(link: &[u8], stat: &FileStat, mount: u32) -> Vec<Self> {
        if let Some(ino) = pipe::inode(link) {
            return vec![Self::Pipe(ino)];
        }
        let mut keys = Vec::new();
        if is_terminal(stat) {
            keys.push(Self::Terminal(stat.st_rdev, stat.st_dev));
        }
        if link.starts_with(b"/") {
            keys.push(Self::File(mount, stat.st_ino));
        }
        keys
    }
}

/// Virtual consoles, serial lines and slaves of pseudo terminals: what has a device of its own (Documentation/admin-guide/devices.txt).
fn is_terminal(stat: &FileStat) -> bool {
    file_type(stat.st_mode) == SFlag::S_IFCHR && matches!(major(stat.st_rdev), 4 | 136..=143)
        || (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 1)
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Externals {
    /// What was asked for, and the number that it got.
    wanted: BTreeMap<Key, Option<u32>>,
    records: Vec<External>,
    /// All unix sockets, when one of the tree is to be found.
    peers: Option<HashMap<u32, unix_socket::diag::Entry>>,
}

impl Externals {
    pub(crate) fn new(keys: &[Key]) -> Self {
        Self { wanted: keys.iter().map(|&key| (key, None)).collect(), ..Self::default() }
    }

    /// The number of an open file, if it is to stay outside.
    pub(crate) fn find(&mut self, link: &[u8], stat: &FileStat, mount: u32) -> Result<Option<u32>> {
        if self.wanted.is_empty() {
            return Ok(None);
        }
        let keys = Key::all_of(link, stat, mount);
        let Some(key) = keys.into_iter().find(|key| self.wanted.contains_key(key)) else { return Ok(None) };
        let next = u32::try_from(self.records.len()).context("too many files that stay outside")?;
        let entry = self.wanted.entry(key).or_default();
        let id = *entry.get_or_insert(next);
        if id == next {
            let kind = match (key, file_type(stat.st_mode)) {
                (Key::Terminal(..), _) => ExternalKind::Terminal,
                (_, SFlag::S_IFIFO) => ExternalKind::Pipe,
                (_, kind) => ExternalKind::File(kind.bits()),
            };
            self.records.push(External { key: key.to_string(), kind, name: link.to_vec() });
        }
        Ok(Some(id))
    }

    /// The number of a unix socket, if it is to stay outside. It can be asked for by the socket at its other end, too.
    pub(crate) fn find_socket(&mut self, ino: u64, socket: BorrowedFd<'_>) -> Result<Option<u32>> {
        if !self.wanted.keys().any(|key| matches!(key, Key::UnixSocket(_))) {
            return Ok(None);
        }
        if self.peers.is_none() {
            self.peers = Some(unix_socket::diag::query()?);
        }
        let entry = self.peers.as_ref().and_then(|peers| peers.get(&u32::try_from(ino).ok()?));
        let peer = entry.and_then(|entry| entry.peer).map(u64::from);
        let keys = [Some(ino), peer].into_iter().flatten().map(Key::UnixSocket);
        let Some(asked) = keys.into_iter().find(|key| self.wanted.contains_key(key)) else { return Ok(None) };
        let id = u32::try_from(self.records.len()).context("too many files that stay outside")?;
        self.wanted.insert(asked, Some(id));
        self.records.push(External {
            key: Key::UnixSocket(ino).to_string(),
            kind: ExternalKind::UnixSocket(unix_socket::kind(socket)?),
            name: format!("socket:[{ino}]").into_bytes(),
        });
        Ok(Some(id))
    }

    /// All records. Warns of what was asked for and is not there.
    pub(crate) fn into_records(self) -> Vec<External> {
        for (key, _) in self.wanted.iter().filter(|(_, id)| id.is_none()) {
            log::warn!("--external {key}: the tree does not have it open");
        }
        self.records
    }
}

/// `for reading`, for messages.
pub(crate) fn how((read, write): (bool, bool)) -> &'static str {
    match (read, write) {
        (true, true) => "for reading and writing",
        (false, true) => "for writing",
        _ => "for reading",
    }
}

/// What a restore has to be given, as it is to be spelled.
pub(crate) fn arguments(files: &Files) -> Vec<String> {
    let needs = given::needs(files);
    let need = |id| needs.get(&given::Object::External(id)).copied().unwrap_or_default();
    let each = (0..).zip(&files.externals);
    each.map(|(id, external)| format!("--inherit-fd fd[N]:{}, N open {}", external.key, how(need(id))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spelled_as_they_are_read() {
        for (text, key) in [
            ("pipe:[77]", Key::Pipe(77)),
            ("file[1d:2f]", Key::File(0x1d, 0x2f)),
            ("tty[8803:19]", Key::Terminal(0x8803, 0x19)),
            ("unix[78]", Key::UnixSocket(78)),
        ] {
            assert_eq!((text.parse().ok(), key.to_string().as_str()), (Some(key), text));
        }
        assert_eq!("pipe[77]".parse().ok(), Some(Key::Pipe(77)));
        for wrong in
            ["", "pipe", "pipe[", "pipe[x]", "pipe:[7] ", "file[7]", "file[1:2:3]", "mnt[a:b]", "unix[5:6]"]
        {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }
}
