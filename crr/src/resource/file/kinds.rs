//! Kinds of files that are not dumped: what each is called, and the way out.

use crate::resource::device;
use crate::resource::path::{CLOSE, file_type};
use nix::sys::stat::{FileStat, SFlag};

/// The way out of io_uring.
pub(crate) const WITHOUT_RING: &str = "start the program so that it does without io_uring (most can be told so, and some fall back by themselves where sysctl \
    kernel.io_uring_disabled is 2)";
const WITHOUT_FAULTS: &str =
    "start the program so that it handles no page faults itself, or dump when it has ended that";
const STOP_COUNTING: &str = "stop the profiler or tracer, or have the program close it before the dump";
const PIN: &str =
    "have the program pin it in a bpf file system and close it, and open it again after the restore";

/// What an object is called that cannot be dumped, by its link in `/proc` and what kind of file it is; and the way out.
pub(super) fn unsupported(link: &[u8], open: &FileStat) -> (&'static str, &'static str) {
    const BY_LINK: [(&[u8], &str, &str); 11] = [
        (b"socket:[", "sockets are", CLOSE),
        (b"anon_inode:[io_uring", "io_uring is", WITHOUT_RING),
        (b"anon_inode:[userfaultfd", "userfaultfd is", WITHOUT_FAULTS),
        (b"anon_inode:[perf_event", "performance counters are", STOP_COUNTING),
        (b"anon_inode:bpf-prog", "BPF programs are", PIN),
        (b"anon_inode:bpf_link", "BPF links are", PIN),
        (b"anon_inode:btf", "BPF type information is", CLOSE),
        (b"anon_inode:bpf", "BPF is", CLOSE),
        (b"anon_inode:[pidfd", "pidfds are", CLOSE),
        (b"pidfd:[", "pidfds are", CLOSE),
        (b"anon_inode:", "anonymous inodes of this kind are", CLOSE),
    ];
    if let Some((_, name, hint)) = BY_LINK.iter().find(|(prefix, ..)| link.starts_with(prefix)) {
        return (name, hint);
    }
    let what = match file_type(open.st_mode) {
        SFlag::S_IFCHR | SFlag::S_IFBLK => device::name(link, open.st_rdev),
        SFlag::S_IFSOCK => "sockets are",
        _ => "files of this kind are",
    };
    (what, CLOSE)
}
