//! A right header and checksum around any payload, so that tests reach the decoder.

use images::container::{HEADER_SIZE, Kind, crc32c, encode};

/// The file of a payload.
pub(crate) fn seal(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut file = encode(kind, &()).unwrap();
    file.truncate(HEADER_SIZE);
    file[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    file.extend_from_slice(payload);
    let crc = crc32c(&file);
    file.extend_from_slice(&crc.to_le_bytes());
    file
}
