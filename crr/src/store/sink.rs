//! Where the page contents of a dump go.

use super::stream::Stream;
use crate::fault::io::Faulty;
use crate::page_server::client::Client;
use anyhow::{Context, Result, bail};
use images::container::Kind;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The place of page contents, for writing from any thread.
#[derive(Debug)]
pub enum Sink {
    /// A file of the directory.
    File(PageFile),
    /// A stream, in which pages that are not packed have to come in order.
    Stream(Arc<Stream>),
    /// The file of a page server.
    Server(Client),
}

/// A page file being written.
#[derive(Debug)]
pub struct PageFile {
    file: File,
    /// Where the next packed pages go.
    end: AtomicU64,
}

impl PageFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, end: AtomicU64::new(0) }
    }
}

impl Sink {
    /// Whether a write has a price of its own, so that it is better to come with a whole block.
    pub(crate) fn takes_blocks(&self) -> bool {
        !matches!(self, Self::File(_))
    }

    /// Tells how many bytes will come, if that is known: if they are not packed.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn begin(&self, bytes: Option<u64>) -> Result<()> {
        match (self, bytes) {
            (Self::Stream(stream), Some(bytes)) => stream.begin(bytes),
            _ => Ok(()),
        }
    }

    /// Writes pages that are not packed to their place.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn put(&self, bytes: &[u8], place: u64) -> Result<()> {
        match self {
            Self::File(pages) => Ok(Faulty(&pages.file).write_all_at(bytes, place)?),
            Self::Stream(stream) => stream.put(bytes, place),
            Self::Server(client) => client.put(bytes, place),
        }
    }

    /// Writes packed pages somewhere. Returns where.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<u64> {
        match self {
            Self::File(pages) => {
                let place = pages.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Faulty(&pages.file).write_all_at(bytes, place)?;
                Ok(place)
            }
            Self::Stream(stream) => stream.append(bytes),
            Self::Server(client) => client.append(bytes),
        }
    }

    /// One of the threads has failed: no other is to wait for it.
    pub(crate) fn give_up(&self) {
        if let Self::Stream(stream) = self {
            stream.give_up();
        }
    }

    /// All pages are written, of so many bytes together.
    pub(super) fn finish(&self, size: u64) -> Result<()> {
        match self {
            Self::File(pages) => pages.file.set_len(size).context(Kind::Pages.file_name()),
            Self::Stream(stream) => match stream.pages() {
                written if written == size => Ok(()),
                written => bail!("{written} bytes of pages instead of {size}"),
            },
            Self::Server(client) => client.finish(size),
        }
    }
}
