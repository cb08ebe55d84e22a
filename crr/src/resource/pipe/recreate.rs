//! Pipes: created with their capacity and contents, or opened by name, then opened once for each description.

use crate::resource::deleted::recreate::times;
use crate::resource::file::O_ASYNC;
use crate::resource::file::reopen::{Ia32, O_LARGEFILE, of_the_name};
use crate::sys::pipe as sys;
use anyhow::{Context, Result, ensure};
use images::DescriptionId;
use images::file::{Description, Files, Path, Target};
use images::pipe::{Buffer, Fifo, Pipe};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, futimens};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A pipe being restored. Dropped, it closes what no description took: an end that was closed is closed again.
#[derive(Debug)]
pub(crate) enum Restored {
    /// One without a name.
    Anonymous(Ends),
    /// The descriptions of a named one, by their numbers.
    Named(BTreeMap<usize, OwnedFd>),
}

/// The ends of a pipe.
#[derive(Debug)]
pub(crate) struct Ends {
    ino: u64,
    reader: Option<OwnedFd>,
    writer: Option<OwnedFd>,
    /// Kept to open further descriptions, after the first of each end was handed out.
    keep: OwnedFd,
}

/// Creates all pipes.
///
/// # Errors
/// If one cannot be created, or opened, with its capacity and contents.
pub(crate) fn create_all(files: &Files, ia32: &mut Ia32) -> Result<Vec<Restored>> {
    let mut ends: BTreeMap<u32, Vec<(DescriptionId, &Description)>> = BTreeMap::new();
    for (id, description) in (0..).map(DescriptionId).zip(&files.descriptions) {
        if let Target::Pipe(pipe) = description.target {
            ends.entry(pipe).or_default().push((id, description));
        }
    }
    let mut restored = Vec::with_capacity(files.pipes.len());
    for (index, pipe) in (0..).zip(&files.pipes) {
        restored.push(match &pipe.fifo {
            None => Restored::Anonymous(create(pipe).with_context(|| format!("pipe:[{}]", pipe.ino))?),
            Some(fifo) => {
                let path = &files.paths[fifo.path.0 as usize];
                let ends = ends.get(&index).map_or(&[][..], Vec::as_slice);
                let opened = open_named(pipe, fifo, path, ends, ia32);
                Restored::Named(opened.with_context(|| String::from_utf8_lossy(&path.path).into_owned())?)
            }
        });
    }
    Ok(restored)
}

/// How many descriptors [`create_all`] leaves open that no description takes, at most: all but one of the ends that a description takes.
pub(crate) fn held(files: &Files) -> usize {
    let mut taken = vec![[false; 2]; files.pipes.len()];
    for description in &files.descriptions {
        if let Target::Pipe(pipe) = description.target
            && let Some(side) = side(description.flags)
        {
            taken[pipe as usize][side as usize] = true;
        }
    }
    taken.iter().map(|ends| 3 - ends.iter().filter(|&&taken| taken).count()).sum()
}

/// The end that a description with these flags is, if it can be one of those that pipe(2) makes: that leaves O_LARGEFILE out, which a
/// 64-bit open of the pipe in /proc adds.
fn side(flags: u32) -> Option<Side> {
    match OFlag::from_bits_retain(flags.cast_signed()) & OFlag::O_ACCMODE {
        _ if flags & O_LARGEFILE != 0 => None,
        OFlag::O_RDONLY => Some(Side::Read),
        OFlag::O_WRONLY => Some(Side::Write),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Read,
    Write,
}

fn create(pipe: &Pipe) -> Result<Ends> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("create")?;
    fill(&writer, pipe)?;
    let keep = reader.try_clone()?;
    Ok(Ends { ino: pipe.ino, reader: Some(reader), writer: Some(writer), keep })
}

/// Gives a pipe its capacity and its contents, by a description that does not block.
fn fill(writer: &OwnedFd, pipe: &Pipe) -> Result<()> {
    if sys::capacity(writer.as_fd())? != pipe.capacity {
        sys::set_capacity(writer.as_fd(), pipe.capacity)
            .with_context(|| format!("set its capacity to {} bytes", pipe.capacity))?;
    }
    if pipe.buffers.is_empty() {
        return write_all(writer, &pipe.contents, pipe);
    }
    let mut rest = pipe.contents.as_slice();
    for (index, &Buffer { bytes, packet }) in pipe.buffers.iter().enumerate() {
        let (buffer, behind) =
            rest.split_at_checked(bytes as usize).context("its buffers exceed its contents")?;
        rest = behind;
        let before_packet = pipe.buffers.get(index + 1).is_some_and(|next| next.packet);
        if before_packet && !packet {
            put_closed(writer, buffer)?;
        } else {
            let flag = if packet { OFlag::O_DIRECT } else { OFlag::empty() };
            fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | flag)).context("set flags")?;
            write_all(writer, buffer, pipe)?;
        }
    }
    Ok(())
}

