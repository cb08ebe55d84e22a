//! Calls that wait at a set of semaphores or a message queue: they name it, whether or not the caller has ever used it before.

use crate::ptrace::regs::{self, Field};
use crate::ptrace::{self, Stopped};
use images::Abi;
use images::thread::Regs;
use std::collections::BTreeSet;

/// What the calls of a tree name, by ids.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    pub(super) sets: BTreeSet<i32>,
    pub(super) queues: BTreeSet<i32>,
}

/// What a call waits at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Set(i32),
    Queue(i32),
}

impl Waits {
    /// Notes what a stopped thread waits at, if it does; with its registers as they are to be.
    pub(crate) fn note(&mut self, thread: &Stopped, regs: &Regs) -> Result<(), ptrace::Error> {
        // By either table: which one it is, is a question more to the kernel.
        if [Abi::X86_64, Abi::Ia32].into_iter().all(|table| named(regs, table).is_none()) {
            return Ok(());
        }
        match named(regs, thread.call_table()?) {
            Some(Named::Set(id)) => self.sets.insert(id),
            Some(Named::Queue(id)) => self.queues.insert(id),
            None => false,
        };
        Ok(())
    }
}

/// What the call names that a thread is in. Numbers: arch/x86/entry/syscalls; ipc(2) has them below a version (ipc/syscall.c).
fn named(regs: &Regs, table: Abi) -> Option<Named> {
    const SEMOP: u64 = 1;
    const SEMTIMEDOP: u64 = 4;
    const MSGSND: u64 = 11;
    const MSGRCV: u64 = 12;
    let call = u64::try_from(regs::get_signed(regs, Field::OrigAx)).ok()?;
    let argument = |n| regs::argument(regs, table, n);
    let id = |n| i32::from_ne_bytes(regs::low_half(argument(n)).to_ne_bytes());
    match (table, call) {
        // semop, semtimedop.
        (Abi::X86_64, 65 | 220) => Some(Named::Set(id(0))),
        // msgsnd, msgrcv.
        (Abi::X86_64, 69 | 70) => Some(Named::Queue(id(0))),
        // semtimedop_time64.
        (Abi::Ia32, 420) => Some(Named::Set(id(0))),
        // msgsnd, msgrcv.
        (Abi::Ia32, 400 | 401) => Some(Named::Queue(id(0))),
        (Abi::Ia32, 117) => match argument(0) & 0xffff {
            SEMOP | SEMTIMEDOP => Some(Named::Set(id(1))),
            MSGSND | MSGRCV => Some(Named::Queue(id(1))),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptrace::regs::tests::in_mode;

    fn named_by(table: Abi, call: u64, args: [u64; 2]) -> Option<Named> {
        let mut regs = in_mode(table);
        regs::set(&mut regs, Field::OrigAx, call);
        for (n, arg) in args.into_iter().enumerate() {
            regs::set(&mut regs, Field::Arg(n), arg);
        }
        named(&regs, table)
    }

    #[test]
    fn calls_name_what_they_wait_at() {
        assert_eq!(named_by(Abi::X86_64, 220, [7, 0]), Some(Named::Set(7)));
        assert_eq!(named_by(Abi::X86_64, 70, [8, 0]), Some(Named::Queue(8)));
        assert_eq!(named_by(Abi::Ia32, 420, [7, 0]), Some(Named::Set(7)));
        assert_eq!(named_by(Abi::Ia32, 117, [0x1_0004, 7]), Some(Named::Set(7)));
        assert_eq!(named_by(Abi::Ia32, 117, [12, 8]), Some(Named::Queue(8)));
        assert_eq!(named_by(Abi::Ia32, 117, [21, 8]), None);
        assert_eq!(named_by(Abi::X86_64, u64::MAX, [8, 0]), None);
    }
}
