//! `/proc/PID/fdinfo/N` of an eventfd, timerfd, signalfd, epoll or pidfd: the lines that only these have.

use super::{Malformed, decimal, hex, octal};

const fn bad(field: &'static str) -> Malformed {
    Malformed { file: "fdinfo", field }
}

/// What follows the name of a line.
pub(super) fn field<'a>(text: &'a [u8], name: &'static str) -> Option<&'a [u8]> {
    text.split(|&byte| byte == b'\n')
        .find_map(|line| Some(line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?.trim_ascii()))
}

fn required<'a>(text: &'a [u8], name: &'static str) -> Result<&'a [u8], Malformed> {
    field(text, name).ok_or(bad(name))
}

/// The counter of an eventfd, and whether it is a semaphore where the kernel tells (Linux 6.5).
///
/// # Errors
/// [`Malformed`] with the line.
pub fn eventfd(text: &[u8]) -> Result<(u64, Option<bool>), Malformed> {
    let count = hex(required(text, "eventfd-count")?).ok_or(bad("eventfd-count"))?;
    let semaphore = match field(text, "eventfd-semaphore") {
        None => None,
        Some(b"0") => Some(false),
        Some(b"1") => Some(true),
        Some(_) => return Err(bad("eventfd-semaphore")),
    };
    Ok((count, semaphore))
}

/// The signals that a signalfd takes, bit n for signal n + 1.
///
/// # Errors
/// [`Malformed`].
pub fn signalfd(text: &[u8]) -> Result<u64, Malformed> {
    hex(required(text, "sigmask")?).ok_or(bad("sigmask"))
}

/// The process that a pidfd refers to: -1 for one that is gone, 0 for one that is not to be seen from here.
///
/// # Errors
/// [`Malformed`].
pub fn pidfd(text: &[u8]) -> Result<i32, Malformed> {
    decimal(required(text, "Pid")?).ok_or(bad("Pid"))
}

/// A timerfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timerfd {
    /// CLOCK_*.
    pub clock: u32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Flags of the last timerfd_settime.
    pub flags: u32,
    /// Nanoseconds until it expires: 0 if it is not armed, and if it just has.
    pub left_ns: u64,
    /// Nanoseconds between expirations.
    pub interval_ns: u64,
}

/// Parses the lines of a timerfd.
///
/// # Errors
/// [`Malformed`] with the line.
pub fn timerfd(text: &[u8]) -> Result<Timerfd, Malformed> {
    let time = |name| nanoseconds(required(text, name)?).ok_or(bad(name));
    Ok(Timerfd {
        clock: decimal(required(text, "clockid")?).ok_or(bad("clockid"))?,
        ticks: decimal(required(text, "ticks")?).ok_or(bad("ticks"))?,
        flags: octal(required(text, "settime flags")?).ok_or(bad("settime flags"))?,
        left_ns: time("it_value")?,
        interval_ns: time("it_interval")?,
    })
}

/// `(seconds, nanoseconds)`.
fn nanoseconds(text: &[u8]) -> Option<u64> {
    let inner = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let comma = inner.iter().position(|&byte| byte == b',')?;
    let (seconds, nanos) = (decimal::<u64>(&inner[..comma])?, decimal::<u64>(&inner[comma + 1..])?);
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// What an epoll watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The number that it was added under.
    pub fd: u32,
    /// EPOLL*.
    pub events: u32,
    /// The caller's.
    pub data: u64,
    /// Inode and device of the file; the device as the kernel has it, major number from bit 20 on.
    pub inode: (u64, u64),
}

/// Parses the `tfd:` lines of an epoll, in the kernel's order.
///
/// # Errors
/// [`Malformed`].
pub fn watches(text: &[u8]) -> Result<Vec<Watch>, Malformed> {
    let lines = text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"tfd:"));
    lines.map(|line| watch(line).ok_or(bad("tfd"))).collect()
}

fn watch(line: &[u8]) -> Option<Watch> {
    let mut words = line.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let mut value = |name: &[u8]| (words.next()? == name).then(|| words.next())?;
    let (fd, events, data) = (value(b"tfd:")?, value(b"events:")?, value(b"data:")?);
    let mut last = |name: &[u8]| words.next()?.strip_prefix(name);
    last(b"pos:")?;
    Some(Watch {
        fd: decimal(fd)?,
        events: u32::try_from(hex(events)?).ok()?,
        data: hex(data)?,
        inode: (hex(last(b"ino:")?)?, hex(last(b"sdev:")?)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n";

    fn text(rest: &str) -> Vec<u8> {
        [HEAD, rest.as_bytes()].concat()
    }

    #[test]
    fn eventfds() {
        let now = "eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n";
        assert_eq!(eventfd(&text(now)), Ok((0x1f, Some(true))));
        assert_eq!(eventfd(&text("eventfd-count: fffffffffffffffe\n")), Ok((u64::MAX - 1, None)));
        assert!(eventfd(HEAD).is_err());
    }

    #[test]
    fn timerfds() {
        let captured =
            "clockid: 1\nticks: 7\nsettime flags: 03\nit_value: (99, 999797514)\nit_interval: (3, 4)\n";
        let expected =
            Timerfd { clock: 1, ticks: 7, flags: 3, left_ns: 99_999_797_514, interval_ns: 3_000_000_004 };
        assert_eq!(timerfd(&text(captured)), Ok(expected));
        assert!(timerfd(&text("clockid: 1\nticks: 7\nsettime flags: 03\nit_value: (99)\n")).is_err());
    }

    #[test]
    fn signalfds() {
        assert_eq!(signalfd(&text("sigmask:\t0000000000010000\n")), Ok(1 << 16));
    }

    #[test]
    fn pidfds() {
        assert_eq!(pidfd(&text("Pid:\t29565\nNSpid:\t29565\t3\n")), Ok(29565));
        assert_eq!(pidfd(&text("Pid:\t-1\nNSpid:\t-1\n")), Ok(-1));
        assert!(pidfd(HEAD).is_err());
    }

    #[test]
    fn epolls() {
        let captured = "tfd:        3 events: 40000000 data:                3  pos:0 ino:40e sdev:10\n\
             tfd:        5 events: 80000019 data: ffffffffffffffff  pos:-1 ino:40e sdev:10\n";
        let expected = [
            Watch { fd: 3, events: 0x4000_0000, data: 3, inode: (0x40e, 0x10) },
            Watch { fd: 5, events: 0x8000_0019, data: u64::MAX, inode: (0x40e, 0x10) },
        ];
        assert_eq!(watches(&text(captured)).unwrap(), expected);
        assert_eq!(watches(HEAD), Ok(vec![]));
        assert!(watches(b"tfd: 3 events: x data: 1\n").is_err());
    }
}
