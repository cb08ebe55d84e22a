//! Pipes, those with a name in the file system (FIFOs) included.

use crate::id::{DescriptionId, PathId};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A pipe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Its inode number at dump, for messages only.
    pub ino: u64,
    /// F_GETPIPE_SZ.
    pub capacity: u32,
    /// Bytes written and not yet read.
    #[serde(serialize_with = "crate::readable::text")]
    pub contents: Vec<u8>,
    /// What the contents lie in, if there are packets among it; together as long as the contents. Empty for a plain stream.
    pub buffers: Vec<Buffer>,
    /// Of one that has a name.
    pub fifo: Option<Fifo>,
}

/// A buffer of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Bytes in it.
    pub bytes: u32,
    /// Written with O_DIRECT: a read ends with it, and what it leaves of it is gone.
    pub packet: bool,
}

/// A named pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fifo {
    /// Its name.
    pub path: PathId,
    /// Read ends that were opened while there was no writer, and have seen none since: poll(2) does not show them a hang-up.
    pub unpaired: Vec<DescriptionId>,
}
