//! The system calls that no crate here wraps.
//!
//! # Safety
//! kcmp(2) and those about pidfds take numbers only, landlock_create_ruleset(2) as used here a null pointer; only FIONREAD writes, to an int of ours.
#![allow(unsafe_code)]

use std::cmp::Ordering;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `KCMP_FILE` of `linux/kcmp.h`.
const KCMP_FILE: libc::c_long = 0;

/// `KCMP_VM`, `KCMP_FILES`, `KCMP_FS` and `KCMP_SIGHAND`.
pub const KCMP_SHARED: [(libc::c_long, &str); 4] =
    [(1, "memory"), (2, "descriptors"), (3, "directories"), (4, "signal handlers")];

/// Whether two tasks have one kernel object of a kind.
///
/// # Errors
/// kcmp(2) failed.
pub fn same_object(kind: libc::c_long, a: i32, b: i32) -> std::io::Result<bool> {
    // SAFETY: all arguments are plain numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, 0, 0) };
    if order < 0 { Err(std::io::Error::last_os_error()) } else { Ok(order == 0) }
}

/// An order among open file descriptions (`struct file`), in which two descriptors of one are equal.
///
/// # Errors
/// kcmp(2) failed.
pub fn order_of_descriptions(a: (i32, i32), b: (i32, i32)) -> std::io::Result<Ordering> {
    let [fd_a, fd_b] = [a.1, b.1].map(libc::c_long::from);
    // SAFETY: all arguments are plain numbers.
    match unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILE, fd_a, fd_b) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A descriptor of this process on what another task has open.
///
/// # Errors
/// pidfd_open(2) or pidfd_getfd(2) failed.
pub fn descriptor_of(pid: i32, fd: i32) -> std::io::Result<OwnedFd> {
    let own = |fd: libc::c_long| match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: numbers only.
    let pidfd = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: numbers only.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Bytes that a read of a pipe would find.
///
/// # Errors
/// ioctl(2) failed.
pub fn readable(pipe: BorrowedFd<'_>) -> std::io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int.
    match unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether the kernel has Landlock and uses it: it tells the version of its interface.
#[must_use]
pub fn has_landlock() -> bool {
    const VERSION: libc::c_uint = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: no attributes, no size.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, VERSION) > 0 }
}

/// Whether the kernel has memfd_secret(2).
#[must_use]
pub fn has_secret_memory() -> bool {
    // SAFETY: no memory; flags that do not exist: EINVAL, or ENOSYS.
    let secret = unsafe { libc::syscall(libc::SYS_memfd_secret, -1) };
    secret < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// Whether the kernel has keyrings.
#[must_use]
pub fn has_keys() -> bool {
    // SAFETY: numbers only: the thread keyring, without making it.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, 0, -1, 0) };
    answer >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Whether io_uring, performance counters, BPF and userfaultfd may all be used here.
#[must_use]
pub fn has_kernel_helpers() -> bool {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_perf_event_open, libc::SYS_bpf, libc::SYS_userfaultfd];
    calls.into_iter().all(|call| {
        // SAFETY: nowhere from 0 on is anything to be read, and -1 is no valid flag of userfaultfd(2).
        let answer = unsafe { libc::syscall(call, -1i64, 0, -1, -1, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        answer >= 0 || !matches!(errno, Some(libc::ENOSYS | libc::EPERM))
    })
}

/// Whether a file is a terminal that can be opened.
#[must_use]
pub fn has_terminal(name: &str) -> bool {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let opened = std::fs::File::options().read(true).write(true).custom_flags(flags).open(name);
    opened.is_ok_and(|file| std::io::IsTerminal::is_terminal(&file))
}

/// Sends any signal, also one that nix has no name for.
///
/// # Errors
/// kill(2) failed.
pub fn kill(pid: i32, signal: i32) -> std::io::Result<()> {
    // SAFETY: plain numbers.
    let sent = unsafe { libc::kill(pid, signal) };
    if sent == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
