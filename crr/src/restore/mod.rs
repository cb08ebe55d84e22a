//! Restore: read, plan, fork, split, resume.

mod births;
mod child;
pub(crate) mod environment;
mod fill;
pub(crate) mod foreground;
mod hold;
pub(crate) mod late;
mod loan;
mod lock;
mod namespace;
pub(crate) mod numbers;
pub(crate) mod open;
pub mod plain;
mod preflight;
mod prepare;
mod serve;
mod stand_in;
mod stop;
mod takeover;
mod unchanged;
mod undo;

use self::fill::{Fill, HugePages};
use self::prepare::Contents;
use crate::changed::Changed;
use crate::fault::{self, Point};
use crate::kernel;
use crate::lazy;
use crate::machine;
use crate::proc;
use crate::refusal::Refusals;
use crate::resource;
use crate::resource::external::given::Given;
use crate::resource::inet::Wishes;
use crate::resource::{interface, memory, vdso};
use crate::stats::{self, Stage, Stats};
use crate::store::{Checkpoint, DirectIo, Source, Unchecked};
use crate::sys::last_pid::{Chooser, LastPid};
use crate::sys::{heap, limits, process};
use anyhow::{Context, Result, bail};
use environment::Environment;
use foreground::Terminal;
use images::task::Tree;
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{GenericNamespaced, ListenerOptions};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use open::Opened;
pub(crate) use prepare::Lives;
use prepare::{Descent, Preparation};
use serve::Served;
use shared::plan::tree::OUTSIDE;
use stand_in::StandIn;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
pub use unchanged::Validation;

/// Options of `crr restore`.
#[derive(Debug)]
pub struct Options {
    /// Where the images are.
    pub source: Source,
    /// Exit once the tree runs (`-d`).
    pub detached: bool,
    /// Make the root a child of crr's parent (`-S`).
    pub sibling: bool,
    /// Give the tree crr's session and terminal (`-j`).
    pub shell_job: bool,
    /// Write the root's pid there.
    pub pidfile: Option<PathBuf>,
    /// Change the root directory first (`-r`).
    pub root: Option<PathBuf>,
    /// Restore into a fresh pid namespace.
    pub new_pidns: bool,
    /// What becomes of internet sockets.
    pub sockets: Wishes,
    /// By what files are known again.
    pub validation: Validation,
    /// Let the tasks run before all of their memory is there.
    pub lazy_pages: bool,
    /// When the page file is read past the page cache.
    pub direct_io: DirectIo,
    /// How long the tree may take to come back.
    pub timeout: Duration,
    /// Show progress on stderr when it is a terminal.
    pub progress: bool,
    /// Write there where the time went.
    pub stats: Option<File>,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Root of the restored tree.
    pub root: images::Pid,
    /// Tasks restored.
    pub tasks: u32,
    /// Bytes of page contents.
    pub bytes: u64,
    /// From start to the tree running.
    pub total: Duration,
}

impl Report {
    fn stats(&self) -> Stats {
        Stats {
            command: "restore",
            tasks: self.tasks,
            bytes: self.bytes,
            total_seconds: self.total.as_secs_f64(),
            frozen_seconds: None,
        }
    }
}
/// What the parts of a restore share; lives in the coordinator and, as a copy, in its forked children.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    /// The images.
    pub checkpoint: &'a Checkpoint,
    /// Plans, programs, shared memory.
    pub preparation: Preparation,
    /// Files.
    pub opened: Opened,
    /// What forked children start with.
    pub environment: &'a Environment,
    /// Abstract name of the socket that restoring tasks connect to.
    pub socket_name: String,
    /// crr's own process group, for the members of a shell job.
    pub own_group: images::Pid,
    /// How processes get their ids.
    pub chooser: Chooser,
    /// Whether any task comes from another login than crr.
    pub logins: bool,
}

/// Restores a tree. Without `detached`, waits for its root and returns the exit status the root ended with
/// (128 + signal if a signal killed it).
///
/// # Errors
/// What failed; nothing that was made is left behind.
pub fn restore(options: &Options, given: Given) -> Result<(Report, Option<u8>)> {
    // Until the tree is back, a signal that would end crr is looked for where there is time for it (`serve`);
    // afterwards it is passed on.
    let old_mask = process::block_all_signals().context("block signals")?;
    let restored =
        if options.new_pidns { namespace::restore(options, given) } else { restore_and_wait(options, given) };
    process::set_signal_mask(old_mask).context("signal mask")?;
    restored
}

