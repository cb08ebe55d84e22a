//! Looking at a stopped tree: from outside first, then asking each task for the rest.
//!
//! Everything that stands in the way is noted, not returned, so that one dump names all of it.

pub(super) mod abi;
pub(super) mod ask;
pub(super) mod outside;
pub(super) mod task;

use super::frames::Frames;
use super::freeze::{DeadTask, Frozen, FrozenTask};
use super::guard::Unguarded;
use super::known::{Known, Mates};
use super::pages::{Contents, Look};
use super::{After, Base, Options};
use super::{room, twins};
use crate::kernel;
use crate::parallel;
use crate::proc::{Dir, stat, status};
use crate::ptrace::{self, Patience};
use crate::refusal::Refusals;
use crate::remote::{Cache, Target};
use crate::resource::file::links::Links;
use crate::resource::file::{self, Terminal};
use crate::resource::inet::Silenced;
use crate::resource::landlock::Bystanders;
use crate::resource::namespace::Namespaces;
use crate::resource::other_name::Helpers;
use crate::resource::path::{Paths, file_type};
use crate::resource::pipe::{Holders, Object};
use crate::resource::sysv::undo;
use crate::resource::tree::{self, Standing, Strangers};
use crate::resource::vdso::Interrupted;
use crate::resource::{
    Refuse, deleted, hugetlb, memory, mempolicy, pkey, program, seccomp, sharing, sysv, zombie,
};
use crate::restore::numbers;
use crate::stats::{self, Stage};
use crate::store::Destination;
use crate::sys::int80::{self, LowBuffers};
use anyhow::{Context, Result, bail};
use images::file::Files;
use images::inventory::StateComponent;
use images::memory::{BLOCK_PAGES, Memory, Space, Vdso, Vma};
use images::sharing::Shares;
use images::task::{Task, Tree, Zombie};
use images::{Abi, Pid};
use nix::sys::stat::SFlag;
use outside::Outside;
use shared::plan::family::{self, Kind};
use shared::plan::tree::Place;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use task::{Areas, collect_task, dump_areas, leave_vdsos};

/// A tree as the images show it, and where its page contents are to be had.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) tree: Tree,
    pub(super) files: Files,
    pub(super) memory: Memory,
    pub(super) contents: Contents,
    /// TCP connections, whose traffic is held until the tree is gone; `None` if it stays.
    pub(super) silenced: Option<Silenced>,
    /// Names that the restore opens files by.
    pub(super) helpers: Helpers,
    /// For each list of what is to be undone at the end of tasks, how its task makes calls.
    pub(super) undo: Vec<Target>,
    /// The pre-dump that this dump builds on.
    pub(super) base: Base,
}

/// What looking takes, and can be had before the tree stands still.
pub(super) struct Ready {
    own_namespaces: Namespaces,
    low: LowBuffers,
    bystanders: Bystanders,
    semaphores: sysv::objects::Sets,
    /// Where the protection key rights of threads lie.
    rights: Option<StateComponent>,
    /// Signal handlers that the tree was let run for.
    pub(super) interrupted: Interrupted,
}

impl Ready {
    /// For the tree under `root`.
    pub(super) fn get(root: Pid) -> Result<Self> {
        parallel::processors();
        int80::available().context("try an ia32 system call")?;
        Ok(Self {
            own_namespaces: Namespaces::of(&Dir::task(nix::unistd::getpid().as_raw())?)?,
            low: LowBuffers::new().context("map a page below 4 GiB")?,
            bystanders: Bystanders::expecting(root)?,
            semaphores: sysv::objects::Sets::look()?,
            rights: pkey::place_of_rights(),
            interrupted: Interrupted::default(),
        })
    }
}

/// What is shared by the tasks of a tree while they are looked at.
struct Tables {
    ready: Ready,
    paths: Paths,
    files: file::Table,
    backings: memory::Backings,
    vdsos: Vec<Vdso>,
    gadgets: Cache,
    filters: seccomp::Table,
    guarded: bool,
    /// The kernel cannot take descriptors from tasks: they send them.
    send_files: bool,
    /// The dump is refused for a thread that did not stop: this is to find what else is in the way.
    late: bool,
    /// Tasks are to be asked again, to make twins.
    snapshot: bool,
    /// The tree can be let run for handlers to end ([`Interrupted`]).
    lets_handlers_end: bool,
    /// Somebody who runs may have memory or files in common with a task; the dump is refused for that, or for something else.
    watched: bool,
    waits: sysv::objects::Waits,
    undo: undo::Lists,
    terminal: Terminal,
    mates: Mates,
    buffer: Vec<u8>,
}

