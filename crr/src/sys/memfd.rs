//! Files in memory that can be executed.

use anyhow::{Context, Result};
use images::memory::HugePage;
use nix::NixPath;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;

// include/uapi/linux/memfd.h, asm-generic/hugetlb_encode.h, fcntl.h.
const MFD_EXEC: u32 = 0x10;
const MFD_HUGE_2MB: u32 = 21 << 26;
const MFD_HUGE_1GB: u32 = 30 << 26;
const F_SEAL_EXEC: u32 = 0x20;

/// A memfd that can be executed.
///
/// # Errors
/// EACCES where `vm.memfd_noexec` is 2.
pub(crate) fn executable<P: NixPath + ?Sized>(name: &P, flags: MFdFlags) -> nix::Result<File> {
    let made = match memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_EXEC)) {
        // Before Linux 6.3 it is not known, and all can be executed.
        Err(Errno::EINVAL) => memfd_create(name, flags),
        made => made,
    };
    made.map(File::from)
}

/// A memfd that will get these seals. Whether it is to be executed has to be said when it is made: where `vm.memfd_noexec` is 1, one of which
/// nothing is said is sealed against it (F_SEAL_EXEC), and its mode cannot be what it was.
///
/// # Errors
/// Where `vm.memfd_noexec` is 2, for one that was not sealed so.
pub(crate) fn sealable(name: &str, huge: Option<HugePage>, seals: u32) -> Result<File> {
    let huge = match huge {
        None => MFdFlags::empty(),
        Some(HugePage::Mib2) => MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(MFD_HUGE_2MB),
        Some(HugePage::Gib1) => MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(MFD_HUGE_1GB),
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | huge;
    let made = match executable(name, flags) {
        // One that is sealed in the end may be so from the start.
        Err(Errno::EACCES) if seals & F_SEAL_EXEC != 0 => memfd_create(name, flags).map(File::from),
        made => made,
    };
    let hint = "vm.memfd_noexec is 2 and forbids memfds that can be executed: set it to 0 or 1";
    match made {
        Err(Errno::EACCES) => Err(Errno::EACCES).context(hint).context("memfd_create"),
        made => made.context("memfd_create"),
    }
}
