//! Scheduling attributes, affinity and I/O priority of a thread.
//!
//! # Safety
//! The kernel reads or writes at most the size given with each pointer.
#![allow(unsafe_code)]

use super::check;
use images::Pid;

/// `struct sched_attr`, first version with utilization clamps left out (48 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Filled in by the calls.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value of a fair thread.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Nanoseconds; the slice of a fair thread.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

const _: () = assert!(size_of::<Attr>() == 48);

/// sched_getattr.
///
/// # Errors
/// ESRCH when gone.
pub fn get_attr(tid: Pid) -> nix::Result<Attr> {
    let mut attr = Attr::default();
    // SAFETY: the kernel writes at most 48 bytes to `attr`.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size_of::<Attr>(), 0) })?;
    Ok(attr)
}

/// sched_setattr.
///
/// # Errors
/// EPERM without the privilege, EINVAL, EBUSY when a deadline cannot be admitted.
pub fn set_attr(tid: Pid, attr: &Attr) -> nix::Result<()> {
    let mut attr = *attr;
    attr.size = 48;
    // SAFETY: the kernel reads 48 bytes of `attr`.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw mut attr, 0) }).map(drop)
}

/// sched_getaffinity: as many words as the kernel has.
///
/// # Errors
/// ESRCH when gone.
pub fn get_affinity(tid: Pid) -> nix::Result<Vec<u64>> {
    let mut mask = [0u64; 128];
    // SAFETY: the kernel writes at most the size of `mask`.
    let bytes = check(unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&mask), mask.as_mut_ptr())
    })?;
    Ok(mask[..usize::try_from(bytes).unwrap_or(0).div_ceil(8)].to_vec())
}

/// sched_setaffinity.
///
/// # Errors
/// EINVAL when no CPU of the mask is there.
pub fn set_affinity(tid: Pid, mask: &[u64]) -> nix::Result<()> {
    // SAFETY: the kernel reads the bytes of `mask`.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(mask), mask.as_ptr()) })
        .map(drop)
}

const PRIO_PROCESS: i32 = 0;

/// The nice value of a thread, which one with a real-time policy has too: it counts again when that ends.
///
/// # Errors
/// ESRCH when gone.
pub fn get_nice(tid: Pid) -> nix::Result<i32> {
    // The system call answers 20 less the value, so that it is never negative.
    const SHIFT: i64 = 20;
    // SAFETY: no pointers.
    let value = check(unsafe { libc::syscall(libc::SYS_getpriority, PRIO_PROCESS, tid) })?;
    Ok(i32::try_from(SHIFT - value).unwrap_or(0))
}

/// Sets the nice value of a thread.
///
/// # Errors
/// EACCES without the privilege for a lower one.
pub fn set_nice(tid: Pid, nice: i32) -> nix::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setpriority, PRIO_PROCESS, tid, nice) }).map(drop)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// ioprio_get of a thread: class and level, raw; 0 if it has none.
///
/// # Errors
/// ESRCH when gone.
pub fn get_io_priority(tid: Pid) -> nix::Result<u32> {
    // SAFETY: no pointers.
    let value = check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })?;
    Ok(u32::try_from(value).map_or(0, known_io_priority))
}

/// Without a class there is no level: kernels before 5.18 tell one all the same (get_task_ioprio() of block/ioprio.c), and none takes it.
fn known_io_priority(value: u32) -> u32 {
    const CLASS_SHIFT: u32 = 13;
    /// Hints are beside it (Linux 6.5).
    const LEVEL: u32 = 7;
    if value >> CLASS_SHIFT == 0 { value & !LEVEL } else { value }
}

/// ioprio_set of a thread.
///
/// # Errors
/// EPERM without the privilege for the class.
pub fn set_io_priority(tid: Pid, value: u32) -> nix::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, value) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_class_there_is_no_io_priority() {
        assert_eq!([0, 4, 2 << 13, 2 << 13 | 4].map(known_io_priority), [0, 0, 2 << 13, 2 << 13 | 4]);
    }
}
