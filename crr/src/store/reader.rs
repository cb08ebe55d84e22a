//! Reading a checkpoint: sizes and checksums before records, records before pages.

use super::{check, pages};
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use images::container::{self, HEADER_SIZE, Kind, TRAILER_SIZE};
use images::file::Files;
use images::inventory::{FileEntry, Inventory};
use images::memory::Memory;
use images::task::Tree;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
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
    /// Raw pages, open for reading.
    pub pages: File,
}

impl Checkpoint {
    /// Reads a checkpoint and checks versions, sizes, checksums (those of the pages too) and that every
    /// reference from one record to another leads somewhere.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::read_showing(dir, false)
    }

    /// As [`Self::read`], with progress on stderr while the pages are checked.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_showing(dir: &Path, progress: bool) -> Result<Self> {
        let checkpoint = Self::open(dir)?;
        let total = check::pages_size(&checkpoint.memory)?;
        let progress = Progress::new(progress, total, "checking pages");
        pages::verify(&checkpoint.pages, &checkpoint.memory, &|bytes| progress.add(bytes))
            .context(place(dir))?;
        Ok(checkpoint)
    }

    /// As [`Self::read`], without looking into the pages: enough to show what is there.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_files(dir).with_context(|| place(dir))
    }

    fn open_files(dir: &Path) -> Result<Self> {
        let inventory = read_inventory(dir)?;
        let [tree, files, memory, pages] = check::entries(&inventory)
            .context(Kind::Inventory.file_name())
            .map(|found| found.map(Clone::clone))?;
        let checkpoint = Self {
            tree: read_listed(dir, &tree)?,
            files: read_listed(dir, &files)?,
            memory: read_listed(dir, &memory)?,
            pages: open_listed(dir, &pages).context(Kind::Pages.file_name())?,
            inventory,
        };
        check::records(&checkpoint.inventory, &checkpoint.tree, &checkpoint.files, &checkpoint.memory)?;
        Ok(checkpoint)
    }
}

/// The context of every error: which checkpoint.
fn place(dir: &Path) -> String {
    format!("checkpoint {}", dir.display())
}

/// Reads the inventory, or says what the directory holds instead of a checkpoint.
fn read_inventory(dir: &Path) -> Result<Inventory> {
    let name = Kind::Inventory.file_name();
    let (mut file, size) = match open_regular(&dir.join(name)) {
        Ok(found) => found,
        Err(error) if is_missing(&error) => return Err(without_inventory(dir)),
        Err(error) => return Err(error.context(name)),
    };
    let mut start = Vec::new();
    Read::by_ref(&mut file).take(CRIU_INVENTORY.len() as u64).read_to_end(&mut start).context(name)?;
    if start == CRIU_INVENTORY {
        bail!("holds images of CRIU, which crr cannot restore\n  hint: restore them with `criu restore`");
    }
    file.rewind().context(name)?;
    if size > MAX_INVENTORY {
        bail!("{name}: is oversized: {size} bytes, an inventory has at most {MAX_INVENTORY}");
    }
    read_records(file, size, Kind::Inventory).context(name)
}

/// Why there is no inventory.
fn without_inventory(dir: &Path) -> anyhow::Error {
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
fn read_listed<T: DeserializeOwned>(dir: &Path, entry: &FileEntry) -> Result<T> {
    let file = open_listed(dir, entry);
    let read = file.and_then(|mut file| {
        let crc = trailer(&mut file, entry.size)?;
        if crc != entry.crc {
            bail!("is of another checkpoint: checksum {crc:08x}, the inventory says {:08x}", entry.crc);
        }
        read_records(file, entry.size, entry.kind)
    });
    read.context(entry.kind.file_name())
}

/// Opens a file that the inventory lists, which must have the size it says.
fn open_listed(dir: &Path, entry: &FileEntry) -> Result<File> {
    let (file, size) = open_regular(&dir.join(entry.kind.file_name()))
        .map_err(|error| if is_missing(&error) { anyhow!("is missing") } else { error })?;
    let known = entry.size;
    if size < known {
        bail!("is cut off: it has {size} bytes of {known}");
    } else if size > known {
        bail!("is oversized: it has {size} bytes instead of {known}");
    }
    Ok(file)
}

/// The last bytes of a file: its checksum.
fn trailer(file: &mut File, size: u64) -> Result<u32> {
    let mut crc = [0u8; TRAILER_SIZE];
    let at = size.checked_sub(TRAILER_SIZE as u64).ok_or(container::Error::Short(size))?;
    std::os::unix::fs::FileExt::read_exact_at(file, &mut crc, at)?;
    Ok(u32::from_le_bytes(crc))
}

/// Reads and decodes a metadata file of a known size. Memory is taken only once the header has been found to be
/// one of this size, so that no mistaken file is read whole.
fn read_records<T: DeserializeOwned>(mut file: File, size: u64, kind: Kind) -> Result<T> {
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(HEADER_SIZE as u64).read_to_end(&mut bytes)?;
    container::check_header(kind, &bytes, size)?;
    bytes.try_reserve_exact(usize::try_from(size)?.saturating_sub(bytes.len())).context("is too large")?;
    file.take(size - bytes.len() as u64).read_to_end(&mut bytes)?;
    Ok(container::decode(kind, &bytes)?)
}

/// Opens a regular file, and nothing else: opening a FIFO would wait for its writer.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("is not a regular file");
    }
    Ok((file, metadata.len()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}
