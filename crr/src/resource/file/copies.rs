//! crr's own descriptors of a task's open files.
//!
//! pidfd_getfd(2) makes them without the task. Where the kernel does not have it (before Linux 5.6), or a container's filter forbids it, the task
//! sends them over a socket that it makes for that ([`fetch`]): one batch of calls opens it, sends and closes it, so it is gone again even if crr is
//! killed meanwhile.

use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Batch, Call, Executor};
use crate::resource::Refuse;
use crate::sys::{pidfd, process};
use anyhow::{Context, Result, ensure};
use images::{Abi, Pid};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname, recvmsg,
    socket,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Descriptors that one message takes: SCM_MAX_FD of include/net/scm.h.
const AT_ONCE: usize = 253;

/// Where the descriptors of a task come from.
#[derive(Debug)]
pub(crate) enum Copies {
    /// pidfd_getfd, by a descriptor of the task.
    Pidfd(OwnedFd),
    /// It has sent them.
    Sent(BTreeMap<u32, Arc<OwnedFd>>),
    /// The task is crr itself.
    Own,
}

impl Copies {
    /// Those of a task, by a living thread of it. `None` if the kernel cannot tell them by that, which is then refused.
    ///
    /// # Errors
    /// As pidfd_open(2).
    pub(crate) fn open(deputy: Pid, refuse: &mut Refuse<'_>) -> Result<Option<Self>> {
        match pidfd::open(deputy) {
            Err(Errno::EINVAL) if deputy != refuse.pid() => {
                let reason = "cannot be had: their task's leading thread has ended, and this kernel has no descriptors \
                    of threads (it needs Linux 6.9)";
                refuse.because("file descriptors", reason);
                Ok(None)
            }
            task => Ok(Some(Self::Pidfd(task.context("pidfd_open")?))),
        }
    }

    /// One of them.
    ///
    /// # Errors
    /// As pidfd_getfd(2), or if it was not sent.
    pub(crate) fn get(&self, fd: u32) -> Result<Arc<OwnedFd>> {
        match self {
            Self::Pidfd(task) => pidfd::get_fd(task.as_fd(), fd).map(Arc::new).context("pidfd_getfd"),
            Self::Sent(sent) => sent.get(&fd).cloned().context("its task has not sent it"),
            Self::Own => process::duplicate(fd).map(Arc::new).context("dup"),
        }
    }

    /// One that will not be had later, if that is so.
    pub(crate) fn keep(&self, copy: &Arc<OwnedFd>) -> Option<Arc<OwnedFd>> {
        matches!(self, Self::Sent(_)).then(|| Arc::clone(copy))
    }
}

/// A descriptor of a file that a task, or crr itself, has.
///
/// # Errors
/// As pidfd_open(2) and pidfd_getfd(2).
pub(crate) fn copy_of((pid, fd): (Pid, u32)) -> Result<OwnedFd> {
    if pid == nix::unistd::getpid().as_raw() {
        return process::duplicate(fd).context("dup");
    }
    let task = pidfd::open(pid).context("pidfd_open")?;
    pidfd::get_fd(task.as_fd(), fd).context("pidfd_getfd")
}

