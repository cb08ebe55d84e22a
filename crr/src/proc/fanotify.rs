//! `/proc/PID/fdinfo/N` of a fanotify descriptor: the `fanotify` lines.

use super::inotify::WatchedFile;
use super::{Malformed, hex};

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// FAN_*: what fanotify_init(2) was given.
    pub flags: u32,
    /// O_*: how files are opened that are told of.
    pub event_flags: u32,
    /// In the kernel's order, which has the youngest first.
    pub marks: Vec<Mark>,
}

/// What it is told events of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What is marked.
    pub object: Object,
    /// FAN_MARK_*.
    pub flags: u32,
    /// FAN_*: events that are told.
    pub mask: u32,
    /// Events that are not.
    pub ignored: u32,
}

/// What is marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A file.
    Inode(WatchedFile),
    /// A mount, by its id.
    Mount(u32),
    /// A file system, by its device as the kernel has it.
    FileSystem(u32),
    /// A mount namespace.
    Namespace,
}

/// Parses the lines.
///
/// # Errors
/// [`Malformed`].
pub fn group(text: &[u8]) -> Result<Group, Malformed> {
    let bad = Malformed { file: "fdinfo", field: "fanotify" };
    let mut lines = text.split(|&byte| byte == b'\n').filter_map(|line| line.strip_prefix(b"fanotify "));
    let mut words = lines.next().map(Words::of).ok_or(bad)?;
    let (Some(flags), Some(event_flags)) = (words.number(b"flags:"), words.number(b"event-flags:")) else {
        return Err(bad);
    };
    let marks = lines.map(|line| mark(line).ok_or(bad)).collect::<Result<_, _>>()?;
    Ok(Group { flags, event_flags, marks })
}

/// The words of a line, by turns; all numbers but that of a namespace are hexadecimal.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn of(line: &'a [u8]) -> Self {
        Self(line.trim_ascii())
    }

    fn value(&mut self, name: &[u8]) -> Option<&'a [u8]> {
        let rest = self.0.strip_prefix(name)?;
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        self.0 = rest[end..].trim_ascii_start();
        Some(&rest[..end])
    }

    fn number<T: TryFrom<u64>>(&mut self, name: &[u8]) -> Option<T> {
        T::try_from(hex(self.value(name)?)?).ok()
    }
}

/// fanotify_fdinfo() of fs/notify/fdinfo.c.
fn mark(line: &[u8]) -> Option<Mark> {
    let mut words = Words::of(line);
    let mut ino = None;
    let mut object = if let Some(id) = words.number(b"mnt_id:") {
        Object::Mount(id)
    } else if words.value(b"mnt_ns:").is_some() {
        Object::Namespace
    } else {
        ino = words.number(b"ino:");
        Object::FileSystem(words.number(b"sdev:")?)
    };
    let flags = words.number(b"mflags:")?;
    let mask = words.number(b"mask:")?;
    let ignored = words.number(b"ignored_mask:")?;
    if let (Some(ino), Object::FileSystem(device)) = (ino, &object) {
        object = Object::Inode(WatchedFile::new(ino, *device, words.0)?);
    }
    Some(Mark { object, flags, mask, ignored })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_lines() {
        let text = b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n\
            fanotify flags:600 event-flags:8000\n\
            fanotify sdev:fe00000 mflags:0 mask:8000002 ignored_mask:0\n\
            fanotify mnt_id:1c mflags:40 mask:0 ignored_mask:20\n\
            fanotify mnt_ns:4026531840 mflags:0 mask:1000000 ignored_mask:0\n\
            fanotify ino:9a61bd sdev:fe00000 mflags:200 mask:20 ignored_mask:0 fhandle-bytes:8 fhandle-type:81 \
            f_handle:bd619a0099154f85\n";
        let handle = Some((0x81, vec![0xbd, 0x61, 0x9a, 0, 0x99, 0x15, 0x4f, 0x85]));
        let file = WatchedFile { ino: 0x9a_61bd, device: 0xfe0_0000, handle };
        let expected = Group {
            flags: 0x600,
            event_flags: 0x8000,
            marks: vec![
                Mark { object: Object::FileSystem(0xfe0_0000), flags: 0, mask: 0x800_0002, ignored: 0 },
                Mark { object: Object::Mount(0x1c), flags: 0x40, mask: 0, ignored: 0x20 },
                Mark { object: Object::Namespace, flags: 0, mask: 0x100_0000, ignored: 0 },
                Mark { object: Object::Inode(file), flags: 0x200, mask: 0x20, ignored: 0 },
            ],
        };
        assert_eq!(group(text).unwrap(), expected);
        assert!(group(b"pos:\t0\n").is_err());
        assert!(group(b"fanotify flags:0 event-flags:0\nfanotify ino:1 mflags:0\n").is_err());
    }
}
