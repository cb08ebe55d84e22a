//! How one record tree becomes one file: header, payload, checksum; and back, trusting nothing.

use alloc::vec::Vec;
use crc::{CRC_32_ISCSI, Crc, Table};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// First bytes of every metadata file.
pub const MAGIC: [u8; 8] = *b"crrimage";
/// Bytes before the payload.
pub const HEADER_SIZE: usize = 32;
/// Bytes after the payload.
pub const TRAILER_SIZE: usize = 4;
/// No metadata file may claim more: 4 GiB of records is far beyond any tree a machine can hold.
pub const MAX_PAYLOAD: u64 = 1 << 32;
/// The machine whose tasks are recorded: EM_X86_64.
pub const MACHINE: u16 = 62;

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The files of a checkpoint. Each kind has its own version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// `inventory.img`.
    Inventory,
    /// `tree.img`.
    Tree,
    /// `files.img`.
    Files,
    /// `memory.img`.
    Memory,
    /// `pages.img`: raw, without header.
    Pages,
}

impl Kind {
    /// Every kind, inventory first.
    pub const ALL: [Self; 5] = [Self::Inventory, Self::Tree, Self::Files, Self::Memory, Self::Pages];

    /// Its file name.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Inventory => "inventory.img",
            Self::Tree => "tree.img",
            Self::Files => "files.img",
            Self::Memory => "memory.img",
            Self::Pages => "pages.img",
        }
    }

    /// The number in the header.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Inventory => 1,
            Self::Tree => 2,
            Self::Files => 3,
            Self::Memory => 4,
            Self::Pages => 5,
        }
    }

    /// The version this crr writes, and the only one it reads.
    #[must_use]
    pub const fn version(self) -> u16 {
        1
    }
}

/// Why bytes are not an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Shorter than a header and trailer.
    #[error("is cut off: {0} bytes are not even a header")]
    Short(u64),
    /// The magic is another.
    #[error("is not a crr image (wrong magic)")]
    Magic,
    /// Another kind of image under this name.
    #[error("holds an image of kind {found}, not {expected}")]
    Kind {
        /// Code of the kind asked for.
        expected: u16,
        /// Code found.
        found: u16,
    },
    /// A version this crr does not read.
    #[error("has format version {found}; this crr reads version {known}")]
    Version {
        /// Version found.
        found: u16,
        /// Version known.
        known: u16,
    },
    /// Tasks of another machine.
    #[error(
        "records tasks of another architecture (ELF machine {0}); this crr restores x86_64 and ia32 tasks"
    )]
    Machine(u16),
    /// Flags from the future.
    #[error("uses format flags {0:#x} that this crr does not know")]
    Flags(u16),
    /// The length in the header does not fit the file.
    #[error("claims a payload of {claimed} bytes, but has {actual}")]
    Length {
        /// By the header.
        claimed: u64,
        /// By the file.
        actual: u64,
    },
    /// Checksum mismatch.
    #[error("is corrupt: checksum {actual:08x} instead of {expected:08x}")]
    Checksum {
        /// In the trailer.
        expected: u32,
        /// Of the bytes.
        actual: u32,
    },
    /// The checksum is right and the records are not.
    #[error("has records that cannot be decoded")]
    Decode,
    /// Bytes after the last record.
    #[error("has {0} bytes after its last record")]
    Trailing(u64),
}

/// CRC-32C (Castagnoli), as used for all checksums of the format.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// The bytes of a metadata file.
///
/// # Errors
/// [`Error::Decode`] if a record cannot be expressed, which the record types rule out.
pub fn encode<T: Serialize>(kind: Kind, record: &T) -> Result<Vec<u8>, Error> {
    let mut out = alloc::vec![0u8; HEADER_SIZE];
    out = postcard::to_extend(record, out).map_err(|_| Error::Decode)?;
    let payload = (out.len() - HEADER_SIZE) as u64;
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&kind.code().to_le_bytes());
    out[10..12].copy_from_slice(&kind.version().to_le_bytes());
    out[12..14].copy_from_slice(&MACHINE.to_le_bytes());
    // 14..16 flags and 24..32 reserved stay zero.
    out[16..24].copy_from_slice(&payload.to_le_bytes());
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Checks the header of a metadata file of `size` bytes, so that a reader knows before it takes memory for the
/// rest that the rest can be what it looks for. `start` is the file's beginning, a whole header if it has one.
///
/// # Errors
/// Any [`Error`] that a header can show.
pub fn check_header(kind: Kind, start: &[u8], size: u64) -> Result<(), Error> {
    if start.len() >= MAGIC.len() && start[..MAGIC.len()] != MAGIC {
        return Err(Error::Magic);
    }
    let around = (HEADER_SIZE + TRAILER_SIZE) as u64;
    if start.len() < HEADER_SIZE || size < around {
        return Err(Error::Short(size));
    }
    let u16_at = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
    if u16_at(8) != kind.code() {
        return Err(Error::Kind { expected: kind.code(), found: u16_at(8) });
    }
    if u16_at(10) != kind.version() {
        return Err(Error::Version { found: u16_at(10), known: kind.version() });
    }
    if u16_at(12) != MACHINE {
        return Err(Error::Machine(u16_at(12)));
    }
    if u16_at(14) != 0 {
        return Err(Error::Flags(u16_at(14)));
    }
    let mut claimed = [0u8; 8];
    claimed.copy_from_slice(&start[16..24]);
    let (claimed, actual) = (u64::from_le_bytes(claimed), size - around);
    if claimed != actual || claimed > MAX_PAYLOAD {
        return Err(Error::Length { claimed, actual });
    }
    Ok(())
}

/// The record of a metadata file.
///
/// # Errors
/// Any [`Error`]; no input panics or allocates more than a small multiple of its own size.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, Error> {
    check_header(kind, bytes, bytes.len() as u64)?;
    let (body, trailer) = bytes.split_at(bytes.len() - TRAILER_SIZE);
    let expected = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]);
    let actual = crc32c(body);
    if expected != actual {
        return Err(Error::Checksum { expected, actual });
    }
    let (record, rest) = postcard::take_from_bytes(&body[HEADER_SIZE..]).map_err(|_| Error::Decode)?;
    if !rest.is_empty() {
        return Err(Error::Trailing(rest.len() as u64));
    }
    Ok(record)
}
