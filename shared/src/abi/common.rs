//! Layouts that both ABIs pass to the kernel in the same form.

use core::mem::size_of;

/// `struct clone_args`, include/uapi/linux/sched.h: 64-bit fields in both ABIs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}
const _: () = assert!(size_of::<CloneArgs>() == 88);

/// `struct prctl_mm_map`, include/uapi/linux/prctl.h. It has no compat form: a 32-bit caller passes this too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct PrctlMmMap {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub auxv: u64,
    pub auxv_size: u32,
    pub exe_fd: u32,
}
const _: () = assert!(size_of::<PrctlMmMap>() == 104);

/// `struct __kernel_timespec`, include/uapi/linux/time_types.h: seconds of 64 bits in both ABIs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct TimeSpec {
    pub seconds: i64,
    pub nanos: i64,
}

/// `struct __kernel_itimerspec`, same file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ITimerSpec {
    pub interval: TimeSpec,
    pub value: TimeSpec,
}
const _: () = assert!(size_of::<ITimerSpec>() == 32);

/// `struct iocb`, include/uapi/linux/aio_abi.h: 64-bit fields in both ABIs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Iocb {
    pub data: u64,
    pub key: u32,
    pub rw_flags: u32,
    pub opcode: u16,
    pub priority: u16,
    pub fd: u32,
    pub buffer: u64,
    pub bytes: u64,
    pub offset: u64,
    pub reserved: u64,
    pub flags: u32,
    pub event_fd: u32,
}
const _: () = assert!(size_of::<Iocb>() == 64);

impl Iocb {
    /// A request that ends when a file can be read.
    #[must_use]
    pub fn poll(fd: u32, data: u64) -> Self {
        const IOCB_CMD_POLL: u16 = 5;
        const POLLIN: u64 = 1;
        Self { data, opcode: IOCB_CMD_POLL, fd, buffer: POLLIN, ..Self::default() }
    }

    /// As it lies in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(&self.data.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.rw_flags.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.opcode.to_le_bytes());
        bytes[18..20].copy_from_slice(&self.priority.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.fd.to_le_bytes());
        let words = [self.buffer, self.bytes, self.offset, self.reserved];
        for (place, word) in bytes[24..56].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&self.flags.to_le_bytes());
        bytes[60..].copy_from_slice(&self.event_fd.to_le_bytes());
        bytes
    }
}

/// `struct rlimit64`, include/uapi/linux/resource.h: what prlimit64 takes in both ABIs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Rlimit64 {
    pub soft: u64,
    pub hard: u64,
}

/// `struct __user_cap_header_struct`, include/uapi/linux/capability.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct CapHeader {
    pub version: u32,
    pub pid: i32,
}

impl CapHeader {
    /// `_LINUX_CAPABILITY_VERSION_3`, for the calling thread.
    pub const SELF: Self = Self { version: 0x2008_0522, pid: 0 };
}

/// `struct __user_cap_data_struct`; version 3 takes two, low words first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct CapData {
    pub effective: u32,
    pub permitted: u32,
    pub inheritable: u32,
}
