//! modify_ldt.

use super::Failure;
use crate::sys::{self, Errno, nr};
use core::mem::size_of;

/// `struct user_desc`, arch/x86/include/uapi/asm/ldt.h.
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}
const _: () = assert!(size_of::<UserDesc>() == 16);

/// Writes one entry in the new mode, which keeps the bit for programs (`useable`).
pub(super) fn write(entry: u32, base: u32, limit: u32, flags: u32) -> Result<(), Failure> {
    const WRITE: usize = 0x11;
    let descriptor = UserDesc { entry, base, limit, flags };
    let at = core::ptr::from_ref(&descriptor) as usize;
    // SAFETY: the kernel reads the descriptor; this program uses no segment of the table.
    let ret =
        unsafe { sys::syscall6(nr::__NR_modify_ldt as usize, [WRITE, at, size_of::<UserDesc>(), 0, 0, 0]) };
    // The call answers an int in both ABIs.
    match ret as i32 {
        0 => Ok(()),
        error => Err(Failure::new(Errno(error.unsigned_abs()), u64::from(entry))),
    }
}
