//! Protocol records as bytes.
//!
//! # Safety
//! Only for the records named here, which consist of integers without padding.
#![allow(unsafe_code)]

use shared::proto::{ProbeRequest, Report, Start};

/// A record that consists of integers without padding between them.
pub trait Plain: Copy {}
impl Plain for Start {}
impl Plain for Report {}
impl Plain for ProbeRequest {}

/// The bytes of a record.
pub fn as_bytes<T: Plain>(record: &T) -> &[u8] {
    // SAFETY: `Plain` types are repr(C) integers without padding (asserted below), so every byte is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
}

const _: () = assert!(size_of::<Report>() == 6 * 4 + 2 * 8);
const _: () = assert!(size_of::<Start>() == 12 * 8 + 3 * 16 + 8 + 3 * 8 + 6 * 8);
const _: () = assert!(size_of::<ProbeRequest>() == 3 * 16);
