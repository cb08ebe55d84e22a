//! Resume: taking over each parked thread from outside and making it the one that was dumped.
//!
//! From a ptrace-stop, `orig_ax` and `ax` are enough for the kernel to restart or end the interrupted system call
//! as it would have done (`arch_do_signal_or_restart`, arch/x86/kernel/signal.c) - but only from a stop that lies on
//! the way to user mode with a signal pending, as PTRACE_INTERRUPT's does; not from a system call's exit stop.

use super::environment::login_uid;
use super::hold::Held;
use super::loan;
use super::lock;
use super::serve::Parked;
use super::stand_in::StandIn;
use super::{Restore, births, stop, undo};
use crate::fault::{self, Point};
use crate::keeper::{Keeper, Kill};
use crate::proc::has_ended;
use crate::proc::tasks::named;
use crate::ptrace::{self, Patience, Seized, Stop, Stopped, regs};
use crate::resource::task::NO_LOGIN;
use crate::resource::wait::{self, resume};
use crate::resource::xstate;
use crate::resource::{event, fanotify, inotify, seccomp};
use crate::sys::sched;
use anyhow::{Context, Result, ensure};
use images::seccomp::Seccomp;
use images::sharing::Object;
use images::task::Task;
use images::thread::{Sched, Thread};
use images::{Abi, Pid};
use shared::plan::family::{Making, holder_of};
use shared::plan::seccomp::is_held;
use std::collections::BTreeMap;
use std::time::Duration;

/// A thread in our hands, with its record.
pub(super) struct Taken<'a> {
    pub(super) record: &'a Thread,
    pub(super) stopped: Stopped,
    /// What the wait answered that it entered again.
    pub(super) answer: Option<i64>,
}

/// Seizes every thread that is not held yet, removes the holes, sets the registers, lets everything go.
///
/// # Errors
/// If a thread is gone or does not take its state; the tree is then to be killed.
pub(super) fn take_over(
    restore: &mut Restore<'_>,
    parked: &Parked,
    mut held: Held,
    stand_in: Option<StandIn>,
) -> Result<()> {
    let patience = Patience::new(Duration::from_secs(10));
    let checkpoint = restore.checkpoint;
    let tasks = &checkpoint.tree.tasks;
    let mut all = stop_threads(tasks, &mut held, &patience)?;
    fault::point(Point::KilledSeized)?;
    fault::strike(Point::HelperDiesHeld, tasks[0].pid);
    // From here on every thread dies with this process (PTRACE_O_EXITKILL), and no leader with its parent.
    set_death_signals(&mut all, parked, &patience, |number, _| (number == 0).then_some(0))?;
    fault::point(Point::KilledUntied)?;
    if let Some(stand_in) = stand_in {
        stand_in.leave();
    }
    let mut all: Vec<Vec<Taken<'_>>> = (all.into_iter().zip(tasks).zip(parked))
        .map(|((taken, task), &syscall_at)| end_leader(restore, task, taken, syscall_at, &patience))
        .collect::<Result<_>>()?;
    // Those who had to go are gone: each would have sent what is asked for now.
    set_death_signals(&mut all, parked, &patience, |_, record| {
        Some(record.parent_death_signal).filter(|&signal| signal != 0)
    })?;
    lock::take_all(restore, &mut all, parked, &patience)?;
    undo::put_back(restore, &mut all, parked, &patience)?;
    stop::stop_all(restore, &mut all, parked, &patience)?;
    let files = &checkpoint.files;
    let group = |pgid| births::group(restore, pgid);
    event::complete::complete(files, tasks, |id| restore.opened.description(id), group)?;
    for (index, watches) in event::signals::by_task(files, tasks) {
        let first = all[index].remove(0);
        let first = add_watches(first, parked[index], &watches, &patience)
            .with_context(|| format!("task {}: have its epolls watch its signals", tasks[index].pid))?;
        all[index].insert(0, first);
    }
    enter_waits(&mut all, parked, &patience)?;
    let entered = wait::now();
    remove_holes(restore, &mut all, parked, &patience)?;
    for ((task, taken), prepared) in tasks.iter().zip(&all).zip(&restore.preparation.tasks) {
        for thread in taken {
            set_state(restore, task.pid, thread, entered).with_context(|| {
                format!("task {}: set its threads' state: thread {}", task.pid, thread.record.tid)
            })?;
        }
        if prepared.making != Making::Forked {
            attributes(task).with_context(|| format!("task {}", task.pid))?;
        }
    }
    tell_logins(restore);
    let finished: Vec<Taken<'_>> = all.into_iter().flatten().collect();
    let groups =
        inotify::Groups::of(&files.descriptions, &files.inotifies, |id| restore.opened.description(id))?;
    let marked =
        fanotify::Groups::of(&files.descriptions, &files.fanotifies, |id| restore.opened.description(id))?;
    fault::point(Point::KilledFinished)?;
    // What this opens must not be seen by those who watch.
    restore.opened.let_traffic_pass()?;
    // What a task closes is to be closed, as the other end of a pipe and an epoll see it.
    restore.opened.let_go();
    groups.watch(&restore.opened.paths)?;
    marked.mark(&restore.opened.paths)?;
    let keeper = keep_whole(tasks)?;
    // The last that could fail: now nobody can be disappointed any more.
    restore.opened.let_connections_speak();
    if let Some(keeper) = keeper {
        for taken in &finished {
            taken.stopped.outlive_tracer().with_context(|| format!("thread {}", taken.record.tid))?;
            fault::point(Point::KilledReleasing)?;
        }
        keeper.leave();
    }
    // Children first: a parent that finds its child gone or stopped would act on it.
    for taken in finished.into_iter().rev() {
        let tid = taken.record.tid;
        taken.stopped.detach(0).with_context(|| format!("thread {tid}: let it go"))?;
        fault::point(Point::KilledLettingGo)?;
    }
    Ok(())
}

