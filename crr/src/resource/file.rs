//! Open files: descriptors, the descriptions that they share, and which can be opened again.

pub(crate) mod copies;
pub(crate) mod kinds;
pub(crate) mod reopen;

use super::event::{self, Place};
use super::external::{Externals, Key};
use super::path::{CLOSE, Paths, file_type, link_of};
use super::pipe::{self, Pipes};
use super::socket;
use super::terminal::{self, Terminals};
use super::tree::Standing;
use super::unix_socket::half::HalfPolicy;
use super::unix_socket::{self, Holder, Sockets};
use super::view::{FileSystem, Use};
use super::{
    Refuse, device, inet, inotify, lock, mqueue, namespace, netlink, packet, pidfd as pidfds, task_file,
};
use crate::parallel;
use crate::proc::{Dir, fdinfo};
use crate::refusal::Refusals;
use crate::sys::kcmp::{Kind, kcmp};
use anyhow::{Context, Result};
use copies::Copies;
use images::event::{Epoll, Notify};
use images::file::{Description, FdEntry, Files, Path, Target};
use images::inotify::Inotify;
use images::memory::{Backing, Space};
use images::netlink::NetlinkSocket;
use images::task::{Task, Zombie};
use images::{DescriptionId, PathId, Pid, TaskFd};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const O_CLOEXEC: u32 = 0o2_000_000;
pub(crate) const O_PATH: u32 = 0o10_000_000;
pub(crate) const O_ASYNC: u32 = 0o20_000;

/// Ways out.
const START_AGAIN: &str = "start the program again from the present file";
const READ_ELSEWHERE: &str = "have a program outside of the tree read the images";
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
    pipes: Pipes,
    externals: Externals,
    /// What images are written to: whoever reads it must not be stopped.
    output: Option<pipe::Object>,
    sockets: Sockets,
    inet: inet::Sockets,
    netlink: Vec<(NetlinkSocket, Holder)>,
    packets: packet::Sockets,
    network: socket::OwnNetwork,
    terminals: Terminals,
    events: event::Found,
    epolls: Vec<Epoll>,
    inotifies: Vec<Inotify>,
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