/// Looks at the whole tree.
///
/// # Errors
/// [`crate::refusal::Refused`] with everything in the way, or what failed.
pub(super) fn collect(
    frozen: &mut Frozen,
    options: &Options,
    ready: Ready,
    holders: &mut Holders,
    mut refusals: Refusals,
    patience: &Patience,
    mut base: Base,
) -> Result<Collected> {
    let output = (options.destination == Destination::Stream).then(Object::standard_output).flatten();
    let links = std::mem::take(&mut frozen.links);
    // Who still runs may have closed some, and opened others.
    let links = if frozen.late { Links::default() } else { links };
    let mut tables = Tables {
        ready,
        paths: Paths::new(options.ghost_limit, options.link_remap),
        files: file::Table::new(&options.external, output, links),
        backings: memory::Backings::new(std::mem::take(&mut base.keepers)),
        vdsos: Vec::new(),
        gadgets: Cache::default(),
        filters: seccomp::Table::default(),
        guarded: frozen.guarded,
        send_files: !kernel::has_pidfd_getfd(),
        late: frozen.late,
        snapshot: options.snapshot,
        lets_handlers_end: frozen.lets_handlers_end && !frozen.late,
        watched: true,
        waits: sysv::objects::Waits::default(),
        undo: undo::Lists::default(),
        terminal: None,
        mates: Mates::default(),
        buffer: Vec::new(),
    };
    frozen.set_twins_apart()?;
    let mut task_stats = Vec::with_capacity(frozen.tasks.len());
    for task in &frozen.tasks {
        task_stats.push(
            read_stat(task, &mut tables.buffer).with_context(|| format!("task {}: read stat", task.pid))?,
        );
    }
    let whole = frozen.left_out.is_empty();
    let pids: HashSet<Pid> = frozen.pids().collect();
    let strangers = Strangers::look(&pids)?;
    let shares = sharing::find(&frozen.tasks, &strangers, &mut refusals)?;
    tables.mates = Mates::of(&frozen.tasks, &shares)?;
    let kinds = kinds(&frozen.tasks, &task_stats, &shares);
    let cloned = family::cloned(&kinds);
    let mut standings: Vec<Standing> = Vec::with_capacity(task_stats.len());
    for ((task, stat), &cloned) in frozen.tasks.iter().zip(&task_stats).zip(&cloned) {
        standings.push(standing((task.pid, &task.name), stat, cloned));
    }
    let stranded = |ppid, pgid| family::strands(&kinds, &cloned, ppid, pgid);
    let zombies = look_at_zombies(&frozen.dead, stranded, &mut standings, &mut tables.buffer, &mut refusals)?;
    let terminal = standings.first().map(|root| root.tty).filter(|tty| *tty != 0);
    let (shell_job, lent) = if whole {
        let job = tree::check(&standings, options.shell_job, &strangers, &mut refusals);
        (job, job.is_some())
    } else {
        (None, options.shell_job)
    };
    tables.terminal = terminal.filter(|_| lent);

    tables.watched = frozen.late || !refusals.is_empty();
    stats::enter(Stage::Tasks);
    let mut tasks = Vec::with_capacity(task_stats.len());
    let mut spaces = Vec::with_capacity(task_stats.len());
    let mut outsides = outside::look(&frozen.tasks, &shares, &tables.ready.low)?;
    let areas =
        look_at_areas(&mut frozen.tasks, &shares, &mut outsides, &mut tables, &mut refusals, patience)?;
    let looks = task_stats.into_iter().zip(outsides).zip(areas);
    for ((frozen_task, ((stat, outside), areas)), shares) in frozen.tasks.iter_mut().zip(looks).zip(shares) {
        ptrace::check_interrupted()?;
        let pid = frozen_task.pid;
        let known = Known { shares, tasks: &tasks, spaces: &spaces };
        let look = (stat, outside, areas);
        let one = collect_task(frozen_task, look, known, &mut tables, &mut refusals, patience);
        if let Some((task, space)) = one.map_err(outside::in_task(pid))? {
            tasks.push(task);
            spaces.push(space);
        }
    }
    stats::enter(Stage::Relations);
    if whole {
        tables.files.dump_sockets(
            &mut tables.paths,
            tables.terminal,
            (&options.unix_half, options.sockets.skip_in_flight),
            &mut refusals,
        )?;
        sysv::complete(&mut tables.backings.shared, &mut refusals)?;
        tables.files.give_locks(&pids, &mut tasks, &mut refusals)?;
        tables.files.refuse_leases(&tasks, &spaces, &mut refusals);
        let ptys =
            tables.files.relate_terminals(&standings, tables.terminal, tables.guarded, &mut refusals)?;
        tree::check_terminals(&standings, shell_job, &ptys, &strangers, &mut refusals);
        tables.files.check_network_sockets(options.sockets, &mut refusals)?;
        tables.files.relate_message_queues(holders, &pids, &tasks, &mut refusals)?;
        tables.files.relate_bpf_maps(&pids, &tasks, &mut refusals)?;
        let needs_guard = tables.files.has_connections() || tables.files.has_messages()?;
        if needs_guard && !tables.guarded && refusals.is_empty() {
            bail!(Unguarded);
        }
        tables.files.finish_pipes(&mut refusals)?;
        let had_requests = spaces.iter().any(|space| !space.aio.is_empty());
        tables.files.finish_events(&tasks, &zombies, had_requests, &mut tables.paths, &mut refusals)?;
    }
    if whole && tasks.len() == frozen.tasks.len() {
        sharing::check(&frozen.tasks, &tasks, &spaces, &mut refusals)?;
        let names: Vec<(Pid, &str)> =
            frozen.tasks.iter().map(|task| (task.pid, task.name.as_str())).collect();
        mempolicy::shared::settle(&names, &mut spaces, &mut refusals)?;
    }
    let undo = tables.undo.finish(&strangers, &mut refusals)?;
    let (ipc, undo) =
        sysv::objects::dump(&mut tables.ready.semaphores, &pids, &tables.waits, undo, &mut refusals)?;
    tables.files.refuse_outsiders(holders, &pids, &mut refusals)?;
    holders.refuse_masters(tables.files.masters(), &mut refusals);
    tables.backings.refuse_outsiders(&pids, &mut refusals)?;
    tables.paths.deleted().refuse_outsiders(&pids, &mut refusals)?;
    refusals.finish("dump")?;
    base.keepers = std::mem::take(&mut tables.backings.keepers);
    stats::enter(Stage::FindPages);
    // Private memory comes last: of a snapshot, all else is copied while the tree stands still.
    let mut contents = Contents::beyond(base.first_page);
    let mut shared = Vec::with_capacity(tables.backings.shared.len());
    for object in tables.backings.shared {
        shared.push(contents.add_shared(object).context("look for pages of shared memory")?);
    }
    let (mut paths, deleted, helpers) = tables.paths.into_list()?;
    for deleted::Found { path, file, .. } in deleted {
        let record = &mut paths[path.0 as usize];
        if let Some(deleted) = record.deleted.as_mut().filter(|_| file_type(record.mode) == SFlag::S_IFREG) {
            let name = || String::from_utf8_lossy(&record.path).into_owned();
            deleted.runs =
                contents.add_file(file, name()).with_context(|| format!("{}: look for contents", name()))?;
        }
    }
    for (path, place) in program::of_tree(&tasks, &spaces) {
        let record = &mut paths[path.0 as usize];
        if !program::is_named(record) {
            continue;
        }
        if let Some((index, at)) = place {
            let task = &frozen.tasks[index];
            record.build_id = program::build_id(task.deputy(), &task.dir, at)?;
        }
        if options.embed_files {
            let file = program::open(record)?;
            let name = || String::from_utf8_lossy(record.place()).into_owned();
            let mut copy = program::copy(&file).with_context(name)?;
            copy.runs = contents.add_file(file, name()).with_context(name)?;
            record.embedded = Some(Box::new(copy));
        }
    }
    contents.zero_devices = memory::zero_devices(&paths);
    let found = find_private(frozen, &tasks, &mut spaces, &base, Some(Frames::default()), &mut contents)?;
    if !found {
        log::warn!("the kernel moved pages that tasks share: what they share is not kept");
        find_private(frozen, &tasks, &mut spaces, &base, None, &mut contents)?;
    }
    stats::enter(Stage::Relations);
    let memory = Memory {
        spaces,
        shared,
        vdsos: tables.vdsos,
        first_page: base.first_page,
        page_count: contents.page_count(),
        block_pages: BLOCK_PAGES,
        block_crcs: Vec::new(),
        packing: None,
    };
    let tree = Tree { tasks, shell_job, zombies, filters: tables.filters.into_filters(), ipc };
    room::check(&tree, &memory.spaces, &memory.shared)?;
    sysv::check_parts(&tree.tasks, &memory.spaces, &memory.shared)?;
    // Only now, when nothing else is in the way: it touches them.
    let mut on_their_way = Refusals::default();
    tables.files.look_into_terminals(&mut on_their_way)?;
    on_their_way.finish("dump")?;
    tables.files.look_into_message_queues()?;
    tables.files.look_into_bpf_maps()?;
    let silenced = tables.files.look_at_connections(options.sockets)?;
    tables.files.note_pending_events()?;
    let silenced = match options.after {
        After::Kill => Some(silenced),
        // What is known of connections is known. Their other ends may not be able to wait.
        After::Run | After::Stop => {
            silenced.let_go()?;
            None
        }
    };
    let files = tables.files.into_files(paths);
    let mut too_many = Refusals::default();
    numbers::check(&mut too_many, &tree, &files, &memory);
    hugetlb::check(&memory, &files, &mut too_many)?;
    too_many.finish("dump")?;
    Ok(Collected { tree, files, memory, contents, silenced, helpers, undo, base })
}

