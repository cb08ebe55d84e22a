//! Pre-dump: page contents of a tree that stands still only while its pages are looked for and protected, and runs on while they
//! are copied. A page that is written meanwhile counts as written in the next round, so it does not matter what was copied of it.
//!
//! ```text
//! freeze      as for a dump
//! refuse?     what writes to memory, but not by page tables (see `trackable`)
//! look        a descriptor for each task (see `track`), which has its areas from now on
//! protect     every page that is there, in the step that tells whether it is as the last round knew it; the last keeper has ended before, since its
//!             marks are gone now
//! let run
//! copy        what the last round did not know
//! keep        a process has the descriptors; the inventory tells which
//! ```
//!
//! The tree stands still, but others may write to its memory all the while: who shares it without being of the tree, or by process_vm_writev(2). What comes
//! before a page is protected is copied, and what comes after it is seen by the next round.
//!
//! With soft-dirty bits there is no descriptor and no keeper, and to protect is to clear the bits. They are read first: what others write in between, the
//! dump finds by its checksums.

use super::freeze::{Frozen, FrozenTask};
use super::outline::Areas;
use super::pages::{Contents, Form, Look, take_out};
use super::trackable::{self, Trackable};
use super::{After, Origin, freeze, guard, interrupt, inventory, refuse_server, rights};
use crate::lazy;
use crate::ptrace::{self, Patience, Stopped};
use crate::refusal::Refusals;
use crate::remote::{Arg, Call, Executor, Target};
use crate::resource::file::links::Links;
use crate::resource::memory::WATCHED;
use crate::resource::namespace;
use crate::resource::pipe::Holders;
use crate::resource::{fanotify, sharing};
use crate::stats::{self, Stage, Stats};
use crate::store::{Compression, Destination, DirectIo, Writer};
use crate::sys::{limits, pagemap, pidfd, userfaultfd};
use crate::track::soft_dirty::ClearRefs;
use crate::track::{Previous, Way, instance, keeper};
use anyhow::{Context, Result, bail};
use images::Pid;
use images::container::Kind;
use images::inventory::{Instance, Inventory, PreDump, Tracking};
use images::memory::{Memory, Run, Space, Vma};
use images::task::Tree;
use nix::errno::Errno;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Options of `crr pre-dump`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the tree.
    pub root: Pid,
    /// Where the images go.
    pub destination: Destination,
    /// The pre-dump before this one, as seen from there.
    pub previous: Option<PathBuf>,
    /// Pack page contents.
    pub compression: Option<Compression>,
    /// When the page file is written past the page cache.
    pub direct_io: DirectIo,
    /// How long seizing the tree may take.
    pub timeout: Duration,
    /// Show progress on stderr when it is a terminal.
    pub progress: bool,
}

/// What a pre-dump did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Tasks that are tracked from now on.
    pub tasks: usize,
    /// Bytes of all images.
    pub bytes: u64,
    /// From the first task stopped to the last resumed.
    pub frozen: Duration,
    /// All of it.
    pub total: Duration,
}

impl Report {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            command: "pre-dump",
            tasks: u32::try_from(self.tasks).unwrap_or(u32::MAX),
            bytes: self.bytes,
            total_seconds: self.total.as_secs_f64(),
            frozen_seconds: Some(self.frozen.as_secs_f64()),
        }
    }
}

