//! Pipes: created with their capacity and contents, then opened once for each description.

use crate::resource::file::reopen::{Ia32, O_LARGEFILE};
use crate::sys::pipe as sys;
use anyhow::{Context, Result};
use images::file::Pipe;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A pipe being restored. Dropped, it closes what no description took: an end that was closed is closed again.
#[derive(Debug)]
pub(crate) struct Restored {
    ino: u64,
    reader: Option<OwnedFd>,
    writer: Option<OwnedFd>,
    /// Kept to open further descriptions, after the first of each end was handed out.
    keep: OwnedFd,
}

/// Creates all pipes.
///
/// # Errors
/// If one cannot be created with its capacity and contents.
pub(crate) fn create_all(pipes: &[Pipe]) -> Result<Vec<Restored>> {
    pipes.iter().map(|pipe| create(pipe).with_context(|| format!("pipe:[{}]", pipe.ino))).collect()
}

fn create(pipe: &Pipe) -> Result<Restored> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("create")?;
    if sys::capacity(writer.as_fd())? != pipe.capacity {
        sys::set_capacity(writer.as_fd(), pipe.capacity)
            .with_context(|| format!("set its capacity to {} bytes", pipe.capacity))?;
    }
    let mut rest = pipe.contents.as_slice();
    while !rest.is_empty() {
        let written = nix::unistd::write(&writer, rest)
            .with_context(|| format!("put its {} bytes back, {} left", pipe.contents.len(), rest.len()))?;
        rest = &rest[written..];
    }
    let keep = reader.try_clone()?;
    Ok(Restored { ino: pipe.ino, reader: Some(reader), writer: Some(writer), keep })
}

impl Restored {
    /// A description with these flags.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn open(&mut self, flags: u32, ia32: &mut Ia32) -> Result<OwnedFd> {
        let wanted = OFlag::from_bits_retain(flags.cast_signed());
        let large = flags & O_LARGEFILE != 0;
        let end = match wanted & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => &mut self.reader,
            OFlag::O_WRONLY => &mut self.writer,
            _ => &mut None,
        };
        // pipe(2) leaves O_LARGEFILE out; a 64-bit open of the pipe in /proc adds it.
        if let Some(fd) = end.take_if(|_| !large) {
            fcntl(&fd, FcntlArg::F_SETFL(wanted))
                .with_context(|| format!("pipe:[{}]: set flags", self.ino))?;
            return Ok(fd);
        }
        let path = CString::new(format!("/proc/self/fd/{}", self.keep.as_raw_fd())).context("path")?;
        let now = wanted | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = if large {
            nix::fcntl::open(path.as_c_str(), now, Mode::empty())
        } else {
            ia32.open(&path, now.bits())
        }
        .with_context(|| format!("pipe:[{}]: open again", self.ino))?;
        if !wanted.contains(OFlag::O_NONBLOCK) {
            fcntl(&opened, FcntlArg::F_SETFL(wanted))
                .with_context(|| format!("pipe:[{}]: set flags", self.ino))?;
        }
        Ok(opened)
    }
}
