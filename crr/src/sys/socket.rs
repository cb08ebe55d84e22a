//! Sockets: options as bytes, addresses as bytes, messages with whatever comes beside them.
//!
//! nix knows each option and each kind of ancillary data by a type of its own; here all of them pass through.
//!
//! # Safety
//! Every pointer leads to a live buffer whose length is given with it. Descriptors that arrive in a message are new
//! and ours.
#![allow(unsafe_code)]

use super::check;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for the value of an option; more where the kernel says so.
const OPTION_SIZE: usize = 256;
/// Room for what can come beside one message: SCM_MAX_FD descriptors, credentials, a label, time stamps.
const CONTROL_MAX: usize = 8192;
/// `struct cmsghdr` of x86_64: length, level, type.
const CONTROL_HEADER: usize = 16;

// include/linux/socket.h
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
const SCM_PIDFD: i32 = 4;

/// socket(2), of any kind. It closes on exec.
///
/// # Errors
/// As socket(2).
pub fn open(family: i32, kind: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    let made = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// getsockopt: the value as the kernel gives it. Not for SO_GET_FILTER, which counts in units of its own.
///
/// # Errors
/// ENOPROTOOPT, EOPNOTSUPP and what the option answers.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<Vec<u8>> {
    // Most are a number: each gets as much of the heap as it has, of the many that a dump asks for.
    let mut value = [0u8; OPTION_SIZE];
    match ask(fd, level, name, &mut value) {
        Ok(length) => Ok(value.get(..length).unwrap_or(&value).to_vec()),
        // SO_PEERGROUPS says how much room it needs.
        Err((Errno::ERANGE, needed)) if needed > OPTION_SIZE => {
            let mut value = vec![0u8; needed];
            let length = ask(fd, level, name, &mut value).map_err(|(errno, _)| errno)?;
            value.truncate(length);
            Ok(value)
        }
        Err((errno, _)) => Err(errno),
    }
}

/// getsockopt: the length of the value, also where there is no room for it.
fn ask(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> Result<usize, (Errno, usize)> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(|_| (Errno::EINVAL, 0))?;
    // SAFETY: the buffer has the length that is given.
    let asked = check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    });
    asked.map(|_| length as usize).map_err(|errno| (errno, length as usize))
}

/// getsockopt of an option whose value says what is asked about. As much as the kernel gives is changed.
///
/// # Errors
/// As getsockopt(2).
pub fn option_about(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> nix::Result<()> {
    ask(fd, level, name, value).map(drop).map_err(|(errno, _)| errno)
}

/// The network namespace that a socket belongs to (SIOCGSKNS).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn network(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: takes no argument.
    let namespace = check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// Instructions of the socket's filter; 0 without one.
///
/// # Errors
/// EACCES for a filter that cannot be read (eBPF).
pub fn filter_length(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    const SO_GET_FILTER: i32 = 26;
    let mut length = 0;
    // SAFETY: nothing is written but the length: sk_get_filter() in net/core/filter.c.
    check(unsafe {
        let null = std::ptr::null_mut();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_GET_FILTER, null, &raw mut length)
    })?;
    Ok(length)
}

/// getsockopt of an option that is one int.
///
/// # Errors
/// As [`option`].
pub fn number(fd: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<i32> {
    let value = option(fd, level, name)?;
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)
}

/// The instructions of the socket's filter, 8 bytes each.
///
/// # Errors
/// As [`filter_length`].
pub fn filter(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    const SO_GET_FILTER: i32 = 26;
    let count = filter_length(fd)?;
    let mut program = vec![0u8; count as usize * size_of::<libc::sock_filter>()];
    if count > 0 {
        let mut length = count;
        // SAFETY: there is room for as many instructions as are asked for.
        check(unsafe {
            let buffer = program.as_mut_ptr().cast();
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_GET_FILTER, buffer, &raw mut length)
        })?;
    }
    Ok(program)
}

