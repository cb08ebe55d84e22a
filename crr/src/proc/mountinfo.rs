//! `/proc/self/mountinfo`: which file systems are mounted where.

use super::{Malformed, decimal};
use nix::sys::stat::{major, minor};

/// A mounted directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which fdinfo shows of open files.
    pub id: u32,
    /// Device of the file system as the kernel has it, major number from bit 20 on.
    pub device: u32,
    /// What of the file system is mounted; `/` for all of it.
    pub root: Vec<u8>,
    /// Where.
    pub point: Vec<u8>,
    /// The type of the file system.
    pub kind: Vec<u8>,
}

/// What stat(2) tells of a device, as the kernel has it: with the major number from bit 20 on.
#[must_use]
pub fn device_of(dev: u64) -> u64 {
    major(dev) << 20 | minor(dev)
}

/// Parses the file, in the kernel's order: what was mounted later comes later.
///
/// # Errors
/// [`Malformed`].
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, Malformed> {
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| mount(line).ok_or(Malformed { file: "mountinfo", field: "mount" })).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&byte| byte == b' ');
    let (id, _parent) = (decimal(words.next()?)?, words.next()?);
    let (device, root, point) = (words.next()?, words.next()?, words.next()?);
    let colon = device.iter().position(|&byte| byte == b':')?;
    let (major, minor): (u32, u32) = (decimal(&device[..colon])?, decimal(&device[colon + 1..])?);
    let kind = words.skip_while(|word| *word != b"-").nth(1)?.to_vec();
    Some(Mount { id, device: major << 20 | minor, root: unescaped(root), point: unescaped(point), kind })
}

/// Blanks, tabs, line ends and backslashes are shown by their octal numbers (mangle() of fs/proc_namespace.c).
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(super::octal);
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_lines() {
        let text = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
            30 25 0:27 /a\\134b /mnt/with\\040blank rw - tmpfs tmpfs rw\n";
        let mounts = parse(text).unwrap();
        let mount = |id, device, [root, point, kind]: [&[u8]; 3]| Mount {
            id,
            device,
            root: root.to_vec(),
            point: point.to_vec(),
            kind: kind.to_vec(),
        };
        let expected = [
            mount(27, 0xfe0_0000, [b"/", b"/", b"ext4"]),
            mount(30, 27, [b"/a\\b", b"/mnt/with blank", b"tmpfs"]),
        ];
        assert_eq!(mounts, expected);
        assert!(parse(b"27 1 254 / /\n").is_err());
    }
}
