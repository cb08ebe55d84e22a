//! Processes for others to look at: this one, and those without any privilege.
//!
//! # Safety
//! prctl takes numbers. After fork the child makes system calls only, with pointers to its own stack, so it needs no lock that could have been held.
#![allow(unsafe_code)]

use super::{check, process};
use images::Pid;
use nix::errno::Errno;
use shared::abi::common::CapData;
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

/// What the kernel judges others by, who want to look at a process: __ptrace_may_access() of kernel/ptrace.c and
/// cap_ptrace_access_check() of security/commoncap.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guise {
    /// Real, effective and saved user.
    pub uids: [u32; 3],
    /// Real, effective and saved group.
    pub gids: [u32; 3],
    /// The capabilities that are permitted.
    pub capabilities: u64,
    /// Nothing of it is hidden from the same user.
    pub dumpable: bool,
}

impl Guise {
    /// Of this process.
    ///
    /// # Errors
    /// Never, by the manuals.
    pub fn own() -> nix::Result<Self> {
        /// SUID_DUMP_USER of include/linux/sched/coredump.h.
        const BY_ITS_USER: i32 = 1;
        let (users, groups) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
        // SAFETY: takes no argument.
        let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) } == BY_ITS_USER;
        Ok(Self {
            uids: [users.real, users.effective, users.saved].map(nix::unistd::Uid::as_raw),
            gids: [groups.real, groups.effective, groups.saved].map(nix::unistd::Gid::as_raw),
            capabilities: process::permitted_capabilities()?,
            dumpable,
        })
    }

    /// Whether a thread of the same user namespace, with these real ids and these capabilities permitted, may look at it unless a
    /// security module objects.
    #[must_use]
    pub fn is_open_to(&self, uid: u32, gid: u32, capabilities: u64) -> bool {
        self.dumpable
            && self.uids == [uid; 3]
            && self.gids == [gid; 3]
            && self.capabilities & !capabilities == 0
    }
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
    process::set_capabilities(&[CapData::default(); 2])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_less_may_not_look() {
        let guise = Guise { uids: [1; 3], gids: [2; 3], capabilities: 0b101, dumpable: true };
        assert!(guise.is_open_to(1, 2, 0b111) && guise.is_open_to(1, 2, 0b101));
        assert!(
            !guise.is_open_to(1, 2, 0b110)
                && !guise.is_open_to(0, 2, 0b101)
                && !guise.is_open_to(1, 0, 0b101)
        );
        assert!(!Guise { uids: [1, 0, 1], ..guise }.is_open_to(1, 2, 0b101));
        assert!(!Guise { gids: [2, 2, 0], ..guise }.is_open_to(1, 2, 0b101));
        assert!(!Guise { dumpable: false, ..guise }.is_open_to(1, 2, 0b101));
    }

    #[test]
    fn a_child_may_look_at_its_parent_by_the_same_rule() {
        const KCMP_VM: i32 = 1;
        let parent = nix::unistd::getpid().as_raw();
        let guise = Guise::own().unwrap();
        let may_look = || {
            // SAFETY: numbers only.
            let same = unsafe { libc::syscall(libc::SYS_kcmp, parent, parent, KCMP_VM, 0, 0) };
            same == 0
        };
        // As this process is, and with nothing.
        for capabilities in [guise.capabilities, 0] {
            let child = process::fork(0).unwrap();
            let Some(child) = child else {
                let reduced =
                    capabilities != 0 || process::set_capabilities(&[CapData::default(); 2]).is_ok();
                process::exit(if reduced { i32::from(may_look()) } else { 2 });
            };
            let expected = guise.is_open_to(guise.uids[0], guise.gids[0], capabilities);
            let child = nix::unistd::Pid::from_raw(child);
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, i32::from(expected)));
        }
    }
}
