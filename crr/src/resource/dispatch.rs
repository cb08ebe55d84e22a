//! System call user dispatch (PR_SET_SYSCALL_USER_DISPATCH): system calls from outside of a range of code become SIGSYS. Wine has it
//! for Windows programs that make their own.
//!
//! The setting is read and written by a tracer. While a task makes calls for crr it is off, and since it would stay off if crr were killed just then,
//! such a task is asked by a guarded process ([`crate::dump::guard`]) like one with seccomp.

use crate::dump::guard::Unguarded;
use crate::ptrace::{Error, Stopped};
use anyhow::{Result, bail};
use images::thread::{Dispatch, Thread};

/// Switches it off in all threads, so that they can be asked.
///
/// # Errors
/// [`Unguarded`] if a thread has it and this process is not `guarded`.
pub(crate) fn suspend(threads: &[Stopped], records: &[Thread], guarded: bool) -> Result<()> {
    for (thread, _) in affected(threads, records) {
        if !guarded {
            bail!(Unguarded);
        }
        if let Err(e) = thread.set_dispatch(None) {
            // Gone is the only failure there is; the others get theirs back.
            let _ = resume(threads, records);
            return Err(e.into());
        }
    }
    Ok(())
}

/// Puts it back.
pub(crate) fn resume(threads: &[Stopped], records: &[Thread]) -> Result<(), Error> {
    affected(threads, records).try_for_each(|(thread, dispatch)| thread.set_dispatch(Some(dispatch)))
}

fn affected<'a>(
    threads: &'a [Stopped],
    records: &'a [Thread],
) -> impl Iterator<Item = (&'a Stopped, &'a Dispatch)> {
    threads.iter().zip(records).filter_map(|(thread, record)| Some((thread, record.dispatch.as_ref()?)))
}
