//! TCP connections from inside: repair mode, by which they are looked at, made and closed without a word to the other end.
//!
//! Everything here is an option of IPPROTO_TCP (include/uapi/linux/tcp.h) that takes CAP_NET_ADMIN.
//!
//! # Safety
//! Every pointer leads to an int.
#![allow(unsafe_code)]

use super::{check, socket};
use images::inet::TcpWindow;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

const TCP_INFO: i32 = 11;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;

/// States of `tcpi_state`: include/net/tcp_states.h.
pub const ESTABLISHED: u8 = 1;
/// It has sent its SYN.
pub const SYN_SENT: u8 = 2;
/// The end of its stream is sent, and not acknowledged.
pub const FIN_WAIT1: u8 = 4;
/// … and acknowledged.
pub const FIN_WAIT2: u8 = 5;
/// Not connected, or no more.
pub const CLOSE: u8 = 7;
/// The other end has sent the end of its stream.
pub const CLOSE_WAIT: u8 = 8;
/// Both have; this one after the other.
pub const LAST_ACK: u8 = 9;
/// Listens.
pub const LISTEN: u8 = 10;
/// Both have, at the same time.
pub const CLOSING: u8 = 11;

/// What a state is called by those who look at connections (ss, netstat).
#[must_use]
pub fn name(state: u8) -> &'static str {
    match state {
        ESTABLISHED => "ESTABLISHED",
        SYN_SENT => "SYN-SENT",
        FIN_WAIT1 => "FIN-WAIT-1",
        FIN_WAIT2 => "FIN-WAIT-2",
        CLOSE => "CLOSED",
        CLOSE_WAIT => "CLOSE-WAIT",
        LAST_ACK => "LAST-ACK",
        LISTEN => "LISTEN",
        CLOSING => "CLOSING",
        _ => "in another state",
    }
}

/// What repair mode becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// On.
    On,
    /// Off; the other end is asked for a sign of life, and so told the present window.
    Off,
    /// Off, without a word.
    OffSilently,
}

/// Which of the two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// What was received and not read.
    Receive,
    /// What was written and not acknowledged.
    Send,
}

fn number(fd: BorrowedFd<'_>, name: i32) -> nix::Result<u32> {
    socket::number(fd, libc::IPPROTO_TCP, name).map(i32::cast_unsigned)
}

fn set(fd: BorrowedFd<'_>, name: i32, value: i32) -> nix::Result<()> {
    socket::set_option(fd, libc::IPPROTO_TCP, name, &value.to_ne_bytes())
}

/// The part of `struct tcp_info` that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// `tcpi_state`.
    pub state: u8,
    /// Time stamps are sent.
    pub timestamps: bool,
    /// Selective acknowledgements are.
    pub sack: bool,
    /// Shifts of the windows sent and received, if they are shifted.
    pub window_scale: Option<(u8, u8)>,
    /// Of a listening socket: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listening socket: its backlog.
    pub backlog: u32,
}

/// TCP_INFO.
///
/// # Errors
/// ENOPROTOOPT if it is no TCP socket.
pub fn info(fd: BorrowedFd<'_>) -> nix::Result<Info> {
    const TIMESTAMPS: u8 = 1;
    const SACK: u8 = 2;
    const WINDOW_SCALE: u8 = 4;
    let value = socket::option(fd, libc::IPPROTO_TCP, TCP_INFO)?;
    let byte = |at: usize| value.get(at).copied().ok_or(Errno::EINVAL);
    let word = |at: usize| -> nix::Result<u32> {
        let bytes = value.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Errno::EINVAL)?;
        Ok(u32::from_ne_bytes(*bytes))
    };
    let (options, shifts) = (byte(5)?, byte(6)?);
    Ok(Info {
        state: byte(0)?,
        timestamps: options & TIMESTAMPS != 0,
        sack: options & SACK != 0,
        window_scale: (options & WINDOW_SCALE != 0).then_some((shifts & 15, shifts >> 4)),
        waiting: word(24)?,
        backlog: word(28)?,
    })
}

