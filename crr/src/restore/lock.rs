//! Taking file locks and leases again, while all threads are held.
//!
//! Each is taken by a call of the task that had it: from then on it is the task's own, or its description's, and no descriptor of the
//! same file is closed any more, which would drop all of the task's (POSIX) locks on it.

use super::Restore;
use super::takeover::{Taken, by_thread, call};
use crate::fault::{self, Point};
use crate::ptrace::{Patience, Stopped, regs};
use anyhow::{Context, Result, bail};
use images::Abi;
use images::lock::{Lock, LockKind};
use nix::errno::Errno;

/// Takes the locks of all tasks.
pub(super) fn take_all(
    restore: &Restore<'_>,
    all: &mut [Vec<Taken<'_>>],
    parked: &[u64],
    patience: &Patience,
) -> Result<()> {
    for (index, task) in restore.checkpoint.tree.tasks.iter().enumerate() {
        for lock in &task.locks {
            let taken = fault::point(Point::TakeLock).map_err(Into::into);
            taken
                .and_then(|()| {
                    by_thread(&mut all[index], 0, |stopped| take(lock, stopped, parked[index], patience))
                })
                .and_then(|result| match result {
                    0 => Ok(()),
                    errno => bail!(Errno::from_raw(i32::try_from(-errno)?)),
                })
                .with_context(|| format!("task {}: fd {}: take its lock again", task.pid, lock.fd))?;
        }
    }
    Ok(())
}

fn take(lock: &Lock, stopped: Stopped, syscall_at: u64, patience: &Patience) -> Result<(Stopped, i64)> {
    let (flock, fcntl) = ([73, 143], [72, 221]);
    let fd = u64::from(lock.fd.0);
    if lock.kind == LockKind::Flock {
        const LOCK_SH: u64 = 1;
        const LOCK_EX: u64 = 2;
        const LOCK_NB: u64 = 4;
        let how = if lock.exclusive { LOCK_EX } else { LOCK_SH };
        return call(stopped, syscall_at, flock, &[fd, how | LOCK_NB], patience);
    }
    if lock.kind == LockKind::Lease {
        // include/uapi/linux/fcntl.h
        const F_SETLEASE: u64 = 1024;
        return call(stopped, syscall_at, fcntl, &[fd, F_SETLEASE, u64::from(lock.exclusive)], patience);
    }
    // F_SETLK of x86_64, and F_SETLK64 of ia32.
    let command = match (lock.kind, regs::mode(&stopped.regs()?)) {
        (LockKind::Ofd, _) => 37,
        (_, Abi::X86_64) => 6,
        (_, Abi::Ia32) => 13,
    };
    let bytes = encode(lock, regs::mode(&stopped.regs()?));
    let place = stopped.write_below_stack(&bytes)?;
    call(stopped, syscall_at, fcntl, &[fd, command, place.0], patience)
}

/// `struct flock` of x86_64, `struct flock64` of ia32, where 64-bit fields are aligned to 4: include/uapi/asm-generic/fcntl.h.
fn encode(lock: &Lock, abi: Abi) -> Vec<u8> {
    const F_RDLCK: i16 = 0;
    const F_WRLCK: i16 = 1;
    const SEEK_SET: i16 = 0;
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(if lock.exclusive { F_WRLCK } else { F_RDLCK }.to_le_bytes());
    bytes.extend(SEEK_SET.to_le_bytes());
    if abi == Abi::X86_64 {
        bytes.extend([0; 4]);
    }
    bytes.extend(lock.start.to_le_bytes());
    bytes.extend(lock.len.to_le_bytes());
    // l_pid, and padding.
    bytes.extend([0; 8]);
    bytes
}
