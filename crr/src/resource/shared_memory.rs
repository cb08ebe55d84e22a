//! Anonymous memory that tasks share: created once, handed to everyone who maps it.

use crate::store::Pages;
use crate::sys::mapping::SharedMapping;
use anyhow::{Context, Result, bail};
use images::id::PAGE_SIZE;
use images::memory::{Run, Shared};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;

/// Puts contents where they belong.
pub(super) fn fill(mapping: &mut SharedMapping, runs: &[Run], pages: &Pages) -> Result<()> {
    for run in runs {
        let bytes = mapping.slice(run.start.0, run.pages * PAGE_SIZE);
        let Some(bytes) = bytes else { bail!("shared memory: pages at {} lie beyond its size", run.start) };
        pages.take(bytes, run.first_page * PAGE_SIZE)?;
    }
    Ok(())
}

/// As [`fill`], of memory of huge pages, which there may be too few of.
pub(super) fn fill_huge(mapping: &mut SharedMapping, runs: &[Run], pages: &Pages) -> Result<()> {
    for run in runs {
        mapping.populate(run.start.0, run.pages * PAGE_SIZE).context("take huge pages")?;
    }
    fill(mapping, runs, pages)
}

/// The object with its contents, open for reading and writing.
///
/// It is made by MAP_SHARED | MAP_ANONYMOUS and opened through `/proc/self/map_files`, so that it is the same kind of
/// object under the same name (`/dev/zero (deleted)`, `/anon_hugepage (deleted)`) that the tasks had.
///
/// # Errors
/// If memory or the page file fall short.
pub(crate) fn create(object: &Shared, pages: &Pages) -> Result<OwnedFd> {
    let mapping = SharedMapping::anonymous(object.size, object.huge);
    let mut mapping = mapping.with_context(|| format!("map {} bytes", object.size))?;
    match object.huge {
        Some(_) => fill_huge(&mut mapping, &object.runs, pages)?,
        None => fill(&mut mapping, &object.runs, pages)?,
    }
    let path = mapping.path();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {path} (needs CAP_CHECKPOINT_RESTORE)"))?;
    Ok(file.into())
}
