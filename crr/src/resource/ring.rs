//! Rings of io_uring that a thread has by index alone: registered, with no descriptor and, if it gave the memory itself (IORING_SETUP_NO_MMAP and
//! IORING_SETUP_REGISTERED_FD_ONLY, Linux 6.5), with no mapping either. `/proc` shows nothing of them, so threads are asked.
//!
//! The indices are those of a thread (`struct io_uring_task`), and are found by io_uring_enter(2) with IORING_ENTER_REGISTERED_RING: with nothing to
//! submit and nothing to wait for, it does no more than to look the ring up. A thread that has not used io_uring since it ran its program
//! answers EINVAL whatever the index is, so one call is enough for it; kernels before 5.18, which have no such indices, do so, too.

use super::Refuse;
use super::file::kinds::WITHOUT_RING;
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Batch, Call, Executor, Handle, Reply};
use anyhow::Result;
use images::Pid;
use nix::errno::Errno;

/// IO_RINGFD_REG_MAX of include/linux/io_uring_types.h.
const INDICES: u64 = 16;

/// The call that looks an index up.
#[derive(Debug)]
struct LookUp(Handle);

/// What it tells.
enum Found {
    /// The thread has never used io_uring.
    Unused,
    /// There is no ring at this index.
    Free,
    /// There is one, in whatever state.
    Ring,
}

impl LookUp {
    fn new(batch: &mut Batch, index: u64) -> Self {
        const IORING_ENTER_REGISTERED_RING: u64 = 1 << 4;
        let args = [index, 0, 0, IORING_ENTER_REGISTERED_RING].map(Arg::Value);
        Self(batch.call(Call::IoUringEnter, &args))
    }

    fn found(&self, reply: &Reply) -> Found {
        match reply.result(self.0) {
            Err(Errno::EINVAL | Errno::ENOSYS) => Found::Unused,
            Err(Errno::EBADF) => Found::Free,
            // One that is not enabled yet, or whose thread has ended, answers by an error of its own.
            Ok(_) | Err(_) => Found::Ring,
        }
    }
}

/// The part of a batch that asks one thread whether it has used io_uring.
#[derive(Debug)]
pub(crate) struct AskRings(LookUp);

impl AskRings {
    pub(crate) fn new(batch: &mut Batch) -> Self {
        Self(LookUp::new(batch, 0))
    }

    /// Whether it may have rings, which [`find`] tells.
    pub(crate) fn may_be_there(&self, reply: &Reply) -> bool {
        !matches!(self.0.found(reply), Found::Unused)
    }
}

/// The indices at which a thread has rings.
///
/// # Errors
/// As [`Executor::run`].
pub(crate) fn find(executor: &Executor, thread: &mut Stopped, patience: &Patience) -> Result<Vec<u64>> {
    let mut batch = executor.batch(thread)?;
    let all: Vec<_> = (0..INDICES).map(|index| (index, LookUp::new(&mut batch, index))).collect();
    let reply = executor.run(thread, &batch, patience)?;
    let is_there = |(_, look_up): &&(u64, LookUp)| matches!(look_up.found(&reply), Found::Ring);
    Ok(all.iter().filter(is_there).map(|&(index, _)| index).collect())
}

/// Refuses those that a thread has.
pub(crate) fn refuse(tid: Pid, indices: &[u64], refuse: &mut Refuse<'_>) {
    for index in indices {
        let reason = format!("io_uring is not supported: it has a ring with index {index} (registered)");
        refuse.with_hint(format!("thread {tid}"), reason, WITHOUT_RING);
    }
}
