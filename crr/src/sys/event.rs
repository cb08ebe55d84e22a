//! eventfd, timerfd, signalfd, epoll: made and set by number, where the kernel's own types say too little; and who is
//! told of events by signals.
//!
//! # Safety
//! Pointers lead to live objects of the size that each call reads or writes; descriptors that a successful call
//! returns are new and ours.
#![allow(unsafe_code)]

use super::check;
use libc::epoll_event;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const NANOSECONDS: u64 = 1_000_000_000;

fn own(fd: libc::c_int) -> nix::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// eventfd(2), close-on-exec and not blocking.
///
/// # Errors
/// EMFILE.
pub fn eventfd(semaphore: bool) -> nix::Result<OwnedFd> {
    let kind = if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: plain numbers.
    own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | kind) })
}

/// signalfd(2) for a set of signals, bit n for signal n + 1; close-on-exec.
///
/// # Errors
/// EMFILE.
pub fn signalfd(signals: u64) -> nix::Result<OwnedFd> {
    // The C library takes its own, longer set.
    // SAFETY: the kernel reads 8 bytes.
    let fd = unsafe {
        libc::syscall(libc::SYS_signalfd4, -1, &raw const signals, size_of::<u64>(), libc::SFD_CLOEXEC)
    };
    own(i32::try_from(fd).map_err(|_| Errno::EBADF)?)
}

/// timerfd_create(2), close-on-exec.
///
/// # Errors
/// EINVAL for a clock without timers, EPERM for one that wakes the machine without CAP_WAKE_ALARM.
pub fn timerfd(clock: u32) -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    own(unsafe { libc::timerfd_create(clock.cast_signed(), libc::TFD_CLOEXEC) })
}

fn timespec(nanoseconds: u64) -> libc::timespec {
    let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    libc::timespec { tv_sec: part(nanoseconds / NANOSECONDS), tv_nsec: part(nanoseconds % NANOSECONDS) }
}

/// timerfd_settime(2), times in nanoseconds.
///
/// # Errors
/// As timerfd_settime(2).
pub fn set_timer(timer: BorrowedFd<'_>, flags: u32, next: u64, interval: u64) -> nix::Result<()> {
    let times = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(next) };
    // SAFETY: reads one itimerspec; no place for the old one.
    let set = unsafe {
        libc::timerfd_settime(timer.as_raw_fd(), flags.cast_signed(), &raw const times, std::ptr::null_mut())
    };
    check(set).map(drop)
}

/// timerfd_gettime(2), for what it does to a periodic timer that has expired: it counts what expired since, and starts
/// it again (`do_timerfd_gettime`, fs/timerfd.c). A read would do the same.
///
/// # Errors
/// As timerfd_gettime(2).
pub fn advance_timer(timer: BorrowedFd<'_>) -> nix::Result<()> {
    let mut times = libc::itimerspec { it_interval: timespec(0), it_value: timespec(0) };
    // SAFETY: writes one itimerspec.
    check(unsafe { libc::timerfd_gettime(timer.as_raw_fd(), &raw mut times) }).map(drop)
}

/// TFD_IOC_SET_TICKS: expirations that are to be read; not 0.
///
/// # Errors
/// ENOTTY without CONFIG_CHECKPOINT_RESTORE.
pub fn set_ticks(timer: BorrowedFd<'_>, ticks: u64) -> nix::Result<()> {
    // _IOW('T', 0, __u64), include/uapi/linux/timerfd.h.
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: reads 8 bytes.
    check(unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

/// epoll_create1(2), close-on-exec.
///
/// # Errors
/// EMFILE.
pub fn epoll() -> nix::Result<OwnedFd> {
    // SAFETY: plain numbers.
    own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// EPOLL_CTL_ADD of what a number refers to here.
///
/// # Errors
/// As epoll_ctl(2).
pub fn watch(epoll: BorrowedFd<'_>, number: RawFd, events: u32, data: u64) -> nix::Result<()> {
    let mut event = epoll_event { events, u64: data };
    // SAFETY: reads one event.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, number, &raw mut event) })
        .map(drop)
}

/// Takes what an epoll has to tell now; how many events.
///
/// # Errors
/// As epoll_wait(2).
pub fn take_events(epoll: BorrowedFd<'_>) -> nix::Result<usize> {
    const AT_ONCE: usize = 64;
    let mut events = [epoll_event { events: 0, u64: 0 }; AT_ONCE];
    let mut taken = 0;
    loop {
        let count = i32::try_from(AT_ONCE).map_err(|_| Errno::EINVAL)?;
        // SAFETY: there is room for as many.
        let got = check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), count, 0) })?;
        let got = usize::try_from(got).unwrap_or(0);
        if got == 0 {
            return Ok(taken);
        }
        taken += got;
    }
}

/// Whether an epoll polls devices busily (EPIOCSPARAMS).
#[must_use]
pub fn polls_busily(epoll: BorrowedFd<'_>) -> bool {
    // _IOR(0x8a, 2, struct epoll_params), include/uapi/linux/eventpoll.h: microseconds, budget, preference.
    const EPIOCGPARAMS: libc::c_ulong = 0x8008_8a02;
    let mut parameters = [0u8; 8];
    // SAFETY: writes 8 bytes.
    let asked = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCGPARAMS, parameters.as_mut_ptr()) };
    // Kernels that cannot do it do not know the question.
    asked == 0 && parameters != [0; 8]
}