/// Records what private memory holds, and has writes tracked from now on.
///
/// # Errors
/// What failed; the tree runs on as before. If pages had been protected already, tracking has ended, and the next round records everything.
pub fn pre_dump(options: &Options) -> Result<Report> {
    let started = Instant::now();
    stats::enter(Stage::Look);
    let _held = interrupt::Held::block().context("block signals")?;
    rights::check()?;
    limits::raise_open_files()?;
    let patience = Patience::new(options.timeout);
    // For a moment a task has a descriptor that is not its own.
    guard::enter()?;
    let origin = Origin::read()?;
    let way = Way::choose()?;
    let writer = Writer::create(&options.destination)?;
    fanotify::refuse_judges(&fanotify::groups_of(&freeze::list(options.root)?)?, "pre-dump")?;
    if let Some(inode) = writer.inode_of_server() {
        refuse_server(inode, &Holders::scan(&freeze::list(options.root)?)?)?;
    }
    let open = |dir: &PathBuf| Previous::open(&options.destination, dir);
    let previous = options.previous.as_ref().map(open).transpose()?.map(|previous| previous.only_by(way));
    let base = previous.as_ref().filter(|previous| previous.has_told());
    let parent = base.map(|previous| previous.parent.clone());
    let first_page = base.map_or(0, |previous| previous.first_page);
    let mut contents = Contents::of_running(first_page);
    if previous.as_ref().is_none_or(|previous| previous.keeper().is_none()) {
        // Of another series. An area is tracked by one descriptor only.
        keeper::end_all(&freeze::list(options.root)?.into_iter().collect())?;
    }

    stats::enter(Stage::Freeze);
    let mut refusals = Refusals::default();
    let mut frozen = Frozen::seize(options.root, &patience, &mut refusals)?;
    frozen.guarded = true;
    let tasks = frozen.tasks.iter().map(|task| (task.pid, &*task.name, &task.dir));
    namespace::refuse_other_ids(tasks, &mut refusals)?;
    refusals.finish("pre-dump")?;
    let had_keeper = previous.as_ref().is_some_and(|previous| previous.keeper().is_some());
    let previous = previous.map(Previous::while_frozen).transpose()?;
    if had_keeper && previous.as_ref().is_some_and(|previous| previous.keeper().is_none()) {
        // Of the round that came first.
        keeper::end_all(&frozen.pids().collect())?;
    }
    let links = Links::read(&frozen.tasks)?;
    fanotify::refuse_judges(&links.fanotify_groups(), "pre-dump")?;
    stats::enter(Stage::Tasks);
    let mut trackable = trackable::find(&mut frozen.tasks, &links, way, &patience)?;
    let repeated = match way {
        // There it shows when areas are put under a second descriptor. Who shares them and is outside of the tree is told of as well as a task of it.
        Way::Protection => HashSet::new(),
        Way::SoftDirty => sharing::with_memory_of_others(&frozen.tasks)?,
    };
    let mut looker = Looker { way, previous: previous.as_ref() };
    let mut looked = Vec::with_capacity(frozen.tasks.len());
    for task in frozen.tasks.iter_mut().filter(|task| !repeated.contains(&task.pid)) {
        let Some(trackable) = trackable.remove(&task.pid) else { continue };
        let one = looker.look(task, trackable, &patience).with_context(|| format!("task {}", task.pid))?;
        looked.extend(one);
    }
    if looked.is_empty() {
        // An area is under one descriptor only.
        if lazy::is_at_work() {
            bail!(
                "no task of the tree can be tracked: there is memory that is still to come\n  hint: {}",
                lazy::WAIT
            );
        }
        bail!(
            "no task of the tree can be tracked\n  hint: memory that is {WATCHED} already cannot be; a dump without rounds needs none of this"
        );
    }
    if let Some(keeper) = previous.and_then(Previous::into_keeper) {
        keeper.end()?;
    }
    stats::enter(Stage::FindPages);
    let mut spaces = Vec::with_capacity(looked.len());
    for task in &looked {
        let runs =
            task.protect(&mut contents).with_context(|| format!("task {}: look for pages", task.task.pid))?;
        spaces.push(Space { runs, ..Space::default() });
    }
    let frozen_for = frozen.finish(After::Run, &patience)?;

    stats::enter(Stage::WritePages);
    let form = Form { block_pages: 1, compression: options.compression, direct_io: options.direct_io };
    let written = contents.write(writer.pages(), form, options.progress)?;
    ptrace::check_interrupted()?;
    stats::enter(Stage::WriteRecords);
    spaces.iter_mut().for_each(|space| take_out(&mut space.runs, &written.lost));
    let memory = Memory {
        spaces,
        first_page,
        page_count: contents.page_count(),
        block_pages: form.block_pages,
        packing: written.packing,
        block_crcs: written.block_crcs,
        ..Memory::default()
    };
    let tasks: Vec<Instance> = looked.iter().map(|task| task.task).collect();
    let (tracking, keeper) = match way {
        Way::Protection => {
            let keeper = keeper::start(&descriptors(looked))?;
            (Tracking::WriteProtected(keeper), Some(keeper))
        }
        Way::SoftDirty => (Tracking::SoftDirty, None),
    };
    let pre_dump = PreDump { tracking, tasks };
    let count = pre_dump.tasks.len();
    let inventory = Inventory {
        root: options.root,
        xstate_layout: Vec::new(),
        parent,
        pre_dump: Some(pre_dump),
        ..inventory(&Tree::default(), origin)?
    };
    let bytes = writer.finish_round(inventory, &memory).inspect_err(|_| {
        // Nobody would know of it.
        let keeper = keeper.and_then(|keeper| keeper::Keeper::find(keeper).ok().flatten());
        let _ = keeper.map(keeper::Keeper::end);
    });
    let bytes =
        bytes.with_context(|| format!("{} and {}", Kind::Memory.file_name(), Kind::Inventory.file_name()))?;
    Ok(Report { tasks: count, bytes, frozen: frozen_for, total: started.elapsed() })
}

