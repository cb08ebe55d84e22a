//! The coordinator's side of the restoring tasks: accept each, send its plan and files, take its answer.

use super::hold::Held;
use super::late;
use super::plain::as_bytes;
use super::prepare::Program;
use super::{Restore, child::Step};
use crate::fault::{self, Point};
use crate::lazy;
use crate::sys::process;
use anyhow::{Context, Result, anyhow, bail, ensure};
use images::Pid;
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{Listener, Stream};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, getsockopt, recv,
    recvmsg, sendmsg, socketpair, sockopt,
};
use shared::op::{self, birth::Birth};
use shared::plan::family::Making;
use shared::plan::tree::Role;
use shared::plan::{Need, seccomp};
use shared::proto::{FDS_PER_MESSAGE, Report, Stage};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

/// A process that has made contact.
struct Peer {
    pid: Pid,
    /// The task that it restores; helpers and zombies make contact only to tell what failed.
    task: Option<usize>,
    socket: OwnedFd,
    /// Tasks that have still to say that they have parked: all that its program restores.
    left: usize,
    /// Tasks that are to be held before that.
    to_hold: usize,
    /// Tasks that are held and wait for the others.
    holding: usize,
    /// How often its vDSO was in the way.
    again: u32,
}

impl Peer {
    fn new(restore: &Restore<'_>, pid: Pid, task: Option<usize>, socket: OwnedFd) -> Self {
        let program = task.and_then(|index| restore.preparation.tasks[index].program.as_ref());
        let members = program.map_or(&[][..], |program| &program.members);
        let tasks = &restore.checkpoint.tree.tasks;
        let to_hold = members.iter().filter(|&&member| seccomp::is_held(&tasks[member])).count();
        Self { pid, task, socket, left: members.len(), to_hold, holding: 0, again: 0 }
    }

    /// One more task is held. They go on together, so that it does not matter which byte each reads.
    fn let_go(&mut self) -> Result<()> {
        self.holding += 1;
        if self.holding == self.to_hold {
            let bytes = vec![0; self.holding];
            let sent = nix::unistd::write(&self.socket, &bytes)?;
            ensure!(sent == bytes.len(), "sent {sent} of {} bytes", bytes.len());
        }
        Ok(())
    }
}

/// How often a program may exec because of where its vDSO lies.
const TRIES: u32 = 32;

/// The far ends of sockets that programs give to the tasks which they clone and which then exec. They stay until who gives them has parked: a
/// program that execs once more is given them again.
type Given = BTreeMap<usize, OwnedFd>;

/// Where a parked task has a system call instruction in its hole, by task index.
pub(super) type Parked = Vec<u64>;

/// All tasks, parked.
pub(super) struct Served {
    pub(super) parked: Parked,
    pub(super) held: Held,
    /// Files that were opened when all of them existed.
    pub(super) late: late::Files,
    /// Descriptors by which pages come later, by task index.
    pub(super) lazy: BTreeMap<usize, OwnedFd>,
}

