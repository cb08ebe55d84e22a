//! Dump: seize, collect, write, finish.

mod collect;
mod frames;
pub(crate) mod freeze;
pub(crate) mod guard;
mod interrupt;
mod known;
mod outline;
mod pages;
pub mod pre_dump;
mod rights;
pub(crate) mod room;
mod trackable;
mod twins;
mod unstoppable;

use crate::changed::Changed;
use crate::fault::{self, Point};
use crate::machine;
use crate::ptrace::{self, Patience};
use crate::refusal::{Refusals, Refused};
use crate::resource::external::{self, Key};
use crate::resource::fanotify;
use crate::resource::file::links::Links;
use crate::resource::inet::{self, Policy};
use crate::resource::pipe::Holders;
use crate::resource::sysv::undo;
use crate::resource::unix_socket::half::HalfPolicy;
use crate::resource::{memory, robust, vdso, xstate};
use crate::stats::{self, Stage, Stats};
use crate::store::{Compression, Destination, DirectIo, Writer};
use crate::sys::limits;
use crate::sys::{process, xsave};
use crate::track::Previous;
use crate::track::keeper::{self, Keeper};
use anyhow::{Context, Result, bail};
use collect::{Collected, Ready, collect};
use freeze::Frozen;
use guard::Unguarded;
use images::inventory::{Inventory, Parent, StateComponent};
use images::memory::Run;
use images::task::Tree;
use images::{Abi, Pid};
use nix::sys::utsname::uname;
use pages::{Form, Writing};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use twins::Twins;

/// What to do with the tree after a successful dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Kill it: the default.
    Kill,
    /// Let it run on (`--leave-running`).
    Run,
    /// Leave it stopped by SIGSTOP (`--leave-stopped`).
    Stop,
}

/// Options of `crr dump`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the tree.
    pub root: Pid,
    /// Where the images go.
    pub destination: Destination,
    /// What becomes of the tree.
    pub after: After,
    /// Accept a session, process group and terminal from outside of the tree.
    pub shell_job: bool,
    /// What becomes of connections of TCP.
    pub sockets: Policy,
    /// What becomes of connections of unix sockets whose other end is outside of the tree.
    pub unix_half: HalfPolicy,
    /// Files that stay outside of the checkpoint.
    pub external: Vec<Key>,
    /// Bytes that a deleted file may hold.
    pub ghost_limit: u64,
    /// Make names for files whose own is gone while others lead to them.
    pub link_remap: bool,
    /// Put copies of programs and libraries into the images.
    pub embed_files: bool,
    /// The last pre-dump, as seen from the directory of the images.
    pub previous: Option<PathBuf>,
    /// Copy private memory when the tree runs on.
    pub snapshot: bool,
    /// Pack page contents.
    pub compression: Option<Compression>,
    /// When the page file is written past the page cache.
    pub direct_io: DirectIo,
    /// How long seizing the tree may take.
    pub timeout: Duration,
    /// Show progress on stderr when it is a terminal.
    pub progress: bool,
}

/// What a dump did, for the closing line and `--stats`.
#[derive(Clone, Debug)]
pub struct Report {
    /// Tasks dumped.
    pub tasks: u32,
    /// Their threads.
    pub threads: u32,
    /// Bytes of all images.
    pub bytes: u64,
    /// What a restore has to be given: `--inherit-fd`, as it is to be spelled, and how it is to be open.
    pub outside: Vec<String>,
    /// The nftables table that holds the traffic of TCP connections until the restore.
    pub held_by: Option<String>,
    /// From the first task stopped to the last resumed or killed; if it was stopped several times, all of them together.
    pub frozen: Duration,
    /// Whole dump.
    pub total: Duration,
}

impl Report {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            command: "dump",
            tasks: self.tasks,
            bytes: self.bytes,
            total_seconds: self.total.as_secs_f64(),
            frozen_seconds: Some(self.frozen.as_secs_f64()),
        }
    }
}

