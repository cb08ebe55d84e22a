//! System V IPC.
//!
//! # Safety
//! The kernel reads and writes structures of ours; an attached segment is ours until it is detached, which ends the value that stands for
//! it.
#![allow(unsafe_code)]

pub mod queues;
pub mod semaphores;

use super::check;
use nix::errno::Errno;
use std::ptr::NonNull;

/// What setresuid(2) takes for an id that is to stay as it is.
const KEEP: u32 = u32::MAX;

/// The creator that makes what crr makes for itself.
pub const SELF: (u32, u32) = (KEEP, KEEP);

/// Makes something by a thread with these ids: its creator and, at first, its owner. The C library is not told of the ids, which go with the
/// thread.
///
/// # Errors
/// As setresuid(2), and what `make` answers.
fn by_creator((uid, gid): (u32, u32), make: impl FnOnce() -> nix::Result<i32> + Send) -> nix::Result<i32> {
    let make = move || {
        // Of huge pages, only who has the right to lock memory can make any.
        let _ = super::process::keep_capabilities();
        // SAFETY: plain numbers; the thread ends after this.
        check(unsafe { libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP) })?;
        // SAFETY: as above.
        check(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP) })?;
        make()
    };
    std::thread::scope(|scope| scope.spawn(make).join()).unwrap_or(Err(Errno::EAGAIN))
}

/// Flags to make something that is not there yet.
const NEW: i32 = libc::IPC_CREAT | libc::IPC_EXCL;

/// Makes a segment with this key, permissions, size and creator.
///
/// # Errors
/// As setresuid(2) and shmget(2).
pub fn make_segment(key: i32, size: u64, mode: u32, creator: (u32, u32)) -> nix::Result<i32> {
    let size = usize::try_from(size).map_err(|_| Errno::ENOMEM)?;
    // SAFETY: plain numbers.
    by_creator(creator, || check(unsafe { libc::shmget(key, size, NEW | mode.cast_signed()) }))
}

/// Gives a segment this owner and these permissions.
///
/// # Errors
/// EPERM; EINVAL when it is gone.
pub fn set_segment(id: i32, (uid, gid): (u32, u32), mode: u32) -> nix::Result<()> {
    // SAFETY: all zeros are such a record.
    let mut record: libc::shmid_ds = unsafe { std::mem::zeroed() };
    record.shm_perm.uid = uid;
    record.shm_perm.gid = gid;
    record.shm_perm.mode = mode.try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads a live record.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut record) }).map(drop)
}

/// Locks a segment in memory, or lets it be swapped out.
///
/// # Errors
/// EPERM, ENOMEM (RLIMIT_MEMLOCK); EINVAL when it is gone.
pub fn lock_segment(id: i32, lock: bool) -> nix::Result<()> {
    const SHM_LOCK: i32 = 11;
    const SHM_UNLOCK: i32 = 12;
    let command = if lock { SHM_LOCK } else { SHM_UNLOCK };
    // SAFETY: these commands take no record.
    check(unsafe { libc::shmctl(id, command, std::ptr::null_mut()) }).map(drop)
}

/// Marks a segment to go with the last one that has it.
///
/// # Errors
/// EPERM; EINVAL when it is gone.
pub fn remove_segment(id: i32) -> nix::Result<()> {
    // SAFETY: this command takes no record.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Whether mremap(2) moves huge pages of 2 MiB: from Linux 5.16 on.
#[must_use]
pub fn moves_huge_pages() -> bool {
    const PAGE: usize = 2 << 20;
    const FLAGS: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let flags = libc::MAP_PRIVATE
        | libc::MAP_ANONYMOUS
        | libc::MAP_NORESERVE
        | libc::MAP_HUGETLB
        | libc::MAP_HUGE_2MB;
    // SAFETY: a fresh mapping where the kernel likes, that takes no huge page.
    let pages = unsafe { libc::mmap(std::ptr::null_mut(), 2 * PAGE, libc::PROT_NONE, flags, -1, 0) };
    if pages == libc::MAP_FAILED {
        return false;
    }
    let second = pages.wrapping_byte_add(PAGE);
    // SAFETY: from one page of our own mapping to the other.
    let moved = unsafe { libc::mremap(pages, PAGE, PAGE, FLAGS, second) };
    // What was there is unmapped before the kernel sees whether it can move anything (mremap_to(), mm/mremap.c).
    let left = if moved == second { second } else { pages };
    // SAFETY: what is left of our own mapping, to which there is no reference.
    unsafe { libc::munmap(left, PAGE) };
    moved == second
}

/// A segment that this process has attached, and children that it forks have not; detached when dropped.
#[derive(Debug)]
pub struct Attached {
    base: NonNull<u8>,
    len: usize,
}

impl Attached {
    /// Attaches a segment of `len` bytes, in whole pages.
    ///
    /// # Errors
    /// As shmat(2); ERANGE if it is of another size.
    pub fn new(id: i32, len: u64) -> nix::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        if at.addr() == usize::MAX {
            return Err(Errno::last());
        }
        let attached = NonNull::new(at.cast()).map(|base| Self { base, len }).ok_or(Errno::ENOMEM)?;
        // There is a link for an area of these bounds alone (proc_map_files_lookup(), fs/proc/base.c).
        std::fs::symlink_metadata(attached.path()).map_err(|_| Errno::ERANGE)?;
        attached.advise(libc::MADV_DONTFORK)?;
        Ok(attached)
    }

    /// Its entry in `/proc/self/map_files`.
    #[must_use]
    pub fn path(&self) -> String {
        let start = self.base.as_ptr().addr();
        format!("/proc/self/map_files/{start:x}-{:x}", start + self.len.next_multiple_of(4096))
    }

    /// Makes it all zeros, with no page in memory.
    ///
    /// # Errors
    /// As madvise(2).
    pub fn empty(&mut self) -> nix::Result<()> {
        self.advise(libc::MADV_REMOVE)
    }

    fn advise(&self, advice: i32) -> nix::Result<()> {
        let len = self.len.next_multiple_of(4096);
        // SAFETY: the whole of our own mapping. No reference into it is there, or it is about to be changed by who holds it alone.
        check(unsafe { libc::madvise(self.base.as_ptr().cast(), len, advice) }).map(drop)
    }

    /// Has the kernel make the pages from `offset` on.
    ///
    /// # Errors
    /// If there are none; EINVAL beyond its end.
    pub fn populate(&mut self, offset: u64, len: u64) -> nix::Result<()> {
        super::mapping::populate(self.slice(offset, len).ok_or(Errno::EINVAL)?)
    }

    /// Its bytes from `offset` to the end of its last page, if it has that many.
    pub fn slice(&mut self, offset: u64, len: u64) -> Option<&mut [u8]> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        if offset.checked_add(len)? > self.len.next_multiple_of(4096) {
            return None;
        }
        // SAFETY: inside the mapping (checked), readable and writable, borrowed for as long as the result lives.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: as above; any bytes are valid. Nobody else has the segment attached yet.
        Some(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        unsafe { libc::shmdt(self.base.as_ptr().cast()) };
    }
}
