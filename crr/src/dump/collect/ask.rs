//! What only the tasks themselves can tell.

use super::task::stands_in;
use crate::dump::guard::Unguarded;
use crate::dump::twins::wait_args;
use crate::proc::Dir;
use crate::ptrace::{Patience, Stopped, regs};
use crate::remote::{
    Arg, Batch, Cache, Call, Executor, Gadget, NoRoom, Target, finds_back, in_restart_block,
};
use crate::resource::file::copies::{self, Copies};
use crate::resource::landlock::Bystanders;
use crate::resource::ldt::AskLdt;
use crate::resource::pkey::AskKeys;
use crate::resource::signal::AskSignals;
use crate::resource::sysv::objects::Sets;
use crate::resource::sysv::undo::Lists;
use crate::resource::task::AskTask;
use crate::resource::thread::AskThread;
use crate::resource::tracees::AskTracees;
use crate::resource::{Refuse, aio, lock_future, memory, mempolicy, ring, rseq, timer};
use anyhow::{Context, Result, bail};
use images::aio::AioContext;
use images::attribute::AreaPolicy;
use images::memory::Vma;
use images::task::Task;
use images::{Abi, Addr, Pid};

/// Whether all threads can make system calls: they stand where they were asked to stop, their registers can be set and put back,
/// and they do not need what a killed dump left in the task.
pub(in crate::dump) fn can_be_asked(threads: &[Stopped], leftovers: &[Addr]) -> Result<bool> {
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

pub(super) fn find_gadget(pid: Pid, abi: Abi, vmas: &[Vma], cache: &mut Cache) -> Result<Gadget> {
    Gadget::find(pid, abi, &memory::code_areas(vmas), cache)
        .context("no system call instruction found in its code")
}

/// What is known of a task that is about to be asked.
pub(super) struct Facts<'a> {
    pub(super) dir: &'a Dir,
    pub(super) vmas: &'a [Vma],
    pub(super) resident_kib: u64,
    /// The areas that have policies, if that is known.
    pub(super) with_policies: Option<Vec<u64>>,
    pub(super) bystanders: &'a mut Bystanders,
    pub(super) semaphores: &'a mut Sets,
    pub(super) undo: &'a mut Lists,
    pub(super) guarded: bool,
    pub(super) late: bool,
    /// Somebody who runs may have its memory, too.
    pub(super) watched: bool,
    /// The kernel does not tell what threads have registered with rseq.
    pub(super) rseq_untold: bool,
    /// The processor has protection keys.
    pub(super) has_keys: bool,
    /// It has to send its open files.
    pub(super) sends_files: bool,
    /// Twins that killed dumps have left it.
    pub(super) dead_twins: &'a [Pid],
}

/// What a task tells of its memory.
pub(super) struct Told {
    pub(super) brk: Addr,
    pub(super) policies: Vec<AreaPolicy>,
    /// Its open files, if it was asked for them and can send them.
    pub(super) copies: Option<Copies>,
    pub(super) aio: Vec<AioContext>,
    /// Protection keys that are allocated.
    pub(super) keys: u16,
}

