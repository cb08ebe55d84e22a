//! Stopping a whole tree, and letting it go again.
//!
//! Tasks are stopped parents first, each with all its threads, until neither a new thread nor a new child
//! turns up: a stopped parent makes no more of them. So the child that a thread waits for in vfork(2) runs until that one has
//! stopped. What cannot be stopped is refused by name, and the walk goes on.
//!
//! The leader of a task can end before its other threads. It stays there as a zombie that nobody can stop or ask, and what the
//! task has is seen by one of the others.

use super::{After, twins, unstoppable};
use crate::fault::{self, Point};
use crate::keeper::Keeper;
use crate::parallel;
use crate::proc::tasks::comm_of;
use crate::proc::{Dir, decimal, living_thread, stat, status};
use crate::ptrace::{self, Patience, Seized, Stop, Stopped, Waited};
use crate::refusal::Refusals;
use crate::remote::Target;
use crate::resource::file::links::Links;
use crate::resource::wait::{Looks, Waits};
use crate::resource::{Refuse, seccomp};
use crate::sys::kcmp::{Kind, kcmp};
use anyhow::{Context, Result, bail};
use images::Pid;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use std::cmp::Ordering;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

/// A task with all its threads stopped.
#[derive(Debug)]
pub(crate) struct FrozenTask {
    /// Its pid.
    pub(crate) pid: Pid,
    /// Its name, for messages.
    pub(crate) name: String,
    /// `/proc/PID`, or that of another thread whose leader has ended.
    pub(crate) dir: Dir,
    /// All living threads, the leader first unless it has ended.
    pub(crate) threads: Vec<Stopped>,
    /// The signal that has stopped the task (state T).
    pub(crate) stopped_by: Option<i32>,
    /// Their calls that the kernel continues by restart_syscall(2).
    pub(crate) waits: Waits,
    /// How it can be asked once more, if it is to be.
    pub(crate) target: Option<Target>,
    /// Twins that killed dumps have left for it to wait for ([`super::twins`]).
    pub(crate) dead_twins: Vec<Pid>,
    /// Its private areas with pages that are others' too, by their addresses, rising.
    pub(crate) common: Vec<u64>,
}

impl FrozenTask {
    /// One of which nothing is stopped yet.
    fn of(pid: Pid, name: String, dir: Dir) -> Self {
        Self {
            pid,
            name,
            dir,
            threads: Vec::new(),
            stopped_by: None,
            waits: Waits::default(),
            target: None,
            dead_twins: Vec::new(),
            common: Vec::new(),
        }
    }

    /// A living thread, by which what belongs to the task as a whole is found: the leader unless that has ended.
    pub(crate) fn deputy(&self) -> Pid {
        self.threads.first().map_or(self.pid, Stopped::tid)
    }

    /// The children of its threads. One that has ended has none: they are given to another (find_new_reaper(), kernel/exit.c).
    fn children(&self) -> Result<Vec<Pid>> {
        let tids: Vec<Pid> = self.threads.iter().map(Stopped::tid).collect();
        let dir = &self.dir;
        let of_threads = parallel::map(&tids, |&tid| children_of_thread(dir, tid, &mut Vec::new()));
        let of_threads = of_threads.with_context(|| format!("task {}: list children", self.pid))?;
        Ok(of_threads.into_iter().flatten().collect())
    }

    /// Whether the leader has ended while other threads go on.
    pub(crate) fn leader_ended(&self) -> bool {
        self.deputy() != self.pid
    }
}

/// A task that has ended, and whose parent, being stopped, does not wait for it now.
#[derive(Debug)]
pub(crate) struct DeadTask {
    /// Its pid.
    pub(crate) pid: Pid,
    /// Its name, for messages.
    pub(crate) name: String,
    /// `/proc/PID`.
    pub(crate) dir: Dir,
}

