//! The layout of the non-compacted XSAVE area, as CPUID tells it.
//!
//! # Safety
//! CPUID exists on every x86_64 processor and changes nothing.
#![allow(unsafe_code)]

use images::inventory::StateComponent;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Components before it are part of the FXSAVE area.
const FIRST_EXTENDED: u8 = 2;

/// FXSAVE area and XSAVE header.
pub const HEADER_END: usize = 576;

/// Where the components of `features` lie.
#[must_use]
pub fn layout(features: u64) -> Vec<StateComponent> {
    (FIRST_EXTENDED..63).filter(|number| features >> number & 1 != 0).map(component).collect()
}

/// Component of the protection key rights of a thread.
pub const PKRU: u8 = 9;
/// Where XSTATE_BV lies, the first word of the header behind the FXSAVE area.
pub const XSTATE_BV: usize = 512;

/// Where a component lies. Each is asked for once: under a hypervisor CPUID takes as long as some twenty system calls.
#[must_use]
pub fn component(number: u8) -> StateComponent {
    const COMPONENTS: usize = 64;
    static KNOWN: [OnceLock<StateComponent>; COMPONENTS] = [const { OnceLock::new() }; COMPONENTS];
    let known = KNOWN.get(usize::from(number));
    known.map_or_else(|| ask(number), |known| *known.get_or_init(|| ask(number)))
}

/// Extended state enumeration: sub-leaf n is component n, EAX its size, EBX its offset.
fn ask(number: u8) -> StateComponent {
    const LEAF: u32 = 0xd;
    // Newer compilers declare this intrinsic safe.
    #[allow(unused_unsafe)]
    // SAFETY: see the module.
    let leaf = unsafe { __cpuid_count(LEAF, number.into()) };
    StateComponent { number, offset: leaf.ebx, size: leaf.eax }
}

/// Bytes of an area that holds the components of `features` (XSTATE_BV).
#[must_use]
pub fn size_for(features: u64) -> usize {
    layout(features)
        .iter()
        .map(|component| {
            usize::try_from(u64::from(component.offset) + u64::from(component.size)).unwrap_or(0)
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
