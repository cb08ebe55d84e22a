//! The coordinator's side of the restoring tasks: accept each, send its plan and files, take its answer.

use super::hold::Held;
use super::plain::as_bytes;
use super::{Restore, child::Step};
use anyhow::{Context, Result, anyhow, bail};
use images::Pid;
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{Listener, Stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use shared::op;
use shared::proto::{FDS_PER_MESSAGE, Report, Stage};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

/// A restoring task that has made contact.
struct Peer {
    index: usize,
    socket: OwnedFd,
}

/// Where a parked task has a system call instruction in its hole, by task index.
pub(super) type Parked = Vec<u64>;

/// Serves all tasks until each has parked.
///
/// # Errors
/// The first failure that a task reports, or its silent death.
pub(super) fn serve(
    restore: &Restore<'_>,
    listener: &Listener,
    root: Pid,
    deadline: Instant,
) -> Result<(Parked, Held)> {
    let Listener::UdSocket(waiting) = listener;
    let tasks = &restore.checkpoint.tree.tasks;
    let mut peers: Vec<Peer> = Vec::new();
    let mut parked = vec![0; tasks.len()];
    let mut held = Held::default();
    let mut left = tasks.len();
    let mut unseen = tasks.len();
    while left > 0 {
        let mut fds = vec![PollFd::new(waiting.as_fd(), PollFlags::POLLIN)];
        fds.extend(peers.iter().map(|peer| PollFd::new(peer.socket.as_fd(), PollFlags::POLLIN)));
        poll(&mut fds, PollTimeout::from(100u16)).context("poll")?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        // From the back, so that a removal does not move what is still to be looked at.
        for at in (0..peers.len()).rev().filter(|&at| ready[at + 1]) {
            let peer = &peers[at];
            match answer(restore, peer)? {
                Answer::Hold => {
                    held.hold(restore, peer.index)?;
                    nix::unistd::write(&peer.socket, &[0]).context("let a held task go on")?;
                }
                Answer::Parked(syscall_at) => {
                    parked[peer.index] = syscall_at;
                    peers.swap_remove(at);
                    left -= 1;
                }
            }
        }
        if ready[0] {
            if let Some(peer) = greet(restore, listener)? {
                unseen -= 1;
                peers.push(peer);
            }
        } else if unseen > 0 {
            super::still_there(root)?;
        }
        crate::ptrace::check_interrupted()?;
        if Instant::now() > deadline {
            bail!("{left} tasks are not back in time (--timeout)");
        }
    }
    Ok((parked, held))
}

/// Accepts a task, finds out which it is, sends it everything. Anybody can connect to an abstract name: who is not one
/// of the tree is sent away.
fn greet(restore: &Restore<'_>, listener: &Listener) -> Result<Option<Peer>> {
    let Stream::UdSocket(stream) = listener.accept().context("accept a restoring task")?;
    let credentials = getsockopt(&stream.as_fd(), sockopt::PeerCredentials).context("SO_PEERCRED")?;
    let tasks = &restore.checkpoint.tree.tasks;
    let Some(index) = tasks.iter().position(|task| task.pid == credentials.pid()) else { return Ok(None) };
    let socket: OwnedFd = stream.as_fd().try_clone_to_owned()?;
    send(restore, index, &socket).with_context(|| format!("task {}: send its plan", tasks[index].pid))?;
    Ok(Some(Peer { index, socket }))
}

fn send(restore: &Restore<'_>, index: usize, socket: &OwnedFd) -> Result<()> {
    let prepared = &restore.preparation.tasks[index];
    let mut fds = vec![restore.preparation.tree.as_raw_fd(), restore.opened.pages.as_raw_fd()];
    for &need in &prepared.needs {
        fds.push(restore.opened.need(need).context("a file that was not opened")?.as_raw_fd());
    }
    for (number, some) in fds.chunks(FDS_PER_MESSAGE).enumerate() {
        let bytes: &[u8] = if number == 0 { as_bytes(&prepared.start) } else { &[0] };
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::ScmRights(some)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        if sent != bytes.len() {
            bail!("sent {sent} of {} bytes", bytes.len());
        }
    }
    Ok(())
}

/// What a task says that gets on well.
enum Answer {
    /// Its threads exist, and are to be held.
    Hold,
    /// It is through; where it has a system call instruction.
    Parked(u64),
}

/// Reads a task's answer.
fn answer(restore: &Restore<'_>, peer: &Peer) -> Result<Answer> {
    let task = &restore.checkpoint.tree.tasks[peer.index];
    let mut bytes = [0u8; size_of::<Report>()];
    let mut have = 0;
    while have < bytes.len() {
        match nix::unistd::read(&peer.socket, &mut bytes[have..]) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => {
                bail!("task {} ({}): died while it was restored", task.pid, comm(restore, peer.index))
            }
            Ok(got) => have += got,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(|| format!("task {}: read its answer", task.pid)),
        }
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let report = Report {
        stage: word(0),
        errno: word(4),
        tid: word(8),
        op: word(12),
        value: long(16),
        syscall_at: long(24),
    };
    if report.stage == Stage::Hold as u32 {
        return Ok(Answer::Hold);
    }
    if report.stage == Stage::Parked as u32 {
        // It closes the socket next, and must not be caught with it still open.
        let mut end = [0];
        while nix::unistd::read(&peer.socket, &mut end) == Err(nix::errno::Errno::EINTR) {}
        return Ok(Answer::Parked(report.syscall_at));
    }
    Err(explain(restore, peer.index, &report))
}

fn comm(restore: &Restore<'_>, index: usize) -> String {
    String::from_utf8_lossy(&restore.checkpoint.tree.tasks[index].threads[0].comm).into_owned()
}

/// A failure record as a sentence.
fn explain(restore: &Restore<'_>, index: usize, report: &Report) -> anyhow::Error {
    let task = &restore.checkpoint.tree.tasks[index];
    let who = format!("task {} ({}, {})", task.pid, comm(restore, index), task.abi);
    let cause = if report.errno == 0 {
        format!("unexpected result {:#x}", report.value)
    } else {
        nix::errno::Errno::from_raw(report.errno.cast_signed()).desc().to_lowercase()
    };
    let value = report.value;
    match Stage::from_number(report.stage) {
        Some(Stage::Child) => anyhow!("{who}: {} {value}: {cause}", Step::describe(report.op)),
        Some(Stage::Receive) => anyhow!("{who}: receive the plan ({value:#x}): {cause}"),
        Some(Stage::Clear) => anyhow!("{who}: make room in the address space, at {value:#x}: {cause}"),
        Some(Stage::Ops) => {
            let thread = if report.tid == 0 { String::new() } else { format!(", thread {}", report.tid) };
            let op = failed_op(&restore.preparation.tasks[index].ops, report);
            anyhow!("{who}{thread}: {op} ({value:#x}): {cause}")
        }
        _ => anyhow!("{who}: stage {}: {cause}", report.stage),
    }
}

/// The op that a report speaks of.
fn failed_op(ops: &[u8], report: &Report) -> String {
    let mut list = ops;
    let mut index = 0;
    while let Ok(Some((op, rest))) = op::next(list) {
        match op {
            op::Op::Thread { tid, ops, .. } if report.tid != 0 && tid.cast_unsigned() == report.tid => {
                return failed_op(ops, &Report { tid: 0, ..*report });
            }
            _ => {}
        }
        if report.tid == 0 && index == report.op {
            let text = format!("{op:?}");
            return text.chars().take(120).collect();
        }
        list = rest;
        index += 1;
    }
    format!("op {}", report.op)
}
