//! Probe mode: the program is looked at from outside, and tries what a restore will need on this kernel.
//!
//! # Safety
//! Moves the program's own vDSO about, which nothing else here uses.

use super::Failure;
use crate::abi::native::Word;
use crate::proto::{ProbeReport, ProbeRequest, SpecialArea};
use crate::sys::{self, Errno, nr};

const PAGE: usize = 4096;

/// Says that it runs; when asked, tries things and answers; ends.
pub(super) fn probe(vdso: usize, sysinfo: usize) -> ! {
    let mut byte = 0u8;
    write(&byte);
    if !read(&mut byte) {
        sys::exit_group(0);
    }
    let mut request = ProbeRequest::default();
    if !read(&mut request) {
        sys::exit_group(1);
    }
    let mut report = ProbeReport {
        mmap_at: mmap(),
        robust_list: robust_list(),
        tls_entry: tls_entry(),
        rseq: rseq(),
        mm_map_size: mm_map_size(),
        ..ProbeReport::default()
    };
    // What was found so far, in case the next thing is deadly.
    write(&report);
    move_special(vdso, sysinfo, &request.special, &mut report);
    write(&report);
    sys::exit_group(0)
}

fn write<T>(record: &T) {
    let at = core::ptr::from_ref(record) as usize;
    // SAFETY: the kernel reads the record.
    let _ = unsafe { sys::call(nr::__NR_write, &[1, at, size_of::<T>()]) };
}

fn read<T: Copy>(record: &mut T) -> bool {
    let at = core::ptr::from_mut(record) as usize;
    // SAFETY: the kernel writes at most the record, which consists of integers.
    unsafe { sys::call(nr::__NR_read, &[0, at, size_of::<T>()]) == Ok(size_of::<T>()) }
}

#[allow(clippy::cast_possible_wrap)] // Addresses, pids and sizes of this ABI.
fn answer(result: Result<usize, Errno>) -> i64 {
    match result {
        Ok(value) => value as i64,
        Err(errno) => -i64::from(errno.0),
    }
}

fn reserve(len: usize) -> Result<usize, Errno> {
    const PROT_READ_WRITE: u32 = 3;
    const MAP_PRIVATE_ANONYMOUS: u32 = 0x22;
    // SAFETY: a fresh mapping where the kernel likes.
    unsafe { sys::mmap(0, len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0) }
}

fn mmap() -> i64 {
    let at = reserve(PAGE);
    if let Ok(at) = at {
        // SAFETY: just mapped, if the address is the whole truth: kernels before 4.12 could answer an ia32 call with
        // the low half of a high address. Then this ends the probe, which tells.
        unsafe { (at as *mut u8).write_volatile(1) };
    }
    answer(at)
}

fn robust_list() -> i64 {
    let head = [0 as Word; 3];
    let at = core::ptr::from_ref(&head) as usize;
    // SAFETY: the list is empty, and forgotten below before its memory goes.
    let set = unsafe { sys::call(nr::__NR_set_robust_list, &[at, size_of_val(&head)]) };
    let mut found: [Word; 2] = [0; 2];
    let (head_out, len_out) = (&raw mut found[0] as usize, &raw mut found[1] as usize);
    // SAFETY: the kernel writes one word to each.
    let got = unsafe { sys::call(nr::__NR_get_robust_list, &[0, head_out, len_out]) };
    // SAFETY: no list.
    let _ = unsafe { sys::call(nr::__NR_set_robust_list, &[0, size_of_val(&head)]) };
    // SAFETY: written by the kernel behind the compiler's back.
    let found = unsafe { core::ptr::read_volatile(&raw const found) };
    match (set, got) {
        (Err(errno), _) | (_, Err(errno)) => -i64::from(errno.0),
        _ if found[0] as usize == at => 0,
        _ => -1,
    }
}

/// `struct user_desc` with an entry of the kernel's choice. Only ia32 has the call.
fn tls_entry() -> i64 {
    const NR_SET_THREAD_AREA: usize = if cfg!(target_arch = "x86") { 243 } else { 205 };
    let mut descriptor = [u32::MAX, 0, 0xf_ffff, 0x51];
    let at = core::ptr::from_mut(&mut descriptor) as usize;
    // SAFETY: the kernel reads and writes 16 bytes; the entry is loaded into no segment register.
    let result = sys::check(unsafe { sys::syscall6(NR_SET_THREAD_AREA, [at, 0, 0, 0, 0, 0]) });
    // SAFETY: written by the kernel behind the compiler's back.
    let entry = unsafe { core::ptr::read_volatile(&raw const descriptor[0]) };
    match result {
        Ok(_) => i64::from(entry),
        Err(errno) => -i64::from(errno.0),
    }
}

