//! What the coordinator and a restoring task say to each other.
//!
//! The task's unix socket carries one [`Start`] with the working fds, and one [`Report`] back; before
//! that a task with seccomp says [`Stage::Hold`] and gets one byte, one whose vDSO is in the way says [`Stage::Again`] and gets all that
//! once more, every task of a tree with files that are opened late says [`Stage::There`], and one whose pages come later says
//! [`Stage::Lazy`], with a descriptor. The plan itself
//! lies in the shared-memory tree: one memfd for the whole restore that starts with a [`Control`] page, which
//! everyone maps read-write, followed by the plan of each task, which everyone maps read-only.

use core::sync::atomic::AtomicU32;

/// Most fds that one message carries; the kernel's SCM_MAX_FD is 253.
pub const FDS_PER_MESSAGE: usize = 250;

/// Index of the shared-memory tree among the working fds.
pub const SLOT_TREE: u32 = 0;
/// Index of the page file.
pub const SLOT_PAGES: u32 = 1;
/// Index of the first file that ops name.
pub const SLOT_FILES: u32 = 2;

/// Most threads beside the leader that read page contents.
pub const MAX_FILLERS: usize = 3;

/// Bytes of page contents from which on they are worth it.
pub const FILLERS_FROM: u64 = 32 << 20;

/// Bytes of a thread's stack while it follows its ops.
pub const THREAD_STACK: u64 = 16384;

/// Where the areas around a vDSO lie: offsets from the vDSO itself, which lies at 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialArea {
    /// Bytes below (negative) or above the vDSO.
    pub offset: i64,
    /// Bytes; 0 where the kernel has no such area.
    pub len: u64,
}

/// First message to a restoring task, with the first working fds attached. All numbers little endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// [`Start::MAGIC`].
    pub magic: u64,
    /// The hole: all that stays while the old address space goes away.
    pub hole_start: u64,
    /// End of the hole.
    pub hole_end: u64,
    /// End of what the task can map.
    pub task_size: u64,
    /// Where in the hole the control page is to be mapped.
    pub control_addr: u64,
    /// Where in the hole the plan is to be mapped.
    pub plan_addr: u64,
    /// Offset of the plan in the tree memfd; whole pages.
    pub plan_offset: u64,
    /// Bytes of the plan.
    pub plan_len: u64,
    /// Scratch memory in the hole: the fd table first, then room to copy a segment.
    pub scratch_addr: u64,
    /// Bytes of it.
    pub scratch_len: u64,
    /// Stacks of the threads, [`THREAD_STACK`] bytes each.
    pub stacks_addr: u64,
    /// Where the special areas are parked, one after the other: vvar, vvar_vclock, vdso.
    pub parking_addr: u64,
    /// `[vvar]`, `[vvar_vclock]` and `[vdso]` as this kernel maps them for this ABI.
    pub special: [SpecialArea; 3],
    /// Working fds in all, over as many messages as that takes.
    pub fds: u64,
    /// Thread ids that the tree does not use, for threads that read page contents; then zeros. Their stacks lie above
    /// those of the task's threads.
    pub fillers: [u64; MAX_FILLERS],
    /// The page file lies in memory and each page is read once: what has been read is to be given back.
    pub pages_once: u64,
    /// Words that the tasks of this program share, whatever else they share: zeros, mapped here. None if this is 0.
    pub words_addr: u64,
    /// Working fds move to numbers from here on, out of the way of the tasks that the program clones. They stay where
    /// they are if this is 0.
    pub fds_from: u64,
    /// [`Vdso`]: what becomes of the one that exec made.
    pub vdso: u64,
    /// Slot of `/proc/sys/kernel/ns_last_pid`, by which ids are chosen; 0 where clone3 gives them.
    pub last_pid: u64,
    /// The kernel is not asked for the numbers of POSIX timers: they are tried.
    pub try_timer_ids: u64,
}

/// What becomes of the vDSO that exec made, and of the areas around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vdso {
    /// They are parked in the hole, for the places that the plan has for them.
    #[default]
    Moves,
    /// They stay where they are: this kernel cannot move them.
    Stays,
    /// They go, and cannot move either.
    Goes,
}

impl Vdso {
    /// From the number in [`Start`].
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Moves,
            1 => Self::Stays,
            2 => Self::Goes,
            _ => return None,
        })
    }
}

impl Start {
    /// First bytes, with the version of the protocol.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"crrplan3");
}

/// Where the forked processes wait for each other before they go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathering {
    /// All leaders, dead ones too, lead their sessions and groups, and all orphans have come to their parents.
    Led,
    /// All tasks are in their groups, but for those that go there by an op.
    Settled,
    /// All tasks that are cloned lead what they lead.
    Cloned,
}

