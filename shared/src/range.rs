//! Address ranges, and finding room between them.

use alloc::vec::Vec;
use images::id::PAGE_SIZE;

/// A half-open range of addresses, page-aligned where it describes mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// From `start`, `len` bytes.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, end: start + len }
    }

    /// Bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// `bytes` rounded up to whole pages.
#[must_use]
pub const fn page_align(bytes: u64) -> u64 {
    (bytes + PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

/// Spans, each from one place to before another, of which those that meet are one.
#[must_use]
pub fn merged(mut spans: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    spans.sort_unstable();
    spans.dedup_by(|next, last| {
        let meets = next.0 <= last.1;
        if meets {
            last.1 = last.1.max(next.1);
        }
        meets
    });
    spans
}

/// The lowest range of `len` bytes inside `within` that touches none of `taken`.
///
/// One page is left free on each side, so that what is put there never merges with a neighbour.
#[must_use]
pub fn find_gap(taken: &[Range], within: Range, len: u64) -> Option<Range> {
    let mut sorted: Vec<Range> = taken.to_vec();
    sorted.sort_unstable();
    let mut at = within.start;
    for range in sorted.iter().chain(core::iter::once(&Range { start: within.end, end: u64::MAX })) {
        if range.start >= at && range.start - at >= len + 2 * PAGE_SIZE {
            return Some(Range::new(at + PAGE_SIZE, len));
        }
        at = at.max(range.end);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WITHIN: Range = Range { start: 0x10_000, end: 0xffff_e000 };

    #[test]
    fn an_empty_space_is_used_from_below() {
        assert_eq!(find_gap(&[], WITHIN, 0x1000), Some(Range::new(0x11_000, 0x1000)));
    }

    #[test]
    fn a_full_space_has_no_gap() {
        assert_eq!(find_gap(&[WITHIN], WITHIN, 0x1000), None);
        // Room for the range itself, but not for the free page on each side.
        let almost = [Range { start: WITHIN.start, end: WITHIN.end - 0x2000 }];
        assert_eq!(find_gap(&almost, WITHIN, 0x1000), None);
    }

    proptest! {
        #[test]
        fn a_gap_is_inside_and_touches_nothing(
            starts in prop::collection::vec((0u64..0xf_fff0, 1u64..0x4000), 0..60),
            pages in 1u64..0x1000,
        ) {
            let taken: Vec<Range> = starts.iter().map(|&(s, n)| Range::new(s << 12, n << 12)).collect();
            if let Some(gap) = find_gap(&taken, WITHIN, pages << 12) {
                prop_assert_eq!(gap.len(), pages << 12);
                prop_assert!(gap.start > WITHIN.start && gap.end < WITHIN.end);
                let wide = Range { start: gap.start - PAGE_SIZE, end: gap.end + PAGE_SIZE };
                prop_assert!(taken.iter().all(|t| !t.overlaps(wide)));
            }
        }
    }
}
