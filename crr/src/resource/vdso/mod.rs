//! The vDSO, and what becomes of it on another kernel.
//!
//! Where the vDSO of the running kernel is the dumped one, byte by byte, it goes to its old place. Where it is another, the code of
//! the dumped one comes back as ordinary memory in its old place, a *proxy*: each function of it leads to the running kernel's
//! ([`redirect`]), which is *parked* where the task had nothing ([`adapt`]). A dump knows such memory again ([`proxy`]) and records what the
//! task had before. So there is one proxy however many kernels a task has been on, and none any more on the first.
//!
//! A kernel that cannot move its vDSO (before Linux 4.8 for ia32, or with these mappings sealed) is another one to every task. Its vDSO stays
//! where exec put it, which is known last: so proxies lead to a table of *ways* beside their ledger, which the restoring task
//! itself writes.
//!
//! What was parked can have left its mark: the kernel lets a signal handler without a restorer return there. As long as anything points
//! into it, it comes back as well, as a proxy of its own.

mod adapt;
mod handlers;
mod place;
mod proxy;
mod redirect;
mod step_out;
mod symbols;

pub(crate) use adapt::adapt;
pub(crate) use handlers::{Interrupted, Stacks};
pub(crate) use proxy::{recognise, record};
pub(crate) use step_out::{rewind, step_out};

use images::Addr;
use images::memory::{Backing, Vma};
use serde::{Deserialize, Serialize};

/// An area that the kernel provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    start: u64,
    len: u64,
    prot: u32,
    backing: Backing,
}

impl Piece {
    fn of(vma: &Vma) -> Self {
        Self { start: vma.start.0, len: vma.end.0 - vma.start.0, prot: vma.prot, backing: vma.backing }
    }

    fn vma(&self, flags: u32) -> Vma {
        let Self { start, len, prot, backing } = *self;
        Vma { start: Addr(start), end: Addr(start + len), prot, flags, backing }
    }

    /// Plain memory in its place.
    fn plain(&self) -> Vma {
        Self { backing: Backing::Anonymous, ..*self }.vma(0)
    }
}

/// Whether an area is one that the kernel provides.
fn is_from_kernel(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Vdso(_) | Backing::Vvar | Backing::VvarVclock)
}
