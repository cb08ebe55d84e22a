//! A process without any privilege, for others to look at.
//!
//! # Safety
//! After fork the child makes system calls only, with pointers to its own stack, so it needs no lock that could have been held.
#![allow(unsafe_code)]

use super::{check, process};
use images::Pid;
use nix::errno::Errno;
use shared::abi::common::{CapData, CapHeader};
use std::os::fd::AsRawFd;

/// Whether the kernel knows Landlock, and has it switched on.
#[must_use]
pub fn has_landlock() -> bool {
    const CREATE_RULESET_VERSION: u32 = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: no attributes, no size: asks for the version of the interface.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, CREATE_RULESET_VERSION) };
    version > 0
}

/// A waiting child; killed and reaped when dropped.
#[derive(Debug)]
pub struct Stranger {
    pid: Pid,
}

impl Stranger {
    /// Forks one with all user and group ids as given, with no capabilities, and dumpable: any process with the same real ids
    /// passes the checks of ptrace_may_access(), unless a security module objects.
    ///
    /// # Errors
    /// As fork(2), setresuid(2), setresgid(2).
    pub fn new(uid: u32, gid: u32) -> nix::Result<Self> {
        let (answer, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let parent = nix::unistd::getpid();
        let Some(pid) = process::fork(0)? else {
            // The images and files of dumped tasks are among them. Closed before anybody else may look at this process, as those with its
            // ids may then; and before it tells, since it would hold them outside of the tree.
            process::close_all_fds_but(tell.as_raw_fd());
            let errno = become_stranger(uid, gid).err().map_or(0, |errno| errno as i32);
            if nix::unistd::getppid() != parent {
                // Killed before the signal was asked for, which then never comes.
                process::exit(1);
            }
            let _ = nix::unistd::write(&tell, &errno.to_le_bytes());
            drop(tell);
            loop {
                nix::unistd::pause();
            }
        };
        let stranger = Self { pid };
        drop(tell);
        let mut errno = [0; 4];
        loop {
            match nix::unistd::read(&answer, &mut errno) {
                Ok(4) => break,
                Ok(_) => return Err(Errno::ECHILD),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        match i32::from_le_bytes(errno) {
            0 => Ok(stranger),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

fn become_stranger(uid: u32, gid: u32) -> nix::Result<()> {
    // By the plain system calls: those of a C library are for all threads of a process, and take locks.
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    let (header, none) = (CapHeader::SELF, [CapData::default(); 2]);
    // SAFETY: the kernel reads both.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) })?;
    // Both are reset by a change of credentials.
    nix::sys::prctl::set_dumpable(true)?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        // Neither can fail on a child that has not been reaped.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}
