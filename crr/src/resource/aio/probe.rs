//! Whether requests of a context are on their way.
//!
//! A ring has a place for each request, from when it is made until its event is read, and a request without one fails with EAGAIN. So the
//! task makes requests of ours until it is told so. Then as many as the ring takes are ours, have events that are not read, or are
//! on their way. Ours wait for an eventfd that nobody writes to, so they can all be ended at once.
//!
//! Places that are free are counted by each processor for itself, in batches (`__get_reqs_available()` of fs/aio.c); what is held for one is found
//! only there. A processor that the task may not use can hide some: these cannot be told from requests.
//!
//! # The way back
//!
//! The end of a request is an event. All of ours take the ring once around, exactly: what did not fit at once follows as requests that end
//! when they are made. Head and tail are then what they were, for a program, too, that is about to read an event by itself. The events
//! that were not read are put back in their places, and those of the task's own requests that ended meanwhile
//! behind them, where they would be without us. The kernel writes events and the tail while requests are on their way, so neither
//! is touched but in places that it is done with; the head only ever goes on, up to where it was, as if events were read.

use super::affinity::Affinity;
use super::ring::{Event, Header, Ring};
use crate::changed::Changed;
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Call, Executor};
use anyhow::{Context, Result, bail};
use images::Abi;
use nix::errno::Errno;
use shared::abi::common::Iocb;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// No request is on its way.
    Idle,
    /// Some are, all the time that there was.
    OnTheirWay {
        count: u32,
        /// All of it is requests: the task may run on all processors.
        is_sure: bool,
    },
}

/// Requests of ours in a context of a task.
pub(super) struct Probe<'a> {
    executor: &'a Executor,
    thread: &'a mut Stopped,
    ring: &'a Ring,
    patience: &'a Patience,
    processors: u64,
    /// How many requests there can be.
    capacity: u32,
    /// The header as it was.
    before: Header,
    /// The eventfd of the task.
    event: u64,
    /// What marks our events, beside the address of the request.
    mark: u64,
    /// The address of our request.
    request: u64,
    /// Our requests so far.
    made: u32,
    affinity: Affinity,
}

/// How long it may take until all that was taken is back: far longer than it ever should.
const LAST_RESORT: Duration = Duration::from_secs(30);
/// How long to wait for requests before looking again.
const AGAIN: Duration = Duration::from_micros(200);
/// Requests that one call makes, and calls of a batch.
const AT_ONCE: u32 = 1000;
const CALLS: u32 = 100;

impl<'a> Probe<'a> {
    /// Gives the task an eventfd, if it can have one.
    pub(super) fn open(
        executor: &'a Executor,
        thread: &'a mut Stopped,
        ring: &'a Ring,
        before: Header,
        (capacity, processors): (u32, u64),
        patience: &'a Patience,
    ) -> Result<nix::Result<Self>> {
        let affinity = Affinity::of(thread.tid())?;
        let mut batch = executor.batch(thread)?;
        let event = batch.call(Call::Eventfd2, &[]);
        let event = match executor.run(thread, &batch, patience)?.result(event) {
            Ok(event) => event,
            Err(errno) => return Ok(Err(errno)),
        };
        Ok(Ok(Self {
            affinity,
            executor,
            thread,
            ring,
            patience,
            processors,
            capacity,
            before,
            event,
            mark: RandomState::new().hash_one(event),
            request: 0,
            made: 0,
        }))
    }

    /// Takes all places that are free, and waits until no others are taken.
    pub(super) fn ask(&mut self) -> Result<Answer> {
        self.submit(self.ring.places)?;
        let processors = self.affinity.processors();
        for &processor in &processors {
            if self.on_their_way()? == 0 {
                return Ok(Answer::Idle);
            }
            if self.affinity.pin(processor) {
                self.submit(self.ring.places - self.made)?;
            }
        }
        // The other half is for what comes after that.
        let until = Instant::now() + self.patience.until().saturating_duration_since(Instant::now()) / 2;
        loop {
            let count = self.on_their_way()?;
            if count == 0 {
                return Ok(Answer::Idle);
            }
            if Instant::now() >= until {
                let is_sure = processors.len() as u64 == self.processors;
                return Ok(Answer::OnTheirWay { count, is_sure });
            }
            self.patience.check(self.thread.tid())?;
            std::thread::sleep(AGAIN);
        }
    }

    /// Places that are taken, but not by us or by events that are not read.
    fn on_their_way(&self) -> Result<u32> {
        let unread = self.ring.unread(self.ring.header()?);
        let (capacity, made) = (self.capacity, self.made);
        // What follows from a number that is too small would be that nothing is on its way.
        capacity.checked_sub(made + unread).with_context(|| {
            format!("it takes {made} requests beside {unread} events, which is more than {capacity} of both")
        })
    }

