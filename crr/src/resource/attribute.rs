//! Settings of a task or a thread: what one system call sets and another reads, with nothing behind it.

use super::{Refuse, mempolicy};
use crate::proc::{Dir, stat, status};
use crate::refusal::Refusals;
use crate::remote::{Arg, Batch, Buffer, Call, Handle, Reply};
use crate::resource::creds::CAP_SYS_RESOURCE;
use crate::store::Checkpoint;
use crate::sys::attribute as own;
use anyhow::{Context, Result};
use images::Pid;
use images::attribute::{TaskAttributes, ThreadAttributes};
use images::thread::Thread;
use shared::plan::attribute::SPECULATION_SETTABLE;

/// prctl options, include/uapi/linux/prctl.h.
mod pr {
    pub(super) const GET_TSC: u64 = 25;
    pub(super) const MCE_KILL_GET: u64 = 34;
    pub(super) const GET_THP_DISABLE: u64 = 42;
    pub(super) const GET_SPECULATION_CTRL: u64 = 52;
    pub(super) const SCHED_CORE: u64 = 62;
    pub(super) const GET_MDWE: u64 = 66;
    pub(super) const GET_MEMORY_MERGE: u64 = 68;
    pub(super) const TIMER_CREATE_RESTORE_IDS: u64 = 77;
}
/// PR_TIMER_CREATE_RESTORE_IDS_GET.
const RESTORE_IDS_GET: u64 = 2;
/// Command of membarrier, include/uapi/linux/membarrier.h: since Linux 6.3.
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
/// What a kernel answers that knows PR_GET_TSC or PR_MCE_KILL_GET and was never told otherwise.
const TSC_DEFAULT: u32 = 1;
const MCE_KILL_DEFAULT: u32 = 2;
/// Controls of PR_GET_SPECULATION_CTRL, by number.
const SPECULATION: [&str; 3] = ["store bypass", "indirect branches", "L1D flush"];

/// The part of a batch that asks a task about its settings.
#[derive(Debug)]
pub(super) struct AskTask {
    thp_disable: Handle,
    memory_merge: Handle,
    mdwe: Handle,
    membarrier: Handle,
    timer_restore_ids: Handle,
}

impl AskTask {
    pub(super) fn new(batch: &mut Batch) -> Self {
        let mut prctl = |option, arg| batch.call(Call::Prctl, &[Arg::Value(option), Arg::Value(arg)]);
        Self {
            thp_disable: prctl(pr::GET_THP_DISABLE, 0),
            memory_merge: prctl(pr::GET_MEMORY_MERGE, 0),
            mdwe: prctl(pr::GET_MDWE, 0),
            timer_restore_ids: prctl(pr::TIMER_CREATE_RESTORE_IDS, RESTORE_IDS_GET),
            membarrier: batch.call(Call::Membarrier, &[Arg::Value(MEMBARRIER_CMD_GET_REGISTRATIONS)]),
        }
    }

    /// The answers. A kernel that does not know a setting answers an error, and its tasks do not have it. What
    /// fresh mappings are like is told by [`super::lock_future`].
    pub(super) fn read(&self, reply: &Reply) -> TaskAttributes {
        let value = |handle| reply.result(handle).map_or(0, crate::ptrace::regs::low_half);
        TaskAttributes {
            thp_disable: value(self.thp_disable),
            memory_merge: value(self.memory_merge) != 0,
            mdwe: value(self.mdwe),
            lock_future: 0,
            membarrier: value(self.membarrier),
            timer_restore_ids: value(self.timer_restore_ids) != 0,
        }
    }
}

/// Whether a thread is an I/O flusher, by its flags: to ask for it itself (PR_GET_IO_FLUSHER) it would need CAP_SYS_RESOURCE.
pub(super) fn is_io_flusher(task_dir: &Dir, tid: Pid) -> Result<bool> {
    let mut text = Vec::new();
    task_dir.read_record(&format!("task/{tid}/stat"), &mut text).context("read stat")?;
    Ok(stat::parse(&text)?.is_io_flusher())
}

/// The part of a batch that asks a thread about its settings.
#[derive(Debug)]
pub(super) struct AskThread {
    tsc: (Handle, Buffer),
    mce_kill: Handle,
    speculation: [Handle; 3],
    core_cookie: (Handle, Buffer),
    policy: mempolicy::AskThread,
}

impl AskThread {
    pub(super) fn new(batch: &mut Batch) -> Self {
        let tsc = batch.buffer(4);
        let cookie = batch.buffer(8);
        let none = Arg::Value(0);
        let mut prctl = |option, arg| batch.call(Call::Prctl, &[Arg::Value(option), arg]);
        Self {
            tsc: (prctl(pr::GET_TSC, Arg::Out(tsc)), tsc),
            mce_kill: prctl(pr::MCE_KILL_GET, none),
            speculation: [0, 1, 2].map(|which| prctl(pr::GET_SPECULATION_CTRL, Arg::Value(which))),
            core_cookie: {
                // PR_SCHED_CORE_GET of this thread, PR_SCHED_CORE_SCOPE_THREAD.
                let args = [Arg::Value(pr::SCHED_CORE), none, none, none, Arg::Out(cookie)];
                (batch.call(Call::Prctl, &args), cookie)
            },
            policy: mempolicy::AskThread::new(batch),
        }
    }

