//! What must hold between the records of a checkpoint, so that nothing after this has to doubt them.
//!
//! Decoding guarantees shapes; this guarantees sense: every index leads somewhere, addresses are ordered and
//! inside what the ABI can map, tables of fixed length have it. Whether the tree can be restored on *this*
//! machine is not asked here but by the plan.

mod attribute;
mod bpf;
mod event;
mod externals;
mod fanotify;
mod files;
mod inet;
mod inotify;
mod ipc;
mod late;
mod memory;
mod pipes;
mod sharing;
mod sockets;
mod terminals;
mod tree;

use images::container::Kind;
use images::file::Files;
use images::inventory::{FileEntry, Inventory};
use images::memory::Memory;
use images::task::Tree;
use images::{Abi, PathId};
use std::collections::BTreeSet;
use std::fmt;

/// A contradiction between records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inconsistent {
    /// The file whose record is wrong.
    pub kind: Kind,
    /// The record and what is wrong with it.
    pub what: String,
}

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: is inconsistent: {}", self.kind.file_name(), self.what)
    }
}

impl std::error::Error for Inconsistent {}

/// What is wrong inside one file; the file's name is added where the file is known.
type Check = Result<(), String>;

/// Ends a check with a message unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
use ensure;

/// Checks all records of a checkpoint against each other.
///
/// # Errors
/// The first contradiction.
pub fn records(
    inventory: &Inventory,
    tree: &Tree,
    files: &Files,
    memory: &Memory,
) -> Result<(), Inconsistent> {
    let of = |kind| move |what| Inconsistent { kind, what };
    files::check(files).map_err(of(Kind::Files))?;
    sockets::check(files).map_err(of(Kind::Files))?;
    inet::check(files).map_err(of(Kind::Files))?;
    terminals::check(files).map_err(of(Kind::Files))?;
    event::check(files).map_err(of(Kind::Files))?;
    inotify::check(files).map_err(of(Kind::Files))?;
    bpf::check(files).map_err(of(Kind::Files))?;
    fanotify::check(files).map_err(of(Kind::Files))?;
    tree::check(tree, files).map_err(of(Kind::Tree))?;
    ipc::check(tree).map_err(of(Kind::Tree))?;
    terminals::check_control(files, tree).map_err(of(Kind::Files))?;
    event::check_with(tree, files).map_err(of(Kind::Files))?;
    late::check_with(tree, files).map_err(of(Kind::Files))?;
    sharing::check(tree).map_err(of(Kind::Tree))?;
    memory::check(memory, tree, files).map_err(of(Kind::Memory))?;
    files::check_contents(files, memory).map_err(of(Kind::Files))?;
    sharing::check_spaces(memory, tree).map_err(of(Kind::Memory))?;
    check_inventory(inventory, tree, memory).map_err(of(Kind::Inventory))
}

/// The entries of the four files that an inventory lists, tree, files, memory, pages, each once.
///
/// # Errors
/// A file that is listed twice or not at all.
pub fn entries(inventory: &Inventory) -> Result<[&FileEntry; 4], Inconsistent> {
    listed(inventory, [Kind::Tree, Kind::Files, Kind::Memory, Kind::Pages])
}

/// The entries of the two files of a pre-dump, memory and pages.
///
/// # Errors
/// As [`entries`].
pub fn round_entries(inventory: &Inventory) -> Result<[&FileEntry; 2], Inconsistent> {
    listed(inventory, [Kind::Memory, Kind::Pages])
}

fn listed<const N: usize>(inventory: &Inventory, kinds: [Kind; N]) -> Result<[&FileEntry; N], Inconsistent> {
    let wrong = |what| Inconsistent { kind: Kind::Inventory, what };
    let files = &inventory.files;
    if let Some(missing) = kinds.iter().find(|&&kind| !files.iter().any(|entry| entry.kind == kind)) {
        return Err(wrong(format!("{} is not listed", missing.file_name())));
    }
    if files.len() > N {
        return Err(wrong(format!("{} files are listed, not {N}", files.len())));
    }
    let mut found = [&files[0]; N];
    for (place, kind) in found.iter_mut().zip(kinds) {
        *place = files.iter().find(|entry| entry.kind == kind).unwrap_or(&files[0]);
    }
    Ok(found)
}

/// Checks the records of a pre-dump.
///
/// # Errors
/// The first contradiction.
pub fn round(inventory: &Inventory, memory: &Memory) -> Result<(), Inconsistent> {
    let of = |kind| move |what| Inconsistent { kind, what };
    memory::check_round(memory).map_err(of(Kind::Memory))?;
    let check = || {
        let [_, pages] = round_entries(inventory).map_err(|wrong| wrong.what)?;
        check_pages_entry(pages, memory)?;
        let tasks = inventory.pre_dump.as_ref().map_or(0, |pre_dump| pre_dump.tasks.len());
        let spaces = memory.spaces.len();
        ensure!(tasks == spaces, "{tasks} tasks, {spaces} address spaces");
        check_parent(inventory, memory)
    };
    check().map_err(of(Kind::Inventory))
}

/// The size of `pages.img` in bytes.
///
/// # Errors
/// If there cannot be so many pages.
pub fn pages_size(memory: &Memory) -> Result<u64, Inconsistent> {
    memory::pages_size(memory).map_err(|what| Inconsistent { kind: Kind::Memory, what })
}

fn check_pages_entry(entry: &FileEntry, memory: &Memory) -> Check {
    let expected = memory::pages_size(memory)?;
    ensure!(entry.size == expected, "pages.img has {} bytes, the memory map {expected}", entry.size);
    Ok(())
}

fn check_parent(inventory: &Inventory, memory: &Memory) -> Check {
    let first = memory.first_page;
    ensure!(inventory.parent.is_some() || first == 0, "{first} pages of others, and it builds on none");
    Ok(())
}

fn check_inventory(inventory: &Inventory, tree: &Tree, memory: &Memory) -> Check {
    let [_, _, _, pages] = entries(inventory).map_err(|wrong| wrong.what)?;
    check_pages_entry(pages, memory)?;
    check_parent(inventory, memory)?;
    let root = tree.tasks.first().map(|task| task.pid);
    ensure!(root == Some(inventory.root), "the root is task {}, not that of the tree", inventory.root);
    let tasks = tree.tasks.len();
    ensure!(inventory.tasks as usize == tasks, "{} tasks, the tree has {tasks}", inventory.tasks);
    let threads: usize = tree.tasks.iter().map(|task| task.threads.len()).sum();
    ensure!(inventory.threads as usize == threads, "{} threads, the tree has {threads}", inventory.threads);
    let listed: BTreeSet<Abi> = inventory.abis.iter().copied().collect();
    let present: BTreeSet<Abi> = tree.tasks.iter().map(|task| task.abi).collect();
    ensure!(listed == present, "ABIs {listed:?}, the tree has {present:?}");
    Ok(())
}

/// A path that exists in the table.
fn path(files: &Files, id: PathId) -> Check {
    ensure!((id.0 as usize) < files.paths.len(), "{id} of {} paths", files.paths.len());
    Ok(())
}

/// Puts the object before what is wrong with it.
fn inside(object: impl fmt::Display) -> impl FnOnce(String) -> String {
    move |what| format!("{object}: {what}")
}
