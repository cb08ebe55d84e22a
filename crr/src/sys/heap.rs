//! The heap of this process.
//!
//! # Safety
//! malloc_trim changes nothing that is in use.
#![allow(unsafe_code)]

/// Gives pages of which nothing is in use back to the kernel, which would copy them for each process that is forked.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: see above.
    unsafe {
        libc::malloc_trim(0);
    }
}
