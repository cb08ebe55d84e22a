//! Process file descriptors: copies of a task's open files.
//!
//! # Safety
//! Pointers lead to live objects of the size that the kernel is told; the descriptor that a successful call returns is new and ours.
#![allow(unsafe_code)]

use super::check;
use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use images::Pid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// PIDFD_THREAD of include/uapi/linux/pidfd.h, as fdinfo shows it too.
pub const THREAD: u32 = libc::O_EXCL.cast_unsigned();
/// PIDFD_NONBLOCK.
pub const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();

fn own(fd: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_open for a task, by its pid or by a thread that does not lead it ([`open_thread`]).
///
/// # Errors
/// ESRCH when gone, ENOSYS before 5.3, EINVAL for another thread before 6.9.
pub fn open(tid: Pid) -> nix::Result<OwnedFd> {
    fault::point(Point::PidfdOpen)?;
    // SAFETY: no pointers.
    match check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, 0) }) {
        Err(Errno::EINVAL | Errno::ENOENT) => open_thread(tid),
        fd => own(fd?),
    }
}

/// pidfd_open for one thread, which need not be a leader (PIDFD_THREAD): its files are those of its task.
///
/// # Errors
/// ESRCH when gone, EINVAL before 6.9.
pub fn open_thread(tid: Pid) -> nix::Result<OwnedFd> {
    open_with(tid, THREAD)
}

/// pidfd_open with PIDFD_* flags.
///
/// # Errors
/// ESRCH when gone, EINVAL for a flag that this kernel does not know.
pub fn open_with(tid: Pid, flags: u32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    own(check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, flags) })?)
}

/// The wait status of a process that has been waited for; `None` where the kernel does not tell (before Linux 6.15), or has none.
///
/// # Errors
/// As ioctl(2), but for a kernel that has no such question.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> nix::Result<Option<u32>> {
    /// PIDFD_INFO_EXIT.
    const EXIT: u64 = 1 << 3;
    /// `struct pidfd_info` as Linux 6.13 has it: PIDFD_INFO_SIZE_VER0.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    /// PIDFD_GET_INFO.
    const GET_INFO: libc::c_ulong = 0xc040_ff0b;
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the kernel reads and writes as many bytes as the number says, 64.
    match check(unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) }) {
        Ok(_) if info.mask & EXIT != 0 => Ok(Some(info.exit_code.cast_unsigned())),
        // ESRCH: it has ended, and that is all this kernel knows.
        Ok(_) | Err(Errno::ENOTTY | Errno::EINVAL | Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// pidfd_getfd: our own descriptor on the same open file description.
///
/// # Errors
/// EBADF, EPERM, ESRCH, ENOSYS before 5.6.
pub fn get_fd(pidfd: BorrowedFd<'_>, fd: u32) -> nix::Result<OwnedFd> {
    fault::point(Point::PidfdGetFd)?;
    if is_disabled(Switch::PidfdGetfd) {
        return Err(Errno::ENOSYS);
    }
    // SAFETY: no pointers.
    own(check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?)
}

/// Sends a signal.
///
/// # Errors
/// ESRCH when gone.
pub fn kill(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let no_info = std::ptr::null::<u8>();
    // SAFETY: no siginfo is given.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) })?;
    Ok(())
}
