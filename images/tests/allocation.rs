//! Lengths in a file are claims: decoding takes memory for what is there, not for what is said to be there.
//!
//! # Safety
//! The counting allocator passes every call on to the system's with the arguments it was given.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)] // A failed step is a failed test.

mod seal;

use images::container::{Kind, decode};
use images::memory::Memory;
use images::task::Tree;
use seal::seal;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts what is allocated now, and at most since the last reset.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: memory comes from and goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were allocated at a time while something ran, beyond those before.
fn peak(work: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    PEAK.load(Relaxed) - before
}

/// A varint of 32 bits, all ones.
const HUGE: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];
/// What serde reserves at most on the word of a length, for each sequence that is open at a time.
const RESERVED: usize = 8 << 20;

/// One test, since the counters are of the whole process.
#[test]
fn memory_is_taken_for_what_is_there() {
    // Four thousand million tasks, none there; the same of address spaces, of areas in a space, of checksums.
    for payload in
        [HUGE.to_vec(), [&[1], HUGE.as_slice()].concat(), [&[0, 0, 0, 0], HUGE.as_slice()].concat()]
    {
        for kind in [Kind::Tree, Kind::Memory] {
            let file = seal(kind, &payload);
            let tree = peak(|| assert!(decode::<Tree>(kind, &file).is_err()));
            let memory = peak(|| assert!(decode::<Memory>(kind, &file).is_err()));
            assert!(tree < RESERVED && memory < RESERVED, "{payload:x?}: {tree} and {memory} bytes");
        }
    }
    // The densest records there are: a byte each of 0 is an empty signal, a tiny number.
    for fill in 0..=255u8 {
        let size = 1 << 20;
        let file = seal(Kind::Tree, &[HUGE.as_slice(), &vec![fill; size]].concat());
        let taken = peak(|| drop(decode::<Tree>(Kind::Tree, &file)));
        assert!(taken < 64 * size + RESERVED, "fill {fill:#x}: {taken} bytes for {size}");
    }
}
