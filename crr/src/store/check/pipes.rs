//! Pipes: that they hold what they can, and that named ones have names and ends.

use super::{Check, ensure, path};
use images::DescriptionId;
use images::file::{Files, Target};
use images::pipe::{Fifo, Pipe};

pub(super) fn check(pipe: &Pipe, index: usize, files: &Files) -> Check {
    ensure!(i32::try_from(pipe.capacity).is_ok(), "has a capacity of {} bytes", pipe.capacity);
    let (held, capacity) = (pipe.contents.len(), pipe.capacity);
    ensure!(held <= capacity as usize, "holds {held} bytes, more than its capacity of {capacity}");
    if !pipe.buffers.is_empty() {
        let buffers: u64 = pipe.buffers.iter().map(|buffer| u64::from(buffer.bytes)).sum();
        ensure!(buffers == held as u64, "holds {held} bytes in buffers of {buffers}");
        ensure!(pipe.buffers.iter().all(|buffer| buffer.bytes > 0), "has a buffer with nothing in it");
    }
    pipe.fifo.as_ref().map_or(Ok(()), |fifo| check_named(fifo, index, files))
}

fn check_named(fifo: &Fifo, index: usize, files: &Files) -> Check {
    path(files, fifo.path)?;
    let mode = files.paths[fifo.path.0 as usize].mode;
    ensure!(mode & libc::S_IFMT == libc::S_IFIFO, "has the name of what is no FIFO (mode {mode:#o})");
    for &DescriptionId(id) in &fifo.unpaired {
        let description = files.descriptions.get(id as usize);
        let read = description.is_some_and(|end| {
            matches!(end.target, Target::Pipe(pipe) if pipe as usize == index)
                && end.flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned()
        });
        ensure!(read, "{} is no read end of it", DescriptionId(id));
    }
    Ok(())
}
