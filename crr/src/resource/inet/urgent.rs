//! Urgent data of TCP (MSG_OOB): a byte in the stream before which reading stops, and which can be read on its own.
//!
//! The kernel shows where it is only by what it does (net/ipv4/tcp.c): tcp_recv_urg() gives the byte where it is not read in line (SO_OOBINLINE) and was not
//! read yet, tcp_ioctl() counts what is to be read up to it (SIOCINQ, not in line), and tcp_recvmsg_locked() stops at it. So sockets are in line while
//! they are looked at, for all bytes to be counted and looked at.

use super::inject::{Injector, arrives, off_its_device};
use super::stream;
use crate::keeper::Keeper;
use crate::resource::socket::before::Before;
use crate::resource::socket::peek_offset;
use crate::sys::{pipe, socket as sys};
use anyhow::{Context, Result, bail};
use images::inet::{InetAddress, TcpConnection, TcpUrgent};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// What looking changes.
pub(super) const CHANGED: (i32, i32) = (libc::SOL_SOCKET, libc::SO_OOBINLINE);

/// What tcp_recv_urg() tells of a socket that is not read in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There is none, or it was read.
    Nothing,
    /// It is there.
    Byte(u8),
    /// It is on its way.
    Announced,
    /// It is there, of a connection that has ended: nobody gets it any more.
    Lost,
}

/// Asks a socket for urgent data.
///
/// # Errors
/// As recv(2).
pub(super) fn told(fd: BorrowedFd<'_>) -> nix::Result<Told> {
    match peek_out_of_band(fd) {
        Ok(Some(byte)) => Ok(Told::Byte(byte)),
        Ok(None) | Err(Errno::EAGAIN) => Ok(Told::Announced),
        Err(Errno::EINVAL) => Ok(Told::Nothing),
        Err(Errno::ENOTCONN) => Ok(Told::Lost),
        Err(errno) => Err(errno),
    }
}

/// The urgent byte of a socket that is not read in line.
fn peek_out_of_band(fd: BorrowedFd<'_>) -> nix::Result<Option<u8>> {
    let mut byte = [0];
    let flags = libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let received = sys::receive(fd, &mut byte, flags)?;
    Ok((received.length == 1).then_some(byte[0]))
}

fn set_in_line(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    sys::set_option(fd, CHANGED.0, CHANGED.1, &i32::from(on).to_ne_bytes()).context("SO_OOBINLINE")
}

/// What was received and not read, and the byte in it that was sent as urgent. What is changed for that is for the caller to put back.
pub(super) fn look<S: AsFd>(one: &Before<S>) -> Result<(Vec<u8>, Option<TcpUrgent>)> {
    let fd = one.socket.as_fd();
    set_in_line(fd, false)?;
    let told = told(fd).context("look for urgent data")?;
    set_in_line(fd, true)?;
    if one.has_peek_offset() {
        peek_offset::set(fd, 0).context("SO_PEEK_OFF")?;
    }
    let bytes = pipe::readable_bytes(fd).context("FIONREAD")?;
    let mut incoming = stream::peek_some(fd, bytes)?;
    let mark = match incoming.len() {
        _ if sys::at_mark(fd).context("SIOCATMARK")? => Some(0),
        length => (length < bytes).then_some(length),
    };
    match (mark, told) {
        (Some(length), Told::Byte(byte)) if is_last(length, bytes) => incoming.push(byte),
        (Some(length), _) if length > 0 => {
            peek_offset::set(fd, i32::try_from(length)?).context("look behind urgent data (SO_PEEK_OFF)")?;
            incoming.extend(stream::peek(fd, bytes - length)?);
        }
        _ => {}
    }
    let urgent = match (mark, told) {
        (Some(at), Told::Nothing | Told::Byte(_)) if at < bytes => {
            Some(TcpUrgent { at: u32::try_from(at)?, read: told == Told::Nothing })
        }
        (None, Told::Nothing) => None,
        _ => bail!("urgent data is announced, or arrived before others: dump again"),
    };
    Ok((incoming, urgent))
}

/// Whether the urgent byte, with so many before it, is the last of all and not the only one: then it can be looked at on its own.
const fn is_last(before: usize, bytes: usize) -> bool {
    before > 0 && before + 1 == bytes
}

/// Where there is urgent data, read or not, in what a socket has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    /// Where it can be looked at.
    AtAnEnd,
    /// Before others, and behind some: they are looked at by SO_PEEK_OFF.
    Within,
}

/// Where these sockets have urgent data.
pub(super) fn among(sockets: &[BorrowedFd<'_>]) -> Result<Vec<Place>> {
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let before = sockets.iter().map(|&fd| Before::of(fd, &[CHANGED])).collect::<Result<Vec<_>>>()?;
    let _keeper = Keeper::new(|| before.iter().for_each(Before::put_back)).context("keep SO_OOBINLINE")?;
    let place = |&fd: &BorrowedFd<'_>| -> Result<Place> {
        let readable = || pipe::readable_bytes(fd).context("FIONREAD");
        // All first: what comes in between is not taken for what is behind urgent data.
        set_in_line(fd, true)?;
        let bytes = readable()?;
        set_in_line(fd, false)?;
        let (told, up_to_it) = (told(fd).context("look for urgent data")?, readable()?);
        set_in_line(fd, true)?;
        let is_within =
            (1..bytes).contains(&up_to_it) && !(matches!(told, Told::Byte(_)) && is_last(up_to_it, bytes));
        let is_there = told != Told::Nothing || up_to_it < bytes || sys::at_mark(fd).context("SIOCATMARK")?;
        Ok(match (is_within, is_there) {
            (true, _) => Place::Within,
            (false, true) => Place::AtAnEnd,
            (false, false) => Place::Nowhere,
        })
    };
    sockets.iter().map(place).collect()
}

/// Brings the urgent byte to a connection in repair mode that has received what is before it.
pub(super) fn bring(
    fd: BorrowedFd<'_>,
    (local, peer): (&InetAddress, &InetAddress),
    connection: &TcpConnection,
    urgent: TcpUrgent,
) -> Result<()> {
    let arrived = off_its_device(fd, |_| {
        Injector::default().urgent(local, peer, connection, urgent)?;
        arrives(fd, libc::POLLPRI)
    });
    if !arrived? {
        bail!("urgent data does not arrive");
    }
    if urgent.read {
        let in_line = sys::number(fd, CHANGED.0, CHANGED.1).context("SO_OOBINLINE")? != 0;
        set_in_line(fd, false)?;
        sys::receive(fd, &mut [0], libc::MSG_OOB | libc::MSG_DONTWAIT).context("read urgent data")?;
        set_in_line(fd, in_line)?;
    }
    Ok(())
}