/// Has the task tell what only it can. Its executor is unmapped again even if that fails.
/// `None` when one of its threads cannot make calls, which is then refused.
///
/// # Errors
/// [`Unguarded`] if it could be harmed by the end of this process, and what failed.
pub(super) fn ask(
    target: Target,
    threads: &mut [Stopped],
    record: &mut Task,
    facts: Facts<'_>,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Option<Told>> {
    let Facts {
        dir,
        vmas,
        resident_kib,
        with_policies,
        bystanders,
        semaphores,
        undo,
        guarded,
        late,
        watched,
        rseq_untold,
        has_keys,
        sends_files,
        dead_twins,
    } = facts;
    let caller = match find_caller(threads, target.abi)? {
        Caller::Safe(index) => index,
        Caller::Exposed(index) if guarded => index,
        // No guard for a dump that cannot come about.
        Caller::Exposed(_) if late => return Ok(None),
        Caller::Exposed(_) => bail!(Unguarded),
    };
    // One who has the address space of another has the contexts of that one.
    let has_rings = !watched && record.shares.memory.is_none() && aio::has_rings(vmas);
    match (has_rings && !guarded, late) {
        (true, true) => return Ok(None),
        (true, false) => bail!(Unguarded),
        (false, _) => {}
    }
    let memory = || memory::private_writable(vmas);
    let pid = target.deputy;
    let executor = Executor::open(target, &mut threads[caller], memory, patience)?;
    let asked = (|| -> Result<Told> {
        for twins in dead_twins.chunks(Batch::ROOM) {
            let mut batch = executor.batch(&threads[caller])?;
            for &twin in twins {
                batch.call(Call::Wait4, &wait_args(twin).map(Arg::Value));
            }
            executor.run(&mut threads[caller], &batch, patience)?;
        }
        let mut copies = None;
        if sends_files {
            let numbers = dir.numbers::<u32>("fd").context("list fds")?;
            copies = copies::fetch(&executor, &mut threads[caller], &numbers, refuse, patience)?;
        }
        let [deputy, others @ ..] = &mut *threads else { bail!("no thread") };
        let stranger = bystanders.for_thread(&record.threads[0].creds)?;
        let (brk, keys, used_rings) =
            ask_deputy(&executor, deputy, record, (has_keys, stranger), refuse, patience)?;
        let mut with_rings: Vec<usize> = used_rings.then_some(0).into_iter().collect();
        let memory = (vmas, resident_kib);
        let policies = mempolicy::dump_areas(&executor, deputy, dir, memory, with_policies, patience)?;
        let personality = record.personality;
        let (mut batches, mut questions) = (Vec::new(), Vec::new());
        for (thread, record) in others.iter().zip(&record.threads[1..]) {
            let mut batch = executor.batch(thread)?;
            questions.push(AskThread::new(&mut batch, bystanders.for_thread(&record.creds)?));
            batches.push(batch);
        }
        let replies = executor.run_all(others, &batches, patience)?;
        let records = record.threads.iter_mut().enumerate().skip(1);
        for ((about_thread, reply), (index, record)) in questions.iter().zip(&replies).zip(records) {
            let tid = record.tid;
            let filled = about_thread.fill(reply, record, personality, refuse);
            if filled.with_context(|| format!("thread {tid}"))? {
                with_rings.push(index);
            }
        }
        for thread in with_rings {
            let thread = &mut threads[thread];
            ring::refuse(thread.tid(), &ring::find(&executor, thread, patience)?, refuse);
        }
        let deputy = &mut threads[0];
        let aio = match has_rings {
            true => aio::dump(&executor, deputy, pid, vmas, refuse, patience)?,
            false => Vec::new(),
        };
        undo.find(semaphores, &executor, threads, refuse, patience)?;
        if rseq_untold {
            for (thread, record) in threads.iter_mut().zip(&mut record.threads) {
                record.rseq = rseq::ask(pid, &executor, thread, refuse, patience)?;
            }
        }
        let facts = lock_future::Facts { dir, vmas, policies: &policies };
        let locks = lock_future::dump(&executor, &mut threads[caller], record, facts, refuse, patience)?;
        record.attributes.lock_future = locks;
        Ok(Told { brk, policies, copies, aio, keys })
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

/// The thread that makes the calls of a task for a guarded process.
pub(in crate::dump) fn caller(threads: &[Stopped], abi: Abi) -> Result<usize> {
    let (Caller::Safe(index) | Caller::Exposed(index)) = find_caller(threads, abi)?;
    Ok(index)
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

/// What the task as a whole knows, and its leader or the thread that stands for it. Returns where its heap ends, its protection keys, and whether that thread may
/// have rings by index.
fn ask_deputy(
    executor: &Executor,
    deputy: &mut Stopped,
    record: &mut Task,
    (has_keys, stranger): (bool, Option<Pid>),
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<(Addr, u16, bool)> {
    let mut batch = executor.batch(deputy)?;
    let about_signals = AskSignals::new(&mut batch, record.shares.handlers.is_none());
    let about_task = AskTask::new(&mut batch);
    let about_tracees = AskTracees::new(&mut batch);
    let about_ldt = AskLdt::new(&mut batch);
    let about_keys = (has_keys && record.shares.memory.is_none()).then(|| AskKeys::new(&mut batch));
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
    let used_rings = match record.threads.first_mut() {
        Some(thread) => about_thread.fill(&reply, thread, record.personality, refuse)?,
        None => false,
    };
    let keys = about_keys.map_or(Ok(0), |about_keys| about_keys.read(&reply))?;
    Ok((inside.brk, keys, used_rings))
}
