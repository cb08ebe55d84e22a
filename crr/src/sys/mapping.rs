//! A shared anonymous mapping of our own.
//!
//! # Safety
//! The mapping is private to this value until a file is opened on it.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ptr::NonNull;

/// The mapping; unmapped when dropped.
#[derive(Debug)]
pub struct SharedAnonymous {
    base: NonNull<u8>,
    len: usize,
}

impl SharedAnonymous {
    /// Maps `len` bytes, which cost nothing until touched.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn map(len: u64) -> nix::Result<Self> {
        Self::map_with(len, 0)
    }

    /// The same, at an address that an ia32 task could have.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn map_low(len: u64) -> nix::Result<Self> {
        Self::map_with(len, libc::MAP_32BIT)
    }

    fn map_with(len: u64, flags: i32) -> nix::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(at.cast()).map(|base| Self { base, len }).ok_or(Errno::ENOMEM)
    }

    /// Its bytes from `offset`, if it has that many.
    pub fn slice(&mut self, offset: u64, len: u64) -> Option<&mut [u8]> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside the mapping (checked), readable and writable, borrowed for as long as the result lives.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: as above; any bytes are valid.
        Some(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }

    /// Its entry in `/proc/self/map_files`.
    #[must_use]
    pub fn path(&self) -> String {
        let start = self.base.as_ptr().addr();
        let pages = self.len.next_multiple_of(4096);
        format!("/proc/self/map_files/{start:x}-{:x}", start + pages)
    }
}

impl Drop for SharedAnonymous {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
