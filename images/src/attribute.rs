//! Settings of a task or a thread: what one system call sets and another reads, with nothing behind it.

use crate::id::Addr;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Settings of a task as a whole; all but the last belong to its address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAttributes {
    /// PR_GET_THP_DISABLE: 0, 1, or 3 (PR_THP_DISABLE_EXCEPT_ADVISED).
    pub thp_disable: u32,
    /// PR_GET_MEMORY_MERGE.
    pub memory_merge: bool,
    /// PR_GET_MDWE: PR_MDWE_*.
    pub mdwe: u32,
    /// What mlockall(2) was asked for mappings to come: 0, MCL_FUTURE, or MCL_FUTURE | MCL_ONFAULT.
    pub lock_future: u32,
    /// MEMBARRIER_CMD_GET_REGISTRATIONS: the MEMBARRIER_CMD_REGISTER_* that were made.
    pub membarrier: u32,
    /// PR_TIMER_CREATE_RESTORE_IDS is on.
    pub timer_restore_ids: bool,
}

/// Settings of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadAttributes {
    /// PR_GET_TSC: 1 (PR_TSC_ENABLE) or 2 (PR_TSC_SIGSEGV).
    pub tsc: u32,
    /// PR_MCE_KILL_GET: 0 late, 1 early, 2 default.
    pub mce_kill: u32,
    /// PR_GET_IO_FLUSHER.
    pub io_flusher: bool,
    /// PR_GET_SPECULATION_CTRL of store bypass, indirect branch and L1D flush; 0 where the kernel has no such control.
    pub speculation: [u32; 3],
    /// get_mempolicy(2) of the thread.
    pub policy: MemoryPolicy,
}

/// Which memory nodes pages come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_*.
    pub mode: u32,
    /// Bit n of word m is node 64 m + n; the last word is not 0.
    pub nodes: Vec<u64>,
}

/// The policy of an address range (mbind(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaPolicy {
    /// First byte.
    pub start: Addr,
    /// One past the last byte.
    pub end: Addr,
    /// Not MPOL_DEFAULT.
    pub policy: MemoryPolicy,
}
