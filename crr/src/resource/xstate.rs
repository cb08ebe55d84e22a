//! Extended processor state, as far as it depends on the processor: which components of it are in use, and where they lie.
//!
//! NT_X86_XSTATE is the XSAVE area in the standard format: FXSAVE area, header, then each component at a place of its
//! own. The places come from CPUID and differ between processors (those of AMD have no room for MPX, and so other places for AVX-512 and
//! PKRU than those of Intel), so the ones of the dumping machine are recorded.

use images::inventory::StateComponent;

pub(crate) use crate::sys::xsave::{PKRU, XSTATE_BV};

/// The end of the header.
const HEADER_END: usize = 576;
/// x87 and SSE, which lie in the FXSAVE area.
const LEGACY: u64 = 3;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// The protection key rights that the kernel chooses at exec (init_pkru_value of arch/x86/mm/pkeys.c).
const DEFAULT_PKRU: u32 = 0x5555_5554;

fn bit(component: StateComponent) -> u64 {
    1u64.checked_shl(component.number.into()).unwrap_or(0)
}

/// XSTATE_BV: the components that are in an area.
pub(crate) fn header(area: &[u8]) -> u64 {
    area.get(XSTATE_BV..XSTATE_BV + 8)
        .and_then(|word| word.try_into().ok())
        .map_or(LEGACY, u64::from_le_bytes)
}

/// The bytes of a component, if the area has room for it.
pub(crate) fn contents(area: &[u8], component: StateComponent) -> Option<&[u8]> {
    let start = usize::try_from(component.offset).ok()?;
    area.get(start..start.checked_add(usize::try_from(component.size).ok()?)?)
}

/// The components of an area that hold something: a processor without them could not go on from it.
///
/// XSTATE_BV alone says more than that: a component stays marked after its registers are cleared, and PKRU always is.
#[must_use]
pub fn in_use(area: &[u8], layout: &[StateComponent]) -> u64 {
    let marked = header(area);
    let used = |component: &&StateComponent| {
        let contents = contents(area, **component).unwrap_or_default();
        let default = component.number == PKRU && contents.starts_with(&DEFAULT_PKRU.to_le_bytes());
        marked & bit(**component) != 0 && !default && contents.iter().any(|byte| *byte != 0)
    };
    (marked & LEGACY) | layout.iter().filter(used).fold(0, |all, component| all | bit(*component))
}