/// Serves all tasks until each has parked.
///
/// # Errors
/// The first failure that a task reports, or its silent death.
pub(super) fn serve(restore: &Restore<'_>, listener: &Listener, deadline: Instant) -> Result<Served> {
    const LISTENER: u64 = u64::MAX;
    const STEP: u16 = 100;
    let Listener::UdSocket(waiting) = listener;
    let tasks = &restore.checkpoint.tree.tasks;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    epoll.add(waiting, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("epoll")?;
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let come = |peer: Peer, peers: &mut Vec<Option<Peer>>| -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, peers.len() as u64);
        epoll.add(&peer.socket, event).context("epoll")?;
        peers.push(Some(peer));
        Ok(())
    };
    let (connected, mut given) = connected(restore)?;
    for peer in connected {
        come(peer, &mut peers)?;
    }
    let mut progress = Progress {
        parked: vec![None; tasks.len()],
        held: Held::default(),
        there: 0,
        late: late::Files::default(),
        lazy: BTreeMap::new(),
    };
    let prepared = &restore.preparation.tasks;
    let mut unseen = prepared.iter().filter(|task| task.making == Making::Forked).count();
    let mut open = unseen + peers.len();
    let mut quiet = false;
    while open > 0 {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match epoll.wait(&mut events, STEP) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("wait for the restoring tasks"),
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                let greeted = greet(restore, listener, &given);
                if let Some(peer) = greeted.map_err(|e| first_cause(restore, &peers, e))? {
                    unseen -= usize::from(peer.task.is_some());
                    come(peer, &mut peers)?;
                }
                continue;
            }
            let Some(slot) = usize::try_from(event.data()).ok().and_then(|at| peers.get_mut(at)) else {
                continue;
            };
            let Some(peer) = slot else { continue };
            match progress.answer(restore, peer, &mut given) {
                Ok(false) => {}
                Ok(true) => {
                    open -= usize::from(peer.task.is_some());
                    *slot = None;
                }
                Err(e) => return Err(first_cause(restore, &peers, e)),
            }
        }
        if ready == 0 && unseen > 0 {
            super::still_there(restore)?;
        }
        // Twice, so that what a task said before its end has been heard.
        if std::mem::replace(&mut quiet, ready == 0) && quiet {
            progress.silent_deaths(restore)?;
        }
        crate::ptrace::check_interrupted()?;
        if Instant::now() > deadline {
            let left = progress.parked.iter().filter(|parked| parked.is_none()).count();
            bail!("{left} tasks are not back in time (--timeout)");
        }
    }
    let Progress { parked, held, late, lazy, .. } = progress;
    let parked = parked.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Served { parked, held, late, lazy })
}

/// The sockets of tasks that are cloned and then exec: they are connected from the start, with everything sent.
fn connected(restore: &Restore<'_>) -> Result<(Vec<Peer>, Given)> {
    let (mut peers, mut given) = (Vec::new(), Given::new());
    for (index, task) in restore.preparation.tasks.iter().enumerate() {
        if matches!(task.making, Making::Cloned { exec: true, .. }) {
            let (own, far) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .context("socketpair")?;
            given.insert(index, far);
            let pid = restore.checkpoint.tree.tasks[index].pid;
            peers.push(Peer::new(restore, pid, Some(index), own));
        }
    }
    for peer in &peers {
        send(restore, peer, &given)?;
    }
    Ok((peers, given))
}

/// Accepts a process, finds out which it is, sends it everything. Anybody can connect to an abstract name: who is not one
/// of the tree is sent away.
fn greet(restore: &Restore<'_>, listener: &Listener, given: &Given) -> Result<Option<Peer>> {
    fault::point(Point::Accept).context("accept a restoring task")?;
    let Stream::UdSocket(stream) = listener.accept().context("accept a restoring task")?;
    let pid = getsockopt(&stream.as_fd(), sockopt::PeerCredentials).context("SO_PEERCRED")?.pid();
    let Some(&process) = restore.preparation.by_pid.get(&pid) else { return Ok(None) };
    let socket: OwnedFd = stream.as_fd().try_clone_to_owned()?;
    let task = match restore.preparation.schedule.processes[process].role {
        Role::Task(index) if index < restore.preparation.tasks.len() => Some(index),
        _ => None,
    };
    let peer = Peer::new(restore, pid, task, socket);
    if task.is_some() {
        fault::strike(Point::HelperDiesEarly, pid);
        send(restore, &peer, given).map_err(|e| last_words(restore, &peer, e))?;
        fault::point(Point::KilledServing)?;
    }
    Ok(Some(peer))
}

/// Why a process cannot be sent anything: what it said before its end, if it has ended.
fn last_words(restore: &Restore<'_>, peer: &Peer, error: anyhow::Error) -> anyhow::Error {
    if !matches!(error.downcast_ref(), Some(Errno::EPIPE | Errno::ECONNRESET)) {
        return error;
    }
    let mut bytes = [0u8; size_of::<Report>()];
    match nix::unistd::read(&peer.socket, &mut bytes) {
        Ok(len) if len == bytes.len() => explain(restore, peer, peer.task, &decode(&bytes)),
        _ => died(restore, peer),
    }
}

