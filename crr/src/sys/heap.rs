//! The heap of this process.
//!
//! # Safety
//! malloc_trim changes nothing that is in use.
#![allow(unsafe_code)]

/// Gives pages of which nothing is in use back to the kernel, which copies an entry of a page table for each page whenever a process is forked.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: see above.
    unsafe {
        libc::malloc_trim(0);
    }
}
