//! Receiving the plan: one [`Start`] with fds, more fds in further messages if there are many. Descriptors that go the other way, too.
//!
//! # Safety
//! Maps scratch, control page and plan at the addresses that the coordinator chose in the hole.

use super::{Failure, family};
use crate::abi::native::{IoVec, MsgHdr, Word};
use crate::proto::{Control, FDS_PER_MESSAGE, Report, SLOT_TREE, Start};
use crate::range::page_align;
use crate::sys::{self, Errno, nr};
use core::ffi::c_int;

const EPROTO: Errno = Errno(71);
const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
const MAP_ANONYMOUS: u32 = 0x20;

const SCM_RIGHTS: u32 = 1;
const SOL_SOCKET: u32 = 1;

/// Control message buffer: a header of word, int, int, then the fds.
#[repr(C, align(8))]
struct ControlBuffer {
    len: Word,
    level: u32,
    kind: u32,
    fds: [c_int; FDS_PER_MESSAGE + 2],
}

/// Receives everything; the fds by slot.
pub(super) fn receive(socket: c_int, start: &mut Start) -> Result<&'static [c_int], Failure> {
    let mut first = [0; FDS_PER_MESSAGE];
    let start_at = core::ptr::from_mut(start) as usize;
    let count = message(socket, start_at, size_of::<Start>(), &mut first)?;
    if start.magic != Start::MAGIC {
        return Err(Failure::wrong(start.magic));
    }
    let total = usize::try_from(start.fds).map_err(|_| Failure::wrong(start.fds))?;
    map(start.scratch_addr, start.scratch_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    if total * size_of::<c_int>() > size(start.scratch_len)? || count > total {
        return Err(Failure::wrong(start.fds));
    }
    // SAFETY: the scratch memory was just mapped, is large enough (checked) and zeroed, and nothing else uses it.
    let fds = unsafe { core::slice::from_raw_parts_mut(size(start.scratch_addr)? as *mut c_int, total) };
    fds[..count].copy_from_slice(&first[..count]);
    let mut have = count;
    while have < total {
        let mut byte = 0u8;
        let got = message(socket, core::ptr::from_mut(&mut byte) as usize, 1, &mut first)?;
        if got == 0 || got > total - have {
            return Err(Failure::new(EPROTO, have as u64));
        }
        fds[have..have + got].copy_from_slice(&first[..got]);
        have += got;
    }
    if start.fds_from != 0 {
        family::move_fds(socket, fds, start.fds_from)?;
    }
    let tree = *fds.get(SLOT_TREE as usize).ok_or(Failure::new(EPROTO, 0))?;
    // The words lie right below the stacks.
    if start.words_addr != 0 {
        let words = start.stacks_addr - start.words_addr;
        map(start.words_addr, words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)?;
    }
    // The stacks lie right below the plan.
    let stacks = start.plan_addr - start.stacks_addr;
    if stacks > 0 {
        map(start.stacks_addr, stacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)?;
    }
    let control = page_align(size_of::<Control>() as u64);
    map(start.control_addr, control, PROT_READ | PROT_WRITE, MAP_SHARED, tree, 0)?;
    map(start.plan_addr, page_align(start.plan_len), PROT_READ, MAP_SHARED, tree, start.plan_offset)?;
    Ok(fds)
}

/// An address or length that has to fit this ABI's word.
pub(super) fn size(value: u64) -> Result<usize, Failure> {
    usize::try_from(value).map_err(|_| Failure::wrong(value))
}

fn map(addr: u64, len: u64, prot: u32, flags: u32, fd: c_int, offset: u64) -> Result<(), Failure> {
    let flags = flags | MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing (MAP_FIXED_NOREPLACE).
    match unsafe { sys::mmap(size(addr)?, size(len)?, prot, flags, fd, offset) } {
        Ok(at) if at as u64 == addr => Ok(()),
        Ok(at) => Err(Failure::wrong(at as u64)),
        Err(errno) => Err(Failure::new(errno, addr)),
    }
}

/// One message of exactly `len` bytes; the number of fds that came with it.
pub(super) fn message(
    socket: c_int,
    at: usize,
    len: usize,
    fds: &mut [c_int; FDS_PER_MESSAGE],
) -> Result<usize, Failure> {
    const MSG_CTRUNC: u32 = 8;
    const MSG_WAITALL: usize = 0x100;
    let mut control = ControlBuffer { len: 0, level: 0, kind: 0, fds: [0; FDS_PER_MESSAGE + 2] };
    let iov = IoVec { base: at as Word, len: len as Word };
    let mut header = MsgHdr {
        iov: core::ptr::from_ref(&iov) as Word,
        iov_len: 1,
        control: core::ptr::from_mut(&mut control) as Word,
        control_len: size_of::<ControlBuffer>() as Word,
        ..MsgHdr::default()
    };
    let header_at = core::ptr::from_mut(&mut header) as usize;
    // SAFETY: the kernel writes `len` bytes at `at`, which the caller owns, and the control buffer.
    let got = unsafe { sys::call(nr::__NR_recvmsg, &[socket as usize, header_at, MSG_WAITALL]) }
        .map_err(|errno| Failure::new(errno, 0))?;
    if got != len || header.flags & MSG_CTRUNC != 0 {
        return Err(Failure::new(EPROTO, got as u64));
    }
    // SAFETY: the kernel filled the buffer behind the compiler's back: read it as memory.
    let control = unsafe { core::ptr::read_volatile(&raw const control) };
    let prefix = core::mem::offset_of!(ControlBuffer, fds);
    if header.control_len == 0 {
        return Ok(0);
    }
    if control.level != SOL_SOCKET || control.kind != SCM_RIGHTS {
        return Err(Failure::new(EPROTO, u64::from(control.kind)));
    }
    let count = (control.len as usize).saturating_sub(prefix) / size_of::<c_int>();
    let count = count.min(FDS_PER_MESSAGE);
    fds[..count].copy_from_slice(&control.fds[..count]);
    Ok(count)
}

/// Sends a report with a descriptor.
pub(super) fn send_fd(socket: c_int, report: &Report, fd: c_int) -> Result<(), Failure> {
    const MSG_NOSIGNAL: usize = 0x4000;
    let len = core::mem::offset_of!(ControlBuffer, fds) + size_of::<c_int>();
    let mut control = ControlBuffer {
        len: len as Word,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [0; FDS_PER_MESSAGE + 2],
    };
    control.fds[0] = fd;
    let iov = IoVec { base: core::ptr::from_ref(report) as usize as Word, len: size_of::<Report>() as Word };
    let header = MsgHdr {
        iov: core::ptr::from_ref(&iov) as Word,
        iov_len: 1,
        control: core::ptr::from_ref(&control) as Word,
        control_len: len.next_multiple_of(size_of::<Word>()) as Word,
        ..MsgHdr::default()
    };
    let header_at = core::ptr::from_ref(&header) as usize;
    // SAFETY: the kernel reads the report and the control buffer.
    match unsafe { sys::call(nr::__NR_sendmsg, &[socket as usize, header_at, MSG_NOSIGNAL]) } {
        Ok(sent) if sent == size_of::<Report>() => Ok(()),
        Ok(sent) => Err(Failure::wrong(sent as u64)),
        Err(errno) => Err(Failure::new(errno, 0)),
    }
}
