//! Files: paths that the tree refers to, open file descriptions, and who holds them under which number.

use crate::bpf::BpfMap;
use crate::event::{Epoll, Eventfd, Notify, Timerfd};
use crate::external::External;
use crate::fanotify::Fanotify;
use crate::id::{DescriptionId, PathId, TaskFd};
use crate::inet::InetSocket;
use crate::inotify::Inotify;
use crate::interface::Interface;
use crate::late::{Process, TaskFile};
use crate::memory::{HugePage, Run};
use crate::mqueue::MessageQueue;
use crate::netlink::NetlinkSocket;
use crate::packet::PacketSocket;
use crate::pipe::Pipe;
use crate::socket::UnixSocket;
use crate::terminal::{Pty, PtyEnd};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The payload of `files.img`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Every path that a task opened, mapped, executes, watches or stands in.
    pub paths: Vec<Path>,
    /// Open file descriptions (`struct file`), each once however many descriptors share it.
    pub descriptions: Vec<Description>,
    /// Pipes, each once however many descriptions are open on it.
    pub pipes: Vec<Pipe>,
    /// Unix sockets, those that lie in the queue of another one included.
    pub unix_sockets: Vec<UnixSocket>,
    /// Pseudo terminals of which the tree has both ends.
    pub ptys: Vec<Pty>,
    /// Epolls.
    pub epolls: Vec<Epoll>,
    /// Sockets of the internet families.
    pub inet_sockets: Vec<InetSocket>,
    /// Netlink sockets.
    pub netlink_sockets: Vec<NetlinkSocket>,
    /// The table of nftables that holds the traffic of their connections.
    pub network_hold: Option<String>,
    /// Files that are not part of the checkpoint.
    pub externals: Vec<External>,
    /// Groups of inotify watches.
    pub inotifies: Vec<Inotify>,
    /// Files of `/proc/PID`, each description by itself.
    pub task_files: Vec<TaskFile>,
    /// POSIX message queues.
    pub message_queues: Vec<MessageQueue>,
    /// Packet sockets.
    pub packet_sockets: Vec<PacketSocket>,
    /// BPF maps, each once however many descriptions are open on it.
    pub bpf_maps: Vec<BpfMap>,
    /// Groups of fanotify marks.
    pub fanotifies: Vec<Fanotify>,
    /// The network interfaces that sockets have to do with, by rising number.
    pub interfaces: Vec<Interface>,
}

/// A name in the file system and what stood behind it at dump. There can be a great many; what few have is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Absolute, as seen from the root of `crr dump`.
    #[serde(serialize_with = "crate::readable::text")]
    pub path: Vec<u8>,
    /// `st_mode`: kind and permissions.
    pub mode: u32,
    /// `st_size`; meaningful for regular files.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// `st_rdev` of a device node.
    pub rdev: u64,
    /// Of a file, directory or FIFO that has no name any more: what it takes to make it again.
    pub deleted: Option<Box<Deleted>>,
    /// Whether it is a view of the kernel's state (procfs, sysfs): inode, size and time mean nothing.
    pub view: bool,
    /// Of a file whose name is gone while others lead to it: one that is there.
    pub other_name: Option<Box<OtherName>>,
    /// The build-id of a program or library, by which it is known again; empty where there is none.
    pub build_id: Vec<u8>,
    /// Of a program or library: a copy, should the file be another one at restore.
    pub embedded: Option<Box<Deleted>>,
}

impl Path {
    /// A name that leads to it.
    #[must_use]
    pub fn place(&self) -> &[u8] {
        self.other_name.as_ref().map_or(&self.path, |other| &other.name)
    }

    /// Whether no file is under [`Self::path`] any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.deleted.is_some() || self.other_name.is_some()
    }
}

/// A name that leads to a file whose [`Path::path`] is gone: that is the name it had, as `/proc` shows it without ` (deleted)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherName {
    /// Absolute, as seen from the root of `crr dump`.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
    /// Whether the dump has made it, so that the restore is to take it away.
    pub helper: bool,
}

