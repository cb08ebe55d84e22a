//! Paths, descriptions, pipes.

use super::{Check, ensure, inside, path};
use images::file::{Description, Files, Path, Pipe, Target};

/// PATH_MAX: the kernel opens no longer name, the final NUL included.
const PATH_MAX: usize = 4096;

pub(super) fn check(files: &Files) -> Check {
    for (index, path) in files.paths.iter().enumerate() {
        check_path(path).map_err(inside(format_args!("path#{index}")))?;
    }
    for (index, pipe) in files.pipes.iter().enumerate() {
        check_pipe(pipe).map_err(inside(format_args!("pipe#{index}")))?;
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
    Ok(())
}

fn check_pipe(pipe: &Pipe) -> Check {
    ensure!(i32::try_from(pipe.capacity).is_ok(), "has a capacity of {} bytes", pipe.capacity);
    let (held, capacity) = (pipe.contents.len(), pipe.capacity);
    ensure!(held <= capacity as usize, "holds {held} bytes, more than its capacity of {capacity}");
    Ok(())
}

fn check_description(description: &Description, files: &Files) -> Check {
    ensure!(i64::try_from(description.position).is_ok(), "has offset {:#x}", description.position);
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
    }
}