/// TCP_REPAIR. Switching it off forgets SO_REUSEADDR.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, or if it listens.
pub fn repair(fd: BorrowedFd<'_>, to: Repair) -> nix::Result<()> {
    set(
        fd,
        TCP_REPAIR,
        match to {
            Repair::On => 1,
            Repair::Off => 0,
            Repair::OffSilently => -1,
        },
    )
}

/// Says which queue is meant by what follows: its sequence number, receiving and sending.
///
/// # Errors
/// EPERM outside of repair mode.
pub fn choose(fd: BorrowedFd<'_>, queue: Queue) -> nix::Result<()> {
    set(
        fd,
        TCP_REPAIR_QUEUE,
        match queue {
            Queue::Receive => 1,
            Queue::Send => 2,
        },
    )
}

/// The sequence number behind the last byte of the chosen queue.
///
/// # Errors
/// EINVAL if none is chosen.
pub fn sequence(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    number(fd, TCP_QUEUE_SEQ)
}

/// Sets it, before the socket is connected.
///
/// # Errors
/// EPERM.
pub fn set_sequence(fd: BorrowedFd<'_>, to: u32) -> nix::Result<()> {
    set(fd, TCP_QUEUE_SEQ, to.cast_signed())
}

/// The clock that time stamps are of.
///
/// # Errors
/// As getsockopt(2).
pub fn timestamp(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    number(fd, TCP_TIMESTAMP)
}

/// Sets it.
///
/// # Errors
/// EPERM outside of repair mode.
pub fn set_timestamp(fd: BorrowedFd<'_>, to: u32) -> nix::Result<()> {
    set(fd, TCP_TIMESTAMP, to.cast_signed())
}

/// TCP_MAXSEG: in repair mode the largest segment that the other end takes.
///
/// # Errors
/// As getsockopt(2).
pub fn mss(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    const TCP_MAXSEG: i32 = 2;
    number(fd, TCP_MAXSEG)
}

/// TCP_REPAIR_OPTIONS: pairs of a TCP option's number and its value.
///
/// # Errors
/// EPERM unless in repair mode and connected.
pub fn set_agreed(fd: BorrowedFd<'_>, options: &[(u32, u32)]) -> nix::Result<()> {
    let bytes: Vec<u8> =
        options.iter().flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat()).collect();
    socket::set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_OPTIONS, &bytes)
}

/// TCP_REPAIR_WINDOW.
///
/// # Errors
/// EPERM outside of repair mode.
pub fn window(fd: BorrowedFd<'_>) -> nix::Result<TcpWindow> {
    // The kernel insists on the size.
    let mut value = [0u8; 20];
    socket::option_about(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &mut value)?;
    let mut words = value.chunks_exact(4).filter_map(|word| Some(u32::from_ne_bytes(*word.first_chunk()?)));
    let mut next = || words.next().ok_or(Errno::EINVAL);
    Ok(TcpWindow {
        snd_wl1: next()?,
        snd_wnd: next()?,
        max_window: next()?,
        rcv_wnd: next()?,
        rcv_wup: next()?,
    })
}

/// Sets it.
///
/// # Errors
/// EINVAL if it does not go with the sequence numbers, EPERM.
pub fn set_window(fd: BorrowedFd<'_>, to: &TcpWindow) -> nix::Result<()> {
    let words = [to.snd_wl1, to.snd_wnd, to.max_window, to.rcv_wnd, to.rcv_wup];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    socket::set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &bytes)
}

/// Sequence numbers written and not yet sent, the end of the stream included (SIOCOUTQNSD).
///
/// # Errors
/// As ioctl(2).
pub fn unsent(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    let mut count: libc::c_int = 0;
    // SAFETY: writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCOUTQNSD, &raw mut count) })?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Sequence numbers written and not yet acknowledged, the end of the stream included (SIOCOUTQ).
///
/// # Errors
/// As ioctl(2).
pub fn unacknowledged(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    Ok(u32::try_from(socket::unreceived_bytes(fd)?).unwrap_or(0))
}
