//! A part of a file, mapped for reading.
//!
//! # Safety
//! The file may be written or cut by others meanwhile: what is read are only numbers. A file that gets shorter ends crr with SIGBUS; so what is mapped
//! is brought into memory first, by a call that fails then.
#![allow(unsafe_code)]

use super::vm;
use images::Addr;
use nix::errno::Errno;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// The mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
}

impl Window {
    /// Maps `len` bytes from a page-aligned offset, with all pages in place, at an address that an ia32 task could have, too.
    ///
    /// # Errors
    /// As mmap(2) and madvise(2); EOPNOTSUPP before Linux 5.14, which cannot bring pages into memory by a call that fails.
    pub fn map(file: &impl AsRawFd, offset: u64, len: usize) -> nix::Result<Self> {
        let window = Self::map_unseen(file, offset, len)?;
        // SAFETY: our own mapping, of which nothing changes.
        let populated = unsafe { libc::madvise(window.base.as_ptr().cast(), len, libc::MADV_POPULATE_READ) };
        match Errno::result(populated) {
            Ok(_) => Ok(window),
            Err(Errno::EINVAL) => Err(Errno::EOPNOTSUPP),
            Err(errno) => Err(errno),
        }
    }

    /// Copies what a mapping shows from a page-aligned offset on, behind the end of the file, too, as far as its last page goes. The kernel is asked to copy, by a call
    /// that fails where touching the page would end crr.
    ///
    /// # Errors
    /// As mmap(2) and process_vm_readv(2).
    pub fn copy(file: &impl AsRawFd, offset: u64, bytes: &mut [u8]) -> nix::Result<()> {
        let window = Self::map_unseen(file, offset, bytes.len())?;
        let own = nix::unistd::getpid().as_raw();
        vm::read_exact(own, Addr(window.base.as_ptr().expose_provenance() as u64), bytes)
    }

    fn map_unseen(file: &impl AsRawFd, offset: u64, len: usize) -> nix::Result<Self> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let flags = libc::MAP_SHARED | libc::MAP_32BIT;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(at.cast()).map(|base| Self { base, len }).ok_or(Errno::ENOMEM)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for reading until drop; any bytes are valid.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
