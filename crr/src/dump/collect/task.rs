//! One task of a stopped tree.

use super::Tables;
use super::abi::{dump_vdso, find_vsyscall};
use super::ask::{Facts, ask, can_be_asked, find_gadget};
use super::outside::{Outside, read_status};
use crate::dump::freeze::FrozenTask;
use crate::dump::guard::Unguarded;
use crate::dump::known::Known;
use crate::dump::twins::WORTH_A_TWIN_KIB;
use crate::fault::{self, Point};
use crate::proc::smaps::{Area, Kept};
use crate::proc::status::Status;
use crate::proc::{Dir, auxv, stat};
use crate::ptrace::{Patience, regs};
use crate::refusal::Refusals;
use crate::remote::{Target, in_leftover, is_leftover};
use crate::resource::file::copies::Copies;
use crate::resource::mempolicy::Aside;
use crate::resource::{
    Refuse, dispatch, group_stop, memory, mempolicy, namespace, path, pins, pkey, robust, rseq, seccomp,
    signal, thread, timer, vdso,
};
use anyhow::{Context, Result, bail};
use images::attribute::TaskAttributes;
use images::file::FdEntry;
use images::memory::{AreaName, Space, Vma};
use images::task::Task;
use images::thread::{Regs, Thread};
use images::{Abi, Addr, Pid};

