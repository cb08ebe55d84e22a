//! Making processes with chosen ids, and what a new process sets up before it execs.
//!
//! # Safety
//! clone3 without CLONE_VM is fork: safe to return from in both processes as long as this process has one thread.
#![allow(unsafe_code)]

use super::{check, halves, whole};
use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use images::Pid;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use shared::abi::common::{CapData, CapHeader, CloneArgs};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// CLONE_FILES: one table of descriptors for both.
pub const CLONE_FILES: u64 = 0x400;
/// CLONE_PARENT: the child becomes a sibling.
pub const CLONE_PARENT: u64 = 0x8000;

/// Forks a process. Returns its id in the parent, `None` in the child.
///
/// # Errors
/// As clone(2).
pub fn fork(flags: u64) -> nix::Result<Option<Pid>> {
    fault::point(Point::Fork)?;
    plain_clone(flags)
}

/// Forks a process with a given id.
///
/// # Errors
/// EEXIST if the id is taken, ENOSYS before Linux 5.3, E2BIG before 5.5; as clone3(2).
pub fn fork_as(pid: Pid, flags: u64) -> nix::Result<Option<Pid>> {
    /// Between the end of whoever had an id and its coming free, the kernel runs a few instructions (release_task() of kernel/exit.c).
    const MOMENT: Duration = Duration::from_secs(1);
    fault::point(Point::Fork)?;
    let mut since = None;
    loop {
        match clone_as(pid, flags) {
            Err(Errno::EEXIST) if !exists(pid) => {}
            forked => return forked,
        }
        if since.get_or_insert_with(Instant::now).elapsed() > MOMENT {
            return Err(Errno::EEXIST);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn clone_as(pid: Pid, flags: u64) -> nix::Result<Option<Pid>> {
    let args = CloneArgs {
        flags,
        exit_signal: exit_signal(flags),
        set_tid: std::ptr::from_ref(&pid) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: no shared memory, no stack: a fork.
    child_of(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })
}

/// clone(2), as every kernel and every filter of a container knows it; without faults.
pub(super) fn plain_clone(flags: u64) -> nix::Result<Option<Pid>> {
    // SAFETY: no shared memory, no stack: a fork. The exit signal is in the low byte of the flags.
    child_of(unsafe { libc::syscall(libc::SYS_clone, flags | exit_signal(flags), 0, 0, 0, 0) })
}

/// A sibling takes the exit signal of its new parent's other child, us.
const fn exit_signal(flags: u64) -> u64 {
    if flags & CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 }
}

fn child_of(ret: libc::c_long) -> nix::Result<Option<Pid>> {
    Errno::result(ret).map(|pid| Pid::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// Whether mappings of this process that nothing here needs for the moment, by address and length, can be moved away from where they are: those of
/// the vDSO, by which the C library tells the time. They are moved and put back, by a child if there are other threads, who could need them; a child
/// that is a copy takes as long as forty system calls.
///
/// # Errors
/// As mmap(2), fork(2) and waitpid(2).
pub fn can_move(areas: &[(u64, u64)]) -> nix::Result<bool> {
    if is_alone() {
        return move_all(areas);
    }
    let Some(child) = plain_clone(0)? else { exit(i32::from(move_all(areas) != Ok(true))) };
    let child = nix::unistd::Pid::from_raw(child);
    Ok(waitpid(child, None)? == WaitStatus::Exited(child, 0))
}

/// Whether this process has no other threads.
fn is_alone() -> bool {
    let threads = crate::proc::Dir::task(std::process::id().cast_signed()).and_then(|dir| dir.thread_count());
    threads.is_ok_and(|count| count == 1)
}

/// Moves each to another place and back. By nothing but system calls.
fn move_all(areas: &[(u64, u64)]) -> nix::Result<bool> {
    const FLAGS: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for &(at, len) in areas {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping where the kernel likes.
        let room = unsafe { libc::syscall(libc::SYS_mmap, 0usize, len, libc::PROT_NONE, flags, -1, 0usize) };
        Errno::result(room)?;
        // SAFETY: to memory that nothing uses; what had been there is not used before it is back.
        let moved = unsafe { libc::syscall(libc::SYS_mremap, at, len, len, FLAGS, room) };
        if moved != room {
            // SAFETY: the mapping made above, to which nothing refers.
            unsafe { libc::syscall(libc::SYS_munmap, room, len) };
            return Ok(false);
        }
        // SAFETY: to where it was, which is free.
        let back = unsafe { libc::syscall(libc::SYS_mremap, room, len, len, FLAGS, at) };
        if back != at.cast_signed() {
            // Whatever asks for the time next would jump to nowhere.
            std::process::abort();
        }
    }
    Ok(true)
}

/// Whether a process or thread has this id.
#[must_use]
pub fn exists(tid: Pid) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tid), None) != Err(Errno::ESRCH)
}

/// Waits until no thread of this process but the calling one has any of these ids, for a second at most: one that was joined is there a moment longer
/// (the kernel wakes who joins before it takes the thread off its lists).
pub fn outlive_threads(ids: &BTreeSet<Pid>) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let own = nix::unistd::gettid().as_raw();
    let in_the_way = || {
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let mut threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        threads.any(|tid: Pid| tid != own && ids.contains(&tid))
    };
    let until = Instant::now() + PATIENCE;
    while in_the_way() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Ends this process at once, running no destructors: for a forked child.
pub fn exit(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// Ends this process by a signal whose action is the default one, and leaves no core dump. Why it did not, if it returns.
pub fn be_killed(signal: i32) -> Errno {
    // do_coredump() of fs/coredump.c does nothing for a process that is not dumpable.
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    // SAFETY: a signal to this process itself.
    unsafe { libc::raise(signal) };
    set_signal_mask(!crate::ptrace::signal_bit(signal)).err().unwrap_or_else(Errno::last)
}

/// Blocks every signal of the calling thread; the mask until now.
///
/// Not by the C library, which leaves out the two signals that it uses itself (32 and 33).
///
/// # Errors
/// Never, by the manual.
pub fn block_all_signals() -> nix::Result<u64> {
    set_signal_mask(u64::MAX)
}

/// Sets the signal mask of the calling thread, bit n for signal n + 1; the mask until now.
///
/// # Errors
/// Never, by the manual.
pub fn set_signal_mask(mask: u64) -> nix::Result<u64> {
    let mut old = 0u64;
    // SAFETY: the kernel reads and writes 8 bytes each.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            size_of::<u64>(),
        )
    };
    if ret == 0 { Ok(old) } else { Err(Errno::last()) }
}

