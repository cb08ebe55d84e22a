//! Where page contents come from.

use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Something that has the pages of a checkpoint, by their numbers.
#[derive(Debug)]
pub(super) enum Source {
    /// A file with page n at byte 4096 n.
    File(File),
}

impl Source {
    /// Reads whole pages, from the first one on.
    ///
    /// # Errors
    /// If they cannot be had.
    pub(super) fn read(&self, first_page: u64, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, first_page * PAGE_SIZE).context("read pages"),
        }
    }
}