fn restore_and_wait(options: &Options, given: Given) -> Result<(Report, Option<u8>)> {
    let pidfile = PidFile::prepare(options)?;
    let (report, terminal) = restore_here(options, given)?;
    pidfile.write(report.root)?;
    report.stats().write(options.stats.as_ref());
    let stays = !options.detached && !options.sibling;
    let status = if stays { Some(foreground::wait(report.root, report.root, terminal)?) } else { None };
    Ok((report, status))
}

/// Where the pid of the root goes: its directory is opened before anything is made, and before the root directory
/// changes.
struct PidFile(Option<(PathBuf, OwnedFd)>);

impl PidFile {
    fn prepare(options: &Options) -> Result<Self> {
        let Some(path) = &options.pidfile else { return Ok(Self(None)) };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(std::path::Path::new("."));
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir =
            nix::fcntl::open(parent, flags, Mode::empty()).with_context(|| path.display().to_string())?;
        Ok(Self(Some((path.clone(), dir))))
    }

    fn write(self, root: images::Pid) -> Result<()> {
        let Some((path, dir)) = self.0 else { return Ok(()) };
        let written = (|| {
            fault::point(Point::Pidfile)?;
            let flags = OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let name = path.file_name().context("not a file name")?;
            let file = nix::fcntl::openat(&dir, name, flags, Mode::from_bits_truncate(0o644))?;
            write!(File::from(file), "{root}")?;
            anyhow::Ok(())
        })();
        let how = "the tree runs".to_owned();
        written.with_context(|| path.display().to_string()).context(Changed { how })
    }
}

/// Restores a tree as children of this process, in the namespaces it is in.
fn restore_here(options: &Options, mut given: Given) -> Result<(Report, Option<Terminal>)> {
    let began = Instant::now();
    stats::enter(Stage::Read);
    limits::raise_open_files()?;
    limits::raise_pending_signals()?;
    let starter = options.lazy_pages.then(lazy::Starter::new).transpose()?;
    let mut checkpoint = Checkpoint::read_but_for_pages(&options.source, options.progress)?;
    if !options.lazy_pages {
        checkpoint.go_direct(options.direct_io);
    }
    fault::point(Point::KilledReading)?;
    if let Some(root) = &options.root {
        nix::unistd::chroot(root).with_context(|| format!("{}: change root", root.display()))?;
        nix::unistd::chdir("/").context("/")?;
    }
    stats::enter(Stage::Plan);
    unchanged::use_copies(&mut checkpoint, &given, options.validation);
    memory::take_names_off(&mut checkpoint.memory);
    let mut lives = BTreeMap::new();
    for abi in preflight::abis(&checkpoint) {
        lives.insert(abi, machine::live(abi)?);
    }
    let environment = Environment::read()?;
    let mut refusals = Refusals::default();
    interface::find(&mut checkpoint.files, &mut refusals)?;
    let written = vdso::adapt(&mut checkpoint, &lives, &mut refusals)?;
    let descent = Descent::plain(&checkpoint)?;
    preflight::preflight(refusals, &checkpoint, &descent.schedule, &environment, &given, options)?
        .finish("restore")?;
    process::close_on_exec_from(3).context("close_range")?;
    let last_pid = !kernel::has_set_tid();
    if last_pid {
        // It may be taken once more.
        checkpoint.pages.keep_what_is_taken();
    }
    let deadline = OnceCell::new();
    let known = Known { checkpoint, lives, written, environment, descent, starter, last_pid, deadline };
    let (root, terminal) = loop {
        let again = (last_pid && !options.sibling).then(|| given.try_clone()).transpose()?;
        match (try_to_restore(options, &known, given), again) {
            (Err(error), Some(again)) if error.is::<Raced>() && known.has_time() => {
                log::warn!("{error:#}: all once more");
                given = again;
            }
            (outcome, _) => break outcome?,
        }
    };
    let report = Report {
        root,
        tasks: u32::try_from(known.checkpoint.tree.tasks.len())?,
        bytes: known.checkpoint.memory.page_count * images::id::PAGE_SIZE,
        total: began.elapsed(),
    };
    log::info!(
        "restored {} tasks under {root}: {} in {:.3} s",
        report.tasks,
        crate::progress::bytes(report.bytes),
        report.total.as_secs_f64(),
    );
    Ok((report, terminal))
}