/// SO_ATTACH_FILTER with what [`filter`] has given.
///
/// # Errors
/// EINVAL for what is no program, EPERM for a filter that is locked.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[u8]) -> nix::Result<()> {
    const SO_ATTACH_FILTER: i32 = 26;
    let count = program.len() / size_of::<libc::sock_filter>();
    let program = libc::sock_fprog {
        len: u16::try_from(count).map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the program has as many instructions as are said, and is only read.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    })
    .map(drop)
}

/// SO_DETACH_FILTER.
///
/// # Errors
/// ENOENT without a filter, EPERM for one that is locked.
pub fn detach_filter(fd: BorrowedFd<'_>) -> nix::Result<()> {
    const SO_DETACH_FILTER: i32 = 27;
    set_option(fd, libc::SOL_SOCKET, SO_DETACH_FILTER, &0i32.to_ne_bytes())
}

/// setsockopt.
///
/// # Errors
/// As setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the buffer has the length that is given.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length) }).map(drop)
}

/// The address of a socket (getsockname), without its family: empty for an unnamed unix socket. Paths end with a NUL.
///
/// # Errors
/// As getsockname(2).
pub fn local_address(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    address_by(|storage, length| {
        // SAFETY: the buffer has the length that is given; the kernel takes any alignment.
        unsafe { libc::getsockname(fd.as_raw_fd(), storage.cast(), length) }
    })
}

/// `struct sockaddr_un` with this sun_path, and its length.
fn unix_address(address: &[u8]) -> nix::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(|_| Errno::EINVAL)?;
    let mut whole = libc::sockaddr_un { sun_family: family, sun_path: [0; 108] };
    if address.len() > whole.sun_path.len() {
        return Err(Errno::EINVAL);
    }
    for (to, from) in whole.sun_path.iter_mut().zip(address) {
        *to = from.cast_signed();
    }
    // Abstract names have a length, paths an end; without either, the kernel chooses a name.
    let path = address.first().is_some_and(|byte| *byte != 0);
    let end = usize::from(path && address.len() < whole.sun_path.len());
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + address.len() + end;
    Ok((whole, libc::socklen_t::try_from(length).map_err(|_| Errno::EINVAL)?))
}

/// bind(2) of a unix socket; abstract names begin with a NUL, and the kernel chooses one in place of an empty name.
///
/// # Errors
/// As bind(2).
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> nix::Result<()> {
    let (whole, length) = unix_address(address)?;
    // SAFETY: the address lives and has at least the length that is given.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const whole).cast(), length) }).map(drop)
}

/// bind(2) of a packet socket, to all interfaces with 0.
///
/// # Errors
/// As bind(2).
pub fn bind_to_interface(fd: BorrowedFd<'_>, protocol: u16, interface: u32) -> nix::Result<()> {
    let whole = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).map_err(|_| Errno::EINVAL)?,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&whole)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the address lives and has the length that is given.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const whole).cast(), length) }).map(drop)
}

/// connect(2) of a unix socket.
///
/// # Errors
/// As connect(2).
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> nix::Result<()> {
    let (whole, length) = unix_address(address)?;
    // SAFETY: the address lives and has at least the length that is given.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const whole).cast(), length) }).map(drop)
}

