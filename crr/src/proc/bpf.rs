//! `/proc/PID/fdinfo/N` of BPF maps, and of iterators over them.

use super::event::field;
use super::{Malformed, decimal};

/// The id of the map that it is about.
#[must_use]
pub fn map_id(text: &[u8]) -> Option<u32> {
    decimal(field(text, "map_id")?)
}

/// Whether nobody can change the map by system calls any more.
///
/// # Errors
/// [`Malformed`] where the kernel does not tell.
pub fn is_frozen(text: &[u8]) -> Result<bool, Malformed> {
    match field(text, "frozen") {
        Some(b"0") => Ok(false),
        Some(b"1") => Ok(true),
        _ => Err(Malformed { file: "fdinfo", field: "frozen" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_text() {
        let text = b"pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\nmap_type:\t2\nkey_size:\t4\nvalue_size:\t8\n\
            max_entries:\t16\nmap_flags:\t0x0\nmap_extra:\t0x0\nmemlock:\t440\nmap_id:\t79\nfrozen:\t1\n";
        assert_eq!((map_id(text), is_frozen(text)), (Some(79), Ok(true)));
        assert!(map_id(b"pos:\t0\n").is_none() && is_frozen(b"pos:\t0\n").is_err());
    }
}