/// What is known when nothing stands in the way of a restore.
struct Known {
    checkpoint: Checkpoint,
    lives: Lives,
    written: Vec<Vec<shared::plan::Written>>,
    environment: Environment,
    descent: Descent,
    starter: Option<lazy::Starter>,
    /// Ids are chosen by what the kernel gave last.
    last_pid: bool,
    /// When a tree has to be there, for all attempts. It is set when its pages are: how long they take is not the tree's doing.
    deadline: OnceCell<Instant>,
}

impl Known {
    /// Whether there is time to begin anew.
    fn has_time(&self) -> bool {
        self.deadline.get().is_some_and(|&deadline| Instant::now() < deadline)
    }
}

/// Marks an error, as its context: nothing but that others forked in the same moment was in the way.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("others got the id of a task")]
struct Raced;

/// Restores a tree. If that fails, nothing of it is left.
///
/// # Errors
/// [`Raced`] if it is worth to be tried again.
fn try_to_restore(options: &Options, known: &Known, given: Given) -> Result<(images::Pid, Option<Terminal>)> {
    let Known { checkpoint, lives, written, environment, descent, starter, last_pid, deadline } = known;
    stats::enter(Stage::Plan);
    let stand_in = needs_stand_in(&checkpoint.tree, options);
    let huge_pages = HugePages::here();
    let memory = match options.lazy_pages {
        true => Contents::Late,
        false if kernel::can_put_pages() => Contents::Put(huge_pages),
        false => Contents::Read,
    };
    let always_huge = huge_pages.always();
    let wishes = prepare::Wishes { stand_in, memory, always_huge, last_pid: *last_pid };
    let prepare = |descent| prepare::prepare(checkpoint, descent, lives, written, environment, wishes);
    // What stands in for the vDSO of another kernel is written into each task by itself.
    let sharing = if written.iter().all(Vec::is_empty) {
        descent.with_pages(checkpoint).and_then(|descent| descent.map(prepare).transpose())
    } else {
        Ok(None)
    };
    let preparation = match sharing {
        Ok(Some(preparation)) => preparation,
        Ok(None) => prepare(descent.clone())?,
        Err(e) => {
            log::warn!("tasks get copies of the pages that they shared: {e:#}");
            prepare(descent.clone())?
        }
    };
    let later = checkpoint.unchecked(&preparation.lazy);
    stats::enter(Stage::CheckPages);
    let at_once = |block| !later.contains_key(&block);
    checkpoint.bring_pages(&options.source, options.progress, |block| starter.is_none() || at_once(block))?;
    checkpoint.check_pages(&options.source, options.progress, at_once)?;
    let deadline = *deadline.get_or_init(|| Instant::now() + options.timeout);
    let source = match starter {
        Some(starter) => MemorySource::Late(starter, later),
        None => MemorySource::Now(Fill::of(&preparation, later)),
    };
    fault::point(Point::KilledPlanned)?;
    stats::enter(Stage::Open);
    let programs = preparation.tasks.iter().filter_map(|task| task.program.as_ref());
    let needs = programs.flat_map(|program| program.needs.iter().copied());
    let opened = Opened::open(checkpoint, given, &options.sockets, needs)?;
    fault::point(Point::KilledOpened)?;
    let chooser = if *last_pid {
        let last = LastPid::claim(deadline)?;
        let file = opened.raiser.raise(last.file()?)?;
        if fault::is_due(Point::IdsTaken) {
            preparation.control.take_ids();
        }
        Chooser::LastPid(last, file)
    } else {
        Chooser::Clone3
    };
    let mut restore = Restore {
        checkpoint,
        preparation: raise(preparation, &opened.raiser)?,
        opened,
        environment,
        socket_name: socket_name()?,
        own_group: nix::unistd::getpgrp().as_raw(),
        chooser,
        logins: checkpoint.tree.tasks.iter().any(|task| task.login_uid != environment.login_uid),
    };
    let back = bring_back(&mut restore, options, source, deadline)?;
    options.source.release(!options.lazy_pages);
    restore.opened.socket_files.keep();
    restore.opened.segments.keep();
    restore.opened.ipc.keep();
    restore.opened.message_queues.keep();
    resource::other_name::remove_helpers(&checkpoint.files.paths);
    Ok(back)
}

/// A name that no other restore uses: abstract names are shared by all pid namespaces of a network namespace.
fn socket_name() -> Result<String> {
    let mut random = [0u8; 16];
    let mut source = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut random).context("/dev/urandom")?;
    Ok(format!("crr-restore-{:032x}", u128::from_le_bytes(random)))
}

