//! Kinds of files that are not dumped: what each is called, and the way out.

use crate::resource::device;
use crate::resource::path::{CLOSE, file_type};
use nix::sys::stat::{FileStat, SFlag};
use std::borrow::Cow;

/// The way out of io_uring.
pub(crate) const WITHOUT_RING: &str = "start the program so that it does without io_uring (most can be told so, and some fall back by themselves where sysctl \
    kernel.io_uring_disabled is 2)";
const WITHOUT_FAULTS: &str =
    "start the program so that it handles no page faults itself, or dump when it has ended that";
const STOP_COUNTING: &str = "stop the profiler or tracer, or have the program close it before the dump";
const PIN: &str =
    "have the program pin it in a bpf file system and close it, and open it again after the restore";

/// What a family of sockets is called that is not dumped: include/linux/socket.h.
pub(super) fn family(number: i32) -> Cow<'static, str> {
    const AF_RXRPC: i32 = 33;
    const AF_PHONET: i32 = 35;
    const AF_IEEE802154: i32 = 36;
    const AF_NFC: i32 = 39;
    const AF_VSOCK: i32 = 40;
    const AF_KCM: i32 = 41;
    const AF_QIPCRTR: i32 = 42;
    const AF_SMC: i32 = 43;
    const AF_XDP: i32 = 44;
    const AF_MCTP: i32 = 45;
    let name = match number {
        libc::AF_AX25 => "AX.25 (AF_AX25)",
        libc::AF_X25 => "X.25 (AF_X25)",
        libc::AF_KEY => "IPsec key (AF_KEY)",
        libc::AF_RDS => "RDS (AF_RDS)",
        libc::AF_PPPOX => "PPP (AF_PPPOX)",
        libc::AF_LLC => "LLC (AF_LLC)",
        libc::AF_CAN => "CAN (AF_CAN)",
        libc::AF_TIPC => "TIPC (AF_TIPC)",
        libc::AF_BLUETOOTH => "Bluetooth (AF_BLUETOOTH)",
        AF_RXRPC => "RxRPC (AF_RXRPC)",
        AF_PHONET => "Phonet (AF_PHONET)",
        AF_IEEE802154 => "IEEE 802.15.4 (AF_IEEE802154)",
        libc::AF_ALG => "kernel crypto (AF_ALG)",
        AF_NFC => "NFC (AF_NFC)",
        AF_VSOCK => "vsock (AF_VSOCK)",
        AF_KCM => "KCM (AF_KCM)",
        AF_QIPCRTR => "Qualcomm IPC (AF_QIPCRTR)",
        AF_SMC => "SMC (AF_SMC)",
        AF_XDP => "XDP (AF_XDP)",
        AF_MCTP => "MCTP (AF_MCTP)",
        _ => return format!("family {number}").into(),
    };
    name.into()
}

/// What an object is called that cannot be dumped, by its link in `/proc` and what kind of file it is; and the way out.
pub(super) fn unsupported(link: &[u8], open: &FileStat) -> (&'static str, &'static str) {
    const BY_LINK: [(&[u8], &str, &str); 10] = [
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
        _ => "files of this kind are",
    };
    (what, CLOSE)
}
