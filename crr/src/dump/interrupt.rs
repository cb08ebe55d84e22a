//! Holding back SIGINT, SIGQUIT, SIGTERM and SIGHUP while a tree is in our hands, and SIGCHLD, which is waited for.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Blocks the signals that would end crr; [`crate::ptrace::Patience`] sees them pending, so that a dump ends early.
/// Dropped after everything is put back, it lets them through, and crr dies of them as it should.
#[derive(Debug)]
pub(super) struct Held {
    before: SigSet,
}

impl Held {
    pub(super) fn block() -> nix::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
            set.add(signal);
        }
        Ok(Self { before: set.thread_swap_mask(SigmaskHow::SIG_BLOCK)? })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Cannot fail with a mask that the kernel gave us.
        let _ = self.before.thread_set_mask();
    }
}
