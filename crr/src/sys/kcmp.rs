//! kcmp(2): do two tasks share a kernel object?
//!
//! # Safety
//! kcmp takes numbers only, but for one struct that it reads.
#![allow(unsafe_code)]

use super::check;
use images::Pid;
use nix::errno::Errno;
use std::cmp::Ordering;

/// The kinds of objects that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Open file descriptions of two descriptors.
    File,
    /// Address space.
    Vm,
    /// Descriptor table.
    Files,
    /// Current directory, root and umask.
    Fs,
    /// Signal handlers.
    Sighand,
    /// What is to be undone to semaphores of System V.
    Undo,
}

/// Compares; the order is the kernel's own (a permuted pointer), stable while both objects live.
///
/// # Errors
/// EPERM, ESRCH, EBADF, or ENOSYS where the kernel lacks CONFIG_KCMP.
pub fn kcmp(kind: Kind, a: (Pid, u32), b: (Pid, u32)) -> nix::Result<Ordering> {
    // enum kcmp_type of include/uapi/linux/kcmp.h.
    let number = match kind {
        Kind::File => 0,
        Kind::Vm => 1,
        Kind::Files => 2,
        Kind::Fs => 3,
        Kind::Sighand => 4,
        Kind::Undo => 6,
    };
    // SAFETY: no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, number, u64::from(a.1), u64::from(b.1)) };
    order(answer)
}

/// Compares a file with one that an epoll watches: the `nth` of those that were added under the number `tfd`. The order
/// is that of [`Kind::File`].
///
/// # Errors
/// As [`kcmp`]; ENOENT if there is no such watch.
pub fn kcmp_watched(file: (Pid, u32), epoll: (Pid, u32), tfd: u32, nth: u32) -> nix::Result<Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // struct kcmp_epoll_slot: efd, tfd, toff.
    let slot = [epoll.1, tfd, nth];
    // SAFETY: reads three 32-bit numbers.
    let answer = unsafe {
        libc::syscall(libc::SYS_kcmp, file.0, epoll.0, KCMP_EPOLL_TFD, u64::from(file.1), slot.as_ptr())
    };
    order(answer)
}

fn order(answer: libc::c_long) -> nix::Result<Ordering> {
    match check(answer)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::EINVAL),
    }
}