/// The areas of all tasks but of those in the address space of another one, and what their threads do in vDSOs: before the first task is asked, since it may
/// turn out that the tree has to run on for a moment.
fn look_at_areas(
    tasks: &mut [FrozenTask],
    shares: &[Shares],
    outsides: &mut [Outside],
    tables: &mut Tables,
    refusals: &mut Refusals,
    patience: &Patience,
) -> Result<Vec<Option<Areas>>> {
    let mut all: Vec<Option<Areas>> = Vec::with_capacity(tasks.len());
    let mut places = HashMap::new();
    let mut interrupted = Interrupted::default();
    for (index, ((task, outside), shares)) in tasks.iter_mut().zip(outsides).zip(shares).enumerate() {
        let pid = task.pid;
        let own = match shares.memory {
            Some(_) => None,
            None => {
                let refuse = &mut Refuse::new(refusals, pid, &task.name);
                let read = outside.areas.take();
                let areas = dump_areas(task.deputy(), &task.dir, read, tables, refuse);
                Some(areas.map_err(outside::in_task(pid))?)
            }
        };
        all.push(own);
        places.insert(pid, index);
        let place = shares.memory.map_or(Some(index), |holder| places.get(&holder).copied());
        if let Some(areas) = place.and_then(|place| all[place].as_ref()).filter(|areas| areas.abi.is_some()) {
            leave_vdsos(task, &outside.statuses, areas, tables, &mut interrupted, patience)
                .map_err(outside::in_task(pid))?;
        }
    }
    if interrupted.may_end(&tables.ready.interrupted) {
        bail!(interrupted);
    }
    Ok(all)
}

