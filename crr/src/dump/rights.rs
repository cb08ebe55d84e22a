//! What crr has to be allowed, and the kernel able to do, before it looks at any task.

use crate::kernel;
use crate::refusal::{Refusal, Refusals};
use crate::resource::creds::CAP_SYS_ADMIN;
use anyhow::Result;

/// Refuses a dump that could not see which files a task has mapped, or what tasks share.
///
/// # Errors
/// [`crate::refusal::Refused`], naming what is missing.
pub(super) fn check() -> Result<()> {
    const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
    let effective = kernel::own_capabilities()?;
    let mut refusals = Refusals::default();
    if effective & (CAP_CHECKPOINT_RESTORE | CAP_SYS_ADMIN) == 0 {
        refusals.push(Refusal {
            task: None,
            object: "crr".into(),
            reason: "lacks CAP_CHECKPOINT_RESTORE, without which the kernel does not show the files that a task has mapped".into(),
            hint: Some("run it as root, or give it that capability, and CAP_SYS_PTRACE for tasks of other users".into()),
        });
    }
    if let Err(reason) = kernel::can_compare() {
        refusals.push(Refusal {
            task: None,
            object: "the tree".into(),
            reason: format!("nobody can tell what its tasks share, and which descriptors are of one file: {reason}"),
            hint: Some("it takes a kernel with CONFIG_KCMP (or CONFIG_CHECKPOINT_RESTORE), and no filter that forbids kcmp(2)".into()),
        });
    }
    Ok(refusals.finish("dump")?)
}
