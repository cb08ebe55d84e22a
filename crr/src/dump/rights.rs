//! What crr has to be allowed before it looks at any task.

use crate::kernel;
use crate::refusal::{Refusal, Refusals};
use anyhow::{Context, Result};

/// Refuses a dump that could not see which files a task has mapped.
///
/// # Errors
/// [`crate::refusal::Refused`], naming the capability.
pub(super) fn check() -> Result<()> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let effective = kernel::effective_capabilities(&status).context("/proc/self/status has no CapEff")?;
    let mut refusals = Refusals::default();
    if effective & (CAP_CHECKPOINT_RESTORE | CAP_SYS_ADMIN) == 0 {
        refusals.push(Refusal {
            task: None,
            object: "crr".into(),
            reason: "lacks CAP_CHECKPOINT_RESTORE, without which the kernel does not show the files that a task has mapped".into(),
            hint: Some("run it as root, or give it that capability, and CAP_SYS_PTRACE for tasks of other users".into()),
        });
    }
    Ok(refusals.finish("dump")?)
}