    /// Takes everything back: requests, eventfd, affinity.
    pub(super) fn close(mut self) -> Result<()> {
        if self.executor.is_adrift() {
            return Ok(());
        }
        let how = || Changed { how: "requests that crr made are left in an AIO context of it".to_owned() };
        let turned = if self.made > 0 { self.turn().map_err(|e| e.context(how())) } else { Ok(()) };
        let closed = self.close_event();
        self.affinity.put_back()?;
        turned.and(closed)
    }

    fn close_event(&mut self) -> Result<()> {
        let mut batch = self.executor.batch(self.thread)?;
        batch.call(Call::Close, &[Arg::Value(self.event)]);
        self.executor.run(self.thread, &batch, &Patience::endless()).map(drop)
    }

    /// Ends our requests, and takes the ring once around.
    fn turn(&mut self) -> Result<()> {
        let first = self.before.head % self.ring.places;
        self.end_all()?;
        let (mut kept, mut ours, mut seen): (Vec<Event>, u32, u32) = (Vec::new(), 0, 0);
        let mut processors = Vec::new();
        let until = Instant::now() + LAST_RESORT;
        loop {
            if Instant::now() >= until {
                bail!("not all places of a ring are given back");
            }
            let tail = self.ring.header()?.tail;
            let at = (first + seen % self.ring.places) % self.ring.places;
            let new = images::aio::between(at, tail, self.ring.places);
            for event in self.ring.events(at, new)? {
                if self.is_ours(&event) { ours += 1 } else { kept.push(event) }
            }
            seen += new;
            if ours == self.ring.places {
                break;
            }
            if ours < self.made {
                // Where the kernel could not end them at once, a thread of its own does.
                std::thread::sleep(AGAIN);
                continue;
            }
            self.ring.set_head((first + seen.min(self.ring.places)) % self.ring.places)?;
            if self.submit(self.ring.places - self.made)? == 0 {
                // What was given back when another processor ended a request is found there.
                if processors.is_empty() {
                    std::thread::sleep(AGAIN);
                    processors = self.affinity.processors();
                }
                self.affinity.pin(processors.pop().context("no processor")?);
            }
        }
        self.ring.put(first, &kept)?;
        self.ring.set_head(self.before.head)
    }

    fn is_ours(&self, event: &Event) -> bool {
        event[..8] == self.mark.to_le_bytes() && event[8..16] == self.request.to_le_bytes()
    }

    /// Our requests end: the eventfd can be read from now on.
    fn end_all(&mut self) -> Result<()> {
        let mut batch = self.executor.batch(self.thread)?;
        let one = batch.data(&1u64.to_le_bytes());
        let wrote = batch.call(Call::Write, &[Arg::Value(self.event), Arg::Out(one), Arg::Value(8)]);
        let reply = self.executor.run(self.thread, &batch, &Patience::endless())?;
        reply.result(wrote).map(drop).context("write to an eventfd")
    }

    /// Makes up to `count` requests. Returns how many there was place for.
    fn submit(&mut self, count: u32) -> Result<u32> {
        let before = self.made;
        while self.made - before < count {
            let full = self.submit_some(count - (self.made - before))?;
            if full {
                break;
            }
        }
        Ok(self.made - before)
    }

    /// As many as one batch makes. Returns whether no place was left.
    fn submit_some(&mut self, count: u32) -> Result<bool> {
        let mut batch = self.executor.batch(self.thread)?;
        let poll = Iocb::poll(u32::try_from(self.event)?, self.mark);
        let request = batch.data(&poll.to_bytes());
        let Some(at) = self.executor.place(request) else { bail!("nothing can be mapped in the task") };
        self.request = at.0;
        let pointer = &at.0.to_le_bytes()[..if batch.abi() == Abi::X86_64 { 8 } else { 4 }];
        let pointers = batch.data(&pointer.repeat(count.min(AT_ONCE) as usize));
        let calls = count.div_ceil(AT_ONCE).min(CALLS);
        let parts: Vec<u32> = (0..calls).map(|call| (count - call * AT_ONCE).min(AT_ONCE)).collect();
        let context = Arg::Value(self.ring.start.0);
        let mut submit = |part: u32| {
            batch.call(Call::IoSubmit, &[context, Arg::Value(u64::from(part)), Arg::Out(pointers)])
        };
        let handles: Vec<_> = parts.iter().map(|&part| submit(part)).collect();
        let reply = self.executor.run(self.thread, &batch, &Patience::endless())?;
        let mut full = false;
        for (part, handle) in parts.into_iter().zip(handles) {
            match reply.result(handle) {
                Ok(some) => {
                    self.made += u32::try_from(some)?;
                    full |= some < u64::from(part);
                }
                Err(Errno::EAGAIN) => full = true,
                Err(errno) => return Err(errno).context("io_submit"),
            }
        }
        Ok(full)
    }
}
