//! userfaultfd(2), used to tell which pages were written: pages are write-protected, and the kernel itself takes the protection off
//! a page that is written (UFFD_FEATURE_WP_ASYNC, Linux 6.7). Nobody has to read the descriptor.
//!
//! # Safety
//! Each ioctl reads and writes one object of ours of the size in its number.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Flags of the system call: UFFD_USER_MODE_ONLY, which takes no right (no fault is ever left to user space here, nor to anyone), with
/// O_CLOEXEC and O_NONBLOCK.
pub const FLAGS: u64 = 1 | 0o2_000_000 | 0o4000;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

const _: () =
    assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32 && size_of::<WriteProtect>() == 24);

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xaa, 0x06, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

/// Makes a fresh descriptor ready to track writes. Anonymous memory needs UFFD_FEATURE_WP_UNPOPULATED for it
/// (userfaultfd_wp_use_markers() of include/linux/userfaultfd_k.h).
///
/// # Errors
/// EINVAL where the kernel cannot (before Linux 6.7).
pub fn enable(fd: BorrowedFd<'_>) -> nix::Result<()> {
    /// UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_ASYNC.
    const FEATURES: u64 = 1 | 1 << 13 | 1 << 15;
    let mut api = Api { api: 0xaa, features: FEATURES, ioctls: 0 };
    // SAFETY: see the module.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    if api.features & FEATURES == FEATURES { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Has writes to an area tracked, from the next protection on. One that is tracked already by the same descriptor stays so.
///
/// # Errors
/// EBUSY if another descriptor has it, EINVAL if it cannot be, ESRCH or ENOMEM if the address space is gone.
pub fn track(fd: BorrowedFd<'_>, start: u64, end: u64) -> nix::Result<()> {
    /// UFFDIO_REGISTER_MODE_WP.
    const WRITE_PROTECT: u64 = 1 << 1;
    let mut register = Register { start, len: end - start, mode: WRITE_PROTECT, ioctls: 0 };
    // SAFETY: see the module.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
    Ok(())
}

/// Takes the protection off all pages of a tracked area. Before Linux 6.13, pages of an area that was moved (mremap) keep the mark of it
/// without the protection, and so would look unwritten.
///
/// # Errors
/// ENOENT if the area is not tracked; ESRCH if the address space is gone.
pub fn unprotect(fd: BorrowedFd<'_>, start: u64, end: u64) -> nix::Result<()> {
    let mut area = WriteProtect { start, len: end - start, mode: 0 };
    // SAFETY: see the module.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut area) })?;
    Ok(())
}
