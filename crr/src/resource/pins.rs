//! Who may write to memory by its pages: io_uring by buffers that it was given, devices by what they have mapped for themselves. Their pages are pinned
//! (FOLL_LONGTERM of mm/gup.c), and what is written to them leaves no trace in the page tables.

use super::Refuse;
use super::event::Kind;
use super::file::kinds::WITHOUT_RING;
use super::file::links::Link;
use super::path::CLOSE;
use crate::proc::status::Status;

/// Refuses memory that is pinned, of which the kernel keeps count (`pinned_vm`, VmPin in `status`) for io_uring, RDMA and vDPA, whoever has the ring or the
/// device, and even if that shows nowhere else.
pub(crate) fn refuse_pinned(status: &Status, refuse: &mut Refuse<'_>) {
    if status.pinned_kib != 0 {
        let reason = format!("has {} KiB pinned (VmPin), by io_uring or a device", status.pinned_kib);
        let hint = "have the program give up the ring or the device, whichever task has it, and dump again";
        refuse.with_hint("memory", reason, hint);
    }
}

/// Refuses a descriptor, if it is of something that may have memory pinned. An anonymous inode that no dump would take is taken for such a thing.
pub(crate) fn refuse_link(link: &Link, refuse: &mut Refuse<'_>) {
    if may_pin(&link.target) {
        let object = format!("fd {} ({})", link.fd, String::from_utf8_lossy(&link.target));
        let hint = if link.target.starts_with(RING) { WITHOUT_RING } else { CLOSE };
        refuse.with_hint(object, "may write to memory in a way that is not seen", hint);
    }
}

const RING: &[u8] = b"anon_inode:[io_uring";

/// Anonymous inodes that have no part in memory of a task, or take part by its page tables. So do those that are dumped.
const APART: [&[u8]; 5] = [
    b"anon_inode:bpf",
    b"anon_inode:btf",
    b"anon_inode:[perf_event",
    b"anon_inode:[userfaultfd",
    b"anon_inode:[pidfd",
];
/// Devices that may have memory of a task pinned and write to it. Other roots have theirs further down.
const PINNING: [&[u8]; 8] = [
    b"/dev/vfio/",
    b"/dev/vhost-",
    b"/dev/infiniband/",
    b"/dev/dri/",
    b"/dev/nvidia",
    b"/dev/kfd",
    b"/dev/kvm",
    b"/dev/iommu",
];

/// By what a link shows.
fn may_pin(link: &[u8]) -> bool {
    let starts = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| link.starts_with(prefix));
    if link.starts_with(b"anon_inode:") {
        return Kind::of(link).is_none() && !starts(&APART);
    }
    let Some(at) = memchr::memmem::find(link, b"/dev/") else { return false };
    PINNING.iter().any(|device| link[at..].starts_with(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pin_memory_is_known_by_its_link() {
        for link in [
            "anon_inode:[io_uring]",
            "anon_inode:[vfio-device]",
            "anon_inode:kvm-vm",
            "/dev/infiniband/uverbs0",
            "/root/dev/dri/card0",
        ] {
            assert!(may_pin(link.as_bytes()), "{link}");
        }
        for link in [
            "anon_inode:[eventfd]",
            "anon_inode:inotify",
            "/dev/null",
            "/dev/pts/3",
            "/dev/fuse",
            "/a/device",
            "socket:[1]",
        ] {
            assert!(!may_pin(link.as_bytes()), "{link}");
        }
    }
}
