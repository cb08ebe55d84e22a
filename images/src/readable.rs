//! How bytes look in formats made for people (`crr show --json`): text or hexadecimal instead of a list of
//! numbers. In the images themselves, which are not such a format, all of this is plain bytes, written in one go: one by one, as serde has lists, they
//! take as long as the rest of a record.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use serde::{Serialize, Serializer};

/// For names and contents that usually are text: a string where they are, else a list of numbers.
pub(crate) fn text<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return serializer.serialize_bytes(bytes);
    }
    match core::str::from_utf8(bytes) {
        Ok(text) => serializer.serialize_str(text),
        _ => bytes.serialize(serializer),
    }
}

/// For bytes that are never text: hexadecimal digits in memory order.
pub(crate) fn hex<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = bytes.as_ref();
    if !serializer.is_human_readable() {
        return serializer.serialize_bytes(bytes);
    }
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(digits, "{byte:02x}").map_err(serde::ser::Error::custom)?;
    }
    serializer.serialize_str(&digits)
}
