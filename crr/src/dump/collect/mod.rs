//! Looking at a stopped tree: from outside first, then asking each task for the rest.
//!
//! Everything that stands in the way is noted, not returned, so that one dump names all of it.

use super::Options;
use super::freeze::{DeadTask, Frozen, FrozenTask};
use super::guard::Unguarded;
use super::known::{self, Known, Mates};
use super::pages::Contents;
use super::room;
use crate::proc::{Dir, smaps, stat, status};
use crate::ptrace::{Patience, Stopped, regs};
use crate::refusal::Refusals;
use crate::remote::{
    Cache, Executor, Gadget, NoRoom, Target, finds_back, in_leftover, in_restart_block, is_leftover,
};
use crate::resource::file::{self, Terminal};
use crate::resource::landlock::Bystanders;
use crate::resource::ldt::AskLdt;
use crate::resource::namespace::Namespaces;
use crate::resource::path::{Paths, file_type};
use crate::resource::pipe::Holders;
use crate::resource::signal::{self, AskSignals};
use crate::resource::task::{self as properties, AskTask};
use crate::resource::thread::{self, AskThread};
use crate::resource::tracees::AskTracees;
use crate::resource::tree::{self, Standing, Strangers};
use crate::resource::{
    Refuse, deleted, dispatch, group_stop, limits, lock_future, memory, mempolicy, robust, rseq, seccomp,
    sharing, timer, zombie,
};
use crate::sys::int80::LowBuffer;
use crate::sys::vm;
use anyhow::{Context, Result, bail};
use images::attribute::{AreaPolicy, TaskAttributes};
use images::file::Files;
use images::memory::{Backing, Memory, Space, Vdso, Vma};
use images::sharing::Shares;
use images::task::{Task, Tree, Zombie};
use images::thread::{Regs, Thread};
use images::{Abi, Addr, Pid};
use nix::sys::stat::SFlag;
use shared::plan::family::{self, Kind};
use shared::plan::tree::Place;
use std::fs::File;

/// A tree as the images show it, and where its page contents are to be had.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) tree: Tree,
    pub(super) files: Files,
    pub(super) memory: Memory,
    pub(super) contents: Contents,
}

