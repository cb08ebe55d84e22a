//! Descriptions of all kinds; what is opened again by its name, and the shell's terminal.

use super::{O_ASYNC, O_PATH};
use crate::fault::{self, Point};
use crate::parallel;
use crate::resource::external::given::{Given, Sorted};
use crate::resource::unix_socket::bind::Binder;
use crate::resource::{
    bpf, event, fanotify, inet, inotify, mqueue, namespace, netlink, packet, pipe::recreate, terminal,
    unix_socket,
};
use crate::restore::late::Places;
use crate::sys::int80::LowBuffer;
use anyhow::{Context, Result, bail};
use images::file::{Description, Files, Path, Target};
use images::{PathId, Pid};
use nix::NixPath;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek64};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

/// For sessions, by their ids, a slave of the terminal that is to control each.
pub(crate) type Controlling = BTreeMap<Pid, OwnedFd>;

/// What was opened.
#[derive(Debug)]
pub(crate) struct Reopened {
    /// The descriptions, in order. Internet sockets have theirs, too.
    pub(crate) descriptions: Vec<Rc<OwnedFd>>,
    /// The files that unix sockets are bound to: they stay only if it is told so.
    pub(crate) socket_files: Binder,
    pub(crate) controlling: Controlling,
    /// Internet sockets, still silent.
    pub(crate) inet_sockets: inet::recreate::Restored,
    /// Packet sockets, of which the same is true.
    pub(crate) packet_sockets: packet::Deaf,
    /// Message queues with names, which stay only if it is told so.
    pub(crate) message_queues: mqueue::recreate::Made,
}

/// Opens every description, or holds its place, but for those that are open already.
///
/// # Errors
/// Names the file that cannot be opened.
pub(crate) fn open_all(
    files: &Files,
    given: Given,
    mut done: BTreeMap<usize, OwnedFd>,
    late: &mut Places,
) -> Result<Reopened> {
    // Made when first needed: a kernel without ia32 emulation has no such calls.
    let mut ia32 = Ia32::default();
    let mut pipes = recreate::create_all(files, &mut ia32)?;
    let mut given = given.sort(files);
    let sockets = unix_socket::recreate::create_all(&files.unix_sockets)?;
    let inet_sockets = inet::recreate::create_all(&files.inet_sockets, files.network_hold.as_deref())?;
    let mut ptys = terminal::recreate::create_all(files, &mut ia32)?;
    let mut message_queues = mqueue::recreate::create_all(files)?;
    let bpf_maps = bpf::recreate::create_all(&files.bpf_maps)?;
    // What has just been made has names, too: sockets, terminals.
    let mut by_name = open_by_name(files, &given, &done)?;
    let mut packet_sockets = packet::Deaf::default();
    let mut opened = Vec::with_capacity(files.descriptions.len());
    for (index, description) in files.descriptions.iter().enumerate() {
        if let Some(fd) = done.remove(&index) {
            opened.push(Rc::new(fd));
            continue;
        }
        // Signals are for later; and open(2) takes the flag without effect, so that F_SETFL would see no change.
        let flags = description.flags & !O_ASYNC;
        if let Some(fd) = given.open(description, &mut ia32)? {
            opened.push(Rc::new(fd));
            continue;
        }
        let fd = match description.target {
            Target::External(id) => bail!("{}: nothing is given for it", files.externals[id as usize].key),
            Target::Path(_) => by_name.remove(&index).context("it was not opened")?,
            Target::Terminal(path) => terminal(&files.paths[path.0 as usize], flags)?,
            Target::UnixSocket(index) => sockets.open(index, flags)?,
            Target::InetSocket(index) => {
                opened.push(inet_sockets.open(index, flags)?);
                continue;
            }
            Target::NetlinkSocket(index) => netlink::recreate(&files.netlink_sockets[index as usize], flags)?,
            Target::PacketSocket(index) => {
                opened.push(packet_sockets.open(&files.packet_sockets[index as usize], flags)?);
                continue;
            }
            Target::Pipe(pipe) => pipes[pipe as usize].open(index, flags, &mut ia32)?,
            Target::Eventfd(record) => event::recreate::eventfd(record, flags)?,
            Target::Timerfd(record) => event::recreate::timerfd(record, flags)?,
            Target::Signalfd(signals) => event::recreate::signalfd(signals, flags)?,
            Target::Epoll(_) => event::recreate::epoll(flags)?,
            Target::Inotify(index) => inotify::recreate::create(&files.inotifies[index as usize], flags)?,
            Target::Fanotify(index) => fanotify::recreate::create(&files.fanotifies[index as usize], flags)?,
            Target::Pty { .. } => ptys.open(index)?,
            Target::Namespace(kind) => namespace::open(kind, description, &mut ia32)?,
            Target::BpfMap(index) => bpf_maps.open(index, flags)?,
            Target::MessageQueue(_) => message_queues.open(index)?,
            Target::Pidfd(_) | Target::TaskFile(_) => late.hold(index)?,
        };
        opened.push(Rc::new(fd));
    }
    let socket_files = sockets.finish(files, &opened)?;
    let controlling = ptys.controlling;
    let message_queues = message_queues.made;
    Ok(Reopened {
        descriptions: opened,
        socket_files,
        controlling,
        inet_sockets,
        packet_sockets,
        message_queues,
    })
}

