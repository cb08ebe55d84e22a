//! Writing a checkpoint: everything under temporary names first, then renamed, the inventory last.
//!
//! A reader takes a directory for a checkpoint only if it finds an inventory, so at any instant the directory
//! holds the old checkpoint whole, no checkpoint, or the new one whole. Nothing is synced to disk: after a
//! power cut, the sizes and checksums in the inventory tell whether all of it got there.

use super::check;
use super::place::Destination;
use super::sink::{PageFile, Sink};
use super::stream::Stream;
use crate::fault::io::Faulty;
use crate::fault::{self, Point};
use crate::page_server::client::Client;
use anyhow::{Context, Result, bail};
use images::container::{Kind, TRAILER_SIZE, encode};
use images::file::Files;
use images::inventory::{FileEntry, Inventory};
use images::memory::Memory;
use images::task::Tree;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Before why records cannot be written.
const UNUSABLE: &str = "what was collected cannot be restored";

/// A checkpoint being written. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    place: Place,
    pages: Sink,
}

/// Where the files go.
#[derive(Debug)]
enum Place {
    Dir(Directory),
    Stream(Arc<Stream>),
}

impl Writer {
    /// Starts a checkpoint in an existing directory, or a stream. A checkpoint that is already in the directory stays until `finish`.
    ///
    /// # Errors
    /// If the directory cannot be written, or another dump writes to it.
    pub fn create(destination: &Destination) -> Result<Self> {
        match destination {
            Destination::Dir(dir) => {
                let directory = Directory { dir: dir.clone(), _lock: lock(dir)?, published: false };
                let pages = create_temporary(dir, Kind::Pages)?;
                Ok(Self { place: Place::Dir(directory), pages: Sink::File(PageFile::new(pages)) })
            }
            Destination::Stream => Ok(Self::stream(Stream::stdout()?)),
            Destination::Server(dir, server) => {
                let directory = Directory { dir: dir.clone(), _lock: lock(dir)?, published: false };
                Ok(Self { place: Place::Dir(directory), pages: Sink::Server(Client::connect(server)?) })
            }
        }
    }

    pub(super) fn stream(stream: Stream) -> Self {
        let stream = Arc::new(stream);
        Self { place: Place::Stream(Arc::clone(&stream)), pages: Sink::Stream(stream) }
    }

    /// Where the pages go.
    #[must_use]
    pub fn pages(&self) -> &Sink {
        &self.pages
    }

    /// The inode number of the page server's end of the connection, if there is one and it is in this network namespace: a task of the tree that
    /// has it would be frozen when it is to take pages.
    #[must_use]
    pub fn inode_of_server(&self) -> Option<u64> {
        match &self.pages {
            Sink::Server(client) => client.inode_of_server(),
            Sink::File(_) | Sink::Stream(_) => None,
        }
    }

    /// Writes the metadata, gives all files their final names, the inventory last. Returns the bytes of all files.
    /// `inventory.files` is filled in here. The page file is cut or extended to `memory.page_count` pages.
    ///
    /// # Errors
    /// If the records contradict each other or a file cannot be written; the directory is then as before. Only
    /// if a file cannot be renamed is an older checkpoint lost.
    pub fn finish(
        mut self,
        mut inventory: Inventory,
        tree: &Tree,
        files: &Files,
        memory: &Memory,
    ) -> Result<u64> {
        let pages = self.finish_pages(memory)?;
        inventory.files = vec![
            self.write(Kind::Tree, tree)?,
            self.write(Kind::Files, files)?,
            self.write(Kind::Memory, memory)?,
            pages,
        ];
        check::records(&inventory, tree, files, memory).context(UNUSABLE)?;
        self.finish_inventory(&inventory)
    }