/// A stopped tree. Dropped, it runs on as before.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Parents before their children.
    pub(crate) tasks: Vec<FrozenTask>,
    /// Zombies.
    pub(crate) dead: Vec<DeadTask>,
    /// Tasks of the tree that are refused, and were not stopped. What else is in the way is still to be told, but not how those
    /// that were stopped stand to these.
    pub(crate) left_out: Vec<Pid>,
    /// A task was found at its end, so others may have got another parent.
    orphaned: bool,
    /// A task has seccomp.
    pub(crate) confined: bool,
    /// This process may ask tasks with seccomp ([`super::guard`]).
    pub(crate) guarded: bool,
    /// A thread did not stop in time, and is refused.
    pub(crate) late: bool,
    /// It can be let run for signal handlers to end.
    pub(crate) lets_handlers_end: bool,
    /// What their descriptors lead to, when that has been read.
    pub(crate) links: Links,
    since: Instant,
    /// When it was let run.
    until: Option<Instant>,
}

impl Frozen {
    /// Nothing yet.
    fn begin() -> Self {
        Self {
            tasks: Vec::new(),
            dead: Vec::new(),
            left_out: Vec::new(),
            orphaned: false,
            confined: false,
            guarded: false,
            late: false,
            lets_handlers_end: false,
            links: Links::default(),
            since: Instant::now(),
            until: None,
        }
    }

    /// Stops the tree under `root`.
    pub(crate) fn seize(root: Pid, patience: &Patience, refusals: &mut Refusals) -> Result<Self> {
        let looks = Looks::take(&list(root)?);
        let mut frozen = Self::begin();
        let mut queue = VecDeque::from([root]);
        let mut seen = HashSet::from([root]);
        let mut buffer = Vec::new();
        loop {
            let Some(pid) = queue.pop_front() else {
                if !std::mem::take(&mut frozen.orphaned) {
                    break;
                }
                for task in &frozen.tasks {
                    let children = task.children()?;
                    queue.extend(children.into_iter().filter(|&child| seen.insert(child)));
                }
                continue;
            };
            let dir = match Dir::task(pid) {
                Ok(dir) => dir,
                Err(e) if pid == root => return Err(e).with_context(|| format!("no task {pid}")),
                Err(_gone) => {
                    frozen.orphaned = true;
                    continue;
                }
            };
            let patience = if frozen.late { Patience::new(GRACE) } else { *patience };
            match frozen.seize_task(pid, &dir, &looks, &patience, refusals) {
                Ok(()) => {}
                Err(e) if pid != root && is_gone(&e) => {
                    frozen.tasks.pop_if(|task| task.pid == pid);
                    frozen.orphaned = true;
                    if !frozen.late {
                        // It becomes a zombie, which nobody waits for: it is among its parent's children still.
                        patience.check(pid)?;
                        seen.remove(&pid);
                    }
                    continue;
                }
                Err(e) => return Err(e.context(format!("task {pid}: stop"))),
            }
            let children = match frozen.tasks.last().filter(|task| task.pid == pid) {
                Some(task) => task.children()?,
                None => {
                    children(pid, &dir, &mut buffer).with_context(|| format!("task {pid}: list children"))?
                }
            };
            queue.extend(children.into_iter().filter(|&child| seen.insert(child)));
            if let Some(task) = frozen.tasks.last_mut().filter(|task| task.pid == pid && !task.leader_ended())
            {
                task.dir = dir;
            }
        }
        Ok(frozen)
    }

