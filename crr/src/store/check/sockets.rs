//! Unix sockets: that peers have each other, and that messages are what the kernel can deliver.

use super::{Check, ensure, inside};
use images::file::{Files, Target};
use images::socket::{Message, Peer, UnixKind, UnixSocket};
use std::collections::BTreeSet;

/// The kernel passes no more descriptors in one message (SCM_MAX_FD).
const DESCRIPTIONS_MAX: usize = 253;

pub(super) fn check(files: &Files) -> Check {
    for (index, socket) in files.unix_sockets.iter().enumerate() {
        check_socket(index, socket, files).map_err(inside(format_args!("socket#{index}")))?;
    }
    let mut open = BTreeSet::new();
    for description in &files.descriptions {
        if let Target::UnixSocket(index) = description.target {
            ensure!(open.insert(index), "socket#{index} has two descriptions");
        }
    }
    Ok(())
}

fn check_socket(index: usize, socket: &UnixSocket, files: &Files) -> Check {
    ensure!(socket.shutdown <= 3, "is shut down as {:#x}", socket.shutdown);
    match socket.peer {
        Peer::None => ensure!(socket.queue.is_empty(), "has messages that nobody can have sent"),
        Peer::Closed { .. } => {}
        Peer::Socket(peer) => {
            let other = files.unix_sockets.get(peer as usize);
            let mutual = other.is_some_and(|other| {
                peer as usize != index
                    && other.kind == socket.kind
                    && matches!(other.peer, Peer::Socket(back) if back as usize == index)
            });
            ensure!(mutual, "is connected to socket#{peer}, which is not connected to it");
        }
    }
    for option in &socket.options {
        ensure!(option.value.len() <= 256, "option {} has {} bytes", option.name, option.value.len());
    }
    for (number, message) in socket.queue.iter().enumerate() {
        check_message(socket.kind, message, files).map_err(inside(format_args!("message {number}")))?;
    }
    Ok(())
}

fn check_message(kind: UnixKind, message: &Message, files: &Files) -> Check {
    ensure!(i32::try_from(message.bytes.len()).is_ok(), "has {} bytes", message.bytes.len());
    ensure!(kind != UnixKind::Stream || !message.bytes.is_empty(), "is an empty part of a stream");
    let count = message.descriptions.len();
    ensure!(count <= DESCRIPTIONS_MAX, "carries {count} descriptions");
    for id in &message.descriptions {
        ensure!((id.0 as usize) < files.descriptions.len(), "{id} of {}", files.descriptions.len());
    }
    ensure!(message.credentials.is_none_or(|who| who.pid > 0), "was sent by no process");
    Ok(())
}
