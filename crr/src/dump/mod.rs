//! Dump: seize, collect, write, finish.

mod collect;
mod frames;
pub(crate) mod freeze;
pub(crate) mod guard;
mod interrupt;
mod known;
mod pages;
mod rights;
mod room;
mod unstoppable;

use crate::changed::Changed;
use crate::progress::Progress;
use crate::ptrace::{self, Patience};
use crate::refusal::Refusals;
use crate::resource::external::{self, Key};
use crate::resource::inet::Policy;
use crate::resource::pipe::Holders;
use crate::resource::{robust, xstate};
use crate::store::Writer;
use crate::sys::int80::LowBuffer;
use crate::sys::limits;
use crate::sys::{process, xsave};
use anyhow::{Context, Result};
use collect::{Collected, collect};
use freeze::Frozen;
use guard::Unguarded;
use images::inventory::Inventory;
use images::task::Tree;
use images::{Abi, Pid};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

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
    /// Where the images go; must exist.
    pub images_dir: PathBuf,
    /// What becomes of the tree.
    pub after: After,
    /// Accept a session, process group and terminal from outside of the tree.
    pub shell_job: bool,
    /// What becomes of connections.
    pub sockets: Policy,
    /// Files that stay outside of the checkpoint.
    pub external: Vec<Key>,
    /// Bytes that a deleted file may hold.
    pub ghost_limit: u64,
    /// Make names for files whose own is gone while others lead to them.
    pub link_remap: bool,
    /// Put copies of programs and libraries into the images.
    pub embed_files: bool,
    /// How long seizing the tree may take.
    pub timeout: Duration,
    /// Show progress on stderr when it is a terminal.
    pub progress: bool,
}

/// What a dump did, for the closing line and for `--json`-like consumers.
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
    /// From the first task stopped to the last resumed or killed.
    pub frozen: Duration,
    /// Whole dump.
    pub total: Duration,
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
    // Dropped last: a signal that came ends crr only after everything is put back.
    let _held = interrupt::Held::block().context("block signals")?;
    rights::check()?;
    limits::raise_open_files()?;
    let patience = Patience::new(options.timeout);
    let writer = Writer::create(&options.images_dir)?;
    let mut holders = Holders::scan(&freeze::list(options.root)?)?;
    let (frozen, mut collected) = seize_and_collect(options, &mut holders, &patience)?;
    collected.memory.block_crcs = {
        let total = collected.contents.page_count() * images::id::PAGE_SIZE;
        let progress = Progress::new(options.progress, total, "writing pages");
        collected.contents.write(writer.pages(), &progress)?
    };
    ptrace::check_interrupted()?;
    let inventory = inventory(&collected.tree)?;
    let (tasks, threads) = (inventory.tasks, inventory.threads);
    let bytes = writer.finish(inventory, &collected.tree, &collected.files, &collected.memory)?;
    collected.helpers.keep();
    let _silent = match collected.silenced {
        Some(silenced) if options.after == After::Kill => {
            Some(silenced.outlive(|| frozen.doom()).context("keep TCP connections")?)
        }
        _ => None,
    };
    if options.after == After::Kill {
        robust::disarm(&collected.tree);
    }
    let frozen_for = frozen.finish(options.after, &Patience::new(LAST_RESORT)).map_err(|e| {
        e.context(Changed { how: "the checkpoint is complete, but not all tasks were ended".to_owned() })
    })?;
    let outside = external::arguments(&collected.files);
    let held_by = collected.files.network_hold.filter(|_| options.after == After::Kill);
    Ok(Report { tasks, threads, bytes, outside, held_by, frozen: frozen_for, total: started.elapsed() })
}

/// Stops the tree and looks at it; by a guarded process if there are pseudo terminals, and a second time if it finds
/// seccomp.
fn seize_and_collect(
    options: &Options,
    holders: &mut Holders,
    patience: &Patience,
) -> Result<(Frozen, Collected)> {
    let mut guarded = holders.has_masters();
    if guarded {
        guard::enter()?;
    }
    loop {
        let low = LowBuffer::new().context("map a page below 4 GiB")?;
        let mut refusals = Refusals::default();
        let mut frozen = Frozen::seize(options.root, patience, &mut refusals)?;
        frozen.guarded = guarded;
        if frozen.late {
            // There is no dump, but time is needed to find everything in its way.
            let patience = &Patience::new(options.timeout);
            let collected = collect(&mut frozen, options, low, holders, refusals, patience)?;
            return Ok((frozen, collected));
        }
        if guarded || !frozen.confined {
            match collect(&mut frozen, options, low, holders, refusals, patience) {
                Err(e) if e.is::<Unguarded>() => frozen.confined = true,
                collected => return Ok((frozen, collected?)),
            }
        }
        drop(frozen);
        guard::enter()?;
        guarded = true;
    }
}

/// How long killed tasks may take to be gone: they may have gigabytes to free.
const LAST_RESORT: Duration = Duration::from_secs(60);

fn inventory(tree: &Tree) -> Result<Inventory> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let threads = || tree.tasks.iter().flat_map(|task| &task.threads);
    let mut abis: Vec<Abi> = tree.tasks.iter().map(|task| task.abi).collect();
    let xstate_layout = xsave::layout(process::enabled_xfeatures());
    abis.sort_unstable();
    abis.dedup();
    Ok(Inventory {
        crr_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: read("/proc/sys/kernel/osrelease")?.trim_end().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned(),
        created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        root: tree.tasks.first().map_or(0, |task| task.pid),
        abis,
        tasks: u32::try_from(tree.tasks.len())?,
        threads: u32::try_from(threads().count())?,
        xfeatures_in_use: threads()
            .map(|thread| xstate::in_use(&thread.xstate, &xstate_layout))
            .fold(0, |a, b| a | b),
        xstate_layout,
        files: Vec::new(),
    })
}
