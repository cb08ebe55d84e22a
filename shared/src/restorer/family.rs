//! Cloning whole tasks, and what those do that a forked child of the coordinator would do in ordinary code.
//!
//! A task that tells its end by another signal than SIGCHLD, or that shares its address space, its file table or its
//! signal handlers, has not exec'd since it was cloned. So it is cloned here, by the program of a task that it came
//! from, when that one has cleared its address space and not yet filled it.
//!
//! # Safety
//! See the parent module. A task that shares the address space runs on a stack of its own in the hole, as a thread does;
//! any other has a copy of the hole.

use super::receive::size;
use super::run::{self, Leader};
use super::{Failure, Session, ids};
use crate::abi::common::CloneArgs;
use crate::op::birth::Birth;
use crate::proto::{Gathering, Stage, THREAD_STACK};
use crate::sys::{self, Errno, nr};
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

const CLONE_VM: u64 = 0x100;
const CLONE_PARENT: u64 = 0x8000;
/// include/uapi/asm-generic/ioctls.h.
const TIOCSCTTY: usize = 0x540e;
pub(super) const F_SETFD: usize = 2;
pub(super) const FD_CLOEXEC: usize = 1;

/// What a new task is told: lies at the bottom of its own stack.
#[repr(C)]
struct Born<'a> {
    /// Of the task that cloned it.
    session: &'a Session,
    pid: i32,
    parent: i32,
    ops: &'a [u8],
    shares_memory: bool,
}

pub(super) fn step(session: &Session, leader: &mut Leader<'_, '_>, birth: &Birth<'_>) -> Result<(), Failure> {
    match *birth {
        Birth::Task { pid, parent, flags, exit_signal, stack, ops } => {
            let shares_memory = flags & CLONE_VM != 0;
            if shares_memory {
                // The vDSO moves away while the other task may be in a call through it.
                sys::take_entry();
                leader.expect_one_more();
            }
            clone(session, flags, exit_signal, stack, Born { session, pid, parent, ops, shares_memory })
        }
        Birth::Lead { session: new_session, group, terminal } => {
            if new_session {
                call(nr::__NR_setsid, 0, &[])?;
            }
            if let Some(terminal) = terminal {
                call(nr::__NR_ioctl, u64::from(terminal), &[working_fd(session, terminal)?, TIOCSCTTY, 0])?;
            }
            if group {
                call(nr::__NR_setpgid, 0, &[0, 0])?;
            }
            let cloned = &session.control().gathered[Gathering::Cloned as usize];
            cloned.fetch_add(1, Ordering::AcqRel);
            sys::futex_wake(cloned);
            Ok(())
        }
        Birth::Group { pgid, led, cloned } => join_group(session, pgid, led, cloned),
        Birth::Place { file, fd } => {
            call(nr::__NR_dup3, u64::from(fd), &[working_fd(session, file)?, fd as usize, 0])
        }
        Birth::Keep(fd) => call(nr::__NR_fcntl, u64::from(fd), &[fd as usize, F_SETFD, 0]),
        Birth::Close(fd) => call(nr::__NR_close, u64::from(fd), &[fd as usize]),
        Birth::Root(directory) => {
            call(nr::__NR_fchdir, u64::from(directory), &[working_fd(session, directory)?])?;
            call(nr::__NR_chroot, u64::from(directory), &[c".".as_ptr() as usize])
        }
        Birth::Directory(directory) => {
            call(nr::__NR_fchdir, u64::from(directory), &[working_fd(session, directory)?])
        }
        Birth::Umask(mask) => call(nr::__NR_umask, 0, &[mask as usize]),
        Birth::Table { word, users } => {
            leader.share_table(word, users);
            Ok(())
        }
        Birth::AwaitMates { word, tasks } => {
            let word = shared_word(session, word)?;
            await_word(word, |value| value >= tasks);
            Ok(())
        }
        Birth::Mapped(word) => {
            let word = shared_word(session, word)?;
            word.fetch_or(MAPPED, Ordering::AcqRel);
            sys::futex_wake(word);
            Ok(())
        }
        Birth::AwaitMapped(word) => {
            let word = shared_word(session, word)?;
            word.fetch_add(1, Ordering::AcqRel);
            sys::futex_wake(word);
            await_word(word, |value| value & MAPPED != 0);
            Ok(())
        }
        Birth::Exec { program, socket } => exec(working_fd(session, program)?, working_fd(session, socket)?),
    }
}

/// In the word of an address space, beside the number of tasks that wait for it: it is complete.
const MAPPED: u32 = 1 << 31;

fn await_word(word: &AtomicU32, suits: impl Fn(u32) -> bool) {
    loop {
        let value = word.load(Ordering::Acquire);
        if suits(value) {
            break;
        }
        sys::futex_wait(word, value);
    }
}

/// Whether this task is the last user of its file table, so that the working files are its to close.
pub(super) fn leaves_last(session: &Session, table: Option<(u32, u32)>) -> bool {
    let Some((word, users)) = table else { return true };
    shared_word(session, word).is_ok_and(|word| word.fetch_add(1, Ordering::AcqRel) + 1 == users)
}

pub(super) fn call(nr: u32, value: u64, args: &[usize]) -> Result<(), Failure> {
    // SAFETY: numbers and strings of this program; no memory of the task is touched.
    unsafe { sys::call(nr, args) }.map(drop).map_err(|errno| Failure::new(errno, value))
}

