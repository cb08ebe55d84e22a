//! The layout of the non-compacted XSAVE area, as CPUID tells it.
//!
//! # Safety
//! CPUID exists on every x86_64 processor and changes nothing.
#![allow(unsafe_code)]

use std::arch::x86_64::__cpuid_count;

/// FXSAVE area and XSAVE header.
pub const HEADER_END: usize = 576;

/// Bytes of an area that holds the components of `features` (XSTATE_BV).
#[must_use]
pub fn size_for(features: u64) -> usize {
    /// Extended state enumeration: sub-leaf n is component n, EAX its size, EBX its offset.
    const LEAF: u32 = 0xd;
    const FIRST_EXTENDED: u32 = 2;
    (FIRST_EXTENDED..63)
        .filter(|n| features >> n & 1 != 0)
        .map(|n| {
            // Newer compilers declare this intrinsic safe.
            #[allow(unused_unsafe)]
            // SAFETY: see the module.
            let leaf = unsafe { __cpuid_count(LEAF, n) };
            usize::try_from(u64::from(leaf.eax) + u64::from(leaf.ebx)).unwrap_or(0)
        })
        .fold(HEADER_END, usize::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legacy_part_needs_no_more_than_the_header() {
        assert_eq!(size_for(0), HEADER_END);
        assert_eq!(size_for(3), HEADER_END);
    }
}