fn rseq() -> i64 {
    const SIGNATURE: usize = 0x5305_3053;
    const UNREGISTER: usize = 1;
    #[repr(align(32))]
    struct Area(#[allow(dead_code)] [u8; 32]);
    let area = Area([0; 32]);
    let at = core::ptr::from_ref(&area) as usize;
    // SAFETY: 32 aligned bytes that live until the registration is taken back.
    let registered = unsafe { sys::call(nr::__NR_rseq, &[at, 32, 0, SIGNATURE]) };
    // SAFETY: as above.
    let _ = unsafe { sys::call(nr::__NR_rseq, &[at, 32, UNREGISTER, SIGNATURE]) };
    answer(registered)
}

fn mm_map_size() -> i64 {
    const PR_SET_MM: usize = 35;
    const PR_SET_MM_MAP_SIZE: usize = 15;
    let mut size = 0u32;
    let at = core::ptr::from_mut(&mut size) as usize;
    // SAFETY: the kernel writes 4 bytes.
    let result = unsafe { sys::call(nr::__NR_prctl, &[PR_SET_MM, PR_SET_MM_MAP_SIZE, at, 0, 0]) };
    // SAFETY: written by the kernel behind the compiler's back.
    let size = unsafe { core::ptr::read_volatile(&raw const size) };
    if result.is_ok() { i64::from(size) } else { answer(result) }
}

fn move_special(vdso: usize, sysinfo: usize, special: &[SpecialArea; 3], report: &mut ProbeReport) {
    if vdso == 0 {
        return;
    }
    let at = |area: &SpecialArea| super::receive::size((vdso as u64).wrapping_add_signed(area.offset));
    let first = special.iter().filter(|area| area.len != 0).min_by_key(|area| area.offset);
    let total: u64 = special.iter().map(|area| area.len).sum();
    let (Some(Ok(first)), Ok(total)) = (first.map(at), super::receive::size(total)) else { return };
    let mut base = first;
    match reserve(total) {
        // SAFETY: nothing here uses the areas, and the target is a reservation of ours.
        Ok(to) => match unsafe { sys::move_mapping(first, to, total) } {
            Ok(_) => base = to,
            Err(errno) => report.move_whole = -i64::from(errno.0),
        },
        Err(errno) => report.move_whole = -i64::from(errno.0),
    }
    report.move_each = match each(special, vdso, base, first, total) {
        Ok(to) => {
            report.moved_call = call_moved(sysinfo, to.wrapping_sub(first));
            0
        }
        Err(failure) => -i64::from(failure.errno),
    };
}

/// Moves area by area; where the first is now.
fn each(
    special: &[SpecialArea; 3],
    vdso: usize,
    base: usize,
    first: usize,
    total: usize,
) -> Result<usize, Failure> {
    let to = reserve(total).map_err(|errno| Failure::new(errno, 0))?;
    for area in special.iter().filter(|area| area.len != 0) {
        let offset = super::receive::size((vdso as u64).wrapping_add_signed(area.offset))? - first;
        let len = super::receive::size(area.len)?;
        // SAFETY: as above.
        unsafe { sys::move_mapping(base + offset, to + offset, len) }
            .map_err(|errno| Failure::new(errno, offset as u64))?;
    }
    Ok(to)
}

/// getpid through `__kernel_vsyscall`, whose landing pad the kernel has to know at the new place.
#[cfg(target_arch = "x86")]
fn call_moved(sysinfo: usize, moved_by: usize) -> i64 {
    if sysinfo == 0 {
        return 0;
    }
    let mut result: u32 = 20; // __NR_getpid
    // SAFETY: the entry point of the vDSO, moved; it keeps all registers but eax. If the kernel returns to the old
    // place the program dies, which tells.
    unsafe {
        core::arch::asm!("call {entry}", entry = in(reg) sysinfo.wrapping_add(moved_by), inout("eax") result);
    }
    i64::from(result)
}

/// x86_64 code enters the kernel without the vDSO.
#[cfg(target_arch = "x86_64")]
fn call_moved(_: usize, _: usize) -> i64 {
    0
}