pub(super) fn working_fd(session: &Session, slot: u32) -> Result<usize, Failure> {
    session.fds.get(slot as usize).map(|&fd| fd as usize).ok_or(Failure::wrong(u64::from(slot)))
}

/// A word that all tasks of this program share.
fn shared_word(session: &Session, word: u32) -> Result<&AtomicU32, Failure> {
    let (first, end) = (session.start.words_addr, session.start.stacks_addr);
    let at = first + u64::from(word) * size_of::<AtomicU32>() as u64;
    if first == 0 || at >= end {
        return Err(Failure::wrong(u64::from(word)));
    }
    let at = size(at)? as *const AtomicU32;
    // SAFETY: inside the mapping of the words, which stays until the hole goes away.
    Ok(unsafe { &*at })
}

fn clone(session: &Session, flags: u64, exit_signal: u32, stack: u32, born: Born<'_>) -> Result<(), Failure> {
    let stack = session.start.stacks_addr + u64::from(stack) * THREAD_STACK;
    let at = size(stack)? as *mut Born<'_>;
    let pid = born.pid;
    // SAFETY: the bottom of the new task's own stack, mapped, aligned, and unused; the references in it outlive its use of
    // them, since this frame stays until the hole goes away.
    unsafe { at.write(born) };
    let args = CloneArgs {
        flags,
        // A sibling has that of the task that clones it.
        exit_signal: if flags & CLONE_PARENT == 0 { u64::from(exit_signal) } else { 0 },
        stack,
        stack_size: THREAD_STACK,
        ..CloneArgs::default()
    };
    // SAFETY: the stack is the new task's alone, or it has a copy.
    let cloned = unsafe { ids::clone(session, &args, pid, enter, at as usize) };
    cloned.map_err(|errno| Failure::new(errno, u64::from(pid as u32)))
}

extern "C" fn enter(born: usize) -> ! {
    // SAFETY: written by the task that cloned this one, before it did.
    let born = unsafe { &*(born as *const Born<'_>) };
    let from = born.session;
    let session = Session::new(from.socket, from.start, from.fds, born.pid as u32, from.vdso);
    if let Err(failure) = tie(born.parent) {
        session.fail(Stage::Ops, 0, 0, failure);
    }
    run::task(&session, born.ops, born.shares_memory.then_some(&from.ready))
}

/// Until the restore is through, a task dies with its parent, so that a failed one leaves nobody behind.
fn tie(parent: i32) -> Result<(), Failure> {
    const PR_SET_PDEATHSIG: usize = 1;
    const ESRCH: Errno = Errno(3);
    call(nr::__NR_prctl, 0, &[PR_SET_PDEATHSIG, crate::plan::TIE as usize])?;
    // SAFETY: no arguments.
    let now = unsafe { sys::call(nr::__NR_getppid, &[]) }.map_err(|errno| Failure::new(errno, 0))?;
    if now == parent as usize { Ok(()) } else { Err(Failure::new(ESRCH, now as u64)) }
}

fn join_group(session: &Session, pgid: i32, led: u32, cloned: u32) -> Result<(), Failure> {
    // SAFETY: plain numbers.
    let now = unsafe { sys::call(nr::__NR_getpgid, &[0]) }.map_err(|errno| Failure::new(errno, 0))?;
    if now == pgid as usize {
        return Ok(());
    }
    let control = session.control();
    for (gathering, all) in [(Gathering::Led, led), (Gathering::Cloned, cloned)] {
        await_word(&control.gathered[gathering as usize], |come| {
            if control.failed.load(Ordering::Acquire) != 0 {
                sys::exit_group(1);
            }
            come >= all
        });
    }
    call(nr::__NR_setpgid, pgid as u64, &[0, pgid as usize])
}

/// All working files close on exec but the socket, which the program is told as its argument.
pub(super) fn exec(program: usize, socket: usize) -> Result<(), Failure> {
    const AT_EMPTY_PATH: usize = 0x1000;
    call(nr::__NR_fcntl, socket as u64, &[socket, F_SETFD, 0])?;
    let mut text = [0u8; 12];
    let number = decimal(socket, &mut text);
    let argv = [c"crr".as_ptr() as usize, number.as_ptr() as usize, 0];
    let envp = [0usize];
    let args =
        [program, c"".as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize, AT_EMPTY_PATH];
    call(nr::__NR_execveat, program as u64, &args)
}

/// A number as a string that ends with a zero byte, at the end of the buffer.
pub(super) fn decimal(mut number: usize, text: &mut [u8; 12]) -> &[u8] {
    let mut at = text.len() - 1;
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            return &text[at..];
        }
    }
}

/// Moves the working files to numbers that no task of the tree has, closed on exec, and has the socket close on exec.
pub(super) fn move_fds(socket: c_int, fds: &mut [c_int], from: u64) -> Result<(), Failure> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    call(nr::__NR_fcntl, socket as u64, &[socket as usize, F_SETFD, FD_CLOEXEC])?;
    for fd in fds {
        let args = [*fd as usize, F_DUPFD_CLOEXEC, size(from)?];
        // SAFETY: plain numbers.
        let moved = unsafe { sys::call(nr::__NR_fcntl, &args) }.map_err(|errno| Failure::new(errno, from))?;
        sys::close(*fd);
        *fd = moved as c_int;
    }
    Ok(())
}
