//! Files of an overlayfs, by those of its layers.

use crate::proc::mountinfo::Mount;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `OVL_FILEID_V1`, the type of handles of overlayfs.
const FILEID: i32 = 0xf8;
/// Bytes before `struct ovl_fb` in `struct ovl_fh`.
const PADDING: usize = 3;
/// Bytes of `struct ovl_fb` before the handle of the layer: version, magic, length, flags, type, and the UUID of the file system.
const HEAD: usize = 21;
const MAGIC: u8 = 0xfb;

/// The handle of the file in its layer, by that of the overlayfs: fs/overlayfs/overlayfs.h. Linux 6.6 shows one in fdinfo, whether or
/// not files can be opened by it.
pub(super) fn in_layer((kind, handle): &(i32, Vec<u8>)) -> Option<(i32, &[u8])> {
    let whole = handle.get(PADDING..).filter(|_| *kind == FILEID)?;
    let &[0, MAGIC, length, _flags, kind] = whole.first_chunk()? else { return None };
    Some((i32::from(kind), whole.get(HEAD..usize::from(length))?))
}

/// Whether a mount is of a file system that layers are on and that waits for nobody when it looks for a file: neither for a program, which may be of the
/// tree (FUSE), nor for another machine.
pub(super) fn is_local(mount: &Mount) -> bool {
    const LOCAL: [&[u8]; 12] = [
        b"ext2",
        b"ext3",
        b"ext4",
        b"xfs",
        b"btrfs",
        b"f2fs",
        b"bcachefs",
        b"zfs",
        b"tmpfs",
        b"squashfs",
        b"erofs",
        b"iso9660",
    ];
    LOCAL.contains(&mount.kind.as_slice())
}

/// The names that a file of a layer may have in an overlayfs, at the places where that is mounted, the longest first: any part of its
/// name may be that of the layer itself.
pub(super) fn names<'a>(in_layer: &'a Path, mounts: &'a [Mount]) -> impl Iterator<Item = PathBuf> + 'a {
    let name = in_layer.as_os_str().as_bytes();
    let slashes = name.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
    let ends = slashes.map(move |at| &name[at..]).chain([&b"/"[..]]);
    ends.flat_map(move |end| {
        mounts.iter().filter_map(move |mount| below(mount, Path::new(OsStr::from_bytes(end))))
    })
}

/// A name of a file system, where a mount of it has that.
fn below(mount: &Mount, name: &Path) -> Option<PathBuf> {
    let rest = name.strip_prefix(OsStr::from_bytes(&mount.root)).ok()?;
    let point = Path::new(OsStr::from_bytes(&mount.point));
    // To join nothing would add a slash.
    Some(if rest.as_os_str().is_empty() { point.to_owned() } else { point.join(rest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(root: &str, point: &str) -> Mount {
        Mount { id: 1, device: 1, root: root.into(), point: point.into(), kind: b"overlay".to_vec() }
    }

    #[test]
    fn handle_of_a_file_in_a_layer() {
        let mut handle = vec![0, 0, 0, 0, 0xfb, 0x1d, 0, 1];
        handle.extend([7; 16]);
        handle.extend([0xb4, 0xe1, 0x98, 0, 0xdf, 0x83, 0x32, 0xcd]);
        let layer = [0xb4, 0xe1, 0x98, 0, 0xdf, 0x83, 0x32, 0xcd];
        assert_eq!(in_layer(&(0xf8, handle.clone())), Some((1, &layer[..])));
        assert_eq!(in_layer(&(0x81, handle.clone())), None);
        handle[4] = 0xfa;
        assert_eq!(in_layer(&(0xf8, handle.clone())), None);
        assert_eq!(in_layer(&(0xf8, handle[..6].to_vec())), None);
    }

    #[test]
    fn names_by_that_in_a_layer() {
        let mounts = [mount("/", "/merged"), mount("/etc", "/other")];
        let found: Vec<_> = names(Path::new("/layers/1/etc/hosts"), &mounts).collect();
        let expected = [
            "/merged/layers/1/etc/hosts",
            "/merged/1/etc/hosts",
            "/merged/etc/hosts",
            "/other/hosts",
            "/merged/hosts",
            "/merged",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        let all: Vec<_> = names(Path::new("(unreachable)/diff"), &mounts).collect();
        assert_eq!(all, ["/merged/diff", "/merged"].map(PathBuf::from));
    }
}
