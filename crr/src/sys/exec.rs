//! Executable files that exist nowhere, and running them.
//!
//! # Safety
//! memfd_create and execveat with values of ours.
#![allow(unsafe_code)]

use crate::fault::{self, Point};
use anyhow::{Context, Result};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// A read-only, executable, nameless file with these contents: a memfd, or an unlinked file where
/// `vm.memfd_noexec` forbids that.
///
/// # Errors
/// If neither can be made.
pub fn executable(name: &CStr, contents: &[u8]) -> Result<OwnedFd> {
    fault::point(Point::Executable).context("memfd_create")?;
    let file = match memfd(name) {
        Ok(file) => file,
        Err(error) => unlinked().with_context(|| format!("memfd_create: {error}; and in its place"))?,
    };
    (&file).write_all(contents).context("write the program that restores a task")?;
    // A file that is open for writing cannot be executed (ETXTBSY).
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reopened = File::open(&path).with_context(|| format!("open {path}"))?;
    Ok(reopened.into())
}

fn memfd(name: &CStr) -> nix::Result<File> {
    // Kernels before 6.3 do not know MFD_EXEC, and there every memfd is executable.
    for flags in [libc::MFD_CLOEXEC | libc::MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: a string and a number; the result is a new fd of ours.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: just opened, owned by nobody else.
            return Ok(unsafe { File::from_raw_fd(fd) });
        }
        if Errno::last() != Errno::EINVAL {
            break;
        }
    }
    Err(Errno::last())
}

fn unlinked() -> Result<File> {
    let dir = std::env::temp_dir();
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o700)
        .custom_flags(libc::O_TMPFILE)
        .open(&dir)
        .with_context(|| format!("{}: unnamed file", dir.display()))
}

/// Replaces this program by an open file. Returns only on failure.
pub fn execute(file: BorrowedFd<'_>, args: &[CString]) -> Errno {
    let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    if let Err(errno) = fault::point(Point::Exec) {
        return errno;
    }
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: null-terminated lists of strings that live until the call is over.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Errno::last()
}