/// A tree is let go as a whole, if it has several tasks: of one task all threads go on or none does, by what the kernel does to those that
/// are still held when this process is killed. Until the keeper leaves, another process kills all of them then; it leaves when each
/// would be let go instead.
fn keep_whole(tasks: &[Task]) -> Result<Option<Keeper<Kill>>> {
    if tasks.len() == 1 {
        return Ok(None);
    }
    let pids = tasks.iter().map(|task| task.pid).collect();
    Keeper::of_killing(pids).map(Some).context("watch over the tasks until they are let go")
}

/// Seizes all threads that are not held yet, and stops all: while one is asked, those before it are on their way.
fn stop_threads<'a>(tasks: &'a [Task], held: &mut Held, patience: &Patience) -> Result<Vec<Vec<Taken<'a>>>> {
    let of = |task: &Task| format!("task {}: take it over", task.pid);
    let mut asked = Vec::with_capacity(tasks.len());
    for (index, task) in tasks.iter().enumerate() {
        let seize = || task.threads.iter().map(|record| Seized::seize_for_life(record.tid)).collect();
        let seized: Result<Vec<Seized>, _> = held.take(index).map_or_else(seize, Ok);
        let seized = seized.with_context(|| of(task))?;
        seized.iter().try_for_each(Seized::interrupt).with_context(|| of(task))?;
        asked.push(seized);
    }
    let mut all = Vec::with_capacity(tasks.len());
    for (task, seized) in tasks.iter().zip(asked) {
        let stop = |(record, thread): (&'a Thread, Seized)| -> Result<Taken<'a>> {
            Ok(Taken { record, stopped: thread.wait_stop(patience)?.settle(patience)?, answer: None })
        };
        let taken: Result<Vec<_>> = task.threads.iter().zip(seized).map(stop).collect();
        all.push(taken.with_context(|| of(task))?);
    }
    Ok(all)
}

