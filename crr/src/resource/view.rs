//! Files that are views of the kernel's state: entries of procfs and sysfs. They are opened again by name.
//!
//! What is read of them is made up for each read. Both file systems make the text anew up to the offset where reading goes on
//! (seq_read_iter() of fs/seq_file.c), so that flags and offset are all that a description has, but for the entries named here.

use nix::sys::stat::lstat;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// One whose files are no files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Proc,
    Sys,
    Debug,
    Tracing,
}

/// What is wanted of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// To be open with these flags.
    Open(u32),
    /// To be stood in.
    Directory,
    /// To be mapped or executed.
    Mapped,
}

const O_ACCMODE: u32 = 3;
const O_PATH: u32 = 0o10_000_000;

impl FileSystem {
    /// By the number that statfs shows: include/uapi/linux/magic.h.
    pub(crate) fn of(magic: i64) -> Option<Self> {
        match magic {
            0x9fa0 => Some(Self::Proc),
            0x6265_6572 => Some(Self::Sys),
            0x6462_6720 => Some(Self::Debug),
            0x7472_6163 => Some(Self::Tracing),
            _ => None,
        }
    }

    /// Why an entry cannot be opened again by name, if so.
    pub(crate) fn obstacle(self, name: &[u8], dev: u64, what: Use) -> Option<&'static str> {
        match (self, what) {
            (Self::Proc, Use::Mapped) => Some("mapped files of procfs are not supported"),
            (Self::Sys, Use::Mapped) => Some("mapped files of sysfs are not supported"),
            (Self::Debug, _) => Some("files of debugfs are not supported"),
            (Self::Tracing, _) => Some("files of tracefs are not supported"),
            (Self::Sys, _) => None,
            (Self::Proc, what) => match Entry::of(name, dev) {
                Entry::Unknown => Some("entries of procfs in another place than its own are not supported"),
                Entry::OfTask => Some("entries of procfs that belong to a task are not supported"),
                Entry::OfKernel(name) => obstacle_of_kernel(name, what),
            },
        }
    }
}

/// An entry of procfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// `PID`, or below it. Links in `/proc` show `self` and `thread-self` as such, too.
    OfTask,
    /// Of the kernel, by the name below the root of procfs.
    OfKernel(&'a Path),
    /// A part of procfs is mounted by itself.
    Unknown,
}

impl<'a> Entry<'a> {
    /// By its absolute name and the device of the file system.
    pub(crate) fn of(name: &'a [u8], dev: u64) -> Self {
        let name = Path::new(OsStr::from_bytes(name));
        let below = root_of_procfs(name, dev).and_then(|root| name.strip_prefix(root).ok());
        match below.map(|below| (below, below.components().next())) {
            None => Self::Unknown,
            Some((_, Some(Component::Normal(first)))) if first.as_bytes().iter().all(u8::is_ascii_digit) => {
                Self::OfTask
            }
            Some((below, _)) => Self::OfKernel(below),
        }
    }
}

/// Where the procfs with this device is mounted, of which something had this name, if it is mounted as a whole.
pub(crate) fn root_of_procfs(name: &Path, dev: u64) -> Option<&Path> {
    /// PROC_ROOT_INO of include/linux/proc_fs.h.
    const ROOT: u64 = 1;
    let inside = |dir: &&Path| lstat(*dir).is_ok_and(|found| found.st_dev == dev);
    let root = name.ancestors().skip_while(|dir| !inside(dir)).take_while(inside).last()?;
    lstat(root).is_ok_and(|found| found.st_ino == ROOT).then_some(root)
}

/// Entries whose descriptions are more than flags and an offset.
fn obstacle_of_kernel(name: &Path, what: Use) -> Option<&'static str> {
    let Use::Open(flags) = what else { return None };
    if flags & O_PATH != 0 {
        return None;
    }
    // What is read is gone: fs/proc/kmsg.c, drivers/acpi.
    if name == Path::new("kmsg") || name.starts_with("acpi") {
        return Some("its contents are gone once they are read");
    }
    // Written by single values; others keep what was written to them with the description: triggers of pressure
    // (psi_write() of kernel/sched/psi.c), ranges of memory types (mtrr_write() of arch/x86), sound.
    let plain = ["sys", "irq", "sysrq-trigger"].iter().any(|plain| name.starts_with(plain));
    (flags & O_ACCMODE != 0 && !plain)
        .then_some("entries of procfs that are open for writing are not supported")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle(name: &str, what: Use) -> Option<&'static str> {
        let dev = lstat("/proc").unwrap().st_dev;
        FileSystem::Proc.obstacle(name.as_bytes(), dev, what)
    }

    #[test]
    fn entries_of_tasks_are_told_from_those_of_the_kernel() {
        let dev = lstat("/proc").unwrap().st_dev;
        assert_eq!(Entry::of(b"/proc/1/maps", dev), Entry::OfTask);
        assert_eq!(Entry::of(b"/proc/1", dev), Entry::OfTask);
        assert_eq!(Entry::of(b"/proc/sys/kernel", dev), Entry::OfKernel(Path::new("sys/kernel")));
        assert_eq!(Entry::of(b"/proc", dev), Entry::OfKernel(Path::new("")));
        assert_eq!(Entry::of(b"/bin", dev), Entry::Unknown);
    }

    #[test]
    fn entries_with_a_state_of_their_own_are_refused() {
        assert_eq!(obstacle("/proc/version", Use::Open(0)), None);
        assert_eq!(obstacle("/proc/sys/kernel/hostname", Use::Open(2)), None);
        assert_eq!(obstacle("/proc/sys", Use::Directory), None);
        assert!(obstacle("/proc/kmsg", Use::Open(0)).is_some());
        assert!(obstacle("/proc/kmsg", Use::Open(O_PATH)).is_none());
        assert!(obstacle("/proc/pressure/memory", Use::Open(2)).is_some());
        assert!(obstacle("/proc/version", Use::Mapped).is_some());
        assert!(obstacle("/proc/1/maps", Use::Open(0)).is_some());
    }
}
