//! Segments of System V.
//!
//! # Safety
//! The plan attaches and moves only where it has mapped an empty area before.

use super::Failure;
use super::calls::plain;
use super::receive::size;
use crate::sys::{self, nr};

/// shmat at a given address.
pub(super) fn attach(id: i32, addr: u64, flags: u32) -> Result<(), Failure> {
    let at = shmat(id, size(addr)?, flags)?;
    if at as u64 == addr { Ok(()) } else { Err(Failure::wrong(at as u64)) }
}

/// shmat where the kernel finds room, for parts of it; `parts` as in [`crate::op::Op::AttachParts`].
pub(super) fn attach_parts(id: i32, flags: u32, parts: &[u8]) -> Result<(), Failure> {
    let base = shmat(id, 0, flags)?;
    for part in parts.chunks_exact(24) {
        let word =
            |at: usize| part[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let [addr, len, offset] = [word(0), word(8), word(16)];
        // SAFETY: the part lies in what was just attached, and its place is an empty area.
        unsafe { sys::move_mapping(base + size(offset)?, size(addr)?, size(len)?) }
            .map_err(|errno| Failure::new(errno, addr))?;
    }
    // What has moved lies elsewhere than it would as a part of this.
    plain(nr::__NR_shmdt, base as u64, &[base])
}

#[allow(clippy::cast_sign_loss)] // An int, as the kernel takes it; ids are not negative.
fn shmat(id: i32, addr: usize, flags: u32) -> Result<usize, Failure> {
    // SAFETY: at an empty area of the plan's, or where nothing is mapped.
    unsafe { sys::call(nr::__NR_shmat, &[id as usize, addr, flags as usize]) }
        .map_err(|errno| Failure::new(errno, id as u64))
}
