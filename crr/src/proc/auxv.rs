//! `/proc/PID/auxv`: pairs of words of the task's ABI, each a key and its value.

use images::Abi;

/// The vector up to its end mark: what follows is room that the kernel keeps.
#[must_use]
pub fn cut(auxv: &[u8], abi: Abi) -> &[u8] {
    let pair = if abi == Abi::X86_64 { 16 } else { 8 };
    let end = auxv.chunks_exact(pair).position(|entry| entry[..pair / 2].iter().all(|byte| *byte == 0));
    &auxv[..end.map_or(auxv.len(), |at| (at + 1) * pair)]
}

/// The value of a key.
#[must_use]
pub fn entry(auxv: &[u8], abi: Abi, key: u64) -> Option<u64> {
    let size = if abi == Abi::X86_64 { 8 } else { 4 };
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    let words: Vec<u64> = auxv.chunks_exact(size).map(word).collect();
    words.chunks_exact(2).find(|pair| pair[0] == key).map(|pair| pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_its_null_entry() {
        let mut words: Vec<u8> = [3u32, 0x1000, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(cut(&words, Abi::Ia32).len(), 16);
        words = [3u64, 0x1000, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(cut(&words, Abi::X86_64).len(), 32);
    }

    #[test]
    fn entries_are_found_in_both_widths() {
        let wide: Vec<u8> = [3u64, 7, 25, 0x1234, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(entry(&wide, Abi::X86_64, 25), Some(0x1234));
        assert_eq!(entry(&wide, Abi::X86_64, 7), None);
        let narrow: Vec<u8> =
            [3u32, 7, 25, 0x1234, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(entry(&narrow, Abi::Ia32, 25), Some(0x1234));
    }
}
