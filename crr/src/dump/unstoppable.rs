//! Threads that do not stop when asked: which those are, and what each waits for.
//!
//! A thread in an uninterruptible sleep sees the interrupt when that ends, not before. Most such sleeps end at once, so
//! a dump waits for them. The parent in vfork(2) sleeps like that (TASK_KILLABLE, wait_for_vfork_done() of kernel/fork.c) until its
//! child has run another program or ended. Registers of such a thread cannot be had, so there is no dump without it.

use super::freeze::children_of_thread;
use crate::proc::tasks::comm_of;
use crate::proc::{Dir, decimal, hex, stat};
use crate::resource::Refuse;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::vm;
use images::{Addr, Pid};
use std::cmp::Ordering;

/// CLONE_VFORK of include/uapi/linux/sched.h.
const CLONE_VFORK: u64 = 0x4000;

/// Why a thread that [`is_worker`] tells of is refused, and the way out.
pub(super) const WORKER: &str =
    "a thread that the kernel has put into the task, for io_uring or vhost: neither is supported";
pub(super) const NO_WORKER: &str =
    "start the program so that it does without (most can be told not to use io_uring)";

/// Whether a thread is one that the kernel has put into a task. It has no code of its own, and does not stop for a tracer.
pub(super) fn is_worker(dir: &Dir, tid: Pid) -> bool {
    // The kernel gives them these names; asking for that alone is quick.
    let named =
        text(dir, tid, "comm").is_some_and(|comm| comm.starts_with("iou-") || comm.starts_with("vhost-"));
    let flags = || stat::parse(text(dir, tid, "stat")?.as_bytes()).ok().map(|stat| stat.flags);
    named && flags().is_some_and(|flags| flags & stat::PF_WORKER != 0)
}

/// Refuses a thread that has not stopped in time, by what it waits for. Only of the `first` ones that is all that matters: the others
/// were given less time, and are refused only if they wait.
pub(super) fn refuse(dir: &Dir, tid: Pid, first: bool, refuse: &mut Refuse<'_>) {
    let object = format!("thread {tid}");
    if let Some(child) = vfork_child(dir, tid) {
        let child = format!("task {child} ({})", comm_of(child));
        let reason = format!(
            "waits in vfork for {child} to run another program or to end, and cannot be stopped meanwhile"
        );
        refuse.with_hint(object, reason, &format!("dump again when {child} has done so"));
        return;
    }
    let state = state(dir, tid).unwrap_or(b'?');
    if state == b'D' {
        let reason = match text(dir, tid, "wchan").filter(|symbol| symbol != "0") {
            Some(symbol) => {
                format!("waits in the kernel ({symbol}, state D), and cannot be stopped meanwhile")
            }
            None => "waits in the kernel (state D), and cannot be stopped meanwhile".to_owned(),
        };
        let hint = "see that what it waits for comes (a disk, a file server), and dump again";
        refuse.with_hint(object, reason, hint);
    } else if first {
        let reason = format!("did not stop in time (state {})", char::from(state));
        refuse.with_hint(object, reason, "dump again, or give it longer (--timeout)");
    }
}

fn text(dir: &Dir, tid: Pid, name: &str) -> Option<String> {
    let mut buffer = Vec::new();
    dir.read_record(&format!("task/{tid}/{name}"), &mut buffer).ok()?;
    Some(String::from_utf8_lossy(buffer.trim_ascii()).into_owned())
}

fn state(dir: &Dir, tid: Pid) -> Option<u8> {
    let text = text(dir, tid, "stat")?;
    stat::parse(text.as_bytes()).ok().map(|stat| stat.state)
}

/// The child that a thread waits for in vfork(2) or in a clone(2) that works alike, if it does.
fn vfork_child(dir: &Dir, tid: Pid) -> Option<Pid> {
    let call = Call::parse(text(dir, tid, "syscall")?.as_bytes())?;
    let flags = |at| {
        let mut word = [0u8; 8];
        vm::read_exact(tid, Addr(at), &mut word).map_or(0, |()| u64::from_le_bytes(word))
    };
    if !call.waits_for_child(flags) {
        return None;
    }
    let children = children_of_thread(dir, tid, &mut Vec::new()).ok()?;
    // It cannot have made another one since, but may have inherited some.
    let shares = |&&child: &&Pid| kcmp(Kind::Vm, (child, 0), (tid, 0)) == Ok(Ordering::Equal);
    children.iter().rfind(shares).or(children.last()).copied()
}

/// The call that a thread sleeps in, as `/proc/PID/task/TID/syscall` tells it.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    number: u32,
    /// Its first argument.
    argument: u64,
}

impl Call {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = text.trim_ascii().split(|&byte| byte == b' ');
        let number = decimal(words.next()?)?;
        Some(Self { number, argument: hex(words.next()?.strip_prefix(b"0x")?)? })
    }

    /// Whether it is vfork, or clone or clone3 with CLONE_VFORK, of either ABI: which one it is of is not shown, but the
    /// calls that have such a number in the other neither sleep like that nor have that bit in their first argument.
    /// `flags` reads the word at an address: the first of `struct clone_args`.
    fn waits_for_child(&self, flags: impl Fn(u64) -> u64) -> bool {
        match self.number {
            58 | 190 => true,
            56 | 120 => self.argument & CLONE_VFORK != 0,
            435 => flags(self.argument) & CLONE_VFORK != 0,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_wait_for_a_child_are_known() {
        let waits = |text: &[u8]| Call::parse(text).is_some_and(|call| call.waits_for_child(|at| at));
        assert!(waits(b"58 0x0 0x7ffd 0x0 0x0 0x0 0x0 0x7ffd1000 0x7f0012\n"));
        assert!(waits(b"190 0x1 0x2 0x0 0x0 0x0 0x0 0xffbc1000 0xf7f0012\n"));
        assert!(waits(b"56 0x4111 0x7ffd 0x0 0x0 0x0 0x0 0x7ffd1000 0x7f0012\n"));
        assert!(!waits(b"56 0x11 0x7ffd 0x0 0x0 0x0 0x0 0x7ffd1000 0x7f0012\n"));
        assert!(waits(b"435 0x4100 0x58 0x0 0x0 0x0 0x0 0x7ffd1000 0x7f0012\n"));
        assert!(!waits(b"0 0x4100 0x58 0x0 0x0 0x0 0x0 0x7ffd1000 0x7f0012\n"));
        assert!(!waits(b"-1 0x7ffd1000 0x7f0012\n") && !waits(b"running\n"));
    }
}