/// Opens what is had by its name alone, by several threads if there is much of it.
fn open_by_name(
    files: &Files,
    given: &Sorted,
    done: &BTreeMap<usize, OwnedFd>,
) -> Result<BTreeMap<usize, OwnedFd>> {
    let by_name = |(index, description): (usize, &Description)| match description.target {
        Target::Path(path) if !done.contains_key(&index) && !given.is_for(description) => Some((index, path)),
        _ => None,
    };
    let wanted: Vec<(usize, PathId)> = files.descriptions.iter().enumerate().filter_map(by_name).collect();
    // As many as there are threads, in the end.
    let idle: Mutex<Vec<Ia32>> = Mutex::default();
    let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
    let opened = parallel::map_to_files(&wanted, |&(index, path)| {
        let mut ia32 = idle().pop().unwrap_or_default();
        let opened = open(&files.paths[path.0 as usize], &files.descriptions[index], &mut ia32);
        idle().push(ia32);
        Ok((index, opened?))
    })?;
    Ok(opened.into_iter().collect())
}

/// Opens a file by name.
///
/// # Errors
/// As open(2), with the name.
pub(crate) fn open(path: &Path, description: &Description, ia32: &mut Ia32) -> Result<OwnedFd> {
    let name = String::from_utf8_lossy(&path.path);
    let mut flags = OFlag::from_bits_retain(description.flags.cast_signed());
    if event::sends_signals(&description.target) {
        flags.remove(OFlag::O_ASYNC);
    }
    let flags =
        flags & !(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let flags = if path.is_gone() { flags & !of_the_name(path) } else { flags };
    let c_path = CString::new(path.path.as_slice()).with_context(|| format!("{name}: not a path"))?;
    let is_link = path.mode & libc::S_IFMT == libc::S_IFLNK;
    if is_link && !flags.contains(OFlag::O_NOFOLLOW) {
        return open_link(&c_path, flags).with_context(|| format!("open {name} again"));
    }
    let fd =
        open_with(&c_path, flags, description.flags, ia32).with_context(|| format!("open {name} again"))?;
    if description.position != 0 {
        let position = i64::try_from(description.position).with_context(|| format!("{name}: offset"))?;
        lseek64(&fd, position, Whence::SeekSet).with_context(|| format!("{name}: seek to {position}"))?;
    }
    Ok(fd)
}

/// Makes a file without a name in a directory, by flags with O_TMPFILE among them.
///
/// # Errors
/// As open(2).
pub(crate) fn create(dir: &std::path::Path, flags: u32) -> nix::Result<OwnedFd> {
    let of = OFlag::from_bits_retain(flags.cast_signed()) | OFlag::O_CLOEXEC;
    if flags & O_LARGEFILE != 0 {
        return nix::fcntl::open(dir, of, Mode::S_IRUSR | Mode::S_IWUSR);
    }
    dir.with_nix_path(|dir| Ia32::default().open(dir, of.bits()))?
}

/// open(2), with O_LARGEFILE only if `shown`, the flags that the file had, have it: the 64-bit call always adds that, which is visible in
/// F_GETFL and matters beyond 2 GiB; but never to O_PATH (build_open_flags() of fs/open.c).
///
/// # Errors
/// As open(2).
pub(crate) fn open_with(path: &CStr, flags: OFlag, shown: u32, ia32: &mut Ia32) -> nix::Result<OwnedFd> {
    fault::point(Point::OpenFile)?;
    if shown & (O_LARGEFILE | O_PATH) == 0 {
        ia32.open(path, flags.bits())
    } else {
        nix::fcntl::open(path, flags, Mode::empty())
    }
}

/// A symbolic link without O_NOFOLLOW in its flags, as one is opened by a link of `/proc/self/fd`.
fn open_link(path: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let link = nix::fcntl::open(path, flags | OFlag::O_NOFOLLOW, Mode::empty())?;
    nix::fcntl::open(format!("/proc/self/fd/{}", link.as_raw_fd()).as_str(), flags, Mode::empty())
}

/// Flags of an open file that say how its name was to be taken: one without a name is opened by a link of `/proc/self/fd`, which is to be
/// followed, and exists already.
pub(crate) fn of_the_name(path: &Path) -> OFlag {
    let is_dir = path.mode & libc::S_IFMT == libc::S_IFDIR;
    // O_TMPFILE has the bit of O_DIRECTORY in it.
    let kept = if is_dir { OFlag::O_DIRECTORY } else { OFlag::empty() };
    (OFlag::O_NOFOLLOW | OFlag::O_TMPFILE) & !kept
}

/// O_LARGEFILE as the kernel shows it; the C library's constant is 0 on x86_64.
pub(crate) const O_LARGEFILE: u32 = 0o100_000;

/// The terminal that crr itself runs on takes the place of the one at dump.
fn terminal(path: &Path, flags: u32) -> Result<OwnedFd> {
    let name = String::from_utf8_lossy(&path.path);
    let flags = OFlag::from_bits_retain(flags.cast_signed()) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    nix::fcntl::open(c"/dev/tty", flags, Mode::empty()).with_context(|| {
        format!("the tree was dumped on terminal {name}, and crr has no terminal to take its place")
    })
}

/// Opening as ia32 tasks do.
#[derive(Debug, Default)]
pub(crate) struct Ia32(Option<LowBuffer>);

impl Ia32 {
    /// open without O_LARGEFILE.
    ///
    /// # Errors
    /// As open(2).
    pub(crate) fn open(&mut self, path: &CStr, flags: i32) -> nix::Result<OwnedFd> {
        let buffer = match self.0.take() {
            Some(buffer) => buffer,
            None => LowBuffer::new()?,
        };
        self.0.insert(buffer).open(path, flags)
    }
}
