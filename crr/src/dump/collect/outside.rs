//! What a stopped tree shows without being asked, and without a request of its tracer: read by all processors, before the tasks have their
//! turn one by one.

use crate::dump::freeze::FrozenTask;
use crate::parallel;
use crate::proc::smaps::Kept;
use crate::proc::timers::Shown;
use crate::proc::{Dir, has_ended, living_thread, status};
use crate::ptrace::Stopped;
use crate::resource::namespace::Namespaces;
use crate::resource::task::{self, Small};
use crate::resource::{limits, thread, timer};
use crate::sys::int80::LowBuffers;
use anyhow::{Context, Error, Result, bail};
use images::Pid;
use images::sharing::Shares;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One task.
pub(super) struct Outside {
    pub(super) namespaces: Namespaces,
    pub(super) small: Small,
    pub(super) rlimits: Vec<(u64, u64)>,
    pub(super) timers: Vec<Shown>,
    pub(super) auxv: Vec<u8>,
    /// Its areas, if they have been read.
    pub(super) areas: Option<Kept>,
    /// Of each thread, as in the following.
    pub(super) statuses: Vec<status::Status>,
    pub(super) looks: Vec<thread::Look>,
    /// Namespaces that a thread has for itself.
    pub(super) odd_namespaces: Vec<(Pid, &'static str)>,
}

/// Looks at all tasks of a tree, in their order.
pub(super) fn look(tasks: &[FrozenTask], shares: &[Shares], low: &LowBuffers) -> Result<Vec<Outside>> {
    let dirs: Vec<(Pid, &Dir)> = tasks.iter().map(|task| (task.pid, &task.dir)).collect();
    let mut all = parallel::map(&dirs, |&(pid, dir)| look_at_task(dir).map_err(in_task(pid)))?;
    let occupied = dirs.iter().zip(&mut all).zip(shares).filter(|(_, shares)| shares.memory.is_none());
    let (occupied, outsides): (Vec<_>, Vec<_>) = occupied.map(|(one, _)| one).unzip();
    if parallel::threads(occupied.len()) > 1 {
        let kept = AtomicUsize::new(0);
        let areas =
            parallel::map_large(&occupied, |(pid, dir)| read_areas(dir, &kept).map_err(in_task(*pid)))?;
        outsides.into_iter().zip(areas).for_each(|(outside, areas)| outside.areas = areas);
    }
    let tids = |(index, task): (usize, &FrozenTask)| {
        task.threads.iter().map(Stopped::tid).map(|tid| (index, tid)).collect::<Vec<_>>()
    };
    let threads: Vec<(usize, Pid)> = tasks.iter().enumerate().flat_map(tids).collect();
    let looks = parallel::map(&threads, |&(index, tid)| {
        let (pid, dir) = dirs[index];
        look_at_thread(dir, (tid, pid), &all[index].namespaces, low).map_err(in_task(pid))
    })?;
    for ((index, tid), (status, look, odd)) in threads.into_iter().zip(looks) {
        let task = &mut all[index];
        task.statuses.push(status);
        task.looks.push(look);
        task.odd_namespaces.extend(odd.into_iter().map(|name| (tid, name)));
    }
    Ok(all)
}

/// Names the task that could not be looked at, and whether that is since it died.
pub(super) fn in_task(pid: Pid) -> impl Fn(Error) -> Error {
    move |e| {
        let e = if has_ended(living_thread(pid)) { e.context("died") } else { e };
        e.context(format!("task {pid}"))
    }
}

fn look_at_task(dir: &Dir) -> Result<Outside> {
    let mut buffer = Vec::new();
    let namespaces = Namespaces::of(dir)?;
    let small = task::read_small(dir, &mut buffer)?;
    let rlimits = limits::dump_limits(dir, &mut buffer)?;
    let timers = timer::read(dir, &mut buffer)?;
    dir.read_record("auxv", &mut buffer).context("read auxv")?;
    Ok(Outside {
        namespaces,
        small,
        rlimits,
        timers,
        auxv: buffer.as_slice().to_vec(),
        areas: None,
        statuses: Vec::new(),
        looks: Vec::new(),
        odd_namespaces: Vec::new(),
    })
}

/// The areas of a task. Most of the time that it takes is the kernel's, which looks at each page. `kept` counts the bytes of all that are kept.
fn read_areas(dir: &Dir, kept: &AtomicUsize) -> Result<Option<Kept>> {
    /// Some eighty thousand areas. A task with which there would be more has them read when it has its turn.
    const ROOM: usize = 16 << 20;
    #[derive(Debug, thiserror::Error)]
    #[error("more areas than are kept")]
    struct TooMany;

    let mut areas = Kept::default();
    let mut counted = 0;
    let read = dir.areas(&mut Vec::new(), |area| {
        areas.push(&area);
        let added = areas.size() - counted;
        counted += added;
        if kept.fetch_add(added, Ordering::Relaxed) + added > ROOM {
            bail!(TooMany);
        }
        Ok(())
    });
    match read {
        Err(e) if e.is::<TooMany>() => {
            kept.fetch_sub(counted, Ordering::Relaxed);
            Ok(None)
        }
        read => read.map(|()| Some(areas)),
    }
}

/// Its status, what else it shows, and which namespaces it has for itself.
fn look_at_thread(
    dir: &Dir,
    (tid, pid): (Pid, Pid),
    of_task: &Namespaces,
    low: &LowBuffers,
) -> Result<(status::Status, thread::Look, Vec<&'static str>)> {
    let look = || -> Result<_> {
        let status = read_status(dir, tid, &mut Vec::new())?;
        // What a task shows is what its first thread has.
        let odd = if tid == pid { Vec::new() } else { of_task.differing(dir, tid)? };
        Ok((status, thread::Look::at(dir, tid, low)?, odd))
    };
    look().with_context(|| format!("thread {tid}"))
}

/// The status of a thread of the task with this directory in /proc.
pub(in crate::dump) fn read_status(dir: &Dir, tid: Pid, buffer: &mut Vec<u8>) -> Result<status::Status> {
    dir.read_record(&format!("task/{tid}/status"), buffer).context("read status")?;
    Ok(status::parse(buffer)?)
}
