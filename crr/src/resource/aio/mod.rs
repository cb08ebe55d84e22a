//! Contexts of asynchronous I/O (io_setup): rings in the memory of their tasks, in which the kernel puts events (fs/aio.c).
//!
//! All that is to be known lies in the ring, but for one thing: whether requests are on their way, which nobody is told. It is found out
//! by taking all places that are left ([`probe`]). A restore makes contexts anew, in the tasks (`shared::restorer::aio`).

mod affinity;
mod probe;
mod ring;

use super::Refuse;
use super::path::{UNMAP, file_type};
use crate::proc::Dir;
use crate::proc::smaps::Area;
use crate::ptrace::{Patience, Stopped};
use crate::refusal::{Refusal, Refusals};
use crate::remote::{Arg, Batch, Call, Executor};
use anyhow::{Context, Result};
use images::Pid;
use images::aio::{AioContext, EVENT_BYTES};
use images::memory::{Backing, Memory, Vma};
use nix::errno::Errno;
use probe::{Answer, Probe};
use ring::Ring;
use shared::plan::aio as plan;
use std::fs;

/// Whether there are contexts in an address space.
pub(crate) fn has_rings(vmas: &[Vma]) -> bool {
    vmas.iter().any(is_ring)
}

/// Whether an area shows a ring from its beginning on, and no file of that name.
pub(crate) fn is_shown(area: &Area<'_>, dir: &Dir) -> Result<bool> {
    if area.name != b"/[aio] (deleted)" || !area.shared || area.offset != 0 {
        return Ok(false);
    }
    let link = format!("map_files/{:x}-{:x}", area.start, area.end);
    let stat = dir.stat(&link).with_context(|| format!("stat {link}"))?;
    Ok(file_type(stat.st_mode).is_empty())
}

fn is_ring(vma: &Vma) -> bool {
    vma.backing == Backing::AioRing
}

