//! Files by handle: name_to_handle_at(2) and open_by_handle_at(2).
//!
//! # Safety
//! Pointers lead to live objects of the size that each call reads or writes; descriptors that a successful call
//! returns are new and ours.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd};

/// Bytes of the longest handle: MAX_HANDLE_SZ.
const MAX: u32 = 128;
/// include/uapi/linux/fcntl.h: a handle that tells a file from others, whether or not it can be opened by it.
const AT_HANDLE_FID: libc::c_int = 0x200;

/// `struct file_handle` with room for any.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX as usize],
}

/// Type and bytes of the handle of the file at a path, which is not followed, as fdinfo shows it of a watch on that file (from Linux 6.6
/// on). Nobody is told of it.
///
/// # Errors
/// EINVAL before Linux 6.5; those of looking up a path.
pub fn of(path: &CStr) -> nix::Result<(i32, Vec<u8>)> {
    let mut whole = Handle { bytes: MAX, kind: 0, handle: [0; MAX as usize] };
    let mut mount: libc::c_int = 0;
    // SAFETY: the path ends with its NUL; writes as many bytes as the head says there are, and one int.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut whole,
            &raw mut mount,
            AT_HANDLE_FID,
        )
    })?;
    let bytes = whole.handle.get(..whole.bytes as usize).ok_or(Errno::EOVERFLOW)?;
    Ok((whole.kind, bytes.to_vec()))
}

/// open_by_handle_at(2) in the file system of the current directory, for its path only. For that file system alone a directory that
/// is opened for its path only will not do; and to open one for reading is an event to whoever watches it.
///
/// # Errors
/// ESTALE if there is no such file, EOPNOTSUPP where files have no handles, EPERM without CAP_DAC_READ_SEARCH.
pub fn open(kind: i32, handle: &[u8]) -> nix::Result<OwnedFd> {
    let length = u32::try_from(handle.len()).map_err(|_| Errno::EINVAL)?;
    let mut whole = Handle { bytes: length, kind, handle: [0; MAX as usize] };
    whole.handle.get_mut(..handle.len()).ok_or(Errno::EINVAL)?.copy_from_slice(handle);
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: reads the head of the handle and as many bytes as that says, all of them ours.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, &raw mut whole, flags) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
