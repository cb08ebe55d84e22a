//! Files that stay outside: not part of the checkpoint, given to the tree when it is restored.

use crate::socket::UnixKind;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A file of which the checkpoint has only its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// What it goes by: `pipe:[INO]`, `unix[INO]`, `file[MNT_ID:INODE]` or `tty[RDEV:DEV]`, the last two with hexadecimal numbers.
    pub key: String,
    /// What has to be given for it.
    pub kind: ExternalKind,
    /// What `/proc` called it.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
}

/// Kinds of files that can stay outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalKind {
    /// A pipe, with a name or without.
    Pipe,
    /// A file of the type that these bits of its mode (S_IFMT) say.
    File(u32),
    /// A terminal.
    Terminal,
    /// A unix socket of this type.
    UnixSocket(UnixKind),
}
