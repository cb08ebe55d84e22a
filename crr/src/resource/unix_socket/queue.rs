//! What waits in the queues of unix sockets, read without taking it out.
//!
//! One look with MSG_PEEK shows all of a stream, unless descriptors or other credentials lie in it: these end a look, and
//! what is behind them is seen only with an offset (SO_PEEK_OFF), as are all datagrams but the first.

use crate::keeper::Keeper;
use crate::resource::socket::before::Before;
use crate::resource::socket::peek_offset;
use crate::sys::{pipe, socket as sys};
use anyhow::{Context, Result, bail};
use images::socket::{Credentials, UnixKind};
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

const PEEK: i32 = libc::MSG_PEEK | libc::MSG_DONTWAIT;

/// Room for a datagram; more where one is larger.
const DATAGRAM_SIZE: usize = 256 << 10;

/// A message that waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) bytes: Vec<u8>,
    /// Of a datagram, the address of the sender.
    pub(super) sender: Vec<u8>,
    pub(super) credentials: Option<Credentials>,
    /// Our own descriptors of what is on its way.
    pub(super) rights: Vec<OwnedFd>,
    /// It is the one byte that was sent with MSG_OOB.
    pub(super) out_of_band: bool,
}

/// Why a queue cannot be read without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The error that waits to be told would be lost (`__skb_try_recv_datagram`, net/core/datagram.c).
    Error,
    /// A byte sent with MSG_OOB, and several places where it may be.
    OutOfBand,
}

/// Whether an error waits to be told. Asking for it (SO_ERROR) would take it.
pub(super) fn has_error(socket: BorrowedFd<'_>) -> Result<bool> {
    Ok(sys::events(socket).context("poll")? & libc::POLLERR != 0)
}