/// The descriptors that track tasks.
fn descriptors(looked: Vec<Looked>) -> BTreeMap<Instance, OwnedFd> {
    let of = |task: Looked| match task.marks {
        Marks::Protection(descriptor) => Some((task.task, descriptor)),
        Marks::SoftDirty(_) => None,
    };
    looked.into_iter().filter_map(of).collect()
}

/// What the pages of a task are marked by.
enum Marks {
    /// The descriptor that its areas are under.
    Protection(OwnedFd),
    /// What clears its soft-dirty bits.
    SoftDirty(ClearRefs),
}

/// A stopped task that is tracked.
struct Looked {
    task: Instance,
    marks: Marks,
    /// Its anonymous memory.
    areas: Vec<Vma>,
    pagemap: File,
    memory: File,
    /// Contents that the last round knows, as far as they are right: with protection, of pages that turn out to be unwritten.
    kept: Vec<Run>,
}

impl Looked {
    /// Protects its pages, and gives those a place that are not known yet. Guard pages are for the last dump to tell.
    fn protect(&self, contents: &mut Contents) -> Result<Vec<Run>> {
        let memory = self.memory.try_clone().context("dup")?;
        let source = contents.add_memory(self.task.pid, memory);
        let look = match self.marks {
            Marks::Protection(_) => Look::Protecting(&self.pagemap),
            Marks::SoftDirty(_) => Look::Only(&self.pagemap),
        };
        let (runs, _) = contents.find_private(source, look, (&self.areas, &[]), &self.kept, None)?;
        if let Marks::SoftDirty(bits) = &self.marks {
            bits.clear()?;
        }
        Ok(runs)
    }
}

/// Looks at one stopped task after the other.
struct Looker<'a> {
    way: Way,
    previous: Option<&'a Previous>,
}

impl Looker<'_> {
    /// `None` if it cannot be tracked: its memory is dumped by the dump alone, then.
    fn look(
        &mut self,
        frozen: &mut FrozenTask,
        trackable: Trackable,
        patience: &Patience,
    ) -> Result<Option<Looked>> {
        let Trackable { areas, caller } = trackable;
        let task = instance(frozen.pid)?;
        let pagemap = File::from(frozen.dir.open("pagemap").context("open pagemap")?);
        let (marks, kept) = match self.way {
            Way::Protection => {
                let Some((descriptor, is_known)) =
                    self.descriptor(frozen, task, &areas, &pagemap, caller, patience)?
                else {
                    return Ok(None);
                };
                let known = self.previous.filter(|_| is_known).map(|previous| previous.known(task).to_vec());
                (Marks::Protection(descriptor), known)
            }
            Way::SoftDirty => {
                let unwritten =
                    self.previous.map(|previous| previous.unwritten(task, &pagemap)).transpose()?;
                (Marks::SoftDirty(ClearRefs::of(&frozen.dir)?), unwritten)
            }
        };
        let kept = kept.unwrap_or_default();
        let memory = File::from(frozen.dir.open("mem").context("open mem")?);
        Ok(Some(Looked { task, marks, areas: areas.anonymous, pagemap, memory, kept }))
    }

    /// What its areas are under from now on, and whether that is the descriptor of the last round.
    fn descriptor(
        &mut self,
        frozen: &mut FrozenTask,
        task: Instance,
        areas: &Areas,
        pagemap: &File,
        caller: Option<(Target, usize)>,
        patience: &Patience,
    ) -> Result<Option<(OwnedFd, bool)>> {
        let known = self.previous.and_then(Previous::keeper);
        let known = known.map(|keeper| keeper.descriptor(task)).transpose()?.flatten();
        let tracked = tracked(pagemap, &areas.anonymous)?;
        let is_covered = |&(start, end): &(u64, u64)| is_covered(&areas.anonymous, start, end);
        if !tracked.iter().all(is_covered) {
            // All that crr tracks is anonymous. The pages that are about to be protected would be marked for somebody else.
            log::warn!("task {} ({}) cannot be tracked: it is {WATCHED}", frozen.pid, frozen.name);
            return Ok(None);
        }
        // The address space that a descriptor is for is gone when the task has run another program.
        let known = known.filter(|known| track_all(known, &areas.anonymous, &tracked).is_ok());
        if let Some(known) = known {
            return Ok(Some((known, true)));
        }
        let Some(made) = self.new_descriptor(frozen, areas, caller, patience)? else { return Ok(None) };
        match track_all(&made, &areas.anonymous, &[]) {
            Ok(()) => Ok(Some((made, false))),
            Err(errno) => {
                // Or its memory is that of another task that was looked at already.
                log::info!("task {} ({}) is not tracked: {errno}", frozen.pid, frozen.name);
                Ok(None)
            }
        }
    }

    /// Has the task make a descriptor, takes a copy and has it close its own.
    fn new_descriptor(
        &mut self,
        frozen: &mut FrozenTask,
        areas: &Areas,
        caller: Option<(Target, usize)>,
        patience: &Patience,
    ) -> Result<Option<OwnedFd>> {
        let deputy = frozen.deputy();
        let Some((target, caller)) = caller else { return Ok(None) };
        let thread = &mut frozen.threads[caller];
        let executor = Executor::open(target, thread, || areas.writable.clone(), patience)?;
        let made = make(&executor, thread, deputy, patience);
        executor.close(thread, patience)?;
        let made = made?;
        if let Err(errno) = &made {
            log::warn!("task {} ({}) cannot be tracked: userfaultfd: {errno}", frozen.pid, frozen.name);
        }
        Ok(made.ok())
    }
}

