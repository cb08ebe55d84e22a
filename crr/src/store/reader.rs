//! Reading a checkpoint: sizes and checksums before records, records before pages.

use super::chain::{Round, ancestors, ancestors_but_for_pages};
use super::contents::{Pages, bring_parts};
use super::direct::DirectIo;
use super::place::Source;
use super::{assemble, check, pages};
use crate::fault::io::Faulty;
use crate::fault::{self, Point};
use crate::page_server::Listed;
use crate::page_server::fetch::Fetcher;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use images::Addr;
use images::container::{self, HEADER_SIZE, Kind, TRAILER_SIZE};
use images::file::Files;
use images::id::PAGE_SIZE;
use images::inventory::{FileEntry, Inventory};
use images::memory::{BLOCK_PAGES, Memory, Space};
use images::task::Tree;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An inventory lists four files: more than this is none.
const MAX_INVENTORY: u64 = 1 << 20;
/// How an `inventory.img` of CRIU begins: the magic of its inventories, little-endian.
const CRIU_INVENTORY: [u8; 4] = 0x5831_3116_u32.to_le_bytes();

/// A checkpoint that was read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    /// See [`Inventory`].
    pub inventory: Inventory,
    /// See [`Tree`].
    pub tree: Tree,
    /// See [`Files`].
    pub files: Files,
    /// See [`Memory`].
    pub memory: Memory,
    /// Page contents: when they have been checked, page n lies at byte 4096 n.
    pub pages: Pages,
    /// Those that this one builds on, the oldest first.
    pub ancestors: Vec<Round>,
}

