//! Where images are written to and read from: a directory, or one stream. `-D -` means the stream.

use super::reader::read_inventory;
use super::spool::Spool;
use crate::page_server::client::Server;
use anyhow::Result;
use images::container::Kind;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How a stream is spelled in the place of a directory.
pub const STREAM: &str = "-";

/// Where a dump writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A directory, which exists.
    Dir(PathBuf),
    /// The standard output.
    Stream,
    /// A directory, but for the pages, which go to a server.
    Server(PathBuf, Server),
}

impl From<&Path> for Destination {
    fn from(spelled: &Path) -> Self {
        if spelled == Path::new(STREAM) { Self::Stream } else { Self::Dir(spelled.to_owned()) }
    }
}

impl Destination {
    /// Where names of earlier rounds start from: of a stream, the working directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        match self {
            Self::Dir(dir) | Self::Server(dir, _) => dir,
            Self::Stream => Path::new("."),
        }
    }
}

/// Where a checkpoint is read from.
#[derive(Debug)]
pub enum Source {
    /// A directory.
    Dir(PathBuf),
    /// What a stream had.
    Stream(Spool),
    /// A directory, but for the pages, which a server has.
    Server(PathBuf, Server),
}

impl From<&Path> for Source {
    fn from(dir: &Path) -> Self {
        Self::Dir(dir.to_owned())
    }
}

impl Source {
    /// As it was spelled, for messages.
    #[must_use]
    pub fn name(&self) -> &Path {
        match self {
            Self::Dir(dir) | Self::Server(dir, _) => dir,
            Self::Stream(_) => Path::new(STREAM),
        }
    }

    /// Where names of earlier rounds start from: of a stream, the working directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        match self {
            Self::Dir(dir) | Self::Server(dir, _) => dir,
            Self::Stream(_) => Path::new(""),
        }
    }

    /// The tasks run: nothing has to be kept of what came as a stream, nor to take room, unless pages are still to come from there.
    pub(crate) fn release(&self, all_there: bool) {
        if let Self::Stream(spool) = self {
            spool.release(all_there);
        }
    }

    /// Whether it builds on others.
    #[must_use]
    pub fn has_parent(&self) -> bool {
        read_inventory(self).is_ok_and(|(inventory, _)| inventory.parent.is_some())
    }

    /// Whether its pages take memory that nobody needs any more when a task has read them.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Stream(spool) if spool.is_in_memory())
    }

    /// Opens one of the files, to be read from its start. A directory may hold anything under its name: opening a FIFO would wait
    /// for its writer.
    pub(super) fn open(&self, kind: Kind) -> Result<File> {
        match self {
            Self::Dir(dir) | Self::Server(dir, _) => {
                let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
                let path = dir.join(kind.file_name());
                Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
            }
            Self::Stream(spool) => spool.open(kind),
        }
    }
}
