//! Something of the tree that is changed for a moment, and put back whatever happens.
//!
//! A process of its own, which waits as long as it is changed, puts it back if crr is killed meanwhile.

use crate::sys::process;
use anyhow::{Context, Result};
use images::Pid;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use std::os::fd::{AsFd, OwnedFd};

/// Puts something back when it is dropped, or when this process is gone. What it does must not fail halfway, or be done
/// as far as it can be.
#[derive(Debug)]
pub(crate) struct Keeper<F: Fn()> {
    put_back: F,
    /// The other process, and where it hears that it is not needed any more.
    child: Pid,
    release: OwnedFd,
    released: bool,
}

impl<F: Fn()> Keeper<F> {
    /// To be called before anything is changed. The other process has a copy of every descriptor that `put_back` needs.
    ///
    /// # Errors
    /// As fork(2).
    pub(crate) fn new(put_back: F) -> Result<Self> {
        let (wait, release) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        match process::fork(0).context("fork")? {
            Some(child) => Ok(Self { put_back, child, release, released: false }),
            None => {
                drop(release);
                // What hits the group of crr (a terminal, a shell, timeout) is not for this process.
                let own = nix::unistd::Pid::from_raw(0);
                let _ = nix::unistd::setpgid(own, own);
                let _ = process::block_all_signals();
                if nix::unistd::read(&wait, &mut [0]) == Ok(0) {
                    put_back();
                }
                process::exit(0)
            }
        }
    }

    /// A descriptor that programs inherit which are executed while it is open: if crr is killed, nothing is put back before they have
    /// ended, so that it is not changed again afterwards.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) fn waits_for_children(&self) -> nix::Result<OwnedFd> {
        // Unlike F_DUPFD_CLOEXEC.
        nix::unistd::dup(&self.release)
    }

    /// From here on it stays as it is. The other process is gone when this returns.
    pub(crate) fn leave(mut self) {
        self.release();
    }

    fn release(&mut self) {
        if !std::mem::replace(&mut self.released, true) {
            let _ = nix::unistd::write(self.release.as_fd(), &[0]);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.child), None);
        }
    }
}

/// Kills tasks.
pub(crate) type Kill = Box<dyn Fn()>;

impl Keeper<Kill> {
    /// Kills these tasks if this process is killed, or leaves by an error.
    ///
    /// # Errors
    /// As fork(2).
    pub(crate) fn of_killing(pids: Vec<Pid>) -> Result<Self> {
        let kill_all = move || {
            for &pid in &pids {
                // One that is gone already is no matter.
                let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
        };
        Self::new(Box::new(kill_all))
    }
}

impl<F: Fn()> Drop for Keeper<F> {
    fn drop(&mut self) {
        if !self.released {
            (self.put_back)();
        }
        self.release();
    }
}