/// Reads the queues of sockets that do not listen, each by its kind, in order.
pub(super) fn read_all(
    sockets: &[(BorrowedFd<'_>, UnixKind)],
) -> Result<Vec<std::result::Result<Vec<Waiting>, Obstacle>>> {
    let mut read = Vec::with_capacity(sockets.len());
    let mut left = Vec::new();
    for (index, &(socket, kind)) in sockets.iter().enumerate() {
        let at_once = look(socket, kind)?;
        if matches!(at_once, Look::More) {
            left.push(index);
        }
        read.push(match at_once {
            Look::All(waiting) => Ok(waiting),
            Look::More => Ok(Vec::new()),
            Look::Never(obstacle) => Err(obstacle),
        });
    }
    if left.is_empty() {
        return Ok(read);
    }
    let before = left.iter().map(|&index| Before::of(sockets[index].0, &[])).collect::<Result<Vec<_>>>()?;
    let _keeper =
        Keeper::new(|| before.iter().for_each(Before::put_back)).context("keep the peek offsets")?;
    for index in left {
        let (socket, kind) = sockets[index];
        let marked = |events: i16| events & libc::POLLPRI != 0;
        let waiting = match kind {
            UnixKind::Stream if marked(sys::events(socket).context("poll")?) => read_marked_stream(socket),
            UnixKind::Stream => read_stream(socket).map(Some),
            UnixKind::Datagram | UnixKind::Seqpacket => read_datagrams(socket).map(Some),
        };
        read[index] = waiting.context("read its queue")?.ok_or(Obstacle::OutOfBand);
    }
    Ok(read)
}

/// What a look without an offset shows.
enum Look {
    All(Vec<Waiting>),
    More,
    Never(Obstacle),
}

fn look(socket: BorrowedFd<'_>, kind: UnixKind) -> Result<Look> {
    let events = sys::events(socket).context("poll")?;
    let has = |event| events & event != 0;
    if kind != UnixKind::Stream {
        // A socket that receives nothing more is always readable: what it answers then is its own affair.
        if !has(libc::POLLIN) {
            return Ok(Look::All(Vec::new()));
        }
        if !has(libc::POLLERR) {
            return Ok(Look::More);
        }
        let ended = has(libc::POLLRDHUP) && pipe::readable_bytes(socket).context("FIONREAD")? == 0;
        return Ok(if ended { Look::All(Vec::new()) } else { Look::Never(Obstacle::Error) });
    }
    if has(libc::POLLPRI) {
        return Ok(Look::More);
    }
    // Receiving from an empty queue would take the error that waits.
    let bytes = pipe::readable_bytes(socket).context("FIONREAD")?;
    if bytes == 0 {
        return Ok(Look::All(Vec::new()));
    }
    if peek_offset::get(socket).context("SO_PEEK_OFF")? >= 0 {
        return Ok(Look::More);
    }
    let mut buffer = vec![0u8; bytes];
    let received = sys::receive(socket, &mut buffer, PEEK).context("read its queue")?;
    if received.length < bytes || !received.rights.is_empty() {
        return Ok(Look::More);
    }
    Ok(Look::All(vec![Waiting { bytes: buffer, credentials: credentials(&received), ..Waiting::default() }]))
}

/// The sender, where the kernel knows one.
fn credentials(received: &sys::Received) -> Option<Credentials> {
    let [pid, uid, gid] = received.credentials?;
    // Nobody, and the ids that are shown for those that have none here.
    (pid != 0).then_some(Credentials { pid, uid: uid.cast_unsigned(), gid: gid.cast_unsigned() })
}

/// A stream in which a byte was sent out of band; `None` if that can be one of several. What manage_oob() of net/unix/af_unix.c does: a look ends before that byte;
/// one that begins with it passes it over, and counts offsets behind it, unless it is to be read with the others (SO_OOBINLINE).
fn read_marked_stream(socket: BorrowedFd<'_>) -> Result<Option<Vec<Waiting>>> {
    let total = pipe::readable_bytes(socket).context("FIONREAD")?;
    let mut byte = [0];
    let (inline, credentials) = match sys::receive(socket, &mut byte, PEEK | libc::MSG_OOB) {
        Err(Errno::EINVAL) => (true, None),
        told => (false, credentials(&told.context("MSG_OOB")?)),
    };
    let at_mark = sys::at_mark(socket).context("SIOCATMARK")?;
    if at_mark && !inline {
        let mut waiting =
            vec![Waiting { bytes: byte.to_vec(), credentials, out_of_band: true, ..Waiting::default() }];
        waiting.extend(read_bytes(socket, total.saturating_sub(1))?);
        return Ok(Some(waiting));
    }
    let mut waiting = read_bytes(socket, total)?;
    let mut at = 0;
    let mut places = Vec::new();
    for (index, one) in waiting.iter().enumerate() {
        let possible =
            if at_mark { at == 0 } else { at > 0 && (inline || one.bytes.first() == Some(&byte[0])) };
        if possible && is_alone(socket, at)? {
            places.push(index);
        }
        at += one.bytes.len();
    }
    let [place] = places[..] else { return Ok(None) };
    let Some(one) = waiting.get_mut(place).filter(|one| one.rights.is_empty()) else { return Ok(None) };
    let rest = one.bytes.split_off(1);
    let credentials = one.credentials;
    one.out_of_band = true;
    if !rest.is_empty() {
        waiting.insert(place + 1, Waiting { bytes: rest, credentials, ..Waiting::default() });
    }
    Ok(Some(waiting))
}

/// Whether the byte at an offset is all of one of the kernel's buffers.
fn is_alone(socket: BorrowedFd<'_>, at: usize) -> Result<bool> {
    peek_offset::set(socket, i32::try_from(at)?)?;
    match sys::whole_buffers(socket, 1, PEEK) {
        Err(Errno::EFAULT) => Ok(false),
        whole => Ok(whole? == 1),
    }
}

/// A stream, cut where descriptors come along and where the sender changes.
fn read_stream(socket: BorrowedFd<'_>) -> Result<Vec<Waiting>> {
    read_bytes(socket, pipe::readable_bytes(socket).context("FIONREAD")?)
}

/// As [`read_stream`], so many bytes, which is all.
fn read_bytes(socket: BorrowedFd<'_>, total: usize) -> Result<Vec<Waiting>> {
    let mut buffer = vec![0u8; total];
    let mut waiting = Vec::new();
    let mut at = 0;
    while at < total {
        peek_offset::set(socket, i32::try_from(at)?)?;
        let received = sys::receive(socket, &mut buffer[at..], PEEK)?;
        let end = at + received.length;
        if received.length == 0 {
            bail!("{at} of {total} bytes are there");
        }
        // A look ends behind the buffer that descriptors came with; they are received with its first byte.
        let start =
            if received.rights.is_empty() { at } else { at + last_buffer(socket, at, received.length)? };
        let credentials = credentials(&received);
        if start > at {
            let bytes = buffer[at..start].to_vec();
            waiting.push(Waiting { bytes, credentials, ..Waiting::default() });
        }
        let bytes = buffer[start..end].to_vec();
        waiting.push(Waiting { bytes, credentials, rights: received.rights, ..Waiting::default() });
        at = end;
    }
    Ok(waiting)
}

/// Where the last of the kernel's buffers begins in what a look from `at` on shows.
fn last_buffer(socket: BorrowedFd<'_>, at: usize, length: usize) -> Result<usize> {
    peek_offset::set(socket, i32::try_from(at)?)?;
    match sys::whole_buffers(socket, length - 1, PEEK) {
        Err(Errno::EFAULT) => Ok(0),
        whole => Ok(whole?),
    }
}

/// Datagrams, whole ones. One without contents that was peeked at before, with an offset, is passed over by the kernel.
fn read_datagrams(socket: BorrowedFd<'_>) -> Result<Vec<Waiting>> {
    let mut waiting = Vec::new();
    let mut buffer = vec![0u8; DATAGRAM_SIZE];
    // To an empty queue that gets nothing more, SOCK_SEQPACKET answers with nothing instead of EAGAIN.
    let ended = sys::events(socket).context("poll")? & libc::POLLRDHUP != 0;
    let mut at = 0;
    loop {
        peek_offset::set(socket, i32::try_from(at)?)?;
        let received = match sys::receive(socket, &mut buffer, PEEK | libc::MSG_TRUNC) {
            Err(Errno::EAGAIN) => return Ok(waiting),
            received => received?,
        };
        if received.length > buffer.len() {
            buffer.resize(received.length, 0);
            continue;
        }
        if received.length == 0 && ended {
            return Ok(waiting);
        }
        at += received.length;
        let bytes = buffer[..received.length].to_vec();
        let sender = super::name(&received.sender);
        let credentials = credentials(&received);
        waiting.push(Waiting { bytes, sender, credentials, rights: received.rights, out_of_band: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn read(socket: BorrowedFd<'_>, kind: UnixKind) -> Vec<(Vec<u8>, usize)> {
        let read = read_all(&[(socket, kind)]).unwrap().remove(0).unwrap();
        assert_eq!(peek_offset::get(socket), Ok(-1));
        read.into_iter().map(|waiting| (waiting.bytes, waiting.rights.len())).collect()
    }

    #[test]
    fn a_stream_is_cut_where_descriptors_lie() {
        let (a, b) = UnixStream::pair().unwrap();
        let send = |bytes: &[u8], rights: &[i32]| sys::send(a.as_fd(), None, bytes, rights, None, 0).unwrap();
        assert!(read(b.as_fd(), UnixKind::Stream).is_empty());
        send(b"abc", &[]);
        send(b"de", &[]);
        assert_eq!(read(b.as_fd(), UnixKind::Stream), [(b"abcde".to_vec(), 0)]);
        send(b"fghi", &[a.as_raw_fd(), b.as_raw_fd()]);
        send(b"j", &[a.as_raw_fd()]);
        send(b"kl", &[]);
        let parts = [("abcde", 0), ("fghi", 2), ("j", 1), ("kl", 0)];
        let parts = parts.map(|(bytes, rights)| (bytes.as_bytes().to_vec(), rights));
        assert_eq!(read(b.as_fd(), UnixKind::Stream), parts);
        assert_eq!(read(b.as_fd(), UnixKind::Stream), parts, "the second time");
    }

    #[test]
    fn datagrams_keep_their_boundaries() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for message in [&b""[..], &[7; 100_000], b"", b"abc"] {
            a.send(message).unwrap();
        }
        let lengths: Vec<usize> =
            read(b.as_fd(), UnixKind::Datagram).iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(lengths, [0, 100_000, 0, 3]);
        let mut buffer = [0; 10];
        assert_eq!(b.recv(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn offsets_are_put_back_if_the_reader_dies() {
        let (a, b) = UnixDatagram::pair().unwrap();
        a.send(b"abc").unwrap();
        peek_offset::set(b.as_fd(), 2).unwrap();
        // SIGKILL between the change and the end of the reading.
        let child = crate::sys::process::fork(0).unwrap();
        let Some(child) = child else {
            let before = Before::of(b.as_fd(), &[]).unwrap();
            let _keeper = Keeper::new(|| before.put_back());
            let _ = peek_offset::set(b.as_fd(), 0);
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            crate::sys::process::exit(1)
        };
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while peek_offset::get(b.as_fd()) != Ok(2) {
            assert!(std::time::Instant::now() < until, "the offset stays changed");
            std::thread::yield_now();
        }
    }
}
