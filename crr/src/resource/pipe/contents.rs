//! What is in a pipe, read without taking it out.

use crate::sys::pipe as sys;
use anyhow::{Context, Result, bail};
use images::pipe::{Buffer, Pipe};
use nix::fcntl::OFlag;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Slots of a pipe are pages.
const SLOT: u32 = 4096;

/// A pipe of crr's own.
#[derive(Debug)]
struct Own {
    from: OwnedFd,
    to: OwnedFd,
}

impl Own {
    fn new(capacity: u32) -> Result<Self> {
        let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("make a pipe")?;
        sys::set_capacity(to.as_fd(), capacity)
            .with_context(|| format!("make a pipe of {capacity} bytes"))?;
        Ok(Self { from, to })
    }

    /// Makes it a copy of what is in another one. tee(2) copies whole buffers, with their flags, so it takes as many slots.
    fn take(&self, end: BorrowedFd<'_>, bytes: usize) -> Result<()> {
        let n = sys::tee(end, self.to.as_fd(), bytes).context("copy the contents of a pipe")?;
        if n != bytes {
            bail!("copied {n} of {bytes} bytes of a pipe");
        }
        Ok(())
    }

    /// Adds a byte in a buffer of its own: one that was copied takes no more (link_pipe(), fs/splice.c).
    fn mark(&self) -> bool {
        nix::unistd::write(&self.to, &[0]) == Ok(1)
    }

    fn read(&self, into: &mut [u8]) -> Result<usize> {
        nix::unistd::read(&self.from, into).context("read the copy of a pipe")
    }
}

/// Reads pipes, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// An empty pipe, with its capacity.
    copy: Option<(Own, u32)>,
}

impl Reader {
    /// Completes the record of a pipe, which has its capacity, by its contents. `end` is any description of a read end.
    pub(crate) fn dump(&mut self, end: BorrowedFd<'_>, pipe: &mut Pipe) -> Result<()> {
        let bytes = sys::readable_bytes(end).context("ask what is in a pipe")?;
        if bytes == 0 {
            return Ok(());
        }
        match self.stream(end, pipe.capacity, bytes)? {
            Some(contents) => pipe.contents = contents,
            None => (pipe.contents, pipe.buffers) = packets(end, pipe.capacity, bytes)?,
        }
        if pipe.buffers.iter().all(|buffer| !buffer.packet) {
            pipe.buffers.clear();
        }
        Ok(())
    }

    /// The contents, if they are known to have no packets among them: one read takes them all, and goes on to what is behind them.
    fn stream(&mut self, end: BorrowedFd<'_>, capacity: u32, bytes: usize) -> Result<Option<Vec<u8>>> {
        // More than anybody may have without CAP_SYS_RESOURCE, if the pipe is as large as it can be.
        let needed = capacity.saturating_mul(2);
        let (copy, has) = match self.copy.take().filter(|(_, has)| *has >= needed) {
            Some(empty) => empty,
            None => match Own::new(needed) {
                Ok(own) => (own, needed),
                Err(_) => return Ok(None),
            },
        };
        copy.take(end, bytes)?;
        let mut contents = vec![0; bytes + 1];
        if !copy.mark() || copy.read(&mut contents)? <= bytes {
            return Ok(None);
        }
        contents.truncate(bytes);
        self.copy = Some((copy, has));
        Ok(Some(contents))
    }
}

/// The contents and what they lie in, buffer by buffer: one goes to a pipe of a single slot, from there to another one, and what a
/// read takes of that and of a byte behind it tells whether it is a packet.
fn packets(end: BorrowedFd<'_>, capacity: u32, bytes: usize) -> Result<(Vec<u8>, Vec<Buffer>)> {
    let (copy, single, pair) = (Own::new(capacity)?, Own::new(SLOT)?, Own::new(2 * SLOT)?);
    copy.take(end, bytes)?;
    let (mut contents, mut buffers) = (Vec::with_capacity(bytes), Vec::new());
    while contents.len() < bytes {
        let left = bytes - contents.len();
        let n = sys::splice(copy.from.as_fd(), single.to.as_fd(), left).context("take a buffer")?;
        let moved = sys::splice(single.from.as_fd(), pair.to.as_fd(), n).context("move a buffer")?;
        let mut buffer = vec![0; n + 1];
        if n == 0 || moved != n || !pair.mark() {
            bail!("a buffer of {n} bytes does not go into a pipe");
        }
        let got = pair.read(&mut buffer)?;
        let packet = got == n;
        if packet {
            // What is behind it.
            pair.read(&mut [0])?;
        }
        contents.extend_from_slice(&buffer[..n]);
        buffers.push(Buffer { bytes: u32::try_from(n).context("a large buffer")?, packet });
    }
    Ok((contents, buffers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use std::fs::File;
    use std::io::{Read, Write};

    fn dumped(end: BorrowedFd<'_>) -> Pipe {
        let mut pipe = Pipe { capacity: sys::capacity(end).unwrap(), ..Pipe::default() };
        Reader::default().dump(end, &mut pipe).unwrap();
        pipe
    }

    #[test]
    fn contents_are_read_and_stay() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let (mut from, mut to) = (File::from(from), File::from(to));
        sys::set_capacity(to.as_fd(), 8192).unwrap();
        to.write_all(b"abc").unwrap();
        to.write_all(&[7; 5000]).unwrap();
        let dumped = dumped(from.as_fd());
        assert_eq!((dumped.capacity, dumped.contents.len(), dumped.buffers.len()), (8192, 5003, 0));
        assert_eq!(&dumped.contents[..4], b"abc\x07");
        let mut still = [0u8; 5003];
        from.read_exact(&mut still).unwrap();
        assert_eq!(still[..], dumped.contents[..]);
    }

    #[test]
    fn packets_are_told_from_what_is_between_them() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let mut to = File::from(to);
        // As large as anybody may make one: there is no larger one to copy it to.
        for capacity in [65_536, 1 << 20] {
            sys::set_capacity(to.as_fd(), capacity).unwrap();
            for (flags, bytes) in [
                (OFlag::O_DIRECT, 1),
                (OFlag::empty(), 10),
                (OFlag::empty(), 20),
                (OFlag::O_DIRECT, 4096),
                (OFlag::O_DIRECT, 2),
                (OFlag::empty(), 1),
            ] {
                fcntl(&to, FcntlArg::F_SETFL(flags)).unwrap();
                to.write_all(&vec![b'x'; bytes]).unwrap();
            }
            let dumped = dumped(from.as_fd());
            let found: Vec<_> = dumped.buffers.iter().map(|buffer| (buffer.bytes, buffer.packet)).collect();
            assert_eq!(found, [(1, true), (30, false), (4096, true), (2, true), (1, false)]);
            assert_eq!(dumped.contents.len(), 4130);
            // All of it.
            while sys::readable_bytes(from.as_fd()).unwrap() > 0 {
                nix::unistd::read(&from, &mut [0; 8192]).unwrap();
            }
        }
    }
}