    /// Stops a task of the tree once more, and those that share its memory, each with all its threads: nothing runs that has this memory. `mates` shared it
    /// when the tree stood still; who was cloned to share it since is found among their children. `None` if the task has ended.
    ///
    /// # Errors
    /// [`crate::refusal::Refused`] if one of them cannot be stopped, or does not stop at once.
    pub(super) fn seize_space(pid: Pid, mates: &[Pid]) -> Result<Option<Self>> {
        let mut frozen = Self::begin();
        let mut refusals = Refusals::default();
        let all: Vec<Pid> = std::iter::once(pid).chain(mates.iter().copied()).collect();
        let looks = Looks::take(&all);
        let patience = Patience::new(AT_ONCE).uninterrupted();
        let mut seen: HashSet<Pid> = all.iter().copied().collect();
        let mut queue = VecDeque::from(all);
        let mut buffer = Vec::new();
        while let Some(next) = queue.pop_front() {
            // A child may have its own, and a mate may have run another program since.
            let is_same = |first: &FrozenTask| {
                kcmp(Kind::Vm, (first.deputy(), 0), (living_thread(next), 0)) == Ok(Ordering::Equal)
            };
            if !frozen.tasks.first().is_none_or(is_same) {
                continue;
            }
            let dir = match Dir::task(next) {
                Ok(dir) => dir,
                Err(_gone) if next != pid => continue,
                Err(_gone) => return Ok(None),
            };
            match frozen.seize_task(next, &dir, &looks, &patience, &mut refusals) {
                Err(e) if is_gone(&e) => drop(frozen.tasks.pop_if(|task| task.pid == next)),
                seized => seized.with_context(|| format!("task {next}: stop"))?,
            }
            if !frozen.left_out.is_empty() {
                break;
            }
            if frozen.tasks.is_empty() {
                return Ok(None);
            }
            // A stopped task makes no more of them.
            let children = children(next, &dir, &mut buffer).unwrap_or_default();
            queue.extend(children.into_iter().filter(|&child| seen.insert(child)));
        }
        refusals.finish("stop")?;
        Ok(Some(frozen))
    }

    /// Tells the twins that killed dumps have left from the tree's own zombies: those are for their makers to take off, and no part of the tree.
    pub(super) fn set_twins_apart(&mut self) -> Result<()> {
        let mut buffer = Vec::new();
        let mut own = Vec::with_capacity(self.dead.len());
        for dead in self.dead.drain(..) {
            match twins::maker(&dead.dir, &mut self.tasks, &mut buffer)? {
                Some(maker) => maker.dead_twins.push(dead.pid),
                None => own.push(dead),
            }
        }
        self.dead = own;
        Ok(())
    }

