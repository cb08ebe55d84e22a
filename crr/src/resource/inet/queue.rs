//! Datagrams that wait to be read, looked at without taking them out.

use super::address;
use crate::keeper::Keeper;
use crate::resource::socket::before::Before;
use crate::resource::socket::peek_offset;
use crate::sys::socket as sys;
use anyhow::{Context, Result};
use images::inet::Datagram;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

const PEEK: i32 = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;

/// The largest datagram.
const SIZE: usize = 1 << 16;

/// Options that have the kernel tell where a datagram was sent to.
const TELL: [(i32, i32); 2] =
    [(libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR), (libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR)];

/// Reads the queues of these sockets, which have no error to tell.
pub(super) fn read_all(sockets: &[BorrowedFd<'_>]) -> Result<Vec<Vec<Datagram>>> {
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let before = sockets.iter().map(|&socket| Before::of(socket, &TELL)).collect::<Result<Vec<_>>>()?;
    let _keeper = Keeper::new(|| before.iter().for_each(Before::put_back)).context("keep socket options")?;
    before.iter().map(read).collect()
}

fn read(before: &Before<BorrowedFd<'_>>) -> Result<Vec<Datagram>> {
    let socket = before.socket;
    for (level, name, _) in before.options() {
        sys::set_option(socket, *level, *name, &1i32.to_ne_bytes()).context("IP_RECVORIGDSTADDR")?;
    }
    let mut waiting = Vec::new();
    let mut buffer = vec![0u8; SIZE];
    let mut at = 0;
    loop {
        peek_offset::set(socket, i32::try_from(at)?)?;
        let received = match sys::receive(socket, &mut buffer, PEEK) {
            Err(Errno::EAGAIN) => return Ok(waiting),
            received => received?,
        };
        at += received.length;
        let sender = [received.sender_family.to_ne_bytes().as_slice(), &received.sender].concat();
        waiting.push(Datagram {
            sender: address::parse(&sender).context("a datagram without a sender")?,
            destination: address::parse(&received.destination).context("a datagram without a destination")?,
            bytes: buffer.get(..received.length).context("a datagram of more than 64 KiB")?.to_vec(),
        });
    }
}
