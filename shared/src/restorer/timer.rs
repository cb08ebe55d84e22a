//! Making POSIX timers under their old numbers, and setting them.
//!
//! # Safety
//! See the parent module.

use super::Failure;
use crate::abi::common::{ITimerSpec, TimeSpec};
use crate::abi::native::SigEvent;
use crate::sys::{self, Errno, nr};
use core::ffi::c_int;

const NANOSECONDS: u64 = 1_000_000_000;

#[cfg(target_arch = "x86_64")]
mod calls {
    use crate::sys::nr;
    pub(super) const SETTIME: u32 = nr::__NR_timer_settime;
    pub(super) const CLOCK_GETTIME: u32 = nr::__NR_clock_gettime;
    pub(super) const SIGTIMEDWAIT: u32 = nr::__NR_rt_sigtimedwait;
}

/// The plain names are the old calls with 32-bit seconds.
#[cfg(target_arch = "x86")]
mod calls {
    use crate::sys::nr;
    pub(super) const SETTIME: u32 = nr::__NR_timer_settime64;
    pub(super) const CLOCK_GETTIME: u32 = nr::__NR_clock_gettime64;
    pub(super) const SIGTIMEDWAIT: u32 = nr::__NR_rt_sigtimedwait_time64;
}

/// timer_create with this number.
///
/// Since Linux 6.15 a task can ask for the number (PR_TIMER_CREATE_RESTORE_IDS): it is then read from where the kernel
/// writes it otherwise. Before, numbers rise by one from 0, so that timers are made and deleted until it comes.
pub(super) fn create(event: &SigEvent, clock: i32, id: c_int, by_trying: bool) -> Result<(), Failure> {
    const PR_TIMER_CREATE_RESTORE_IDS: usize = 77;
    const TRIES: u32 = 1 << 20;
    const ON: usize = 1;
    const OFF: usize = 0;
    let value = u64::from(id.unsigned_abs());
    let choose = |on| {
        // SAFETY: plain numbers; changes how the next timer is numbered.
        unsafe { sys::call(nr::__NR_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0]) }
    };
    let make = |made: &mut c_int| {
        let args = [clock as usize, core::ptr::from_ref(event) as usize, core::ptr::from_mut(made) as usize];
        // SAFETY: the kernel reads the event, and reads and writes the number.
        unsafe { sys::call(nr::__NR_timer_create, &args) }.map_err(|errno| Failure::new(errno, value))
    };
    let mut made = id;
    if !by_trying && choose(ON).is_ok() {
        let created = make(&mut made);
        let _ = choose(OFF);
        created?;
        return if made == id { Ok(()) } else { Err(Failure::wrong(value)) };
    }
    for _ in 0..TRIES {
        make(&mut made)?;
        if made >= id {
            break;
        }
        // SAFETY: just made, and not wanted.
        let _ = unsafe { sys::call(nr::__NR_timer_delete, &[made as usize]) };
    }
    if made == id { Ok(()) } else { Err(Failure::wrong(value)) }
}

/// How a timer is set.
pub(super) struct Times {
    pub(super) clock: i32,
    pub(super) interval_ns: u64,
    pub(super) left_ns: u64,
    /// Its signal is to be pending.
    pub(super) fired: bool,
    /// A signal that is to have come, with so many overruns, and to have been taken.
    pub(super) taken: Option<(i32, u32)>,
}

/// timer_settime.
///
/// A timer whose signal was pending fires again at once: only then does it wait with its next period until the signal is
/// taken, and count overruns meanwhile. So that the periods fall where they did, it is set to the last moment that has passed.
pub(super) fn start(id: c_int, times: &Times) -> Result<(), Failure> {
    const TIMER_ABSTIME: usize = 1;
    let periods = match times.taken {
        Some((_, overruns)) => Some(u64::from(overruns) + 1),
        None if times.fired && times.interval_ns != 0 && times.clock >= 0 => Some(1),
        None => None,
    };
    let passed = periods.and_then(|periods| {
        let next = now(times.clock).ok()?.checked_add(times.left_ns)?;
        next.checked_sub(periods.checked_mul(times.interval_ns)?)
    });
    match passed {
        Some(moment) if moment != 0 => {
            set(id, TIMER_ABSTIME, times.interval_ns, moment)?;
            if let (Some((signal, _)), false) = (times.taken, times.fired) {
                take(signal)?;
            }
            Ok(())
        }
        _ => set(id, 0, times.interval_ns, if times.fired { 1 } else { times.left_ns }),
    }
}

fn set(id: c_int, flags: usize, interval_ns: u64, value_ns: u64) -> Result<(), Failure> {
    let spec = ITimerSpec { interval: time(interval_ns), value: time(value_ns) };
    let args = [id as usize, flags, core::ptr::from_ref(&spec) as usize, 0];
    // SAFETY: the kernel reads the times.
    let set = unsafe { sys::call(calls::SETTIME, &args) };
    set.map(drop).map_err(|errno| Failure::new(errno, u64::from(id.unsigned_abs())))
}

fn time(nanoseconds: u64) -> TimeSpec {
    TimeSpec { seconds: (nanoseconds / NANOSECONDS) as i64, nanos: (nanoseconds % NANOSECONDS) as i64 }
}

fn now(clock: i32) -> Result<u64, Errno> {
    let mut time = TimeSpec::default();
    // SAFETY: the kernel writes the time.
    unsafe { sys::call(calls::CLOCK_GETTIME, &[clock as usize, core::ptr::from_mut(&mut time) as usize]) }?;
    Ok((time.seconds as u64).wrapping_mul(NANOSECONDS).wrapping_add(time.nanos as u64))
}

/// Takes a signal that is pending; it is none where the task ignores it.
pub(super) fn take(signal: i32) -> Result<(), Failure> {
    const EAGAIN: u32 = 11;
    let set = 1u64 << (signal.clamp(1, 64) - 1);
    let none = TimeSpec::default();
    let args = [core::ptr::from_ref(&set) as usize, 0, core::ptr::from_ref(&none) as usize, size_of::<u64>()];
    // SAFETY: the kernel reads the set and the time.
    match unsafe { sys::call(calls::SIGTIMEDWAIT, &args) } {
        Ok(_) | Err(Errno(EAGAIN)) => Ok(()),
        Err(errno) => Err(Failure::new(errno, u64::from(signal.unsigned_abs()))),
    }
}
