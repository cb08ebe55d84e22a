//! Tasks and threads.

use super::{Check, attribute, ensure, inside, path};
use crate::ptrace::regs;
use crate::resource::zombie;
use images::Pid;
use images::file::Files;
use images::lock::LockKind;
use images::seccomp::{Filter, INSTRUCTION, MAX_INSTRUCTIONS, Seccomp};
use images::signal::{Action, Pending, SIGINFO_SIZE};
use images::task::{End, Task, Tree, Zombie};
use images::thread::{Thread, UserDesc};
use std::collections::BTreeSet;

/// PID_MAX_LIMIT of include/linux/threads.h.
const PID_MAX: Pid = 1 << 22;
/// TASK_COMM_LEN of include/linux/sched.h, without the NUL.
const COMM_MAX: usize = 15;
/// RLIM_NLIMITS.
const RLIMITS: usize = 16;
/// LDT_ENTRIES of arch/x86/include/uapi/asm/ldt.h.
const LDT_ENTRIES: u32 = 8192;
/// `_NSIG`.
const SIGNALS: u8 = 64;
/// NGROUPS_MAX.
const GROUPS_MAX: usize = 65_536;
/// The FXSAVE area (a machine without XSAVE), and one with its header.
const FXSAVE_SIZE: usize = 512;
const XSAVE_MIN: usize = FXSAVE_SIZE + 64;
/// No processor has an area half as large: AMX tiles make it 11 KiB.
const XSAVE_MAX: usize = 64 << 10;

pub(super) fn check(tree: &Tree, files: &Files) -> Check {
    for (index, filter) in tree.filters.iter().enumerate() {
        let size = filter.program.len();
        let whole = size % INSTRUCTION == 0 && (1..=MAX_INSTRUCTIONS).contains(&(size / INSTRUCTION));
        ensure!(whole, "filter#{index}: a program of {size} bytes");
    }
    let mut pids = BTreeSet::new();
    let mut tids = BTreeSet::new();
    for (index, task) in tree.tasks.iter().enumerate() {
        let pid = task.pid;
        check_place(index, task, &pids).map_err(inside(format_args!("task {pid}")))?;
        check_task(task, files).map_err(inside(format_args!("task {pid}")))?;
        pids.insert(pid);
        let living = task.threads.iter().any(|thread| thread.exited.is_none());
        ensure!(living, "task {pid}: all its threads have ended");
        for thread in &task.threads {
            let tid = thread.tid;
            ensure!(
                tid == pid || thread.exited.is_none(),
                "task {pid}: thread {tid}: has ended, and is no leader"
            );
            ensure!(tids.insert(tid), "task {pid}: tid {tid} occurs twice");
            check_thread(thread).map_err(inside(format_args!("task {pid}: thread {tid}")))?;
            check_seccomp(thread, &tree.filters).map_err(inside(format_args!("task {pid}: thread {tid}")))?;
        }
    }
    ensure!(!pids.is_empty(), "there is no task");
    for zombie in &tree.zombies {
        let pid = zombie.pid;
        check_zombie(zombie, &pids).map_err(inside(format_args!("zombie {pid}")))?;
        ensure!(tids.insert(pid), "zombie {pid}: its pid occurs twice");
    }
    let root = tree.tasks[0].ppid;
    ensure!(!tids.contains(&root), "the parent of the root, {root}, is in the tree");
    if let Some(job) = tree.shell_job {
        ensure!(job.sid >= 0 && job.pgid >= 0, "the shell has session {}, group {}", job.sid, job.pgid);
    }
    Ok(())
}

/// Where a task stands in the tree. `before` are the pids of the tasks before it.
fn check_place(index: usize, task: &Task, before: &BTreeSet<Pid>) -> Check {
    ensure!((1..=PID_MAX).contains(&task.pid), "is no pid");
    ensure!(!before.contains(&task.pid), "occurs twice");
    // 0 is how a task outside of the pid namespace looks from inside.
    ensure!(task.ppid >= 0 && task.pgid >= 0 && task.sid >= 0, "has negative relatives");
    ensure!(index == 0 || before.contains(&task.ppid), "its parent {} does not stand before it", task.ppid);
    let leader = task.threads.first();
    ensure!(leader.map(|thread| thread.tid) == Some(task.pid), "its leader does not stand first");
    ensure!(leader.is_some_and(|thread| thread.personality.is_none()), "its leader has two personalities");
    Ok(())
}

