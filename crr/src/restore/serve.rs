//! The coordinator's side of the restoring tasks: accept each, send its plan and files, take its answer.

use super::hold::Held;
use super::plain::as_bytes;
use super::{Restore, child::Step};
use anyhow::{Context, Result, anyhow, bail};
use images::Pid;
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{Listener, Stream};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use shared::op;
use shared::plan::tree::Role;
use shared::proto::{FDS_PER_MESSAGE, Report, Stage};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

/// A process that has made contact.
struct Peer {
    pid: Pid,
    /// The task that it restores; helpers and zombies make contact only to tell what failed.
    task: Option<usize>,
    socket: OwnedFd,
}

/// Where a parked task has a system call instruction in its hole, by task index.
pub(super) type Parked = Vec<u64>;

/// Serves all tasks until each has parked.
///
/// # Errors
/// The first failure that a task reports, or its silent death.
pub(super) fn serve(restore: &Restore<'_>, listener: &Listener, deadline: Instant) -> Result<(Parked, Held)> {
    const LISTENER: u64 = u64::MAX;
    const STEP: u16 = 100;
    let Listener::UdSocket(waiting) = listener;
    let tasks = &restore.checkpoint.tree.tasks;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    epoll.add(waiting, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("epoll")?;
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let mut parked = vec![0; tasks.len()];
    let mut held = Held::default();
    let mut left = tasks.len();
    let mut unseen = tasks.len();
    while left > 0 {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match epoll.wait(&mut events, STEP) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("wait for the restoring tasks"),
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                if let Some(peer) = greet(restore, listener)? {
                    unseen -= usize::from(peer.task.is_some());
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, peers.len() as u64);
                    epoll.add(&peer.socket, event).context("epoll")?;
                    peers.push(Some(peer));
                }
                continue;
            }
            let Some(peer) = usize::try_from(event.data()).ok().and_then(|at| peers[at].take()) else {
                continue;
            };
            match (answer(restore, &peer)?, peer.task) {
                (Answer::Hold, Some(index)) => {
                    held.hold(restore, index)?;
                    nix::unistd::write(&peer.socket, &[0]).context("let a held task go on")?;
                    if let Ok(at) = usize::try_from(event.data()) {
                        peers[at] = Some(peer);
                    }
                }
                (Answer::Parked(syscall_at), Some(index)) => {
                    parked[index] = syscall_at;
                    left -= 1;
                }
                (Answer::Hold | Answer::Parked(_), None) => {}
            }
        }
        if ready == 0 && unseen > 0 {
            super::still_there(restore)?;
        }
        crate::ptrace::check_interrupted()?;
        if Instant::now() > deadline {
            bail!("{left} tasks are not back in time (--timeout)");
        }
    }
    Ok((parked, held))
}

/// Accepts a process, finds out which it is, sends it everything. Anybody can connect to an abstract name: who is not one
/// of the tree is sent away.
fn greet(restore: &Restore<'_>, listener: &Listener) -> Result<Option<Peer>> {
    let Stream::UdSocket(stream) = listener.accept().context("accept a restoring task")?;
    let pid = getsockopt(&stream.as_fd(), sockopt::PeerCredentials).context("SO_PEERCRED")?.pid();
    let Some(&process) = restore.preparation.by_pid.get(&pid) else { return Ok(None) };
    let socket: OwnedFd = stream.as_fd().try_clone_to_owned()?;
    let task = match restore.preparation.schedule.processes[process].role {
        Role::Task(index) if index < restore.preparation.tasks.len() => Some(index),
        _ => None,
    };
    if let Some(index) = task {
        send(restore, index, &socket).with_context(|| format!("task {pid}: send its plan"))?;
    }
    Ok(Some(Peer { pid, task, socket }))
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
    let mut bytes = [0u8; size_of::<Report>()];
    let mut have = 0;
    while have < bytes.len() {
        match nix::unistd::read(&peer.socket, &mut bytes[have..]) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => {
                bail!("{}: died while it was restored", who(restore, peer))
            }
            Ok(got) => have += got,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(|| format!("task {}: read its answer", peer.pid)),
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
    Err(explain(restore, peer, &report))
}

/// A process as messages call it.
fn who(restore: &Restore<'_>, peer: &Peer) -> String {
    let Some(index) = peer.task else { return format!("zombie or stand-in for dead leader {}", peer.pid) };
    let task = &restore.checkpoint.tree.tasks[index];
    format!("task {} ({}, {})", task.pid, String::from_utf8_lossy(&task.threads[0].comm), task.abi)
}

/// A failure record as a sentence.
fn explain(restore: &Restore<'_>, peer: &Peer, report: &Report) -> anyhow::Error {
    let who = who(restore, peer);
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
            let ops = peer.task.map_or(&[][..], |index| &restore.preparation.tasks[index].ops);
            let op = failed_op(ops, report);
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
