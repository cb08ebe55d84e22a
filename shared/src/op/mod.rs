//! The instructions that a restoring task follows, one after the other.
//!
//! An op says what the kernel is to be told, in widened values; how that is said in an ABI is the restorer's
//! business. Ops are decoded one at a time straight from the plan, so borrowed bytes are all they may hold.

pub mod birth;
mod family;

use birth::Birth;
pub use family::Family;
use serde::{Deserialize, Serialize};

/// Which of the working fds an op means: an index into those sent with the plan.
pub type Slot = u32;

/// Bytes of a jump of [`Op::Ways`], with what separates it from the next.
pub const WAY_LEN: u64 = 16;

/// The kernel-provided areas around the vDSO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Special {
    /// `[vvar]`
    Vvar,
    /// `[vvar_vclock]`
    VvarVclock,
    /// `[vdso]`
    Vdso,
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op<'a> {
    /// mmap at a fixed address; `flags` without MAP_FIXED.
    Map {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// PROT_*.
        prot: u32,
        /// MAP_*.
        flags: u32,
        /// File, or none for anonymous memory.
        fd: Option<Slot>,
        /// Byte offset in the file.
        offset: u64,
    },
    /// munmap.
    Unmap {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// shmat.
    Attach {
        /// Which segment.
        id: i32,
        /// Address.
        addr: u64,
        /// SHM_*.
        flags: u32,
    },
    /// shmat wherever there is room, of which parts go to their places and the rest is detached.
    AttachParts {
        /// Which segment.
        id: i32,
        /// SHM_*.
        flags: u32,
        /// Address, bytes, and byte offset in the segment of each: 64-bit words, little endian.
        parts: &'a [u8],
    },
    /// Read page contents from the page file.
    Fill {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// Byte offset in the page file.
        offset: u64,
    },
    /// mprotect.
    Protect {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// PROT_*.
        prot: u32,
    },
    /// pkey_alloc, as often as it takes to have the keys up to this one: it gives the lowest that is free.
    AllocateKeys(u32),
    /// wrpkru: the thread may use memory of all keys. One that allocates keys, or is cloned after that, may use theirs.
    AllowKeys,
    /// pkey_free of the keys whose bits are set.
    FreeKeys(u32),
    /// pkey_mprotect; mprotect for key 0 where there are none.
    ProtectByKey {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// PROT_*.
        prot: u32,
        /// The key.
        key: u32,
    },
    /// madvise.
    Advise {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// MADV_*.
        advice: u32,
    },
    /// Make pages and drop them again, as far as the kernel can: memory that never had a page would lose its place in
    /// the commit accounting when it is made read-only.
    Populate {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// mlock2.
    Lock {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// MLOCK_ONFAULT or 0.
        flags: u32,
    },
    /// mseal.
    Seal {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// PR_SET_VMA_ANON_NAME.
    NameArea {
        /// Address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// With a zero at its end.
        name: &'a [u8],
    },
    /// mlockall: how mappings to come are locked.
    LockFuture(u32),
    /// set_mempolicy, or mbind of a range.
    MemoryPolicy {
        /// Address and bytes.
        range: Option<(u64, u64)>,
        /// MPOL_* with MPOL_F_*.
        mode: u32,
        /// Nodes: 64-bit words, little endian.
        nodes: &'a [u8],
    },
    /// io_setup: a context of asynchronous I/O, with events that are not read yet.
    AioContext {
        /// Address of its ring.
        addr: u64,
        /// Bytes of it.
        len: u64,
        /// Events to ask for.
        request: u32,
        /// The place of the next event to be read.
        head: u32,
        /// The place of the next event to come.
        tail: u32,
        /// The events between them.
        events: &'a [u8],
    },
    /// userfaultfd: the descriptor goes to the coordinator, by which pages that are missing now are to come.
    Lazy {
        /// UFFD_USER_MODE_ONLY or 0.
        flags: u32,
    },
    /// membarrier: a command that registers.
    Membarrier(u32),
    /// Move a special area from where it was parked to its place.
    Place {
        /// Which.
        area: Special,
        /// Where to.
        addr: u64,
    },
    /// Write bytes of the plan to private memory, and give it its protection.
    Write {
        /// Address, page-aligned.
        addr: u64,
        /// PROT_*.
        prot: u32,
        /// Whole pages.
        bytes: &'a [u8],
    },
    /// The first of a program's ops where the vDSO stays: if that lies in one of these ranges, exec once more.
    Settle {
        /// The program.
        program: Slot,
        /// The personality that the task is to have.
        personality: u32,
        /// First address and the one after the last of each: 64-bit words, little endian.
        taken: &'a [u8],
    },
    /// Write a jump of [`WAY_LEN`] bytes to each function of the vDSO, which stayed where it was, and have it executed.
    Ways {
        /// Address of the first.
        addr: u64,
        /// Bytes of the area.
        len: u64,
        /// Offsets of the functions: 64-bit words, little endian.
        functions: &'a [u8],
    },
    /// PR_SET_MM_MAP: eleven addresses in the order of `struct prctl_mm_map`.
    Layout {
        /// The addresses.
        addresses: [u64; 11],
        /// Auxiliary vector, as bytes in the layout of the task's ABI.
        auxv: &'a [u8],
        /// The executable.
        exe: Slot,
    },
    /// rt_sigaction.
    Action {
        /// Signal.
        signal: u8,
        /// Handler.
        handler: u64,
        /// SA_*.
        flags: u64,
        /// Restorer.
        restorer: u64,
        /// Mask.
        mask: u64,
    },
    /// clone3 of a thread with this id; it follows the ops inside and parks.
    Thread {
        /// Its id.
        tid: i32,
        /// Which of the stacks in the hole it uses, from 0.
        stack: u32,
        /// Its own ops.
        ops: &'a [u8],
    },
    /// Wait until all threads have followed their ops.
    Join,
    /// prctl with up to three arguments.
    Prctl {
        /// PR_*.
        option: u32,
        /// Arguments 2 to 4.
        args: [u64; 3],
    },
    /// PR_SET_NAME.
    Name(&'a [u8]),
    /// sigaltstack.
    AltStack {
        /// Base.
        base: u64,
        /// Size.
        size: u64,
        /// Flags.
        flags: u32,
    },
    /// set_robust_list by the task's own kind of system call.
    RobustList {
        /// Head.
        head: u64,
        /// Length.
        len: u64,
    },
    /// set_robust_list by a system call of the other ABI: a thread has a list of each.
    ForeignRobustList {
        /// Head.
        head: u64,
        /// Length.
        len: u64,
    },
    /// set_tid_address.
    TidAddress(u64),
    /// rseq registration.
    Rseq {
        /// Area.
        area: u64,
        /// Size.
        size: u32,
        /// Flags.
        flags: u32,
        /// Signature.
        signature: u32,
    },
    /// Queue a signal to the calling thread (`rt_tgsigqueueinfo`) or task (`rt_sigqueueinfo`).
    Queue {
        /// For this thread alone.
        thread: bool,
        /// `siginfo_t` in the layout of the task's ABI.
        info: &'a [u8],
    },
    /// setitimer.
    IntervalTimer {
        /// ITIMER_*.
        which: u32,
        /// Reload, microseconds.
        interval_us: u64,
        /// Time left, microseconds.
        value_us: u64,
    },
    /// timer_create.
    TimerCreate {
        /// The number that it is to have.
        id: i32,
        /// CLOCK_*.
        clock: i32,
        /// SIGEV_*.
        notify: i32,
        /// Thread that is told.
        thread: i32,
        /// Signal.
        signal: i32,
        /// `sigev_value`.
        value: u64,
    },
    /// timer_settime.
    TimerStart {
        /// Which.
        id: i32,
        /// CLOCK_*.
        clock: i32,
        /// Reload, nanoseconds.
        interval_ns: u64,
        /// Time left, nanoseconds.
        left_ns: u64,
        /// Its signal is to be pending.
        fired: bool,
        /// Signal and overrun count of the last time, when the signal was taken.
        taken: Option<(i32, u32)>,
    },
    /// setgroups: 32-bit ids, little endian.
    Groups(&'a [u8]),
    /// setresgid and setfsgid: real, effective, saved, file system.
    Gid([u32; 4]),
    /// setresuid and setfsuid.
    Uid([u32; 4]),
    /// capset.
    Capabilities {
        /// Effective set.
        effective: u64,
        /// Permitted set.
        permitted: u64,
        /// Inheritable set.
        inheritable: u64,
    },
    /// prlimit on itself.
    Limit {
        /// RLIMIT_*.
        resource: u32,
        /// Soft.
        soft: u64,
        /// Hard.
        hard: u64,
    },
    /// personality.
    Personality(u32),
    /// FD_CLOEXEC on a task's fd.
    CloseOnExec(u32),
    /// modify_ldt of one entry.
    Ldt {
        /// Its number.
        entry: u32,
        /// Segment base.
        base: u32,
        /// Segment limit.
        limit: u32,
        /// The bit field of `struct user_desc`.
        flags: u32,
    },
    /// arch_prctl (x86_64 only: ARCH_REQ_XCOMP_PERM).
    ArchPrctl {
        /// ARCH_*.
        option: u32,
        /// Argument.
        arg: u64,
    },
    /// Where the programs of seccomp lie that [`Op::Filter`] names: for all threads, in the leader's list.
    Programs(&'a [u8]),
    /// The leader tells the coordinator that all threads exist, waits until they are held by it, and lets them go on; the
    /// others wait for that.
    Hold,
    /// seccomp(SECCOMP_SET_MODE_FILTER).
    Filter {
        /// SECCOMP_FILTER_FLAG_*.
        flags: u32,
        /// Where in [`Op::Programs`] it begins.
        at: u32,
        /// Bytes.
        len: u32,
    },
    /// The leader tells the coordinator that the task and all of its threads exist.
    There,
    /// Receive a file that could not be opened before all tasks were there, over the socket that holds its place, and put it there.
    Receive {
        /// The number.
        fd: u32,
        /// FD_CLOEXEC.
        close_on_exec: bool,
    },
    /// How this task, or one that it clones, comes into the world.
    Birth(Birth<'a>),
}

/// Appends an op to a list.
pub fn push(list: &mut alloc::vec::Vec<u8>, op: &Op<'_>) {
    let bytes = core::mem::take(list);
    // INVARIANT: ops are plain values and byte slices; writing them to a growing vector cannot fail.
    *list = postcard::to_extend(op, bytes).expect("an op always encodes");
}

/// The first op of a list and the rest, or nothing at its end.
///
/// # Errors
/// If the bytes are no op, which a plan from the same build rules out.
pub fn next(list: &[u8]) -> Result<Option<(Op<'_>, &[u8])>, postcard::Error> {
    if list.is_empty() {
        return Ok(None);
    }
    postcard::take_from_bytes(list).map(Some)
}
