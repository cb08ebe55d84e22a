//! Options of SOL_SOCKET: read and set as they are, whatever they mean.

use crate::sys::socket as sys;
use anyhow::{Context, Result, bail};
use images::socket::SocketOption;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// How an option that getsockopt shows is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// setsockopt with the same value.
    Same,
    /// As [`How::Same`], by root also beyond the limit of the system; the kernel doubles what it is given.
    Buffer { force: i32 },
}

/// The options, by include/uapi/asm-generic/socket.h, in the order in which they are set: the sizes of buffers before
/// what says that they were chosen (SO_BUF_LOCK), what changes how messages are read after everything else.
const OPTIONS: [(i32, How); 38] = [
    (SO_SNDBUF, How::Buffer { force: 32 }),
    (SO_RCVBUF, How::Buffer { force: 33 }),
    (72, How::Same), // SO_BUF_LOCK
    (1, How::Same),  // SO_DEBUG
    (2, How::Same),  // SO_REUSEADDR
    (5, How::Same),  // SO_DONTROUTE
    (6, How::Same),  // SO_BROADCAST
    (9, How::Same),  // SO_KEEPALIVE
    (10, How::Same), // SO_OOBINLINE
    (11, How::Same), // SO_NO_CHECK
    (12, How::Same), // SO_PRIORITY
    (13, How::Same), // SO_LINGER
    (15, How::Same), // SO_REUSEPORT
    (16, How::Same), // SO_PASSCRED
    (18, How::Same), // SO_RCVLOWAT
    (20, How::Same), // SO_RCVTIMEO
    (21, How::Same), // SO_SNDTIMEO
    (29, How::Same), // SO_TIMESTAMP
    (35, How::Same), // SO_TIMESTAMPNS
    (63, How::Same), // SO_TIMESTAMP_NEW
    (64, How::Same), // SO_TIMESTAMPNS_NEW
    (34, How::Same), // SO_PASSSEC
    (36, How::Same), // SO_MARK
    (40, How::Same), // SO_RXQ_OVFL
    (41, How::Same), // SO_WIFI_STATUS
    (43, How::Same), // SO_NOFCS
    (45, How::Same), // SO_SELECT_ERR_QUEUE
    (46, How::Same), // SO_BUSY_POLL
    (47, How::Same), // SO_MAX_PACING_RATE
    (69, How::Same), // SO_PREFER_BUSY_POLL
    (75, How::Same), // SO_RCVMARK
    (76, How::Same), // SO_PASSPIDFD
    (82, How::Same), // SO_RCVPRIORITY
    (83, How::Same), // SO_PASSRIGHTS
    (44, How::Same), // SO_LOCK_FILTER
    (37, How::Same), // SO_TIMESTAMPING
    (65, How::Same), // SO_TIMESTAMPING_NEW
    (SO_PEEK_OFF, How::Same),
];

/// SO_SNDBUF.
pub(crate) const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
/// SO_PEEK_OFF.
pub(crate) const SO_PEEK_OFF: i32 = 42;
/// SO_SNDBUFFORCE.
pub(crate) const SO_SNDBUFFORCE: i32 = 32;

/// Reads all options that this kernel and this family know.
///
/// # Errors
/// What getsockopt answers other than that.
pub(crate) fn dump(socket: BorrowedFd<'_>) -> Result<Vec<SocketOption>> {
    let mut options = Vec::new();
    for (name, _) in OPTIONS {
        match sys::option(socket, libc::SOL_SOCKET, name) {
            Ok(value) => {
                let (level, name) = (libc::SOL_SOCKET.cast_unsigned(), name.cast_unsigned());
                options.push(SocketOption { level, name, value });
            }
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno).with_context(|| format!("getsockopt of option {name}")),
        }
    }
    Ok(options)
}

/// Sets those options that differ from what a socket has now.
///
/// # Errors
/// An option that this kernel does not take.
pub(crate) fn restore(socket: BorrowedFd<'_>, options: &[SocketOption]) -> Result<()> {
    for option in options {
        let (level, name) = (option.level.cast_signed(), option.name.cast_signed());
        let set = || -> Result<()> {
            if sys::option(socket, level, name).is_ok_and(|now| now == option.value) {
                return Ok(());
            }
            match OPTIONS.iter().find(|(known, _)| *known == name) {
                Some((_, How::Buffer { force })) => set_buffer(socket, *force, name, &option.value),
                Some((_, How::Same)) => Ok(sys::set_option(socket, level, name, &option.value)?),
                None => bail!("unknown"),
            }
        };
        set().with_context(|| format!("socket option {name}"))?;
    }
    Ok(())
}

/// What getsockopt shows is twice what setsockopt was given, or a lower limit.
fn set_buffer(socket: BorrowedFd<'_>, force: i32, name: i32, value: &[u8]) -> Result<()> {
    let wanted = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).context("not a number")?;
    let half = (wanted / 2).to_ne_bytes();
    sys::set_option(socket, libc::SOL_SOCKET, force, &half)?;
    let now = sys::number(socket, libc::SOL_SOCKET, name)?;
    if now != wanted {
        bail!("is {now} instead of {wanted} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn options_move_from_one_socket_to_another() {
        let (a, b) = UnixStream::pair().unwrap();
        let set = |name, value: i32| {
            sys::set_option(a.as_fd(), libc::SOL_SOCKET, name, &value.to_ne_bytes()).unwrap();
        };
        for (name, value) in [(7, 100_000), (12, 3), (16, 1), (18, 77), (SO_PEEK_OFF, 5), (64, 1)] {
            set(name, value);
        }
        let dumped = dump(a.as_fd()).unwrap();
        assert_ne!(dump(b.as_fd()).unwrap(), dumped);
        restore(b.as_fd(), &dumped).unwrap();
        assert_eq!(dump(b.as_fd()).unwrap(), dumped);
    }
}
