//! Snapshots: twins have the contents of private memory while the tree runs on (`--snapshot`).
//!
//! ```text
//! collect     as for any dump; which pages there are, too
//! clone       each task with much to copy makes a twin ([`crate::remote::Twin`]): memory is shared until somebody writes to it
//! write       what twins do not have: shared memory, deleted files, tasks with little to copy, and areas that fork does not copy as they are
//! let run
//! write       the rest, from the twins
//! end         the twins; each maker waits for its own, for which one of its threads stops for a moment
//! ```
//!
//! A twin is a child of its maker, since nobody else's it can be. It is held where all that it can do is end, so it is gone with crr, whatever becomes of that.
//! Then its maker has a zombie that it does not know of until it ends or waits for children that tell nothing of their end; the next dump knows it by its name, and has its maker
//! wait for it. When a maker ends first, its twin is an orphan like any other.
//!
//! Nothing is on its way into the memory of a task when it is cloned, by pages that the kernel has pinned (which would then arrive in the twin's copy, or in none): a
//! thread in read(2) is stopped when it is done, and rings and devices are refused, as are contexts of asynchronous I/O with requests on their way.

use super::collect::ask;
use super::freeze::{Frozen, FrozenTask};
use super::outline::{self, Areas};
use super::pages::Contents;
use crate::proc::{Dir, stat};
use crate::ptrace::{Patience, Seized, Stopped, Waited};
use crate::refusal::Refusals;
use crate::remote::{Cache, Call, Executor, Twin};
use crate::resource::{Refuse, dispatch, memory};
use anyhow::{Context, Result};
use images::Pid;
use images::memory::{Backing, Space, Vma, vm};
use images::seccomp::Seccomp;
use images::task::{Task, Tree};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::ops::Range;

/// A task with less private memory is copied faster than cloned.
pub(super) const WORTH_A_TWIN_KIB: u64 = 1024;

/// Whether a twin has the contents of a private area of its maker. Fork leaves areas out (MADV_DONTFORK) or empty (MADV_WIPEONFORK, droppable memory), and of
/// huge pages it can be left without when the pool is empty (hugetlb_wp(), mm/hugetlb.c).
pub(super) fn has_contents(area: &Vma) -> bool {
    const OTHERWISE: u32 = vm::DONT_FORK | vm::WIPE_ON_FORK | vm::DROPPABLE;
    area.flags & OTHERWISE == 0 && area.huge().is_none()
}

/// What a twin does without: memory that is shared with its maker, by which an object could be seen to be in use, and huge pages, which its maker would have to
/// copy before it could write to them. Areas that are neighbours are one.
fn shed(areas: &[Vma]) -> Vec<Range<u64>> {
    let mut shed: Vec<Range<u64>> = Vec::new();
    for area in areas.iter().filter(|area| is_shed(area)) {
        match shed.last_mut() {
            Some(last) if last.end == area.start.0 => last.end = area.end.0,
            _ => shed.push(area.start.0..area.end.0),
        }
    }
    shed
}

fn is_shed(area: &Vma) -> bool {
    match area.backing {
        Backing::SharedFile(..) | Backing::Shared(..) | Backing::AioRing => area.flags & vm::DONT_FORK == 0,
        Backing::Anonymous | Backing::PrivateFile(..) | Backing::HugePages(_) => {
            area.huge().is_some() && area.flags & vm::DONT_FORK == 0
        }
        Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock => false,
    }
}

/// All twins of a tree, by their pids; those that are held. Dropped, when the tree runs, they are ended and taken off by their makers.
#[derive(Debug, Default)]
pub(super) struct Twins {
    twins: BTreeMap<Pid, Option<Stopped>>,
    /// The tasks of the tree.
    tree: HashSet<Pid>,
}