/// What is shared by the tasks of a tree while they are looked at.
struct Tables {
    own_namespaces: Namespaces,
    low: LowBuffer,
    paths: Paths,
    files: file::Table,
    backings: memory::Backings,
    vdsos: Vec<Vdso>,
    gadgets: Cache,
    filters: seccomp::Table,
    guarded: bool,
    /// The dump is refused for a thread that did not stop: this is to find what else is in the way.
    late: bool,
    bystanders: Bystanders,
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
    low: LowBuffer,
    holders: &mut Holders,
    mut refusals: Refusals,
    patience: &Patience,
) -> Result<Collected> {
    let mut tables = Tables {
        own_namespaces: Namespaces::of(&Dir::task(nix::unistd::getpid().as_raw())?)?,
        low,
        paths: Paths::new(options.ghost_limit),
        files: file::Table::default(),
        backings: memory::Backings::default(),
        vdsos: Vec::new(),
        gadgets: Cache::default(),
        filters: seccomp::Table::default(),
        guarded: frozen.guarded,
        late: frozen.late,
        bystanders: Bystanders::default(),
        terminal: None,
        mates: Mates::default(),
        buffer: Vec::new(),
    };
    let mut stats = Vec::with_capacity(frozen.tasks.len());
    for task in &frozen.tasks {
        stats.push(
            read_stat(task, &mut tables.buffer).with_context(|| format!("task {}: read stat", task.pid))?,
        );
    }
    let whole = frozen.left_out.is_empty();
    let strangers = Strangers::look(&frozen.pids().collect())?;
    let shares = sharing::find(&frozen.tasks, &strangers, &mut refusals)?;
    tables.mates = Mates::of(&frozen.tasks, &shares)?;
    let kinds = kinds(&frozen.tasks, &stats, &shares);
    let cloned = family::cloned(&kinds);
    let mut standings: Vec<Standing> = Vec::with_capacity(stats.len());
    for ((task, stat), &cloned) in frozen.tasks.iter().zip(&stats).zip(&cloned) {
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

    let mut tasks = Vec::with_capacity(stats.len());
    let mut spaces = Vec::with_capacity(stats.len());
    for ((frozen_task, stat), shares) in frozen.tasks.iter_mut().zip(stats).zip(shares) {
        let pid = frozen_task.pid;
        let known = Known { shares, tasks: &tasks, spaces: &spaces };
        let one = collect_task(frozen_task, stat, known, &mut tables, &mut refusals, patience);
        if let Some((task, space)) = one.with_context(|| format!("task {pid}"))? {
            tasks.push(task);
            spaces.push(space);
        }
    }
    if whole {
        tables.files.dump_sockets(&mut tables.paths, tables.terminal, &mut refusals)?;
        let living: Vec<Pid> = frozen.tasks.iter().map(|task| task.pid).collect();
        tables.files.give_locks(&living, &mut tasks, &mut refusals)?;
        let ptys =
            tables.files.relate_terminals(&standings, tables.terminal, tables.guarded, &mut refusals)?;
        tree::check_terminals(&standings, shell_job, &ptys, &strangers, &mut refusals);
        tables.files.finish_events(&tasks, &zombies, &mut refusals)?;
    }
    if whole && tasks.len() == frozen.tasks.len() {
        sharing::check(&frozen.tasks, &tasks, &spaces, &mut refusals)?;
    }
    let pids: Vec<Pid> = frozen.pids().collect();
    tables.files.refuse_outsiders(holders, &pids, &mut refusals)?;
    holders.refuse_masters(tables.files.masters(), &mut refusals);
    tables.backings.refuse_outsiders(&pids, &mut refusals)?;
    tables.paths.deleted().refuse_outsiders(&pids, &mut refusals)?;
    refusals.finish("dump")?;
    let (memory, mut contents) = find_contents(frozen, spaces, tables.backings, tables.vdsos)?;
    let (mut paths, deleted) = tables.paths.into_list();
    for deleted::Found { path, file, .. } in deleted {
        let record = &mut paths[path.0 as usize];
        if let Some(deleted) = record.deleted.as_mut().filter(|_| file_type(record.mode) == SFlag::S_IFREG) {
            let name = || String::from_utf8_lossy(&record.path).into_owned();
            deleted.runs =
                contents.add_file(file, name()).with_context(|| format!("{}: look for contents", name()))?;
        }
    }
    let memory = Memory { page_count: contents.page_count(), ..memory };
    let tree = Tree { tasks, shell_job, zombies, filters: tables.filters.into_filters() };
    room::check(&tree, &memory.spaces)?;
    // Only now, when nothing else is in the way: it touches them.
    let mut on_their_way = Refusals::default();
    tables.files.look_into_terminals(&mut on_their_way)?;
    on_their_way.finish("dump")?;
    let files = tables.files.into_files(paths);
    Ok(Collected { tree, files, memory, contents })
}

/// What `stat` tells of a task: memory by a living thread, what its parent is told by the leader.
fn read_stat(task: &FrozenTask, buffer: &mut Vec<u8>) -> Result<stat::Stat> {
    task.dir.read("stat", buffer)?;
    let mut stat = stat::parse(buffer)?;
    if task.leader_ended() {
        task.dir.read(&format!("task/{}/stat", task.pid), buffer)?;
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

fn kinds(tasks: &[FrozenTask], stats: &[stat::Stat], shares: &[Shares]) -> Vec<Kind> {
    (tasks.iter().zip(stats).zip(shares))
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
        dir.read("stat", buffer).with_context(|| format!("task {pid}: read stat"))?;
        let stat = stat::parse(buffer).with_context(|| format!("task {pid}"))?;
        dir.read("status", buffer).with_context(|| format!("task {pid}: read status"))?;
        let status = status::parse(buffer).with_context(|| format!("task {pid}"))?;
        let mut refuse = Refuse::new(refusals, *pid, name);
        let stranded = stranded(stat.ppid, stat.pgid);
        zombie::refuse_odd(&stat, stranded, &mut refuse);
        standings.push(standing((*pid, name), &stat, stranded));
        zombies.extend(zombie::dump(*pid, &stat, &status, &mut refuse));
    }
    Ok(zombies)
}

/// One task. Nothing is asked of a task that could not answer or would be harmed. `None` when it is of an ABI that crr does not know, which is then refused.
fn collect_task(
    task: &mut FrozenTask,
    stat: stat::Stat,
    known: Known<'_>,
    tables: &mut Tables,
    refusals: &mut Refusals,
    patience: &Patience,
) -> Result<Option<(Task, Space)>> {
    let shares = known.shares;
    let (deputy, leader_ended) = (task.deputy(), task.leader_ended());
    let FrozenTask { pid, name, dir, threads, stopped_by, waits } = task;
    let (pid, dir) = (*pid, &*dir);
    let refuse = &mut Refuse::new(refusals, pid, name);
    let namespaces = Namespaces::of(dir)?;
    namespaces.refuse_others(&tables.own_namespaces, refuse);
    namespaces.refuse_threads(dir, threads, refuse)?;
    let (vmas, leftovers) = match known.areas(&tables.mates) {
        Some(areas) => areas,
        None => dump_areas(deputy, dir, tables, refuse)?,
    };
    let fds = match shares.files {
        Some(_) => Vec::new(),
        None => tables.files.dump_task(deputy, dir, &mut tables.paths, tables.terminal, refuse)?,
    };
    let mut link = |name| file::dump_link(dir, name, &mut tables.paths, refuse);
    let exe = link("exe")?;
    let (cwd, root) = match known.directories() {
        Some(other) => (other.cwd, other.root),
        None => (link("cwd")?, link("root")?),
    };
    let outside = properties::dump_outside(dir, &mut tables.buffer)?;
    let timers = timer::dump_timers(pid, dir, &mut tables.buffer, refuse)?;
    let statuses = read_statuses(dir, threads, &mut tables.buffer)?;
    let Some(whole) = statuses.first() else { return Ok(None) };
    let Some(abi) = dump_vdso(deputy, dir, &vmas, &mut tables.vdsos, refuse)? else { return Ok(None) };

    let mut records = Vec::with_capacity(threads.len());
    let mut may_run = true;
    for (thread, status) in threads.iter().zip(&statuses) {
        let registration = rseq::dump(deputy, thread, refuse)?;
        may_run &= registration.may_run;
        let wait = waits.get(thread.tid());
        let mut record = thread::dump_outside(thread, status, wait, &tables.low, refuse)?;
        record.rseq = registration.rseq;
        robust::check(&record, &vmas, refuse);
        record.seccomp = tables.filters.dump(thread, status, refuse)?;
        check_leftovers(&record, &leftovers, stopped_by.is_some(), refuse);
        records.push(record);
    }
    // Such tasks take a guard (`super::guard`), which is for dumps that can come about.
    let needs_guard = statuses.iter().any(|status| status.seccomp != 0)
        || records.iter().any(|record| record.dispatch.is_some());
    may_run &= tables.guarded || !(tables.late && needs_guard);
    let mut record = Task {
        pid,
        ppid: stat.ppid,
        pgid: stat.pgid,
        sid: stat.sid,
        exit_signal: u8::try_from(stat.exit_signal).context("exit signal")?,
        shares,
        abi,
        exe,
        cwd,
        root,
        umask: whole.umask.context("no umask")?,
        personality: outside.personality,
        dumpable: 1,
        child_subreaper: false,
        oom_score_adj: outside.oom_score_adj,
        coredump_filter: outside.coredump_filter,
        xcomp_permission: 0,
        attributes: TaskAttributes::default(),
        rlimits: limits::dump_limits(dir, &mut tables.buffer)?,
        actions: Vec::new(),
        pending: signal::dump_shared_pending(threads)?,
        stopped: None,
        interval_timers: Default::default(),
        timers,
        fds,
        locks: Vec::new(),
        ldt: Vec::new(),
        threads: records,
    };
    let (mut layout, mut policies) = (stat.layout, Vec::new());
    let asked = may_run
        && seccomp::suspend(threads, &statuses, tables.guarded, refuse)?
        && can_be_asked(threads, &leftovers)?
        && tables.mates.let_ask(pid, &shares, |regs| stands_in(regs, &leftovers));
    tables.mates.note(pid, &leftovers, asked);
    if asked {
        let gadget = find_gadget(deputy, abi, &vmas, &mut tables.gadgets)?;
        let (ignored, caught) = (whole.ignored, whole.caught);
        let target = Target { pid, deputy, abi, gadget, ignored, caught, leftovers };
        let resident_kib = whole.resident_kib;
        let (guarded, late) = (tables.guarded, tables.late);
        let facts =
            Facts { dir, vmas: &vmas, resident_kib, bystanders: &mut tables.bystanders, guarded, late };
        dispatch::suspend(threads, &record.threads, tables.guarded)?;
        let told = ask(target, threads, &mut record, facts, refuse, patience);
        dispatch::resume(threads, &record.threads)?;
        if let Some(told) = told? {
            (layout.brk, policies) = (told.brk, told.policies);
        }
    }
    // Only now: timers go on while the task is asked, and one that expired meanwhile has left its signal here.
    signal::complete_pending(threads, &mut record)?;
    record.stopped = group_stop::dump(*stopped_by, stat.exit_code, &mut record);
    timer::take_signals(&mut record);
    if leader_ended {
        // In a stopped task the kernel shows another code in its place (do_task_stat(), fs/proc/array.c).
        let exit_code = stopped_by.is_none().then_some(stat.exit_code);
        let ended = thread::dump_ended(pid, dir, exit_code, &record.threads, refuse);
        record.threads.insert(0, ended.with_context(|| format!("thread {pid}, which has ended"))?);
    }
    if shares.memory.is_some() {
        return Ok(Some((record, known::no_space())));
    }
    dir.read("auxv", &mut tables.buffer).context("read auxv")?;
    let auxv = cut_auxv(&tables.buffer, abi).to_vec();
    Ok(Some((record, Space { vmas, runs: Vec::new(), policies, layout, auxv })))
}

fn read_statuses(dir: &Dir, threads: &[Stopped], buffer: &mut Vec<u8>) -> Result<Vec<status::Status>> {
    let mut statuses = Vec::with_capacity(threads.len());
    for thread in threads {
        let tid = thread.tid();
        dir.read(&format!("task/{tid}/status"), buffer)
            .with_context(|| format!("thread {tid}: read status"))?;
        statuses.push(status::parse(buffer).with_context(|| format!("thread {tid}"))?);
    }
    Ok(statuses)
}

/// The areas of a task, and where those lie that dumps have left in it that were killed.
fn dump_areas(
    pid: Pid,
    dir: &Dir,
    tables: &mut Tables,
    refuse: &mut Refuse<'_>,
) -> Result<(Vec<Vma>, Vec<Addr>)> {
    dir.read("smaps", &mut tables.buffer).context("read smaps")?;
    let (mut vmas, mut leftovers) = (Vec::new(), Vec::new());
    let Tables { buffer, backings, paths, .. } = tables;
    smaps::parse(buffer, |area| -> Result<()> {
        if is_leftover(pid, &area) {
            leftovers.push(Addr(area.start));
        } else {
            vmas.extend(backings.dump_area(&area, dir, paths, refuse)?);
        }
        Ok(())
    })?;
    Ok((vmas, leftovers))
}

/// Whether a thread has not yet found its way out of the code of a dump that was just killed.
fn stands_in(regs: &Regs, leftovers: &[Addr]) -> bool {
    in_leftover(leftovers, regs::ip(regs)) || in_leftover(leftovers, regs::sp(regs))
}

fn check_leftovers(thread: &Thread, leftovers: &[Addr], stopped: bool, refuse: &mut Refuse<'_>) {
    if stands_in(&thread.regs, leftovers) {
        let object = format!("thread {}", thread.tid);
        let hint = if stopped { "continue it with SIGCONT, and dump again" } else { "dump again" };
        refuse.with_hint(object, "still in the code of a dump that was killed", hint);
    }
}

/// The ABI of a task, by the vDSO that exec gave it or, where it has none, by its program. Records the vDSO.
fn dump_vdso(
    pid: Pid,
    dir: &Dir,
    vmas: &[Vma],
    vdsos: &mut Vec<Vdso>,
    refuse: &mut Refuse<'_>,
) -> Result<Option<Abi>> {
    let mut found = vmas.iter().filter(|vma| vma.backing == Backing::Vdso);
    let Some(vma) = found.next() else {
        let mut header = [0u8; 64];
        let exe = dir.open("exe").context("open exe")?;
        nix::unistd::read(&exe, &mut header).context("read exe")?;
        return Ok(abi_of(&header, refuse));
    };
    if found.next().is_some() {
        refuse.because("vDSO", "mapped more than once");
    }
    let mut image = vec![0u8; usize::try_from(vma.end.0 - vma.start.0)?];
    vm::read_exact(pid, vma.start, &mut image).context("read the vDSO")?;
    let Some(abi) = abi_of(&image, refuse) else { return Ok(None) };
    match vdsos.iter().find(|vdso| vdso.abi == abi) {
        Some(vdso) if vdso.image == image => {}
        Some(_) => refuse.because("vDSO", format!("differs from that of another {abi} task of the tree")),
        None => vdsos.push(Vdso { abi, image }),
    }
    Ok(Some(abi))
}

/// Why x32 tasks are refused.
const X32: &str =
    "x32 is not supported: a third ABI, 64-bit code with 32-bit pointers, which few kernels are built with";

/// The ABI that an ELF header is for.
fn abi_of(header: &[u8], refuse: &mut Refuse<'_>) -> Option<Abi> {
    const CLASS_32: u8 = 1;
    const CLASS_64: u8 = 2;
    const EM_386: u8 = 3;
    const EM_X86_64: u8 = 62;
    match header {
        [0x7f, b'E', b'L', b'F', class, ..] if header.len() > 19 => match (*class, header[18], header[19]) {
            (CLASS_64, EM_X86_64, 0) => return Some(Abi::X86_64),
            (CLASS_32, EM_386, 0) => return Some(Abi::Ia32),
            (CLASS_32, EM_X86_64, 0) => refuse.because("ABI", X32),
            _ => refuse.because("ABI", "neither x86_64 nor ia32"),
        },
        _ => refuse.because("ABI", "neither x86_64 nor ia32: no ELF program"),
    }
    None
}

/// `/proc/PID/auxv` up to its end mark: what follows is room that the kernel keeps.
fn cut_auxv(auxv: &[u8], abi: Abi) -> &[u8] {
    let pair = if abi == Abi::X86_64 { 16 } else { 8 };
    let end = auxv.chunks_exact(pair).position(|entry| entry[..pair / 2].iter().all(|byte| *byte == 0));
    &auxv[..end.map_or(auxv.len(), |at| (at + 1) * pair)]
}

/// Whether all threads can make system calls: they stand where they were asked to stop, their registers can be set and put back,
/// and they do not need what a killed dump left in the task.
fn can_be_asked(threads: &[Stopped], leftovers: &[Addr]) -> Result<bool> {
    for thread in threads {
        let regs = thread.regs()?;
        let usable = thread.stop().is_asked_for()
            && regs::not_settable(&regs).is_none()
            && !stands_in(&regs, leftovers);
        if !usable {
            return Ok(false);
        }
    }
    Ok(true)
}

fn find_gadget(pid: Pid, abi: Abi, vmas: &[Vma], cache: &mut Cache) -> Result<Gadget> {
    Gadget::find(pid, abi, &memory::code_areas(vmas), cache)
        .context("no system call instruction found in its code")
}

/// What is known of a task that is about to be asked.
struct Facts<'a> {
    dir: &'a Dir,
    vmas: &'a [Vma],
    resident_kib: u64,
    bystanders: &'a mut Bystanders,
    guarded: bool,
    late: bool,
}

/// What a task tells of its memory.
struct Told {
    brk: Addr,
    policies: Vec<AreaPolicy>,
}

/// Has the task tell what only it can. Its executor is unmapped again even if that fails.
/// `None` when one of its threads cannot make calls, which is then refused.
///
/// # Errors
/// [`Unguarded`] if it could be harmed by the end of this process, and what failed.
fn ask(
    target: Target,
    threads: &mut [Stopped],
    record: &mut Task,
    facts: Facts<'_>,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Option<Told>> {
    let Facts { dir, vmas, resident_kib, bystanders, guarded, late } = facts;
    let caller = match find_caller(threads, target.abi)? {
        Caller::Safe(index) => index,
        Caller::Exposed(index) if guarded => index,
        // No guard for a dump that cannot come about.
        Caller::Exposed(_) if late => return Ok(None),
        Caller::Exposed(_) => bail!(Unguarded),
    };
    let memory = || memory::private_writable(vmas);
    let executor = Executor::open(target, &mut threads[caller], memory, patience)?;
    let asked = (|| -> Result<Told> {
        let [deputy, others @ ..] = &mut *threads else { bail!("no thread") };
        let stranger = bystanders.for_thread(&record.threads[0].creds)?;
        let brk = ask_deputy(&executor, deputy, record, (dir, stranger), refuse, patience)?;
        let memory = (vmas, resident_kib);
        let policies = mempolicy::dump_areas(&executor, deputy, dir, memory, refuse, patience)?;
        for (thread, record) in others.iter_mut().zip(record.threads.iter_mut().skip(1)) {
            let mut batch = executor.batch(thread)?;
            let about_thread = AskThread::new(&mut batch, bystanders.for_thread(&record.creds)?);
            let reply = executor.run(thread, &batch, patience)?;
            let tid = thread.tid();
            about_thread.fill(&reply, record, dir, refuse).with_context(|| format!("thread {tid}"))?;
        }
        let facts = lock_future::Facts { dir, vmas, policies: &policies };
        let locks = lock_future::dump(&executor, &mut threads[caller], record, facts, refuse, patience)?;
        record.attributes.lock_future = locks;
        Ok(Told { brk, policies })
    })();
    let closed = executor.close(&mut threads[caller], patience);
    let told = match asked.map_err(|e| (e.downcast_ref().copied(), e)) {
        Ok(told) => Some(told),
        Err((Some(NoRoom { tid, why }), _)) => {
            let reason = format!("has to be asked with nothing mapped in its task, and {why}");
            let hint = "dump again, or let it map memory and code (RLIMIT_AS, munmap, PR_SET_MDWE)";
            refuse.with_hint(format!("thread {tid}"), reason, hint);
            None
        }
        Err((None, e)) => return Err(e),
    };
    closed?;
    Ok(told)
}

/// The thread that makes the first and the last call of a task.
enum Caller {
    /// It finds back even if crr is killed just then.
    Safe(usize),
    /// It does not: no thread of the task stands in code and on a stack of its ABI.
    Exposed(usize),
}

/// Finds the caller: one that finds back, and that is not in the middle of a sleep, if there is one, since that would start over.
fn find_caller(threads: &[Stopped], abi: Abi) -> Result<Caller> {
    let mut best = None;
    for (index, thread) in threads.iter().enumerate() {
        let regs = thread.regs()?;
        let rank = (!finds_back(&regs, abi), in_restart_block(&regs), index);
        best = Some(best.map_or(rank, |best: (bool, bool, usize)| best.min(rank)));
        if rank < (false, true, 0) {
            break;
        }
    }
    match best {
        Some((false, _, index)) => Ok(Caller::Safe(index)),
        Some((true, _, index)) => Ok(Caller::Exposed(index)),
        None => bail!("no thread"),
    }
}

/// What the task as a whole knows, and its leader or the thread that stands for it.
fn ask_deputy(
    executor: &Executor,
    deputy: &mut Stopped,
    record: &mut Task,
    (dir, stranger): (&Dir, Option<Pid>),
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Addr> {
    let mut batch = executor.batch(deputy)?;
    let about_signals = AskSignals::new(&mut batch, record.shares.handlers.is_none());
    let about_task = AskTask::new(&mut batch);
    let about_tracees = AskTracees::new(&mut batch);
    let about_ldt = AskLdt::new(&mut batch);
    let about_thread = AskThread::new(&mut batch, stranger);
    let reply = executor.run(deputy, &batch, patience)?;
    record.actions = about_signals.actions(&reply)?;
    record.interval_timers = about_signals.timers(&reply)?;
    record.ldt = about_ldt.dump(&reply, executor, deputy, patience)?;
    timer::ask_times(executor, deputy, &mut record.timers, patience)?;
    let inside = about_task.read(&reply, refuse)?;
    about_tracees.check(&reply, refuse)?;
    record.dumpable = inside.dumpable;
    record.child_subreaper = inside.child_subreaper;
    record.xcomp_permission = inside.xcomp_permission;
    record.attributes = inside.attributes;
    if let Some(thread) = record.threads.first_mut() {
        about_thread.fill(&reply, thread, dir, refuse)?;
    }
    Ok(inside.brk)
}

/// Finds all page contents that have to be stored, and gives each its place in the page file.
fn find_contents(
    frozen: &Frozen,
    mut spaces: Vec<Space>,
    backings: memory::Backings,
    vdsos: Vec<Vdso>,
) -> Result<(Memory, Contents)> {
    let mut contents = Contents::default();
    let occupied = frozen.tasks.iter().zip(&mut spaces).filter(|(_, space)| !space.vmas.is_empty());
    for (task, space) in occupied {
        let pagemap = File::from(task.dir.open("pagemap").context("open pagemap")?);
        let memory = File::from(task.dir.open("mem").context("open mem")?);
        let source = contents.add_task(task.deputy(), memory);
        space.runs = contents
            .find_private(source, &pagemap, &space.vmas)
            .with_context(|| format!("task {}: look for pages", task.pid))?;
    }
    let mut shared = Vec::with_capacity(backings.shared.len());
    for object in backings.shared {
        shared.push(contents.add_shared(object).context("look for pages of shared memory")?);
    }
    let page_count = contents.page_count();
    let memory = Memory { spaces, shared, vdsos, page_count, block_crcs: Vec::new() };
    Ok((memory, contents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abi_follows_from_the_elf_header() {
        let abi = |class, machine| {
            let mut header = [0u8; 64];
            header[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
            header[18] = machine;
            let mut refusals = Refusals::default();
            let abi = abi_of(&header, &mut Refuse::new(&mut refusals, 1, "a"));
            (abi, refusals.finish("dump").err().map(|refused| refused.refusals[0].reason.clone()))
        };
        assert_eq!(abi(2, 62), (Some(Abi::X86_64), None));
        assert_eq!(abi(1, 3), (Some(Abi::Ia32), None));
        assert_eq!(abi(1, 62), (None, Some(X32.into())));
        assert!(abi(2, 183).0.is_none());
    }

    #[test]
    fn auxv_ends_at_its_null_entry() {
        let mut words: Vec<u8> = [3u32, 0x1000, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(cut_auxv(&words, Abi::Ia32).len(), 16);
        words = [3u64, 0x1000, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(cut_auxv(&words, Abi::X86_64).len(), 32);
    }
}
