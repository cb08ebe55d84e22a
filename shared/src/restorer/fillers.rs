//! Reading page contents in several threads: of each stripe of the page file, one thread takes care.
//!
//! The threads live from the first of some fills in a row to the last: when another op comes, they are waited for, and new ones start with the next fill. Their ids are chosen by the coordinator among those that the tree
//! does not use: an id that the kernel chose could be one that another task of the tree is about to get.
//!
//! # Safety
//! See the parent module. A filler's stack is the last of the thread stacks in the hole, and it is gone (the kernel
//! clears a word on it) before the leader goes on.

use super::memory::Fills;
use super::{Failure, Session, ids};
use crate::abi::common::CloneArgs;
use crate::op::{self, Op};
use crate::proto::{FILLERS_FROM, MAX_FILLERS, Stage, THREAD_STACK};
use crate::sys::{self, nr};
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes of the page file that one thread reads at a stretch.
const STRIPE: u64 = 4 << 20;

/// Which stripes a thread reads: those whose number, modulo `parts`, is a bit of `mine`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    mine: u32,
    parts: u64,
}

impl Share {
    /// Everything.
    pub(super) const ALL: Self = Self { mine: 1, parts: 1 };

    /// Adds the part of a fill that is this thread's.
    pub(super) fn add(
        self,
        session: &Session,
        fills: &mut Fills,
        addr: u64,
        len: u64,
        offset: u64,
    ) -> Result<(), Failure> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let piece = if self.parts == 1 { len } else { (STRIPE - at % STRIPE).min(len - done) };
            if self.mine >> (at / STRIPE % self.parts) & 1 != 0 {
                fills.add(session, addr + done, piece, at)?;
            }
            done += piece;
        }
        Ok(())
    }
}

/// What a filler is told: lies at the bottom of its own stack.
#[repr(C)]
struct Birth<'a> {
    /// Cleared by the kernel when the thread is gone.
    alive: AtomicU32,
    session: &'a Session,
    share: Share,
    list: &'a [u8],
    index: u32,
}

/// The fillers of a task, once started.
#[derive(Debug)]
pub(super) struct Fillers<'a> {
    alive: [Option<&'a AtomicU32>; MAX_FILLERS],
}

impl<'a> Fillers<'a> {
    /// Starts them on the list of ops from its first fill on; what is left for the leader to read.
    pub(super) fn start(session: &'a Session, list: &'a [u8], index: u32) -> (Self, Share) {
        let mut this = Self { alive: [None; MAX_FILLERS] };
        let wanted = match session.start.fillers.iter().take_while(|&&tid| tid != 0).count() {
            0 => 0,
            ready if is_worth(list) => ready,
            _ => 0,
        };
        let parts = wanted as u64 + 1;
        let mut mine = 1;
        for (filler, &tid) in session.start.fillers[..wanted].iter().enumerate() {
            let bit = 2 << filler;
            match spawn(session, filler as u64, tid, Share { mine: bit, parts }, list, index) {
                Some(alive) => this.alive[filler] = Some(alive),
                // Somebody took the id meanwhile: one thread less.
                None => mine |= bit,
            }
        }
        (this, Share { mine, parts })
    }

    /// Waits until they are gone.
    pub(super) fn join(&mut self) {
        for alive in self.alive.iter_mut().filter_map(Option::take) {
            loop {
                let value = alive.load(Ordering::Acquire);
                if value == 0 {
                    break;
                }
                sys::futex_wait(alive, value);
            }
        }
    }
}

/// Whether the fills that a list begins with are more than one thread reads as fast.
fn is_worth(mut list: &[u8]) -> bool {
    let mut bytes = 0;
    while let Ok(Some((Op::Fill { len, .. }, rest))) = op::next(list) {
        bytes += len;
        if bytes >= FILLERS_FROM {
            return true;
        }
        list = rest;
    }
    false
}

fn spawn<'a>(
    session: &'a Session,
    filler: u64,
    tid: u64,
    share: Share,
    list: &'a [u8],
    index: u32,
) -> Option<&'a AtomicU32> {
    // CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | CHILD_CLEARTID
    const FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x20_0000;
    // The fillers' stacks end where the plan begins.
    let stack = session.start.plan_addr - (filler + 1) * THREAD_STACK;
    let at = usize::try_from(stack).ok()? as *mut Birth<'_>;
    // SAFETY: the bottom of the thread's own stack, mapped, aligned, and unused.
    unsafe { at.write(Birth { alive: AtomicU32::new(1), session, share, list, index }) };
    // SAFETY: just written; the memory stays until the hole goes away.
    let alive = unsafe { &(*at).alive };
    let tid = i32::try_from(tid).ok()?;
    let args = CloneArgs {
        flags: FLAGS,
        child_tid: core::ptr::from_ref(alive) as u64,
        stack,
        stack_size: THREAD_STACK,
        ..CloneArgs::default()
    };
    // SAFETY: the stack is the thread's alone.
    let cloned = unsafe { ids::clone(session, &args, tid, fill, at as usize) };
    cloned.ok().map(|()| alive)
}

extern "C" fn fill(birth: usize) -> ! {
    // SAFETY: the leader wrote it there before the thread existed.
    let birth = unsafe { &*(birth as *const Birth<'_>) };
    let mut fills = Fills::new();
    let (mut list, mut index) = (birth.list, birth.index);
    while let Ok(Some((Op::Fill { addr, len, offset }, rest))) = op::next(list) {
        if let Err(failure) = birth.share.add(birth.session, &mut fills, addr, len, offset) {
            birth.session.fail(Stage::Ops, 0, index, failure);
        }
        list = rest;
        index += 1;
    }
    if let Err(failure) = fills.flush(birth.session) {
        birth.session.fail(Stage::Ops, 0, index, failure);
    }
    loop {
        // SAFETY: ends this thread alone.
        let _ = unsafe { sys::call(nr::__NR_exit, &[0]) };
    }
}
