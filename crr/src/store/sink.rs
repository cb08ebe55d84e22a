//! Where the page contents of a dump go.

use super::direct::{self, DirectIo, Tail};
use super::stream::Stream;
use crate::fault::io::Faulty;
use crate::page_server::client::Client;
use anyhow::{Context, Result, bail};
use images::container::Kind;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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
    /// Past the page cache, if that is how it is written.
    direct: OnceLock<Direct>,
}

#[derive(Debug)]
struct Direct {
    file: File,
    /// Packed pages.
    tail: Mutex<Tail>,
}

impl PageFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, end: AtomicU64::new(0), direct: OnceLock::new() }
    }

    fn begin(&self, bytes: u64, packed: bool, direct_io: DirectIo) {
        if let Some(file) = direct::for_writing(&self.file, direct_io, bytes) {
            log::debug!("pages are written past the page cache");
            if let Some(len) = i64::try_from(bytes).ok().filter(|_| !packed) {
                // Blocks that are there already take half of the kernel's time. If there is no room for all, that will show.
                let _ = fallocate(&file, FallocateFlags::empty(), 0, len);
            }
            self.direct.get_or_init(|| Direct { file, tail: Mutex::new(Tail::new()) });
        }
    }

    fn put(&self, bytes: &[u8], place: u64) -> Result<()> {
        if let Some(direct) = self.direct.get() {
            match Faulty(&direct.file).write_all_at(bytes, place) {
                // It takes no single pages, or has taken a part of one.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                done => return Ok(done?),
            }
        }
        Ok(Faulty(&self.file).write_all_at(bytes, place)?)
    }

    fn append(&self, bytes: &[u8]) -> Result<u64> {
        if let Some(direct) = self.direct.get() {
            let mut tail = direct.tail.lock().unwrap_or_else(PoisonError::into_inner);
            return tail.add(bytes, |block, place| self.put(block, place));
        }
        let place = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.put(bytes, place)?;
        Ok(place)
    }

    fn finish(&self, size: u64) -> Result<()> {
        if let Some(direct) = self.direct.get() {
            let mut tail = direct.tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.finish(|block, place| self.put(block, place))?;
        }
        Ok(self.file.set_len(size)?)
    }
}

impl Sink {
    /// A stream to this file.
    #[cfg(test)]
    pub(crate) fn stream_to(file: File) -> Result<Self> {
        Ok(Self::Stream(Arc::new(Stream::to(file.into())?)))
    }

    /// Whether a write has a price of its own, so that it is better to come with a whole block.
    pub(crate) fn takes_blocks(&self) -> bool {
        match self {
            Self::File(pages) => pages.direct.get().is_some(),
            Self::Stream(_) | Self::Server(_) => true,
        }
    }

    /// Tells how many bytes of pages will come, and whether they will be packed.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn begin(&self, bytes: u64, packed: bool, direct_io: DirectIo) -> Result<()> {
        match self {
            Self::File(pages) => {
                pages.begin(bytes, packed, direct_io);
                Ok(())
            }
            Self::Stream(stream) if !packed => stream.begin(bytes),
            Self::Stream(_) | Self::Server(_) => Ok(()),
        }
    }

    /// Writes pages that are not packed to their place.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn put(&self, bytes: &[u8], place: u64) -> Result<()> {
        match self {
            Self::File(pages) => pages.put(bytes, place),
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
            Self::File(pages) => pages.append(bytes),
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
            Self::File(pages) => pages.finish(size).context(Kind::Pages.file_name()),
            Self::Stream(stream) => match stream.pages() {
                written if written == size => Ok(()),
                written => bail!("{written} bytes of pages instead of {size}"),
            },
            Self::Server(client) => client.finish(size),
        }
    }
}