/// A write goes on in the last buffer if it has room there, in packet mode too (pipe_write(), fs/pipe.c); not so in one that tee(2) has
/// put there.
fn put_closed(writer: &OwnedFd, buffer: &[u8]) -> Result<()> {
    let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("make a pipe")?;
    let written = nix::unistd::write(&to, buffer).context("write to it")?;
    let copied = sys::tee(from.as_fd(), writer.as_fd(), buffer.len()).context("put a buffer back")?;
    ensure!(written == buffer.len() && copied == written, "{copied} of {} bytes went there", buffer.len());
    Ok(())
}

fn write_all(writer: &OwnedFd, mut rest: &[u8], pipe: &Pipe) -> Result<()> {
    while !rest.is_empty() {
        let written = nix::unistd::write(writer, rest)
            .with_context(|| format!("put its {} bytes back, {} left", pipe.contents.len(), rest.len()))?;
        rest = &rest[written..];
    }
    Ok(())
}

/// Opens all descriptions of a named pipe. One for reading and writing stands in for the other side meanwhile, so that nothing waits or
/// fails for want of it (fifo_open(), fs/pipe.c): for those who read it will have been the writer that is gone. Those who have seen none
/// are opened without it; then one for reading keeps what is in the pipe.
fn open_named(
    pipe: &Pipe,
    fifo: &Fifo,
    path: &Path,
    ends: &[(DescriptionId, &Description)],
    ia32: &mut Ia32,
) -> Result<BTreeMap<usize, OwnedFd>> {
    let name = CString::new(path.path.as_slice()).context("not a path")?;
    let open = |flags| {
        nix::fcntl::open(name.as_c_str(), flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
    };
    let partner = open(OFlag::O_RDWR).context("open it for reading and writing")?;
    fill(&partner, pipe)?;
    if let Some(deleted) = &path.deleted {
        let [atime, mtime] = times(path, deleted);
        futimens(&partner, &atime, &mtime).context("times")?;
    }
    let _keeper = open(OFlag::O_RDONLY).context("open it for reading")?;
    let left_out = if path.deleted.is_some() { of_the_name(path) } else { OFlag::empty() };
    let mut opened = BTreeMap::new();
    let mut open_each = |unpaired: bool| -> Result<()> {
        for (id, description) in ends.iter().filter(|(id, _)| fifo.unpaired.contains(id) == unpaired) {
            let flags = description.flags & !O_ASYNC & !left_out.bits().cast_unsigned();
            opened.insert(id.0 as usize, open_end(&name, flags, ia32)?);
        }
        Ok(())
    };
    open_each(false)?;
    drop(partner);
    open_each(true)?;
    Ok(opened)
}

/// Opens an end of a pipe by name, and gives it its flags. It is opened without waiting for anybody, and in packet mode only later:
/// open(2) takes O_DIRECT for files alone (do_dentry_open(), fs/open.c).
pub(crate) fn open_end(name: &CStr, flags: u32, ia32: &mut Ia32) -> Result<OwnedFd> {
    let wanted = OFlag::from_bits_retain(flags.cast_signed());
    let now = (wanted & !OFlag::O_DIRECT) | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = if flags & O_LARGEFILE != 0 {
        nix::fcntl::open(name, now, Mode::empty())
    } else {
        ia32.open(name, now.bits())
    }
    .context("open")?;
    fcntl(&opened, FcntlArg::F_SETFL(wanted)).context("set flags")?;
    Ok(opened)
}

impl Restored {
    /// The description with this number and these flags.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn open(&mut self, id: usize, flags: u32, ia32: &mut Ia32) -> Result<OwnedFd> {
        match self {
            Self::Anonymous(ends) => ends.open(flags, ia32).with_context(|| format!("pipe:[{}]", ends.ino)),
            Self::Named(opened) => opened.remove(&id).context("an end of a named pipe is not there"),
        }
    }
}

impl Ends {
    fn open(&mut self, flags: u32, ia32: &mut Ia32) -> Result<OwnedFd> {
        let wanted = OFlag::from_bits_retain(flags.cast_signed());
        let end = match side(flags) {
            Some(Side::Read) => self.reader.take(),
            Some(Side::Write) => self.writer.take(),
            None => None,
        };
        if let Some(fd) = end {
            fcntl(&fd, FcntlArg::F_SETFL(wanted)).context("set flags")?;
            return Ok(fd);
        }
        let path = CString::new(format!("/proc/self/fd/{}", self.keep.as_raw_fd())).context("path")?;
        open_end(&path, flags, ia32).context("again")
    }
}
