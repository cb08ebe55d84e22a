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
        match self {
            Self::Tree => 8,
            Self::Files => 9,
            Self::Inventory => 4,
            Self::Memory => 6,
            Self::Pages => 2,
        }
    }
}

/// What a file with this code in its header is.
fn name_of(code: u16) -> &'static str {
    match Kind::ALL.into_iter().find(|kind| kind.code() == code) {
        Some(Kind::Inventory) => "an inventory",
        Some(Kind::Tree) => "a tree image",
        Some(Kind::Files) => "a files image",
        Some(Kind::Memory) => "a memory image",
        Some(Kind::Pages) | None => "an image of an unknown kind",
    }
}

/// Why bytes are not an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Shorter than a header.
    #[error("is cut off: its {0} bytes are not even a header")]
    Short(u64),
    /// The magic is another.
    #[error("is not a crr image (wrong magic)")]
    Magic,
    /// Another kind of image under this name.
    #[error("is {}, not {}", name_of(*.found), name_of(*.expected))]
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
    /// Bytes that must be zero are not.
    #[error("uses a reserved header field ({0:#x}) that this crr does not know")]
    Reserved(u64),
    /// No image is that large.
    #[error("has a payload of {0} bytes, more than any image may have")]
    Oversized(u64),
    /// The length in the header does not fit the file.
    #[error("has {actual} bytes, by its header it must have {claimed}")]
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
/// [`Error::Decode`] if a record cannot be expressed, which the record types rule out; [`Error::Oversized`] for one that nobody would read.
pub fn encode<T: Serialize>(kind: Kind, record: &T) -> Result<Vec<u8>, Error> {
    let mut out = alloc::vec![0u8; HEADER_SIZE];
    out = postcard::to_extend(record, out).map_err(|_| Error::Decode)?;
    let payload = possible((out.len() - HEADER_SIZE) as u64)?;
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

/// Checks the header of a metadata file, of which `start` is the beginning or all, and returns the size that the
/// file must have by its header. So a reader knows before it takes memory for the rest that it is worth reading.
///
/// # Errors
/// Any [`Error`] that a header can show.
pub fn check_header(kind: Kind, start: &[u8]) -> Result<u64, Error> {
    if start.len() >= MAGIC.len() && start[..MAGIC.len()] != MAGIC {
        return Err(Error::Magic);
    }
    if start.len() < HEADER_SIZE {
        return Err(Error::Short(start.len() as u64));
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
    let u64_at = |at: usize| {
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&start[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if u64_at(24) != 0 {
        return Err(Error::Reserved(u64_at(24)));
    }
    Ok(possible(u64_at(16))? + (HEADER_SIZE + TRAILER_SIZE) as u64)
}

/// The length of a payload, if a file may have that.
const fn possible(payload: u64) -> Result<u64, Error> {
    if payload > MAX_PAYLOAD { Err(Error::Oversized(payload)) } else { Ok(payload) }
}

/// The record of a metadata file.
///
/// # Errors
/// Any [`Error`]; no input panics or allocates more than a small multiple of its own size.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, Error> {
    let (claimed, actual) = (check_header(kind, bytes)?, bytes.len() as u64);
    if claimed != actual {
        return Err(Error::Length { claimed, actual });
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    /// A file of kind tree, with some bytes of its header replaced and the checksum made right again.
    fn with_header(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = encode(Kind::Tree, &vec![1u32, 2, 3]).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        seal(file)
    }

    fn seal(mut file: Vec<u8>) -> Vec<u8> {
        file.truncate(file.len() - TRAILER_SIZE);
        let crc = crc32c(&file);
        file.extend_from_slice(&crc.to_le_bytes());
        file
    }

    fn error(file: &[u8]) -> Error {
        decode::<Vec<u32>>(Kind::Tree, file).unwrap_err()
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // The check value of the CRC catalogue; RFC 3720 B.4 for the zeros.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_record_comes_back() {
        let file = encode(Kind::Tree, &vec![1u32, 2, 3]).unwrap();
        assert_eq!(decode::<Vec<u32>>(Kind::Tree, &file), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn short_files_are_cut_off() {
        let file = encode(Kind::Tree, &vec![1u32, 2, 3]).unwrap();
        assert_eq!(error(&[]), Error::Short(0));
        assert_eq!(error(&file[..31]), Error::Short(31));
        assert_eq!(error(&file[..32]), Error::Length { claimed: 40, actual: 32 });
        assert_eq!(error(&file[..39]), Error::Length { claimed: 40, actual: 39 });
    }

    #[test]
    fn longer_files_are_noticed() {
        let mut file = encode(Kind::Tree, &vec![1u32, 2, 3]).unwrap();
        file.push(0);
        assert_eq!(error(&file), Error::Length { claimed: 40, actual: 41 });
    }

    #[test]
    fn other_files_have_another_magic() {
        assert_eq!(error(&with_header(0, b"CRRIMAGE")), Error::Magic);
        assert_eq!(error(b"#!/bin/sh"), Error::Magic);
    }

    #[test]
    fn images_under_the_name_of_another_are_told() {
        let found = error(&with_header(8, &Kind::Memory.code().to_le_bytes()));
        assert_eq!(found, Error::Kind { expected: 2, found: 4 });
        assert_eq!(found.to_string(), "is a memory image, not a tree image");
        let unknown = error(&with_header(8, &[0xff, 0xff])).to_string();
        assert_eq!(unknown, "is an image of an unknown kind, not a tree image");
    }

    #[test]
    fn newer_versions_are_told() {
        let found = error(&with_header(10, &[99, 0]));
        assert_eq!(found, Error::Version { found: 99, known: Kind::Tree.version() });
        assert_eq!(found.to_string(), "has format version 99; this crr reads version 8");
    }

    #[test]
    fn other_machines_are_told() {
        // EM_AARCH64.
        assert_eq!(error(&with_header(12, &183u16.to_le_bytes())), Error::Machine(183));
    }

    #[test]
    fn unknown_flags_and_reserved_bytes_are_not_ignored() {
        assert_eq!(error(&with_header(14, &[0, 0x80])), Error::Flags(0x8000));
        assert_eq!(error(&with_header(31, &[1])), Error::Reserved(1 << 56));
    }

    #[test]
    fn impossible_lengths_are_told_before_anything_is_read() {
        let huge = (MAX_PAYLOAD + 1).to_le_bytes();
        assert_eq!(error(&with_header(16, &huge)), Error::Oversized(MAX_PAYLOAD + 1));
        assert_eq!(error(&with_header(16, &[0xff; 8])), Error::Oversized(u64::MAX));
        // What is written goes by the same rule.
        assert_eq!(possible(MAX_PAYLOAD), Ok(MAX_PAYLOAD));
        assert_eq!(possible(MAX_PAYLOAD + 1), Err(Error::Oversized(MAX_PAYLOAD + 1)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let file = encode(Kind::Tree, &vec![1u32, 2, 3]).unwrap();
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Vec<u32>>(Kind::Tree, &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn wrong_records_under_a_right_checksum_are_noticed() {
        // A fourth element is claimed and missing.
        assert_eq!(error(&with_header(HEADER_SIZE, &[4])), Error::Decode);
        // A third one is there and not claimed.
        assert_eq!(error(&with_header(HEADER_SIZE, &[2])), Error::Trailing(1));
    }
}
