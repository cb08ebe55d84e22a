//! Protection keys (pkeys(7)).
//!
//! # Safety
//! See the parent module: the calls here touch no memory.

use super::Failure;
use super::calls::plain;
use crate::sys::{self, nr};

/// Allocates the keys from 1 on, up to the last. Whoever allocates a key may use the memory that gets it; threads that are cloned later, too.
pub(super) fn allocate(last: u32) -> Result<(), Failure> {
    for wanted in 1..=last {
        // SAFETY: plain numbers.
        let key = unsafe { sys::call(nr::__NR_pkey_alloc, &[0, 0]) }
            .map_err(|errno| Failure::new(errno, u64::from(wanted)))?;
        if key != wanted as usize {
            return Err(Failure::wrong(key as u64));
        }
    }
    Ok(())
}

pub(super) fn free(keys: u32) -> Result<(), Failure> {
    (0..u32::BITS)
        .filter(|key| keys >> key & 1 != 0)
        .try_for_each(|key| plain(nr::__NR_pkey_free, u64::from(key), &[key as usize]))
}