/// What of these areas, and of all between them, is tracked already, by whomever.
fn tracked(pagemap: &File, areas: &[Vma]) -> Result<Vec<(u64, u64)>> {
    let (Some(first), Some(last)) = (areas.first(), areas.last()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    pagemap::scan_tracked(pagemap.as_fd(), first.start.0, last.end.0, |start, end| found.push((start, end)))
        .context("PAGEMAP_SCAN")?;
    Ok(found)
}

/// Whether areas, which rise, leave nothing out of a range.
fn is_covered(areas: &[Vma], start: u64, end: u64) -> bool {
    let from = areas.partition_point(|vma| vma.end.0 <= start);
    let mut at = start;
    for vma in &areas[from..] {
        if vma.start.0 > at || at >= end {
            break;
        }
        at = vma.end.0;
    }
    at >= end
}

/// Puts all areas under a descriptor. Those that cannot be (droppable memory, huge TLB pages) are left out. What was not `tracked` before is without any
/// protection then; what was keeps it, and with it what it tells.
fn track_all(descriptor: &OwnedFd, areas: &[Vma], tracked: &[(u64, u64)]) -> nix::Result<()> {
    for area in areas {
        let (fd, start, end) = (descriptor.as_fd(), area.start.0, area.end.0);
        let before = tracked.partition_point(|(from, _)| *from <= start).checked_sub(1);
        let is_tracked = before.is_some_and(|before| tracked[before].1 >= end);
        match userfaultfd::track(fd, start, end) {
            Ok(()) if is_tracked => {}
            Ok(()) => userfaultfd::unprotect(fd, start, end)?,
            Err(Errno::EINVAL | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The calls of a task for [`Looker::new_descriptor`].
fn make(
    executor: &Executor,
    thread: &mut Stopped,
    deputy: Pid,
    patience: &Patience,
) -> Result<nix::Result<OwnedFd>> {
    let task = pidfd::open(deputy).context("pidfd_open")?;
    let mut batch = executor.batch(thread)?;
    let opened = batch.call(Call::Userfaultfd, &[Arg::Value(userfaultfd::FLAGS)]);
    let opened = match executor.run(thread, &batch, patience)?.result(opened) {
        Ok(fd) => fd,
        Err(errno) => return Ok(Err(errno)),
    };
    let copy = u32::try_from(opened).map_err(|_| Errno::EBADF).and_then(|fd| pidfd::get_fd(task.as_fd(), fd));
    let mut batch = executor.batch(thread)?;
    batch.call(Call::Close, &[Arg::Value(opened)]);
    executor.run(thread, &batch, patience)?;
    let copy = copy.context("pidfd_getfd")?;
    userfaultfd::enable(copy.as_fd()).context("userfaultfd cannot track writes (needs Linux 6.7)")?;
    Ok(Ok(copy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::Addr;
    use images::memory::Backing;

    #[test]
    fn what_is_not_anonymous_is_seen_among_what_is_tracked() {
        let area = |start, end| Vma {
            start: Addr(start),
            end: Addr(end),
            prot: 3,
            flags: 0,
            backing: Backing::Anonymous,
        };
        let areas = [area(0x1000, 0x3000), area(0x3000, 0x4000), area(0x8000, 0x9000)];
        for covered in [(0x1000, 0x3000), (0x1000, 0x4000), (0x8000, 0x9000)] {
            assert!(is_covered(&areas, covered.0, covered.1), "{covered:x?}");
        }
        for other in
            [(0x4000, 0x8000), (0x3000, 0x5000), (0x7000, 0x9000), (0x1000, 0x9000), (0xa000, 0xb000)]
        {
            assert!(!is_covered(&areas, other.0, other.1), "{other:x?}");
        }
        assert!(!is_covered(&[], 0x1000, 0x2000));
    }
}
