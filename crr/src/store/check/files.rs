//! Paths, descriptions, pipes.

use super::{Check, ensure, event, externals, inside, late, memory, path, pipes};
use crate::resource::deleted::MEMFD;
use crate::resource::file::O_PATH;
use images::file::{Deleted, Description, Files, Path, Target};
use images::id::PAGE_SIZE;
use images::memory::{Memory, Run};
use images::mqueue::MessageQueue;

/// PATH_MAX: the kernel opens no longer name, the final NUL included.
const PATH_MAX: usize = 4096;

pub(super) fn check(files: &Files) -> Check {
    for (index, path) in files.paths.iter().enumerate() {
        check_path(path).map_err(inside(format_args!("path#{index}")))?;
    }
    for (index, pipe) in files.pipes.iter().enumerate() {
        pipes::check(pipe, index, files).map_err(inside(format_args!("pipe#{index}")))?;
    }
    externals::check(files)?;
    for (index, queue) in files.message_queues.iter().enumerate() {
        check_queue(queue).map_err(inside(format_args!("message queue#{index}")))?;
    }
    for (index, description) in files.descriptions.iter().enumerate() {
        check_description(description, files).map_err(inside(format_args!("description#{index}")))?;
    }
    Ok(())
}

fn check_queue(queue: &MessageQueue) -> Check {
    /// MQ_PRIO_MAX of include/uapi/linux/mqueue.h.
    const PRIORITIES: u32 = 32_768;
    let named = !queue.name.is_empty() && !queue.name.iter().any(|byte| [0, b'/'].contains(byte));
    ensure!(named, "cannot have this name");
    ensure!(queue.mode <= 0o7777, "has mode {:#o}", queue.mode);
    let Some(messages) = &queue.contents else {
        ensure!(!queue.unlinked, "has no name, and its messages are not known");
        return Ok(());
    };
    ensure!(messages.len() as u64 <= queue.messages, "{} messages of {}", messages.len(), queue.messages);
    let longest = messages.iter().map(|message| message.bytes.len()).max().unwrap_or(0);
    ensure!(longest as u64 <= queue.size, "a message of {longest} bytes, of {}", queue.size);
    let ordered = messages.is_sorted_by(|one, next| one.priority >= next.priority);
    let highest = messages.first().map_or(0, |message| message.priority);
    ensure!(ordered && highest < PRIORITIES, "its messages have no order");
    Ok(())
}

fn check_name(name: &[u8]) -> Check {
    ensure!(name.first() == Some(&b'/'), "is not absolute");
    ensure!(!name.contains(&0), "has a NUL");
    ensure!(name.len() < PATH_MAX, "has {} bytes, the kernel takes {}", name.len(), PATH_MAX - 1);
    Ok(())
}

fn check_path(path: &Path) -> Check {
    check_name(&path.path)?;
    if let Some(other) = &path.other_name {
        check_name(&other.name).map_err(inside("other name"))?;
        let last = other.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let made = last.starts_with(format!(".crr-link-{}-", path.ino).as_bytes());
        ensure!(!other.helper || made, "other name: is none that a dump makes, and is to be removed");
        ensure!(path.deleted.is_none(), "deleted, and under another name");
    }
    let kind = path.mode & libc::S_IFMT;
    let special = [libc::S_IFLNK, libc::S_IFSOCK, libc::S_IFIFO].contains(&kind);
    let known = special || [libc::S_IFREG, libc::S_IFDIR, libc::S_IFCHR, libc::S_IFBLK].contains(&kind);
    ensure!(known, "is of no kind of file (mode {:#o})", path.mode);
    ensure!(!path.view || !path.is_gone(), "deleted, and a view of the kernel's state");
    let file = kind == libc::S_IFREG;
    ensure!(file || path.other_name.is_none(), "under another name, and no file");
    ensure!(path.mtime.1 < 1_000_000_000, "has a time of {} ns", path.mtime.1);
    if let Some(embedded) = &path.embedded {
        ensure!(kind == libc::S_IFREG, "embedded, and no file");
        check_deleted(path, embedded).map_err(inside("embedded"))?;
    }
    path.deleted.as_ref().map_or(Ok(()), |deleted| check_deleted(path, deleted))
}

