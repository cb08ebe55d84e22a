//! Open files: descriptors, the descriptions that they share, and which can be opened again.

pub(crate) mod copies;
pub(crate) mod kinds;
pub(crate) mod links;
mod open;
pub(crate) mod reopen;
mod target;
mod whole;

use super::event::{self, Place};
use super::external::{Externals, Key};
use super::path::{CLOSE, Paths, file_type};
use super::pipe::{self, Pipes};
use super::terminal::Terminals;
use super::unix_socket::{Holder, Sockets};
use super::{Refuse, bpf, device, inet, lock, mqueue, packet, pidfd, socket, task_file};
use crate::parallel;
use crate::proc::Dir;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::limits;
use anyhow::{Context, Result};
use copies::Copies;
use images::event::{Epoll, Notify};
use images::fanotify::Fanotify;
use images::file::{Description, FdEntry, Files, Path};
use images::inotify::Inotify;
use images::interface::Interface;
use images::netlink::NetlinkSocket;
use images::{DescriptionId, Pid, TaskFd};
use links::{Link, Links};
use nix::sys::stat::SFlag;
use open::Open;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const O_CLOEXEC: u32 = 0o2_000_000;
pub(crate) const O_PATH: u32 = 0o10_000_000;
pub(crate) const O_ASYNC: u32 = 0o20_000;

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
    /// What descriptors lead to, of tasks whose turn is yet to come.
    links: Links,
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
    interfaces: Vec<Interface>,
    network: socket::OwnNetwork,
    terminals: Terminals,
    events: event::Found,
    epolls: Vec<Epoll>,
    inotifies: Vec<Inotify>,
    fanotifies: Vec<Fanotify>,
    pidfds: pidfd::Table,
    task_files: task_file::Table,
    message_queues: mqueue::Table,
    bpf_maps: bpf::Table,
    /// For each description, one who has it, and its inode and device.
    holders: Vec<(Pid, u32)>,
    inodes: Vec<(u64, u64)>,
    locks: lock::Table,
    /// Descriptions that were found on their way: crr holds them as long as others are compared with them.
    arrived: Vec<OwnedFd>,
}

/// The terminal of a shell job, by device number.
pub(crate) type Terminal = Option<u32>;

/// Descriptors that are looked at before any of them is recorded: enough for several threads, few enough for little memory and, as each of them is one of
/// crr's, too, for half of what it may still open. Any file that it has open tells the lowest number that is free.
fn looked_at_together(any: &Dir) -> usize {
    const MOST: usize = 4096;
    let lowest =
        any.as_fd().try_clone_to_owned().ok().and_then(|free| usize::try_from(free.as_raw_fd()).ok());
    let room = lowest.map_or(0, |lowest| limits::open_files().saturating_sub(lowest));
    (room / 2).clamp(1, MOST)
}

impl Table {
    /// An empty one. Files with these keys stay outside; `output` is the pipe, if it is one, that images are written to. Descriptors that are not
    /// among the `links` are listed when they are collected.
    pub(crate) fn new(external: &[Key], output: Option<pipe::Object>, links: Links) -> Self {
        Self { links, externals: Externals::new(external), output, ..Self::default() }
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
        let links = match self.links.take(deputy) {
            Some(links) => links,
            None => links::list(&dir.dir("fd")?)?,
        };
        let info_dir = dir.dir("fdinfo")?;
        let look =
            |link: &Link| Open::look(link, &info_dir, copies).with_context(|| format!("fd {}", link.fd));
        let mut entries = Vec::with_capacity(links.len());
        let mut left = links.as_slice();
        while !left.is_empty() {
            let (together, later) = left.split_at(left.len().min(looked_at_together(&info_dir)));
            left = later;
            for mut open in parallel::map_to_files(together, look)? {
                let id = self
                    .description(deputy, &mut open, copies, paths, terminal, refuse)
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
        open: &mut Open,
        copies: &Copies,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<DescriptionId>> {
        if lock::refuse_others(&open.info.locks, open.stat.st_nlink > 0, || open.describe(), refuse) {
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
        open.follow()?;
        let open = &*open;
        let id = DescriptionId(u32::try_from(self.descriptions.len()).context("too many open files")?);
        let place = |refuse: &Refuse<'_>| Place {
            id,
            sent: copies.keep(&open.copy),
            holder: (pid, open.fd),
            task: (refuse.pid(), refuse.name().to_owned()),
            object: open.describe(),
        };
        let target = match event::Kind::of(&open.link) {
            Some(kind) if open.info.flags & O_PATH == 0 => {
                self.events.add(kind, &open.text, place(refuse), refuse)?
            }
            _ => self.target(open, open.copy.as_fd(), paths, terminal, refuse)?,
        };
        let Some(target) = target else { return Ok(None) };
        let notify = self.owner(open, open.copy.as_fd(), place, refuse)?;
        self.descriptions.push(Description { target, flags, position: open.info.position, notify });
        self.holders.push((pid, open.fd));
        self.inodes.push((open.stat.st_ino, open.stat.st_dev));
        let known = Known { id, holder: (pid, open.fd) };
        self.alike.entry(likeness).or_default().insert(at, known);
        self.note_locks(open, id, refuse.pid());
        Ok(Some(id))
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

    fn note_locks(&mut self, open: &Open, id: DescriptionId, holder: Pid) {
        if !open.info.locks.is_empty() {
            let file = (open.stat.st_dev, open.stat.st_ino);
            self.locks.note((open.fd, id, file), &open.info.locks, &open.describe(), holder);
        }
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
            fanotifies: self.fanotifies,
            task_files: self.task_files.into_records(),
            message_queues: self.message_queues.into_records(),
            packet_sockets: self.packets.into_records(),
            bpf_maps: self.bpf_maps.into_records(),
            interfaces: self.interfaces,
        }
    }
}