impl Checkpoint {
    /// Reads a checkpoint and checks versions, sizes, checksums (those of the pages too) and that every
    /// reference from one record to another leads somewhere.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::read_showing(&dir.into(), false)
    }

    /// As [`Self::read`], with progress on stderr while the pages are checked.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_showing(source: &Source, progress: bool) -> Result<Self> {
        let checkpoint = Self::read_but_for_pages(source, progress)?;
        checkpoint.check_pages(source, progress, |_| true)?;
        Ok(checkpoint)
    }

    /// As [`Self::read_showing`], but for pages that lie in `pages.img` as they are: [`Self::check_pages`] is to follow.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_but_for_pages(source: &Source, progress: bool) -> Result<Self> {
        let mut checkpoint = Self::open_files(source, progress).with_context(|| place(source))?;
        if !checkpoint.has_plain_pages() {
            let Self { pages: file, memory, files, ancestors, .. } = &checkpoint;
            let progress = Progress::new(progress, memory.page_count * PAGE_SIZE, "checking pages");
            let seen = |bytes| progress.add(bytes);
            let pages = assemble::assemble((source.name(), file.file()), ancestors, files, memory, &seen);
            checkpoint.pages = Pages::new(pages.context("checkpoint")?, true);
            // What was fetched of them takes room where it lies.
            checkpoint.ancestors.iter_mut().for_each(|round| round.pages = None);
        }
        Ok(checkpoint)
    }

    /// Whether pages lie in `pages.img` as they are to be read: that alone has not checked them.
    pub(crate) fn has_plain_pages(&self) -> bool {
        are_plain(&self.memory, &self.ancestors)
    }

    /// From now on whole pages are read past the page cache, if that is wished and can be; not what lies in memory anyway.
    pub(crate) fn go_direct(&mut self, wish: DirectIo) {
        if self.has_plain_pages() && !self.pages.in_memory() {
            self.pages.go_direct(wish);
        }
    }

    /// Brings blocks of [`BLOCK_PAGES`] pages here that a page server has and that are `wanted`, by number.
    ///
    /// # Errors
    /// If the server does not give them.
    pub(crate) fn bring_pages(
        &self,
        source: &Source,
        progress: bool,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<()> {
        let progress = Progress::new(progress, 0, "fetching pages");
        self.pages.bring(wanted, |bytes| progress.add(bytes)).context(place(source))
    }

    /// Checks the blocks of [`BLOCK_PAGES`] pages that are `wanted`, by number, if they have not been.
    ///
    /// # Errors
    /// Names the first block found corrupt.
    pub(crate) fn check_pages(
        &self,
        source: &Source,
        progress: bool,
        wanted: impl Fn(u64) -> bool + Sync,
    ) -> Result<()> {
        if !self.has_plain_pages() {
            return Ok(());
        }
        let blocks = (0..self.memory.page_count.div_ceil(BLOCK_PAGES)).filter(|&block| wanted(block)).count();
        let progress = Progress::new(progress, blocks as u64 * BLOCK_PAGES * PAGE_SIZE, "checking pages");
        let checked = pages::verify(&self.pages, &self.memory, &wanted, &|bytes| progress.add(bytes));
        checked.context(place(source))
    }

    /// As [`Self::read`], without looking into the pages: enough to show what is there.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn open(source: &Source) -> Result<Self> {
        Self::open_files(source, false).with_context(|| place(source))
    }

    /// What private memory of an address space holds from an address on; zeros where it holds nothing. The pages need not have been checked by
    /// then: if they are corrupt, the restore ends before a task runs.
    ///
    /// # Errors
    /// If they cannot be read again.
    pub(crate) fn read_memory(&self, space: &Space, start: Addr, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let end = start.0 + bytes.len() as u64;
        let first = space.runs.partition_point(|run| run.end() <= start.0);
        for run in space.runs[first..].iter().take_while(|run| run.start.0 < end) {
            let (from, to) = (run.start.0.max(start.0), run.end().min(end));
            let part = &mut bytes[usize::try_from(from - start.0)?..usize::try_from(to - start.0)?];
            let place = run.first_page * PAGE_SIZE + (from - run.start.0);
            self.pages.read_exact_at(part, place)?;
        }
        Ok(())
    }

    fn open_files(source: &Source, progress: bool) -> Result<Self> {
        let (inventory, crc) = read_inventory(source)?;
        if inventory.pre_dump.is_some() {
            bail!("is a pre-dump: pages of a tree that ran on\n  hint: restore the dump that builds on it");
        }
        let [tree, files, memory, pages] = check::entries(&inventory)
            .context(Kind::Inventory.file_name())
            .map(|found| found.map(Clone::clone))?;
        let (tree, files) = (read_listed(source, &tree)?, read_listed(source, &files)?);
        let memory: Memory = read_listed(source, &memory)?;
        let Source::Server(dir, server) = source else {
            let pages = open_pages(source, &pages).context(Kind::Pages.file_name())?;
            let pages = Pages::new(pages, source.is_in_memory());
            check::records(&inventory, &tree, &files, &memory)?;
            let ancestors = ancestors(source.dir(), &inventory, &memory)?;
            return Ok(Self { inventory, tree, files, memory, pages, ancestors });
        };
        check::records(&inventory, &tree, &files, &memory)?;
        let mut ancestors = ancestors_but_for_pages(dir, &inventory, &memory)?;
        let own = Listed { size: pages.size, inventory: Some(crc) };
        let pages = if are_plain(&memory, &ancestors) {
            Pages::at(Fetcher::connect(server)?, own)?
        } else {
            let room = std::env::temp_dir();
            Pages::new(bring_parts(server, own, &mut ancestors, (&files, &memory), &room, progress)?, true)
        };
        Ok(Self { inventory, tree, files, memory, pages, ancestors })
    }
}

/// Whether pages lie as they are to be read in a file that has all.
fn are_plain(memory: &Memory, ancestors: &[Round]) -> bool {
    memory.packing.is_none() && ancestors.is_empty() && memory.block_pages == BLOCK_PAGES
}

/// The context of every error: which checkpoint.
pub(super) fn place(source: &Source) -> String {
    format!("checkpoint {}", source.name().display())
}

/// Reads the inventory, or says what the directory holds instead of a checkpoint. Also returns its checksum.
pub(super) fn read_inventory(source: &Source) -> Result<(Inventory, u32)> {
    let name = Kind::Inventory.file_name();
    let (mut file, size) = match open_regular(source, Kind::Inventory) {
        Ok(found) => found,
        Err(error) if is_missing(&error) => return Err(without_inventory(source)),
        Err(error) => return Err(error.context(name)),
    };
    let mut read = || {
        if starts_like_criu(&file)? {
            bail!("is an inventory of CRIU, whose images crr does not restore\n  hint: use `criu restore`");
        }
        let start = read_header(&mut file, Kind::Inventory)?;
        if size > MAX_INVENTORY {
            bail!("is oversized: it has {size} bytes, an inventory has at most {MAX_INVENTORY}");
        }
        Ok(start)
    };
    let start = read().context(name)?;
    read_records(file, start, size, Kind::Inventory).context(name)
}

