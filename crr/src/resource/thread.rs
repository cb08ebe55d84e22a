//! One thread: registers, extended state, TLS, lists, scheduling, and what it tells about itself.

use super::keyring::AskKeyrings;
use super::landlock::AskLandlock;
use super::ring::AskRings;
use super::signal::{STACK_ROOM, altstack};
use super::wait::Wait;
use super::{Refuse, attribute, creds};
use crate::proc::status::{self, Status};
use crate::proc::{Dir, decimal};
use crate::ptrace::Stopped;
use crate::ptrace::regs::{self, low_half};
use crate::remote::{Arg, Batch, Buffer, Call, Handle, Reply};
use crate::sys::int80::{LowBuffers, robust_list_64};
use crate::sys::sched;
use anyhow::{Context, Result};
use images::attribute::ThreadAttributes;
use images::seccomp::Seccomp;
use images::signal::AltStack;
use images::thread::{Regs, RobustList, Sched, Thread};
use images::{Addr, Pid};

/// Scheduling of one thread; of the calling one for 0.
pub(crate) fn dump_sched(tid: Pid) -> Result<Sched> {
    let attr = sched::get_attr(tid).context("read scheduling attributes")?;
    Ok(Sched {
        policy: attr.policy,
        flags: attr.flags,
        nice: sched::get_nice(tid).context("read nice value")?,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
        affinity: sched::get_affinity(tid).context("read CPU affinity")?,
        io_priority: sched::get_io_priority(tid).context("read I/O priority")?,
    })
}

/// What a thread shows to any process, but for its status.
#[derive(Debug)]
pub(crate) struct Look {
    sched: Sched,
    robust_list_64: Option<RobustList>,
    robust_list_32: Option<RobustList>,
    io_flusher: bool,
}

impl Look {
    /// At a thread of the task with this directory in /proc.
    pub(crate) fn at(task_dir: &Dir, tid: Pid, low: &LowBuffers) -> Result<Self> {
        Ok(Self {
            sched: dump_sched(tid)?,
            robust_list_64: robust_list_64(tid).context("read the robust list")?,
            robust_list_32: low.robust_list_32(tid).context("read the ia32 robust list")?,
            io_flusher: attribute::is_io_flusher(task_dir, tid)?,
        })
    }
}

/// What is observed of a thread without its help, but for what has a file of its own. The rest is asked and filled in by [`AskThread::fill`], and what is pending comes last of all.
pub(crate) fn dump_outside(
    thread: &Stopped,
    (status, look): (&Status, Look),
    wait: Option<Wait>,
    refuse: &mut Refuse<'_>,
) -> Result<Thread> {
    let tid = thread.tid();
    let mut regs = thread.regs()?;
    if let Some((name, value)) = regs::not_settable(&regs) {
        let reason = format!("nobody can set its {name} to {value:#x} from outside");
        refuse.with_hint(format!("thread {tid}"), reason, "dump again");
    }
    if let Some(wait) = wait {
        // Not restart_syscall: of the call before that, a restored thread has no memory.
        regs::set(&mut regs, regs::Field::OrigAx, u64::from(wait.number));
    }
    check_status(tid, status, refuse);
    Ok(Thread {
        tid,
        comm: status.comm.clone(),
        exited: None,
        xstate: thread.xstate()?,
        tls: thread.thread_areas()?,
        sigmask: thread.sigmask()?,
        pending: Vec::new(),
        altstack: AltStack::default(),
        robust_list_64: look.robust_list_64,
        robust_list_32: look.robust_list_32,
        rseq: None,
        clear_child_tid: Addr(0),
        sched: look.sched,
        creds: creds::dump_creds(status, 0),
        parent_death_signal: 0,
        timer_slack_ns: 0,
        seccomp: Seccomp::Off,
        dispatch: thread.dispatch()?,
        attributes: ThreadAttributes { io_flusher: look.io_flusher, ..ThreadAttributes::default() },
        time_left_ns: wait.and_then(|wait| wait.left),
        regs,
        personality: None,
    })
}

/// A leader that has ended while `others` go on: what is still seen of it. What is not, and has no effect any more, is that
/// of another thread, or nothing. `exit_code` is unknown while its task is stopped.
pub(crate) fn dump_ended(
    pid: Pid,
    task_dir: &Dir,
    exit_code: Option<u32>,
    others: &[Thread],
    refuse: &mut Refuse<'_>,
) -> Result<Thread> {
    let mut buffer = Vec::new();
    task_dir.read_record(&format!("task/{pid}/status"), &mut buffer).context("read status")?;
    let status = status::parse(&buffer)?;
    let deputy = others.first().context("no other thread")?;
    let [signal, code, ..] = exit_code.unwrap_or(0).to_le_bytes();
    if exit_code.is_none() {
        let reason = "its code of exit is not shown while the task is stopped";
        refuse.with_hint(format!("thread {pid}"), reason, "continue it with SIGCONT first");
    }
    if signal != 0 {
        let reason = format!("was ended alone, by seccomp or a fault of the kernel (signal {signal})");
        refuse.with_hint(
            format!("thread {pid}"),
            reason,
            "end the task instead: no thread can end like that again",
        );
    }
    // Readable only while it is not another's (CAP_SYS_NICE).
    let slack = Dir::task(pid).and_then(|dir| dir.read_record("timerslack_ns", &mut buffer)).ok();
    let timer_slack_ns = slack.and_then(|()| decimal(&buffer)).unwrap_or(0);
    let alike = |thread: &&Thread| match &thread.seccomp {
        Seccomp::Off => status.seccomp == 0,
        Seccomp::Strict => status.seccomp == 1,
        Seccomp::Filters { filters, .. } => status.seccomp == 2 && filters.len() == status.seccomp_filters,
    };
    Ok(Thread {
        tid: pid,
        comm: status.comm.clone(),
        exited: Some(code),
        regs: Regs([0; 27]),
        time_left_ns: None,
        xstate: Vec::new(),
        tls: Vec::new(),
        sigmask: status.blocked,
        pending: Vec::new(),
        altstack: AltStack::default(),
        robust_list_64: None,
        robust_list_32: None,
        rseq: None,
        clear_child_tid: Addr(0),
        sched: dump_sched(pid)?,
        creds: creds::dump_creds(&status, deputy.creds.securebits),
        parent_death_signal: 0,
        timer_slack_ns,
        seccomp: others.iter().find(alike).map_or(Seccomp::Off, |thread| thread.seccomp.clone()),
        dispatch: None,
        attributes: deputy.attributes.clone(),
        personality: None,
    })
}

