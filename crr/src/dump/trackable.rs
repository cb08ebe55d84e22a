//! Which tasks of a stopped tree a round can track: those whose memory is written by way of page tables alone.
//!
//! A ring of io_uring, or a device, may write to memory of any task that it was given some of, whoever has it now, and may be gone by the dump, which would
//! refuse it. So a tree in which there is one is refused before anything is protected. Rings that only a thread has, by index, are asked for.

use super::freeze::FrozenTask;
use super::outline::{self, Areas};
use crate::ptrace::{Patience, Stopped};
use crate::refusal::Refusals;
use crate::remote::{Cache, Executor, NoRoom, Target};
use crate::resource::file::links::Links;
use crate::resource::ring::{self, AskRings};
use crate::resource::{Refuse, pins};
use crate::track::Way;
use anyhow::{Context, Result};
use images::Pid;
use std::collections::BTreeMap;

/// A task that can be tracked.
pub(super) struct Trackable {
    pub(super) areas: Areas,
    /// How to have it make calls, and by which of its threads, if that was found out.
    pub(super) caller: Option<(Target, usize)>,
}

/// Those tasks.
///
/// # Errors
/// [`crate::refusal::Refused`], and what failed.
pub(super) fn find(
    tasks: &mut [FrozenTask],
    links: &Links,
    way: Way,
    patience: &Patience,
) -> Result<BTreeMap<Pid, Trackable>> {
    let mut refusals = Refusals::default();
    let mut found = BTreeMap::new();
    let mut gadgets = Cache::default();
    let mut buffer = Vec::new();
    for task in tasks {
        let (pid, name) = (task.pid, task.name.clone());
        let refuse = &mut Refuse::new(&mut refusals, pid, &name);
        let of_task = || format!("task {pid}");
        for tid in task.threads.iter().map(Stopped::tid) {
            links.of(tid).iter().for_each(|link| pins::refuse_link(link, refuse));
        }
        let status = outline::read_status(task, &mut buffer).with_context(of_task)?;
        pins::refuse_pinned(&status, refuse);
        task.dir.read("maps", &mut buffer).context("read maps").with_context(of_task)?;
        let areas = Areas::of(task.deputy(), &buffer).with_context(of_task)?;
        if let Some(pins) = &areas.pins {
            log::warn!("task {pid} ({name}) cannot be tracked: it has {pins}");
            continue;
        }
        let caller = match way {
            Way::Protection => {
                let caller = outline::target_for_all(task, &areas, &mut gadgets).with_context(of_task)?;
                let Some(caller) = caller else { continue };
                match ask(task, &areas, caller.clone(), refuse, patience) {
                    Ok(()) => {}
                    Err(e) if e.is::<NoRoom>() => {
                        log::warn!("task {pid} ({name}) cannot be tracked now: {e:#}");
                        continue;
                    }
                    Err(e) => return Err(e).with_context(of_task),
                }
                Some(caller)
            }
            // What these bits miss the dump finds by the checksums of all pages.
            Way::SoftDirty => None,
        };
        found.insert(pid, Trackable { areas, caller });
    }
    refusals.finish("pre-dump")?;
    Ok(found)
}

/// Asks all threads of a task for rings by index.
fn ask(
    task: &mut FrozenTask,
    areas: &Areas,
    (target, caller): (Target, usize),
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<()> {
    let threads = &mut task.threads;
    let executor = Executor::open(target, &mut threads[caller], || areas.writable.clone(), patience)?;
    let asked = (|| -> Result<()> {
        let (mut batches, mut questions) = (Vec::new(), Vec::new());
        for thread in &*threads {
            let mut batch = executor.batch(thread)?;
            questions.push(AskRings::new(&mut batch));
            batches.push(batch);
        }
        let replies = executor.run_all(threads, &batches, patience)?;
        for (thread, (question, reply)) in threads.iter_mut().zip(questions.iter().zip(&replies)) {
            if question.may_be_there(reply) {
                ring::refuse(thread.tid(), &ring::find(&executor, thread, patience)?, refuse);
            }
        }
        Ok(())
    })();
    executor.close(&mut threads[caller], patience)?;
    asked
}