fn check_zombie(zombie: &Zombie, tasks: &BTreeSet<Pid>) -> Check {
    ensure!((1..=PID_MAX).contains(&zombie.pid), "is no pid");
    ensure!(zombie.pgid >= 0 && zombie.sid >= 0, "has negative relatives");
    ensure!(tasks.contains(&zombie.ppid), "its parent {} is not in the tree", zombie.ppid);
    ensure!(zombie.comm.len() <= COMM_MAX, "a name of {} bytes", zombie.comm.len());
    ensure!(!zombie.comm.contains(&0), "a name with a NUL");
    ensure!(zombie.groups.len() <= GROUPS_MAX, "{} groups", zombie.groups.len());
    if let End::Killed(signal) = zombie.end {
        ensure!(zombie::is_deadly(signal), "killed by signal {signal}");
    }
    Ok(())
}

fn check_task(task: &Task, files: &Files) -> Check {
    path(files, task.exe).map_err(inside("exe"))?;
    path(files, task.cwd).map_err(inside("cwd"))?;
    path(files, task.root).map_err(inside("root"))?;
    ensure!(task.umask <= 0o777, "umask {:#o}", task.umask);
    ensure!(task.dumpable <= 2, "dumpable {}", task.dumpable);
    ensure!((-1000..=1000).contains(&task.oom_score_adj), "oom_score_adj {}", task.oom_score_adj);
    ensure!(task.rlimits.len() == RLIMITS, "{} resource limits, not {RLIMITS}", task.rlimits.len());
    let crossed = task.rlimits.iter().position(|(soft, hard)| soft > hard);
    ensure!(crossed.is_none(), "resource limit {} is over its maximum", crossed.unwrap_or_default());
    attribute::check_task(&task.attributes)?;
    check_actions(&task.actions)?;
    check_pending(&task.pending)?;
    check_stop(task)?;
    check_timers(task)?;
    check_ldt(&task.ldt)?;
    check_fds(task, files)?;
    check_locks(task)
}

fn check_locks(task: &Task) -> Check {
    for lock in &task.locks {
        // A table that is another task's is empty here.
        let open = task.shares.files.is_some() || task.fds.iter().any(|entry| entry.fd == lock.fd);
        ensure!(open, "a lock by fd {}, which is not open", lock.fd);
        let whole = (lock.start, lock.len) == (0, 0);
        ensure!(whole || lock.kind != LockKind::Lease, "a lease on a part of a file");
        let end = lock.start.checked_add(lock.len).and_then(|end| i64::try_from(end).ok());
        ensure!(end.is_some(), "a lock from {:#x} on", lock.start);
    }
    Ok(())
}

fn check_actions(actions: &[Action]) -> Check {
    let mut seen = 0u64;
    for action in actions {
        let signal = action.signal;
        ensure!((1..=SIGNALS).contains(&signal), "an action on signal {signal}");
        let uncatchable = [libc::SIGKILL, libc::SIGSTOP].contains(&signal.into());
        ensure!(!uncatchable, "an action on signal {signal}, which has none");
        ensure!(seen & (1 << (signal - 1)) == 0, "two actions on signal {signal}");
        seen |= 1 << (signal - 1);
    }
    Ok(())
}

fn check_pending(pending: &[Pending]) -> Check {
    for one in pending {
        let Pending { info } = one;
        ensure!(info.len() == SIGINFO_SIZE, "a pending signal of {} bytes, not {SIGINFO_SIZE}", info.len());
        let number = one.number();
        ensure!((1..=i32::from(SIGNALS)).contains(&number), "a pending signal {number}");
        let never_waits = [libc::SIGKILL, libc::SIGSTOP].contains(&number);
        ensure!(!never_waits, "a pending signal {number}, which no task survives");
    }
    Ok(())
}

fn check_stop(task: &Task) -> Check {
    const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let Some(stop) = task.stopped else { return Ok(()) };
    ensure!(STOPS.contains(&stop.signal.into()), "stopped by signal {}", stop.signal);
    let mut all = task.threads.iter().flat_map(|thread| &thread.pending).chain(&task.pending);
    ensure!(all.all(|one| one.number() != libc::SIGCONT), "stopped with SIGCONT pending");
    Ok(())
}