/// A task ended without a word. What ended it may be the end of another one.
#[derive(Debug, thiserror::Error)]
#[error("{0}: died while it was restored")]
struct Died(String);

fn died(restore: &Restore<'_>, peer: &Peer) -> anyhow::Error {
    Died(who(restore, peer.pid, peer.task)).into()
}

/// The cause of a failure. A task that fails says why and ends, and so do those below it, by their parent-death signal and without a word: they can
/// be heard of first, but everything that ended before them has been said by then.
fn first_cause(restore: &Restore<'_>, peers: &[Option<Peer>], error: anyhow::Error) -> anyhow::Error {
    if !error.is::<Died>() {
        return error;
    }
    let mut ended = Vec::new();
    for peer in peers.iter().flatten() {
        match heard(&peer.socket) {
            Heard::Failure(report) => {
                return explain(restore, peer, speaker(restore, peer, &report), &report);
            }
            Heard::End if peer.left > 0 => ended.push(peer),
            Heard::End | Heard::Nothing => {}
        }
    }
    let tasks = &restore.checkpoint.tree.tasks;
    let parent = |peer: &Peer| peer.task.map(|index| tasks[index].ppid);
    let first = ended.iter().find(|peer| !ended.iter().any(|other| Some(other.pid) == parent(peer)));
    first.map_or(error, |peer| died(restore, peer))
}

/// What a process has said that nobody has read.
#[derive(Debug)]
enum Heard {
    Nothing,
    Failure(Report),
    /// Its socket is closed.
    End,
}

fn heard(socket: &OwnedFd) -> Heard {
    let mut bytes = [0u8; size_of::<Report>()];
    loop {
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET) => return Heard::End,
            Ok(length) if length == bytes.len() => {
                let report = decode(&bytes);
                let stage = Stage::from_number(report.stage);
                if !matches!(
                    stage,
                    Some(Stage::Parked | Stage::Hold | Stage::There | Stage::Lazy | Stage::Again)
                ) {
                    return Heard::Failure(report);
                }
            }
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return Heard::Nothing,
        }
    }
}

/// The task that a report is about.
fn speaker(restore: &Restore<'_>, peer: &Peer, report: &Report) -> Option<usize> {
    match report.pid {
        0 => peer.task,
        pid => restore.checkpoint.tree.tasks.iter().position(|task| task.pid.cast_unsigned() == pid),
    }
}

fn send(restore: &Restore<'_>, peer: &Peer, given: &Given) -> Result<()> {
    send_plan(restore, peer, given).with_context(|| format!("task {}: send its plan", peer.pid))
}