/// Has a write beyond RLIMIT_FSIZE fail with EFBIG, as one that finds no room does, where SIGXFSZ would end this process over a stopped tree. It is
/// caught, not ignored: who is executed gets the default action back (execve(2)).
///
/// # Errors
/// Never, by the manual.
pub fn outlive_file_size_limit() -> nix::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn pass_over(_signal: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(pass_over), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: a handler that does nothing may run at any moment.
    unsafe { sigaction(Signal::SIGXFSZ, &action) }.map(drop)
}

/// Sets every signal to its default action: exec keeps those that are ignored.
pub fn default_signal_actions() {
    for signal in 1..=64 {
        let action = shared::abi::x86_64::SigAction::default();
        // SAFETY: SIG_DFL installs no code; what cannot be set (SIGKILL, SIGSTOP) is an error without effect.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, std::ptr::null::<u8>(), 8usize);
        }
    }
}

/// Marks every fd from `first` on close-on-exec.
///
/// # Errors
/// If /proc/self/fd cannot be read, which takes the place of close_range(2) before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> nix::Result<()> {
    if !is_disabled(Switch::CloseRange) {
        match close_range_on_exec(first) {
            Err(Errno::ENOSYS | Errno::EINVAL) => {}
            done => return done,
        }
    }
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    for entry in std::fs::read_dir("/proc/self/fd").map_err(errno)? {
        let number = entry.map_err(errno)?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(fd) = number.filter(|&number| number >= first) {
            // SAFETY: changes a flag only; that of the directory being read has it.
            unsafe { libc::fcntl(fd.cast_signed(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// The same by close_range(2).
///
/// # Errors
/// ENOSYS before Linux 5.9, EINVAL before 5.11.
pub fn close_range_on_exec(first: u32) -> nix::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: changes flags only.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if ret == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Leaves the session, the directory and the standard files of whoever has started this process; what it says goes to `messages`.
///
/// # Errors
/// As setsid(2), of a leader, and open(2).
pub fn go_to_background(messages: Option<i32>) -> nix::Result<()> {
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    let null = null.as_raw_fd();
    [(0, null), (1, null), (2, messages.unwrap_or(null))]
        .into_iter()
        .try_for_each(|(standard, fd)| place_fd(fd, standard))
}

/// Makes `to` refer to what `from` refers to, without close-on-exec, replacing what `to` was.
///
/// # Errors
/// As dup2(2).
pub fn place_fd(from: i32, to: i32) -> nix::Result<()> {
    let ret = if from == to {
        // dup2 would leave the flag as it is.
        // SAFETY: changes a flag only.
        unsafe { libc::fcntl(to, libc::F_SETFD, 0) }
    } else {
        // SAFETY: in a forked child, whose fd numbers no Rust value owns any more (it only ever execs or exits).
        unsafe { libc::dup2(from, to) }
    };
    if ret < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Makes `to` refer to what `from` refers to, close-on-exec, replacing what `to` was.
///
/// # Errors
/// As dup3(2).
pub fn move_fd(from: i32, to: i32) -> nix::Result<()> {
    // SAFETY: in a forked child, as in `place_fd`, or in a process that shares the table of another one, which has `to` as a place for
    // what comes.
    let ret = unsafe { libc::dup3(from, to, libc::O_CLOEXEC) };
    if ret < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// A further descriptor of what `fd` of this process refers to.
///
/// # Errors
/// As fcntl(2) F_DUPFD_CLOEXEC.
pub fn duplicate(fd: u32) -> nix::Result<OwnedFd> {
    // SAFETY: adds a descriptor.
    let new = unsafe { libc::fcntl(fd.cast_signed(), libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: just made, owned by nobody else.
    Errno::result(new).map(|new| unsafe { OwnedFd::from_raw_fd(new) })
}

/// Takes over a descriptor that was inherited, whose number the command line tells, or that came by SCM_RIGHTS.
#[must_use]
pub fn own_fd(fd: i32) -> OwnedFd {
    // SAFETY: who started this process, or sent it, gave it to us, and nobody else here knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Closes an fd number.
pub fn close_fd(fd: i32) {
    // SAFETY: as in `place_fd`.
    unsafe { libc::close(fd) };
}

/// Closes every fd, of a process that goes on to use none.
pub fn close_all_fds() {
    // SAFETY: as in `place_fd`: no fd number is used any more.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
}

/// Closes every fd but one, of a process that goes on to use no other.
pub fn close_all_fds_but(fd: i32) {
    let fd = fd.cast_unsigned();
    let below = fd.checked_sub(1).map(|last| (0, last));
    for (first, last) in below.into_iter().chain([(fd + 1, u32::MAX)]) {
        // SAFETY: as in `place_fd`: no other fd number is used any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
    }
}

/// XCR0: the state components that the kernel has enabled; 3 (x87, SSE) on a processor without XSAVE.
#[must_use]
pub fn enabled_xfeatures() -> u64 {
    static KNOWN: OnceLock<u64> = OnceLock::new();
    *KNOWN.get_or_init(ask_xcr0)
}

fn ask_xcr0() -> u64 {
    let leaf = std::arch::x86_64::__cpuid(1);
    if leaf.ecx & (1 << 27) == 0 {
        return 3;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set, so xgetbv exists in user mode.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Has the calling thread keep its capabilities when its user changes.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn keep_capabilities() -> nix::Result<()> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: plain numbers.
    let ret = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) };
    if ret == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// The calling thread's securebits.
#[must_use]
pub fn securebits() -> u32 {
    // SAFETY: plain numbers.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    u32::try_from(bits).unwrap_or(0)
}

/// The calling thread's timer slack.
#[must_use]
pub fn timer_slack_ns() -> u64 {
    // SAFETY: plain numbers.
    let slack = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_TIMERSLACK) };
    u64::try_from(slack).unwrap_or(0)
}

/// The effective capabilities of the calling thread, by their numbers.
///
/// # Errors
/// Never, by the manual.
pub fn effective_capabilities() -> nix::Result<u64> {
    Ok(whole(capabilities()?.map(|half| half.effective)))
}

/// The permitted ones.
///
/// # Errors
/// Never, by the manual.
pub fn permitted_capabilities() -> nix::Result<u64> {
    Ok(whole(capabilities()?.map(|half| half.permitted)))
}

/// The capabilities of the calling thread, the lower half first.
fn capabilities() -> nix::Result<[CapData; 2]> {
    let header = CapHeader::SELF;
    let mut sets = [CapData::default(); 2];
    // SAFETY: the kernel reads the header and fills in both.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) })?;
    Ok(sets)
}

/// Does something while these capabilities are not in effect for the calling thread.
///
/// # Errors
/// Never for one that has them, by the manual.
pub fn without_capabilities<T>(out: u64, body: impl FnOnce() -> T) -> nix::Result<T> {
    let had = capabilities()?;
    let mut fewer = had;
    for (set, out) in fewer.iter_mut().zip(halves(out)) {
        set.effective &= !out;
    }
    set_capabilities(&fewer)?;
    let result = body();
    set_capabilities(&had)?;
    Ok(result)
}

pub(super) fn set_capabilities(sets: &[CapData; 2]) -> nix::Result<()> {
    let header = CapHeader::SELF;
    // SAFETY: the kernel reads all of it.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets) }).map(drop)
}
