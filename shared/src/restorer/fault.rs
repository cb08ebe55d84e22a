//! Ops that fail because a test wants them to.

use super::{Failure, Session};
use crate::op::Op;
use crate::sys::{self, Errno};
use core::sync::atomic::Ordering::Relaxed;

/// Fails, or ends the process without a word, if the op is the one that is to fail.
pub(super) fn check(session: &Session, op: &Op<'_>) -> Result<(), Failure> {
    let fault = &session.control().fault;
    if fault.family.load(Relaxed) != op.family() as u32 {
        return Ok(());
    }
    if fault.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) != Ok(1) {
        return Ok(());
    }
    match fault.errno.load(Relaxed) {
        0 => sys::exit_group(1),
        errno => Err(Failure::new(Errno(errno), 0)),
    }
}
