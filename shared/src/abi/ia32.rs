//! Kernel layouts of the ia32 ABI.

use core::mem::size_of;

/// `unsigned long` of this ABI.
pub type Word = u32;

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct IoVec {
    pub base: Word,
    pub len: Word,
}
const _: () = assert!(size_of::<IoVec>() == 8);

/// `struct compat_msghdr`, include/net/compat.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct MsgHdr {
    pub name: Word,
    pub name_len: u32,
    pub iov: Word,
    pub iov_len: Word,
    pub control: Word,
    pub control_len: Word,
    pub flags: u32,
}

/// `struct compat_sigaction` as rt_sigaction takes it, include/linux/compat.h; the mask as two words, since
/// i386 aligns a 64-bit field to four bytes and other builds of this file do not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct SigAction {
    pub handler: Word,
    pub flags: Word,
    pub restorer: Word,
    pub mask: [u32; 2],
}

/// `compat_stack_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Stack {
    pub base: Word,
    pub flags: u32,
    pub size: Word,
}

impl Stack {
    /// From its three values.
    #[must_use]
    pub const fn new(base: Word, flags: u32, size: Word) -> Self {
        Self { base, flags, size }
    }
}

impl SigAction {
    /// From its four values.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // Splitting the mask is the point.
    pub const fn new(handler: Word, flags: Word, restorer: Word, mask: u64) -> Self {
        Self { handler, flags, restorer, mask: [mask as u32, (mask >> 32) as u32] }
    }
}

/// `struct sock_fprog`, include/uapi/linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct SockFprog {
    pub len: u16,
    pub pad: [u16; 1],
    pub filter: Word,
}
const _: () = assert!(size_of::<SockFprog>() == 8);

/// `struct compat_sigevent`, include/linux/compat.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct SigEvent {
    pub value: Word,
    pub signal: i32,
    pub notify: i32,
    pub thread: i32,
    pub pad: [u32; 12],
}
const _: () = assert!(size_of::<SigEvent>() == 64);

impl SigEvent {
    /// From its four values.
    #[must_use]
    pub const fn new(value: Word, signal: i32, notify: i32, thread: i32) -> Self {
        Self { value, signal, notify, thread, pad: [0; 12] }
    }
}

/// `struct timeval`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct TimeVal {
    pub seconds: Word,
    pub micros: Word,
}

/// `struct itimerval` as setitimer takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ITimerVal {
    pub interval: TimeVal,
    pub value: TimeVal,
}

const _: () = assert!(size_of::<SigAction>() == 20);
const _: () = assert!(size_of::<Stack>() == 12);
const _: () = assert!(size_of::<ITimerVal>() == 16);
const _: () = assert!(size_of::<MsgHdr>() == 28);
