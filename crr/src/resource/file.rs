//! Open files: descriptors, the descriptions that they share, and which can be opened again.

pub(crate) mod reopen;

use super::event::{self, Place};
use super::path::{CLOSE, Paths, file_type};
use super::socket;
use super::terminal::{self, Terminals};
use super::tree::Standing;
use super::unix_socket::{Holder, Sockets};
use super::{Refuse, inet, lock, mqueue, namespace, pidfd as pidfds, pipe, task_file};
use crate::proc::{Dir, fdinfo};
use crate::refusal::Refusals;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::{pidfd, pipe as fd_ops};
use anyhow::{Context, Result};
use images::event::{Epoll, Notify};
use images::file::{Description, FdEntry, Files, Path, Pipe, Target};
use images::task::{Task, Zombie};
use images::{DescriptionId, Pid, TaskFd};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const O_CLOEXEC: u32 = 0o2_000_000;
const O_PATH: u32 = 0o10_000_000;
pub(crate) const O_ASYNC: u32 = 0o20_000;
const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;

/// Ways out.
const START_AGAIN: &str = "start the program again from the present file";
const LEAVE: &str = "have the program change to another directory before the dump";

/// A description found so far, with one descriptor that leads to it.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: DescriptionId,
    holder: (Pid, u32),
}

/// What two descriptors must agree in to be the same description: device, inode, flags, position.
type Likeness = (u64, u64, u32, u64);

/// Open files of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Table {
    descriptions: Vec<Description>,
    /// Candidates for sharing, each list in the kernel's order.
    alike: HashMap<Likeness, Vec<Known>>,
    pipes: Vec<Pipe>,
    pipe_ids: HashMap<u64, u32>,
    /// Pipes without a read end so far: their contents can be lost to nobody.
    unread: HashMap<u64, u32>,
    sockets: Sockets,
    inet: inet::Sockets,
    terminals: Terminals,
    events: event::Found,
    epolls: Vec<Epoll>,
    pidfds: pidfds::Table,
    task_files: task_file::Table,
    message_queues: mqueue::Table,
    /// For each description, one who has it, and its inode and device.
    holders: Vec<(Pid, u32)>,
    inodes: Vec<(u64, u64)>,
    locks: lock::Table,
    /// Descriptions that were found on their way: crr holds them as long as others are compared with them.
    arrived: Vec<OwnedFd>,
}

/// The terminal of a shell job, by device number.
pub(crate) type Terminal = Option<u32>;

/// One descriptor as /proc shows it.
struct Open {
    fd: u32,
    link: Vec<u8>,
    stat: FileStat,
    info: fdinfo::FdInfo,
    /// All of its fdinfo, if it is an anonymous inode or a pidfd.
    text: Vec<u8>,
    /// Where it lies, if it is on its way in a message.
    queue_of: Option<String>,
}

impl Open {
    fn look(fd: u32, fd_dir: &Dir, info_dir: &Dir, buffer: &mut Vec<u8>) -> Result<Self> {
        let name = fd.to_string();
        info_dir.read(&name, buffer)?;
        let info = fdinfo::parse(buffer)?;
        let link = fd_dir.link(&name)?.as_bytes().to_vec();
        let text = if link.starts_with(b"anon_inode:") || pidfds::is_one(&link) {
            buffer.clone()
        } else {
            Vec::new()
        };
        Ok(Self { fd, link, stat: fd_dir.stat(&name)?, info, text, queue_of: None })
    }

    fn describe(&self) -> String {
        let link = String::from_utf8_lossy(&self.link);
        match &self.queue_of {
            Some(socket) => format!("{socket}: sent to it and not yet received: {link}"),
            None => format!("fd {} ({link})", self.fd),
        }
    }
}

