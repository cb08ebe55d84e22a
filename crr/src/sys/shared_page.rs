//! The control page of a restore, mapped by the coordinator and inherited by its forked children.
//!
//! # Safety
//! The page holds only atomics, so that everyone may change it at any time.
#![allow(unsafe_code)]

use nix::errno::Errno;
use shared::op::Family;
use shared::proto::{Control, Gathering};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// The mapping; unmapped when dropped.
#[derive(Debug)]
pub struct ControlPage(NonNull<Control>);

const LEN: usize = 4096;
const _: () = assert!(size_of::<Control>() <= LEN);

impl ControlPage {
    /// Maps the first page of the shared-memory tree.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn map(tree: BorrowedFd<'_>) -> nix::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, libc::MAP_SHARED, tree.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(at.cast()).map(Self).ok_or(Errno::ENOMEM)
    }

    /// What is in it.
    #[must_use]
    pub fn get(&self) -> &Control {
        // SAFETY: mapped until drop, as large as the type, which is valid for any bytes and changed only atomically.
        unsafe { self.0.as_ref() }
    }

    /// Counts one more process that has come; with the last of `all`, those who wait go on.
    pub fn arrive(&self, gathering: Gathering, all: u32) {
        let word = &self.get().gathered[gathering as usize];
        if word.fetch_add(1, Ordering::AcqRel) + 1 >= all {
            wake(word);
        }
    }

    /// Waits until `all` have come, or the restore has failed. Returns whether it goes on.
    #[must_use]
    pub fn wait_for_all(&self, gathering: Gathering, all: u32) -> bool {
        let word = &self.get().gathered[gathering as usize];
        loop {
            if self.get().failed.load(Ordering::Acquire) != 0 {
                return false;
            }
            let come = word.load(Ordering::Acquire);
            if come >= all {
                return true;
            }
            wait(word, come);
        }
    }

    /// Waits until nobody else chooses ids ([`Control::choosing`]). Returns whether the restore goes on.
    #[must_use]
    pub fn begin_choosing(&self) -> bool {
        let Control { choosing, failed, .. } = self.get();
        while choosing.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            if failed.load(Ordering::Acquire) != 0 {
                return false;
            }
            wait(choosing, 1);
        }
        true
    }

    /// The next one may choose.
    pub fn end_choosing(&self) {
        let choosing = &self.get().choosing;
        choosing.store(0, Ordering::Release);
        wake(choosing);
    }

    /// Has the first try to get an id fail each time.
    pub fn take_ids(&self) {
        self.get().taken.store(1, Ordering::Relaxed);
    }

    /// Whether it is to fail.
    #[must_use]
    pub fn are_ids_taken(&self) -> bool {
        self.get().taken.load(Ordering::Relaxed) != 0
    }

    /// Others got the id of a child that is not this process's to wait for. A fault that wants that has had its way.
    pub(super) fn note_race(&self) {
        self.get().taken.store(0, Ordering::Relaxed);
        self.get().raced.store(1, Ordering::Release);
    }

    /// Whether that has happened; it is forgotten.
    #[must_use]
    pub fn take_race(&self) -> bool {
        self.get().raced.swap(0, Ordering::Acquire) != 0
    }

    /// Has the `count`th op of a family fail, or its process die if there is no error.
    pub fn fail_at(&self, family: Family, count: u32, errno: Option<Errno>) {
        let fault = &self.get().fault;
        fault.errno.store(errno.map_or(0, |errno| (errno as i32).cast_unsigned()), Ordering::Relaxed);
        fault.left.store(count, Ordering::Relaxed);
        fault.family.store(family as u32, Ordering::Relaxed);
    }

    /// Whether an op was to fail and has.
    #[must_use]
    pub fn has_failed_as_told(&self) -> bool {
        let fault = &self.get().fault;
        fault.family.load(Ordering::Relaxed) != 0 && fault.left.load(Ordering::Relaxed) == 0
    }

    /// Makes whoever waits give up.
    pub fn fail(&self) {
        self.get().failed.store(1, Ordering::Release);
        self.get().gathered.iter().chain([&self.get().choosing]).for_each(wake);
    }
}

impl Drop for ControlPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LEN) };
    }
}

fn wait(word: &AtomicU32, value: u32) {
    // A failure is noted before the wake, but on another word: look again now and then.
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // SAFETY: the kernel reads the word and the time.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout) };
}

fn wake(word: &AtomicU32) {
    // SAFETY: the kernel only takes the address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