/// Sends the first message and all working fds.
fn send_plan(restore: &Restore<'_>, peer: &Peer, given: &Given) -> Result<()> {
    let prepared = peer.task.map(|index| &restore.preparation.tasks[index]).context("no task")?;
    let program = prepared.program.as_ref().context("it execs no program")?;
    let mut fds = vec![restore.preparation.tree.as_raw_fd(), restore.opened.pages.as_raw_fd()];
    for &need in &program.needs {
        let fd = match need {
            Need::Socket(index) => given.get(&index).map(AsFd::as_fd),
            Need::Program(index) => {
                let program = restore.preparation.tasks[index].program.as_ref();
                program.map(|program| restore.preparation.programs[program.file].as_fd())
            }
            Need::LastPid => restore.chooser.file(),
            other => restore.opened.need(other),
        };
        fds.push(fd.context("a file that was not opened")?.as_raw_fd());
    }
    for (number, some) in fds.chunks(FDS_PER_MESSAGE).enumerate() {
        fault::point(Point::SendPlan)?;
        let bytes: &[u8] = if number == 0 { as_bytes(&prepared.start) } else { &[0] };
        let sent = sendmsg::<()>(
            peer.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::ScmRights(some)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        ensure!(sent == bytes.len(), "sent {sent} of {} bytes", bytes.len());
    }
    Ok(())
}

/// How far the tasks are.
struct Progress {
    /// By task index, once it has parked.
    parked: Vec<Option<u64>>,
    held: Held,
    /// How many tasks have said that they exist with all of their threads.
    there: usize,
    late: late::Files,
    lazy: BTreeMap<usize, OwnedFd>,
}

impl Progress {
    /// Reads one answer, or notices that the socket is closed. Whether that was the end of it: a task is not to be caught
    /// with its socket still open.
    fn answer(&mut self, restore: &Restore<'_>, peer: &mut Peer, given: &mut Given) -> Result<bool> {
        let tasks = &restore.checkpoint.tree.tasks;
        let mut bytes = [0u8; size_of::<Report>()];
        let (mut have, mut descriptor) = (0, None);
        while have < bytes.len() {
            let answer = fault::point(Point::ReadAnswer);
            match answer.and_then(|()| receive(&peer.socket, &mut bytes[have..], &mut descriptor)) {
                Ok(0) | Err(Errno::ECONNRESET) if peer.left == 0 && have == 0 => return Ok(true),
                Ok(0) | Err(Errno::ECONNRESET) => return Err(died(restore, peer)),
                Ok(got) => have += got,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("task {}: read its answer", peer.pid));
                }
            }
        }
        let report = decode(&bytes);
        let (Some(member), Some(host)) = (speaker(restore, peer, &report), peer.task) else {
            return Err(explain(restore, peer, None, &report));
        };
        if report.stage == Stage::Hold as u32 {
            self.held.hold(restore, member)?;
            peer.let_go().context("let a held task go on")?;
            return Ok(false);
        }
        if report.stage == Stage::There as u32 {
            self.there += 1;
            if self.there == tasks.len() {
                self.late = late::open_all(restore).context("open the files that stand for tasks")?;
            }
            return Ok(false);
        }
        if report.stage == Stage::Lazy as u32 {
            let under = || -> Result<OwnedFd> {
                let descriptor = descriptor.context("none came")?;
                if restore.preparation.run_first {
                    lazy::put_under(&descriptor, &restore.preparation.lazy[member].areas)?;
                }
                Ok(descriptor)
            };
            let descriptor = under().with_context(|| format!("task {}: userfaultfd", tasks[member].pid))?;
            self.lazy.insert(member, descriptor);
            return Ok(false);
        }
        if report.stage == Stage::Again as u32 {
            peer.again += 1;
            log::info!("{}: its vDSO is in the way: once more", who(restore, peer.pid, peer.task));
            ensure!(
                peer.again < TRIES,
                "{}: this kernel cannot move its vDSO, and puts it where the task has memory",
                who(restore, peer.pid, peer.task),
            );
            send(restore, peer, given)?;
            return Ok(false);
        }
        if report.stage != Stage::Parked as u32 {
            return Err(explain(restore, peer, Some(member), &report));
        }
        if peer.left == 0 || self.parked[member].replace(report.syscall_at).is_some() {
            bail!("task {}: answered twice", tasks[member].pid);
        }
        peer.left -= 1;
        let prepared = &restore.preparation.tasks[host];
        if peer.left == 0 {
            // Closed here: the end of these sockets is to be noticed.
            let needs = prepared.program.iter().flat_map(|program| &program.needs);
            for taker in needs.filter_map(given_to) {
                given.remove(&taker);
            }
        }
        // It closes the socket next, at once if nobody else has it.
        let clones = |program: &Program| {
            program.members.len() > 1 || program.needs.iter().any(|need| given_to(need).is_some())
        };
        let alone = prepared.making == Making::Forked && !prepared.program.as_ref().is_some_and(clones);
        if alone {
            while nix::unistd::read(&peer.socket, &mut bytes) == Err(Errno::EINTR) {}
        }
        Ok(alone)
    }

    /// Fails if a task that another's program cloned has ended without a word: the socket is not closed by that.
    fn silent_deaths(&self, restore: &Restore<'_>) -> Result<()> {
        for (index, task) in restore.preparation.tasks.iter().enumerate() {
            let pid = restore.checkpoint.tree.tasks[index].pid;
            let waited_for = self.parked[index].is_none() && task.making != Making::Forked;
            if waited_for && process::exists(pid) && !super::is_alive(pid) {
                return Err(Died(who(restore, pid, Some(index))).into());
            }
        }
        Ok(())
    }
}