/// accept(2), with the result in the place of another descriptor. It closes on exec.
///
/// # Errors
/// As accept(2).
pub fn accept(fd: BorrowedFd<'_>, place: &mut OwnedFd) -> nix::Result<()> {
    let none = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    let accepted =
        check(unsafe { libc::accept4(fd.as_raw_fd(), none, std::ptr::null_mut(), libc::SOCK_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    nix::unistd::dup3(&accepted, place, nix::fcntl::OFlag::O_CLOEXEC)
}

/// SIOCUNIXFILE: the file that a unix socket is bound to, opened with O_PATH.
///
/// # Errors
/// ENOENT if it is bound to none, EPERM without CAP_NET_ADMIN.
pub fn bound_file(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: takes no argument.
    let file = check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// The address of the peer (getpeername), without its family; of a peer that is closed, the one that it had.
///
/// # Errors
/// ENOTCONN.
pub fn peer_address(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    address_by(|storage, length| {
        // SAFETY: the buffer has the length that is given; the kernel takes any alignment.
        unsafe { libc::getpeername(fd.as_raw_fd(), storage.cast(), length) }
    })
}

/// Bytes that were sent and are still in the queue of the receiver, with the kernel's own overhead (SIOCOUTQ).
///
/// # Errors
/// As ioctl(2).
pub fn unreceived_bytes(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(bytes)
}

fn address_by(ask: impl FnOnce(*mut u8, *mut libc::socklen_t) -> i32) -> nix::Result<Vec<u8>> {
    let mut storage = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut length = libc::socklen_t::try_from(storage.len()).unwrap_or(0);
    check(ask(storage.as_mut_ptr(), &raw mut length))?;
    Ok(storage.get(2..length as usize).unwrap_or_default().to_vec())
}

/// Whether a byte that was sent out of band is what would be read next (SIOCATMARK).
///
/// # Errors
/// As ioctl(2).
pub fn at_mark(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    const SIOCATMARK: libc::c_ulong = 0x8905;
    let mut answer: libc::c_int = 0;
    // SAFETY: writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCATMARK, &raw mut answer) })?;
    Ok(answer != 0)
}

/// What poll(2) tells at once of reading, of urgent data, of the end and of errors: POLL*.
///
/// # Errors
/// As poll(2).
pub fn events(fd: BorrowedFd<'_>) -> nix::Result<i16> {
    let wanted = libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP;
    let mut asked = libc::pollfd { fd: fd.as_raw_fd(), events: wanted, revents: 0 };
    // SAFETY: one entry, which lives here.
    check(unsafe { libc::poll(&raw mut asked, 1, 0) })?;
    Ok(asked.revents)
}

/// A message as it was received.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes received; with MSG_TRUNC asked for, of a datagram those that it has.
    pub length: usize,
    /// MSG_* of the answer.
    pub flags: i32,
    /// Descriptors that came along.
    pub rights: Vec<OwnedFd>,
    /// The address of the sender, without its family.
    pub sender: Vec<u8>,
    /// Its family.
    pub sender_family: u16,
    /// Pid, user and group of the sender.
    pub credentials: Option<[i32; 3]>,
    /// Where a datagram was sent to (`struct sockaddr_in` or `sockaddr_in6`), where that is asked for (IP_RECVORIGDSTADDR).
    pub destination: Vec<u8>,
}

/// recvmsg into `buffer`. Descriptors that arrive close on exec.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> nix::Result<Received> {
    let mut control = vec![0u8; CONTROL_MAX];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut name = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut header = empty_header();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = libc::socklen_t::try_from(name.len()).unwrap_or(0);
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len();
    // SAFETY: the header names live buffers with their lengths.
    let length =
        check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags | libc::MSG_CMSG_CLOEXEC) })?;
    control.truncate(header.msg_controllen);
    let sender = name.get(2..header.msg_namelen as usize).unwrap_or_default().to_vec();
    let sender_family = if sender.is_empty() { 0 } else { u16::from_ne_bytes([name[0], name[1]]) };
    let (length, flags) = (length.unsigned_abs(), header.msg_flags);
    let mut received = Received { length, flags, sender, sender_family, ..Received::default() };
    for (level, kind, data) in control_messages(&control) {
        if let (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) | (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) =
            (level, kind)
        {
            received.destination = data.to_vec();
        }
        if level != libc::SOL_SOCKET {
            continue;
        }
        let words = data.chunks_exact(4).filter_map(|word| Some(i32::from_ne_bytes(*word.first_chunk()?)));
        match kind {
            SCM_RIGHTS => {
                // SAFETY: the kernel has just installed these descriptors here.
                received.rights.extend(words.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
            // SAFETY: as above. It is of no use and closed at once.
            SCM_PIDFD => words.filter(|fd| *fd >= 0).for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) })),
            SCM_CREDENTIALS => received.credentials = words.collect::<Vec<_>>().try_into().ok(),
            _ => {}
        }
    }
    Ok(received)
}

