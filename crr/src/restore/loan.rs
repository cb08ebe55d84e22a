//! Giving back memory of a task that the hole lay in: once it is gone, the task maps that memory itself, at a system call instruction
//! of its own code.

use super::takeover::call;
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Cache, Gadget};
use crate::resource::memory::code_areas;
use anyhow::{Context, Result, ensure};
use images::memory::{Space, Vma};
use images::{Abi, Addr, Pid};
use shared::plan::loan;

/// Where a thread can still make a call.
pub(super) fn call_place(pid: Pid, abi: Abi, space: &Space) -> Result<Addr> {
    let gadget = Gadget::find(pid, abi, &code_areas(&space.vmas), &mut Cache::default());
    Ok(gadget.context("no system call instruction found in its code")?.syscall)
}

/// Maps what was lent, as `shared::plan::memory` would have: what is lent needs no more than that.
pub(super) fn give_back(
    stopped: Stopped,
    lent: &Vma,
    syscall_at: Addr,
    patience: &Patience,
) -> Result<Stopped> {
    let (mmap_64, mmap2_32) = (9, 192);
    let args = loan::mmap_args(lent);
    let (stopped, result) = call(stopped, syscall_at.0, [mmap_64, mmap2_32], &args, patience)?;
    let errno = nix::errno::Errno::from_raw(i32::try_from(-result).unwrap_or(0));
    ensure!(result == i64::try_from(lent.start.0)?, "mmap of {}: {errno}", lent.start);
    Ok(stopped)
}
