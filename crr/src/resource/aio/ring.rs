//! The ring of a context as it lies in its task's memory: `struct aio_ring` of fs/aio.c.

use crate::sys::vm;
use anyhow::{Context, Result};
use images::aio::{EVENT_BYTES, HEADER_BYTES, between, entries};
use images::memory::Vma;
use images::{Addr, Pid};

/// `struct io_event`: data and request as the task gave them, two results.
pub(super) type Event = [u8; 32];
const _: () = assert!(size_of::<Event>() as u64 == EVENT_BYTES);

/// The ring of a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pid: Pid,
    pub(super) start: Addr,
    /// How many events it has room for.
    pub(super) places: u32,
}

/// What its header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) places: u32,
    /// As the task wrote it.
    pub(super) head: u32,
    pub(super) tail: u32,
}

/// Where the header has the head.
const HEAD: u64 = 8;

impl Ring {
    pub(super) fn new(pid: Pid, vma: &Vma) -> Self {
        let places = u32::try_from(entries(vma.end.0 - vma.start.0)).unwrap_or(u32::MAX);
        Self { pid, start: vma.start, places }
    }

    pub(super) fn header(&self) -> Result<Header> {
        let mut bytes = [0u8; 16];
        vm::read_exact(self.pid, self.start, &mut bytes).context("read the header of the ring")?;
        let [_id, places, head, tail] = [0, 4, 8, 12]
            .map(|at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        Ok(Header { places, head, tail })
    }

    /// How many events are not read.
    pub(super) fn unread(&self, header: Header) -> u32 {
        between(header.head, header.tail, self.places)
    }

    /// Says what is read.
    pub(super) fn set_head(&self, head: u32) -> Result<()> {
        vm::write_all(self.pid, self.start.offset(HEAD), &head.to_le_bytes())
            .context("write the head of the ring")
    }

    /// Places beside each other from one on, at most up to the end of the ring: where they lie, and how many they are.
    fn piece(&self, place: u32, count: u32) -> (Addr, u32) {
        let place = place % self.places;
        (self.start.offset(HEADER_BYTES + u64::from(place) * EVENT_BYTES), count.min(self.places - place))
    }

    /// As many events as are asked for, from a place on.
    pub(super) fn events(&self, mut place: u32, mut count: u32) -> Result<Vec<Event>> {
        let mut events = Vec::with_capacity(count as usize);
        while count > 0 {
            let (at, some) = self.piece(place, count);
            let mut bytes = vec![0u8; some as usize * size_of::<Event>()];
            vm::read_exact(self.pid, at, &mut bytes).context("read events")?;
            events.extend_from_slice(bytes.as_chunks().0);
            place = (place % self.places) + some;
            count -= some;
        }
        Ok(events)
    }

    /// Puts events in their places, from one on.
    pub(super) fn put(&self, mut place: u32, mut events: &[Event]) -> Result<()> {
        while !events.is_empty() {
            let (at, some) = self.piece(place, u32::try_from(events.len())?);
            let (now, rest) = events.split_at(some as usize);
            vm::write_all(self.pid, at, now.as_flattened()).context("write events")?;
            place = (place % self.places) + some;
            events = rest;
        }
        Ok(())
    }
}
