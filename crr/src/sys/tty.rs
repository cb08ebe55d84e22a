//! Terminals: the ioctls that nix and the C library lack, in the kernel's own layouts.
//!
//! # Safety
//! Pointers lead to live objects of the size that each command reads or writes; descriptors that a command answers with
//! are new and ours.
#![allow(unsafe_code)]

use super::check;
use images::Pid;
use images::terminal::Settings;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// include/uapi/asm-generic/ioctls.h
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCEXCL: u64 = 0x540c;
const TIOCSTI: u64 = 0x5412;
const TCXONC: u64 = 0x540a;
const TIOCSCTTY: u64 = 0x540e;
const TIOCGPGRP: u64 = 0x540f;
const TIOCSPGRP: u64 = 0x5410;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCPKT: u64 = 0x5420;
const TIOCNOTTY: u64 = 0x5422;
const TIOCGETD: u64 = 0x5424;
const TIOCGSID: u64 = 0x5429;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCVHANGUP: u64 = 0x5437;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;

/// What can be asked of a terminal and answered by yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// TIOCGEXCL: opened by nobody else.
    Exclusive,
    /// TIOCGPKT, of a master.
    Packet,
    /// TIOCGPTLCK, of a master.
    Locked,
}

/// `struct termios2`, 44 bytes; `struct termios` is all but the speeds.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Termios2 {
    flags: [u32; 4],
    line: u8,
    characters: [u8; 19],
    speeds: [u32; 2],
}

const _: () = assert!(size_of::<Termios2>() == 44);

impl Termios2 {
    fn of(settings: &Settings) -> nix::Result<Self> {
        let characters = settings.characters.as_slice().try_into().map_err(|_| Errno::EINVAL)?;
        Ok(Self { flags: settings.flags, line: settings.line, characters, speeds: settings.speeds })
    }

    fn settings(self) -> Settings {
        Settings {
            flags: self.flags,
            line: self.line,
            characters: self.characters.to_vec(),
            speeds: self.speeds,
        }
    }
}

/// An ioctl that takes a number or nothing.
fn plain(fd: BorrowedFd<'_>, command: u64, argument: i32) -> nix::Result<i32> {
    // SAFETY: callers use commands that take a number or nothing.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), command, libc::c_long::from(argument)) })
}

/// An ioctl that writes an int.
fn get_int(fd: BorrowedFd<'_>, command: u64) -> nix::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: callers use commands that write one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), command, &raw mut value) })?;
    Ok(value)
}

/// An ioctl that reads an int.
fn set_int(fd: BorrowedFd<'_>, command: u64, value: i32) -> nix::Result<()> {
    // SAFETY: callers use commands that read one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), command, &raw const value) }).map(drop)
}

/// The number of a master.
///
/// # Errors
/// ENOTTY for anything else.
pub fn number(master: BorrowedFd<'_>) -> nix::Result<u32> {
    get_int(master, TIOCGPTN).map(i32::cast_unsigned)
}

/// The device number of a terminal, in the form of `tty_nr`: of a master, that of its slave.
///
/// # Errors
/// EIO if it is hung up.
pub fn device(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    get_int(fd, TIOCGDEV).map(i32::cast_unsigned)
}

/// The slave of a master, opened with these flags. With O_PATH it is not opened as a terminal: nobody notices.
///
/// # Errors
/// EIO if the slave is locked.
pub fn peer(master: BorrowedFd<'_>, flags: i32) -> nix::Result<OwnedFd> {
    let fd = plain(master, TIOCGPTPEER, flags)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether something holds.
///
/// # Errors
/// EIO if it is hung up.
pub fn flag(fd: BorrowedFd<'_>, flag: Flag) -> nix::Result<bool> {
    let command = match flag {
        Flag::Exclusive => TIOCGEXCL,
        Flag::Packet => TIOCGPKT,
        Flag::Locked => TIOCGPTLCK,
    };
    Ok(get_int(fd, command)? != 0)
}

/// Has it hold.
///
/// # Errors
/// As [`flag`].
pub fn set_flag(fd: BorrowedFd<'_>, flag: Flag, on: bool) -> nix::Result<()> {
    match flag {
        Flag::Exclusive if on => plain(fd, TIOCEXCL, 0).map(drop),
        Flag::Exclusive => Ok(()),
        Flag::Packet => set_int(fd, TIOCPKT, i32::from(on)),
        Flag::Locked => set_int(fd, TIOCSPTLCK, i32::from(on)),
    }
}

/// TCGETS2: of either end, those of the slave.
///
/// # Errors
/// EIO if it is hung up.
pub fn settings(fd: BorrowedFd<'_>) -> nix::Result<Settings> {
    let mut termios = Termios2::default();
    // SAFETY: the command writes one whole structure.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TCGETS2, &raw mut termios) })?;
    Ok(termios.settings())
}

/// TCSETS2.
///
/// # Errors
/// As [`settings`].
pub fn set_settings(fd: BorrowedFd<'_>, settings: &Settings) -> nix::Result<()> {
    let termios = Termios2::of(settings)?;
    // SAFETY: the command reads one whole structure.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TCSETS2, &raw const termios) }).map(drop)
}

/// Bits of the settings that nobody can change.
///
/// # Errors
/// As [`settings`].
pub fn locked_settings(fd: BorrowedFd<'_>) -> nix::Result<Settings> {
    let mut termios = Termios2::default();
    // SAFETY: the command writes a structure that is the first part of this one.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TIOCGLCKTRMIOS, &raw mut termios) })?;
    Ok(termios.settings())
}

/// Locks bits of the settings.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn lock_settings(fd: BorrowedFd<'_>, locked: &Settings) -> nix::Result<()> {
    let termios = Termios2::of(locked)?;
    // SAFETY: the command reads a structure that is the first part of this one.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TIOCSLCKTRMIOS, &raw const termios) }).map(drop)
}