/// The contexts of the address space that `thread` is in, for a guarded process: should it end meanwhile, the places that are taken
/// would not be given back.
pub(crate) fn dump(
    executor: &Executor,
    thread: &mut Stopped,
    deputy: Pid,
    vmas: &[Vma],
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Vec<AioContext>> {
    let rings: Vec<&Vma> = vmas.iter().filter(|vma| is_ring(vma)).collect();
    let mut contexts = Vec::with_capacity(rings.len());
    for some in rings.chunks(Batch::ROOM) {
        let alive = are_alive(executor, thread, some, patience)?;
        for (vma, _) in some.iter().zip(&alive).filter(|(_, alive)| !**alive) {
            let reason = "the ring of an AIO context that is not its own: of a task that it was forked from";
            refuse.with_hint(describe(vma), reason, UNMAP);
        }
        for (vma, _) in some.iter().zip(alive).filter(|(_, alive)| *alive) {
            let one = look(executor, thread, deputy, vma, refuse, patience);
            contexts.extend(one.with_context(|| describe(vma))?);
        }
    }
    Ok(contexts)
}

fn describe(vma: &Vma) -> String {
    format!("{}-{} (/[aio] (deleted))", vma.start, vma.end)
}

/// Which of these rings are those of a context of the task's own: of another one no request is taken, not even none.
fn are_alive(
    executor: &Executor,
    thread: &mut Stopped,
    rings: &[&Vma],
    patience: &Patience,
) -> Result<Vec<bool>> {
    if rings.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = executor.batch(thread)?;
    let nothing = Arg::Value(0);
    let ask = |vma: &&Vma| batch.call(Call::IoSubmit, &[Arg::Value(vma.start.0), nothing, nothing]);
    let asked: Vec<_> = rings.iter().map(ask).collect();
    let reply = executor.run(thread, &batch, patience)?;
    Ok(asked.into_iter().map(|handle| reply.result(handle).is_ok()).collect())
}

/// One context; nothing if it is refused.
fn look(
    executor: &Executor,
    thread: &mut Stopped,
    deputy: Pid,
    vma: &Vma,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Option<AioContext>> {
    const PROT_READ_WRITE: u32 = 3;
    if executor.is_slow() {
        let reason = "an AIO context whose requests cannot be counted: nothing can be mapped in its task";
        refuse.with_hint(
            describe(vma),
            reason,
            "let it map memory and code (RLIMIT_AS, munmap, PR_SET_MDWE)",
        );
        return Ok(None);
    }
    let ring = Ring::new(deputy, vma);
    let header = ring.header()?;
    if header.places != ring.places
        || header.tail >= ring.places
        || vma.prot & PROT_READ_WRITE != PROT_READ_WRITE
    {
        let reason = "the ring of an AIO context that is not mapped as a whole for reading and writing";
        refuse.with_hint(describe(vma), reason, END);
        return Ok(None);
    }
    let processors = processors()?;
    let capacity = u32::try_from(plan::capacity(vma.end.0 - vma.start.0, processors))?;
    let mut probe = match Probe::open(executor, thread, &ring, header, (capacity, processors), patience)? {
        Ok(probe) => probe,
        Err(Errno::EMFILE | Errno::ENFILE) => {
            let reason =
                "an AIO context whose requests cannot be counted: there is no room for one more open file";
            refuse.with_hint(describe(vma), reason, "raise its RLIMIT_NOFILE (prlimit)");
            return Ok(None);
        }
        Err(errno) => return Err(errno).context("eventfd2"),
    };
    let answer = probe.ask();
    probe.close()?;
    match answer? {
        Answer::Idle => {}
        Answer::OnTheirWay { count, is_sure } => {
            let plural = if count == 1 { "request of it is" } else { "requests of it are" };
            let unsure = if is_sure { "" } else { ", or a processor that it may not use keeps places" };
            let reason = format!("an AIO context: {count} {plural} on the way{unsure}");
            refuse.with_hint(describe(vma), reason, WAIT);
            return Ok(None);
        }
    }
    let header = ring.header()?;
    let events = ring.events(header.head, ring.unread(header))?.concat();
    Ok(Some(AioContext { start: vma.start, head: header.head, tail: header.tail, events }))
}

const END: &str = "have the program end it (io_destroy) before the dump";
const WAIT: &str =
    "have the program wait for them (io_getevents) before the dump, or give them more time (--timeout)";

/// Processors that there may ever be (num_possible_cpus() of the kernel).
pub(crate) fn processors() -> Result<u64> {
    const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(POSSIBLE).with_context(|| format!("read {POSSIBLE}"))?;
    count(text.trim()).with_context(|| format!("{POSSIBLE}: {text:?}"))
}

/// How many numbers a list like `0-3,8` has.
fn count(list: &str) -> Option<u64> {
    list.split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

/// Contexts that this machine does not make.
pub(crate) fn preflight(memory: &Memory, refusals: &mut Refusals) -> Result<()> {
    let contexts = || memory.spaces.iter().flat_map(|space| &space.aio);
    if contexts().next().is_none() {
        return Ok(());
    }
    let mut refuse = |object: String, reason: String, hint: Option<&str>| {
        refusals.push(Refusal { task: None, object, reason, hint: hint.map(str::to_owned) });
    };
    let limit = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/fs/{name}")).ok()?.trim().parse().ok()
    };
    let (Some(used), Some(most)) = (limit("aio-nr"), limit("aio-max-nr")) else {
        refuse("AIO contexts".into(), "this kernel has none (CONFIG_AIO)".into(), None);
        return Ok(());
    };
    let processors = processors()?;
    let mut wanted = 0;
    for space in &memory.spaces {
        for (context, vma) in space.aio.iter().zip(space.vmas.iter().filter(|vma| is_ring(vma))) {
            let bytes = vma.end.0 - vma.start.0;
            wanted += u64::from(plan::request(bytes));
            let object = format!("AIO context {}", context.start);
            let unread = context.events.len() as u64 / EVENT_BYTES;
            if !plan::is_possible(bytes, processors) {
                let reason = format!(
                    "has a ring of {bytes} bytes, and all are larger where there may be {processors} processors"
                );
                refuse(object, reason, None);
            } else if unread > plan::capacity(bytes, processors) {
                refuse(
                    object,
                    format!("has no room for {unread} events where there may be {processors} processors"),
                    None,
                );
            }
        }
    }
    if used.saturating_add(wanted) > most {
        let reason = format!(
            "{wanted} requests at a time are more than fs.aio-max-nr leaves: {used} of {most} are taken"
        );
        refuse("AIO contexts".into(), reason, Some("raise fs.aio-max-nr"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-1"), Some(2));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        assert_eq!(count(""), None);
        assert_eq!(count("3-1"), None);
    }
}