/// An area as the machine with the layout `to` and room for `size` bytes has it, from one in the layout `from`. What that
/// machine does not have is left out: it is not in use ([`misfits`]).
#[must_use]
pub fn fitted(area: &[u8], from: &[StateComponent], to: &[StateComponent], size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    let legacy = XSTATE_BV.min(area.len()).min(size);
    out[..legacy].copy_from_slice(&area[..legacy]);
    if size < HEADER_END {
        return out;
    }
    let marked = header(area);
    let mut present = marked & LEGACY;
    if marked & AVX != 0 {
        // MXCSR counts with either of the two, and xmm registers of a thread without SSE state are shown as 0.
        present |= SSE;
    }
    for component in from.iter().filter(|component| marked & bit(**component) != 0) {
        let Some(place) =
            to.iter().find(|place| (place.number, place.size) == (component.number, component.size))
        else {
            continue;
        };
        let target = usize::try_from(place.offset).unwrap_or(usize::MAX);
        if let Some(contents) = contents(area, *component)
            && let Some(target) = out.get_mut(target..).and_then(|rest| rest.get_mut(..contents.len()))
        {
            target.copy_from_slice(contents);
            present |= bit(*component);
        }
    }
    let has_keys = |layout: &[StateComponent]| layout.iter().find(|place| place.number == PKRU).copied();
    if let (None, Some(place)) = (has_keys(from), has_keys(to))
        && let Some(rights) = usize::try_from(place.offset).ok().and_then(|at| out.get_mut(at..at + 4))
    {
        // Left out it would be 0: all may be done with memory that gets a key (copy_uabi_to_xstate() of arch/x86/kernel/fpu/xstate.c).
        rights.copy_from_slice(&DEFAULT_PKRU.to_le_bytes());
        present |= bit(place);
    }
    out[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
    out
}

/// The components among those in use that a machine does not have, or has in another size.
#[must_use]
pub fn misfits(in_use: u64, from: &[StateComponent], to: &[StateComponent]) -> Vec<u8> {
    let fits = |number: u8| {
        let size = |layout: &[StateComponent]| {
            layout.iter().find(|component| component.number == number).map(|component| component.size)
        };
        size(to).is_some_and(|there| size(from) == Some(there))
    };
    (2..64).filter(|number| in_use >> number & 1 != 0 && !fits(*number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn component(number: u8, offset: u32, size: u32) -> StateComponent {
        StateComponent { number, offset, size }
    }

    const YMM: StateComponent = component(2, 576, 256);
    /// AVX, AVX-512 (mask registers, upper halves, upper registers) and PKRU, with room for MPX before and without.
    const WITH_MPX: [StateComponent; 5] = [
        YMM,
        component(5, 1088, 64),
        component(6, 1152, 512),
        component(7, 1664, 1024),
        component(9, 2688, 8),
    ];
    const WITHOUT_MPX: [StateComponent; 5] =
        [YMM, component(5, 832, 64), component(6, 896, 512), component(7, 1408, 1024), component(9, 2432, 8)];

    /// Each of `numbers` filled with its number and marked; those of `marked` only marked.
    fn area(layout: &[StateComponent], size: usize, numbers: &[u8], marked: &[u8]) -> Vec<u8> {
        let mut area = vec![0; size];
        area[..XSTATE_BV].fill(0xee);
        let mut present = LEGACY;
        for component in layout {
            if numbers.contains(&component.number) {
                let start = usize::try_from(component.offset).unwrap();
                area[start..start + usize::try_from(component.size).unwrap()].fill(component.number);
            }
            if numbers.contains(&component.number) || marked.contains(&component.number) {
                present |= bit(*component);
            }
        }
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        area
    }

    #[test]
    fn components_move_to_where_the_other_machine_has_them() {
        let all = [2, 5, 6, 7, 9];
        let (wide, narrow) = (area(&WITH_MPX, 2696, &all, &[]), area(&WITHOUT_MPX, 2440, &all, &[]));
        assert_eq!(fitted(&wide, &WITH_MPX, &WITHOUT_MPX, 2440), narrow);
        assert_eq!(fitted(&narrow, &WITHOUT_MPX, &WITH_MPX, 2696), wide);
        assert_eq!(fitted(&wide, &WITH_MPX, &WITH_MPX, 2696), wide);
    }

    #[test]
    fn what_is_not_in_use_may_be_missing() {
        let marked_only = area(&WITH_MPX, 2696, &[2], &[5, 6, 7]);
        assert_eq!(in_use(&marked_only, &WITH_MPX), 7);
        assert!(misfits(7, &WITH_MPX, &[YMM]).is_empty());
        assert_eq!(fitted(&marked_only, &WITH_MPX, &[YMM], 832), area(&[YMM], 832, &[2], &[]));
    }

    #[test]
    fn what_is_in_use_is_missed() {
        let upper = area(&WITH_MPX, 2696, &[2, 7], &[]);
        assert_eq!(in_use(&upper, &WITH_MPX), 0x87);
        assert_eq!(misfits(0x87, &WITH_MPX, &[YMM]), [7]);
        assert_eq!(misfits(0x87, &WITH_MPX, &[YMM, component(7, 1408, 2048)]), [7], "another size");
        assert_eq!(misfits(0x80, &[YMM], &WITH_MPX), [7], "not recorded where it lies");
    }

    #[test]
    fn protection_keys_count_when_they_are_not_those_of_exec() {
        let mut keys = area(&WITH_MPX, 2696, &[], &[9]);
        keys[2688..2692].copy_from_slice(&DEFAULT_PKRU.to_le_bytes());
        assert_eq!(in_use(&keys, &WITH_MPX), 3);
        keys[2688] = 0;
        assert_eq!(in_use(&keys, &WITH_MPX), 3 | 1 << 9);
    }

    #[test]
    fn where_there_are_keys_nobody_has_rights_without_asking() {
        let fitted = fitted(&area(&[YMM], 832, &[2], &[]), &[YMM], &WITH_MPX, 2696);
        let mut expected = area(&WITH_MPX, 2696, &[2], &[9]);
        expected[2688..2692].copy_from_slice(&DEFAULT_PKRU.to_le_bytes());
        assert_eq!(fitted, expected);
    }

    #[test]
    fn areas_without_a_header_are_x87_and_sse() {
        let old = vec![0xee; 512];
        assert_eq!(in_use(&old, &[]), LEGACY);
        assert_eq!(fitted(&old, &[], &[YMM], 832), area(&[YMM], 832, &[], &[]));
        assert_eq!(fitted(&area(&[YMM], 832, &[2], &[]), &[YMM], &[], 512), old);
    }
}