fn check_deleted(path: &Path, deleted: &Deleted) -> Check {
    let kind = path.mode & libc::S_IFMT;
    let in_memory = path.path.starts_with(MEMFD);
    ensure!(
        kind == libc::S_IFREG || !in_memory && [libc::S_IFDIR, libc::S_IFIFO].contains(&kind),
        "deleted, and neither file, directory nor FIFO"
    );
    ensure!(deleted.seals.is_some() == in_memory, "a memfd has seals, and nothing else");
    ensure!(deleted.atime.1 < 1_000_000_000, "has a time of {} ns", deleted.atime.1);
    ensure!(kind == libc::S_IFREG || deleted.runs.is_empty(), "a directory or FIFO with contents");
    ensure!(i64::try_from(path.size).is_ok(), "has {:#x} bytes", path.size);
    let nul = deleted.xattrs.iter().any(|(name, _)| name.is_empty() || name.contains(&0));
    ensure!(!nul, "has an attribute that cannot be named");
    Ok(())
}

/// The contents of deleted and embedded files. The page count has been checked.
pub(super) fn check_contents(files: &Files, memory: &Memory) -> Check {
    for (index, path) in files.paths.iter().enumerate() {
        for deleted in path.deleted.iter().chain(&path.embedded) {
            let contents = memory::check_runs(&deleted.runs, memory).and_then(|()| {
                let end = deleted.runs.last().map_or(0, Run::end);
                let size = path.size.next_multiple_of(PAGE_SIZE);
                ensure!(end <= size, "contents up to {end:#x} of {:#x}", path.size);
                Ok(())
            });
            contents.map_err(inside(format_args!("path#{index}")))?;
        }
    }
    Ok(())
}

fn check_description(description: &Description, files: &Files) -> Check {
    // Memory has places that are negative numbers.
    let anywhere = matches!(description.target, Target::TaskFile(_));
    let offset = description.position;
    ensure!(anywhere || i64::try_from(offset).is_ok(), "has offset {offset:#x}");
    match description.target {
        Target::Path(id) => {
            path(files, id)?;
            let kind = files.paths[id.0 as usize].mode & libc::S_IFMT;
            let opens = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFCHR, libc::S_IFBLK].contains(&kind);
            ensure!(
                opens || description.flags & O_PATH != 0,
                "a name alone leads to path#{}, without O_PATH",
                id.0
            );
            Ok(())
        }
        Target::Terminal(id) => path(files, id),
        Target::Pipe(pipe) => {
            ensure!((pipe as usize) < files.pipes.len(), "pipe#{pipe} of {} pipes", files.pipes.len());
            Ok(())
        }
        Target::UnixSocket(socket) => {
            let sockets = files.unix_sockets.len();
            ensure!((socket as usize) < sockets, "socket#{socket} of {sockets} sockets");
            Ok(())
        }
        Target::InetSocket(socket) => {
            let sockets = files.inet_sockets.len();
            ensure!((socket as usize) < sockets, "internet socket#{socket} of {sockets}");
            Ok(())
        }
        Target::NetlinkSocket(socket) => {
            let sockets = files.netlink_sockets.len();
            ensure!((socket as usize) < sockets, "netlink socket#{socket} of {sockets}");
            Ok(())
        }
        Target::PacketSocket(socket) => {
            let sockets = files.packet_sockets.len();
            ensure!((socket as usize) < sockets, "packet socket#{socket} of {sockets}");
            Ok(())
        }
        Target::Pty { pty, path: id, .. } => {
            let ptys = files.ptys.len();
            ensure!((pty as usize) < ptys, "pty#{pty} of {ptys} pseudo terminals");
            path(files, id)
        }
        Target::External(id) => {
            let externals = files.externals.len();
            ensure!((id as usize) < externals, "external#{id} of {externals} externals");
            Ok(())
        }
        Target::Inotify(group) => {
            let groups = files.inotifies.len();
            ensure!((group as usize) < groups, "inotify#{group} of {groups} inotify groups");
            Ok(())
        }
        Target::Fanotify(group) => {
            let groups = files.fanotifies.len();
            ensure!((group as usize) < groups, "fanotify#{group} of {groups} fanotify groups");
            Ok(())
        }
        Target::Eventfd(_) | Target::Timerfd(_) | Target::Signalfd(_) | Target::Epoll(_) => {
            event::check_target(&description.target, files)
        }
        Target::Namespace(_) => Ok(()),
        Target::MessageQueue(queue) => {
            let queues = files.message_queues.len();
            ensure!((queue as usize) < queues, "queue#{queue} of {queues} message queues");
            Ok(())
        }
        Target::BpfMap(map) => {
            let maps = files.bpf_maps.len();
            ensure!((map as usize) < maps, "map#{map} of {maps} BPF maps");
            Ok(())
        }
        Target::Pidfd(_) | Target::TaskFile(_) => late::check_target(&description.target, files),
    }
}