/// Has threads make the calls that `set_up` sets them up for, all at the same time: it is told the index of the task, that of the
/// thread, and says whether there is one. `answered` takes each answer.
fn make_calls<'a>(
    all: &mut [Vec<Taken<'a>>],
    patience: &Patience,
    set_up: impl Fn(usize, usize, &Taken<'a>) -> Result<bool>,
    answered: impl Fn(&mut Taken<'a>, i64) -> Result<()>,
) -> Result<()> {
    let mut threads = Vec::new();
    let mut places = Vec::new();
    for (task, taken) in all.iter_mut().enumerate() {
        for (number, thread) in std::mem::take(taken).into_iter().enumerate() {
            let tid = thread.record.tid;
            let calls = set_up(task, number, &thread).with_context(|| format!("thread {tid}"))?;
            let Taken { record, stopped, answer } = thread;
            threads.push((stopped, calls));
            places.push((task, record, answer));
        }
    }
    let made = ptrace::make_calls(threads, patience)?;
    for ((task, record, answer), (stopped, result)) in places.into_iter().zip(made) {
        let mut thread = Taken { record, stopped, answer };
        if let Some(result) = result {
            answered(&mut thread, result).with_context(|| format!("thread {}", record.tid))?;
        }
        all[task].push(thread);
    }
    Ok(())
}

/// Has threads enter their waits again.
fn enter_waits(all: &mut [Vec<Taken<'_>>], parked: &Parked, patience: &Patience) -> Result<()> {
    let set_up =
        |task: usize, _, thread: &Taken<'_>| resume::set_up(parked[task], thread.record, &thread.stopped);
    let answered = |thread: &mut Taken<'_>, answer| {
        thread.answer = Some(answer);
        Ok(())
    };
    make_calls(all, patience, set_up, answered).context("continue the waits")
}

/// Tells of tasks that come from another login than they did. Only a task itself can change that (proc_loginuid_write(), fs/proc/base.c),
/// a clone does not, and not even root on a machine that forbids it (audit_set_loginuid_perm(), kernel/auditsc.c).
fn tell_logins(restore: &Restore<'_>) {
    if !restore.logins {
        return;
    }
    let mut others: BTreeMap<(u32, u32), Vec<Pid>> = BTreeMap::new();
    for task in &restore.checkpoint.tree.tasks {
        let found = login_uid(task.pid).unwrap_or(NO_LOGIN);
        if found != task.login_uid {
            others.entry((task.login_uid, found)).or_default().push(task.pid);
        }
    }
    let name = |uid| if uid == NO_LOGIN { "no login".to_owned() } else { format!("a login of uid {uid}") };
    for ((was, is), tasks) in others {
        let (was, is) = (name(was), name(is));
        log::warn!("{}: came from {was}, come from {is} now: that cannot be set here", named(tasks));
    }
}

/// What a forked child writes about itself before it execs, for a task that was cloned and may see another /proc.
/// By a living thread of it: what belongs to its memory is not the leader's any more when that has ended.
fn attributes(task: &Task) -> Result<()> {
    let living = task.threads.iter().find(|thread| thread.exited.is_none()).context("no living thread")?;
    let write = |name: &str, value: String| {
        std::fs::write(format!("/proc/{}/{name}", living.tid), value).with_context(|| name.to_owned())
    };
    write("oom_score_adj", task.oom_score_adj.to_string())?;
    write("coredump_filter", format!("{:#x}", task.coredump_filter))
}

/// Has threads ask for a signal when their parent ends: those that `signal` names one for, by the thread's index and its record. 0 is none.
fn set_death_signals(
    all: &mut [Vec<Taken<'_>>],
    parked: &Parked,
    patience: &Patience,
    signal: impl Fn(usize, &Thread) -> Option<u32>,
) -> Result<()> {
    const PR_SET_PDEATHSIG: u64 = 1;
    let (prctl_64, prctl_32) = (157, 172);
    let set_up = |task: usize, number, thread: &Taken<'_>| {
        let Some(signal) = signal(number, thread.record) else { return Ok(false) };
        let args = [PR_SET_PDEATHSIG, u64::from(signal)];
        lead_to_call(&thread.stopped, parked[task], [prctl_64, prctl_32], &args)?;
        Ok(true)
    };
    make_calls(all, patience, set_up, |_, result| succeeded(result)).context("set parent-death signals")
}

/// Has a leader end that had ended: it calls exit(2), and is let go where it has nothing left but to do so. While other
/// threads are held the task still dies with this process.
///
/// Its children get another thread for a parent, and whoever has asked for a signal by then is sent it
/// (forget_original_parent() of kernel/exit.c).
fn end_leader<'a>(
    restore: &Restore<'_>,
    task: &Task,
    mut taken: Vec<Taken<'a>>,
    syscall_at: u64,
    patience: &Patience,
) -> Result<Vec<Taken<'a>>> {
    let Some(code) = task.threads[0].exited else { return Ok(taken) };
    let Taken { record, stopped, .. } = taken.remove(0);
    let ended = (|| -> Result<()> {
        let (exit_64, exit_32) = (60, 1);
        schedule(&restore.environment.sched, record)?;
        stopped.stop_at_end(is_held(task))?;
        lead_to_call(&stopped, syscall_at, [exit_64, exit_32], &[code.into()])?;
        let ending = stopped.cont(0)?.wait_stop(patience)?;
        ensure!(ending.stop() == Stop::Event(libc::PTRACE_EVENT_EXIT), "{:?} on its way out", ending.stop());
        ending.set_sigmask(record.sigmask)?;
        ending.detach(0)?;
        while !has_ended(record.tid) {
            patience.check(record.tid)?;
            std::thread::yield_now();
        }
        Ok(())
    })();
    ended.with_context(|| format!("thread {}: have it end", record.tid))?;
    Ok(taken)
}

