//! The restore's side: page contents that are on another machine.

use super::client::{Peer, Server};
use super::line::{Line, Patience};
use super::{Frame, Hello, Listed, PAGES, WRONG, Want};
use crate::ptrace;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

/// How many answers may be on their way at once: a megabyte each, so that a line of 1 Gbit/s with 60 ms to and fro is full.
const WINDOW: usize = 8;
/// More files than a checkpoint can build on.
const MAX_FILES: u32 = 1 << 16;
/// How long it is tried to connect again when a connection has broken. Pages start that anew.
const REUNION: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// The connection is of no use any more, which says nothing of the server.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no pages come")]
struct Broken;

/// A connection that page contents come over, and what takes its place when it breaks.
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
            return Err(anyhow!(
                "it has pages of another checkpoint, or of another round\n  hint: earlier rounds are found by the images beside them"
            ))
            .with_context(|| place(&self.peer));
        };
        Ok(u32::try_from(found)?)
    }

    /// Brings pieces of a file, each a place and so many bytes: asks for more before those have come that were asked for. Over a new connection
    /// it asks again.
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
        let mut wanted = VecDeque::with_capacity(WINDOW);
        // So many of them have been asked for over this connection.
        let mut asked = 0;
        let mut broken_since = None;
        loop {
            wanted.extend(pieces.by_ref().take(WINDOW - wanted.len()));
            let Some(&(place, len)) = wanted.front() else { return Ok(()) };
            let ask = |&(place, len): &(u64, u32)| self.ask(Want { file, len, place });
            match wanted.iter().skip(asked).try_for_each(ask).and_then(|()| self.take(place, len)) {
                Ok(()) => {
                    wanted.pop_front();
                    asked = wanted.len();
                    broken_since = None;
                    each(place, &self.bytes)?;
                }
                Err(error) if error.is::<Broken>() => {
                    self.connect_again(error, &mut broken_since)?;
                    asked = 0;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&mut self, want: Want) -> Result<()> {
        let mut ask = || self.line.write_all(&want.encode()).and_then(|()| self.line.flush());
        ask().context(Broken).with_context(|| place(&self.peer))
    }

    fn take(&mut self, at: u64, len: u32) -> Result<()> {
        let mut take = || {
            let frame = Frame::read(&mut self.line, &mut self.bytes).context(Broken)?;
            match frame.what {
                PAGES if frame.place == at && frame.len == len => Ok(()),
                WRONG => bail!("it says: {}", String::from_utf8_lossy(&self.bytes)),
                _ => bail!("it sends what was not asked for"),
            }
        };
        take().with_context(|| place(&self.peer))
    }

    /// Connects again, if it is not for too long now that nothing has come.
    fn connect_again(&mut self, broken: anyhow::Error, since: &mut Option<Instant>) -> Result<()> {
        // One that breaks whenever it has been made again is not to be made in a hurry.
        let mut is_first = since.is_none();
        let end = *since.get_or_insert_with(Instant::now) + REUNION;
        if is_first {
            log::warn!("{broken:#}: connecting again");
        }
        loop {
            ptrace::check_interrupted()?;
            if Instant::now() >= end {
                return Err(broken);
            }
            if !is_first {
                thread::sleep(PAUSE);
            }
            is_first = false;
            match Self::again(&self.peer) {
                Ok(Self { files, .. }) if files != self.files => {
                    return Err(anyhow!("it has other pages than before")).with_context(|| place(&self.peer));
                }
                Ok(Self { line, .. }) => {
                    self.line = line;
                    return Ok(());
                }
                Err(error) => log::debug!("{error:#}"),
            }
        }
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
