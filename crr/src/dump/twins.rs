//! Snapshots: twins have the contents of private memory while the tree runs on (`--snapshot`).
//!
//! ```text
//! collect     as for any dump; which pages there are, too
//! clone       each task with much to copy makes a twin ([`crate::remote::Twin`]): memory is shared until somebody writes to it
//! write       what twins do not have: shared memory, deleted files, tasks with little to copy, and areas that fork does not copy as they are
//! let run
//! write       the rest, from the twins
//! end         the twins
//! write       the records: the dump is complete
//! take off    each maker waits for its own twins, for which it stops for a moment, with all who share its memory
//! ```
//!
//! A twin is a child of its maker, since nobody else's it can be. It is held where all that it can do is end, so it is gone with crr, whatever becomes of that.
//! Then its maker has a zombie that it does not know of until it ends or waits for children that tell nothing of their end; the next dump knows it ([`maker`]), and has its maker
//! wait for it. When a maker ends first, its twin is an orphan like any other.
//!
//! Nothing is on its way into the memory of a task when it is cloned, by pages that the kernel has pinned (which would then arrive in the twin's copy, or in none): a
//! thread in read(2) is stopped when it is done, and rings and devices are refused, as are contexts of asynchronous I/O with requests on their way.

use super::collect::ask;
use super::freeze::{Frozen, FrozenTask};
use super::outline::{self, Areas};
use super::pages::Contents;
use crate::proc::tasks::comm_of;
use crate::proc::{Dir, stat};
use crate::ptrace::{Error, Patience, Seized, Stopped, Waited};
use crate::refusal::Refusals;
use crate::remote::{Cache, Call, Executor, TWIN, Twin};
use crate::resource::{Refuse, dispatch, memory};
use crate::sys::vm as remote_memory;
use anyhow::{Context, Result};
use images::id::PAGE_SIZE;
use images::memory::{Backing, Run, Space, Vma, vm};
use images::seccomp::Seccomp;
use images::task::{Task, Tree};
use images::{Addr, Pid};
use nix::sys::signal::{Signal, kill};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

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

/// All twins of a tree. Dropped, when the tree runs, they are ended and taken off by their makers.
#[derive(Debug, Default)]
pub(super) struct Twins {
    twins: BTreeMap<Pid, Child>,
    /// The tasks of the tree, and whose memory each of them has.
    tree: BTreeMap<Pid, Pid>,
    /// How much there is to copy, pages.
    pages: u64,
}

/// A twin, until its parent has waited for it.
#[derive(Debug)]
struct Child {
    /// `/proc/PID`, by which it is never taken for another one of its number. `None` if that could not be opened.
    dir: Option<Dir>,
    state: State,
    /// Pages that it surely has.
    known: Vec<Addr>,
}

