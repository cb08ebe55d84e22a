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
    /// XSAVE state components that hold something in some thread, by bits.
    pub xfeatures_in_use: u64,
    /// Where the components of the threads' extended state lie: places differ between processors.
    pub xstate_layout: Vec<StateComponent>,
    /// The checkpoint that this one builds on.
    pub parent: Option<Parent>,
    /// It was made while the tree ran: page contents without a tree, for others to build on.
    pub pre_dump: Option<PreDump>,
    /// All other files of the checkpoint.
    pub files: Vec<FileEntry>,
}

/// A checkpoint that another one builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its directory, as seen from that of the other.
    #[serde(serialize_with = "crate::readable::text")]
    pub dir: Vec<u8>,
    /// The checksum in the trailer of its inventory.
    pub crc: u32,
}

/// What a pre-dump leaves to those that build on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreDump {
    /// What tells which pages were written since.
    pub tracking: Tracking,
    /// The tasks, in the order of [`crate::memory::Memory::spaces`].
    pub tasks: Vec<Instance>,
}

/// What tells which pages of tasks were written since a pre-dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tracking {
    /// They are write-protected as long as this process is there, which has the descriptors.
    WriteProtected(Instance),
    /// The soft-dirty bits of the page tables, which are to be believed only of pages with the checksums that they had.
    SoftDirty,
}

/// A process, told from others that had its pid before or have it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instance {
    /// Its pid.
    pub pid: Pid,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

/// A component of the XSAVE area in the standard format, from CPUID leaf 0xd of the machine that dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateComponent {
    /// Its number, from 2 on: x87 and SSE lie where FXSAVE has them.
    pub number: u8,
    /// Bytes before it.
    pub offset: u32,
    /// Its bytes.
    pub size: u32,
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