impl Twins {
    /// Has each task of a stopped tree that is worth it make a twin, and contents be read from these. Where that cannot be, contents are copied while the tree
    /// stands still, which is said.
    ///
    /// # Errors
    /// If a task dies.
    pub(super) fn make(
        &mut self,
        frozen: &mut Frozen,
        tree: &Tree,
        spaces: &[Space],
        contents: &mut Contents,
        patience: &Patience,
    ) -> Result<()> {
        self.tree = frozen.tasks.iter().map(|task| task.pid).collect();
        let mut cloned = Vec::new();
        let mut failures = Vec::new();
        for ((task, record), space) in frozen.tasks.iter_mut().zip(&tree.tasks).zip(spaces) {
            let pid = task.pid;
            match clone(task, record, &space.vmas, patience).with_context(|| format!("task {pid}"))? {
                Some(Ok(twin)) => {
                    self.twins.insert(twin.pid(), None);
                    twin.start(patience).with_context(|| format!("the twin of task {pid}"))?;
                    cloned.push((pid, twin));
                }
                Some(Err(errno)) => failures.push((pid, errno)),
                None => {}
            }
        }
        for (maker, twin) in cloned {
            let pid = twin.pid();
            let held = twin.hold(patience).with_context(|| format!("the twin of task {maker}"))?;
            self.twins.insert(pid, Some(held));
            match twin.outcome().with_context(|| format!("the twin of task {maker}"))? {
                Ok(()) => {
                    let dir = Dir::task(pid)?;
                    dies_first(&dir);
                    contents.read_twin(maker, pid, File::from(dir.open("mem").context("open mem")?));
                }
                Err(errno) => failures.push((maker, errno)),
            }
        }
        if let Some((pid, errno)) = failures.first() {
            log::warn!(
                "{} of the tasks cannot be cloned, and are copied while the tree stands still: task {pid}: {}",
                failures.len(),
                errno.desc()
            );
        }
        Ok(())
    }

    /// Ends all twins, when the tree runs.
    ///
    /// # Errors
    /// If one does not end.
    pub(super) fn end(mut self) -> Result<()> {
        self.end_all()
    }

    fn end_all(&mut self) -> Result<()> {
        let mut parents: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
        for (&pid, held) in &mut self.twins {
            // It stays a child of that one until it is waited for, if that one lives.
            let parent = Dir::task(pid).ok().and_then(|dir| parent(&dir).ok());
            if let Some(parent) = parent.filter(|parent| self.tree.contains(parent)) {
                parents.entry(parent).or_default().push(pid);
            }
            // At its end it is no more to be killed (synchronize_group_exit(), kernel/exit.c). One that is gone is as good.
            let _ = match held.take() {
                Some(held) => held.cont(0).is_ok(),
                None => kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).is_ok(),
            };
        }
        for pid in std::mem::take(&mut self.twins).into_keys() {
            wait_for_end(pid).with_context(|| format!("twin {pid}: wait for its end"))?;
        }
        for (parent, twins) in parents {
            if let Err(e) = take_off(parent, &twins) {
                log::warn!("task {parent} keeps a zombie that the dump has made: {e:#}");
            }
        }
        Ok(())
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        if let Err(e) = self.end_all() {
            log::warn!("{e:#}");
        }
    }
}

/// Waits until a twin that was let go, or killed, has ended. From here on it is for its parent to wait for.
fn wait_for_end(pid: Pid) -> Result<()> {
    loop {
        match Seized::cloned(pid).wait(&Patience::endless())? {
            Waited::Ended(_) => return Ok(()),
            // A stop that was not told yet, or at its end.
            Waited::Stopped(stopped) => drop(stopped.cont(0)),
        }
    }
}

/// Has a stopped task make a twin. `None` if it is to have none, or why it cannot.
fn clone(
    task: &mut FrozenTask,
    record: &Task,
    areas: &[Vma],
    patience: &Patience,
) -> Result<Option<nix::Result<Twin>>> {
    // The leader that has ended is in the record, and no thread that could be asked.
    let records = &record.threads[usize::from(task.leader_ended())..];
    let Some(target) = task.target.take() else { return Ok(None) };
    let caller = ask::caller(&task.threads, record.abi)?;
    let unfiltered = records.get(caller).is_some_and(|thread| thread.seccomp != Seccomp::Off);
    dispatch::suspend(&task.threads, records, true)?;
    let cloned = (|| {
        let memory = || memory::private_writable(areas);
        let thread = &mut task.threads[caller];
        let executor = Executor::open(target, thread, memory, patience)?;
        let cloned = executor.clone_twin(thread, &shed(areas), unfiltered, patience);
        executor.close(thread, patience)?;
        cloned
    })();
    dispatch::resume(&task.threads, records)?;
    cloned.map(Some)
}

