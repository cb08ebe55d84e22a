//! Page contents over the network: `crr page-server` takes them from a dump on another machine, so that they never lie on a disk there, or
//! gives them to restores.
//!
//! As with CRIU, all but `pages.img` stays where the dump is. A server that takes pages serves one dump, or one round, and ends. One that gives them knows
//! nothing of what is in its files: it is the restore that has the records, and compares all that comes with their checksums.
//!
//! What is said, over TCP or TLS, all numbers little-endian:
//!
//! ```text
//! dump    hello       8 bytes "crrpages", u32 version; answered
//! dump    frame       u32 what, u32 bytes, u64 place, u32 checksum (of these fields and the bytes), the bytes
//!             pages   bytes of the file, from `place` on
//!             all     the file has `place` bytes; answered when it has
//!             commit  the dump needs nothing else: the file gets its name; answered
//! server  answer      u32 0 for good or 1, u32 bytes, a text of what is wrong
//!
//! restore hello       8 bytes "crrfetch", u32 version; answered
//! server  files       u32 how many, the oldest round first; of each: u64 bytes, u32 1 if an inventory is beside it or 0, u32 its checksum
//! restore want        u32 number of the file, u32 bytes, u64 place
//! server  frame       as above, in the order in which they were wanted:
//!             pages   the bytes
//!             wrong   a text of what is wrong; nothing comes after it
//! ```
//!
//! A server that fails says so at once and takes what comes then for nothing; a dump looks for that before each frame. A restore can ask for more before
//! it has had what it asked for, and may connect more than once.

pub mod client;
pub(crate) mod fetch;
pub mod give;
pub mod line;
pub mod server;
pub mod tls;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::IpAddr;

const VERSION: u32 = 1;
/// What a frame is.
const PAGES: u32 = 0;
const ALL: u32 = 1;
const COMMIT: u32 = 2;
const WRONG: u32 = 3;
/// More bytes than a dump puts into a frame: it goes by blocks.
const MAX_FRAME: usize = 4 << 20;
const MAX_TEXT: usize = 4096;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hello {
    /// It sends pages.
    Dump,
    /// It wants pages.
    Restore,
}

impl Hello {
    const MAGIC_SIZE: usize = 8;

    fn magic(self) -> &'static [u8; Self::MAGIC_SIZE] {
        match self {
            Self::Dump => b"crrpages",
            Self::Restore => b"crrfetch",
        }
    }
}

/// What is before the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    what: u32,
    len: u32,
    place: u64,
}

const FRAME_SIZE: usize = 20;

impl Frame {
    fn write(line: &mut impl Write, what: u32, place: u64, bytes: &[u8]) -> Result<()> {
        let frame = Self { what, len: u32::try_from(bytes.len())?, place };
        line.write_all(&frame.encode(bytes))?;
        line.write_all(bytes)?;
        Ok(line.flush()?)
    }

    fn encode(self, bytes: &[u8]) -> [u8; FRAME_SIZE] {
        let mut head = [0; FRAME_SIZE];
        head[..4].copy_from_slice(&self.what.to_le_bytes());
        head[4..8].copy_from_slice(&self.len.to_le_bytes());
        head[8..16].copy_from_slice(&self.place.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), bytes);
        head[16..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// Reads a frame; its bytes go to `bytes`.
    fn read(line: &mut impl Read, bytes: &mut Vec<u8>) -> Result<Self> {
        let mut head = [0; FRAME_SIZE];
        line.read_exact(&mut head)?;
        let word = |at: usize| -> Result<u32> { Ok(u32::from_le_bytes(head[at..at + 4].try_into()?)) };
        let frame =
            Self { what: word(0)?, len: word(4)?, place: u64::from_le_bytes(head[8..16].try_into()?) };
        let len = usize::try_from(frame.len)?;
        if len > MAX_FRAME {
            bail!("a frame of {len} bytes, which is too large");
        }
        bytes.resize(len, 0);
        line.read_exact(bytes)?;
        if frame.encode(bytes) != head {
            bail!("a frame came with another checksum than it was sent with");
        }
        Ok(frame)
    }
}

/// A file of pages that a server has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// Its bytes.
    pub(crate) size: u64,
    /// The checksum of the inventory beside it, if there is one.
    pub(crate) inventory: Option<u32>,
}

impl Listed {
    fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::from(self.inventory.is_some()).to_le_bytes());
        bytes[12..].copy_from_slice(&self.inventory.unwrap_or_default().to_le_bytes());
        bytes
    }

    fn read(line: &mut impl Read) -> Result<Self> {
        let mut bytes = [0; 16];
        line.read_exact(&mut bytes)?;
        let word = |at: usize| -> Result<u32> { Ok(u32::from_le_bytes(bytes[at..at + 4].try_into()?)) };
        let size = u64::from_le_bytes(bytes[..8].try_into()?);
        Ok(Self { size, inventory: (word(8)? == 1).then(|| word(12)).transpose()? })
    }
}

/// What a restore asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Want {
    file: u32,
    len: u32,
    place: u64,
}

impl Want {
    const SIZE: usize = 16;

    fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.file.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..].copy_from_slice(&self.place.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let [file, len, low, high] = [0, 4, 8, 12]
            .map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        Self { file, len, place: u64::from(high) << 32 | u64::from(low) }
    }
}

/// Says that all is well, or what is not.
fn answer(line: &mut impl Write, wrong: Option<&str>) -> Result<()> {
    let text = wrong.unwrap_or_default().as_bytes();
    let text = &text[..text.len().min(MAX_TEXT)];
    line.write_all(&u32::from(wrong.is_some()).to_le_bytes())?;
    line.write_all(&u32::try_from(text.len())?.to_le_bytes())?;
    line.write_all(text)?;
    Ok(line.flush()?)
}

/// Waits for an answer.
fn expect_good(line: &mut impl Read) -> Result<()> {
    let mut head = [0; 8];
    line.read_exact(&mut head)?;
    let len = usize::try_from(u32::from_le_bytes(head[4..].try_into()?))?;
    if len > MAX_TEXT {
        bail!("what it says is no answer");
    }
    let mut text = vec![0; len];
    line.read_exact(&mut text)?;
    match head[..4] {
        [0, 0, 0, 0] => Ok(()),
        _ => bail!("it says: {}", String::from_utf8_lossy(&text)),
    }
}

/// Refuses to have page contents, which may be anything that a program keeps in memory, go over a network for everybody to read.
///
/// # Errors
/// Without TLS, but for this very machine.
pub fn check_exposed(address: IpAddr, tls: bool, insecure: bool) -> Result<()> {
    if address.to_canonical().is_loopback() || tls || insecure {
        return Ok(());
    }
    bail!(
        "{address}: page contents would go over the network for everybody to read and to write\n  hint: use --tls, or a tunnel (ssh -L), or say \
         --insecure if the network is yours alone"
    )
}

#[cfg(test)]
mod tests;
