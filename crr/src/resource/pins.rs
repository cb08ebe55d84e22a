//! Who may write to memory by its pages: io_uring by buffers that it was given, devices by what they have mapped for themselves. Their pages are pinned
//! (FOLL_LONGTERM of mm/gup.c), and what is written to them leaves no trace in the page tables.

use super::event::Kind;
use super::file::kinds::WITHOUT_RING;
use super::file::links::Link;
use super::path::{CLOSE, file_type};
use super::{Refuse, device};
use crate::proc::status::Status;
use crate::proc::{Dir, is_gone};
use anyhow::{Context, Result};
use images::Pid;
use nix::sys::stat::{FileStat, SFlag};

/// Refuses memory that is pinned, of which the kernel keeps count (`pinned_vm`, VmPin in `status`) for io_uring, RDMA and vDPA, whoever has the ring or the
/// device, and even if that shows nowhere else.
pub(crate) fn refuse_pinned(status: &Status, refuse: &mut Refuse<'_>) {
    if status.pinned_kib != 0 {
        let reason = format!("has {} KiB pinned (VmPin), by io_uring or a device", status.pinned_kib);
        let hint = "have the program give up the ring or the device, whichever task has it, and dump again";
        refuse.with_hint("memory", reason, hint);
    }
}

/// Refuses a descriptor of a thread, if it is of something that may have memory pinned. What no dump would take is taken for such a thing.
///
/// # Errors
/// What it leads to cannot be had.
pub(crate) fn refuse_link(tid: Pid, link: &Link, refuse: &mut Refuse<'_>) -> Result<()> {
    if may_pin(&link.target, || stat(tid, link.fd))? {
        let object = format!("fd {} ({})", link.fd, String::from_utf8_lossy(&link.target));
        let hint = if link.target.starts_with(RING) { WITHOUT_RING } else { CLOSE };
        refuse.with_hint(object, "may write to memory in a way that is not seen", hint);
    }
    Ok(())
}

const RING: &[u8] = b"anon_inode:[io_uring";

fn stat(tid: Pid, fd: u32) -> Result<Option<FileStat>> {
    match Dir::task(tid).and_then(|dir| dir.stat(&format!("fd/{fd}"))) {
        Ok(stat) => Ok(Some(stat)),
        // Closed meanwhile, by somebody who runs with the same table.
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("fd {fd}: stat")),
    }
}

/// Anonymous inodes that have no part in memory of a task, or take part by its page tables. So do those that are dumped.
const APART: [&[u8]; 5] = [
    b"anon_inode:bpf",
    b"anon_inode:btf",
    b"anon_inode:[perf_event",
    b"anon_inode:[userfaultfd",
    b"anon_inode:[pidfd",
];
/// The most usual devices, which are not looked at. Other roots have theirs further down.
const USUAL: [&[u8]; 8] = [
    b"/dev/null",
    b"/dev/zero",
    b"/dev/full",
    b"/dev/random",
    b"/dev/urandom",
    b"/dev/tty",
    b"/dev/pts/",
    b"/dev/shm/",
];

/// By what a link shows. `stat` is only asked where that may be a device.
fn may_pin(link: &[u8], stat: impl FnOnce() -> Result<Option<FileStat>>) -> Result<bool> {
    let starts = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| link.starts_with(prefix));
    if link.starts_with(b"anon_inode:") {
        return Ok(Kind::of(link).is_none() && !starts(&APART));
    }
    if starts(&USUAL) || !link.windows(5).any(|part| part == b"/dev/") {
        return Ok(false);
    }
    Ok(stat()?.is_some_and(|stat| is_such_device(&stat)))
}

/// Character devices other than terminals and those that have no state.
fn is_such_device(open: &FileStat) -> bool {
    const WRITE_ONLY: u32 = 1;
    let is_terminal = matches!(device::number(open.st_rdev), (4 | 5 | 136..144, _));
    file_type(open.st_mode) == SFlag::S_IFCHR && !is_terminal && !device::opens_again(open, WRITE_ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{makedev, stat};

    #[test]
    fn what_may_pin_memory_is_known_by_its_link() {
        let unasked = |link: &[u8]| may_pin(link, || panic!("a stat is not needed")).unwrap();
        for link in ["anon_inode:[io_uring]", "anon_inode:[vfio-device]", "anon_inode:kvm-vm"] {
            assert!(unasked(link.as_bytes()), "{link}");
        }
        for link in [
            "anon_inode:[eventfd]",
            "anon_inode:inotify",
            "/dev/null",
            "/dev/pts/3",
            "/a/device",
            "socket:[1]",
        ] {
            assert!(!unasked(link.as_bytes()), "{link}");
        }
        let mut device = stat("/dev/null").unwrap();
        let mut of = |link: &[u8], major, minor| {
            device.st_rdev = makedev(major, minor);
            may_pin(link, || Ok(Some(device))).unwrap()
        };
        assert!(of(b"/dev/infiniband/uverbs0", 231, 192) && of(b"/root/dev/dri/card0", 226, 0));
        assert!(!of(b"/root/dev/null", 1, 3) && !of(b"/dev/ptmx", 5, 2) && !of(b"/root/dev/pts/0", 136, 0));
        assert!(!may_pin(b"/dev/gone", || Ok(None)).unwrap());
        assert!(!may_pin(b"/home/dev/a", || Ok(Some(stat("/").unwrap()))).unwrap());
    }
}