fn check_timers(task: &Task) -> Check {
    const SIGEV_NONE: i32 = 1;
    for timer in &task.timers {
        let (id, signal) = (timer.id, timer.signal);
        ensure!(id >= 0, "POSIX timer {id}");
        let named = (1..=i32::from(SIGNALS)).contains(&signal) || timer.notify == SIGEV_NONE;
        ensure!(named, "POSIX timer {id} sends signal {signal}");
        let known = timer.thread == 0 || task.threads.iter().any(|thread| thread.tid == timer.thread);
        ensure!(known, "POSIX timer {id} signals thread {}, which is not there", timer.thread);
    }
    let unsorted = task.timers.windows(2).find(|pair| pair[0].id >= pair[1].id);
    ensure!(unsorted.is_none(), "POSIX timer {} is out of order", unsorted.map_or(0, |pair| pair[1].id));
    Ok(())
}

fn check_ldt(entries: &[UserDesc]) -> Check {
    let last = entries.last().map_or(0, |entry| entry.entry);
    ensure!(last < LDT_ENTRIES, "LDT entry {last}");
    let unsorted = entries.windows(2).find(|pair| pair[0].entry >= pair[1].entry);
    ensure!(unsorted.is_none(), "LDT entry {} is out of order", unsorted.map_or(0, |pair| pair[1].entry));
    Ok(())
}

fn check_fds(task: &Task, files: &Files) -> Check {
    for entry in &task.fds {
        let (fd, id, known) = (entry.fd, entry.description, files.descriptions.len());
        ensure!(i32::try_from(fd.0).is_ok(), "fd {fd} is no number of a file");
        ensure!((id.0 as usize) < known, "fd {fd}: {id} of {known} descriptions");
    }
    let unsorted = task.fds.windows(2).find(|pair| pair[0].fd >= pair[1].fd);
    ensure!(unsorted.is_none(), "fd {} is out of order", unsorted.map_or(0, |pair| pair[1].fd.0));
    Ok(())
}

fn check_thread(thread: &Thread) -> Check {
    ensure!((1..=PID_MAX).contains(&thread.tid), "is no tid");
    ensure!(thread.comm.len() <= COMM_MAX, "a name of {} bytes", thread.comm.len());
    ensure!(!thread.comm.contains(&0), "a name with a NUL");
    match thread.exited {
        None => check_registers(thread)?,
        Some(_) => {
            let state = (thread.clear_child_tid.0, thread.robust_list_64, thread.robust_list_32, thread.rseq);
            let nothing = thread.xstate.is_empty() && thread.pending.is_empty() && thread.tls.is_empty();
            ensure!(
                nothing && state == (0, None, None, None),
                "has ended, and has what only the living have"
            );
        }
    }
    attribute::check_thread(&thread.attributes)?;
    ensure!(thread.creds.groups.len() <= GROUPS_MAX, "{} groups", thread.creds.groups.len());
    ensure!(thread.parent_death_signal <= SIGNALS.into(), "death signal {}", thread.parent_death_signal);
    ensure!(!thread.sched.affinity.is_empty(), "no processor to run on");
    ensure!((-20..=19).contains(&thread.sched.nice), "nice value {}", thread.sched.nice);
    let mut slots = BTreeSet::new();
    for tls in &thread.tls {
        // GDT_ENTRY_TLS_MIN to GDT_ENTRY_TLS_MAX of arch/x86/include/asm/segment.h.
        ensure!((12..=14).contains(&tls.entry), "TLS in slot {}", tls.entry);
        ensure!(slots.insert(tls.entry), "TLS slot {} occurs twice", tls.entry);
    }
    check_pending(&thread.pending)
}

fn check_registers(thread: &Thread) -> Check {
    if let Some((name, value)) = regs::not_settable(&thread.regs) {
        return Err(format!("its {name} cannot be {value:#x}"));
    }
    let size = thread.xstate.len();
    let sane = size == FXSAVE_SIZE || (XSAVE_MIN..=XSAVE_MAX).contains(&size);
    ensure!(sane, "extended state of {size} bytes");
    Ok(())
}

fn check_seccomp(thread: &Thread, known: &[Filter]) -> Check {
    let Seccomp::Filters { filters, .. } = &thread.seccomp else { return Ok(()) };
    ensure!(!filters.is_empty(), "seccomp without a filter");
    let stray = filters.iter().find(|id| id.0 as usize >= known.len());
    ensure!(stray.is_none(), "{} of {} filters", stray.copied().unwrap_or_default(), known.len());
    Ok(())
}