    /// All pids of the tree that are known, and of what is left of the twins of its tasks.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        let (tasks, dead) = (self.tasks.iter().map(|task| task.pid), self.dead.iter().map(|task| task.pid));
        let twins = self.tasks.iter().flat_map(|task| &task.dead_twins).copied();
        tasks.chain(dead).chain(twins).chain(self.left_out.iter().copied())
    }

    /// Stops one task; one that cannot be is noted as refused and left alone.
    fn seize_task(
        &mut self,
        pid: Pid,
        dir: &Dir,
        looks: &Looks,
        patience: &Patience,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let name = match look_at(pid, dir)? {
            Found::Living { name, confined } => {
                self.confined |= confined;
                name
            }
            other => return self.pass_over(pid, other, refusals),
        };
        self.tasks.push(FrozenTask::of(pid, name, Dir::task(pid)?));
        let Some(task) = self.tasks.last_mut() else { bail!("no task") };
        fault::strike(Point::TaskDiesUnseized, pid);
        let mut tried = HashSet::new();
        loop {
            let mut new = dir.threads(pid)?;
            new.retain(|tid| tried.insert(*tid));
            let is_worker = |&tid: &Pid| Ok(tid != pid && unstoppable::is_worker(dir, tid));
            let mut are_workers = parallel::map(&new, is_worker)?.into_iter();
            new.retain(|tid| {
                let is_worker = are_workers.next() == Some(true);
                if is_worker {
                    let refuse = &mut Refuse::new(refusals, pid, &task.name);
                    refuse.with_hint(format!("thread {tid}"), unstoppable::WORKER, unstoppable::NO_WORKER);
                }
                !is_worker
            });
            if new.is_empty() {
                break;
            }
            match stop_threads(&mut task.threads, &new, patience) {
                Err(e) if is_forbidden(&e) => {
                    refusals.task((pid, &task.name), "task", NOT_TRACED, Some(TO_TRACE));
                    self.left_out.push(pid);
                    return self.let_go();
                }
                stopped => {
                    let waiting = stopped?;
                    if !waiting.is_empty() {
                        let refuse = &mut Refuse::new(refusals, pid, &task.name);
                        let first = !std::mem::replace(&mut self.late, true);
                        waiting.into_iter().for_each(|tid| unstoppable::refuse(dir, tid, first, refuse));
                        self.left_out.push(pid);
                        return self.let_go();
                    }
                }
            }
            // Those that have stopped stay, so if there are as many, they are all there are.
            if dir.thread_count()? == task.threads.len() {
                break;
            }
        }
        // The directory lists the leader first as long as tids have not wrapped; threads of a wrapped range follow it.
        task.threads.sort_by_key(|thread| (thread.tid() != pid, thread.tid()));
        if task.leader_ended() {
            task.dir = Dir::task(task.deputy())?;
        }
        for thread in &task.threads {
            let restarted = thread.restart_interrupted(|| dispositions(&task.dir));
            match restarted {
                Err(e) if is_gone(&e) => {}
                restarted => restarted?,
            }
        }
        if task.threads.is_empty() {
            // It ended between the look and the stop.
            self.let_go()?;
            let found = look_at(pid, dir)?;
            return self.pass_over(pid, found, refusals);
        }
        fault::point(Point::KilledFreezing)?;
        task.waits = Waits::of(task.deputy(), &task.dir, &task.threads, looks);
        task.stopped_by = task.threads.iter().find_map(|thread| match thread.stop() {
            Stop::Group(signal) => Some(signal),
            _ => None,
        });
        Ok(())
    }

    /// Lets the task go that was stopped last.
    fn let_go(&mut self) -> Result<()> {
        for thread in self.tasks.pop().into_iter().flat_map(|task| task.threads) {
            thread.detach(0)?;
        }
        Ok(())
    }

    /// Notes a task that is not to be stopped.
    fn pass_over(&mut self, pid: Pid, found: Found, refusals: &mut Refusals) -> Result<()> {
        match found {
            Found::Living { .. } => bail!(ptrace::Error::Gone(pid)),
            Found::Zombie(name) if self.tasks.is_empty() => {
                let hint = Some("name a task that lives");
                refusals.task((pid, &name), "task", "the root of the tree has ended", hint);
            }
            Found::Zombie(name) => {
                self.orphaned = true;
                self.dead.push(DeadTask { pid, name, dir: Dir::task(pid)? });
            }
            Found::Blocked { name, reason, hint } => {
                self.left_out.push(pid);
                refusals.task((pid, &name), "task", reason, hint.as_deref());
            }
        }
        Ok(())
    }

    /// The task that was stopped last.
    pub(crate) fn last(&self) -> Pid {
        self.tasks.last().map_or(0, |task| task.pid)
    }

    /// How long the tree has been stopped, or was.
    pub(crate) fn elapsed(&self) -> Duration {
        self.until.unwrap_or_else(Instant::now) - self.since
    }

    /// Ends the dump for the tree, and tells how long it was stopped.
    pub(crate) fn finish(mut self, after: After, patience: &Patience) -> Result<Duration> {
        match after {
            After::Run => self.release(),
            After::Stop => {
                for task in self.tasks.iter().filter(|task| task.stopped_by.is_none()) {
                    send(task, Signal::SIGSTOP)?;
                }
                self.release();
            }
            After::Kill => self.kill(patience)?,
        }
        Ok(self.elapsed())
    }

    /// From here on the tasks die with this process.
    ///
    /// # Errors
    /// If a thread is gone.
    pub(crate) fn doom(&self) -> Result<()> {
        for thread in self.tasks.iter().flat_map(|task| &task.threads) {
            thread.die_with_tracer(false)?;
        }
        Ok(())
    }

    /// Lets the tree run on. What was found of it is still to be had.
    pub(super) fn release(&mut self) {
        for task in self.tasks.drain(..) {
            for thread in task.threads {
                // Without an answer it goes on as after any stop.
                let anew = self.confined && seccomp::start_over_if_forbidden(&thread).unwrap_or(false);
                if !anew {
                    task.waits.note(&task.dir, &thread);
                }
                // Gone is the only failure there is, and then nothing is left to release.
                let _ = thread.detach(0);
            }
        }
        self.until.get_or_insert_with(Instant::now);
    }

    /// Kills all tasks and waits until they are gone from our hands, so that their pids and files are free as
    /// soon as their parents have seen it.
    fn kill(&mut self, patience: &Patience) -> Result<()> {
        // Half a tree is no tree: if this process is killed meanwhile, another one goes on with it.
        let pids: Vec<Pid> = self.tasks.iter().map(|task| task.pid).collect();
        let keeper = if pids.len() > 1 { Keeper::of_killing(pids).ok() } else { None };
        for task in &self.tasks {
            send(task, Signal::SIGKILL)?;
            fault::point(Point::KilledKilling)?;
        }
        if let Some(keeper) = keeper {
            keeper.leave();
        }
        // Children first: their parents, being dead, are reaped by others as soon as we have waited for them. The leader of a
        // task can be waited for only after its other threads.
        while let Some(mut task) = self.tasks.pop() {
            while let Some(thread) = task.threads.pop() {
                let mut seized = thread.doomed();
                loop {
                    let tid = seized.tid();
                    match seized.wait(patience) {
                        Ok(Waited::Ended(_)) | Err(ptrace::Error::Gone(_)) => break,
                        Ok(Waited::Stopped(again)) => seized = again.doomed(),
                        Err(e) => return Err(e).with_context(|| format!("thread {tid}: wait for its end")),
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release();
    }
}

fn send(task: &FrozenTask, signal: Signal) -> Result<()> {
    match kill(nix::unistd::Pid::from_raw(task.pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("task {}: send {signal}", task.pid)),
    }
}

/// What a look at a task tells of it before it is seized: its name, and what rules that out.
enum Found {
    Living { name: String, confined: bool },
    Zombie(String),
    Blocked { name: String, reason: String, hint: Option<String> },
}

fn look_at(pid: Pid, dir: &Dir) -> Result<Found> {
    let mut buffer = Vec::new();
    dir.read_record("stat", &mut buffer)?;
    let stat = stat::parse(&buffer)?;
    let name = String::from_utf8_lossy(&stat.comm).into_owned();
    let refuse =
        |reason: String, hint: Option<String>| Ok(Found::Blocked { name: name.clone(), reason, hint });
    if stat.flags & stat::PF_KTHREAD != 0 {
        return refuse("a kernel thread".into(), None);
    }
    if pid == nix::unistd::getpid().as_raw() {
        let hint = "run crr from outside of the tree, or give --tree a task that is not crr's ancestor";
        return refuse("this is crr itself".into(), Some(hint.into()));
    }
    let status = match stat.state {
        b'Z' => match status_of_another(pid, dir, &mut buffer)? {
            Some(status) => status,
            None => return Ok(Found::Zombie(name)),
        },
        // On its way out of the table.
        b'X' => bail!(ptrace::Error::Gone(pid)),
        _ => {
            dir.read_record("status", &mut buffer)?;
            status::parse(&buffer)?
        }
    };
    if status.tgid != pid {
        let hint = format!("use --tree {}", status.tgid);
        return refuse(format!("a thread of task {}, not a task", status.tgid), Some(hint));
    }
    if status.tracer != 0 {
        let tracer = comm_of(status.tracer);
        let hint = "detach the debugger first".to_owned();
        return refuse(format!("traced by {} ({tracer})", status.tracer), Some(hint));
    }
    Ok(Found::Living { name, confined: status.seccomp != 0 })
}

/// The status of a living thread of a task whose leader has ended; `None` if there is none.
fn status_of_another(pid: Pid, dir: &Dir, buffer: &mut Vec<u8>) -> Result<Option<status::Status>> {
    for tid in dir.threads(pid)?.into_iter().filter(|&tid| tid != pid) {
        // Threads that end meanwhile leave nothing.
        if dir.read_record(&format!("task/{tid}/status"), buffer).is_ok() {
            let status = status::parse(buffer)?;
            if !matches!(status.state, b'Z' | b'X') {
                return Ok(Some(status));
            }
        }
    }
    Ok(None)
}

/// The tasks of a tree as it runs, for looks that need not wait until it is stopped. Tasks that come and go
/// meanwhile may be missing.
pub(super) fn list(root: Pid) -> Result<Vec<Pid>> {
    let mut all = vec![root];
    let mut buffer = Vec::new();
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        if let Ok(dir) = Dir::task(pid) {
            all.extend(children(pid, &dir, &mut buffer).unwrap_or_default());
        }
    }
    Ok(all)
}

/// How long each further task of a tree may take to stop that is refused anyway, since a thread of it did not.
const GRACE: Duration = Duration::from_millis(250);

/// How long a task that runs on may take to be stopped once more: meanwhile those of its threads that have stopped stand still for the others.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Seizes and stops threads of one task. Those that end meanwhile are left out, those that do not stop in time returned.
fn stop_threads(stopped: &mut Vec<Stopped>, tids: &[Pid], patience: &Patience) -> Result<Vec<Pid>> {
    let mut seized = Vec::with_capacity(tids.len());
    let (mut failure, mut waiting) = (None, Vec::new());
    for &tid in tids {
        let thread = Seized::seize(tid).and_then(|thread| thread.interrupt().map(|()| thread));
        match thread {
            Ok(thread) => seized.push(thread),
            Err(ptrace::Error::Gone(_)) => {}
            Err(e) => {
                failure = Some(e);
                break;
            }
        }
    }
    // Whatever happens, every thread that was seized is waited for, so that it can be released.
    for thread in seized {
        match thread.wait(patience).and_then(|waited| match waited {
            Waited::Stopped(thread) => thread.settle(patience).map(Some),
            Waited::Ended(_) => Ok(None),
        }) {
            Ok(thread) => stopped.extend(thread),
            Err(ptrace::Error::Gone(_)) => {}
            Err(ptrace::Error::TimedOut(tid)) => waiting.push(tid),
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    failure.map_or(Ok(waiting), |e| Err(e.into()))
}

/// Which signals a task ignores, and which it handles.
fn dispositions(dir: &Dir) -> Result<(u64, u64)> {
    let mut buffer = Vec::new();
    dir.read_record("status", &mut buffer)?;
    let status = status::parse(&buffer)?;
    Ok((status.ignored, status.caught))
}

/// Children of all threads of a task that may be running.
fn children(pid: Pid, dir: &Dir, buffer: &mut Vec<u8>) -> Result<Vec<Pid>> {
    let mut all = Vec::new();
    for tid in dir.threads(pid)? {
        all.extend(children_of_thread(dir, tid, buffer)?);
    }
    Ok(all)
}

/// Children of one thread of a task, in the order it has them. None if it is gone.
pub(super) fn children_of_thread(dir: &Dir, tid: Pid, buffer: &mut Vec<u8>) -> Result<Vec<Pid>> {
    match dir.read(&format!("task/{tid}/children"), buffer) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.stat(&format!("task/{tid}")).is_err() => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e).context("read children (needs CONFIG_PROC_CHILDREN)"),
    }
    let words = buffer.split(|&b| b == b' ').filter(|word| !word.trim_ascii().is_empty());
    Ok(words.filter_map(decimal::<Pid>).collect())
}

/// Why a task cannot be traced that nobody else traces, and the way out.
const NOT_TRACED: &str = "crr may not trace it: it is another user's, or has more capabilities than crr";
const TO_TRACE: &str = "run crr as root, or give it CAP_SYS_PTRACE";

fn is_forbidden(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ptrace::Error::Request { errno: Errno::EPERM, .. }))
}

fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ptrace::Error::Gone(_)))
        || error
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH))
}
