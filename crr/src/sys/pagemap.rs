//! PAGEMAP_SCAN: which pages of a range are there, without reading 8 bytes per page of address space.
//!
//! # Safety
//! The kernel reads and updates one `struct pm_scan_arg` of ours and writes at most `vec_len` regions to the
//! vector that it names.
#![allow(unsafe_code)]

use super::check;
use crate::fault::{self, Point};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `PAGE_IS_*` of include/uapi/linux/fs.h.
pub mod page {
    /// File page or shared anonymous page.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub const PFNZERO: u64 = 1 << 5;
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Those of the asked categories that apply.
    pub categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// Calls `found` for every range of pages in `start..end` whose contents differ from what the backing file
/// or fresh anonymous memory would show: present or swapped, not of a file, not the zero page.
///
/// # Errors
/// ENOTTY on kernels before 6.7.
pub fn scan_private(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    mut found: impl FnMut(u64, u64),
) -> nix::Result<()> {
    fault::point(Point::Pagemap)?;
    let mut regions = [Region::default(); 1024];
    let mut from = start;
    while from < end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start: from,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: page::FILE | page::PFNZERO,
            category_mask: page::FILE | page::PFNZERO,
            category_anyof_mask: page::PRESENT | page::SWAPPED,
            return_mask: page::PRESENT,
        };
        // SAFETY: `arg` and the regions it names live across the call.
        let n = check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) })?;
        let found_now = &regions[..usize::try_from(n).unwrap_or(0)];
        for region in found_now {
            found(region.start, region.end);
        }
        // A vector that is not full means that the end was reached. `walk_end` does not tell: the kernel leaves it
        // where its own smaller buffer was last full (do_pagemap_scan() of fs/proc/task_mmu.c).
        match found_now.last() {
            Some(last) if found_now.len() == regions.len() && last.end > from => from = last.end,
            _ => break,
        }
    }
    Ok(())
}
