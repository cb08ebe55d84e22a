//! Files in memory: crr's own, some that can be executed, and those of tasks.
//!
//! Whether a memfd may be executed can be said since Linux 6.3, and where `vm.memfd_noexec` is 2, Linux 6.3 to 6.5 refuses one of which nothing is
//! said (EINVAL, then EACCES: memfd_create() of mm/memfd.c).

use anyhow::{Context, Result};
use images::memory::HugePage;
use memfd::MemfdOptions;
use nix::NixPath;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;

// include/uapi/linux/memfd.h, asm-generic/hugetlb_encode.h, fcntl.h.
const MFD_NOEXEC_SEAL: u32 = 0x8;
const MFD_EXEC: u32 = 0x10;
const MFD_HUGE_2MB: u32 = 21 << 26;
const MFD_HUGE_1GB: u32 = 30 << 26;
const F_SEAL_EXEC: u32 = 0x20;

/// A memfd of crr's own, closed on exec, that nobody executes.
///
/// # Errors
/// As memfd_create(2).
pub(crate) fn own(name: &str) -> Result<File> {
    match memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)) {
        // Before Linux 6.3.
        Err(Errno::EINVAL) => {
            let made = MemfdOptions::default().close_on_exec(true).create(name);
            made.map(memfd::Memfd::into_file).context("memfd_create")
        }
        made => made.map(File::from).context("memfd_create"),
    }
}

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
        Err(Errno::EACCES) if seals & F_SEAL_EXEC != 0 => {
            memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)).map(File::from)
        }
        made => made,
    };
    let hint = "vm.memfd_noexec is 2 and forbids memfds that can be executed: set it to 0 or 1";
    match made {
        Err(Errno::EACCES) => Err(Errno::EACCES).context(hint).context("memfd_create"),
        made => made.context("memfd_create"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use std::io::Write;

    #[test]
    fn own_files_are_said_not_to_be_executed() {
        let mut file = own("own").unwrap();
        file.write_all(b"contents").unwrap();
        // Before 6.3, there is no such seal.
        let exec = MFdFlags::from_bits_retain(MFD_EXEC);
        let knows = memfd_create("executable", exec).map(drop) != Err(Errno::EINVAL);
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap().cast_unsigned();
        assert_eq!(seals & F_SEAL_EXEC != 0, knows, "{seals:#x}");
    }
}
