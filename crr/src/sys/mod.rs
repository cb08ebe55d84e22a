//! Thin wrappers around the system calls that nix lacks or gets wrong for 32-bit tracees.
//!
//! One file per family. Each function does one call, returns [`nix::Result`] and takes slices and plain
//! values, so that everything above this module is safe code.
//!
//! # Safety
//! Only [`pending_signals`] and [`ignores`] here: the kernel fills in a set or an action of ours.
#![allow(unsafe_code)]

pub mod attribute;
pub mod bpf;
pub mod event;
pub mod exec;
pub mod fanotify;
pub(crate) mod heap;
pub mod inotify;
pub mod int80;
pub mod kcmp;
pub mod last_pid;
pub mod limits;
pub mod mapping;
pub(crate) mod memfd;
pub mod mount;
pub mod mqueue;
pub mod pagemap;
pub mod pidfd;
pub mod pipe;
pub mod process;
pub mod ptrace;
pub mod sched;
pub mod shared_page;
pub mod socket;
pub mod stranger;
pub mod sysv;
pub mod tcp;
pub mod tty;
pub mod userfaultfd;
pub mod vm;
pub mod wait;
pub mod window;
pub mod xsave;

use nix::errno::Errno;
use nix::sys::statfs::{Statfs, TMPFS_MAGIC};

/// The result of a libc call that answers -1 on failure.
fn check<T: PartialEq + From<i8>>(value: T) -> nix::Result<T> {
    if value == T::from(-1) { Err(Errno::last()) } else { Ok(value) }
}

/// The two words of 32 bits that one of 64 is, the lower one first.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// Whether a file system, as statfs(2) tells of it, has its files in memory.
///
/// # Errors
/// Those of the call.
pub(crate) fn is_tmpfs(found: nix::Result<Statfs>) -> nix::Result<bool> {
    found.map(|of| of.filesystem_type() == TMPFS_MAGIC)
}

/// Signals that are pending for the calling thread or process while blocked.
///
/// # Errors
/// Never, by the manual.
pub fn pending_signals() -> nix::Result<nix::sys::signal::SigSet> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigpending writes one whole set.
    check(unsafe { libc::sigpending(set.as_mut_ptr()) })?;
    // SAFETY: initialised by the call above, and before it: all zeroes is a valid set.
    let set = unsafe { set.assume_init() };
    // SAFETY: the kernel made it.
    Ok(unsafe { nix::sys::signal::SigSet::from_sigset_t_unchecked(set) })
}

/// Whether crr ignores a signal, as under nohup(1).
#[must_use]
pub fn ignores(signal: nix::sys::signal::Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the present one is written whole.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: written by the call above, and before it: all zeroes is a valid action.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
