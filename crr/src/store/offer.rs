//! The page files of a checkpoint and of those that it builds on, for who gives them to others (`crr page-server --serve`).

use super::chain::ancestors;
use super::check;
use super::place::Source;
use super::reader::{open_pages, open_regular, place, read_inventory, read_listed};
use anyhow::{Context, Result, bail};
use images::container::Kind;
use std::fs::File;
use std::path::{Path, PathBuf};

/// One of them.
#[derive(Debug)]
pub struct Offered {
    /// Where it is.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// Its bytes.
    pub size: u64,
    /// The checksum of the inventory beside it, if there is one.
    pub inventory: Option<u32>,
}

impl Offered {
    fn new(dir: &Path, file: File, inventory: Option<u32>) -> Result<Self> {
        let path = dir.join(Kind::Pages.file_name());
        let size = file.metadata().with_context(|| path.display().to_string())?.len();
        Ok(Self { path, file, size, inventory })
    }
}

/// Opens all of a checkpoint, the oldest first. Where there is no inventory, only the one in the directory: a server has
/// taken it from a dump whose other images are elsewhere.
///
/// # Errors
/// Names the file that is missing, damaged or another one.
pub fn offer(dir: &Path) -> Result<Vec<Offered>> {
    let source = Source::from(dir);
    open(&source).with_context(|| place(&source))
}

fn open(source: &Source) -> Result<Vec<Offered>> {
    let dir = source.dir();
    if !dir.join(Kind::Inventory.file_name()).try_exists()? {
        let (file, _) = open_regular(source, Kind::Pages).context(Kind::Pages.file_name())?;
        return Ok(vec![Offered::new(dir, file, None)?]);
    }
    let (inventory, crc) = read_inventory(source)?;
    if inventory.pre_dump.is_some() {
        bail!("is a pre-dump: pages of a tree that ran on\n  hint: name the dump that builds on it");
    }
    let [_, _, memory, pages] = check::entries(&inventory).context(Kind::Inventory.file_name())?;
    let own = open_pages(source, pages).context(Kind::Pages.file_name())?;
    let memory = read_listed(source, memory)?;
    let mut files = Vec::new();
    for round in ancestors(dir, &inventory, &memory)? {
        let pages = round.pages.context("its pages are elsewhere")?;
        files.push(Offered::new(&round.dir, pages, Some(round.crc))?);
    }
    files.push(Offered::new(dir, own, Some(crc))?);
    Ok(files)
}