/// One task. Nothing is asked of a task that could not answer or would be harmed. `None` when it is of an ABI that crr does not know, which is then refused.
pub(super) fn collect_task(
    task: &mut FrozenTask,
    (stat, outside, areas): (stat::Stat, Outside, Option<Areas>),
    known: Known<'_>,
    tables: &mut Tables,
    refusals: &mut Refusals,
    patience: &Patience,
) -> Result<Option<(Task, Space)>> {
    let shares = known.shares;
    let (deputy, leader_ended) = (task.deputy(), task.leader_ended());
    let FrozenTask { pid, name, dir, threads, stopped_by, waits, target: ask_again, dead_twins, common } =
        task;
    let (pid, dir) = (*pid, &*dir);
    // Who sends its files counts on a number that is free. Somebody who is refused, or does not stop, may have the same table.
    let nothing_in_the_way = refusals.is_empty() && !tables.late;
    let refuse = &mut Refuse::new(refusals, pid, name);
    let Outside { namespaces, small, rlimits, timers, auxv: vector, statuses, looks, odd_namespaces, .. } =
        outside;
    namespaces.refuse_others(&tables.ready.own_namespaces, refuse);
    for (tid, name) in odd_namespaces {
        namespace::refuse_odd(tid, name, refuse);
    }
    let areas = areas.or_else(|| known.areas(&tables.mates));
    let Areas { abi, vmas, names, leftovers, common: found, with_policies } = match areas {
        Some(areas) => areas,
        // The task that it shares them with is refused.
        None => dump_areas(deputy, dir, None, tables, refuse)?,
    };
    *common = found;
    let sends_files = tables.send_files && shares.files.is_none() && nothing_in_the_way;
    let copies =
        if tables.send_files || shares.files.is_some() { None } else { Copies::open(deputy, refuse)? };
    let fds = tables.dump_files(deputy, dir, copies.as_ref(), refuse)?;
    let mut link = |name| path::dump_link(dir, name, &mut tables.paths, refuse);
    let exe = link("exe")?;
    let (cwd, root) = match known.directories() {
        Some(other) => (other.cwd, other.root),
        None => (link("cwd")?, link("root")?),
    };
    let timers = timer::dump_timers(pid, dir, timers, refuse)?;
    let Some(whole) = statuses.first() else { return Ok(None) };
    pins::refuse_pinned(whole, refuse);
    let Some(abi) = abi else { return Ok(None) };

    let mut records = Vec::with_capacity(threads.len());
    let mut may_run = namespaces.has_ids_of(&tables.ready.own_namespaces);
    let mut rseq_untold = false;
    let rights = tables.ready.rights;
    for ((thread, status), look) in threads.iter().zip(&statuses).zip(looks) {
        let registration = rseq::dump(deputy, thread, refuse)?;
        may_run &= registration.may_run;
        rseq_untold |= registration.untold;
        let wait = waits.get(thread.tid());
        let mut record = thread::dump_outside(thread, (status, look), wait, refuse)?;
        record.rseq = registration.rseq;
        vdso::rewind(deputy, &mut record.regs, &vmas, &tables.vdsos)?;
        robust::check(&record, &vmas, refuse);
        may_run &= pkey::can_be_asked(&record, &vmas, rights, refuse);
        record.seccomp = tables.filters.dump(thread, status, refuse)?;
        tables.waits.note(thread, &record.regs)?;
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
        personality: small.personality,
        dumpable: 1,
        child_subreaper: false,
        oom_score_adj: small.oom_score_adj,
        coredump_filter: small.coredump_filter,
        login_uid: small.login_uid,
        xcomp_permission: 0,
        attributes: TaskAttributes::default(),
        rlimits,
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
    let (mut layout, mut policies, mut aio, mut keys) = (stat.layout, Vec::new(), Vec::new(), None);
    let asked = may_run
        && seccomp::suspend(threads, &statuses, tables.guarded, refuse)?
        && can_be_asked(threads, &leftovers)?
        && tables.mates.let_ask(pid, &shares, |regs| stands_in(regs, &leftovers));
    tables.mates.note(pid, &leftovers, asked);
    if asked {
        let gadget = find_gadget(deputy, abi, &vmas, &mut tables.gadgets)?;
        let (ignored, caught) = (whole.ignored, whole.caught);
        let vsyscall = find_vsyscall(deputy, abi, &vector, &vmas);
        let target = Target { pid, deputy, abi, gadget, vsyscall, ignored, caught, leftovers };
        let is_worth_it = whole.private_kib >= WORTH_A_TWIN_KIB || fault::is_set(Point::TwinsAlways);
        if tables.snapshot && shares.memory.is_none() && is_worth_it {
            *ask_again = Some(Target { leftovers: Vec::new(), ..target.clone() });
        }
        let resident_kib = whole.resident_kib;
        let (guarded, late, watched) = (tables.guarded, tables.late, tables.watched);
        let (bystanders, semaphores) = (&mut tables.ready.bystanders, &mut tables.ready.semaphores);
        let facts = Facts {
            dir,
            vmas: &vmas,
            resident_kib,
            with_policies,
            bystanders,
            semaphores,
            undo: &mut tables.undo,
            guarded,
            late,
            watched,
            rseq_untold,
            has_keys: rights.is_some(),
            sends_files,
            dead_twins,
        };
        dispatch::suspend(threads, &record.threads, tables.guarded)?;
        let told = ask(target, threads, &mut record, facts, refuse, patience);
        dispatch::resume(threads, &record.threads)?;
        if let Some(told) = told? {
            (layout.brk, policies, aio, keys) = (told.brk, told.policies, told.aio, Some(told.keys));
            if sends_files {
                record.fds = tables.dump_files(deputy, dir, told.copies.as_ref(), refuse)?;
            }
        }
    } else if sends_files {
        refuse.because(
            "file descriptors",
            "cannot be had: without pidfd_getfd (Linux 5.6), its task has to be asked",
        );
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
        return Ok(Some((record, Space::default())));
    }
    let auxv = auxv::cut(&vector, abi).to_vec();
    let (runs, guards, allocated) = (Vec::new(), Vec::new(), keys.unwrap_or(0));
    let space = Space { vmas, runs, policies, guards, names, aio, keys: allocated, layout, auxv };
    if keys.is_some() {
        pkey::check(&space, refuse);
    }
    Ok(Some((record, space)))
}

/// Takes the threads of a task out of functions of vDSOs, and notes handlers that have interrupted one. Those of a task that is stopped by a signal
/// do not end.
pub(super) fn leave_vdsos(
    task: &mut FrozenTask,
    statuses: &[Status],
    areas: &Areas,
    tables: &Tables,
    interrupted: &mut vdso::Interrupted,
    patience: &Patience,
) -> Result<()> {
    let Areas { vmas, .. } = areas;
    for (thread, status) in task.threads.iter_mut().zip(statuses) {
        // A mask that is another one for the time must not be left like that.
        let out = vdso::step_out(thread, status.ignored, vmas, &tables.vdsos, tables.guarded, patience)?;
        if !out && !tables.late {
            bail!(Unguarded);
        }
    }
    let have_handlers = statuses.first().is_some_and(|whole| whole.caught != 0);
    if tables.lets_handlers_end && have_handlers && task.stopped_by.is_none() {
        let mut stacks = vdso::Stacks::of(vmas, &tables.vdsos);
        for thread in &task.threads {
            // As it is now: each step that it took was a stop.
            let status = || read_status(&task.dir, thread.tid(), &mut Vec::new());
            stacks.look(thread, || Ok(status()?.voluntary_switches), interrupted)?;
        }
    }
    Ok(())
}

impl Tables {
    /// The descriptors of a task, if there is a way to have them.
    fn dump_files(
        &mut self,
        deputy: Pid,
        dir: &Dir,
        copies: Option<&Copies>,
        refuse: &mut Refuse<'_>,
    ) -> Result<Vec<FdEntry>> {
        let Some(copies) = copies else { return Ok(Vec::new()) };
        self.files.dump_task(deputy, dir, copies, &mut self.paths, self.terminal, refuse)
    }
}

/// What an address space is made of.
#[derive(Default)]
pub(in crate::dump) struct Areas {
    /// None if that was refused.
    pub(in crate::dump) abi: Option<Abi>,
    pub(in crate::dump) vmas: Vec<Vma>,
    pub(in crate::dump) names: Vec<AreaName>,
    /// Where those lie that dumps have left in it that were killed.
    pub(in crate::dump) leftovers: Vec<Addr>,
    /// Private areas with pages that are others' too, by their addresses.
    pub(in crate::dump) common: Vec<u64>,
    /// The areas that have memory policies, if that is known.
    pub(in crate::dump) with_policies: Option<Vec<u64>>,
}

/// `read` is what of it has been read.
pub(super) fn dump_areas(
    pid: Pid,
    dir: &Dir,
    read: Option<Kept>,
    tables: &mut Tables,
    refuse: &mut Refuse<'_>,
) -> Result<Areas> {
    let mut areas = Areas::default();
    let Tables { buffer, backings, paths, .. } = tables;
    areas.with_policies = std::thread::scope(|scope| {
        let (mut count, mut aside) = (0, None);
        let each = |area: Area<'_>| {
            count += 1;
            if count == mempolicy::MANY_AREAS {
                aside = Aside::begin(scope, dir);
            }
            if is_leftover(pid, &area) {
                areas.leftovers.push(Addr(area.start));
            } else {
                if area.has_common_pages && !area.shared {
                    areas.common.push(area.start);
                }
                areas.vmas.extend(backings.dump_area(&area, dir, paths, refuse)?);
                areas.names.extend(memory::dump_name(&area));
            }
            Ok(())
        };
        match read {
            Some(read) => read.for_each(each)?,
            None => dir.areas(buffer, each)?,
        }
        anyhow::Ok(aside.and_then(Aside::finish))
    })?;
    backings.refuse_watched(refuse)?;
    areas.abi = dump_vdso(pid, dir, &mut areas.vmas, &mut tables.vdsos, refuse)?;
    Ok(areas)
}

/// Whether a thread has not yet found its way out of the code of a dump that was just killed.
pub(super) fn stands_in(regs: &Regs, leftovers: &[Addr]) -> bool {
    in_leftover(leftovers, regs::ip(regs)) || in_leftover(leftovers, regs::sp(regs))
}

fn check_leftovers(thread: &Thread, leftovers: &[Addr], stopped: bool, refuse: &mut Refuse<'_>) {
    if stands_in(&thread.regs, leftovers) {
        let object = format!("thread {}", thread.tid);
        let hint = if stopped { "continue it with SIGCONT, and dump again" } else { "dump again" };
        refuse.with_hint(object, "still in the code of a dump that was killed", hint);
    }
}
