//! Cloning threads and tasks with chosen ids.
//!
//! Where clone3 gives them, by that. Where it does not, by the number that the kernel goes on from (`ns_last_pid`), as crr's
//! `sys::last_pid` does: one at a time in the whole restore, each new thread looks at its own id first, and ends if it is another one.
//!
//! # Safety
//! See the parent module.

use super::family::decimal;
use super::{Session, timer};
use crate::abi::common::CloneArgs;
use crate::sys::{self, Errno, nr};
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const EAGAIN: Errno = Errno(11);
const EEXIST: Errno = Errno(17);
const EINVAL: Errno = Errno(22);

/// clone of a thread or task that has the id `tid` and runs `entry(arg)` on the stack of `args`.
///
/// # Safety
/// The stack must be its alone, or a copy.
pub(super) unsafe fn clone(
    session: &Session,
    args: &CloneArgs,
    tid: i32,
    entry: extern "C" fn(usize) -> !,
    arg: usize,
) -> Result<(), Errno> {
    let slot = session.start.last_pid as usize;
    if slot == 0 {
        let set_tid = core::ptr::from_ref(&tid) as u64;
        let args = CloneArgs { set_tid, set_tid_size: 1, ..*args };
        // SAFETY: the caller's promise.
        return sys::check(unsafe { sys::clone3_thread(&args, entry, arg) }).map(drop);
    }
    let file = *session.fds.get(slot).ok_or(EINVAL)?;
    let control = session.control();
    while control.choosing.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        if control.failed.load(Ordering::Acquire) != 0 {
            sys::exit_group(1);
        }
        sys::futex_wait(&control.choosing, 1);
    }
    // SAFETY: the caller's promise.
    let cloned = unsafe { after_last(session, file, args, tid, entry, arg) };
    control.choosing.store(0, Ordering::Release);
    sys::futex_wake(&control.choosing);
    cloned
}

/// Clones until the id is the wanted one: others can get it first, if they fork right between the write and the clone.
unsafe fn after_last(
    session: &Session,
    file: c_int,
    args: &CloneArgs,
    tid: i32,
    entry: extern "C" fn(usize) -> !,
    arg: usize,
) -> Result<(), Errno> {
    const TRIES: u32 = 1000;
    let flags = (args.flags | args.exit_signal) as usize;
    let stack = args.stack.wrapping_add(args.stack_size) as usize;
    let taken = session.control().taken.load(Ordering::Relaxed) != 0;
    for attempt in 0..TRIES {
        let gone = AtomicU32::new(1);
        let last = read(file)?;
        if !taken || attempt > 0 {
            write(file, tid as usize - 1)?;
        }
        // SAFETY: the caller's promise; one with another id uses no stack.
        let cloned = sys::check(unsafe { sys::clone_thread(flags, stack, entry, arg, tid, gone.as_ptr()) });
        // For the sake of others: the numbers go on where they were. The thread is there in any case.
        let _ = write(file, last);
        match cloned? {
            id if id == tid as usize => return Ok(()),
            // Its parent's to wait for, which has no reason to.
            _ if args.flags & CLONE_PARENT != 0 => {
                session.control().raced.store(1, Ordering::Release);
                return Err(EAGAIN);
            }
            // The kernel clears the word when the thread has ended.
            _ if args.flags & CLONE_THREAD != 0 => {
                while gone.load(Ordering::Acquire) != 0 {
                    sys::futex_wait(&gone, 1);
                }
            }
            other => forget(other, args.exit_signal)?,
        }
    }
    Err(EEXIST)
}

/// Waits for a child that ends by itself, and takes the signal that tells so; all signals are blocked.
fn forget(child: usize, exit_signal: u64) -> Result<(), Errno> {
    const WALL: usize = 0x4000_0000;
    // SAFETY: no status is asked for.
    unsafe { sys::call(nr::__NR_wait4, &[child, 0, WALL, 0]) }?;
    if exit_signal == 0 {
        return Ok(());
    }
    timer::take(exit_signal as i32).map_err(|failure| Errno(failure.errno))
}

fn read(file: c_int) -> Result<usize, Errno> {
    let mut text = [0u8; 12];
    let args = [file as usize, text.as_mut_ptr() as usize, text.len(), 0, 0];
    // SAFETY: the kernel writes to the text.
    let len = unsafe { sys::call(nr::__NR_pread64, &args) }?;
    let digits = text[..len.min(text.len())].iter().take_while(|byte| byte.is_ascii_digit());
    Ok(digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

fn write(file: c_int, last: usize) -> Result<(), Errno> {
    let mut text = [0u8; 12];
    let text = decimal(last, &mut text);
    // Without the zero at its end.
    let args = [file as usize, text.as_ptr() as usize, text.len() - 1, 0, 0];
    // SAFETY: the kernel reads the text.
    unsafe { sys::call(nr::__NR_pwrite64, &args) }.map(drop)
}