    /// The answers of a thread of which is known already whether it is an I/O flusher.
    pub(super) fn read(
        &self,
        reply: &Reply,
        thread: &Thread,
        refuse: &mut Refuse<'_>,
    ) -> Result<ThreadAttributes> {
        let value = |handle, default| reply.result(handle).map_or(default, crate::ptrace::regs::low_half);
        if reply.result(self.core_cookie.0).is_ok() && reply.u64(self.core_cookie.1, 0) != 0 {
            let hint = "start the program without core scheduling: it cannot be switched off again";
            refuse.with_hint(
                format!("thread {}", thread.tid),
                "shares a core with its like only (PR_SCHED_CORE)",
                hint,
            );
        }
        Ok(ThreadAttributes {
            tsc: if reply.result(self.tsc.0).is_ok() { reply.u32(self.tsc.1, 0) } else { TSC_DEFAULT },
            mce_kill: value(self.mce_kill, MCE_KILL_DEFAULT),
            io_flusher: thread.attributes.io_flusher,
            speculation: self.speculation.map(|control| value(control, 0)),
            policy: self.policy.read(reply),
        })
    }
}

/// What fork and exec pass on from this process.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    pub(crate) task: TaskAttributes,
    pub(crate) thread: ThreadAttributes,
    /// Memory nodes that it may use, as a mask.
    pub(crate) nodes: Vec<u64>,
    /// It has CAP_SYS_RESOURCE.
    pub(crate) may_set_flusher: bool,
}

/// Looks at this process.
///
/// # Errors
/// If /proc does not answer.
pub(crate) fn inherited() -> Result<Inherited> {
    let option = |option| own::option(option, 0).unwrap_or(0);
    let task = TaskAttributes {
        thp_disable: option(pr::GET_THP_DISABLE),
        memory_merge: option(pr::GET_MEMORY_MERGE) != 0,
        mdwe: passed_on(option(pr::GET_MDWE)),
        // Locking and registrations end with exec, and fork does not pass on how timers are made.
        lock_future: 0,
        membarrier: 0,
        timer_restore_ids: false,
    };
    let text = std::fs::read("/proc/thread-self/stat").context("/proc/thread-self/stat")?;
    let status = std::fs::read("/proc/thread-self/status").context("/proc/thread-self/status")?;
    let status = status::parse(&status)?;
    let thread = ThreadAttributes {
        tsc: own::tsc().unwrap_or(TSC_DEFAULT),
        mce_kill: own::option(pr::MCE_KILL_GET, 0).unwrap_or(MCE_KILL_DEFAULT),
        io_flusher: stat::parse(&text)?.is_io_flusher(),
        speculation: [0, 1, 2].map(|which| own::option(pr::GET_SPECULATION_CTRL, which).unwrap_or(0)),
        policy: mempolicy::inherited(),
    };
    let may_set_flusher = status.caps[2] & CAP_SYS_RESOURCE != 0;
    Ok(Inherited { task, thread, nodes: status.memory_nodes, may_set_flusher })
}

/// PR_MDWE_NO_INHERIT: not passed on to children.
fn passed_on(mdwe: u32) -> u32 {
    const PR_MDWE_NO_INHERIT: u32 = 2;
    if mdwe & PR_MDWE_NO_INHERIT == 0 { mdwe } else { 0 }
}

/// Settings that this process cannot give to a task.
pub(crate) fn preflight(refusals: &mut Refusals, checkpoint: &Checkpoint, own: &Inherited) {
    for (task, space) in checkpoint.tree.tasks.iter().zip(&checkpoint.memory.spaces) {
        let comm = String::from_utf8_lossy(&task.threads[0].comm).into_owned();
        let who = (task.pid, comm.as_str());
        if own.task.mdwe & !task.attributes.mdwe != 0 {
            let hint = Some("run crr from a shell without PR_SET_MDWE");
            refusals.task(who, "writable code", "is forbidden to this process, and so to all it makes", hint);
        }
        for thread in &task.threads {
            let object = format!("thread {}", thread.tid);
            if thread.attributes.io_flusher != own.thread.io_flusher && !own.may_set_flusher {
                let reason = "it or this process is an I/O flusher, and CAP_SYS_RESOURCE is missing";
                refusals.task(who, object.clone(), reason, None);
            }
            let controls = own.thread.speculation.into_iter().zip(thread.attributes.speculation);
            for ((own, want), name) in controls.zip(SPECULATION) {
                if !speculation_fits(own, want) {
                    let reason = format!("its speculation control of {name} ({want:#x}) cannot be set here");
                    refusals.task(who, object.clone(), reason, Some("boot with the mitigations of the dump"));
                }
            }
        }
        mempolicy::preflight(refusals, who, task, space, &own.nodes);
    }
}

/// Whether a thread with this process's control `own` can have the control `want`, or is as safe without it. Values
/// are PR_SPEC_*: settable 1, enabled 2, disabled 4, disabled for good 8, disabled until exec 16; 0 for not affected.
fn speculation_fits(own: u32, want: u32) -> bool {
    const FOR_GOOD: u32 = 8;
    own == want
        || want & SPECULATION_SETTABLE == 0
        || own == 0
        || (own & SPECULATION_SETTABLE != 0 && own & FOR_GOOD == 0)
}