/// Descriptors that are looked at before any of them is recorded: enough for several threads, few enough for little memory.
const LOOKED_AT_TOGETHER: usize = 4096;

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
    fn look(fd: u32, fd_dir: &Dir, info_dir: &Dir) -> Result<Self> {
        let name = fd.to_string();
        let mut text = Vec::new();
        info_dir.read(&name, &mut text)?;
        let info = fdinfo::parse(&text)?;
        let link = link_of(fd_dir, &name)?;
        if !(link.starts_with(b"anon_inode:") || pidfds::is_one(&link)) {
            text = Vec::new();
        }
        Ok(Self { fd, link, stat: fd_dir.stat(&name)?, info, text, queue_of: None })
    }

    /// Whether it is shown by a path, even if that leads nowhere (prepend_path() of fs/d_path.c) or is too long.
    fn has_path(&self) -> bool {
        self.link.is_empty() || self.link.starts_with(b"/") || self.link.starts_with(b"(unreachable)")
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
    /// An empty one. Files with these keys stay outside; `output` is the pipe, if it is one, that images are written to.
    pub(crate) fn new(external: &[Key], output: Option<pipe::Object>) -> Self {
        Self { externals: Externals::new(external), output, ..Self::default() }
    }

    /// Collects the descriptors of one task, by a living thread of it.
    pub(crate) fn dump_task(
        &mut self,
        deputy: Pid,
        dir: &Dir,
        copies: &Copies,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Vec<FdEntry>> {
        let (fd_dir, info_dir) = (dir.dir("fd")?, dir.dir("fdinfo")?);
        let look = |&fd: &u32| Open::look(fd, &fd_dir, &info_dir).with_context(|| format!("fd {fd}"));
        let mut entries = Vec::new();
        for numbers in fd_dir.numbers::<u32>(".").context("list fds")?.chunks(LOOKED_AT_TOGETHER) {
            for open in parallel::map(numbers, look)? {
                let id = self
                    .description(deputy, &open, copies, paths, terminal, refuse)
                    .with_context(|| open.describe())?;
                if let Some(description) = id {
                    let close_on_exec = open.info.flags & O_CLOEXEC != 0;
                    entries.push(FdEntry { fd: TaskFd(open.fd), description, close_on_exec });
                }
            }
        }
        Ok(entries)
    }

    /// The description behind a descriptor; `None` when it was refused.
    fn description(
        &mut self,
        pid: Pid,
        open: &Open,
        copies: &Copies,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<DescriptionId>> {
        if lock::refuse_others(&open.info.locks, open.stat.st_nlink > 0, &open.describe(), refuse) {
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
        let copy = copies.get(open.fd)?;
        let place = |refuse: &Refuse<'_>| Place {
            id,
            sent: copies.keep(&copy),
            holder: (pid, open.fd),
            task: (refuse.pid(), refuse.name().to_owned()),
            object: open.describe(),
        };
        let target = match event::Kind::of(&open.link) {
            Some(kind) if open.info.flags & O_PATH == 0 => {
                self.events.add(kind, &open.text, place(refuse), refuse)?
            }
            _ => self.target(open, copy.as_fd(), paths, terminal, refuse)?,
        };
        let Some(target) = target else { return Ok(None) };
        let notify = self.owner(open, copy.as_fd(), place, refuse)?;
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

    /// Refuses leases that nobody could take again.
    pub(crate) fn refuse_leases(&self, tasks: &[Task], spaces: &[Space], refusals: &mut Refusals) {
        let backings = || spaces.iter().flat_map(|space| &space.vmas).map(|vma| vma.backing);
        let maps = |path| {
            let of_it = |backing| matches!(backing, Backing::PrivateFile(of, _) | Backing::SharedFile(of, _) if of == path);
            backings().any(of_it) || tasks.iter().any(|task| task.exe == path)
        };
        let file = |id: DescriptionId| {
            let Target::Path(path) = self.descriptions.get(id.0 as usize)?.target else { return None };
            let (pid, fd) = *self.holders.get(id.0 as usize)?;
            let owner = Dir::task(pid).and_then(|dir| dir.stat(&format!("fd/{fd}"))).ok()?.st_uid;
            Some((path, owner))
        };
        lock::refuse_leases(tasks, file, maps, refusals);
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
        copy: BorrowedFd<'_>,
        place: impl Fn(&Refuse<'_>) -> Place,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Notify>> {
        let kind = file_type(open.stat.st_mode);
        if open.info.flags & O_PATH != 0 {
            // fcntl(2) tells nothing of a name, and takes nothing for it.
            return Ok(None);
        }
        if open.info.flags & O_ASYNC != 0 && device::opens_again(&open.stat, open.info.flags) {
            let reason = "signal-driven I/O (O_ASYNC) is on, which is not supported for such devices";
            refuse.with_hint(open.describe(), reason, CLOSE);
        }
        self.events.add_owner(copy, kind == SFlag::S_IFDIR, place, refuse)
    }

    fn target(
        &mut self,
        open: &Open,
        copy: BorrowedFd<'_>,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        if open.info.flags & O_PATH != 0 {
            if !open.has_path() {
                let reason = "opened with O_PATH, and no name leads to it";
                refuse.with_hint(open.describe(), reason, CLOSE);
                return Ok(None);
            }
            // Its name is not there before the terminal is made again.
            let is_char = file_type(open.stat.st_mode) == SFlag::S_IFCHR;
            if is_char && matches!(device::number(open.stat.st_rdev), (136..=143, _)) {
                refuse.with_hint(open.describe(), "a pseudo terminal opened with O_PATH", CLOSE);
                return Ok(None);
            }
            return Ok(named(open, copy, paths, refuse).map(Target::Path));
        }
        if self.output.is_some() && pipe::Object::pipe(&open.link, &open.stat) == self.output {
            let reason = "crr writes the images to it, and its reader must not be stopped with the tree";
            refuse.with_hint(open.describe(), reason, READ_ELSEWHERE);
            return Ok(None);
        }
        if let Some(id) = self.externals.find(&open.link, &open.stat, open.info.mount)? {
            return Ok(Some(Target::External(id)));
        }
        if file_type(open.stat.st_mode) == SFlag::S_IFIFO {
            return self.pipe(open, copy, paths, refuse);
        }
        if pidfds::is_one(&open.link) {
            let shown = (open.describe(), open.info.flags, open.stat.st_ino);
            return Ok(self.pidfds.add(shown, &open.text, copy, refuse)?.map(Target::Pidfd));
        }
        if let Some(ino) = socket::inode(&open.link) {
            let (pid, name) = (refuse.pid(), refuse.name().to_owned());
            let holder = Holder { pid, name, object: open.describe() };
            let own = || copy.try_clone_to_owned().context("duplicate a socket");
            match socket::family(copy).context("SO_DOMAIN")? {
                libc::AF_UNIX => {
                    if let Some(id) = self.externals.find_socket(ino, copy)? {
                        let kept = unix_socket::refuse_unread(copy, &holder, refuse)?;
                        return Ok(kept.then_some(Target::External(id)));
                    }
                    return Ok(self.sockets.add(own()?, &open.stat, holder, refuse)?.map(Target::UnixSocket));
                }
                libc::AF_INET | libc::AF_INET6 | libc::AF_NETLINK | libc::AF_PACKET
                    if !self.network.has(copy)? =>
                {
                    let reason = "belongs to another network namespace than crr";
                    refuse.with_hint(&holder.object, reason, CLOSE);
                    return Ok(None);
                }
                libc::AF_INET | libc::AF_INET6 => {
                    return Ok(self.inet.add(own()?, &open.stat, holder, refuse)?.map(Target::InetSocket));
                }
                libc::AF_NETLINK => {
                    let Some(record) = netlink::dump(copy, &open.stat, &holder, refuse)? else {
                        return Ok(None);
                    };
                    self.netlink.push((record, holder));
                    let index = u32::try_from(self.netlink.len() - 1).context("too many sockets")?;
                    return Ok(Some(Target::NetlinkSocket(index)));
                }
                libc::AF_PACKET => {
                    let index = self.packets.add(copy, &open.stat, holder, refuse)?;
                    return Ok(index.map(Target::PacketSocket));
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
        if (kind == SFlag::S_IFREG || kind == SFlag::S_IFDIR)
            && paths.kernel_file_system(&open.link, open.stat.st_dev) == Some(FileSystem::Proc)
            && let Some(place) = self.task_files.place(&open.link, open.stat.st_dev)
        {
            let file = task_file::Open {
                place,
                object: open.describe(),
                link: &open.link,
                stat: &open.stat,
                flags: open.info.flags,
                copy,
            };
            return Ok(self.task_files.add(file, refuse)?.map(Target::TaskFile));
        }
        if mqueue::may_be_one(&open.stat) && mqueue::is_one(copy)? {
            let shown = (open.describe(), open.link.as_slice(), &open.stat);
            let record = self.message_queues.add(shown, copy, refuse)?;
            return Ok(record.map(Target::MessageQueue));
        }
        let by_name = kind == SFlag::S_IFREG
            || kind == SFlag::S_IFDIR
            || device::opens_again(&open.stat, open.info.flags);
        if by_name && open.has_path() {
            if kind == SFlag::S_IFBLK && !device::is_free(copy).context("open the block device")? {
                let reason = "somebody has this block device for himself (O_EXCL, or it is mounted)";
                refuse.with_hint(open.describe(), reason, CLOSE);
                return Ok(None);
            }
            return Ok(named(open, copy, paths, refuse).map(Target::Path));
        }
        if kind == SFlag::S_IFCHR && is_terminal(open.stat.st_rdev) {
            return self.terminal(open, copy, paths, terminal, refuse);
        }
        let (what, hint) = kinds::unsupported(&open.link, &open.stat);
        refuse.with_hint(open.describe(), format!("{what} not supported"), hint);
        Ok(None)
    }

    fn terminal(
        &mut self,
        open: &Open,
        copy: BorrowedFd<'_>,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        let (pid, name) = (refuse.pid(), refuse.name().to_owned());
        let holder = Holder { pid, name, object: open.describe() };
        let copy = copy.try_clone_to_owned().context("duplicate an end of a terminal")?;
        let end = terminal::Open { copy, link: &open.link, stat: &open.stat, holder };
        Ok(match self.terminals.add(end, terminal, paths, refuse)? {
            terminal::Kind::Pty(target) => Some(target),
            terminal::Kind::ShellJob => Some(Target::Terminal(paths.terminal(&open.link, &open.stat))),
            terminal::Kind::Refused => None,
            terminal::Kind::Other(what) => {
                refuse_terminal(open, what, terminal, refuse);
                None
            }
        })
    }

    /// An end of a pipe, which is the next description, with a name in the file system or without.
    fn pipe(
        &mut self,
        open: &Open,
        copy: BorrowedFd<'_>,
        paths: &mut Paths,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        let path = if pipe::inode(&open.link).is_some() {
            None
        } else {
            match paths
                .resolve(&open.link, &open.stat, Use::Open(open.info.flags), || copy.try_clone_to_owned())
            {
                Ok(path) => Some(path),
                Err(lost) => {
                    refuse.with_hint(open.describe(), lost.to_string(), lost.close());
                    return Ok(None);
                }
            }
        };
        let id = DescriptionId(u32::try_from(self.descriptions.len()).context("too many open files")?);
        let holder = Holder { pid: refuse.pid(), name: refuse.name().to_owned(), object: open.describe() };
        let key = Key::all_of(&open.link, &open.stat, open.info.mount).pop();
        let end = pipe::End { id, copy, stat: &open.stat, flags: open.info.flags, path, key, holder };
        Ok(Some(Target::Pipe(self.pipes.add(end)?)))
    }

    /// Completes the pipes. All descriptions are known.
    pub(crate) fn finish_pipes(&mut self, refusals: &mut Refusals) -> Result<()> {
        self.pipes.finish(refusals)
    }

    /// Reads the queues of all unix sockets, and records what descriptions are on their way in them, sockets included. Whether connections
    /// not accepted yet can be given up goes with what becomes of those that reach out of the tree.
    pub(crate) fn dump_sockets(
        &mut self,
        paths: &mut Paths,
        terminal: Terminal,
        (half, skip_in_flight): (&HalfPolicy, bool),
        refusals: &mut Refusals,
    ) -> Result<()> {
        let own = nix::unistd::getpid().as_raw();
        let dir = Dir::task(own)?;
        let (fd_dir, info_dir) = (dir.dir("fd")?, dir.dir("fdinfo")?);
        loop {
            let arrived = self.sockets.read_queues(refusals)?;
            if arrived.is_empty() {
                return self.sockets.relate(half, skip_in_flight, refusals);
            }
            for one in arrived {
                let fd = one.fd.as_raw_fd().cast_unsigned();
                let mut open = Open::look(fd, &fd_dir, &info_dir)?;
                open.queue_of = Some(one.holder.object.clone());
                let refuse = &mut Refuse::new(refusals, one.holder.pid, &one.holder.name);
                let id = self
                    .description(own, &open, &Copies::Own, paths, terminal, refuse)
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

    /// Refuses internet and packet sockets that cannot be had as they are, once all of the tree are known.
    pub(crate) fn check_network_sockets(
        &mut self,
        policy: inet::Policy,
        refusals: &mut Refusals,
    ) -> Result<()> {
        self.packets.check(policy, refusals);
        self.inet.check(policy, refusals).context("look at internet sockets")
    }

    /// Whether there are TCP connections to be looked at.
    pub(crate) fn has_connections(&self) -> bool {
        self.inet.has_connections()
    }

    /// Looks at TCP connections, if nothing else is in the way of the dump.
    pub(crate) fn look_at_connections(&mut self, policy: inet::Policy) -> Result<inet::Silenced> {
        self.inet.look_at_connections(policy).context("look at TCP connections")
    }

    /// Finds out who else uses message queues, once all of the tree are known.
    pub(crate) fn relate_message_queues(
        &mut self,
        holders: &mut pipe::Holders,
        tree: &HashSet<Pid>,
        tasks: &[Task],
        refusals: &mut Refusals,
    ) -> Result<()> {
        self.message_queues.relate(holders, tree, tasks, refusals)
    }

    /// Whether there are messages in queues to be looked at.
    pub(crate) fn has_messages(&self) -> Result<bool> {
        self.message_queues.have_messages()
    }

    /// Looks what is in message queues, if nothing else is in the way of the dump.
    pub(crate) fn look_into_message_queues(&mut self) -> Result<()> {
        self.message_queues.look_into()
    }

    /// Completes what takes the whole tree to know. The tasks have their descriptors already.
    pub(crate) fn finish_events(
        &mut self,
        tasks: &[Task],
        zombies: &[Zombie],
        had_requests: bool,
        paths: &mut Paths,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let (holders, inodes) = (&self.holders[..], &self.inodes[..]);
        let tree = event::Tree { tasks, zombies, holders, inodes, had_requests };
        self.pidfds.refuse_outsiders(tasks, zombies, refusals);
        self.task_files.refuse_outsiders(tasks, zombies, refusals);
        self.epolls = self.events.finish(&mut self.descriptions, &tree, refusals)?;
        self.inotifies = inotify::dump(self.events.inotifies(), paths, refusals)?;
        Ok(())
    }

    /// Notes which epolls have something to tell. The last look at files: what comes in by the network, or a timer, can do so
    /// at any moment.
    pub(crate) fn note_pending_events(&mut self) -> Result<()> {
        self.events.note_pending(&mut self.epolls, &self.descriptions)
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
    fn ends(&self) -> impl Iterator<Item = (pipe::Object, Option<pipe::Ours<'_>>)> {
        let pipes = self.pipes.objects().map(|(pipe, ours)| (pipe, Some(ours)));
        let netlink = self.netlink.iter().map(|(socket, holder)| (socket.ino, holder));
        let others = self
            .inet
            .holders()
            .chain(netlink)
            .chain(self.packets.holders())
            .map(|(ino, holder)| (ino, holder, None));
        let unix = self.sockets.holders().map(|(ino, holder)| (ino, holder, Some(Key::UnixSocket(ino))));
        let sockets = unix
            .chain(others)
            .map(|(ino, holder, key)| (pipe::Object::Socket(ino), Some(pipe::Ours { holder, key })));
        pipes.chain(self.terminals.living().map(|(pty, _)| (pty, None))).chain(sockets)
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
            pipes: self.pipes.into_records(),
            unix_sockets: self.sockets.into_records(),
            inet_sockets,
            netlink_sockets: self.netlink.into_iter().map(|(socket, _)| socket).collect(),
            network_hold,
            ptys: self.terminals.into_records(),
            epolls: self.epolls,
            externals: self.externals.into_records(),
            inotifies: self.inotifies,
            task_files: self.task_files.into_records(),
            message_queues: self.message_queues.into_records(),
            packet_sockets: self.packets.into_records(),
        }
    }
}

/// The path of a descriptor that is opened again by its name; `None` when it was refused.
fn named(open: &Open, copy: BorrowedFd<'_>, paths: &mut Paths, refuse: &mut Refuse<'_>) -> Option<PathId> {
    let reopen = || {
        let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
        Ok(nix::fcntl::open(name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    };
    match paths.resolve(&open.link, &open.stat, Use::Open(open.info.flags), reopen) {
        Ok(path) => Some(path),
        Err(lost) => {
            refuse.with_hint(open.describe(), lost.to_string(), lost.close());
            None
        }
    }
}

/// Virtual consoles, serial lines, /dev/tty, /dev/console, masters and slaves of pseudo terminals:
/// Documentation/admin-guide/devices.txt.
fn is_terminal(rdev: u64) -> bool {
    matches!(device::number(rdev), (4, _) | (5, 0..=2) | (136..=143, _))
}

fn refuse_terminal(open: &Open, what: &'static str, terminal: Terminal, refuse: &mut Refuse<'_>) {
    let outside = match Key::all_of(&open.link, &open.stat, open.info.mount).first() {
        Some(key) => format!("leave it outside with --external {key}"),
        None => CLOSE.to_owned(),
    };
    if terminal.is_some() {
        let reason = format!("{what} other than that of the shell job");
        refuse.with_hint(open.describe(), reason, &outside);
    } else {
        let hint = format!("use --shell-job to restore it on the terminal of crr restore, or {outside}");
        refuse.with_hint(open.describe(), what, &hint);
    }
}

/// The path of a link of a task: `exe`, `cwd`, `root`.
pub(crate) fn dump_link(dir: &Dir, name: &str, paths: &mut Paths, refuse: &mut Refuse<'_>) -> Result<PathId> {
    let link = link_of(dir, name).with_context(|| format!("read {name}"))?;
    let stat = dir.stat(name).with_context(|| format!("stat {name}"))?;
    let what = if name == "exe" { Use::Mapped } else { Use::Directory };
    Ok(match paths.resolve(&link, &stat, what, || dir.open(name)) {
        Ok(path) => path,
        Err(lost) => {
            let object = format!("{name} ({})", String::from_utf8_lossy(&link));
            match name {
                "exe" => refuse.with_hint(object, lost.to_string(), START_AGAIN),
                "cwd" => refuse.with_hint(object, lost.to_string(), LEAVE),
                _ => refuse.because(object, lost.to_string()),
            }
            PathId(u32::MAX)
        }
    })
}
