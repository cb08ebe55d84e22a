//! One thread: registers, extended state, TLS and what the kernel keeps per tid.

use crate::attribute::ThreadAttributes;
use crate::id::{Addr, Pid};
use crate::seccomp::Seccomp;
use crate::signal::{AltStack, Pending};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A thread as it was stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id; the leader's equals the task's pid.
    pub tid: Pid,
    /// `comm`, at most 15 bytes.
    #[serde(serialize_with = "crate::readable::text")]
    pub comm: Vec<u8>,
    /// A leader that has ended, while other threads go on, by exit(2) with this code: what can no more be had of it is empty.
    pub exited: Option<u8>,
    /// General registers.
    pub regs: Regs,
    /// What is left of the time limit of the call that `regs` show interrupted, for one that would go on by
    /// restart_syscall(2); `None` for one without limit, or that starts over with the limit it was given.
    pub time_left_ns: Option<u64>,
    /// NT_X86_XSTATE whole: the non-compacted XSAVE area as ptrace shows it.
    #[serde(serialize_with = "crate::readable::hex")]
    pub xstate: Vec<u8>,
    /// GDT TLS slots 12 to 14 that are in use.
    pub tls: Vec<UserDesc>,
    /// Blocked signals.
    pub sigmask: u64,
    /// Signals pending for this thread alone, oldest first.
    pub pending: Vec<Pending>,
    /// Alternate signal stack.
    pub altstack: AltStack,
    /// Robust futex list of x86_64 code (`set_robust_list` by a 64-bit system call).
    pub robust_list_64: Option<RobustList>,
    /// Robust futex list of ia32 code.
    pub robust_list_32: Option<RobustList>,
    /// rseq registration.
    pub rseq: Option<Rseq>,
    /// `set_tid_address` pointer; 0 when none.
    pub clear_child_tid: Addr,
    /// Scheduling policy and attributes.
    pub sched: Sched,
    /// Identity and privileges. Per thread in the kernel.
    pub creds: Creds,
    /// PR_GET_PDEATHSIG.
    pub parent_death_signal: u32,
    /// PR_GET_TIMERSLACK in nanoseconds.
    pub timer_slack_ns: u64,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// System calls that become SIGSYS.
    pub dispatch: Option<Dispatch>,
    /// Further settings.
    pub attributes: ThreadAttributes,
    /// `personality(2)`, where it is another than that of the task.
    pub personality: Option<u32>,
}

/// General registers: `struct user_regs_struct` of x86_64 in its order (r15 … gs), whatever the ABI of the task and the
/// mode of the thread. The kernel keeps the 64-bit registers of a thread in 32-bit code: they are there again when it
/// returns to 64-bit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regs(pub [u64; 27]);

/// A segment descriptor: `struct user_desc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDesc {
    /// Its place: 12, 13 or 14 in the GDT, 0 to 8191 in an LDT.
    pub entry: u32,
    /// Segment base.
    pub base: u32,
    /// Segment limit.
    pub limit: u32,
    /// The bit field of `struct user_desc`, raw.
    pub flags: u32,
}

impl UserDesc {
    /// Flags of an entry without a segment: `read_exec_only` and `seg_not_present`, LDT_empty() of
    /// arch/x86/include/asm/desc.h.
    pub const EMPTY: u32 = 0x28;
}

/// System call user dispatch, as PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Where a byte lies that lets calls through, or not; 0 for none.
    pub selector: Addr,
    /// Code from which calls are let through: where it begins, modulo 2^64.
    pub offset: u64,
    /// Its bytes, modulo 2^64.
    pub len: u64,
}

/// `set_robust_list` arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobustList {
    /// Head of the list.
    pub head: Addr,
    /// Length given at registration.
    pub len: u64,
}

/// `struct ptrace_rseq_configuration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Registered area.
    pub area: Addr,
    /// Its size.
    pub size: u32,
    /// Abort signature.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
}

/// `struct sched_attr`, CPU affinity and I/O priority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sched {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value, which a thread with a real-time policy has too.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Deadline parameters, nanoseconds; `runtime` is the custom slice of a fair task.
    pub runtime: u64,
    /// See `runtime`.
    pub deadline: u64,
    /// See `runtime`.
    pub period: u64,
    /// CPU affinity, bit n of word n/64 is CPU n.
    pub affinity: Vec<u64>,
    /// `ioprio_get`: class and level, raw.
    pub io_priority: u32,
}

/// Credentials of one thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creds {
    /// Real, effective, saved and file-system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and file-system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets, bit n is capability n.
    pub cap_inheritable: u64,
    /// See above.
    pub cap_permitted: u64,
    /// See above.
    pub cap_effective: u64,
    /// See above.
    pub cap_bounding: u64,
    /// See above.
    pub cap_ambient: u64,
    /// PR_GET_SECUREBITS, keep-caps included.
    pub securebits: u32,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}
