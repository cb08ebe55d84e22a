//! `/proc/PID/fdinfo/N` of an inotify descriptor: the `inotify` lines.

use super::{Malformed, hex};

/// A watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its number.
    pub wd: u32,
    /// What is watched.
    pub file: WatchedFile,
    /// IN_*: events, IN_EXCL_UNLINK, IN_ONESHOT.
    pub mask: u32,
}

/// A file that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFile {
    /// Its inode.
    pub ino: u64,
    /// Its file system; the device as the kernel has it, major number from bit 20 on.
    pub device: u32,
    /// A handle by which it can be opened, of a type of its file system, where that has any.
    pub handle: Option<(i32, Vec<u8>)>,
}

impl WatchedFile {
    /// By its inode, its device, and the end of a line: show_mark_fhandle() of fs/notify/fdinfo.c.
    pub(super) fn new(ino: u64, device: u32, end_of_line: &[u8]) -> Option<Self> {
        let mut words = end_of_line.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let mut value = |name: &[u8]| words.next()?.strip_prefix(name);
        let handle = match value(b"fhandle-bytes:") {
            None => None,
            Some(_) => {
                let kind = i32::try_from(hex(value(b"fhandle-type:")?)?).ok()?;
                Some((kind, bytes(value(b"f_handle:")?)?))
            }
        };
        Some(Self { ino, device, handle })
    }
}

/// Parses the lines in the kernel's order, which has the youngest watch first.
///
/// # Errors
/// [`Malformed`].
pub fn watches(text: &[u8]) -> Result<Vec<Watch>, Malformed> {
    let lines = text.split(|&byte| byte == b'\n').filter_map(|line| line.strip_prefix(b"inotify "));
    lines.map(|line| watch(line).ok_or(Malformed { file: "fdinfo", field: "inotify" })).collect()
}

/// inotify_fdinfo() of fs/notify/fdinfo.c; all numbers are hexadecimal.
fn watch(line: &[u8]) -> Option<Watch> {
    const HANDLE: &[u8] = b"fhandle-bytes:";
    let end = line.windows(HANDLE.len()).position(|word| word == HANDLE).unwrap_or(line.len());
    let mut words = line[..end].split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let mut value = |name: &[u8]| words.next()?.strip_prefix(name);
    let mut number = |name| hex(value(name)?);
    let wd = u32::try_from(number(b"wd:")?).ok()?;
    let ino = number(b"ino:")?;
    let device = u32::try_from(number(b"sdev:")?).ok()?;
    let mask = u32::try_from(number(b"mask:")?).ok()?;
    number(b"ignored_mask:")?;
    Some(Watch { wd, file: WatchedFile::new(ino, device, &line[end..])?, mask })
}

fn bytes(text: &[u8]) -> Option<Vec<u8>> {
    text.chunks(2).map(|pair| u8::try_from(hex(pair)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_lines() {
        let text = b"pos:\t0\nflags:\t04000\nmnt_id:\t17\nino:\t1038\n\
            inotify wd:f4241 ino:9a61bd sdev:fe00000 mask:84000100 ignored_mask:0 fhandle-bytes:8 fhandle-type:81 \
            f_handle:bd619a0099154f85\n\
            inotify wd:2 ino:c sdev:1b mask:100 ignored_mask:0 \n";
        let handle = (0x81, vec![0xbd, 0x61, 0x9a, 0, 0x99, 0x15, 0x4f, 0x85]);
        let expected = [
            Watch {
                wd: 0xf4241,
                file: WatchedFile { ino: 0x9a_61bd, device: 0xfe0_0000, handle: Some(handle) },
                mask: 0x8400_0100,
            },
            Watch { wd: 2, file: WatchedFile { ino: 12, device: 27, handle: None }, mask: 0x100 },
        ];
        assert_eq!(watches(text).unwrap(), expected);
        assert_eq!(watches(b"pos:\t0\n"), Ok(vec![]));
        assert!(watches(b"inotify wd:1 ino:c sdev:1b mask:100\n").is_err());
    }
}
