//! The restore's side: page contents that are on another machine.

use super::client::{Peer, Server};
use super::line::{Line, Patience};
use super::{Frame, Hello, Listed, PAGES, WRONG, Want};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{Read, Write};

/// How many answers may be on their way at once: a megabyte each, so that a line of 1 Gbit/s with 60 ms to and fro is full.
const WINDOW: usize = 8;
/// More files than a checkpoint can build on.
const MAX_FILES: u32 = 1 << 16;

/// A connection that page contents come over.
#[derive(Debug)]
pub(crate) struct Fetcher {
    peer: Peer,
    line: Line,
    files: Vec<Listed>,
    /// What came last.
    bytes: Vec<u8>,
}

impl Fetcher {
    /// Connects.
    ///
    /// # Errors
    /// If there is no server, or none that may be trusted.
    pub(crate) fn connect(server: &Server) -> Result<Self> {
        let (peer, line, _) = server.connect(Hello::Restore)?;
        Self::over(peer, line)
    }

    /// Connects to one that another has been connected to.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub(crate) fn again(peer: &Peer) -> Result<Self> {
        let line = peer.connect(Hello::Restore).with_context(|| place(peer))?;
        Self::over(peer.clone(), line)
    }

    fn over(peer: Peer, mut line: Line) -> Result<Self> {
        line.be(Patience::Progress);
        let files = list(&mut line).with_context(|| place(&peer))?;
        Ok(Self { peer, line, files, bytes: Vec::new() })
    }

    /// The server.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The number of a file. A server that has no inventory beside its only one cannot say which that is.
    ///
    /// # Errors
    /// If the server does not have it.
    pub(crate) fn find(&self, wanted: &Listed) -> Result<u32> {
        let is_it = |file: &Listed| file.size == wanted.size && file.inventory == wanted.inventory;
        let found = match &self.files[..] {
            [Listed { inventory: None, size }] if *size == wanted.size => Some(0),
            files => files.iter().position(is_it),
        };
        let Some(found) = found else {
            return Err(anyhow::anyhow!(
                "it has pages of another checkpoint, or of another round\n  hint: earlier rounds are found by the images beside them"
            ))
            .with_context(|| place(&self.peer));
        };
        Ok(u32::try_from(found)?)
    }

    /// Brings pieces of a file, each a place and so many bytes: asks for more before those have come that were asked for.
    ///
    /// # Errors
    /// If the server goes away or cannot read; as `each`, which is given a piece and its place.
    pub(crate) fn fetch(
        &mut self,
        file: u32,
        pieces: impl IntoIterator<Item = (u64, u32)>,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut pieces = pieces.into_iter();
        let mut asked = VecDeque::with_capacity(WINDOW);
        loop {
            while asked.len() < WINDOW
                && let Some((place, len)) = pieces.next()
            {
                self.ask(Want { file, len, place })?;
                asked.push_back((place, len));
            }
            let Some((place, len)) = asked.pop_front() else { return Ok(()) };
            self.take(place, len)?;
            each(place, &self.bytes)?;
        }
    }

    fn ask(&mut self, want: Want) -> Result<()> {
        let mut ask = || self.line.write_all(&want.encode()).and_then(|()| self.line.flush());
        ask().with_context(|| place(&self.peer))
    }

    fn take(&mut self, at: u64, len: u32) -> Result<()> {
        let mut take = || {
            let frame = Frame::read(&mut self.line, &mut self.bytes).context("no pages come")?;
            match frame.what {
                PAGES if frame.place == at && frame.len == len => Ok(()),
                WRONG => bail!("it says: {}", String::from_utf8_lossy(&self.bytes)),
                _ => bail!("it sends what was not asked for"),
            }
        };
        take().with_context(|| place(&self.peer))
    }
}

fn place(peer: &Peer) -> String {
    format!("page server {}", peer.name)
}

/// Reads which files there are.
fn list(line: &mut impl Read) -> Result<Vec<Listed>> {
    let mut count = [0; 4];
    line.read_exact(&mut count)?;
    let count = u32::from_le_bytes(count);
    if count > MAX_FILES {
        bail!("what it says is no list of files");
    }
    (0..count).map(|_| Listed::read(line)).collect()
}