/// Reads a part of a report, and the descriptor that came with it, if one did.
fn receive(socket: &OwnedFd, bytes: &mut [u8], descriptor: &mut Option<OwnedFd>) -> nix::Result<usize> {
    let mut control = cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            *descriptor = fds.first().map(|&fd| process::own_fd(fd));
        }
    }
    Ok(message.bytes)
}

/// The task that is given this socket when a program clones it, before it execs.
const fn given_to(need: &Need) -> Option<usize> {
    match *need {
        Need::Socket(taker) => Some(taker),
        _ => None,
    }
}

fn decode(bytes: &[u8; size_of::<Report>()]) -> Report {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    Report {
        stage: word(0),
        errno: word(4),
        pid: word(8),
        reserved: word(12),
        tid: word(16),
        op: word(20),
        value: long(24),
        syscall_at: long(32),
    }
}

/// A process as messages call it.
fn who(restore: &Restore<'_>, pid: Pid, task: Option<usize>) -> String {
    let Some(index) = task else { return format!("zombie or stand-in for dead leader {pid}") };
    let task = &restore.checkpoint.tree.tasks[index];
    format!("task {} ({}, {})", task.pid, String::from_utf8_lossy(&task.threads[0].comm), task.abi)
}

/// A failure record as a sentence: of a task that the program at the other end restores.
fn explain(restore: &Restore<'_>, peer: &Peer, task: Option<usize>, report: &Report) -> anyhow::Error {
    let who = who(restore, peer.pid, task);
    let cause = if report.errno == 0 {
        format!("unexpected result {:#x}", report.value)
    } else {
        Errno::from_raw(report.errno.cast_signed()).desc().to_lowercase()
    };
    let value = report.value;
    match Stage::from_number(report.stage) {
        Some(Stage::Child) => anyhow!("{who}: {} {value}: {cause}", Step::describe(report.op)),
        Some(Stage::Receive) => anyhow!("{who}: receive the plan ({value:#x}): {cause}"),
        Some(Stage::Clear) => anyhow!("{who}: make room in the address space, at {value:#x}: {cause}"),
        Some(Stage::Ops) => {
            let thread = if report.tid == 0 { String::new() } else { format!(", thread {}", report.tid) };
            let ops = peer.task.and_then(|index| restore.preparation.ops(index).ok()).unwrap_or_default();
            let op = failed_op(&ops, report);
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
            op::Op::Birth(Birth::Task { pid, ops, .. }) if report.pid != 0 => {
                // Its own, or those of one that it clones.
                let own = pid.cast_unsigned() == report.pid;
                let found = failed_op(ops, &Report { pid: if own { 0 } else { report.pid }, ..*report });
                if own || !found.is_empty() {
                    return found;
                }
            }
            op::Op::Thread { tid, ops, .. }
                if report.pid == 0 && report.tid != 0 && tid.cast_unsigned() == report.tid =>
            {
                return failed_op(ops, &Report { tid: 0, ..*report });
            }
            _ => {}
        }
        if report.pid == 0 && report.tid == 0 && index == report.op {
            let text = format!("{op:?}");
            return text.chars().take(120).collect();
        }
        list = rest;
        index += 1;
    }
    if report.pid == 0 { format!("op {}", report.op) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_an_end_is_heard() {
        let pair =
            || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let say = |far: &OwnedFd, stage: Stage| {
            let report = Report { stage: stage as u32, errno: 12, ..Report::default() };
            nix::unistd::write(far, as_bytes(&report)).unwrap();
        };
        let (own, far) = pair();
        assert!(matches!(heard(&own), Heard::Nothing));
        say(&far, Stage::There);
        say(&far, Stage::Ops);
        drop(far);
        assert!(matches!(heard(&own), Heard::Failure(report) if report.stage == Stage::Ops as u32));
        assert!(matches!(heard(&own), Heard::End));
        let (own, far) = pair();
        say(&far, Stage::Hold);
        assert!(matches!(heard(&own), Heard::Nothing));
    }
}
