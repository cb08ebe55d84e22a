//! Batches of several threads of a task at the same time, each in an area of its own.
//!
//! To wake a thread, and to see that it has stopped again, takes longer than its calls. So while it is on its way the next ones are set off, and
//! the answers of those before it are read. Areas are those of [`Executor::open`]: each thread finds its own way out if crr is killed.

use super::batch::{Arg, Batch, Reply};
use super::calls::Call;
use super::code::layout;
use super::{Executor, Saved, Way, area_args, pending_mask};
use crate::fault::{self, Point};
use crate::ptrace::{Patience, Seized, Stopped};
use anyhow::{Context, Result};
use images::Addr;
use std::collections::VecDeque;

/// Threads that are on their way at a time.
const AT_A_TIME: usize = 8;
/// For fewer threads, further areas are not worth what they take.
const WORTH_IT: usize = 6;

/// A thread that is on its way through a batch.
struct UnderWay {
    /// Which one.
    index: usize,
    area: Addr,
    saved: Saved,
    /// The signal by which it tells that it is done, and where its stack pointer stands then.
    signal: i32,
    done: Addr,
    running: Seized,
}

/// Threads, a batch for each, and how far they have come.
struct Round<'a> {
    executor: &'a Executor,
    threads: &'a mut [Stopped],
    batches: &'a [Batch],
    patience: &'a Patience,
    /// Those that were set off first come first.
    under_way: VecDeque<UnderWay>,
    replies: Vec<Reply>,
}

impl Executor {
    /// As [`Executor::run`], for several threads of the task, with a batch for each. The answers come in the same order.
    ///
    /// # Errors
    /// As [`Executor::run`], of the first thread that fails.
    pub fn run_all(
        &self,
        threads: &mut [Stopped],
        batches: &[Batch],
        patience: &Patience,
    ) -> Result<Vec<Reply>> {
        // One in 64-bit code of an ia32 task would map areas that ia32 code does not reach.
        let mapper = batches.iter().position(|batch| batch.abi() == self.target.abi);
        let (main, mapper) = match (&self.way, mapper) {
            (Way::Area(main), Some(mapper)) if batches.len() >= WORTH_IT => (*main, mapper),
            _ => {
                let each = threads.iter_mut().zip(batches);
                return each.map(|(thread, batch)| self.run(thread, batch, patience)).collect();
            }
        };
        let count = AT_A_TIME.min(batches.len()) - 1;
        let further = self.map_further(count, &mut threads[mapper], patience)?;
        let areas: Vec<Addr> = std::iter::once(main).chain(further.iter().copied()).collect();
        let (under_way, replies) = (VecDeque::new(), Vec::with_capacity(batches.len()));
        let mut round =
            Round { executor: self, threads: &mut *threads, batches, patience, under_way, replies };
        let ran = round.run(&areas);
        round.drain();
        let replies = round.replies;
        let unmapped = match self.is_adrift() {
            false => self.unmap_further(&further, &mut threads[mapper], patience),
            true => Ok(()),
        };
        ran?;
        unmapped?;
        Ok(replies)
    }

    /// Maps further areas, as many of so many as there is room for.
    pub(super) fn map_further(
        &self,
        count: usize,
        thread: &mut Stopped,
        patience: &Patience,
    ) -> Result<Vec<Addr>> {
        let mut batch = self.batch(thread)?;
        let args = area_args(super::PROT_ALL).map(Arg::Value);
        let maps: Vec<_> = (0..count).map(|_| batch.call(Call::Mmap, &args)).collect();
        let reply = self.run(thread, &batch, patience)?;
        let areas: Vec<Addr> = maps.into_iter().filter_map(|map| reply.result(map).ok()).map(Addr).collect();
        if let Err(e) = areas.iter().try_for_each(|&area| self.mark(area)) {
            self.unmap_further(&areas, thread, patience)?;
            return Err(e);
        }
        Ok(areas)
    }

    pub(super) fn unmap_further(
        &self,
        areas: &[Addr],
        thread: &mut Stopped,
        patience: &Patience,
    ) -> Result<()> {
        let mut batch = self.batch(thread)?;
        let unmap = |area: &Addr| batch.call(Call::Munmap, &[Arg::Value(area.0), Arg::Value(layout::SIZE)]);
        let unmaps: Vec<_> = areas.iter().map(unmap).collect();
        let reply = self.run(thread, &batch, patience)?;
        let all = unmaps.into_iter().try_for_each(|unmap| reply.result(unmap).map(drop));
        all.context("cannot unmap a page in the task")
    }
}

impl Round<'_> {
    /// All of them. After a failure some are still under way.
    fn run(&mut self, areas: &[Addr]) -> Result<()> {
        let shared = self.threads.first().map_or(Ok(0), |thread| pending_mask(thread, true))?;
        for index in 0..self.threads.len() {
            if self.under_way.len() == areas.len() {
                self.bring_back(&self.patience.for_an_answer())?;
            }
            let saved = Saved::of(&self.threads[index])?;
            match self.executor.done_signal(&self.threads[index], saved.mask, shared)? {
                Some(signal) => self.set_off(index, areas[index % areas.len()], saved, signal)?,
                None => {
                    self.bring_all_back()?;
                    let reply =
                        self.executor.run(&mut self.threads[index], &self.batches[index], self.patience)?;
                    self.replies.push(reply);
                }
            }
        }
        self.bring_all_back()
    }

    fn set_off(&mut self, index: usize, area: Addr, saved: Saved, signal: i32) -> Result<()> {
        let (executor, batch, thread) = (self.executor, &self.batches[index], &mut self.threads[index]);
        let started = (|| {
            let done = executor.start(area, thread, &saved, batch, Some(signal))?;
            fault::point(Point::KilledAsking)?;
            fault::strike(Point::TaskDiesAsked, executor.target.deputy);
            Ok((done, thread.set_off(0)?))
        })();
        match started {
            Ok((done, running)) => {
                self.under_way.push_back(UnderWay { index, area, saved, signal, done, running });
                Ok(())
            }
            Err(e) => {
                let patience = &self.patience.for_an_answer();
                executor.put_back_among_others(thread, &saved, patience, Err(e))
            }
        }
    }

    /// Waits for the thread that was set off first, and takes its answers.
    fn bring_back(&mut self, patience: &Patience) -> Result<()> {
        let Some(UnderWay { index, area, saved, signal, done, running }) = self.under_way.pop_front() else {
            return Ok(());
        };
        let (executor, batch, thread) = (self.executor, &self.batches[index], &mut self.threads[index]);
        let answered = (|| {
            let stop = thread.arrive(running, patience)?;
            executor.run_to_signal(thread, stop, signal, done, patience)?;
            executor.read(area, batch)
        })();
        self.replies.push(executor.put_back_among_others(thread, &saved, patience, answered)?);
        if self.under_way.is_empty() {
            executor.keep_stop_signal(thread)?;
        }
        Ok(())
    }

    fn bring_all_back(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            self.bring_back(&self.patience.for_an_answer())?;
        }
        Ok(())
    }

    /// Those that are under way when another one has failed: what that failed for need not be the matter with these. All together have the time of
    /// one, since the tree stands still meanwhile.
    fn drain(&mut self) {
        let patience = self.patience.for_an_answer();
        while !self.under_way.is_empty() {
            let _ = self.bring_back(&patience);
        }
    }
}
