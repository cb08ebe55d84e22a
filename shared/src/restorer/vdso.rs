//! A vDSO that this kernel cannot move: it stays where exec put it, and what stands at the task's own place leads there.
//!
//! # Safety
//! See the parent module.

use super::calls::plain;
use super::receive::size;
use super::{Failure, Session, family};
use crate::op::WAY_LEN;
use crate::proto::{Report, SpecialArea, Stage};
use crate::range::Range;
use crate::sys::{self, nr};

const PROT_READ_WRITE: usize = 3;
const PROT_READ_EXEC: usize = 5;

/// The areas of a vDSO at this place, which lie side by side.
pub(super) fn extent(vdso: usize, special: &[SpecialArea; 3]) -> Range {
    let mut extent = Range::new(vdso as u64, 0);
    for area in special.iter().filter(|area| area.len != 0) {
        let start = (vdso as u64).wrapping_add_signed(area.offset);
        extent.start = extent.start.min(start);
        extent.end = extent.end.max(start + area.len);
    }
    extent
}

/// Execs the program again if the vDSO lies where the task is to have memory: by randomisation it comes to lie elsewhere, and every other
/// time the kernel begins at the other end of the address space.
pub(super) fn settle(session: &Session, program: u32, personality: u32, taken: &[u8]) -> Result<(), Failure> {
    const ADDR_NO_RANDOMIZE: usize = 0x4_0000;
    const ADDR_COMPAT_LAYOUT: usize = 0x20_0000;
    const ASK: usize = 0xffff_ffff;
    let lies = extent(session.vdso, &session.start.special);
    let mut words = words(taken);
    let mut ranges = core::iter::from_fn(|| Some(Range { start: words.next()?, end: words.next()? }));
    let now = set_personality(ASK)?;
    if !ranges.any(|range| range.overlaps(lies)) {
        return set_personality(personality as usize).map(drop);
    }
    set_personality((now ^ ADDR_COMPAT_LAYOUT) & !ADDR_NO_RANDOMIZE)?;
    super::send(
        session.socket,
        &Report { stage: Stage::Again as u32, pid: session.pid, ..Report::default() },
    );
    for &fd in session.fds {
        family::call(nr::__NR_fcntl, fd as u64, &[fd as usize, family::F_SETFD, family::FD_CLOEXEC])?;
    }
    family::exec(family::working_fd(session, program)?, session.socket as usize)
}

/// 64-bit words, little endian.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| word.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))
}

fn set_personality(personality: usize) -> Result<usize, Failure> {
    // SAFETY: no pointers.
    unsafe { sys::call(nr::__NR_personality, &[personality]) }
        .map_err(|errno| Failure::new(errno, personality as u64))
}

/// Writes jumps to functions of the vDSO.
pub(super) fn write_ways(session: &Session, addr: u64, len: u64, functions: &[u8]) -> Result<(), Failure> {
    let protect = |prot| plain(nr::__NR_mprotect, addr, &[size(addr)?, size(len)?, prot]);
    protect(PROT_READ_WRITE)?;
    for (number, offset) in (0..).zip(words(functions)) {
        let at = addr + number * WAY_LEN;
        let way = way(at, session.vdso as u64 + offset);
        if (number + 1) * WAY_LEN > len {
            return Err(Failure::wrong(at));
        }
        // SAFETY: inside of private memory that the plan has mapped for the task, which is writable now.
        unsafe { core::ptr::copy_nonoverlapping(way.as_ptr(), size(at)? as *mut u8, way.len()) };
    }
    protect(PROT_READ_EXEC)
}

/// A jump that lies at `at`. Only a register that every function may change is touched.
#[cfg(target_arch = "x86_64")]
fn way(_at: u64, to: u64) -> [u8; 13] {
    let [a, b, c, d, e, f, g, h] = to.to_le_bytes();
    // mov r11, to; jmp r11
    [0x49, 0xbb, a, b, c, d, e, f, g, h, 0x41, 0xff, 0xe3]
}

/// A jump that lies at `at`.
#[cfg(target_arch = "x86")]
fn way(at: u64, to: u64) -> [u8; 5] {
    let [a, b, c, d, ..] = to.wrapping_sub(at + 5).to_le_bytes();
    // jmp to
    [0xe9, a, b, c, d]
}
