//! Device nodes: which of them can be opened again by name, because flags and offset are all that a description of them has.

use super::path::file_type;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, major, minor};
use std::os::fd::{AsRawFd, BorrowedFd};

const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;

/// Major and minor number.
pub(crate) fn number(rdev: u64) -> (u64, u64) {
    (major(rdev), minor(rdev))
}

/// null, zero, full, random, urandom: drivers/char/mem.c.
pub(crate) fn is_memory(rdev: u64) -> bool {
    matches!(number(rdev), (1, 3 | 5 | 7 | 8 | 9))
}

/// Whether a description of a device node has no state but flags and offset.
pub(crate) fn opens_again(open: &FileStat, flags: u32) -> bool {
    match file_type(open.st_mode) {
        SFlag::S_IFBLK => true,
        SFlag::S_IFCHR => match number(open.st_rdev) {
            _ if is_memory(open.st_rdev) => true,
            // The log of the kernel: who reads it has a position of its own there, which nobody is told (devkmsg_open() of
            // kernel/printk/printk.c).
            (1, 11) => flags & O_ACCMODE == O_WRONLY,
            // Drivers that keep nothing for a description: hwrng, btrfs-control, loop-control.
            (10, 183 | 234 | 237) => true,
            _ => false,
        },
        _ => false,
    }
}

/// What devices are called in a message that says that they are not supported, by their numbers where these are fixed
/// (Documentation/admin-guide/devices.txt), else by their usual names.
pub(crate) fn name(link: &[u8], rdev: u64) -> &'static str {
    const BY_LINK: [(&[u8], &str); 6] = [
        (b"/dev/rtc", "clocks of the machine (/dev/rtc) are"),
        (b"/dev/watchdog", "watchdogs (/dev/watchdog) are"),
        (b"/dev/hidraw", "input devices (/dev/hidraw) are"),
        (b"/dev/media", "video devices (/dev/media) are"),
        (b"/dev/vfio/", "devices of a virtual machine (/dev/vfio) are"),
        (b"/dev/dma_heap/", "buffers of devices (/dev/dma_heap) are"),
    ];
    match number(rdev) {
        (1, 1 | 2) => "the memory of the machine (/dev/mem) is",
        (1, 4) => "ports of the processor (/dev/port) are",
        (1, 11) => "reading the log of the kernel (/dev/kmsg) is",
        (10, 130) => "watchdogs (/dev/watchdog) are",
        (10, 196) => "devices of a virtual machine (/dev/vfio) are",
        (10, 200) => "network tunnels (/dev/net/tun) are",
        (10, 223) => "input devices of a program (/dev/uinput) are",
        (10, 228) => "timers of the machine (/dev/hpet) are",
        (10, 229) => "file systems of a program (/dev/fuse) are",
        (10, 232) => "virtual machines (/dev/kvm) are",
        (10, 235) => "automatic mounts (/dev/autofs) are",
        (10, 238) => "virtual network devices (/dev/vhost-net) are",
        (13, _) => "input devices (/dev/input) are",
        (14 | 116, _) => "sound devices (/dev/snd) are",
        (81, _) => "video devices (/dev/video) are",
        (195, _) => "graphics devices (/dev/nvidia) are",
        (202, _) => "registers of the processor (/dev/cpu/N/msr) are",
        (203, _) => "cpuid devices (/dev/cpu/N/cpuid) are",
        (226, _) => "graphics devices (/dev/dri) are",
        _ => BY_LINK
            .iter()
            .find(|(prefix, _)| link.starts_with(prefix))
            .map_or("character devices of this kind are", |(_, name)| name),
    }
}

/// What terminals other than pseudo terminals are called, by their numbers.
pub(crate) fn terminal(number: (u64, u64)) -> &'static str {
    match number {
        (4, 0..64) => "a virtual console",
        (4, _) => "a serial line",
        (5, 1) => "the console of the machine",
        _ => "a terminal",
    }
}

/// Whether nobody has a block device for himself. F_GETFL does not show O_EXCL (do_dentry_open() of fs/open.c takes it away), so crr asks for
/// the device itself, for a moment (bd_may_claim() of block/bdev.c).
///
/// # Errors
/// The device cannot be opened for another reason.
pub(crate) fn is_free(device: BorrowedFd<'_>) -> nix::Result<bool> {
    let name = format!("/proc/self/fd/{}", device.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(name.as_str(), flags, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::EBUSY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{makedev, stat};

    #[test]
    fn devices_with_a_state_of_their_own_are_told_apart() {
        let mut device = stat("/dev/null").unwrap();
        let mut opens = |major, minor, flags| {
            device.st_rdev = makedev(major, minor);
            opens_again(&device, flags)
        };
        assert!(opens(1, 3, 2) && opens(10, 237, 2));
        assert!(opens(1, 11, O_WRONLY) && !opens(1, 11, 0) && !opens(1, 11, 2));
        assert!(!opens(10, 229, 2) && !opens(10, 232, 0));
        assert!(!opens_again(&stat("/").unwrap(), 0));
    }

    #[test]
    fn terminals_are_told_apart() {
        let names = [(4, 0), (4, 63), (4, 64), (5, 1), (5, 0)].map(terminal);
        let [console, serial] = ["a virtual console", "a serial line"];
        assert_eq!(names, [console, console, serial, "the console of the machine", "a terminal"]);
    }

    #[test]
    fn devices_have_names_that_a_user_knows() {
        assert!(name(b"/dev/kvm", makedev(10, 232)).contains("/dev/kvm"));
        assert!(name(b"/elsewhere", makedev(226, 0)).contains("/dev/dri"));
        assert!(name(b"/dev/rtc0", makedev(251, 0)).contains("/dev/rtc"));
    }
}
