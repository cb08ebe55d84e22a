//! Message queues of System V.
//!
//! # Safety
//! The kernel reads and writes structures and messages of ours, of which it knows the size, or takes numbers alone.
#![allow(unsafe_code)]

use super::super::check;
use super::{NEW, by_creator};
use nix::errno::Errno;

/// Makes a queue with this key, permissions and creator.
///
/// # Errors
/// As setresuid(2) and msgget(2).
pub fn make(key: i32, mode: u32, creator: (u32, u32)) -> nix::Result<i32> {
    // SAFETY: plain numbers.
    by_creator(creator, || check(unsafe { libc::msgget(key, NEW | mode.cast_signed()) }))
}

/// Whether there are any queues in this IPC namespace. Takes one call, where to list none takes six.
#[must_use]
pub fn are_any() -> bool {
    // SAFETY: all zeros are such a record.
    let mut info: libc::msginfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a live record, by this command one of this kind.
    let last = unsafe { libc::msgctl(0, libc::MSG_INFO, (&raw mut info).cast()) };
    // msgctl_info() of ipc/msg.c: as a pool, it shows how many there are.
    last < 0 || info.msgpool != 0
}

/// How many bytes fit into a queue.
///
/// # Errors
/// EACCES; EINVAL or EIDRM when it is gone.
pub fn capacity(id: i32) -> nix::Result<u64> {
    // SAFETY: all zeros are such a record.
    let mut record: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a live record.
    check(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut record) })?;
    Ok(record.msg_qbytes)
}

/// Gives a queue this owner, these permissions and so much room.
///
/// # Errors
/// EPERM, for more room than kernel.msgmnb too; EINVAL when it is gone.
pub fn set(id: i32, (uid, gid): (u32, u32), mode: u32, capacity: u64) -> nix::Result<()> {
    // SAFETY: all zeros are such a record.
    let mut record: libc::msqid_ds = unsafe { std::mem::zeroed() };
    record.msg_perm.uid = uid;
    record.msg_perm.gid = gid;
    record.msg_perm.mode = mode.try_into().map_err(|_| Errno::EINVAL)?;
    record.msg_qbytes = capacity;
    // SAFETY: the kernel reads a live record.
    check(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut record) }).map(drop)
}

/// Takes a queue away.
///
/// # Errors
/// EPERM; EINVAL when it is gone.
pub fn remove(id: i32) -> nix::Result<()> {
    // SAFETY: this command takes no record.
    check(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Room for a message: its type, then its text.
#[derive(Debug)]
pub struct Buffer(Vec<u64>);

impl Buffer {
    /// For a text of so many bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self(vec![0; 1 + len.div_ceil(8)])
    }

    fn room(&self) -> usize {
        (self.0.len() - 1) * 8
    }

    /// Type and text of a message.
    fn message(&self, len: usize) -> (i64, Vec<u8>) {
        let text: Vec<u8> = self.0[1..].iter().flat_map(|word| word.to_ne_bytes()).take(len).collect();
        (self.0[0].cast_signed(), text)
    }
}

/// A copy of the message at this place of a queue, from 0: type and text (MSG_COPY, needs CONFIG_CHECKPOINT_RESTORE).
///
/// # Errors
/// ENOMSG behind the last one; E2BIG for a longer message than the buffer takes, EINVAL for a longer one than kernel.msgmax allows (do_msgrcv()
/// and copy_msg(), ipc/msg.c); EINVAL or EIDRM when it is gone; EACCES.
pub fn peek(id: i32, index: u64, buffer: &mut Buffer) -> nix::Result<(i64, Vec<u8>)> {
    const MSG_COPY: i32 = 0o40_000;
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    let index = i64::try_from(index).map_err(|_| Errno::ENOMSG)?;
    // SAFETY: the kernel writes a type and at most as many bytes as there is room for.
    let len = check(unsafe { libc::msgrcv(id, buffer.0.as_mut_ptr().cast(), buffer.room(), index, flags) })?;
    Ok(buffer.message(len.cast_unsigned()))
}

/// A message as msgsnd(2) reads it: its type, then its text.
#[derive(Debug)]
pub struct Outgoing(Vec<u8>);

impl Outgoing {
    /// Of this type and text.
    #[must_use]
    pub fn new(kind: i64, text: &[u8]) -> Self {
        Self([kind.to_ne_bytes().as_slice(), text].concat())
    }
}

/// Sends a message, if there is room for it. It is one call to the kernel and no more: who is a bare copy of a process can do it.
///
/// # Errors
/// EAGAIN if there is none; as msgsnd(2).
pub fn send(id: i32, Outgoing(message): &Outgoing) -> nix::Result<()> {
    let len = message.len() - size_of::<i64>();
    // SAFETY: the kernel reads the type and so many bytes.
    check(unsafe { libc::msgsnd(id, message.as_ptr().cast(), len, libc::IPC_NOWAIT) }).map(drop)
}

/// Takes a message without text out of a queue.
///
/// # Errors
/// ENOMSG; as msgrcv(2).
pub fn receive_empty(id: i32) -> nix::Result<()> {
    let mut kind = 0i64;
    // SAFETY: the kernel writes a type, and no text.
    check(unsafe { libc::msgrcv(id, (&raw mut kind).cast(), 0, 0, libc::IPC_NOWAIT) }).map(drop)
}
