//! timerfd: when it expires next, and what is not read yet.
//!
//! A relative one keeps the time that was left; time does not run while the tree is gone. One that was set to a moment of
//! its clock keeps the moment.

use super::Place;
use crate::proc::event as shown;
use crate::refusal::Refusals;
use crate::sys::event as sys;
use anyhow::{Context, Result};
use images::event::Timerfd;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, BorrowedFd};

/// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET.
const ABSTIME: u32 = 1;
const CANCEL_ON_SET: u32 = 2;

/// One that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    /// As it was when its descriptor was found.
    pub(super) first: shown::Timerfd,
}

/// Looks a second time. What was armed before and shows neither time left nor a new expiration is due this very moment;
/// by one look it could not be told from one that is not armed.
pub(super) fn dump(found: &Found, refusals: &mut Refusals) -> Result<Timerfd> {
    let Found { place, first } = found;
    let mut now = shown::timerfd(&place.look()?)?;
    let expired = now.left_ns == 0 && now.ticks > 0 && now.interval_ns > 0;
    if expired {
        // It counts no further expirations until it is read or asked: only so it tells how many there were.
        sys::advance_timer(place.copy()?.as_fd()).context("timerfd_gettime")?;
        now = shown::timerfd(&place.look()?)?;
    }
    let due = now.left_ns == 0 && (expired || first.left_ns > 0 && now.ticks == first.ticks);
    if now.flags & CANCEL_ON_SET != 0 && now.ticks > 0 {
        let reason = "may have been cancelled by a change of the clock (TFD_TIMER_CANCEL_ON_SET)";
        place.refuse(refusals, reason, "have the program read it before the dump");
    }
    let armed = now.left_ns > 0 || due;
    let from = if now.flags & ABSTIME == 0 { 0 } else { read_clock(now.clock)? };
    Ok(Timerfd {
        clock: now.clock,
        flags: now.flags,
        interval_ns: now.interval_ns,
        next_ns: if armed { from.saturating_add(now.left_ns).clamp(1, i64::MAX.cast_unsigned()) } else { 0 },
        ticks: now.ticks,
    })
}

/// The time of a timer's clock; those that wake the machine go by the ones that do not.
fn read_clock(clock: u32) -> Result<u64> {
    const REALTIME_ALARM: u32 = 8;
    const BOOTTIME_ALARM: u32 = 9;
    let id = match clock {
        REALTIME_ALARM => ClockId::CLOCK_REALTIME,
        BOOTTIME_ALARM => ClockId::CLOCK_BOOTTIME,
        other => ClockId::from_raw(other.cast_signed()),
    };
    let time = clock_gettime(id).with_context(|| format!("read clock {clock}"))?;
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(part(time.tv_sec()).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec())))
}

/// Sets a timer as it was.
pub(super) fn restore(timer: BorrowedFd<'_>, record: &Timerfd) -> Result<()> {
    sys::set_timer(timer, record.flags, record.next_ns, record.interval_ns).context("timerfd_settime")?;
    if record.ticks > 0 {
        sys::set_ticks(timer, record.ticks).context("TFD_IOC_SET_TICKS (needs CONFIG_CHECKPOINT_RESTORE)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::DescriptionId;
    use std::os::fd::{AsRawFd, OwnedFd};

    fn place(timer: &OwnedFd) -> Place {
        let own = std::process::id().cast_signed();
        let fd = timer.as_raw_fd().cast_unsigned();
        Place {
            id: DescriptionId(0),
            holder: (own, fd),
            task: (own, String::new()),
            object: String::new(),
            sent: None,
        }
    }

    fn dumped(timer: &OwnedFd) -> Timerfd {
        let place = place(timer);
        let first = shown::timerfd(&place.look().unwrap()).unwrap();
        let mut refusals = Refusals::default();
        let timer = dump(&Found { place, first }, &mut refusals).unwrap();
        refusals.finish("dump").unwrap();
        timer
    }

    #[test]
    fn expirations_that_nobody_asked_for_are_counted() {
        let timer = sys::timerfd(1).unwrap();
        sys::set_timer(timer.as_fd(), 0, 1, 1_000_000).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let found = dumped(&timer);
        assert!(found.ticks >= 18, "{found:?}");
        assert!((1..=1_000_000).contains(&found.next_ns), "{found:?}");
    }

    #[test]
    fn one_that_is_not_armed_stays_so() {
        let timer = sys::timerfd(1).unwrap();
        let expected = Timerfd { clock: 1, flags: 0, interval_ns: 0, next_ns: 0, ticks: 0 };
        assert_eq!(dumped(&timer), expected);
        let expected = Timerfd { interval_ns: 5, ..expected };
        sys::set_timer(timer.as_fd(), 0, 0, 5).unwrap();
        assert_eq!(dumped(&timer), expected);
    }

    #[test]
    fn moments_stay_moments() {
        let timer = sys::timerfd(0).unwrap();
        let moment = 4_000_000_000_000_000_000;
        sys::set_timer(timer.as_fd(), ABSTIME | CANCEL_ON_SET, moment, 0).unwrap();
        let found = dumped(&timer);
        // What is left and the clock are read one after the other.
        assert!((moment..moment + 1_000_000_000).contains(&found.next_ns), "{found:?}");
        assert_eq!(found.flags, ABSTIME | CANCEL_ON_SET);
    }
}
