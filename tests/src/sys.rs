//! The one system call that no crate here wraps.
//!
//! # Safety
//! kcmp(2) takes numbers only and writes nowhere.
#![allow(unsafe_code)]

/// `KCMP_FILE` of `linux/kcmp.h`.
const KCMP_FILE: libc::c_long = 0;

/// Whether two descriptors are one open file description (`struct file`).
///
/// # Errors
/// kcmp(2) failed.
pub fn same_description(a: (i32, i32), b: (i32, i32)) -> std::io::Result<bool> {
    let [fd_a, fd_b] = [a.1, b.1].map(libc::c_long::from);
    // SAFETY: all arguments are plain numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILE, fd_a, fd_b) };
    if order < 0 { Err(std::io::Error::last_os_error()) } else { Ok(order == 0) }
}