/// Has a task add signalfds to its epolls by itself.
fn add_watches<'a>(
    taken: Taken<'a>,
    syscall_at: u64,
    watches: &[event::signals::Own],
    patience: &Patience,
) -> Result<Taken<'a>> {
    const EPOLL_CTL_ADD: u64 = 1;
    let (epoll_ctl_64, epoll_ctl_32) = (233, 255);
    let Taken { record, mut stopped, answer } = taken;
    for own in watches {
        // struct epoll_event, packed in both ABIs.
        let event = [own.watch.events.to_le_bytes().as_slice(), &own.watch.data.to_le_bytes()].concat();
        let place = stopped.write_below_stack(&event)?;
        let args = [own.epoll.into(), EPOLL_CTL_ADD, own.watch.fd.into(), place.0];
        let result;
        (stopped, result) = call(stopped, syscall_at, [epoll_ctl_64, epoll_ctl_32], &args, patience)?;
        succeeded(result)?;
    }
    Ok(Taken { record, stopped, answer })
}

/// Unmaps the holes, code included: no thread runs there again. What a hole lay in is mapped instead.
fn remove_holes(
    restore: &Restore<'_>,
    all: &mut [Vec<Taken<'_>>],
    parked: &Parked,
    patience: &Patience,
) -> Result<()> {
    let (munmap_64, munmap_32) = (11, 91);
    let (checkpoint, prepared) = (restore.checkpoint, &restore.preparation.tasks);
    let tasks = &checkpoint.tree.tasks;
    // By the last of those who share an address space, once; none of them needs it any more.
    let holder = |index| holder_of(tasks, index, Object::Memory);
    let last_in: BTreeMap<Pid, usize> = (0..tasks.len()).map(|index| (holder(index), index)).collect();
    let set_up = |task, number, thread: &Taken<'_>| {
        if number != 0 || last_in[&holder(task)] != task {
            return Ok(false);
        }
        let start = &prepared[task].start;
        let range = [start.hole_start, start.hole_end - start.hole_start];
        lead_to_call(&thread.stopped, parked[task], [munmap_64, munmap_32], &range)?;
        Ok(true)
    };
    make_calls(all, patience, set_up, |_, result| succeeded(result)).context("remove the holes")?;
    for (at, task) in tasks.iter().enumerate() {
        let Some(lent) = &prepared[at].lent else { continue };
        let index = last_in[&holder(at)];
        let first = all[index].remove(0);
        let give_back = || {
            // Not by the task's pid: its leader may have ended by now.
            let space = &checkpoint.memory.spaces[at];
            let call_place = loan::call_place(first.record.tid, tasks[index].abi, space)?;
            loan::give_back(first.stopped, lent, call_place, patience)
        };
        let stopped = give_back().with_context(|| format!("task {}: map what the hole lay in", task.pid))?;
        all[index].insert(0, Taken { stopped, ..first });
    }
    Ok(())
}

