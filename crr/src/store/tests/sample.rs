//! The golden checkpoint of `images`, as records to change and as a directory to damage.

use crate::store::{Checkpoint, Writer, block_crcs};
use images::container::{HEADER_SIZE, Kind, TRAILER_SIZE, crc32c};
use images::file::Files;
use images::inventory::Inventory;
use images::memory::Memory;
use images::task::Tree;
use serde::Serialize;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// All records of a checkpoint, and its pages.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) inventory: Inventory,
    pub(super) tree: Tree,
    pub(super) files: Files,
    pub(super) memory: Memory,
    pub(super) pages: Vec<u8>,
}

pub(super) fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/tests/golden")
}

impl Sample {
    pub(super) fn golden() -> Self {
        let Checkpoint { inventory, tree, files, memory, .. } = Checkpoint::read(&golden_dir()).unwrap();
        let pages = fs::read(golden_dir().join(Kind::Pages.file_name())).unwrap();
        Self { inventory, tree, files, memory, pages }
    }

    /// With as many pages of contents as wanted, most of which no task has.
    pub(super) fn with_pages(mut self, count: u64) -> Self {
        let size = usize::try_from(count * 4096).unwrap();
        self.pages =
            (0..size).map(|at| u8::try_from(at.wrapping_mul(0x9e37_79b1) >> 12 & 0xff).unwrap()).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&self.pages, 0).unwrap();
        self.memory.page_count = count;
        self.memory.block_crcs = block_crcs(&file, count).unwrap();
        self
    }

    /// Writes it as a dump would.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<u64> {
        let writer = Writer::create(&dir.into())?;
        writer.pages().put(&self.pages, 0)?;
        writer.finish(self.inventory.clone(), &self.tree, &self.files, &self.memory)
    }

    /// A new directory with it.
    pub(super) fn written(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path()).unwrap();
        dir
    }
}

/// Why a directory is no checkpoint.
pub(super) fn error(dir: &Path) -> String {
    format!("{:#}", Checkpoint::read(dir).unwrap_err())
}

/// Changes a file of a checkpoint.
pub(super) fn damage(dir: &Path, kind: Kind, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join(kind.file_name());
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Makes length and checksum of a metadata file right again, and what the inventory says of it, so that nothing
/// but its records can be found wrong.
pub(super) fn reseal(dir: &Path, kind: Kind) {
    let mut seal = (0, 0);
    damage(dir, kind, |bytes| seal = sealed(bytes));
    if kind != Kind::Inventory {
        let mut inventory: Inventory =
            images::container::decode(Kind::Inventory, &fs::read(dir.join("inventory.img")).unwrap())
                .unwrap();
        let entry = inventory.files.iter_mut().find(|entry| entry.kind == kind).unwrap();
        (entry.size, entry.crc) = seal;
        replace(dir, Kind::Inventory, &inventory);
    }
}

/// Puts another record in the place of one.
pub(super) fn replace<T: Serialize>(dir: &Path, kind: Kind, record: &T) {
    fs::write(dir.join(kind.file_name()), images::container::encode(kind, record).unwrap()).unwrap();
    if kind != Kind::Inventory {
        reseal(dir, kind);
    }
}

fn sealed(bytes: &mut Vec<u8>) -> (u64, u32) {
    let end = bytes.len() - TRAILER_SIZE;
    bytes.truncate(end);
    bytes[16..24].copy_from_slice(&((end - HEADER_SIZE) as u64).to_le_bytes());
    let crc = crc32c(bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    (bytes.len() as u64, crc)
}