/// What `stat` tells of a task: memory by a living thread, what its parent is told by the leader.
fn read_stat(task: &FrozenTask, buffer: &mut Vec<u8>) -> Result<stat::Stat> {
    task.dir.read_record("stat", buffer)?;
    let mut stat = stat::parse(buffer)?;
    if task.leader_ended() {
        task.dir.read_record(&format!("task/{}/stat", task.pid), buffer)?;
        let of_leader = stat::parse(buffer)?;
        (stat.exit_signal, stat.exit_code) = (of_leader.exit_signal, of_leader.exit_code);
    }
    Ok(stat)
}

fn standing((pid, name): (Pid, &str), stat: &stat::Stat, cloned: bool) -> Standing {
    Standing {
        place: Place { pid, ppid: stat.ppid, pgid: stat.pgid, sid: stat.sid, cloned },
        tty: stat.tty,
        name: name.to_owned(),
    }
}

fn kinds(tasks: &[FrozenTask], task_stats: &[stat::Stat], shares: &[Shares]) -> Vec<Kind> {
    (tasks.iter().zip(task_stats).zip(shares))
        .map(|((task, stat), &shares)| {
            // What is no signal is no SIGCHLD.
            let exit_signal = u8::try_from(stat.exit_signal).unwrap_or(0);
            Kind { pid: task.pid, ppid: stat.ppid, exit_signal, shares }
        })
        .collect()
}