/// If memory gets short since the tree writes to what a twin has, it is the twin that goes: then the dump fails, and the tree is as it was.
fn dies_first(dir: &Dir) {
    if let Ok(file) = dir.open_for_writing("oom_score_adj") {
        // As good as it gets: without it, it is as any other process of its size.
        let _ = File::from(file).write_all(b"1000");
    }
}

/// Who a task is a child of.
fn parent(dir: &Dir) -> Result<Pid> {
    let mut buffer = Vec::new();
    dir.read("stat", &mut buffer)?;
    Ok(stat::parse(&buffer)?.ppid)
}

/// The maker of a twin that a killed dump has left; `None` for any other zombie that happens to be called so.
pub(super) fn maker(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Option<Pid>> {
    const TELLS_NOBODY: i32 = 0;
    dir.read("stat", buffer)?;
    let stat = stat::parse(buffer)?;
    Ok((stat.exit_signal == TELLS_NOBODY).then_some(stat.ppid))
}

/// The arguments by which a task waits for a twin that has ended, and does not where there is none.
pub(super) fn wait_args(twin: Pid) -> [u64; 3] {
    const OPTIONS: i32 = libc::WNOHANG | libc::__WALL;
    [u64::from(twin.unsigned_abs()), 0, u64::from(OPTIONS.cast_unsigned())]
}

/// Has a running task wait for its twins that have ended.
fn take_off(parent: Pid, twins: &[Pid]) -> Result<()> {
    let Some(mut frozen) = Frozen::seize_one(parent)? else { return Ok(()) };
    let Some(task) = frozen.tasks.first_mut() else { return Ok(()) };
    let Some(dispatch) = task.threads.first().map(Stopped::dispatch).transpose()? else { return Ok(()) };
    if dispatch.is_some() {
        task.threads[0].set_dispatch(None)?;
    }
    let waited = wait_for(task, twins);
    if dispatch.is_some() {
        task.threads[0].set_dispatch(dispatch.as_ref())?;
    }
    waited
}

fn wait_for(task: &mut FrozenTask, twins: &[Pid]) -> Result<()> {
    let mut buffer = Vec::new();
    let mut refusals = Refusals::default();
    task.dir.read("maps", &mut buffer).context("read maps")?;
    let areas = Areas::of(task.deputy(), &buffer)?;
    let refuse = &mut Refuse::new(&mut refusals, task.pid, &task.name);
    let target = outline::target(task, &areas, &mut Cache::default(), refuse)?;
    refusals.finish("wait")?;
    let (target, caller) = target.context("it cannot be asked now")?;
    let executor = Executor::without_area(target);
    for &twin in twins {
        let [pid, status, options] = wait_args(twin);
        let args = [pid, status, options, 0, 0, 0];
        let waited =
            executor.call_at_gadget(&mut task.threads[caller], Call::Wait4, args, &Patience::endless())?;
        match waited {
            // It may have waited for such children itself, or for all.
            Ok(_) | Err(Errno::ECHILD) => {}
            Err(errno) => return Err(errno).context("wait4"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::{Addr, PathId, SharedId};

    #[test]
    fn what_twins_do_without_is_joined() {
        let area = |start: u64, backing, flags| Vma {
            start: Addr(start * 0x1000),
            end: Addr((start + 1) * 0x1000),
            prot: 3,
            flags,
            backing,
        };
        let areas = [
            area(1, Backing::Anonymous, 0),
            area(2, Backing::Shared(SharedId(0), 0), 0),
            area(3, Backing::SharedFile(PathId(0), 0), 0),
            area(4, Backing::PrivateFile(PathId(0), 0), 0),
            area(5, Backing::HugePages(0), vm::HUGE_2_MIB),
            area(6, Backing::AioRing, vm::DONT_FORK),
            area(7, Backing::Vvar, 0),
        ];
        assert_eq!(shed(&areas), [0x2000..0x4000, 0x5000..0x6000]);
        let had: Vec<bool> = areas.iter().map(has_contents).collect();
        assert_eq!(had, [true, true, true, true, false, false, true]);
        assert!(!has_contents(&area(1, Backing::Anonymous, vm::WIPE_ON_FORK)));
    }
}
