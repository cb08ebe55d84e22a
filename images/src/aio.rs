//! Contexts of asynchronous I/O (io_setup), each with a ring of events that lies in the memory of its task.

use crate::id::Addr;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Bytes of a ring before its first event: `struct aio_ring` of fs/aio.c.
pub const HEADER_BYTES: u64 = 32;
/// Bytes of an event: `struct io_event` of include/uapi/linux/aio_abi.h, the same in both ABIs.
pub const EVENT_BYTES: u64 = 32;

/// A context without requests on their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AioContext {
    /// Where its ring lies, which is its number, too.
    pub start: Addr,
    /// The place of the next event to be read, as the task has written it.
    pub head: u32,
    /// The place of the next event to come.
    pub tail: u32,
    /// Events that are to be read.
    #[serde(serialize_with = "crate::readable::hex")]
    pub events: Vec<u8>,
}

/// Places for events in a ring of this many bytes.
#[must_use]
pub const fn entries(bytes: u64) -> u64 {
    bytes.saturating_sub(HEADER_BYTES) / EVENT_BYTES
}

/// Events between two places of a ring.
#[must_use]
pub const fn between(head: u32, tail: u32, entries: u32) -> u32 {
    let (head, tail) = (head % entries, tail % entries);
    if head <= tail { tail - head } else { entries - (head - tail) }
}
