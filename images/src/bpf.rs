//! BPF maps.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Types of maps: `enum bpf_map_type` of include/uapi/linux/bpf.h.
pub mod kind {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PERCPU_HASH: u32 = 5;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const LPM_TRIE: u32 = 11;
    pub const QUEUE: u32 = 22;
    pub const STACK: u32 = 23;
}

/// BPF_F_MMAPABLE.
pub const MMAPABLE: u32 = 1 << 10;
/// Flags that a map is made again with: BPF_F_NO_PREALLOC, BPF_F_ZERO_SEED, BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG, BPF_F_MMAPABLE, BPF_F_INNER_MAP.
pub const FLAGS: u32 = 1 | 1 << 6 | 1 << 7 | 1 << 8 | MMAPABLE | 1 << 12;

/// Whether maps of a type are made again.
#[must_use]
pub const fn can_be_made(kind: u32) -> bool {
    matches!(
        kind,
        kind::HASH
            | kind::ARRAY
            | kind::PERCPU_HASH
            | kind::PERCPU_ARRAY
            | kind::LPM_TRIE
            | kind::QUEUE
            | kind::STACK
    )
}

/// A map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpfMap {
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that fit.
    pub max_entries: u32,
    /// BPF_F_*.
    pub flags: u32,
    /// Its name, which may be empty.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
    /// Programs that read files cannot change it any more (BPF_MAP_FREEZE).
    pub frozen: bool,
    /// One of those who have it may do without protection from speculation (CAP_PERFMON, CAP_SYS_ADMIN).
    pub trusted: bool,
    /// Where it is pinned: it stays there with what is in it. Empty for one that is not, which is made again.
    #[serde(serialize_with = "crate::readable::text")]
    pub pin: Vec<u8>,
    /// Processors that each entry has a value for; 0 where one value is for all.
    pub processors: u32,
    /// The keys of its entries, one behind the other, in the kernel's order; those of an array that are zero are left out.
    #[serde(serialize_with = "crate::readable::hex")]
    pub keys: Vec<u8>,
    /// Their values, of [`Self::value_bytes`] each.
    #[serde(serialize_with = "crate::readable::hex")]
    pub values: Vec<u8>,
}

impl BpfMap {
    /// Bytes of a value as system calls have it: for each processor a multiple of 8 (bpf_map_value_size() of kernel/bpf/syscall.c).
    #[must_use]
    pub fn value_bytes(&self) -> u64 {
        match self.processors {
            0 => self.value_size.into(),
            processors => u64::from(self.value_size).next_multiple_of(8) * u64::from(processors),
        }
    }

    /// Whether each entry has a value for each processor.
    #[must_use]
    pub const fn is_per_processor(&self) -> bool {
        matches!(self.kind, kind::PERCPU_HASH | kind::PERCPU_ARRAY)
    }

    /// How many entries there are in the record.
    #[must_use]
    pub fn entries(&self) -> u64 {
        (self.keys.len() as u64).checked_div(self.key_size.into()).unwrap_or(0)
    }
}
