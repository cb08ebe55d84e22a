//! A dump that outlives crr by the moment it takes to put everything back.
//!
//! A task with seccomp makes crr's calls only while its filters are suspended, and suspension ends with the tracer: were crr
//! killed just then, the next call would be judged by filters that never heard of it; the same goes for system call user
//! dispatch. A TCP socket in repair mode does not speak. What is on its way through a pseudo terminal, or waits in a POSIX message queue, is in crr's
//! memory alone for a moment. Of a context of asynchronous I/O all places are taken for one. And a task none of whose threads stands in
//! code and on a stack of its ABI has nobody who would find back from its first and its last call by a signal frame: that of ia32
//! knows half of what 64-bit code has, and where a segment of the local descriptor table lies no one tells from outside. So the
//! process that was started waits, and a child of it does the dump. If the first is killed, the child notices by a signal that it holds blocked while the tree
//! is in its hands, and ends the dump as if it had been interrupted.

use crate::restore::foreground;
use crate::sys::process;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid, setpgid};

/// A tree could be harmed if this process were killed over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tree with seccomp, system call user dispatch, pseudo terminals, messages in POSIX queues, TCP connections, AIO contexts, or a \
     task without a thread in code of its ABI is dumped by a guarded process"
)]
pub(crate) struct Unguarded;

/// Returns in a child of this process, which waits for it and ends as it ends. The caller has SIGTERM blocked, has no other
/// thread, and no tracee.
///
/// # Errors
/// If the child cannot be forked.
pub(super) fn enter() -> Result<()> {
    let outer = getpid();
    let mask = process::block_all_signals().context("block signals")?;
    let Some(child) = process::fork(0).context("fork the process that dumps")? else {
        set_pdeathsig(Signal::SIGTERM).context("prctl")?;
        process::set_signal_mask(mask).context("signal mask")?;
        if getppid() != outer {
            return Err(Errno::EOWNERDEAD).context("the process that waits is gone");
        }
        // What hits the group of the process that was started (a terminal, a shell, timeout) comes by way of that process.
        let own = Pid::from_raw(0);
        return setpgid(own, own).context("leave the process group");
    };
    // A pipe of the dumped tasks that it keeps open would be held by somebody outside of the tree.
    process::close_all_fds();
    std::process::exit(foreground::wait(child, child, None)?.into())
}
