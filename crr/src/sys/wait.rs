//! waitpid, undecoded: nix's decoding fails on stops for real-time signals.
//!
//! # Safety
//! waitpid writes the one `int` whose address it gets.
#![allow(unsafe_code)]

use super::check;
use images::Pid;

/// waitpid for one thread or child of any kind (`__WALL`). `None` when nothing has happened and `block` is false.
///
/// # Errors
/// ECHILD when it is neither our child nor our tracee, EINTR.
pub fn wait(tid: Pid, block: bool) -> nix::Result<Option<i32>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    // SAFETY: `status` is a live int.
    let waited = check(unsafe { libc::waitpid(tid, &raw mut status, flags) })?;
    Ok((waited != 0).then_some(status))
}
