//! Reading and writing another task's memory by process_vm_readv and process_vm_writev.
//!
//! # Safety
//! The kernel writes to (or reads from) the one local buffer whose length it is told; remote addresses are
//! numbers to us.
#![allow(unsafe_code)]

use super::check;
use crate::fault::{self, Point};
use images::{Addr, Pid};
use nix::errno::Errno;

/// A range of a task's memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Remote(libc::iovec);

impl Remote {
    /// `len` bytes at `start`.
    #[must_use]
    pub fn new(start: Addr, len: usize) -> Self {
        let base = usize::try_from(start.0).unwrap_or(usize::MAX);
        Self(libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: len })
    }

    /// Its first address.
    #[must_use]
    pub fn start(&self) -> Addr {
        Addr(self.0.iov_base.addr() as u64)
    }

    /// Its length.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }
}

/// Reads consecutive ranges (at most 1024) into one buffer. Returns how many bytes were read: the kernel stops
/// at the first page that cannot be read.
///
/// # Errors
/// EFAULT when not even the first page can be read, ESRCH, EPERM.
pub fn read(pid: Pid, buffer: &mut [u8], remote: &[Remote]) -> nix::Result<usize> {
    fault::point(Point::ReadMemory)?;
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let count = remote.len() as libc::c_ulong;
    // SAFETY: `local` is our buffer; `Remote` is a transparent iovec.
    let n =
        check(unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr().cast(), count, 0) })?;
    usize::try_from(n).map_err(|_| Errno::EIO)
}

/// Fills `buffer` from one address.
///
/// # Errors
/// EFAULT when not all of it can be read, ESRCH, EPERM.
pub fn read_exact(pid: Pid, at: Addr, buffer: &mut [u8]) -> nix::Result<()> {
    let len = buffer.len();
    if read(pid, buffer, &[Remote::new(at, len)])? == len { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Writes all of `bytes` to one address of writable memory.
///
/// # Errors
/// EFAULT when not all of it can be written, ESRCH, EPERM.
pub fn write_all(pid: Pid, at: Addr, bytes: &[u8]) -> nix::Result<()> {
    fault::point(Point::WriteMemory)?;
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = Remote::new(at, bytes.len());
    // SAFETY: the kernel only reads `bytes`.
    let n = check(unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote.0, 1, 0) })?;
    if usize::try_from(n) == Ok(bytes.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}