fn succeeded(result: i64) -> Result<()> {
    match result {
        0 => Ok(()),
        errno => Err(nix::errno::Errno::from_raw(i32::try_from(-errno)?).into()),
    }
}

/// Runs a system call (by its numbers in x86_64 and ia32) at the instruction in the hole. With the thread comes the result.
pub(super) fn call(
    stopped: Stopped,
    syscall_at: u64,
    numbers: [u64; 2],
    args: &[u64],
    patience: &Patience,
) -> Result<(Stopped, i64)> {
    lead_to_call(&stopped, syscall_at, numbers, args)?;
    Ok(ptrace::make_call(stopped, patience)?)
}

/// Sets the registers for a system call at the instruction in the hole.
fn lead_to_call(stopped: &Stopped, syscall_at: u64, [x86_64, ia32]: [u64; 2], args: &[u64]) -> Result<()> {
    let mut now = stopped.regs()?;
    let number = match regs::mode(&now) {
        Abi::X86_64 => x86_64,
        Abi::Ia32 => ia32,
    };
    for (field, value) in
        [(regs::Field::Ip, syscall_at), (regs::Field::Ax, number), (regs::Field::OrigAx, u64::MAX)]
    {
        regs::set(&mut now, field, value);
    }
    for (n, &arg) in args.iter().enumerate() {
        regs::set(&mut now, regs::Field::Arg(n), arg);
    }
    Ok(stopped.set_regs(&now)?)
}

/// Has one thread of a task make a call.
pub(super) fn by_thread(
    taken: &mut Vec<Taken<'_>>,
    index: usize,
    run: impl FnOnce(Stopped) -> Result<(Stopped, i64)>,
) -> Result<i64> {
    let thread = taken.remove(index);
    let (stopped, result) = run(thread.stopped)?;
    taken.insert(index, Taken { stopped, ..thread });
    Ok(result)
}

fn set_state(restore: &Restore<'_>, pid: Pid, thread: &Taken<'_>, entered: u64) -> Result<()> {
    let &Taken { record, ref stopped, answer } = thread;
    for &tls in &record.tls {
        stopped.set_thread_area(tls)?;
    }
    let (from, here) = (&restore.checkpoint.inventory.xstate_layout, &restore.environment);
    stopped.set_xstate(&xstate::fitted(&record.xstate, from, &here.xstate_layout, here.xstate_size))?;
    stopped.set_regs(&resume::registers(&record.regs, answer))?;
    stopped.set_sigmask(record.sigmask)?;
    resume::note(pid, record, (answer, entered), stopped)?;
    if record.dispatch.is_some() {
        stopped.set_dispatch(record.dispatch.as_ref())?;
    }
    if matches!(record.seccomp, Seccomp::Filters { .. }) {
        seccomp::start_over_if_forbidden(stopped)?;
    }
    schedule(&restore.environment.sched, record)
}

fn schedule(own: &Sched, record: &Thread) -> Result<()> {
    let want = &record.sched;
    if want.affinity != own.affinity {
        sched::set_affinity(record.tid, &want.affinity).context("set CPU affinity")?;
    }
    if want.io_priority != own.io_priority {
        sched::set_io_priority(record.tid, want.io_priority).context("set I/O priority")?;
    }
    if want.nice != own.nice {
        sched::set_nice(record.tid, want.nice).context("set nice value")?;
    }
    let neutral = Sched { affinity: Vec::new(), io_priority: 0, ..want.clone() };
    if neutral != (Sched { affinity: Vec::new(), io_priority: 0, ..own.clone() }) {
        let attr = sched::Attr {
            policy: want.policy,
            flags: want.flags,
            nice: want.nice,
            priority: want.priority,
            runtime: want.runtime,
            deadline: want.deadline,
            period: want.period,
            ..sched::Attr::default()
        };
        sched::set_attr(record.tid, &attr).context("set scheduling")?;
    }
    Ok(())
}
