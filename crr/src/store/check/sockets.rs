//! Unix sockets: that peers have each other, and that messages are what the kernel can deliver.

use super::{Check, ensure, inet, inside};
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
    check_address(&socket.address)?;
    if let Some(file) = &socket.file {
        ensure!(socket.address.first().is_some_and(|byte| *byte != 0), "has a file and no path");
        ensure!(
            file.path.first() == Some(&b'/') && !file.path.contains(&0),
            "has a file that is no absolute path"
        );
        ensure!(file.path.len() < 4096, "has a file with a path of {} bytes", file.path.len());
    }
    let bound = socket.kind == UnixKind::Datagram && !socket.address.is_empty();
    let sockets = &files.unix_sockets;
    match &socket.peer {
        Peer::None => ensure!(socket.queue.is_empty() || bound, "has messages that nobody can have sent"),
        Peer::Closed { address, .. } => check_address(address).map_err(inside("its peer"))?,
        Peer::Listening { waiting, .. } => {
            ensure!(socket.queue.is_empty(), "has messages and listens");
            ensure!(socket.kind != UnixKind::Datagram, "listens for datagrams");
            ensure!(!socket.address.is_empty(), "listens without an address");
            for &client in waiting {
                let back = sockets.get(client as usize).map(|client| &client.peer);
                let waits =
                    matches!(back, Some(Peer::Waiting { listener, .. }) if *listener as usize == index);
                ensure!(waits, "waits for socket#{client}, which does not wait for it");
            }
        }
        Peer::Waiting { listener, .. } => {
            ensure!(socket.queue.is_empty(), "has messages before it was accepted");
            let back = sockets.get(*listener as usize).map(|listener| &listener.peer);
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let listens = matches!(back, Some(Peer::Listening { waiting, .. })
                if waiting.iter().filter(|client| **client == index).count() == 1);
            ensure!(listens, "waits at socket#{listener}, which does not listen for it");
        }
        Peer::Elsewhere { address, connector } => {
            check_address(address).map_err(inside("its peer"))?;
            ensure!(matches!(address.first(), Some(0 | b'/')), "is to be connected to no absolute path");
            ensure!(socket.queue.is_empty(), "has messages from one that it is to be connected to again");
            ensure!(connector.pid > 0, "is connected by no process");
        }
        Peer::Socket(peer) if socket.kind == UnixKind::Datagram => {
            let other = sockets.get(*peer as usize);
            let mutual =
                matches!(other.map(|other| &other.peer), Some(Peer::Socket(back)) if *back as usize == index);
            let reachable = other.is_some_and(|other| {
                other.kind == socket.kind
                    && if socket.peer_credentials.is_some() { mutual } else { !other.address.is_empty() }
            });
            ensure!(
                reachable && *peer as usize != index,
                "is connected to socket#{peer}, which it cannot reach"
            );
        }
        Peer::Socket(peer) => {
            let other = sockets.get(*peer as usize);
            let mutual = other.is_some_and(|other| {
                *peer as usize != index
                    && other.kind == socket.kind
                    && matches!(other.peer, Peer::Socket(back) if back as usize == index)
            });
            ensure!(mutual, "is connected to socket#{peer}, which is not connected to it");
        }
    }
    inet::check_options(&socket.options, &socket.filter)?;
    let out_of_band = socket.queue.iter().filter(|message| message.out_of_band).count();
    ensure!(out_of_band <= 1, "has {out_of_band} messages that were sent out of band last");
    for (number, message) in socket.queue.iter().enumerate() {
        check_message(socket.kind, message, files).map_err(inside(format_args!("message {number}")))?;
    }
    Ok(())
}

fn check_address(address: &[u8]) -> Check {
    ensure!(address.len() <= 108, "has an address of {} bytes", address.len());
    let path = address.first().is_some_and(|byte| *byte != 0);
    ensure!(!path || !address.contains(&0), "has a path with a NUL");
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
    check_address(&message.sender).map_err(inside("its sender"))?;
    ensure!(message.credentials.is_none_or(|who| who.pid > 0), "was sent by no process");
    let one_byte = kind == UnixKind::Stream && message.bytes.len() == 1 && message.descriptions.is_empty();
    ensure!(!message.out_of_band || one_byte, "was sent out of band, and is no single byte of a stream");
    Ok(())
}
