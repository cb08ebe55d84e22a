//! Paths, descriptions, pipes.

use super::{Check, ensure, event, inside, late, memory, path};
use crate::resource::deleted::MEMFD;
use images::file::{Deleted, Description, Files, Path, Pipe, Target};
use images::id::PAGE_SIZE;
use images::memory::Memory;

/// PATH_MAX: the kernel opens no longer name, the final NUL included.
const PATH_MAX: usize = 4096;

pub(super) fn check(files: &Files) -> Check {
    for (index, path) in files.paths.iter().enumerate() {
        check_path(path).map_err(inside(format_args!("path#{index}")))?;
    }
    for (index, pipe) in files.pipes.iter().enumerate() {
        check_pipe(pipe).map_err(inside(format_args!("pipe#{index}")))?;
    }
    for (index, queue) in files.message_queues.iter().enumerate() {
        let named = !queue.name.is_empty() && !queue.name.iter().any(|byte| [0, b'/'].contains(byte));
        ensure!(named, "message queue#{index}: cannot have this name");
    }
    for (index, description) in files.descriptions.iter().enumerate() {
        check_description(description, files).map_err(inside(format_args!("description#{index}")))?;
    }
    Ok(())
}

fn check_path(path: &Path) -> Check {
    let name = &path.path;
    ensure!(name.first() == Some(&b'/'), "is not absolute");
    ensure!(!name.contains(&0), "has a NUL");
    ensure!(name.len() < PATH_MAX, "has {} bytes, the kernel takes {}", name.len(), PATH_MAX - 1);
    let kind = path.mode & libc::S_IFMT;
    let known = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFCHR].contains(&kind);
    ensure!(known, "is no file, directory or character device (mode {:#o})", path.mode);
    ensure!(path.mtime.1 < 1_000_000_000, "has a time of {} ns", path.mtime.1);
    path.deleted.as_ref().map_or(Ok(()), |deleted| check_deleted(path, deleted))
}

fn check_deleted(path: &Path, deleted: &Deleted) -> Check {
    let kind = path.mode & libc::S_IFMT;
    let in_memory = path.path.starts_with(MEMFD);
    ensure!(
        kind == libc::S_IFREG || !in_memory && kind == libc::S_IFDIR,
        "deleted, and neither file nor directory"
    );
    ensure!(deleted.seals.is_some() == in_memory, "a memfd has seals, and nothing else");
    ensure!(deleted.atime.1 < 1_000_000_000, "has a time of {} ns", deleted.atime.1);
    ensure!(kind == libc::S_IFREG || deleted.runs.is_empty(), "a directory with contents");
    ensure!(i64::try_from(path.size).is_ok(), "has {:#x} bytes", path.size);
    let nul = deleted.xattrs.iter().any(|(name, _)| name.is_empty() || name.contains(&0));
    ensure!(!nul, "has an attribute that cannot be named");
    Ok(())
}

/// The contents of deleted files. The page count has been checked.
pub(super) fn check_contents(files: &Files, memory: &Memory) -> Check {
    for (index, path) in files.paths.iter().enumerate() {
        let Some(deleted) = &path.deleted else { continue };
        let contents = memory::check_runs(&deleted.runs, memory).and_then(|()| {
            let end = deleted.runs.last().map_or(0, memory::end_of);
            let size = path.size.next_multiple_of(PAGE_SIZE);
            ensure!(end <= size, "contents up to {end:#x} of {:#x}", path.size);
            Ok(())
        });
        contents.map_err(inside(format_args!("path#{index}")))?;
    }
    Ok(())
}

fn check_pipe(pipe: &Pipe) -> Check {
    ensure!(i32::try_from(pipe.capacity).is_ok(), "has a capacity of {} bytes", pipe.capacity);
    let (held, capacity) = (pipe.contents.len(), pipe.capacity);
    ensure!(held <= capacity as usize, "holds {held} bytes, more than its capacity of {capacity}");
    Ok(())
}

fn check_description(description: &Description, files: &Files) -> Check {
    // Memory has places that are negative numbers.
    let anywhere = matches!(description.target, Target::TaskFile(_));
    let offset = description.position;
    ensure!(anywhere || i64::try_from(offset).is_ok(), "has offset {offset:#x}");
    match description.target {
        Target::Path(id) | Target::Terminal(id) => path(files, id),
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
        Target::Pty { pty, path: id, .. } => {
            let ptys = files.ptys.len();
            ensure!((pty as usize) < ptys, "pty#{pty} of {ptys} pseudo terminals");
            path(files, id)
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
        Target::Pidfd(_) | Target::TaskFile(_) => late::check_target(&description.target, files),
    }
}
