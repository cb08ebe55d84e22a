//! The inventory: written last, it makes a directory of files a checkpoint.

use crate::container::Kind;
use crate::id::{Abi, Pid};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The payload of `inventory.img`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Version of the crr that dumped.
    pub crr_version: String,
    /// `uname -r` at dump.
    pub kernel_release: String,
    /// Boot id of the kernel at dump.
    pub boot_id: String,
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// Root of the tree.
    pub root: Pid,
    /// ABIs that occur in the tree.
    pub abis: Vec<Abi>,
    /// Tasks.
    pub tasks: u32,
    /// Threads of all tasks.
    pub threads: u32,
    /// XSAVE state components in use by some thread (XSTATE_BV of all threads or-ed).
    pub xfeatures_in_use: u64,
    /// All other files of the checkpoint.
    pub files: Vec<FileEntry>,
}

/// One file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// What it is; its name follows from it.
    pub kind: Kind,
    /// Its exact size.
    pub size: u64,
    /// The checksum in the trailer of a metadata file, which ties the file to this inventory (one over the
    /// trailer too would be the same for every file); 0 for pages, whose checksums are in the memory map.
    pub crc: u32,
}