/// Has a task send its descriptors with these numbers, which are all that it has, in order. `None` if it cannot, which is then refused.
/// Nobody else may have its table: the number that the socket gets is counted on, so that one batch can close it.
///
/// # Errors
/// When the task dies, or crr may not have as many open files.
pub(crate) fn fetch(
    executor: &Executor,
    thread: &mut Stopped,
    numbers: &[u32],
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Option<Copies>> {
    let mut sent = BTreeMap::new();
    if numbers.is_empty() {
        return Ok(Some(Copies::Sent(sent)));
    }
    if executor.is_slow() {
        let reason = "cannot be had: this kernel has no pidfd_getfd (Linux 5.6), and the task has no room for code to send them by";
        let hint = "let it map memory and code (RLIMIT_AS, munmap, PR_SET_MDWE)";
        refuse.with_hint("file descriptors".to_owned(), reason, hint);
        return Ok(None);
    }
    let inbox = Inbox::new().context("socket for the descriptors of a task")?;
    // The lowest that is free.
    let number = (0..)
        .zip(numbers)
        .find(|(free, used)| free != *used)
        .map_or(numbers.len(), |(free, _)| free as usize);
    for some in numbers.chunks(AT_ONCE) {
        let mut batch = executor.batch(thread)?;
        let message = Message { inbox: &inbox, fds: some, socket: number as u64 };
        let [opened, delivered, closed] = message.calls(&mut batch, executor);
        let reply = executor.run(thread, &batch, patience)?;
        let opened = reply.result(opened);
        if opened.is_ok_and(|opened| opened != number as u64) {
            // Nobody else has this table: the tree is stopped.
            let mut batch = executor.batch(thread)?;
            batch.call(Call::Close, &[Arg::Value(opened.unwrap_or(number as u64))]);
            executor.run(thread, &batch, patience)?;
        }
        if let Err(errno) = opened.and_then(|_| reply.result(delivered)) {
            let reason = format!(
                "cannot be had: this kernel has no pidfd_getfd (Linux 5.6), and the task cannot send them: {}",
                errno.desc().to_lowercase()
            );
            let hint = "raise its limit of open files (prlimit --nofile), or close one";
            refuse.with_hint("file descriptors".to_owned(), reason, hint);
            return Ok(None);
        }
        reply.result(closed).context("close the socket of the task")?;
        sent.extend(some.iter().copied().zip(inbox.receive(some.len())?.into_iter().map(Arc::new)));
    }
    Ok(Some(Copies::Sent(sent)))
}

/// A socket that tasks send to, in the network namespace that they are in as well.
struct Inbox {
    socket: OwnedFd,
    address: UnixAddr,
    /// What the task sends along: anybody can send to the address.
    word: [u8; 16],
}

impl Inbox {
    fn new() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // The kernel finds a name.
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address = getsockname(socket.as_raw_fd())?;
        let mut word = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut word))
            .context("/dev/urandom")?;
        Ok(Self { socket, address, word })
    }

    /// `sockaddr_un` as the kernel wants it.
    fn address(&self) -> Vec<u8> {
        let family = (AddressFamily::Unix as u16).to_ne_bytes();
        let name = self.address.as_abstract().unwrap_or_default();
        [&family[..], &[0], name].concat()
    }

    /// What the task has sent.
    fn receive(&self, count: usize) -> Result<Vec<OwnedFd>> {
        loop {
            let mut word = [0; 16];
            let mut slices = [IoSliceMut::new(&mut word)];
            let mut room = cmsg_space!([RawFd; AT_ONCE]);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut room), flags)
                .context("receive the descriptors of a task")?;
            let mut fds = Vec::new();
            // What has come then is closed with crr, which ends.
            ensure!(
                !message.flags.contains(MsgFlags::MSG_CTRUNC),
                "crr may not have as many open files as the task (RLIMIT_NOFILE)"
            );
            for part in message.cmsgs().context("receive the descriptors of a task")? {
                if let ControlMessageOwned::ScmRights(some) = part {
                    fds.extend(some.into_iter().map(process::own_fd));
                }
            }
            if word != self.word {
                continue;
            }
            ensure!(fds.len() == count, "{} of {count} descriptors of a task have come", fds.len());
            return Ok(fds);
        }
    }
}

/// Descriptors to be sent by a socket that gets this number.
struct Message<'a> {
    inbox: &'a Inbox,
    fds: &'a [u32],
    socket: u64,
}

impl Message<'_> {
    /// Opens the socket, sends, and closes it. If it gets another number, nothing is sent or closed: the one that was thought of is free.
    fn calls(&self, batch: &mut Batch, executor: &Executor) -> [crate::remote::Handle; 3] {
        let abi = batch.abi();
        let word = |value: u64| value.to_le_bytes()[..if abi == Abi::Ia32 { 4 } else { 8 }].to_vec();
        let address = self.inbox.address();
        let name = batch.data(&address);
        let text = batch.data(&self.inbox.word);
        // struct cmsghdr: a word and two ints, whatever the ABI.
        let header = word(0).len() + 8;
        let ints = [libc::SOL_SOCKET, libc::SCM_RIGHTS].map(i32::to_le_bytes).concat();
        let fds: Vec<u8> = self.fds.iter().flat_map(|fd| fd.to_le_bytes()).collect();
        let control = [word((header + fds.len()) as u64), ints, fds].concat();
        let rights = batch.data(&control);
        let at = |buffer| executor.place(buffer).map_or(0, |at| at.0);
        // struct iovec and struct msghdr: words, with padding where they are smaller.
        let vector = [at(text), self.inbox.word.len() as u64].map(word).concat();
        let vector = batch.data(&vector);
        let words = [at(name), address.len() as u64, at(vector), 1, at(rights), control.len() as u64, 0];
        let message = batch.data(&words.map(word).concat());
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;
        let opened =
            batch.call(Call::Socket, &[Arg::Value(libc::AF_UNIX as u64), Arg::Value(kind), Arg::Value(0)]);
        let sent =
            batch.call(Call::Sendmsg, &[Arg::Value(self.socket), Arg::Out(message), Arg::Value(flags)]);
        let closed = batch.call(Call::Close, &[Arg::Value(self.socket)]);
        [opened, sent, closed]
    }
}