/// Rows, columns, width and height in pixels.
///
/// # Errors
/// As [`settings`].
pub fn window(fd: BorrowedFd<'_>) -> nix::Result<[u16; 4]> {
    let mut size = [0u16; 4];
    // SAFETY: struct winsize is four unsigned shorts.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

/// Sets the size; tells the group in the foreground by SIGWINCH.
///
/// # Errors
/// As [`settings`].
pub fn set_window(fd: BorrowedFd<'_>, size: [u16; 4]) -> nix::Result<()> {
    // SAFETY: struct winsize is four unsigned shorts.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The number of the line discipline; 0 is N_TTY.
///
/// # Errors
/// As [`settings`].
pub fn discipline(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    get_int(fd, TIOCGETD)
}

/// The process group in the foreground, as a master shows it; 0 for none.
///
/// # Errors
/// ENOTTY for a slave that does not control the caller.
pub fn foreground(master: BorrowedFd<'_>) -> nix::Result<Pid> {
    get_int(master, TIOCGPGRP)
}

/// The session that a terminal controls, as a master shows it; none if it controls none.
///
/// # Errors
/// EIO if it is hung up.
pub fn session(master: BorrowedFd<'_>) -> nix::Result<Option<Pid>> {
    match get_int(master, TIOCGSID) {
        Err(Errno::ENOTTY) => Ok(None),
        session => Ok(Some(session?)),
    }
}

/// Puts a process group of the caller's session into the foreground of its controlling terminal.
///
/// # Errors
/// ENOTTY if the terminal controls another session, EPERM if the group is of another one, ESRCH if there is none.
pub fn set_foreground(fd: BorrowedFd<'_>, group: Pid) -> nix::Result<()> {
    set_int(fd, TIOCSPGRP, group)
}

/// Makes it the controlling terminal of the session that the caller leads.
///
/// # Errors
/// EPERM if the caller leads none or has one, or the terminal controls another session.
pub fn take_control(fd: BorrowedFd<'_>) -> nix::Result<()> {
    plain(fd, TIOCSCTTY, 0).map(drop)
}

/// Lets go of the controlling terminal; a session leader takes it from its whole session.
///
/// # Errors
/// ENOTTY if it is not that of the caller.
pub fn let_go(fd: BorrowedFd<'_>) -> nix::Result<()> {
    plain(fd, TIOCNOTTY, 0).map(drop)
}

/// Puts a byte into the input of a terminal, as if it had been typed; of a master, into what it reads next.
///
/// # Errors
/// EPERM or EIO without CAP_SYS_ADMIN.
pub fn insert(fd: BorrowedFd<'_>, byte: u8) -> nix::Result<()> {
    // SAFETY: the command reads one byte.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TIOCSTI, &raw const byte) }).map(drop)
}

/// Hangs it up for all who have it open.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn hang_up(fd: BorrowedFd<'_>) -> nix::Result<()> {
    plain(fd, TIOCVHANGUP, 0).map(drop)
}

/// tcflow(3): holds up what is written to it, or lets it go on.
///
/// # Errors
/// As [`settings`].
pub fn hold_output(fd: BorrowedFd<'_>, hold: bool) -> nix::Result<()> {
    // TCOOFF, TCOON.
    plain(fd, TCXONC, i32::from(!hold)).map(drop)
}
