//! Contexts of asynchronous I/O as ops, and what can be known of a ring beforehand (fs/aio.c).
//!
//! The kernel chooses the size of a ring by what io_setup(2) is asked for and by the processors that there may be, rounded up to whole pages. It
//! counts the places of a ring in batches: what is not a whole batch is never given to a request.

use super::memory;
use crate::op::{self, Op};
use alloc::vec::Vec;
use images::aio::{EVENT_BYTES, HEADER_BYTES, entries};
use images::id::PAGE_SIZE;
use images::memory::Space;

/// A ring is as it was when the kernel has made it.
const PROT_READ_WRITE: u32 = 3;
/// Batches of a context, for each processor.
const BATCHES: u64 = 4;

/// Bytes of the ring that a request for this many events makes: aio_setup_ring() and ioctx_alloc() of fs/aio.c.
const fn ring_bytes(events: u64, processors: u64) -> u64 {
    let least = processors * BATCHES;
    let asked = if events < least { least } else { events };
    (HEADER_BYTES + EVENT_BYTES * (2 * asked + 2)).next_multiple_of(PAGE_SIZE)
}

/// The smallest request that makes a ring of this many bytes, since all of them together are limited (fs.aio-max-nr).
#[must_use]
pub fn request(bytes: u64) -> u32 {
    // Twice as many and three (the header is as large as an event) are one more than fit in all pages but the last.
    let events = (bytes.saturating_sub(PAGE_SIZE) / EVENT_BYTES / 2).saturating_sub(1).max(1);
    u32::try_from(events).unwrap_or(u32::MAX)
}

/// Whether there are rings of this many bytes: many processors make all of them larger.
#[must_use]
pub fn is_possible(bytes: u64, processors: u64) -> bool {
    ring_bytes(u64::from(request(bytes)), processors) == bytes
}

/// How many requests a ring of this many bytes takes at a time, those whose events are not read included.
#[must_use]
pub const fn capacity(bytes: u64, processors: u64) -> u64 {
    // One place is always free.
    let places = entries(bytes).saturating_sub(1);
    let batch = match places / (processors * BATCHES) {
        0 => 1,
        batch => batch,
    };
    places - places % batch
}

/// Appends the ops that make the contexts of a space, each in the place that was kept free for its ring.
pub(super) fn ops(list: &mut Vec<u8>, space: &Space) {
    for context in &space.aio {
        let at = space.vmas.partition_point(|vma| vma.start < context.start);
        let Some(vma) = space.vmas.get(at) else { continue };
        let len = vma.end.0 - vma.start.0;
        op::push(
            list,
            &Op::AioContext {
                addr: vma.start.0,
                len,
                request: request(len),
                head: context.head,
                tail: context.tail,
                events: &context.events,
            },
        );
        memory::advise_before(list, vma.start.0, len, vma.flags);
        memory::settle(list, vma, PROT_READ_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_request_makes_the_ring() {
        for processors in [1, 2, 4, 15, 64] {
            for events in 1..3000 {
                let bytes = ring_bytes(events, processors);
                assert!(is_possible(bytes, processors), "{events} events, {processors} processors");
                assert!(u64::from(request(bytes)) <= events.max(processors * BATCHES));
            }
        }
    }

    #[test]
    fn many_processors_make_no_small_rings() {
        assert_eq!(request(4096), 1);
        assert!(is_possible(4096, 15));
        assert!(!is_possible(4096, 16));
    }

    #[test]
    fn places_are_given_in_batches() {
        assert_eq!(capacity(4096, 2), 120);
        assert_eq!(capacity(4096, 64), 126);
        assert_eq!(capacity(3 * 4096, 2), 376);
    }
}
