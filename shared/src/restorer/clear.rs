//! Making room: of the address space that exec made, only the hole and the parked vDSO stay, or the vDSO where it is.
//!
//! # Safety
//! Everything outside of the hole is unmapped, the initial stack included; the program runs on a stack inside.

use super::receive::size;
use super::vdso::extent;
use super::{Failure, Program, Segment};
use crate::proto::{Start, Vdso};
use crate::range::Range;
use crate::sys;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const MAP_PRIVATE: u32 = 2;
const MAP_ANONYMOUS: u32 = 0x20;

pub(super) fn clear(program: &Program, start: &Start, vdso: usize, sysinfo: usize) -> Result<(), Failure> {
    let kept = match Vdso::from_number(start.vdso).ok_or(Failure::wrong(start.vdso))? {
        Vdso::Moves => {
            park(start, vdso, sysinfo)?;
            Range::new(0, 0)
        }
        Vdso::Stays => extent(vdso, &start.special),
        Vdso::Goes => Range::new(0, 0),
    };
    for (from, to) in [(0, start.hole_start), (start.hole_end, start.task_size)] {
        unmap(from, to.min(kept.start))?;
        unmap(from.max(kept.end), to)?;
    }
    for segment in program.segments {
        detach(segment)?;
    }
    Ok(())
}

/// Moves vvar, vvar_vclock and vdso to their parking places, area by area: kernels before 6.17 move no more at once.
fn park(start: &Start, vdso: usize, sysinfo: usize) -> Result<(), Failure> {
    if vdso == 0 {
        return Ok(());
    }
    let mut to = start.parking_addr;
    for area in start.special {
        if area.len == 0 {
            continue;
        }
        let from = (vdso as u64).wrapping_add_signed(area.offset);
        // SAFETY: the area is a mapping of its own and the parking place is part of the hole; nothing here uses either.
        unsafe { sys::move_mapping(size(from)?, size(to)?, size(area.len)?) }
            .map_err(|errno| Failure::new(errno, from))?;
        if area.offset == 0 && sysinfo != 0 {
            // The vDSO itself. Only a whole one has an entry; the kernel returns to where it is now.
            sys::set_entry(size(to)? + (sysinfo - vdso));
        }
        to += area.len;
    }
    Ok(())
}

fn unmap(from: u64, to: u64) -> Result<(), Failure> {
    if from >= to {
        return Ok(());
    }
    // SAFETY: outside of the hole, where nothing of this program is any more.
    unsafe { sys::munmap(size(from)?, size(to - from)?) }.map(drop).map_err(|errno| Failure::new(errno, from))
}

/// Puts an anonymous copy of a segment in its own place: while a mapping of the executable remains,
/// PR_SET_MM_MAP cannot name another one (`replace_mm_exe_file`, kernel/fork.c: EBUSY).
fn detach(segment: Segment) -> Result<(), Failure> {
    let len = segment.end - segment.start;
    if len == 0 {
        return Ok(());
    }
    let at = segment.start as u64;
    // SAFETY: a fresh mapping where the kernel likes.
    let copy = unsafe { sys::mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) }
        .map_err(|errno| Failure::new(errno, at))?;
    // SAFETY: both are `len` bytes of mapped memory that do not overlap.
    unsafe { core::ptr::copy_nonoverlapping(segment.start as *const u8, copy as *mut u8, len) };
    // SAFETY: the copy is ours alone.
    unsafe { sys::call(sys::nr::__NR_mprotect, &[copy, len, segment.prot as usize]) }
        .map_err(|errno| Failure::new(errno, at))?;
    // SAFETY: the same bytes come to lie at the same place, so code, data and references go on as they were; nothing
    // is written between copy and move that the program reads later (`len` and the like are in registers or on the
    // stack, which lies in memory that is not part of a file-backed segment).
    unsafe { sys::move_mapping(copy, segment.start, len) }.map(drop).map_err(|errno| Failure::new(errno, at))
}
