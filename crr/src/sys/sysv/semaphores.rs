//! Sets of semaphores of System V.
//!
//! # Safety
//! The kernel reads and writes structures of ours, or takes numbers alone.
#![allow(unsafe_code)]

use super::super::check;
use super::{NEW, by_creator};
use nix::errno::Errno;

/// Makes a set with this key, permissions, number of semaphores and creator.
///
/// # Errors
/// As setresuid(2) and semget(2).
pub fn make(key: i32, count: usize, mode: u32, creator: (u32, u32)) -> nix::Result<i32> {
    let count = i32::try_from(count).map_err(|_| Errno::EINVAL)?;
    // SAFETY: plain numbers.
    by_creator(creator, || check(unsafe { libc::semget(key, count, NEW | mode.cast_signed()) }))
}

/// Whether there are any sets in this IPC namespace. Takes one call, where to list none takes six.
#[must_use]
pub fn are_any() -> bool {
    // SAFETY: all zeros are such a record.
    let mut info: libc::seminfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a live record, by this command one of this kind.
    let last = unsafe { libc::semctl(0, 0, libc::SEM_INFO, &raw mut info) };
    // semctl_info() of ipc/sem.c: as a size, it shows how many there are.
    last < 0 || info.semusz != 0
}

/// Gives a set this owner and these permissions.
///
/// # Errors
/// EPERM; EINVAL when it is gone.
pub fn set_owner(id: i32, (uid, gid): (u32, u32), mode: u32) -> nix::Result<()> {
    // SAFETY: all zeros are such a record.
    let mut record: libc::semid_ds = unsafe { std::mem::zeroed() };
    record.sem_perm.uid = uid;
    record.sem_perm.gid = gid;
    record.sem_perm.mode = mode.try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads a live record.
    check(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut record) }).map(drop)
}

/// Sets a value, as the one who does so last.
///
/// # Errors
/// ERANGE; EINVAL when it is gone.
pub fn set_value(id: i32, number: u16, value: u16) -> nix::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::semctl(id, i32::from(number), libc::SETVAL, i32::from(value)) }).map(drop)
}

/// Operates on a set, all at once or not at all.
///
/// # Errors
/// As semop(2).
pub fn operate(id: i32, operations: &mut [libc::sembuf]) -> nix::Result<()> {
    // SAFETY: the kernel reads as many operations as there are.
    check(unsafe { libc::semop(id, operations.as_mut_ptr(), operations.len()) }).map(drop)
}

/// Takes a set away.
///
/// # Errors
/// EPERM; EINVAL when it is gone.
pub fn remove(id: i32) -> nix::Result<()> {
    // SAFETY: this command takes nothing more.
    check(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
}

/// Drops what this thread would have undone at its end, which is nothing, and the list that it would be in.
///
/// # Errors
/// Never, by the manual.
pub fn forget_undo() -> nix::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::unshare(libc::CLONE_SYSVSEM) }).map(drop)
}

/// The values of a set of semaphores.
///
/// # Errors
/// EINVAL or EIDRM when it is gone, EACCES.
pub fn values(id: i32, count: u16) -> nix::Result<Vec<u16>> {
    let mut values = vec![0u16; usize::from(count)];
    // SAFETY: the kernel writes as many values as the set has, which keeps its size.
    check(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// The value of a semaphore.
///
/// # Errors
/// EINVAL or EIDRM when its set is gone, EACCES.
pub fn value(id: i32, number: u16) -> nix::Result<u16> {
    // SAFETY: numbers only.
    let value = check(unsafe { libc::semctl(id, i32::from(number), libc::GETVAL) })?;
    u16::try_from(value).map_err(|_| Errno::ERANGE)
}

/// Who operated last on a semaphore; 0 for a process that cannot be seen from here.
///
/// # Errors
/// EINVAL or EIDRM when it is gone, EACCES.
pub fn last_user(id: i32, number: u16) -> nix::Result<images::Pid> {
    // SAFETY: numbers only.
    check(unsafe { libc::semctl(id, i32::from(number), libc::GETPID) })
}
