//! What is behind a description, and how it is had again.

use super::open::Open;
use super::{O_PATH, Table, Terminal, kinds};
use crate::resource::external::Key;
use crate::resource::path::{CLOSE, Lost, Paths, file_type};
use crate::resource::unix_socket;
use crate::resource::view::{FileSystem, Use};
use crate::resource::{
    Refuse, bpf, device, mqueue, namespace, netlink, pidfd, pipe, socket, task_file, terminal,
};
use anyhow::{Context, Result};
use images::file::Target;
use images::{DescriptionId, PathId};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The way out for a pipe that images are written to.
const READ_ELSEWHERE: &str = "have a program outside of the tree read the images";

impl Table {
    pub(super) fn target(
        &mut self,
        open: &Open,
        copy: BorrowedFd<'_>,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        if open.info.flags & O_PATH != 0 {
            return Ok(by_name_alone(open, copy, paths, refuse));
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
        if pidfd::is_one(&open.link) {
            let shown = (open.describe(), open.info.flags, open.stat.st_ino);
            return Ok(self.pidfds.add(shown, &open.text, copy, refuse)?.map(Target::Pidfd));
        }
        if let Some(ino) = socket::inode(&open.link) {
            return self.socket(ino, open, copy, refuse);
        }
        if let Some(kind) = namespace::kind(&open.link) {
            return Ok(
                namespace::dump_file(kind, &open.stat, &open.describe(), refuse)?.map(Target::Namespace)
            );
        }
        if bpf::is_map(&open.link) {
            let record = self.bpf_maps.add((open.describe(), &open.text), copy, refuse)?;
            return Ok(record.map(Target::BpfMap));
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
        refuse_kind(open, refuse);
        Ok(None)
    }

    fn socket(
        &mut self,
        ino: u64,
        open: &Open,
        copy: BorrowedFd<'_>,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        let holder = open.holder(refuse);
        let own = || copy.try_clone_to_owned().context("duplicate a socket");
        let family = socket::family(copy).context("SO_DOMAIN")?;
        if family == libc::AF_UNIX {
            if let Some(id) = self.externals.find_socket(ino, copy)? {
                let kept = unix_socket::refuse_unread(copy, &holder, refuse)?;
                return Ok(kept.then_some(Target::External(id)));
            }
            return Ok(self.sockets.add(own()?, &open.stat, holder, refuse)?.map(Target::UnixSocket));
        }
        if !matches!(family, libc::AF_INET | libc::AF_INET6 | libc::AF_NETLINK | libc::AF_PACKET) {
            let reason = format!("{} sockets are not supported", kinds::family(family));
            refuse.with_hint(&holder.object, reason, CLOSE);
            return Ok(None);
        }
        if !self.network.has(copy)? {
            let reason = "belongs to another network namespace than crr";
            refuse.with_hint(&holder.object, reason, CLOSE);
            return Ok(None);
        }
        match family {
            libc::AF_NETLINK => {
                let Some(record) = netlink::dump(copy, &open.stat, &holder, refuse)? else {
                    return Ok(None);
                };
                self.netlink.push((record, holder));
                let index = u32::try_from(self.netlink.len() - 1).context("too many sockets")?;
                Ok(Some(Target::NetlinkSocket(index)))
            }
            libc::AF_PACKET => {
                Ok(self.packets.add(copy, &open.stat, holder, refuse)?.map(Target::PacketSocket))
            }
            _ => Ok(self.inet.add(own()?, &open.stat, holder, refuse)?.map(Target::InetSocket)),
        }
    }

    fn terminal(
        &mut self,
        open: &Open,
        copy: BorrowedFd<'_>,
        paths: &mut Paths,
        terminal: Terminal,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Target>> {
        let holder = open.holder(refuse);
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
            match resolve(open, paths, || copy.try_clone_to_owned()) {
                Ok(path) => Some(path),
                Err(lost) => {
                    refuse.with_hint(open.describe(), lost.to_string(), lost.close());
                    return Ok(None);
                }
            }
        };
        let id = DescriptionId(u32::try_from(self.descriptions.len()).context("too many open files")?);
        let end = pipe::End { id, copy, stat: &open.stat, flags: open.info.flags, path };
        let key = || Key::all_of(&open.link, &open.stat, open.info.mount).pop();
        Ok(Some(Target::Pipe(self.pipes.add(end, || (open.holder(refuse), key()))?)))
    }
}

/// What was opened with O_PATH is no more than a name.
fn by_name_alone(
    open: &Open,
    copy: BorrowedFd<'_>,
    paths: &mut Paths,
    refuse: &mut Refuse<'_>,
) -> Option<Target> {
    if !open.has_path() {
        let reason = "opened with O_PATH, and no name leads to it";
        refuse.with_hint(open.describe(), reason, CLOSE);
        return None;
    }
    // Its name is not there before the terminal is made again.
    let is_char = file_type(open.stat.st_mode) == SFlag::S_IFCHR;
    if is_char && matches!(device::number(open.stat.st_rdev), (136..=143, _)) {
        refuse.with_hint(open.describe(), "a pseudo terminal opened with O_PATH", CLOSE);
        return None;
    }
    named(open, copy, paths, refuse).map(Target::Path)
}

/// The path of a descriptor that is opened again by its name; `None` when it was refused.
fn named(open: &Open, copy: BorrowedFd<'_>, paths: &mut Paths, refuse: &mut Refuse<'_>) -> Option<PathId> {
    let reopen = || {
        let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
        Ok(nix::fcntl::open(name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    };
    match resolve(open, paths, reopen) {
        Ok(path) => Some(path),
        Err(lost) => {
            refuse.with_hint(open.describe(), lost.to_string(), lost.close());
            None
        }
    }
}

/// The record of the name that a descriptor is shown by.
fn resolve(
    open: &Open,
    paths: &mut Paths,
    reopen: impl FnOnce() -> io::Result<OwnedFd>,
) -> Result<PathId, Lost> {
    if let Some(there) = &open.there {
        paths.note(&open.link, there);
    }
    paths.resolve(&open.link, &open.stat, Use::Open(open.info.flags), reopen)
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

fn refuse_kind(open: &Open, refuse: &mut Refuse<'_>) {
    let (what, hint) = kinds::unsupported(&open.link, &open.stat);
    refuse.with_hint(open.describe(), format!("{what} not supported"), hint);
}
