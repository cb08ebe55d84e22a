//! A shared mapping of our own.
//!
//! # Safety
//! The mapping, and what is mapped, is private to this value until a file is opened on it, or given to others.
#![allow(unsafe_code)]

use images::memory::HugePage;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// The mapping; unmapped when dropped.
#[derive(Debug)]
pub struct SharedMapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value, whichever thread has it.
unsafe impl Send for SharedMapping {}

impl SharedMapping {
    /// Maps `len` bytes of new memory, of huge pages if so, which cost nothing until touched.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn anonymous(len: u64, huge: Option<HugePage>) -> nix::Result<Self> {
        let huge =
            huge.map_or(0, |page| libc::MAP_HUGETLB | (page.shift() << libc::MAP_HUGE_SHIFT).cast_signed());
        Self::map(len, libc::MAP_ANONYMOUS | huge, -1, 0)
    }

    /// Maps `len` bytes at an address that an ia32 task could have.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn anonymous_low(len: u64) -> nix::Result<Self> {
        Self::map(len, libc::MAP_ANONYMOUS | libc::MAP_32BIT, -1, 0)
    }

    /// Maps the first `len` bytes of a file.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn of_file(file: &File, len: u64) -> nix::Result<Self> {
        Self::of_part(file, 0, len)
    }

    /// Maps `len` bytes of a file from a page-aligned offset on.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn of_part(file: &File, offset: u64, len: u64) -> nix::Result<Self> {
        Self::map(len, 0, file.as_raw_fd(), offset)
    }

    fn map(len: u64, flags: i32, fd: i32, offset: u64) -> nix::Result<Self> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
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

    /// All of its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for reading until drop; any bytes are valid.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Has the kernel make the pages from `offset` on, for writing.
    ///
    /// # Errors
    /// If there are none; where touching them would be the end by SIGBUS. EINVAL beyond its end.
    pub fn populate(&mut self, offset: u64, len: u64) -> nix::Result<()> {
        populate(self.slice(offset, len).ok_or(Errno::EINVAL)?)
    }

    /// Its entry in `/proc/self/map_files`.
    #[must_use]
    pub fn path(&self) -> String {
        let start = self.base.as_ptr().addr();
        let pages = self.len.next_multiple_of(4096);
        format!("/proc/self/map_files/{start:x}-{:x}", start + pages)
    }
}

/// Has the kernel make the pages that these bytes lie in, for writing.
///
/// # Errors
/// If there are none; where touching them would be the end by SIGBUS.
pub(super) fn populate(bytes: &mut [u8]) -> nix::Result<()> {
    // SAFETY: memory of ours; contents stay as they are.
    let done = unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_POPULATE_WRITE) };
    match Errno::result(done) {
        // Before Linux 5.14 there is no such call.
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