    /// As [`Self::finish`] for a pre-dump.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_round(mut self, mut inventory: Inventory, memory: &Memory) -> Result<u64> {
        let pages = self.finish_pages(memory)?;
        inventory.files = vec![self.write(Kind::Memory, memory)?, pages];
        check::round(&inventory, memory).context(UNUSABLE)?;
        self.finish_inventory(&inventory)
    }

    fn finish_pages(&self, memory: &Memory) -> Result<FileEntry> {
        let size = check::pages_size(memory).context(UNUSABLE)?;
        self.pages.finish(size)?;
        Ok(FileEntry { kind: Kind::Pages, size, crc: 0 })
    }

    fn finish_inventory(&mut self, inventory: &Inventory) -> Result<u64> {
        let size = self.write(Kind::Inventory, inventory)?.size;
        match &mut self.place {
            Place::Dir(directory) => directory.publish(inventory, &self.pages)?,
            Place::Stream(stream) => stream.finish()?,
        }
        Ok(inventory.files.iter().map(|entry| entry.size).sum::<u64>() + size)
    }

    /// Writes one metadata file, in a directory under its temporary name.
    fn write<T: Serialize>(&self, kind: Kind, record: &T) -> Result<FileEntry> {
        let bytes = encode(kind, record).context(kind.file_name())?;
        match &self.place {
            Place::Dir(directory) => directory.write(kind, &bytes)?,
            Place::Stream(stream) => stream.member(kind.file_name(), &bytes).context(kind.file_name())?,
        }
        let (_, trailer) = bytes.split_at(bytes.len() - TRAILER_SIZE);
        let crc = u32::from_le_bytes(trailer.try_into().context("an image has a trailer")?);
        Ok(FileEntry { kind, size: bytes.len() as u64, crc })
    }
}

/// A directory that is written to.
#[derive(Debug)]
struct Directory {
    dir: PathBuf,
    /// Held for the life of the writer, so that the temporary names are its own.
    _lock: Option<Flock<File>>,
    /// Set once no temporary name is left.
    published: bool,
}

impl Directory {
    fn write(&self, kind: Kind, bytes: &[u8]) -> Result<()> {
        let file = create_temporary(&self.dir, kind)?;
        Faulty(&file)
            .write_all(bytes)
            .with_context(|| format!("write {}", temporary(&self.dir, kind).display()))
    }

    /// Takes the old checkpoint away by its inventory, then renames everything, the new inventory last.
    fn publish(&mut self, inventory: &Inventory, pages: &Sink) -> Result<()> {
        remove(&self.dir.join(Kind::Inventory.file_name()))?;
        let renamed = self.rename_all(inventory, pages);
        if renamed.is_err() {
            // Without an inventory none of them is of any use, whichever checkpoint it is from.
            for kind in Kind::ALL {
                let _ = remove(&self.dir.join(kind.file_name()));
            }
        }
        renamed?;
        self.published = true;
        Ok(())
    }

    fn rename_all(&self, inventory: &Inventory, pages: &Sink) -> Result<()> {
        for kind in Kind::ALL.into_iter().rev() {
            let name = self.dir.join(kind.file_name());
            if kind != Kind::Inventory && !inventory.files.iter().any(|entry| entry.kind == kind) {
                remove(&name)?;
                continue;
            }
            if kind == Kind::Pages
                && let Sink::Server(client) = pages
            {
                // Those of an older checkpoint; the server may have the same directory.
                remove(&name)?;
                client.commit()?;
                continue;
            }
            fault::point(Point::KilledPublishing)?;
            (fault::point(Point::ImagePublish).map_err(Into::into))
                .and_then(|()| fs::rename(temporary(&self.dir, kind), &name))
                .with_context(|| format!("rename to {}", name.display()))?;
        }
        Ok(())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        for kind in Kind::ALL {
            if let Err(error) = remove(&temporary(&self.dir, kind)) {
                log::warn!("{error:#}");
            }
        }
    }
}

/// The name of a file until the checkpoint is whole.
fn temporary(dir: &Path, kind: Kind) -> PathBuf {
    dir.join(format!("{}.tmp", kind.file_name()))
}

/// Keeps a second dump out of the directory. File systems that cannot lock a directory (NFS) go without.
fn lock(dir: &Path) -> Result<Option<Flock<File>>> {
    let open = File::open(dir).with_context(|| format!("images directory {}", dir.display()))?;
    if !open.metadata().with_context(|| dir.display().to_string())?.is_dir() {
        bail!("images directory {}: is not a directory", dir.display());
    }
    match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => {
            bail!("images directory {}: another crr dump is writing to it", dir.display())
        }
        Err((_, errno)) => {
            log::debug!("images directory {}: cannot be locked: {errno}", dir.display());
            Ok(None)
        }
    }
}

/// Creates a file that only its owner may read: images hold all that the tasks had in memory. What a killed
/// dump left under the name is removed, never followed or reused.
fn create_temporary(dir: &Path, kind: Kind) -> Result<File> {
    let path = temporary(dir, kind);
    remove(&path)?;
    fault::point(Point::ImageCreate).with_context(|| format!("create {}", path.display()))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))
}

/// Removes a file that may be absent.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