fn starts_like_criu(file: &File) -> Result<bool> {
    let mut start = [0u8; CRIU_INVENTORY.len()];
    match file.read_exact_at(&mut start, 0) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error.into()),
        // An empty file keeps its zeros.
        _ => Ok(start == CRIU_INVENTORY),
    }
}

/// Why there is no inventory.
fn without_inventory(source: &Source) -> anyhow::Error {
    let dir = match source {
        Source::Dir(dir) | Source::Server(dir, _) => dir,
        Source::Stream(spool) if spool.is_empty() => return anyhow!("there are no images in it"),
        Source::Stream(_) => return anyhow!("there is no inventory.img: the dump did not finish"),
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return anyhow!(error),
    };
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    let ours = |name: &&std::ffi::OsString| {
        Kind::ALL.iter().any(|kind| name.to_str().is_some_and(|name| name.starts_with(kind.file_name())))
    };
    if names.is_empty() {
        anyhow!("the directory is empty")
    } else if names.iter().any(|name| ours(&name)) {
        anyhow!("there is no inventory.img: the dump did not finish, or a file was lost")
    } else {
        anyhow!("there is no inventory.img: this is not a checkpoint")
    }
}

/// Reads a metadata file that the inventory lists.
pub(super) fn read_listed<T: DeserializeOwned>(source: &Source, entry: &FileEntry) -> Result<T> {
    let read = || {
        let (mut file, size) = open_existing(source, entry.kind)?;
        let start = read_header(&mut file, entry.kind)?;
        check_size(size, entry.size)?;
        let (record, crc) = read_records(file, start, size, entry.kind)?;
        if crc != entry.crc {
            bail!("is of another checkpoint: checksum {crc:08x}, the inventory says {:08x}", entry.crc);
        }
        Ok(record)
    };
    read().context(entry.kind.file_name())
}

/// Opens the page file that the inventory lists.
pub(super) fn open_pages(source: &Source, entry: &FileEntry) -> Result<File> {
    let (file, size) = open_existing(source, entry.kind)?;
    check_size(size, entry.size)?;
    Ok(file)
}

/// As [`open_pages`]; `None` if they are elsewhere.
pub(super) fn open_pages_if(source: &Source, entry: &FileEntry) -> Result<Option<File>> {
    match open_regular(source, entry.kind) {
        Err(error) if is_missing(&error) => Ok(None),
        opened => {
            let (file, size) = opened?;
            check_size(size, entry.size)?;
            Ok(Some(file))
        }
    }
}

/// Opens a file that must be there.
fn open_existing(source: &Source, kind: Kind) -> Result<(File, u64)> {
    open_regular(source, kind).map_err(|error| match kind {
        _ if !is_missing(&error) => error,
        Kind::Pages => {
            anyhow!("is missing\n  hint: after a dump with --page-server, it is where the server put it, and can be had from there (--page-server)")
        }
        _ => anyhow!("is missing"),
    })
}

/// Compares the size of a file with what the inventory says.
fn check_size(size: u64, known: u64) -> Result<()> {
    if size < known {
        bail!("is cut off: it has {size} bytes of {known}");
    } else if size > known {
        bail!("is oversized: it has {size} bytes instead of {known}");
    }
    Ok(())
}

/// Reads the header and checks that the rest is worth reading.
fn read_header(file: &mut File, kind: Kind) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    Faulty(file).take(HEADER_SIZE as u64).read_to_end(&mut start)?;
    container::check_header(kind, &start)?;
    Ok(start)
}

/// Reads what follows the header in a file of a known size; decodes all. Also returns the checksum.
fn read_records<T: DeserializeOwned>(file: File, start: Vec<u8>, size: u64, kind: Kind) -> Result<(T, u32)> {
    let mut bytes = start;
    let rest = size.saturating_sub(bytes.len() as u64);
    bytes.try_reserve_exact(usize::try_from(rest)?).context("is too large")?;
    Faulty(&file).take(rest).read_to_end(&mut bytes)?;
    let record = container::decode(kind, &bytes)?;
    let crc = bytes.last_chunk::<TRAILER_SIZE>().map_or(0, |trailer| u32::from_le_bytes(*trailer));
    Ok((record, crc))
}

/// Opens a regular file, and nothing else.
pub(super) fn open_regular(source: &Source, kind: Kind) -> Result<(File, u64)> {
    fault::point(Point::ImageOpen)?;
    let file = source.open(kind)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("is not a regular file");
    }
    Ok((file, metadata.len()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}