/// The programs of a preparation under numbers that no task uses.
fn raise(mut preparation: Preparation, raiser: &open::Raiser) -> Result<Preparation> {
    preparation.programs =
        preparation.programs.into_iter().map(|fd| raiser.raise(fd)).collect::<Result<_>>()?;
    preparation.tree = raiser.raise(preparation.tree)?;
    Ok(preparation)
}

/// Where contents of memory come from that the tasks do not read themselves.
enum MemorySource<'a> {
    /// This process, before they run.
    Now(Fill),
    /// Processes that check these blocks and bring all when the tasks run.
    Late(&'a lazy::Starter, Unchecked),
}

/// Forking so many costs less than making smaller what they are copies of.
const FEW: usize = 8;

/// Forks the tree, serves it, takes it over. On failure nothing of it is left.
fn bring_back(
    restore: &mut Restore<'_>,
    options: &Options,
    source: MemorySource<'_>,
    deadline: Instant,
) -> Result<(images::Pid, Option<Terminal>)> {
    stats::enter(Stage::Rebuild);
    let name = restore.socket_name.as_str().to_ns_name::<GenericNamespaced>().context("socket name")?;
    fault::point(Point::Listen).context("listen for the restoring tasks")?;
    let listener =
        ListenerOptions::new().name(name).create_sync().context("listen for the restoring tasks")?;
    let pid = restore.checkpoint.tree.tasks[0].pid;
    let orphans = Orphans::adopt(may_begin_anew(restore, options))?;
    // Pages have been checked by several threads.
    let threads =
        restore.checkpoint.tree.tasks.iter().flat_map(|task| &task.threads).map(|thread| thread.tid);
    process::outlive_threads(&threads.chain(restore.preparation.pids.iter().copied()).collect());
    // With its first thread the C library lets two signals through that it uses itself (32 and 33), and tasks begin with this mask: what
    // pends for them is to wait.
    process::block_all_signals().context("block signals")?;
    if restore.preparation.pids.len() > FEW {
        heap::trim();
    }
    let mut forked = false;
    let outcome = fork_root(restore, options, pid).and_then(|parent| {
        forked = true;
        fault::point(Point::KilledForked)?;
        let Served { parked, held, late, lazy } = serve::serve(restore, &listener, deadline)?;
        // Everybody is there.
        orphans.leave()?;
        restore.chooser = Chooser::Clone3;
        stats::enter(Stage::PutPages);
        // Before a task is made to do anything in its own memory.
        match source {
            MemorySource::Now(fill) => fill.run(restore, lazy, deadline, options.progress)?,
            MemorySource::Late(starter, unchecked) => {
                starter.start(restore, &lazy, unchecked)?;
                // Only who brings pages is to have them.
                drop(lazy);
            }
        }
        stats::enter(Stage::TakeOver);
        fault::strike(Point::HelperDiesParked, pid);
        fault::point(Point::KilledParked)?;
        restore.opened.complete(late);
        births::see_off_first(restore);
        restore.opened.deleted.seal()?;
        let stays = !options.detached && !options.sibling;
        let terminal = if stays { Terminal::lend(pid) } else { None };
        takeover::take_over(restore, &parked, held, parent)?;
        Ok(terminal)
    });
    outcome.map(|terminal| (pid, terminal)).map_err(|error| {
        let control = &restore.preparation.control;
        if let Some(op) = fault::op().filter(|_| control.has_failed_as_told()) {
            fault::tell(op.point);
        }
        control.fail();
        undo(restore, forked, may_begin_anew(restore, options));
        let left = orphans.leave();
        if control.take_race() && left.is_ok() { error.context(Raced) } else { error }
    })
}

/// Whether a restore that fails may have to begin anew, for which all ids have to be free. A root that is a sibling of crr's stays its parent's to
/// wait for.
fn may_begin_anew(restore: &Restore<'_>, options: &Options) -> bool {
    matches!(restore.chooser, Chooser::LastPid(..)) && !options.sibling
}

/// Orphans come to this process, which takes them off: no task of a tree is to become one that outlives a failure. What was so before, if it is to be
/// changed.
struct Orphans(Option<bool>);

impl Orphans {
    fn adopt(wanted: bool) -> Result<Self> {
        let before = wanted.then(prctl::get_child_subreaper).transpose().context("PR_GET_CHILD_SUBREAPER")?;
        if wanted {
            prctl::set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
        }
        Ok(Self(before))
    }