impl Table {
    /// Collects the descriptors of one task, by a living thread of it.
    pub(crate) fn dump_task(
        &mut self,
        deputy: Pid,
        dir: &Dir,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Vec<FdEntry>> {
        let (fd_dir, info_dir) = (dir.dir("fd")?, dir.dir("fdinfo")?);
        let pidfd = match pidfd::open(deputy) {
            Err(Errno::EINVAL) if deputy != refuse.pid() => {
                let reason = "cannot be had: their task's leading thread has ended, and this kernel has no descriptors \
                    of threads (it needs Linux 6.9)";
                refuse.because("file descriptors", reason);
                return Ok(Vec::new());
            }
            pidfd => pidfd.context("pidfd_open")?,
        };
        let mut buffer = Vec::new();
        let mut entries = Vec::new();
        for fd in fd_dir.numbers::<u32>(".").context("list fds")? {
            let open = Open::look(fd, &fd_dir, &info_dir, &mut buffer).with_context(|| format!("fd {fd}"))?;
            let id = self
                .description(deputy, &open, &pidfd, paths, terminal, refuse)
                .with_context(|| open.describe())?;
            if let Some(description) = id {
                let close_on_exec = open.info.flags & O_CLOEXEC != 0;
                entries.push(FdEntry { fd: TaskFd(fd), description, close_on_exec });
            }
        }
        Ok(entries)
    }

    /// The description behind a descriptor; `None` when it was refused.
    fn description(
        &mut self,
        pid: Pid,
        open: &Open,
        pidfd: &OwnedFd,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<DescriptionId>> {
        if lock::refuse_others(&open.info.locks, &open.describe(), refuse) {
            return Ok(None);
        }
        let flags = open.info.flags & !O_CLOEXEC;
        let likeness = (open.stat.st_dev, open.stat.st_ino, flags, open.info.position);
        let at = match self.find(likeness, (pid, open.fd))? {
            Ok(known) => {
                self.note_locks(open, known, refuse.pid());
                return Ok(Some(known));
            }
            Err(at) => at,
        };
        let id = DescriptionId(u32::try_from(self.descriptions.len()).context("too many open files")?);
        let place = |refuse: &Refuse<'_>| Place {
            id,
            holder: (pid, open.fd),
            task: (refuse.pid(), refuse.name().to_owned()),
            object: open.describe(),
        };
        let target = match event::Kind::of(&open.link) {
            Some(kind) if open.info.flags & O_PATH == 0 => {
                self.events.add(kind, &open.text, place(refuse), refuse)?
            }
            _ => self.target(open, pidfd, paths, terminal, refuse)?,
        };
        let Some(target) = target else { return Ok(None) };
        let notify = self.owner(open, pidfd, place, refuse)?;
        self.descriptions.push(Description { target, flags, position: open.info.position, notify });
        self.holders.push((pid, open.fd));
        self.inodes.push((open.stat.st_ino, open.stat.st_dev));
        let known = Known { id, holder: (pid, open.fd) };
        self.alike.entry(likeness).or_default().insert(at, known);
        self.note_locks(open, id, refuse.pid());
        Ok(Some(id))
    }

    fn note_locks(&mut self, open: &Open, id: DescriptionId, holder: Pid) {
        if !open.info.locks.is_empty() {
            let file = (open.stat.st_dev, open.stat.st_ino);
            self.locks.note((open.fd, id, file), &open.info.locks, &open.describe(), holder);
        }
    }

    /// Records the locks with the tasks that are to take them.
    pub(crate) fn give_locks(
        &mut self,
        tree: &HashSet<Pid>,
        tasks: &mut [Task],
        refusals: &mut Refusals,
    ) -> Result<()> {
        let locks = std::mem::take(&mut self.locks);
        let holder = |id: DescriptionId| self.holders.get(id.0 as usize).copied();
        locks.refuse_outsiders(tree, holder, refusals)?;
        locks.distribute(tasks, refusals);
        Ok(())
    }

    /// Looks a descriptor up among those like it: its description, or where it belongs in their order.
    fn find(&self, likeness: Likeness, holder: (Pid, u32)) -> Result<Result<DescriptionId, usize>> {
        let Some(alike) = self.alike.get(&likeness) else { return Ok(Err(0)) };
        let (mut low, mut high) = (0, alike.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match kcmp(Kind::File, alike[middle].holder, holder).context("kcmp (needs CONFIG_KCMP)")? {
                Ordering::Equal => return Ok(Ok(alike[middle].id)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(Err(low))
    }

    /// Who is told by a signal of events at a description.
    fn owner(
        &mut self,
        open: &Open,
        pidfd: &OwnedFd,
        place: impl Fn(&Refuse<'_>) -> Place,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Notify>> {
        let kind = file_type(open.stat.st_mode);
        if open.info.flags & O_ASYNC != 0 && kind == SFlag::S_IFCHR && is_memory_device(open.stat.st_rdev) {
            let reason = "signal-driven I/O (O_ASYNC) is on, which is not supported for such devices";
            refuse.with_hint(open.describe(), reason, CLOSE);
        }
        let copy = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
        self.events.add_owner(copy.as_fd(), kind == SFlag::S_IFDIR, place, refuse)
    }

    fn target(
        &mut self,
        open: &Open,
        pidfd: &OwnedFd,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        if open.info.flags & O_PATH != 0 {
            refuse.with_hint(open.describe(), "opened with O_PATH", CLOSE);
            return Ok(None);
        }
        if pidfds::is_one(&open.link) {
            let copy = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
            let shown = (open.describe(), open.info.flags, open.stat.st_ino);
            return Ok(self.pidfds.add(shown, &open.text, copy.as_fd(), refuse)?.map(Target::Pidfd));
        }
        if let Some(ino) = pipe::inode(&open.link) {
            pipe::check_flags(open.info.flags, &open.describe(), refuse);
            return Ok(Some(Target::Pipe(self.pipe(ino, open, pidfd)?)));
        }
        if socket::inode(&open.link).is_some() {
            let copy = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
            let (pid, name) = (refuse.pid(), refuse.name().to_owned());
            let holder = Holder { pid, name, object: open.describe() };
            match socket::family(copy.as_fd()).context("SO_DOMAIN")? {
                libc::AF_UNIX => {
                    return Ok(self.sockets.add(copy, &open.stat, holder, refuse)?.map(Target::UnixSocket));
                }
                libc::AF_INET | libc::AF_INET6 => {
                    return Ok(self.inet.add(copy, &open.stat, holder, refuse)?.map(Target::InetSocket));
                }
                _ => {}
            }
        }
        if let Some(kind) = namespace::kind(&open.link) {
            return Ok(
                namespace::dump_file(kind, &open.stat, &open.describe(), refuse)?.map(Target::Namespace)
            );
        }
        let kind = file_type(open.stat.st_mode);
        if let Some(owner) = task_file::owner(&open.link)
            && (kind == SFlag::S_IFREG || kind == SFlag::S_IFDIR)
        {
            let copy = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
            if task_file::is_one(copy.as_fd(), &open.stat)? {
                let file = task_file::Open {
                    pid: owner,
                    object: open.describe(),
                    link: &open.link,
                    stat: &open.stat,
                    flags: open.info.flags,
                    copy: copy.as_fd(),
                };
                return Ok(self.task_files.add(file, refuse)?.map(Target::TaskFile));
            }
        }
        if mqueue::may_be_one(&open.stat) {
            let copy = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
            if mqueue::is_one(copy.as_fd())? {
                let shown = (open.describe(), open.link.as_slice(), &open.stat);
                let record = self.message_queues.add(shown, copy.as_fd(), refuse)?;
                return Ok(record.map(Target::MessageQueue));
            }
        }
        let supported = kind == SFlag::S_IFREG
            || kind == SFlag::S_IFDIR
            || (kind == SFlag::S_IFCHR && is_memory_device(open.stat.st_rdev));
        if supported && open.link.starts_with(b"/") {
            let reopen = || {
                let copy = pidfd::get_fd(pidfd.as_fd(), open.fd)?;
                let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
                Ok(nix::fcntl::open(name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
            };
            return match paths.resolve(&open.link, &open.stat, reopen) {
                Ok(path) => Ok(Some(Target::Path(path))),
                Err(lost) => {
                    refuse.with_hint(open.describe(), lost.to_string(), lost.close());
                    Ok(None)
                }
            };
        }
        if kind == SFlag::S_IFCHR && is_terminal(open.stat.st_rdev) {
            return self.terminal(open, pidfd, paths, terminal, refuse);
        }
        let reason = format!("{} not supported", unsupported(&open.link, kind));
        refuse.with_hint(open.describe(), reason, CLOSE);
        Ok(None)
    }

    fn terminal(
        &mut self,
        open: &Open,
        pidfd: &OwnedFd,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        let copy = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
        let (pid, name) = (refuse.pid(), refuse.name().to_owned());
        let holder = Holder { pid, name, object: open.describe() };
        let end = terminal::Open { copy, link: &open.link, stat: &open.stat, holder };
        Ok(match self.terminals.add(end, terminal, paths, refuse)? {
            terminal::Kind::Pty(target) => Some(target),
            terminal::Kind::ShellJob => Some(Target::Terminal(paths.terminal(&open.link, &open.stat))),
            terminal::Kind::Refused => None,
            terminal::Kind::Other => {
                refuse_terminal(open, terminal, refuse);
                None
            }
        })
    }

    /// The record of a pipe. Its contents are read when the first read end turns up.
    fn pipe(&mut self, ino: u64, open: &Open, pidfd: &OwnedFd) -> Result<u32> {
        let readable = open.info.flags & O_ACCMODE != O_WRONLY;
        if let Some(&id) = self.pipe_ids.get(&ino) {
            if readable && self.unread.remove(&ino).is_some() {
                let end = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
                let index = usize::try_from(id).context("pipe id")?;
                self.pipes[index] = pipe::dump_contents(end.as_fd(), ino)?;
            }
            return Ok(id);
        }
        let id = u32::try_from(self.pipes.len()).context("too many pipes")?;
        let end = pidfd::get_fd(pidfd.as_fd(), open.fd).context("pidfd_getfd")?;
        self.pipes.push(if readable {
            pipe::dump_contents(end.as_fd(), ino)?
        } else {
            self.unread.insert(ino, id);
            Pipe { ino, capacity: fd_ops::capacity(end.as_fd())?, contents: Vec::new() }
        });
        self.pipe_ids.insert(ino, id);
        Ok(id)
    }

    /// Reads the queues of all sockets, and records what descriptions are on their way in them, sockets included.
    pub(crate) fn dump_sockets(
        &mut self,
        paths: &mut Paths,
        terminal: Terminal,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let own = nix::unistd::getpid().as_raw();
        let (dir, pidfd) = (Dir::task(own)?, pidfd::open(own).context("pidfd_open")?);
        let (fd_dir, info_dir) = (dir.dir("fd")?, dir.dir("fdinfo")?);
        let mut buffer = Vec::new();
        loop {
            let arrived = self.sockets.read_queues(refusals)?;
            if arrived.is_empty() {
                return self.sockets.relate(refusals);
            }
            for one in arrived {
                let fd = one.fd.as_raw_fd().cast_unsigned();
                let mut open = Open::look(fd, &fd_dir, &info_dir, &mut buffer)?;
                open.queue_of = Some(one.holder.object.clone());
                let refuse = &mut Refuse::new(refusals, one.holder.pid, &one.holder.name);
                let id = self
                    .description(own, &open, &pidfd, paths, terminal, refuse)
                    .with_context(|| open.describe())?;
                if let Some(id) = id {
                    if self.descriptions[id.0 as usize].target.is_late() {
                        let reason = "cannot be on its way: it stands for a task, and the queue is filled before there are any";
                        refuse.with_hint(
                            open.describe(),
                            reason,
                            "have the program receive it before the dump",
                        );
                    }
                    self.sockets.found_description(&one, id);
                }
                // Later ones are compared with it.
                self.arrived.push(one.fd);
            }
        }
    }

    /// Refuses internet sockets that cannot be had as they are, once all of the tree are known.
    pub(crate) fn check_inet_sockets(&mut self, policy: inet::Policy, refusals: &mut Refusals) -> Result<()> {
        self.inet.check(policy, refusals).context("look at internet sockets")
    }

    /// Looks at TCP connections, if nothing else is in the way of the dump.
    pub(crate) fn look_at_connections(&mut self, policy: inet::Policy) -> Result<inet::Silenced> {
        self.inet.look_at_connections(policy).context("look at TCP connections")
    }

    /// Completes what takes the whole tree to know. The tasks have their descriptors already.
    pub(crate) fn finish_events(
        &mut self,
        tasks: &[Task],
        zombies: &[Zombie],
        refusals: &mut Refusals,
    ) -> Result<()> {
        let tree = event::Tree { tasks, zombies, holders: &self.holders, inodes: &self.inodes };
        self.pidfds.refuse_outsiders(tasks, zombies, refusals);
        self.task_files.refuse_outsiders(tasks, zombies, refusals);
        self.message_queues.refuse_registrations(tasks, refusals);
        self.epolls = self.events.finish(&mut self.descriptions, &tree, refusals)?;
        Ok(())
    }

    /// Refuses what somebody outside of the tree could have a part in.
    pub(crate) fn refuse_outsiders(
        &self,
        holders: &mut pipe::Holders,
        tree: &HashSet<Pid>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        holders.refuse_outsiders(tree, self.ends(), refusals)?;
        if !self.events.is_empty() {
            self.events.refuse_outsiders(holders.event_files(tree)?, refusals)?;
        }
        Ok(())
    }

    /// Everything that somebody outside of the tree may have an end of.
    fn ends(&self) -> impl Iterator<Item = pipe::Object> {
        let pipes = self.pipe_ids.keys().copied().map(pipe::Object::Pipe);
        pipes.chain(self.terminals.living().map(|(pty, _)| pty))
    }

    /// The masters of pseudo terminals.
    pub(crate) fn masters(&self) -> impl Iterator<Item = (pipe::Object, BorrowedFd<'_>)> {
        self.terminals.living()
    }

    /// Finds out about pseudo terminals, once all descriptors are known: the device numbers of those that are complete.
    pub(crate) fn relate_terminals(
        &mut self,
        tasks: &[Standing],
        terminal: Terminal,
        guarded: bool,
        refusals: &mut Refusals,
    ) -> Result<Vec<u32>> {
        self.terminals.relate(tasks, terminal.is_some(), guarded, refusals)
    }

    /// Looks what is on its way through them, if nothing else is in the way of the dump.
    pub(crate) fn look_into_terminals(&mut self, refusals: &mut Refusals) -> Result<()> {
        self.terminals.look_into(refusals).context("look into pseudo terminals")
    }

    /// All records.
    pub(crate) fn into_files(self, paths: Vec<Path>) -> Files {
        let (inet_sockets, network_hold) = self.inet.into_records();
        Files {
            paths,
            descriptions: self.descriptions,
            pipes: self.pipes,
            unix_sockets: self.sockets.into_records(),
            inet_sockets,
            network_hold,
            ptys: self.terminals.into_records(),
            epolls: self.epolls,
            task_files: self.task_files.into_records(),
            message_queues: self.message_queues.into_records(),
        }
    }
}

/// Major and minor number.
fn device(rdev: u64) -> (u64, u64) {
    (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev))
}

/// null, zero, full, random, urandom: drivers/char/mem.c.
fn is_memory_device(rdev: u64) -> bool {
    matches!(device(rdev), (1, 3 | 5 | 7 | 8 | 9))
}

/// Virtual consoles, serial lines, /dev/tty, /dev/console, masters and slaves of pseudo terminals:
/// Documentation/admin-guide/devices.txt.
fn is_terminal(rdev: u64) -> bool {
    matches!(device(rdev), (4, _) | (5, 0..=2) | (136..=143, _))
}

fn refuse_terminal(open: &Open, terminal: Terminal, refuse: &mut Refuse<'_>) {
    if terminal.is_some() {
        refuse.with_hint(open.describe(), "a terminal other than that of the shell job", CLOSE);
    } else {
        let hint = "use --shell-job to restore it on the terminal of crr restore";
        refuse.with_hint(open.describe(), "a terminal", hint);
    }
}

/// What to call an object that cannot be dumped.
fn unsupported(link: &[u8], kind: SFlag) -> &'static str {
    const BY_LINK: [(&[u8], &str); 7] = [
        (b"socket:[", "sockets are"),
        (b"anon_inode:inotify", "inotify descriptors are"),
        (b"anon_inode:[fanotify", "fanotify descriptors are"),
        (b"anon_inode:[io_uring", "io_uring is"),
        (b"anon_inode:[userfaultfd", "userfaultfd is"),
        (b"anon_inode:[perf_event", "performance counters are"),
        (b"anon_inode:", "anonymous inodes of this kind are"),
    ];
    if let Some((_, name)) = BY_LINK.iter().find(|(prefix, _)| link.starts_with(prefix)) {
        return name;
    }
    match kind {
        SFlag::S_IFIFO => "named pipes (FIFOs) are",
        SFlag::S_IFCHR => "character devices of this kind are",
        SFlag::S_IFBLK => "block devices are",
        SFlag::S_IFSOCK => "sockets are",
        _ => "files of this kind are",
    }
}

/// The path of a link of a task: `exe`, `cwd`, `root`.
pub(crate) fn dump_link(
    dir: &Dir,
    name: &str,
    paths: &mut Paths,
    refuse: &mut Refuse<'_>,
) -> Result<images::PathId> {
    let link = dir.link(name).with_context(|| format!("read {name}"))?;
    let stat = dir.stat(name).with_context(|| format!("stat {name}"))?;
    Ok(match paths.resolve(link.as_bytes(), &stat, || dir.open(name)) {
        Ok(path) => path,
        Err(lost) => {
            let object = format!("{name} ({})", link.to_string_lossy());
            match name {
                "exe" => refuse.with_hint(object, lost.to_string(), START_AGAIN),
                "cwd" => refuse.with_hint(object, lost.to_string(), LEAVE),
                _ => refuse.because(object, lost.to_string()),
            }
            images::PathId(u32::MAX)
        }
    })
}
