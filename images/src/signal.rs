//! Signal handlers, pending signals and interval timers.

use crate::id::Addr;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a task does on one signal: `struct sigaction` of either ABI, widened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// 1 to 64.
    pub signal: u8,
    /// `SIG_DFL` (0), `SIG_IGN` (1) or the handler's address.
    pub handler: Addr,
    /// `SA_*`, as the kernel keeps them.
    pub flags: u64,
    /// `sa_restorer`.
    pub restorer: Addr,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// A pending signal: the 128 bytes of the x86_64 `siginfo_t`, whatever the ABI of the task.
///
/// PTRACE_PEEKSIGINFO gives this form to a 64-bit tracer; it is converted for ia32 when it is queued again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Always 128 bytes.
    #[serde(serialize_with = "crate::readable::hex")]
    pub info: Vec<u8>,
}

impl Pending {
    /// Which signal it is: `si_signo`, 0 if there is none.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.info.first_chunk().map_or(0, |number| i32::from_le_bytes(*number))
    }
}

/// Bytes of `siginfo_t`, in both ABIs.
pub const SIGINFO_SIZE: usize = 128;

/// `struct itimerval`: microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// Reload value; 0 for one shot.
    pub interval_us: u64,
    /// Time left; 0 when disarmed.
    pub value_us: u64,
}

/// `stack_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltStack {
    /// `ss_sp`.
    pub base: Addr,
    /// `ss_size`.
    pub size: u64,
    /// `ss_flags`, without SS_ONSTACK, which the kernel derives from the stack pointer.
    pub flags: u32,
}