// include/uapi/asm-generic/fcntl.h
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;

/// Who is told of events by signals: F_GETOWN_EX (kind and id), F_GETSIG.
///
/// # Errors
/// EBADF.
pub fn owner(fd: BorrowedFd<'_>) -> nix::Result<(u32, i32, u32)> {
    // struct f_owner_ex: type, pid.
    let mut owner = [0i32; 2];
    // SAFETY: F_GETOWN_EX writes two ints.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) })?;
    // SAFETY: no pointers.
    let signal = check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })?;
    Ok((owner[0].cast_unsigned(), owner[1], signal.cast_unsigned()))
}

/// F_GETOWNER_UIDS: who set the owner, real and effective user.
///
/// # Errors
/// EINVAL without CONFIG_CHECKPOINT_RESTORE.
pub fn owner_uids(fd: BorrowedFd<'_>) -> nix::Result<(u32, u32)> {
    let mut uids = [0u32; 2];
    // SAFETY: writes two 32-bit numbers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, uids.as_mut_ptr()) })?;
    Ok((uids[0], uids[1]))
}

/// F_SETOWN_EX.
///
/// # Errors
/// ESRCH if there is no such process or group.
pub fn set_owner(fd: BorrowedFd<'_>, kind: u32, owner: i32) -> nix::Result<()> {
    let owner = [kind.cast_signed(), owner];
    // SAFETY: reads two ints.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) }).map(drop)
}

/// F_SETSIG.
///
/// # Errors
/// EINVAL for what is no signal.
pub fn set_signal(fd: BorrowedFd<'_>, signal: u32) -> nix::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// F_SETFL on what a number refers to here: with O_ASYNC, the kernel notes the number.
///
/// # Errors
/// As fcntl(2).
pub fn set_flags(number: RawFd, flags: u32) -> nix::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(number, libc::F_SETFL, flags) }).map(drop)
}

/// Has a number refer to what `file` refers to while something is done with it, and then again to what it referred to.
///
/// This process has one thread, and nobody looks at its numbers meanwhile.
///
/// # Errors
/// EBADF for a number beyond RLIMIT_NOFILE; what `body` answers.
pub fn under_number<T, E: From<Errno>>(
    file: BorrowedFd<'_>,
    number: RawFd,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if file.as_raw_fd() == number {
        return body();
    }
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    let before = if flags < 0 {
        None
    } else {
        // SAFETY: no pointers.
        Some(own(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) })?)
    };
    let place = |from: BorrowedFd<'_>| {
        // SAFETY: what the number referred to is kept in `before`, and comes back.
        check(unsafe { libc::dup3(from.as_raw_fd(), number, libc::O_CLOEXEC) })
    };
    place(file)?;
    let done = body();
    match before {
        Some(before) => {
            use std::os::fd::AsFd;
            place(before.as_fd())?;
            // SAFETY: no pointers.
            check(unsafe { libc::fcntl(number, libc::F_SETFD, flags) })?;
        }
        // SAFETY: nothing but this function knows of it.
        None => check(unsafe { libc::close(number) }).map(drop)?,
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::limits::{open_files, raise_open_files};
    use std::os::fd::AsFd;

    #[test]
    fn epolls_know_numbers_that_are_free_again() {
        let (epoll, event) = (epoll().unwrap(), eventfd(false).unwrap());
        let add = |number| {
            under_number(event.as_fd(), number, || watch(epoll.as_fd(), number, libc::EPOLLOUT as u32, 7))
        };
        // A number that nobody has, other tests of this process included, and that of another file, which is back afterwards.
        raise_open_files().unwrap();
        let free = RawFd::try_from(open_files()).unwrap() - 1;
        let other = nix::unistd::pipe().unwrap();
        nix::unistd::write(&other.1, b"a").unwrap();
        add(free).unwrap();
        add(other.0.as_raw_fd()).unwrap();
        assert_eq!(add(free), Err(Errno::EEXIST));
        assert_eq!(nix::unistd::read(&other.0, &mut [0; 2]), Ok(1));
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::fcntl(free, libc::F_GETFD) }, -1);
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("tfd:")).count(), 2);
    }

    #[test]
    fn an_owner_and_its_signal_are_told() {
        let (end, _other) = nix::unistd::pipe().unwrap();
        assert_eq!(owner(end.as_fd()), Ok((0, 0, 0)));
        let pid = std::process::id().cast_signed();
        set_owner(end.as_fd(), 1, pid).unwrap();
        set_signal(end.as_fd(), 40).unwrap();
        assert_eq!(owner(end.as_fd()), Ok((1, pid, 40)));
        let own = (nix::unistd::getuid().as_raw(), nix::unistd::geteuid().as_raw());
        assert_eq!(owner_uids(end.as_fd()), Ok(own));
    }
}