/// A regular file, a directory or a FIFO without a name, or a memfd, which never had one. Its [`Path::path`] is the name it had, as
/// `/proc` shows it without ` (deleted)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access time: seconds and nanoseconds.
    pub atime: (i64, u32),
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// F_GET_SEALS of a memfd.
    pub seals: Option<u32>,
    /// The pages of a memfd, if they are huge (MFD_HUGETLB).
    pub huge: Option<HugePage>,
    /// Contents of a file, by rising offset; what lies between is holes.
    pub runs: Vec<Run>,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What it is open on.
    pub target: Target,
    /// Access mode and status flags as F_GETFL shows them.
    pub flags: u32,
    /// File offset; 0 where it has no meaning.
    pub position: u64,
    /// Who is told of events by signals, where anything about it was ever set.
    pub notify: Option<Notify>,
}

/// What a description is open on. Closed: a new kind must be taught to dump, plan and restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Opened again by name: a file, a directory, a device node, or (O_PATH) anything that has a name.
    Path(PathId),
    /// The read end, write end or both (by access mode) of a pipe: index into [`Files::pipes`].
    Pipe(u32),
    /// The terminal of the shell job: whichever terminal `crr restore` runs on.
    Terminal(PathId),
    /// A unix socket: index into [`Files::unix_sockets`].
    UnixSocket(u32),
    /// An end of a pseudo terminal.
    Pty {
        /// Index into [`Files::ptys`].
        pty: u32,
        /// Which end.
        end: PtyEnd,
        /// The name it was opened by.
        path: PathId,
    },
    /// An eventfd.
    Eventfd(Eventfd),
    /// A timerfd.
    Timerfd(Timerfd),
    /// A signalfd: the signals that it takes, bit n for signal n + 1.
    Signalfd(u64),
    /// An epoll: index into [`Files::epolls`].
    Epoll(u32),
    /// A socket of the internet families: index into [`Files::inet_sockets`].
    InetSocket(u32),
    /// A netlink socket: index into [`Files::netlink_sockets`].
    NetlinkSocket(u32),
    /// A file that is given at restore: index into [`Files::externals`].
    External(u32),
    /// A group of inotify watches: index into [`Files::inotifies`].
    Inotify(u32),
    /// A pidfd. PIDFD_NONBLOCK and PIDFD_THREAD are among [`Description::flags`], as O_NONBLOCK and O_EXCL.
    Pidfd(Process),
    /// A file of `/proc/PID`: index into [`Files::task_files`].
    TaskFile(u32),
    /// A namespace: whichever of this kind `crr restore` is in.
    Namespace(Namespace),
    /// A POSIX message queue: index into [`Files::message_queues`].
    MessageQueue(u32),
    /// A packet socket: index into [`Files::packet_sockets`].
    PacketSocket(u32),
    /// A BPF map: index into [`Files::bpf_maps`].
    BpfMap(u32),
    /// A group of fanotify marks: index into [`Files::fanotifies`].
    Fanotify(u32),
}

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// Mounts.
    Mount,
    /// Process ids.
    Pid,
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Users.
    User,
    /// Control groups.
    Cgroup,
    /// Clock offsets.
    Time,
}

impl Target {
    /// Whether it can be opened only when the tasks of the tree exist.
    #[must_use]
    pub const fn is_late(&self) -> bool {
        match self {
            Self::Pidfd(_) | Self::TaskFile(_) => true,
            Self::Path(_)
            | Self::Namespace(_)
            | Self::MessageQueue(_)
            | Self::Pipe(_)
            | Self::Terminal(_)
            | Self::UnixSocket(_)
            | Self::Pty { .. }
            | Self::Eventfd(_)
            | Self::Timerfd(_)
            | Self::Signalfd(_)
            | Self::Epoll(_)
            | Self::InetSocket(_)
            | Self::NetlinkSocket(_)
            | Self::PacketSocket(_)
            | Self::BpfMap(_)
            | Self::Fanotify(_)
            | Self::External(_)
            | Self::Inotify(_) => false,
        }
    }
}

/// An entry of a task's descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdEntry {
    /// The number.
    pub fd: TaskFd,
    /// The description behind it.
    pub description: DescriptionId,
    /// FD_CLOEXEC.
    pub close_on_exec: bool,
}
