//! What the kernel keeps for one thread, as ops that the thread itself follows.

use super::{Machine, attribute, signal};
use crate::op::{self, Op};
use alloc::vec::Vec;
use images::Abi;
use images::thread::Thread;

const PR_SET_TIMERSLACK: u32 = 29;
const SS_DISABLE: u32 = 2;

/// Appends the ops of a thread, credentials excepted.
pub fn ops(list: &mut Vec<u8>, machine: &Machine, abi: Abi, thread: &Thread) {
    op::push(list, &Op::Name(&thread.comm));
    let stack = thread.altstack;
    if stack.flags & SS_DISABLE == 0 && stack.size != 0 {
        op::push(list, &Op::AltStack { base: stack.base.0, size: stack.size, flags: stack.flags });
    }
    let native = match abi {
        Abi::X86_64 => thread.robust_list_64,
        Abi::Ia32 => thread.robust_list_32,
    };
    if let Some(robust) = native {
        op::push(list, &Op::RobustList { head: robust.head.0, len: robust.len });
    }
    let foreign = match abi {
        Abi::X86_64 => thread.robust_list_32,
        Abi::Ia32 => thread.robust_list_64,
    };
    if let Some(robust) = foreign {
        op::push(list, &Op::ForeignRobustList { head: robust.head.0, len: robust.len });
    }
    if thread.clear_child_tid.0 != 0 {
        op::push(list, &Op::TidAddress(thread.clear_child_tid.0));
    }
    if let Some(rseq) = thread.rseq {
        op::push(
            list,
            &Op::Rseq { area: rseq.area.0, size: rseq.size, flags: rseq.flags, signature: rseq.signature },
        );
    }
    if thread.timer_slack_ns != machine.timer_slack_ns && thread.timer_slack_ns != 0 {
        op::push(list, &Op::Prctl { option: PR_SET_TIMERSLACK, args: [thread.timer_slack_ns, 0, 0] });
    }
    signal::pending(list, abi, &thread.pending, true);
    attribute::thread(list, &machine.thread_attributes, &thread.attributes);
}
