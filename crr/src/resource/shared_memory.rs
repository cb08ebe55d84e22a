//! Anonymous memory that tasks share: created once, handed to everyone who maps it.

use crate::sys::mapping::SharedAnonymous;
use anyhow::{Context, Result, bail};
use images::id::PAGE_SIZE;
use images::memory::Shared;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The object with its contents, open for reading and writing.
///
/// It is made by MAP_SHARED | MAP_ANONYMOUS and opened through `/proc/self/map_files`, so that it is the same kind of
/// object under the same name (`/dev/zero (deleted)`) that the tasks had.
///
/// # Errors
/// If memory or the page file fall short.
pub(crate) fn create(object: &Shared, pages: &File) -> Result<OwnedFd> {
    let mut mapping =
        SharedAnonymous::map(object.size).with_context(|| format!("map {} bytes", object.size))?;
    for run in &object.runs {
        let bytes = mapping.slice(run.start.0, run.pages * PAGE_SIZE);
        let Some(bytes) = bytes else { bail!("shared memory: pages at {} lie beyond its size", run.start) };
        pages.read_exact_at(bytes, run.first_page * PAGE_SIZE).context("pages.img")?;
    }
    let path = mapping.path();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {path} (needs CAP_CHECKPOINT_RESTORE)"))?;
    Ok(file.into())
}
