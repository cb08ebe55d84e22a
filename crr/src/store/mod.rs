//! The image directory: writing a checkpoint so that it is whole or absent, reading it trusting nothing.

use anyhow::{Result, bail};
use images::file::Files;
use images::inventory::Inventory;
use images::memory::Memory;
use images::task::Tree;
use std::fs::File;
use std::path::Path;

/// A checkpoint being written. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {}

impl Writer {
    /// Starts a checkpoint in an existing directory.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn create(_dir: &Path) -> Result<Self> {
        bail!("not yet")
    }

    /// The page file, for positional writes from any thread.
    #[must_use]
    pub fn pages(&self) -> &File {
        unimplemented!()
    }

    /// Writes the metadata, gives all files their final names, the inventory last. Returns the bytes of all files.
    /// `inventory.files` is filled in here.
    ///
    /// # Errors
    /// If a file cannot be written; the directory is then as before.
    pub fn finish(self, _inventory: Inventory, _tree: &Tree, _files: &Files, _memory: &Memory) -> Result<u64> {
        bail!("not yet")
    }
}

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
    pub fn read(_dir: &Path) -> Result<Self> {
        bail!("not yet")
    }
}
