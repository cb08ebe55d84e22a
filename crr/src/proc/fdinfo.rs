//! `/proc/PID/fdinfo/N`: position and flags of an open file, and the locks held through it.

use super::{Malformed, decimal, octal};

/// The lines that every kind of file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset.
    pub position: u64,
    /// Access mode and status flags, O_CLOEXEC included.
    pub flags: u32,
    /// The mount that it was opened on.
    pub mount: u32,
    /// Its inode number, which Linux tells since 5.14.
    pub ino: Option<u64>,
    /// The `lock:` lines: POSIX, OFD and BSD locks and leases.
    pub locks: Vec<Vec<u8>>,
}

/// Parses the file.
///
/// # Errors
/// [`Malformed`] with the line.
pub fn parse(text: &[u8]) -> Result<FdInfo, Malformed> {
    let bad = |field| Malformed { file: "fdinfo", field };
    let mut info = FdInfo::default();
    let (mut position, mut flags) = (None, None);
    for line in text.split(|&b| b == b'\n') {
        if let Some(value) = line.strip_prefix(b"pos:") {
            // Negative positions exist on files that allow them (/proc/PID/mem); %lli shows the sign.
            let value = decimal::<i64>(value).ok_or_else(|| bad("pos"))?;
            position = Some(u64::from_ne_bytes(value.to_ne_bytes()));
        } else if let Some(value) = line.strip_prefix(b"flags:") {
            flags = octal(value);
        } else if let Some(value) = line.strip_prefix(b"mnt_id:") {
            info.mount = decimal(value).ok_or_else(|| bad("mnt_id"))?;
        } else if let Some(value) = line.strip_prefix(b"ino:") {
            info.ino = Some(decimal(value).ok_or_else(|| bad("ino"))?);
        } else if let Some(value) = line.strip_prefix(b"lock:") {
            info.locks.push(value.trim_ascii().to_vec());
        }
    }
    info.position = position.ok_or_else(|| bad("pos"))?;
    info.flags = flags.ok_or_else(|| bad("flags"))?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_text() {
        let info = parse(
            b"pos:\t4096\nflags:\t02102001\nmnt_id:\t24\nino:\t3\n\
            lock:\t1: POSIX  ADVISORY  WRITE 14901 fe:00:325843 0 EOF\n",
        )
        .unwrap();
        assert_eq!((info.position, info.flags), (4096, 0o2_102_001));
        assert_eq!((info.mount, info.ino), (24, Some(3)));
        assert_eq!(info.locks, [b"1: POSIX  ADVISORY  WRITE 14901 fe:00:325843 0 EOF".to_vec()]);
        assert!(parse(b"flags:\t0\n").is_err());
        assert!(parse(b"pos:\t0\nflags:\t9\n").is_err());
    }
}