/// The page that all tasks of a restore share, writable: stages are futexes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Control {
    /// How many have come to each [`Gathering`].
    pub gathered: [AtomicU32; 3],
    /// Non-zero once the restore has failed: whoever waits gives up.
    pub failed: AtomicU32,
    /// Not 0 while somebody chooses the id of a process or thread by what the kernel gave last ([`Start::last_pid`]).
    pub choosing: AtomicU32,
    /// Not 0 if a test wants the first try to fail each time.
    pub taken: AtomicU32,
    /// Not 0 once others got the id of a task that its maker's parent would have to wait for (CLONE_PARENT): all is to be tried again.
    pub raced: AtomicU32,
    /// Never set: parked threads wait here until they are taken over.
    pub parked: AtomicU32,
    /// A fault that a test wants.
    pub fault: Fault,
}

/// The op of a restore that is to fail, whoever follows it: the `left`th of a family.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Fault {
    /// [`crate::op::Family`]; 0 for none.
    pub family: AtomicU32,
    /// Ops of that family before it and itself; 0 once it has failed.
    pub left: AtomicU32,
    /// With what it fails; 0 if its process is to die instead.
    pub errno: AtomicU32,
}

/// What a restoring task was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// Everything is in place; the threads are parked.
    Parked = 0,
    /// Receiving the plan.
    Receive = 1,
    /// Making room: own segments to anonymous memory, special areas parked, the rest unmapped.
    Clear = 2,
    /// Following the ops.
    Ops = 3,
    /// No end yet: all threads exist, and are to be held with seccomp suspended; then a byte is awaited.
    Hold = 4,
    /// In the forked 64-bit child, before exec.
    Child = 5,
    /// No end yet: the task and all of its threads exist. Only told in a tree with files that are opened late.
    There = 6,
    /// No end yet: pages of the task come later. The report carries the userfaultfd.
    Lazy = 7,
    /// No end yet: the vDSO lies where the task is to have memory, so the program execs once more, and is to be sent everything again.
    Again = 8,
}

impl Stage {
    /// From the number in a report.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Parked,
            1 => Self::Receive,
            2 => Self::Clear,
            3 => Self::Ops,
            4 => Self::Hold,
            5 => Self::Child,
            6 => Self::There,
            7 => Self::Lazy,
            8 => Self::Again,
            _ => return None,
        })
    }
}

/// A task's answer. Tasks that a program clones answer over its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// [`Stage`].
    pub stage: u32,
    /// Kernel error number, positive; 0 for an answer that was no error but wrong (`value` tells).
    pub errno: u32,
    /// The task, if it was cloned by the program at the other end; 0 for the one that exec'd it.
    pub pid: u32,
    /// 0.
    pub reserved: u32,
    /// Thread id that follows the ops; 0 for the leader.
    pub tid: u32,
    /// Which op of that thread, from 0; in [`Stage::Child`], an index into the coordinator's list of steps.
    pub op: u32,
    /// An address, a length or what else the op speaks of.
    pub value: u64,
    /// For [`Stage::Parked`]: address of a system call instruction in the hole, for the coordinator's use.
    pub syscall_at: u64,
}

/// What a probed helper is asked to look at: the special areas as the coordinator sees them from outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeRequest {
    /// `[vvar]`, `[vvar_vclock]`, `[vdso]`.
    pub special: [SpecialArea; 3],
}

/// What a probed helper found. Negative values are error numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeReport {
    /// Address that mmap chose for a page that could then be written; 0 if none.
    pub mmap_at: i64,
    /// mremap of all special areas by one call.
    pub move_whole: i64,
    /// mremap of the special areas, each by a call of its own.
    pub move_each: i64,
    /// getpid through the moved vDSO's entry point.
    pub moved_call: i64,
    /// set_robust_list of this ABI, then get_robust_list: 0 if the same came back.
    pub robust_list: i64,
    /// GDT entry that set_thread_area chose.
    pub tls_entry: i64,
    /// rseq registration.
    pub rseq: i64,
    /// Bytes that PR_SET_MM_MAP takes.
    pub mm_map_size: i64,
}

impl ProbeReport {
    /// From its words, in their order.
    #[must_use]
    pub const fn from_words(words: [i64; 8]) -> Self {
        let [mmap_at, move_whole, move_each, moved_call, robust_list, tls_entry, rseq, mm_map_size] = words;
        Self { mmap_at, move_whole, move_each, moved_call, robust_list, tls_entry, rseq, mm_map_size }
    }
}
