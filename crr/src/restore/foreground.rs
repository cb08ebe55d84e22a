//! A restore that stays: it waits for the tree, passes signals on, and ends as the root ends.

use crate::sys::wait;
use anyhow::{Context, Result};
use images::Pid;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};

/// Signals that a user or a supervisor sends to a program to tell it something.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Waits for a child of ours; its exit status, or 128 + the signal that killed it. Signals go on to the root of the
/// tree, which is that child or, in a pid namespace of its own, a child of it. The caller has blocked all signals.
///
/// # Errors
/// If it cannot be waited for.
pub(crate) fn wait(child: Pid, root: Pid, terminal: Option<Terminal>) -> Result<u8> {
    let root = nix::unistd::Pid::from_raw(root);
    let mut watched: SigSet = PASSED_ON.into_iter().collect();
    watched.add(Signal::SIGCHLD);
    let status = loop {
        match wait::ended_or_stopped(child) {
            Ok(Some(status)) if libc::WIFEXITED(status) => {
                break u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX);
            }
            Ok(Some(status)) if libc::WIFSIGNALED(status) => {
                break 128 + u8::try_from(libc::WTERMSIG(status)).unwrap_or(0);
            }
            Ok(Some(status)) if terminal.is_some() || by_terminal(libc::WSTOPSIG(status)) => {
                suspend(root, terminal.as_ref());
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(|| format!("wait for task {child}")),
        }
        let Ok(signal) = watched.wait() else { continue };
        if signal != Signal::SIGCHLD {
            let _ = kill(root, signal);
        }
    };
    drop(terminal);
    Ok(status)
}

/// Whether a stop comes from job control; SIGSTOP is a matter between its sender and the tree.
fn by_terminal(signal: i32) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// The job was stopped (Ctrl-Z): stop too, so that the shell notices, and go on with it.
fn suspend(root: nix::unistd::Pid, terminal: Option<&Terminal>) {
    if let Some(terminal) = terminal {
        terminal.take_back();
    }
    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
    if let Some(terminal) = terminal {
        terminal.give();
    }
    let _ = nix::sys::signal::killpg(root, Signal::SIGCONT).or_else(|_| kill(root, Signal::SIGCONT));
}

/// The terminal, whose foreground group the restored job becomes if crr was in the foreground and the job has a
/// group of its own.
#[derive(Debug)]
pub(crate) struct Terminal {
    file: std::fs::File,
    own: nix::unistd::Pid,
    job: nix::unistd::Pid,
}

impl Terminal {
    /// Lends it to a restored job, before any of its tasks runs: in the background its first read would stop it.
    pub(super) fn lend(root: Pid) -> Option<Self> {
        let root = nix::unistd::Pid::from_raw(root);
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        let own = nix::unistd::getpgrp();
        let job = nix::unistd::getpgid(Some(root)).ok()?;
        let same_session = nix::unistd::getsid(Some(root)).ok()? == nix::unistd::getsid(None).ok()?;
        if job == own || !same_session || nix::unistd::tcgetpgrp(&file).ok()? != own {
            return None;
        }
        let terminal = Self { file, own, job };
        terminal.give();
        Some(terminal)
    }

    fn give(&self) {
        self.set(self.job);
    }

    fn take_back(&self) {
        self.set(self.own);
    }

    /// From the background, tcsetpgrp stops the caller unless it blocks SIGTTOU.
    fn set(&self, group: nix::unistd::Pid) {
        let mut block = SigSet::empty();
        block.add(Signal::SIGTTOU);
        let mut old = SigSet::empty();
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&block), Some(&mut old));
        let _ = nix::unistd::tcsetpgrp(&self.file, group);
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take_back();
    }
}
