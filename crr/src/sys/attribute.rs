//! Settings of this process, as prctl(2) and get_mempolicy(2) tell them.
//!
//! # Safety
//! Only options that read: a plain value, or one word written where the caller's variable is.
#![allow(unsafe_code)]

use nix::errno::Errno;

fn check(value: libc::c_long) -> nix::Result<u32> {
    if value < 0 { Err(Errno::last()) } else { Ok(u32::try_from(value).unwrap_or(u32::MAX)) }
}

/// A PR_GET_* that answers by its result; `argument` is a plain number.
///
/// # Errors
/// EINVAL where the kernel does not know it.
pub fn option(option: u64, argument: u64) -> nix::Result<u32> {
    // SAFETY: see the module: no pointers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, argument, 0, 0, 0) })
}

/// PR_GET_TSC.
///
/// # Errors
/// Never on this architecture.
pub fn tsc() -> nix::Result<u32> {
    let mut value = 0u32;
    // SAFETY: the kernel writes an int to `value`.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_TSC, &raw mut value) })?;
    Ok(value)
}

/// get_mempolicy of the calling thread: the mode, and the nodes as a mask.
///
/// # Errors
/// ENOSYS without CONFIG_NUMA.
pub fn memory_policy() -> nix::Result<(u32, [u64; 16])> {
    let (mut mode, mut nodes) = (0u32, [0u64; 16]);
    let bits = size_of_val(&nodes) * 8;
    // SAFETY: the kernel writes an int to `mode` and at most `bits` bits to `nodes`.
    check(unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), bits, 0usize, 0usize)
    })?;
    Ok((mode, nodes))
}
