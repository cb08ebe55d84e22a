//! What is in a queue. There is no way to look at a message but to receive it, so all are taken and sent again at once, by which they keep
//! their order: the first of the highest priority is received first, and the last sent of a priority is the last of it (msg_insert(), ipc/mqueue.c).
//!
//! Nobody may wait at the queue, who would get a message for good, or be told of one (mq_notify). What crr has taken is in its memory alone for
//! a moment: see `dump::guard`.

use crate::changed::Changed;
use crate::sys::mqueue as sys;
use anyhow::{Context, Result};
use images::mqueue::Message;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// Looks into a queue that is open in both directions, and does not block.
///
/// # Errors
/// If it cannot be emptied, or filled again; then the target has been changed.
pub(super) fn look(queue: BorrowedFd<'_>, size: u64) -> Result<Vec<Message>> {
    let mut buffer = vec![0; usize::try_from(size).context("mq_msgsize")?];
    let mut messages = Vec::new();
    let taken = loop {
        match sys::receive(queue, &mut buffer) {
            Ok((len, priority)) => messages.push(Message { priority, bytes: buffer[..len].to_vec() }),
            Err(Errno::EAGAIN) => break Ok(()),
            Err(errno) => break Err(errno),
        }
    };
    let filled = fill(queue, &messages);
    filled.context(Changed { how: "messages of a queue could not be sent back".to_owned() })?;
    taken.context("mq_receive")?;
    Ok(messages)
}

/// Sends messages, as far as that goes.
///
/// # Errors
/// As mq_send(3), for the first that is not sent.
pub(super) fn fill(queue: BorrowedFd<'_>, messages: &[Message]) -> nix::Result<()> {
    messages
        .iter()
        .map(|message| sys::send(queue, &message.bytes, message.priority))
        .fold(Ok(()), Result::and)
}