/// `stranded` tells whether a zombie is below a task that is cloned, or in the group of one.
fn look_at_zombies(
    dead: &[DeadTask],
    stranded: impl Fn(Pid, Pid) -> bool,
    standings: &mut Vec<Standing>,
    buffer: &mut Vec<u8>,
    refusals: &mut Refusals,
) -> Result<Vec<Zombie>> {
    let mut zombies = Vec::with_capacity(dead.len());
    for DeadTask { pid, name, dir } in dead {
        dir.read_record("stat", buffer).with_context(|| format!("task {pid}: read stat"))?;
        let stat = stat::parse(buffer).with_context(|| format!("task {pid}"))?;
        dir.read_record("status", buffer).with_context(|| format!("task {pid}: read status"))?;
        let status = status::parse(buffer).with_context(|| format!("task {pid}"))?;
        let mut refuse = Refuse::new(refusals, *pid, name);
        let stranded = stranded(stat.ppid, stat.pgid);
        zombie::refuse_odd(&stat, stranded, &mut refuse);
        standings.push(standing((*pid, name), &stat, stranded));
        zombies.extend(zombie::dump(*pid, &stat, &status, &mut refuse));
    }
    Ok(zombies)
}

/// The contents of private memory, each with its place in the page file. With `frames`, each page that several tasks share once; false, and nothing is found,
/// if the kernel moved such pages meanwhile.
fn find_private(
    frozen: &Frozen,
    tasks: &[Task],
    spaces: &mut [Space],
    base: &Base,
    mut frames: Option<Frames>,
    contents: &mut Contents,
) -> Result<bool> {
    let before = contents.mark();
    // Exec leaves nothing that could be shared with a task of another ABI.
    let owners = |abi| tasks.iter().filter(|task| task.abi == abi && task.shares.memory.is_none()).count();
    let related = [Abi::X86_64, Abi::Ia32].into_iter().filter(|&abi| owners(abi) > 1).collect::<Vec<_>>();
    for phase in [Phase::Frozen, Phase::Snapshot] {
        let occupied = frozen.tasks.iter().zip(tasks).zip(&mut *spaces);
        for ((task, record), space) in occupied {
            let groups = phase.areas(task, &space.vmas);
            if groups.is_empty() {
                continue;
            }
            ptrace::check_interrupted()?;
            let pagemap = File::from(task.dir.open("pagemap").context("open pagemap")?);
            let memory = File::from(task.dir.open("mem").context("open mem")?);
            let source = match phase {
                Phase::Frozen => contents.add_task(task.deputy(), memory),
                Phase::Snapshot => contents.add_twinned(task.pid, task.deputy(), memory),
            };
            let mut frames = frames.as_mut().filter(|_| related.contains(&record.abi));
            if let Some(frames) = &mut frames {
                frames.add_task(source, pagemap.try_clone().context("duplicate pagemap")?);
            }
            for areas in groups {
                let (look, kept) = (Look::Only(&pagemap), base.kept(task.pid));
                let (runs, guards) = contents
                    .find_private(source, look, (&areas, &task.common), kept, frames.as_deref_mut())
                    .with_context(|| format!("task {}: look for pages", task.pid))?;
                space.runs.extend(runs);
                space.guards.extend(guards);
            }
            space.runs.sort_unstable_by_key(|run| run.start);
            space.guards.sort_unstable_by_key(|guard| guard.start);
        }
    }
    let confirm = |frames: Frames| frames.confirm(|page| contents.holder(page));
    let confirmed = frames.map_or(Ok(true), confirm).context("look at shared pages again")?;
    if !confirmed {
        contents.rewind(before);
        for space in spaces {
            space.runs.clear();
            space.guards.clear();
        }
    }
    Ok(confirmed)
}

/// When contents are copied; those that come first come first in the page file.
#[derive(Clone, Copy)]
enum Phase {
    /// While the tree stands still.
    Frozen,
    /// When it runs on, from a twin if the task can make one.
    Snapshot,
}

impl Phase {
    /// The areas of a task whose contents are copied then, as they are looked at together.
    fn areas<'a>(self, task: &FrozenTask, areas: &'a [Vma]) -> Vec<Cow<'a, [Vma]>> {
        let is_empty = areas.is_empty();
        match (self, task.target.is_some()) {
            _ if is_empty => Vec::new(),
            (Self::Frozen, false) => vec![Cow::Borrowed(areas)],
            (Self::Snapshot, false) => Vec::new(),
            // Few, and far between.
            (Self::Frozen, true) => {
                areas.chunks(1).filter(|area| !twins::has_contents(&area[0])).map(Cow::Borrowed).collect()
            }
            (Self::Snapshot, true) => {
                vec![areas.iter().filter(|area| twins::has_contents(area)).cloned().collect()]
            }
        }
    }
}
