//! Contexts of asynchronous I/O.
//!
//! The kernel knows where the next event of a context goes and how many are not read, and nobody can tell it. So requests are made that
//! end at once, as many as bring both to what they were; then the events get the contents of those that were not read.
//!
//! # Safety
//! The ring lies in memory that is the task's alone, whose size is known; the plan has kept its place free.

use super::Failure;
use super::calls::{address, plain};
use super::receive::size;
use crate::abi::common::Iocb;
use crate::sys::{self, nr};
use images::aio::{EVENT_BYTES, HEADER_BYTES, between, entries};

/// Where the header has the number of places, the head and the tail.
const NR: usize = 4;
const HEAD: usize = 8;
/// Requests made by one call.
const AT_ONCE: u32 = 64;

/// What a context is to be.
pub(super) struct Context<'a> {
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) request: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) events: &'a [u8],
}

/// Makes a context.
pub(super) fn make(context: &Context<'_>) -> Result<(), Failure> {
    let places = u32::try_from(entries(context.len)).map_err(|_| Failure::wrong(context.len))?;
    let mut ring = 0usize;
    let id = core::ptr::from_mut(&mut ring) as usize;
    plain(nr::__NR_io_setup, u64::from(context.request), &[context.request as usize, id])?;
    // SAFETY: the kernel has mapped a ring there.
    let made = unsafe { core::ptr::read_volatile((ring + NR) as *const u32) };
    if made != places {
        return Err(Failure::wrong(u64::from(made)));
    }
    let addr = size(context.addr)?;
    // SAFETY: its place was kept free. The kernel knows the context by its new place from now on (aio_ring_mremap() of fs/aio.c).
    unsafe { sys::move_mapping(ring, addr, size(context.len)?) }
        .map_err(|errno| Failure::new(errno, context.addr))?;
    if (context.tail, context.events.len()) != (0, 0) {
        on_one_processor(|| turn(context, addr, places))?;
    }
    put(addr + HEAD, context.head);
    Ok(())
}

/// Places that are free are counted for each processor, so all requests have to be made by one.
fn on_one_processor(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let mut mask = [0u64; 128];
    let mask_at = address(&mask);
    // SAFETY: the kernel writes at most the size of the mask.
    let len = unsafe { sys::call(nr::__NR_sched_getaffinity, &[0, size_of_val(&mask), mask_at]) }
        .map_err(|errno| Failure::new(errno, 0))?;
    let mut processor = 0u32;
    plain(nr::__NR_getcpu, 0, &[core::ptr::from_mut(&mut processor) as usize, 0, 0])?;
    let mut one = [0u64; 128];
    if let Some(word) = one.get_mut(processor as usize / 64) {
        *word = 1 << (processor % 64);
    }
    plain(nr::__NR_sched_setaffinity, u64::from(processor), &[0, size_of_val(&one), address(&one)])?;
    let done = work();
    plain(nr::__NR_sched_setaffinity, 0, &[0, len, core::ptr::from_mut(&mut mask) as usize])?;
    done
}

/// Goes through the ring up to the tail, with as many events that are not read as there were.
fn turn(context: &Context<'_>, addr: usize, places: u32) -> Result<(), Failure> {
    const EVENT: usize = EVENT_BYTES as usize;
    let unread = between(context.head, context.tail, places);
    let total = if unread > context.tail { context.tail + places } else { context.tail };
    let head = total - unread;
    // SAFETY: no pointers.
    let ready = unsafe { sys::call(nr::__NR_eventfd2, &[1, 0]) }.map_err(|errno| Failure::new(errno, 1))?;
    // The kernel writes to it, too.
    let mut poll = Iocb::poll(ready as u32, 0);
    let requests = [core::ptr::from_mut(&mut poll) as usize; AT_ONCE as usize];
    let mut done = 0;
    while done < total {
        // Read as far as they may be: what is read by the task makes room.
        put(addr + HEAD, done.min(head) % places);
        let count = (total - done).min(AT_ONCE) as usize;
        // SAFETY: the kernel reads the request.
        let made = unsafe { sys::call(nr::__NR_io_submit, &[addr, count, address(&requests)]) }
            .map_err(|errno| Failure::new(errno, u64::from(done)))?;
        done += made as u32;
    }
    sys::close(ready as i32);
    for (place, event) in (head..).zip(context.events.chunks_exact(EVENT)) {
        let at = addr + HEADER_BYTES as usize + (place % places) as usize * EVENT;
        // SAFETY: a place of the ring; nothing but the kernel writes there, and no request is on its way.
        unsafe { core::ptr::copy_nonoverlapping(event.as_ptr(), at as *mut u8, EVENT) };
    }
    Ok(())
}

fn put(at: usize, value: u32) {
    // SAFETY: a word of the header, which the kernel lets the task write.
    unsafe { core::ptr::write_volatile(at as *mut u32, value) };
}
