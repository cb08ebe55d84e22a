//! What seccomp allows a thread.

use crate::id::FilterId;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Bytes of one instruction: `struct sock_filter`.
pub const INSTRUCTION: usize = 8;
/// Most instructions of one program: BPF_MAXINSNS.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// A program that decides about system calls. It stands once in a tree, however many threads have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Filter {
    /// Classic BPF, as it was given to the kernel: `struct sock_filter` after `struct sock_filter`.
    #[serde(serialize_with = "crate::readable::hex")]
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_LOG.
    pub log: bool,
}

/// The seccomp mode of a thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// None.
    Off,
    /// read, write, exit and sigreturn, nothing else.
    Strict,
    /// Filters.
    Filters {
        /// From the first that was installed to the last: all of them are asked about every call.
        filters: Vec<FilterId>,
        /// The processor may speculate past stores and branches (SECCOMP_FILTER_FLAG_SPEC_ALLOW): false where the kernel
        /// has forbidden it to the thread for good.
        speculation: bool,
    },
}