/// Bytes of a stream that lie in whole buffers of the kernel, as many as fit into `room` bytes: where the last of these
/// buffers ends. EFAULT if the first one does not fit.
///
/// recvmsg copies buffer by buffer, and at one that it cannot copy it stops with what it has copied until then
/// (`unix_stream_read_generic`, net/unix/af_unix.c). So there is room for so many bytes and then none that it can write to.
///
/// # Errors
/// As recvmsg(2).
pub fn whole_buffers(fd: BorrowedFd<'_>, room: usize, flags: i32) -> nix::Result<usize> {
    const NO_ROOM: usize = 1 << 30;
    let mut buffer = vec![0u8; room];
    let mut vectors = [
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room },
        // In the first page, which nobody can map (mmap_min_addr).
        libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: NO_ROOM },
    ];
    let mut header = empty_header();
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    // SAFETY: the first vector is a live buffer; in the second one the kernel finds nothing to write to.
    let length = check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) })?;
    Ok(length.unsigned_abs())
}

/// sendmsg of one message without blocking, to an address, or to the peer, with descriptors and a
/// sender (pid, user, group) beside it.
///
/// # Errors
/// As sendmsg(2).
pub fn send(
    fd: BorrowedFd<'_>,
    to: Option<&[u8]>,
    bytes: &[u8],
    rights: &[RawFd],
    credentials: Option<[i32; 3]>,
    flags: i32,
) -> nix::Result<usize> {
    let mut control = Vec::new();
    if !rights.is_empty() {
        add_control(&mut control, SCM_RIGHTS, rights);
    }
    if let Some(credentials) = credentials {
        add_control(&mut control, SCM_CREDENTIALS, &credentials);
    }
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = empty_header();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    let mut address = to.map(unix_address).transpose()?;
    if let Some((whole, length)) = &mut address {
        header.msg_name = (&raw mut *whole).cast();
        header.msg_namelen = *length;
    }
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len();
    }
    // SAFETY: the header names live buffers with their lengths; sending only reads them.
    let sent = check(unsafe {
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(fd.as_raw_fd(), &raw const header, flags)
    })?;
    Ok(sent.unsigned_abs())
}

fn empty_header() -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: std::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// The entries of a control buffer: level, type and data.
fn control_messages(mut control: &[u8]) -> Vec<(i32, i32, &[u8])> {
    let mut found = Vec::new();
    while let Some((length, rest)) = control.split_first_chunk::<8>() {
        let length = usize::from_ne_bytes(*length);
        let (Some(level), Some(data)) = (rest.first_chunk::<4>(), control.get(CONTROL_HEADER..length)) else {
            break;
        };
        let kind = rest.get(4..8).and_then(|kind| kind.first_chunk()).copied().unwrap_or_default();
        found.push((i32::from_ne_bytes(*level), i32::from_ne_bytes(kind), data));
        control = control.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    found
}

/// Adds an entry of level SOL_SOCKET to a control buffer.
fn add_control(control: &mut Vec<u8>, kind: i32, words: &[i32]) {
    let length = CONTROL_HEADER + words.len() * 4;
    control.extend_from_slice(&length.to_ne_bytes());
    control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.extend_from_slice(&kind.to_ne_bytes());
    control.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    control.resize(control.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_lies_beside_a_message_arrives() {
        let (a, b) = UnixStream::pair().unwrap();
        set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, &1i32.to_ne_bytes()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let me =
            [pid, nix::unistd::getuid().as_raw().cast_signed(), nix::unistd::getgid().as_raw().cast_signed()];
        assert_eq!(send(a.as_fd(), None, b"abc", &[a.as_raw_fd(), b.as_raw_fd()], Some(me), 0), Ok(3));
        let mut buffer = [0u8; 8];
        let received = receive(b.as_fd(), &mut buffer, libc::MSG_DONTWAIT).unwrap();
        assert_eq!((received.length, &buffer[..3]), (3, b"abc".as_slice()));
        assert_eq!((received.rights.len(), received.credentials), (2, Some(me)));
    }

    #[test]
    fn options_and_addresses_are_bytes() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(number(a.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE), Ok(libc::SOCK_STREAM));
        assert_eq!(option(a.as_fd(), libc::SOL_SOCKET, 4000), Err(Errno::ENOPROTOOPT));
        assert_eq!(local_address(a.as_fd()), Ok(Vec::new()));
    }
}