/// Dumps a tree.
///
/// Whatever fails, the tree runs on as before: [`freeze::Frozen`] and the executor in each task put back what they
/// changed, and so does the kernel if crr itself is killed.
///
/// # Errors
/// [`crate::refusal::Refused`] with all reasons, or what failed; the tree then runs on as before.
pub fn dump(options: &Options) -> Result<Report> {
    let started = Instant::now();
    stats::enter(Stage::Look);
    // Dropped last: a signal that came ends crr only after everything is put back.
    let _held = interrupt::Held::block().context("block signals")?;
    rights::check()?;
    limits::raise_open_files()?;
    let patience = Patience::new(options.timeout);
    let origin = Origin::read()?;
    let writer = Writer::create(&options.destination)?;
    let open = |dir: &PathBuf| Previous::open(&options.destination, dir);
    let previous = options.previous.as_ref().map(open).transpose()?;
    let mut holders = Holders::scan(&freeze::list(options.root)?)?;
    fanotify::refuse_judges(holders.fanotify_groups(), "dump")?;
    if let Some(inode) = writer.inode_of_server() {
        refuse_server(inode, &holders)?;
    }
    fault::point(Point::KilledStarting)?;
    fault::point(Point::StoppedStarting)?;
    // Dropped after the tree runs.
    let mut twins = Twins::default();
    let (mut frozen, mut collected, frozen_before) =
        seize_and_collect(options, previous, &mut holders, &patience).map_err(limits::hint_at_open_files)?;
    fault::point(Point::KilledCollected)?;
    fault::strike(Point::TaskDiesCopied, frozen.last());
    // So that a tree that is let run has its areas as they were.
    std::mem::take(&mut collected.base.keepers).into_iter().try_for_each(Keeper::end)?;
    let Collected { tree, memory, contents, .. } = &mut collected;
    if options.snapshot {
        stats::enter(Stage::Clone);
        twins.make(&mut frozen, tree, &memory.spaces, contents)?;
    }
    stats::enter(Stage::WritePages);
    let form = Form {
        block_pages: memory.block_pages,
        compression: options.compression,
        direct_io: options.direct_io,
    };
    let mut writing = Writing::begin(contents, writer.pages(), form, options.progress)?;
    if options.snapshot {
        writing.up_to(contents.blocks_of_tree())?;
        let last = frozen.last();
        frozen.release();
        stats::enter(Stage::CopyPages);
        fault::point(Point::KilledSnapshot)?;
        fault::strike(Point::TaskDiesSnapshot, last);
    }
    writing.up_to(contents.blocks())?;
    let written = writing.finish();
    twins.check()?;
    twins.end();
    collected.memory.packing = written.packing;
    collected.memory.block_crcs = written.block_crcs;
    ptrace::check_interrupted()?;
    stats::enter(Stage::WriteRecords);
    let inventory = Inventory { parent: collected.base.parent, ..inventory(&collected.tree, origin)? };
    let (tasks, threads) = (inventory.tasks, inventory.threads);
    let bytes = writer.finish(inventory, &collected.tree, &collected.files, &collected.memory)?;
    collected.helpers.keep();
    stats::enter(Stage::Finish);
    fault::point(Point::KilledPublished)?;
    let _silent = match collected.silenced {
        Some(silenced) if options.after == After::Kill => {
            Some(silenced.outlive(|| frozen.doom()).context("keep TCP connections")?)
        }
        _ => None,
    };
    if options.after == After::Kill {
        let patience = Patience::new(LAST_RESORT);
        undo::disarm::disarm(&mut frozen, &collected.tree, &collected.memory, &collected.undo, &patience)?;
        robust::disarm(&collected.tree);
    }
    let frozen_for = frozen.finish(options.after, &Patience::new(LAST_RESORT)).map_err(|e| {
        e.context(Changed { how: "the checkpoint is complete, but not all tasks were ended".to_owned() })
    })?;
    // The checkpoint is complete, and crr ends right after it: what does not come loose at once is let go by that.
    twins.take_off();
    let outside = external::arguments(&collected.files);
    let held_by = collected.files.network_hold.filter(|_| options.after == After::Kill);
    let frozen = frozen_before + frozen_for;
    Ok(Report { tasks, threads, bytes, outside, held_by, frozen, total: started.elapsed() })
}

/// A page server that stands still with the tree would never have taken all pages.
fn refuse_server(inode: u64, holders: &Holders) -> Result<()> {
    if holders.sockets().contains(&inode) {
        bail!(
            "the page server is a task of the tree, which is to stand still\n  hint: run it outside of the tree"
        );
    }
    Ok(())
}

/// Page contents that a dump need not write, since a pre-dump has them.
#[derive(Debug, Default)]
struct Base {
    /// The pre-dump that it is given, if this dump uses pages of it. Else a restore needs none of its series, and whoever gives back what they hold is to
    /// leave alone what others use.
    parent: Option<Parent>,
    /// The number of the first page that is the dump's own.
    first_page: u64,
    kept: BTreeMap<Pid, Vec<Run>>,
    /// Who keeps track, until nothing is in the way of the dump any more. Areas that are tracked have to be theirs.
    keepers: Vec<Keeper>,
}

impl Base {
    /// What a pre-dump has that was not written since.
    fn take(previous: Previous, frozen: &Frozen) -> Result<Self> {
        let previous = previous.while_frozen()?;
        let mut kept = BTreeMap::new();
        for task in &frozen.tasks {
            let right = previous.right(task).with_context(|| format!("task {}", task.pid))?;
            kept.insert(task.pid, right);
        }
        let (parent, first_page) = match kept.values().all(Vec::is_empty) {
            true => (None, 0),
            false => (Some(previous.parent.clone()), previous.first_page),
        };
        let keepers = match previous.into_keeper() {
            Some(keeper) => vec![keeper],
            // The round that this dump builds on may not be the last one.
            None => keeper::of_tasks(&frozen.pids().collect())?,
        };
        Ok(Self { parent, first_page, kept, keepers })
    }

    fn kept(&self, pid: Pid) -> &[Run] {
        self.kept.get(&pid).map_or(&[], Vec::as_slice)
    }
}