    /// Leaves them to whom they went before.
    fn leave(&self) -> Result<()> {
        let Some(before) = self.0 else { return Ok(()) };
        prctl::set_child_subreaper(before).context("PR_SET_CHILD_SUBREAPER")
    }
}

/// Forks the root; its other parent, if it needs one.
fn fork_root(restore: &Restore<'_>, options: &Options, pid: images::Pid) -> Result<Option<StandIn>> {
    let own = i32::try_from(std::process::id())?;
    if needs_stand_in(&restore.checkpoint.tree, options) {
        return StandIn::fork(restore, pid).map(Some);
    }
    let parent = if options.sibling { nix::unistd::getppid().as_raw() } else { own };
    // Others can get the id. As a sibling of this process, such a child is its parent's to wait for, whatever is done next.
    let mut left = if options.sibling { TRIES } else { 1 };
    loop {
        left -= 1;
        match births::fork_first(restore, parent, options.sibling) {
            Err(Errno::EAGAIN) if left > 0 && restore.preparation.control.take_race() => {}
            forked => {
                return forked.map(|()| None).with_context(|| format!("fork the root with pid {pid}"));
            }
        }
    }
}

/// How often others may get the id of a root that is a sibling of crr.
const TRIES: u32 = 100;

/// Whether the end of this process would send the root a signal that it asked for.
fn needs_stand_in(tree: &Tree, options: &Options) -> bool {
    let asked = tree.tasks[0].threads.iter().any(|thread| thread.parent_death_signal != 0);
    asked && options.detached && !options.sibling
}

/// Kills whatever of the tree exists. All of its pids were free before the first fork, and a task that is gone
/// with its parent (see `births`) is gone for good. If their ids are to be free, it is waited for longer: they may have gigabytes to give back.
/// `forked`: the root was; else a process of its id is somebody else's, who was faster.
fn undo(restore: &Restore<'_>, forked: bool, ids_wanted: bool) {
    let pids = &restore.preparation.pids[OUTSIDE + 1..];
    // Orphans are init's to reap, if they do not come here, but they are to be dead when crr says that it failed. Threads that were seized are
    // ours to reap, all of a task's before its leader.
    // Who had a wrong id, and ended by itself, is in a group of the tree: that keeps an id, too, until it has been waited for.
    let is_left = |pid| match ids_wanted {
        true => process::exists(pid) || killpg(Pid::from_raw(pid), None).is_ok(),
        false => is_alive(pid),
    };
    let patience = Instant::now() + Duration::from_secs(if ids_wanted { 30 } else { 2 });
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    // Once its parent is dead, nothing shows of an orphan whose it is.
    let mut ours = BTreeSet::new();
    while Instant::now() < patience {
        // One that was in the middle of a clone when it was killed has left another one.
        let is_more = |pid: &images::Pid| !ours.contains(pid) && is_ours(restore, forked, *pid);
        let more: Vec<images::Pid> = pids.iter().rev().copied().filter(is_more).collect();
        for &pid in &more {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        ours.extend(more);
        while matches!(waitpid(None, Some(flags)), Ok(status) if status != WaitStatus::StillAlive) {}
        if !ours.iter().any(|&pid| is_left(pid)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process exists and is no zombie.
fn is_alive(pid: images::Pid) -> bool {
    !proc::has_ended(proc::living_thread(pid))
}

/// Whether a process with a pid of the tree is one that this restore made: an ancestor of it is the root, if we forked one, or
/// this process itself.
fn is_ours(restore: &Restore<'_>, forked: bool, pid: images::Pid) -> bool {
    let root = restore.checkpoint.tree.tasks[0].pid;
    let own = std::process::id().cast_signed();
    let mut at = pid;
    for _ in 0..=restore.preparation.pids.len() {
        if (forked && at == root) || at == own {
            return true;
        }
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{at}/stat")) else { return false };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        match parent {
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

/// Fails if the root, or the dead leader of its session that forks it, has ended without a word.
fn still_there(restore: &Restore<'_>) -> Result<()> {
    let Preparation { schedule, pids, .. } = &restore.preparation;
    for first in schedule.processes[OUTSIDE].after.iter().map(|birth| pids[birth.process]) {
        if !is_alive(first) {
            bail!("task {first}: ended before it made contact");
        }
    }
    Ok(())
}
