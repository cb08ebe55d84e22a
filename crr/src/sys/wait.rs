//! waitpid, undecoded: nix's decoding fails on stops for real-time signals.
//!
//! # Safety
//! waitpid writes the one `int` whose address it gets; sigtimedwait reads a set and a time.
#![allow(unsafe_code)]

use super::check;
use images::Pid;

/// waitpid for one thread or child of any kind (`__WALL`). `None` when nothing has happened and `block` is false.
///
/// # Errors
/// ECHILD when it is neither our child nor our tracee, EINTR.
pub fn wait(tid: Pid, block: bool) -> nix::Result<Option<i32>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    // SAFETY: `status` is a live int.
    let waited = check(unsafe { libc::waitpid(tid, &raw mut status, flags) })?;
    Ok((waited != 0).then_some(status))
}

/// What has become of a child that was not waited for yet: it has ended, or a signal has stopped it. `None` when nothing has happened.
///
/// # Errors
/// ECHILD when it is no child of ours, EINTR.
pub fn ended_or_stopped(pid: Pid) -> nix::Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: `status` is a live int.
    let waited = check(unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::WUNTRACED) })?;
    Ok((waited != 0).then_some(status))
}

/// Whether a thread or child of any kind has something to tell, which is left to be waited for.
///
/// # Errors
/// ECHILD when it is neither our child nor our tracee, EINTR.
pub fn is_told(tid: Pid) -> nix::Result<bool> {
    let id = libc::id_t::try_from(tid).map_err(|_| nix::errno::Errno::EINVAL)?;
    // SAFETY: all zeros are a siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` is a live siginfo_t.
    check(unsafe { libc::waitid(libc::P_PID, id, &raw mut info, flags) })?;
    // SAFETY: waitid fills the members that SIGCHLD has; the pid stays 0 where there is nothing.
    Ok(unsafe { info.si_pid() } != 0)
}

/// Waits until a child has ended, and leaves it to be waited for. How it ended: CLD_* and its exit code or signal.
///
/// # Errors
/// ECHILD when it is no child of ours, EINTR.
pub fn until_ended(pid: Pid) -> nix::Result<(i32, i32)> {
    let id = libc::id_t::try_from(pid).map_err(|_| nix::errno::Errno::EINVAL)?;
    // SAFETY: all zeros are a siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live siginfo_t.
    check(unsafe { libc::waitid(libc::P_PID, id, &raw mut info, libc::WEXITED | libc::WNOWAIT) })?;
    // SAFETY: waitid fills the members that SIGCHLD has.
    let status = unsafe { info.si_status() };
    Ok((info.si_code, status))
}

/// Takes one pending signal of a set of blocked ones off the queue, if there is one.
#[must_use]
pub fn take_pending(set: &nix::sys::signal::SigSet) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set and the time live across the call; no siginfo is asked for.
    unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const at_once) > 0 }
}

/// Sleeps until some child or tracee changes its state, or `timeout` is over. A caller that blocks SIGCHLD misses no
/// change since it last looked; to others one can get lost, so they should not ask for long.
pub fn for_any_change(timeout: std::time::Duration) {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGCHLD);
    let nanoseconds = timeout.subsec_nanos();
    let timeout = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(nanoseconds),
    };
    // SAFETY: the set and the time live across the call; no siginfo is asked for.
    unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const timeout) };
}