#[derive(Debug)]
enum State {
    OnItsWay,
    Held(Stopped),
    Ended,
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
    ) -> Result<()> {
        self.tree =
            tree.tasks.iter().map(|task| (task.pid, task.shares.memory.unwrap_or(task.pid))).collect();
        self.pages = spaces.iter().flat_map(|space| &space.runs).map(|run| run.pages).sum();
        let patience = &self.patience();
        let mut cloned = Vec::new();
        let mut failures = Vec::new();
        for ((task, record), space) in frozen.tasks.iter_mut().zip(&tree.tasks).zip(spaces) {
            let pid = task.pid;
            // At once, so that it is ended whatever happens.
            let note = |twin| drop(self.twins.insert(twin, Child::of(twin, space)));
            match clone(task, record, &space.vmas, patience, note).with_context(|| format!("task {pid}"))? {
                Some(Ok(twin)) => {
                    twin.start(patience).with_context(|| format!("the twin of task {pid}"))?;
                    cloned.push((pid, twin));
                }
                Some(Err(errno)) => failures.push((pid, errno)),
                None => {}
            }
        }
        for (maker, twin) in cloned {
            let pid = twin.pid();
            let Some(child) = self.twins.get_mut(&pid) else { continue };
            let of = || format!("the twin of task {maker}");
            child.state = State::Held(twin.hold(patience).with_context(of)?);
            match twin.outcome().with_context(of)? {
                Ok(()) => {
                    let dir = child.dir.as_ref().context("open its directory").with_context(of)?;
                    dies_first(dir);
                    contents.read_twin(maker, pid, File::from(dir.open("mem").context("open mem")?));
                }
                Err(errno) => {
                    // It may have the descriptors of its maker, whose peers would not see these closed.
                    child.let_end(pid);
                    child.wait_for_end(pid, patience).with_context(of)?;
                    failures.push((maker, errno));
                }
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

    /// How long to wait for a fork, which copies page tables, and for the end of a twin, which gives back what it has.
    fn patience(&self) -> Patience {
        const PAGES_OF_A_SECOND: u64 = (1 << 30) / PAGE_SIZE;
        Patience::new(Duration::from_secs(60 + self.pages / PAGES_OF_A_SECOND)).uninterrupted()
    }

    /// Looks whether all twins have kept their memory until now, when it is copied. Where memory is short the kernel takes that of what it ends
    /// (`__oom_reap_task_mm()`, mm/oom_kill.c): anonymous memory cannot be read from then on, but private memory of a file shows that file.
    ///
    /// # Errors
    /// If one has not.
    pub(super) fn check(&self) -> Result<()> {
        // Those that have ended could not do all that they were to, and nothing was copied from them.
        let held = self.twins.iter().filter(|(_, child)| matches!(child.state, State::Held(_)));
        for (&pid, child) in held {
            for &page in &child.known {
                let mut word = [0u8; 8];
                remote_memory::read_exact(pid, page, &mut word).with_context(|| {
                    format!("twin {pid} has lost its memory while it was copied: there was too little memory")
                })?;
            }
        }
        Ok(())
    }

    /// Ends all twins, when nobody needs their memory any more.
    pub(super) fn end(&mut self) {
        self.twins.iter_mut().for_each(|(&pid, twin)| twin.let_end(pid));
        let patience = self.patience();
        for (&pid, twin) in &mut self.twins {
            if let Err(e) = twin.wait_for_end(pid, &patience) {
                log::warn!("twin {pid}: wait for its end: {e}");
            }
        }
    }

    /// Has their parents wait for them. The last thing that a dump does: whatever was seized for it is let go by the kernel right after.
    pub(super) fn take_off(mut self) {
        self.all_off();
    }

    fn all_off(&mut self) {
        let mut parents: BTreeMap<Pid, Vec<(Pid, Dir)>> = BTreeMap::new();
        for (pid, twin) in std::mem::take(&mut self.twins) {
            let (Some(dir), State::Ended) = (twin.dir, twin.state) else { continue };
            // It stays a child of that one until it is waited for, if that one lives.
            let parent = parent(&dir).ok().filter(|parent| self.tree.contains_key(parent));
            if let Some(parent) = parent {
                parents.entry(parent).or_default().push((pid, dir));
            }
        }
        for (parent, twins) in parents {
            if let Err(e) = take_off(parent, &self.mates(parent), &twins) {
                log::warn!("task {parent} keeps a zombie that the dump has made: {e:#}");
            }
        }
    }

    /// Who has shared the memory of a task when the tree stood still.
    fn mates(&self, pid: Pid) -> Vec<Pid> {
        let whose = self.tree.get(&pid);
        let all = self.tree.iter().filter(|&(&mate, of)| mate != pid && Some(of) == whose);
        all.map(|(&mate, _)| mate).collect()
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        self.end();
        self.all_off();
    }
}

impl Child {
    /// One that was cloned just now.
    fn of(pid: Pid, space: &Space) -> Self {
        Self { dir: Dir::task(pid).ok(), state: State::OnItsWay, known: known(space) }
    }

    fn let_end(&mut self, pid: Pid) {
        if matches!(self.state, State::Ended) {
            return;
        }
        // One that is gone is as good.
        if let State::Held(held) = std::mem::replace(&mut self.state, State::OnItsWay) {
            // There it is no more to be killed (synchronize_group_exit(), kernel/exit.c).
            let _ = held.cont(0);
        } else if !self.dir.as_ref().is_some_and(Dir::has_ended) {
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Waits until it has ended, let go or killed. From here on it is for its parent to wait for.
    fn wait_for_end(&mut self, pid: Pid, patience: &Patience) -> Result<(), Error> {
        while !matches!(self.state, State::Ended) {
            match Seized::cloned(pid).wait(patience) {
                Ok(Waited::Ended(_)) | Err(Error::Gone(_)) => self.state = State::Ended,
                // A stop that was not told yet, or at its end.
                Ok(Waited::Stopped(stopped)) => drop(stopped.cont(0)),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Pages that a twin has for as long as nobody takes its memory: the first and the last that can be read of what is anonymous.
fn known(space: &Space) -> Vec<Addr> {
    const PROT_READ: u32 = 1;
    let is_known = |run: &&Run| {
        let area = space.vmas.get(space.vmas.partition_point(|area| area.end <= run.start));
        area.is_some_and(|area| {
            matches!(area.backing, Backing::Anonymous) && area.prot & PROT_READ != 0 && has_contents(area)
        })
    };
    let ends = [space.runs.iter().find(is_known), space.runs.iter().rev().find(is_known)];
    ends.into_iter().flatten().map(|run| run.start).collect()
}

/// Has a stopped task make a twin, which is `note`d as soon as it is there. `None` if it is to have none, or why it cannot.
fn clone(
    task: &mut FrozenTask,
    record: &Task,
    areas: &[Vma],
    patience: &Patience,
    note: impl FnOnce(Pid),
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
        if let Ok(Ok(twin)) = &cloned {
            note(twin.pid());
        }
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
    dir.read_record("stat", &mut buffer)?;
    Ok(stat::parse(&buffer)?.ppid)
}

/// The maker of a twin that a killed dump has left; `None` for any other zombie. It is known by its name or, if it was killed before it took that, by the one
/// that it has from the thread that made it: nobody else is likely to be a child that tells nobody of its end, has run no other program, and was killed.
/// One whose maker has ended is a zombie of the task that took it in, which was told of its end (reparent_leader(), kernel/exit.c), and is known by its name alone.
pub(super) fn maker<'a>(
    dir: &Dir,
    tasks: &'a mut [FrozenTask],
    buffer: &mut Vec<u8>,
) -> Result<Option<&'a mut FrozenTask>> {
    const TELLS_NOBODY: i32 = 0;
    /// PF_FORKNOEXEC of include/linux/sched.h.
    const RAN_NO_PROGRAM: u64 = 0x40;
    dir.read_record("stat", buffer)?;
    let stat = stat::parse(buffer)?;
    if stat.flags & RAN_NO_PROGRAM == 0 {
        return Ok(None);
    }
    let Some(maker) = tasks.iter_mut().find(|task| task.pid == stat.ppid) else { return Ok(None) };
    if stat.comm == TWIN.to_bytes() {
        return Ok(Some(maker));
    }
    if stat.exit_signal != TELLS_NOBODY {
        return Ok(None);
    }
    // A filter of seccomp may end it, too, which counts when nobody traces it.
    let is_killed = [libc::SIGKILL, libc::SIGSYS].contains(&(stat.exit_code & 0x7f).cast_signed());
    let name = String::from_utf8_lossy(&stat.comm);
    let is_twin = is_killed && maker.threads.iter().any(|thread| comm_of(thread.tid()) == name);
    if is_twin {
        log::warn!("task {}: its zombie {name} is taken for what a killed dump has left", maker.pid);
    }
    Ok(Some(maker).filter(|_| is_twin))
}

/// The arguments by which a task waits for a twin that has ended, and does not where there is none.
pub(super) fn wait_args(twin: Pid) -> [u64; 3] {
    const OPTIONS: i32 = libc::WNOHANG | libc::__WALL;
    [u64::from(twin.unsigned_abs()), 0, u64::from(OPTIONS.cast_unsigned())]
}

/// Has a running task wait for its twins that have ended. Nothing that has its memory runs meanwhile: what is below the stack of one thread may be the stack
/// of another, and code may be changed.
fn take_off(parent: Pid, mates: &[Pid], twins: &[(Pid, Dir)]) -> Result<()> {
    let Some(mut frozen) = Frozen::seize_space(parent, mates)? else { return Ok(()) };
    let Some(task) = frozen.tasks.first_mut() else { return Ok(()) };
    let dispatches = task.threads.iter().map(Stopped::dispatch).collect::<Result<Vec<_>, _>>()?;
    let affected = || dispatches.iter().enumerate().filter_map(|(index, own)| Some((index, own.as_ref()?)));
    let suspended = affected().try_for_each(|(index, _)| task.threads[index].set_dispatch(None));
    let waited = suspended.map_err(Into::into).and_then(|()| wait_for(task, twins));
    // Each gets its own back, whatever came of the others.
    let resumed =
        affected().map(|(index, own)| task.threads[index].set_dispatch(Some(own))).fold(Ok(()), Result::and);
    waited.and(resumed.map_err(Into::into))
}

fn wait_for(task: &mut FrozenTask, twins: &[(Pid, Dir)]) -> Result<()> {
    /// Somebody else may have stopped its cgroup, where it makes no call.
    const LONG_ENOUGH: Duration = Duration::from_secs(60);
    let patience = &Patience::new(LONG_ENOUGH).uninterrupted();
    let mut buffer = Vec::new();
    let mut refusals = Refusals::default();
    task.dir.read("maps", &mut buffer).context("read maps")?;
    let areas = Areas::of(task.deputy(), &buffer)?;
    let refuse = &mut Refuse::new(&mut refusals, task.pid, &task.name);
    let target = outline::target(task, &areas, &mut Cache::default(), refuse)?;
    refusals.finish("wait")?;
    let (target, caller) = target.context("it cannot be asked now")?;
    let executor = Executor::without_area(target);
    // It may have waited for such children itself, or for all, and have others of these numbers.
    for &(twin, _) in twins.iter().filter(|(_, dir)| parent(dir).is_ok_and(|parent| parent == task.pid)) {
        let [pid, status, options] = wait_args(twin);
        let args = [pid, status, options, 0, 0, 0];
        executor.call_at_gadget(&mut task.threads[caller], Call::Wait4, args, patience)?.context("wait4")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::{PathId, SharedId};

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

    #[test]
    fn what_twins_surely_have_is_anonymous() {
        let area = |start: u64, prot, backing| Vma {
            start: Addr(start),
            end: Addr(start + 0x4000),
            prot,
            flags: 0,
            backing,
        };
        let vmas = vec![
            area(0x1_0000, 3, Backing::PrivateFile(PathId(0), 0)),
            area(0x2_0000, 3, Backing::Anonymous),
            area(0x2_4000, 3, Backing::Anonymous),
            area(0x3_0000, 0, Backing::Anonymous),
        ];
        let run = |start| Run { start: Addr(start), pages: 1, first_page: 0 };
        let runs = vec![run(0x1_0000), run(0x2_1000), run(0x2_3000), run(0x2_4000), run(0x3_0000)];
        assert_eq!(known(&Space { vmas, runs, ..Space::default() }), [Addr(0x2_1000), Addr(0x2_4000)]);
        assert_eq!(known(&Space::default()), []);
    }
}
