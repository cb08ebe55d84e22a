//! Executable files that exist nowhere, and running them.
//!
//! # Safety
//! execveat with values of ours.
#![allow(unsafe_code)]

use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use crate::sys::memfd;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::memfd::MFdFlags;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A read-only, executable, nameless file with these contents: a memfd, or one that O_TMPFILE makes where `vm.memfd_noexec`
/// forbids that. Either is gone with its last user, in whichever way that ends.
///
/// # Errors
/// If neither can be made.
pub fn executable(name: &CStr, contents: &[u8]) -> Result<OwnedFd> {
    fault::point(Point::Executable).context("memfd_create")?;
    let made = match is_disabled(Switch::MemfdExec) {
        true => Err(Errno::EACCES),
        false => memfd::executable(name, MFdFlags::MFD_CLOEXEC),
    };
    let file = match made {
        Ok(file) => file,
        Err(errno) => unnamed(&places()).with_context(|| {
            format!("an executable memfd: {}; and in its place", errno.desc().to_lowercase())
        })?,
    };
    (&file).write_all(contents).context("write the program that restores a task")?;
    // A file that is open for writing cannot be executed (ETXTBSY).
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reopened = File::open(&path).with_context(|| format!("open {path}"))?;
    Ok(reopened.into())
}

/// Where there may be room for a file that can be executed.
fn places() -> Vec<PathBuf> {
    let others = ["/dev/shm", "/run", "/var/tmp"];
    std::iter::once(std::env::temp_dir()).chain(others.map(PathBuf::from)).collect()
}

/// A file without a name in the first of these directories whose file system has such files and lets them be executed.
fn unnamed(places: &[PathBuf]) -> Result<File> {
    let mut reasons = Vec::new();
    for dir in places {
        match unnamed_in(dir) {
            Ok(file) => return Ok(file),
            Err(reason) => reasons.push(format!("{}: {reason}", dir.display())),
        }
    }
    bail!("an unnamed file that can be executed: {}", reasons.join("; "))
}

fn unnamed_in(dir: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o700).custom_flags(libc::O_TMPFILE);
    let file = options.open(dir).map_err(|error| error.to_string())?;
    // path_noexec() of fs/exec.c; execve(2) would say EACCES, when everything is on its way.
    match fstatvfs(&file) {
        Ok(system) if system.flags().contains(FsFlags::ST_NOEXEC) => Err("is mounted noexec".to_owned()),
        Ok(_) => Ok(file),
        Err(errno) => Err(errno.desc().to_lowercase()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn unnamed_files_are_made_where_they_can_be_executed() {
        let nowhere = PathBuf::from("/nonexistent");
        // Not a file system for files; mounted noexec, as a rule, besides.
        let proc = PathBuf::from("/proc");
        let refused = unnamed(&[nowhere.clone(), proc.clone()]).unwrap_err().to_string();
        assert!(refused.contains("/nonexistent: ") && refused.contains("/proc: "), "{refused}");
        let temp = std::env::temp_dir();
        let file = unnamed(&[nowhere, proc, temp.clone()]).unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(path.starts_with(temp), "{}", path.display());
    }
}