/// What `/proc/PID/task/TID/status` shows and cannot be restored.
fn check_status(tid: Pid, status: &Status, refuse: &mut Refuse<'_>) {
    let object = || format!("thread {tid}");
    if status.thread_features.starts_with(b"shstk") {
        let hint = "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off";
        refuse.with_hint(object(), "has a user shadow stack", hint);
    }
    if status.untag_mask.is_some_and(|mask| mask != u64::MAX) {
        refuse.because(object(), "linear address masking is on");
    }
}

/// prctl options, include/uapi/linux/prctl.h.
mod pr {
    pub(super) const GET_PDEATHSIG: u64 = 2;
    pub(super) const GET_SECUREBITS: u64 = 27;
    pub(super) const GET_TIMERSLACK: u64 = 30;
    pub(super) const GET_TID_ADDRESS: u64 = 40;
}

/// The part of a batch that asks one thread about itself.
#[derive(Debug)]
pub(crate) struct AskThread {
    altstack: (Handle, Buffer),
    tid_address: (Handle, Buffer),
    death_signal: (Handle, Buffer),
    timer_slack: Handle,
    securebits: Handle,
    attributes: attribute::AskThread,
    personality: Handle,
    landlock: AskLandlock,
    keyrings: AskKeyrings,
    rings: AskRings,
}

impl AskThread {
    /// `stranger` is one whom the thread may look at unless it is in a Landlock domain.
    pub(crate) fn new(batch: &mut Batch, stranger: Option<Pid>) -> Self {
        /// personality(2) tells what there is, and leaves it.
        const NO_CHANGE: u64 = 0xffff_ffff;
        let mut prctl_to = |option, room| {
            let buffer = batch.buffer(room);
            (batch.call(Call::Prctl, &[Arg::Value(option), Arg::Out(buffer)]), buffer)
        };
        // The kernel writes a 64-bit pointer for PR_GET_TID_ADDRESS in both ABIs.
        let tid_address = prctl_to(pr::GET_TID_ADDRESS, 8);
        let death_signal = prctl_to(pr::GET_PDEATHSIG, 4);
        let mut prctl = |option| batch.call(Call::Prctl, &[Arg::Value(option)]);
        let timer_slack = prctl(pr::GET_TIMERSLACK);
        let securebits = prctl(pr::GET_SECUREBITS);
        let stack = batch.buffer(STACK_ROOM);
        let altstack = (batch.call(Call::Sigaltstack, &[Arg::Value(0), Arg::Out(stack)]), stack);
        Self {
            altstack,
            tid_address,
            death_signal,
            timer_slack,
            securebits,
            attributes: attribute::AskThread::new(batch),
            personality: batch.call(Call::Personality, &[Arg::Value(NO_CHANGE)]),
            landlock: AskLandlock::new(batch, stranger),
            keyrings: AskKeyrings::new(batch),
            rings: AskRings::new(batch),
        }
    }

    /// Completes a thread by its own answers; `personality` is that of its task. True if [`ring::find`](super::ring::find) has to look for rings of its own.
    pub(crate) fn fill(
        &self,
        reply: &Reply,
        thread: &mut Thread,
        personality: u32,
        refuse: &mut Refuse<'_>,
    ) -> Result<bool> {
        reply.result(self.altstack.0).context("sigaltstack")?;
        thread.altstack = altstack(reply, self.altstack.1);
        reply.result(self.tid_address.0).context("PR_GET_TID_ADDRESS (needs CONFIG_CHECKPOINT_RESTORE)")?;
        thread.clear_child_tid = Addr(reply.u64(self.tid_address.1, 0));
        reply.result(self.death_signal.0).context("PR_GET_PDEATHSIG")?;
        thread.parent_death_signal = reply.u32(self.death_signal.1, 0);
        thread.timer_slack_ns = reply.result(self.timer_slack).context("PR_GET_TIMERSLACK")?;
        thread.creds.securebits = low_half(reply.result(self.securebits).context("PR_GET_SECUREBITS")?);
        let own = low_half(reply.result(self.personality).context("personality")?);
        thread.personality = Some(own).filter(|&own| own != personality);
        self.landlock.check(reply, thread.tid, refuse)?;
        self.keyrings.check(reply, thread.tid, refuse)?;
        thread.attributes = self.attributes.read(reply, thread, refuse)?;
        Ok(self.rings.may_be_there(reply))
    }
}
