//! userfaultfd(2), used in two ways.
//!
//! To tell which pages were written: pages are write-protected, and the kernel itself takes the protection off a page that is written
//! (UFFD_FEATURE_WP_ASYNC, Linux 6.7). Nobody has to read the descriptor.
//!
//! To bring pages late: who touches one that is missing waits until it is put in place, and what a task does to its areas waits
//! until it has been read.
//!
//! # Safety
//! Each ioctl reads and writes one object of ours of the size in its number.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Flags of the system call: UFFD_USER_MODE_ONLY, which takes no right (no fault is ever left to user space here, nor to anyone), with
/// O_CLOEXEC and O_NONBLOCK.
pub const FLAGS: u64 = USER_MODE_ONLY as u64 | 0o2_000_000 | 0o4000;

/// UFFD_USER_MODE_ONLY: the kernel itself does not wait for pages, which takes no right.
pub const USER_MODE_ONLY: u32 = 1;

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

/// `struct uffdio_copy`.
#[repr(C)]
struct CopyIn {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct Zero {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

const _: () =
    assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32 && size_of::<WriteProtect>() == 24);
const _: () = assert!(size_of::<CopyIn>() == 40 && size_of::<Zero>() == 32);

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xaa, 0x06, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

/// `_IOR(0xaa, 0x02, struct uffdio_range)`.
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// `_IOWR(0xaa, 0x04, struct uffdio_zeropage)`.
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;

/// What has to be known to bring pages late: UFFD_FEATURE_EVENT_FORK (which takes CAP_SYS_PTRACE), EVENT_REMAP, EVENT_REMOVE,
/// EVENT_UNMAP, THREAD_ID. All of Linux 4.14.
pub const LATE_FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8;

/// Makes a fresh descriptor ready to track writes. Anonymous memory needs UFFD_FEATURE_WP_UNPOPULATED for it
/// (userfaultfd_wp_use_markers() of include/linux/userfaultfd_k.h).
///
/// # Errors
/// EINVAL where the kernel cannot (before Linux 6.7).
pub fn enable(fd: BorrowedFd<'_>) -> nix::Result<()> {
    /// UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_ASYNC.
    const FEATURES: u64 = 1 | 1 << 13 | 1 << 15;
    ask_for(fd, FEATURES)
}

/// Makes a fresh descriptor ready to bring pages late.
///
/// # Errors
/// EINVAL where the kernel cannot, EPERM without CAP_SYS_PTRACE.
pub fn enable_late(fd: BorrowedFd<'_>) -> nix::Result<()> {
    ask_for(fd, LATE_FEATURES)
}

/// Makes a fresh descriptor ready to put pages in place that nobody waits for.
///
/// # Errors
/// As ioctl(2).
pub fn enable_putting(fd: BorrowedFd<'_>) -> nix::Result<()> {
    ask_for(fd, 0)
}

fn ask_for(fd: BorrowedFd<'_>, features: u64) -> nix::Result<()> {
    let mut api = Api { api: 0xaa, features, ioctls: 0 };
    // SAFETY: see the module.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    if api.features & features == features { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Has writes to an area tracked, from the next protection on. One that is tracked already by the same descriptor stays so.
///
/// # Errors
/// EBUSY if another descriptor has it, EINVAL if it cannot be, ESRCH or ENOMEM if the address space is gone.
pub fn track(fd: BorrowedFd<'_>, start: u64, end: u64) -> nix::Result<()> {
    /// UFFDIO_REGISTER_MODE_WP.
    const WRITE_PROTECT: u64 = 1 << 1;
    register(fd, start, end, WRITE_PROTECT)
}

/// From now on whoever touches a missing page of an area waits for it; with UFFD_USER_MODE_ONLY the kernel itself fails to instead.
///
/// # Errors
/// As [`track`].
pub fn await_missing(fd: BorrowedFd<'_>, start: u64, end: u64) -> nix::Result<()> {
    /// UFFDIO_REGISTER_MODE_MISSING.
    const MISSING: u64 = 1;
    register(fd, start, end, MISSING)
}

fn register(fd: BorrowedFd<'_>, start: u64, end: u64, mode: u64) -> nix::Result<()> {
    let mut register = Register { start, len: end - start, mode, ioctls: 0 };
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

/// What a descriptor tells.
#[derive(Debug)]
pub enum Message {
    /// A thread, by its id in its own pid namespace, waits for a page.
    Fault {
        /// Of the page.
        address: u64,
        /// Who waits.
        thread: u32,
    },
    /// The address space was copied; this one is of the copy.
    Fork(OwnedFd),
    /// An area was moved.
    Moved {
        /// Its first byte until now.
        from: u64,
        /// Its first byte from now on.
        to: u64,
        /// Its bytes.
        len: u64,
    },
    /// What was there is to be gone (madvise).
    Gone {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// It is gone with its area (munmap, and what was moved away or mapped over).
    Unmapped {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
}

/// The next message, if there is one. Only one at a time: who caused it goes on when it has been read, and what is done upon an
/// earlier one has to be done by then.
///
/// # Errors
/// As read(2); EMFILE if the descriptor of a copied address space finds no number, and the message stays.
pub fn read(fd: BorrowedFd<'_>) -> nix::Result<Option<Message>> {
    // struct uffd_msg: the event in the first byte, then from the eighth byte on what belongs to it.
    let mut bytes = [0u8; 32];
    match nix::unistd::read(fd, &mut bytes) {
        Ok(32) => {}
        Ok(_) => return Err(Errno::EIO),
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let (words, _) = bytes[8..].as_chunks::<8>();
    let [first, second, third] = [0, 1, 2].map(|at| u64::from_ne_bytes(words[at]));
    let low = |word: u64| u32::from_ne_bytes([0, 1, 2, 3].map(|at| word.to_ne_bytes()[at]));
    Ok(Some(match bytes[0] {
        0x12 => Message::Fault { address: second, thread: low(third) },
        // SAFETY: the kernel has just put this descriptor into our table, and nobody else knows of it.
        0x13 => Message::Fork(unsafe { OwnedFd::from_raw_fd(low(first).cast_signed()) }),
        0x14 => Message::Moved { from: first, to: second, len: third },
        0x15 => Message::Gone { start: first, end: second },
        0x16 => Message::Unmapped { start: first, end: second },
        _ => return Err(Errno::EPROTO),
    }))
}

/// Puts pages in place and wakes who waits for them; how many bytes, which can be fewer than asked for.
///
/// # Errors
/// Of the first page: EEXIST if it is there, ENOENT if it is not within one area of the descriptor's, EAGAIN if areas are changing: there
/// is a message to be read, or will be; ESRCH if the address space is gone.
pub fn put(fd: BorrowedFd<'_>, start: u64, bytes: &[u8]) -> nix::Result<u64> {
    let (from, len) = (bytes.as_ptr().addr() as u64, bytes.len() as u64);
    let mut copy = CopyIn { to: start, from, len, mode: 0, done: 0 };
    // SAFETY: see the module; what is copied is ours.
    let done = check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_COPY, &raw mut copy) });
    outcome(done, copy.done)
}

/// Puts pages of zeros in place.
///
/// # Errors
/// As [`put`].
pub fn put_zeros(fd: BorrowedFd<'_>, start: u64, len: u64) -> nix::Result<u64> {
    let mut zero = Zero { start, len, mode: 0, done: 0 };
    // SAFETY: see the module.
    let done = check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) });
    outcome(done, zero.done)
}

/// A call that did a part of it fails by EAGAIN, too, and says how much it did.
fn outcome(called: nix::Result<libc::c_int>, done: i64) -> nix::Result<u64> {
    match (u64::try_from(done), called) {
        (Ok(done), _) if done > 0 => Ok(done),
        (_, Err(errno)) => Err(errno),
        (_, Ok(_)) => Err(Errno::EIO),
    }
}

/// Has whoever waits for these pages look again.
///
/// # Errors
/// EINVAL for what is no address of the task.
pub fn wake(fd: BorrowedFd<'_>, start: u64, len: u64) -> nix::Result<()> {
    let range = [start, len];
    // SAFETY: see the module; struct uffdio_range.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_WAKE, &raw const range) })?;
    Ok(())
}

/// Whether the address space is gone: a call that changes nothing (it is for areas whose writes are tracked) looks for it first.
#[must_use]
pub fn is_gone(fd: BorrowedFd<'_>) -> bool {
    const SOME: u64 = 1 << 20;
    unprotect(fd, SOME, SOME + 4096) == Err(Errno::ESRCH)
}