/// Stops the tree and looks at it; by a guarded process if there are pseudo terminals or TCP connections, and a second time if it finds
/// seccomp, or connections that were not there before; more often where a signal handler is to end first. What is left of pre-dumps that this dump does not build on is ended.
/// Also returns how long the tree was stopped before it was for the last time.
fn seize_and_collect(
    options: &Options,
    mut previous: Option<Previous>,
    holders: &mut Holders,
    patience: &Patience,
) -> Result<(Frozen, Collected, Duration)> {
    // With a pre-dump there is no second time: what was not written by the first says nothing.
    let mut guarded = holders.has_masters()
        || previous.is_some()
        || options.snapshot
        || inet::are_connected(holders.sockets());
    if guarded {
        guard::enter()?;
    }
    let mut ended = false;
    let mut before = Duration::ZERO;
    let mut interrupted = vdso::Interrupted::default();
    let mut rests = if previous.is_none() { &RESTS[..] } else { &[] };
    loop {
        let mut ready = Ready::get(options.root)?;
        ready.interrupted = std::mem::take(&mut interrupted);
        stats::enter(Stage::Freeze);
        let mut refusals = Refusals::default();
        let mut frozen = Frozen::seize(options.root, patience, &mut refusals)?;
        frozen.guarded = guarded;
        frozen.lets_handlers_end = !rests.is_empty();
        fault::point(Point::KilledFrozen)?;
        fault::strike(Point::TaskDiesFrozen, frozen.last());
        frozen.links = Links::read(&frozen.tasks)?;
        fanotify::refuse_judges(&frozen.links.fanotify_groups(), "dump")?;
        if frozen.late {
            // There is no dump, but time is needed to find everything in its way.
            let patience = &Patience::new(options.timeout);
            let keepers = previous.and_then(Previous::into_keeper).into_iter().collect();
            let base = Base { keepers, ..Base::default() };
            let collected = collect(&mut frozen, options, ready, holders, refusals, patience, base)?;
            return Ok((frozen, collected, before));
        }
        let mut rest = Duration::ZERO;
        if guarded || !frozen.confined {
            let base = previous.take().map(|previous| Base::take(previous, &frozen)).transpose()?;
            match collect(&mut frozen, options, ready, holders, refusals, patience, base.unwrap_or_default())
            {
                Err(e) if e.is::<Unguarded>() => frozen.confined = true,
                Err(e) if e.is::<vdso::Interrupted>() => {
                    interrupted = e.downcast()?;
                    if let Some((&first, left)) = rests.split_first() {
                        (rest, rests) = (Duration::from_millis(first), left);
                    }
                }
                Err(e) if !ended && is_watched(&e) && keeper::end_all(&frozen.pids().collect())? => {
                    ended = true;
                }
                collected => return Ok((frozen, collected?, before)),
            }
        }
        let needs_guard = !guarded && frozen.confined;
        frozen.release();
        before += frozen.elapsed();
        std::thread::sleep(rest);
        if needs_guard {
            guard::enter()?;
            guarded = true;
        }
    }
}

/// How many milliseconds a tree is let run, time after time, for handlers to end that have interrupted a function of the vDSO. What takes longer is
/// dumped as it is.
const RESTS: [u64; 8] = [1, 1, 2, 4, 8, 16, 32, 64];

/// Whether a dump is refused for what a pre-dump may have left.
fn is_watched(error: &anyhow::Error) -> bool {
    let refusals = error.downcast_ref::<Refused>().map_or(&[][..], |refused| &refused.refusals);
    refusals.iter().any(|refusal| refusal.reason.starts_with(memory::WATCHED))
}

/// How long killed tasks may take to be gone: they may have gigabytes to free.
const LAST_RESORT: Duration = Duration::from_secs(60);

/// The kernel and the processor that a dump is made on.
struct Origin {
    release: String,
    boot_id: String,
    xstate_layout: Vec<StateComponent>,
}

impl Origin {
    fn read() -> Result<Self> {
        Ok(Self {
            release: uname().context("uname")?.release().to_string_lossy().into_owned(),
            boot_id: machine::boot_id()?,
            xstate_layout: xsave::layout(process::enabled_xfeatures()),
        })
    }
}

fn inventory(tree: &Tree, origin: Origin) -> Result<Inventory> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let threads = || tree.tasks.iter().flat_map(|task| &task.threads);
    let mut abis: Vec<Abi> = tree.tasks.iter().map(|task| task.abi).collect();
    abis.sort_unstable();
    abis.dedup();
    Ok(Inventory {
        crr_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: origin.release,
        boot_id: origin.boot_id,
        created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        root: tree.tasks.first().map_or(0, |task| task.pid),
        abis,
        tasks: u32::try_from(tree.tasks.len())?,
        threads: u32::try_from(threads().count())?,
        xfeatures_in_use: threads()
            .map(|thread| xstate::in_use(&thread.xstate, &origin.xstate_layout))
            .fold(0, |a, b| a | b),
        xstate_layout: origin.xstate_layout,
        parent: None,
        pre_dump: None,
        files: Vec::new(),
    })
}
