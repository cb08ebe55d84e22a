//! PAGEMAP_SCAN: which pages of a range are there, without reading 8 bytes per page of address space.
//!
//! # Safety
//! The kernel reads and updates one `struct pm_scan_arg` of ours and writes at most `vec_len` regions to the
//! vector that it names.
#![allow(unsafe_code)]

use super::check;
use crate::fault::{self, Point};
use crate::kernel::disabled::{Switch, is_disabled};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `PAGE_IS_*` of include/uapi/linux/fs.h.
pub mod page {
    /// In an area that userfaultfd tracks asynchronously.
    pub const WPALLOWED: u64 = 1 << 0;
    /// Not write-protected by userfaultfd.
    pub const WRITTEN: u64 = 1 << 1;
    /// File page or shared anonymous page.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub const PFNZERO: u64 = 1 << 5;
    /// A guard page, which counts as swapped (Linux 6.15).
    pub const GUARD: u64 = 1 << 8;
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

/// PM_SCAN_WP_MATCHING: write-protects what it finds; areas that are not tracked are passed over.
const WP_MATCHING: u64 = 1 << 0;

/// What a range of pages was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Pages of their own.
    Contents {
        /// They are tracked, and were not written since they were protected.
        unwritten: bool,
    },
    /// The shared page of zeros, which says nothing where there is no file behind it. In a private mapping of a file it stands for zeros that were written there: KSM
    /// puts it in the place of such pages (`use_zero_pages`), and userfaultfd does by UFFDIO_ZEROPAGE.
    Zeros,
    /// Guard pages, which there can be in areas of any kind.
    Guard,
}

impl Found {
    fn of(categories: u64, wanted: Wanted) -> Self {
        match categories {
            guard if guard & page::GUARD != 0 => Self::Guard,
            zeros if zeros & page::PFNZERO != 0 => Self::Zeros,
            _ => Self::Contents { unwritten: wanted.told & !categories & page::WRITTEN != 0 },
        }
    }
}

/// What a scan finds.
#[derive(Clone, Copy)]
struct Wanted {
    flags: u64,
    /// Categories that all have to apply.
    all: u64,
    /// Those of them that have not to apply instead.
    inverted: u64,
    /// Categories of which one has to apply, if there are any.
    any: u64,
    /// Those that are told of what is found; with contents, which of it is a guard page is told as well.
    told: u64,
}

/// Present or swapped, not of a file, not the zero page.
const PRIVATE: Wanted = Wanted {
    flags: 0,
    all: page::FILE | page::PFNZERO,
    inverted: page::FILE | page::PFNZERO,
    any: page::PRESENT | page::SWAPPED,
    told: 0,
};

/// Calls `found` for every range of pages in `start..end` that are present or swapped, and not of a file: contents that differ from what the backing file
/// or fresh anonymous memory would show, the page of zeros, guard pages. Nothing is said of whether they were written.
///
/// # Errors
/// ENOTTY on kernels before 6.7.
pub fn scan_private(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    mut found: impl FnMut(u64, u64, Found),
) -> nix::Result<()> {
    // One walk finds both; whose zeros count is for the caller to say, who knows the areas.
    let wanted = Wanted { all: page::FILE, inverted: page::FILE, told: page::PFNZERO, ..PRIVATE };
    scan(pagemap, start, end, wanted, |start, end, categories| {
        found(start, end, Found::of(categories, wanted));
    })
}

/// As [`scan_private`] but for the page of zeros, in areas that are tracked by [`super::userfaultfd`]; from here on it tells which of these pages are written.
///
/// Whether a page was written until now is found, and it is protected, in one step under the lock of its page table (pagemap_scan_pmd_entry() of
/// fs/proc/task_mmu.c). So nobody writes in between, those included who do not stand still with the task.
///
/// # Errors
/// ENOTTY on kernels before 6.7.
pub fn scan_and_protect(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    mut found: impl FnMut(u64, u64, Found),
) -> nix::Result<()> {
    let wanted = Wanted { flags: WP_MATCHING, told: page::WRITTEN, ..PRIVATE };
    scan(pagemap, start, end, wanted, |start, end, categories| {
        found(start, end, Found::of(categories, wanted));
    })
}

/// Calls `found` for every range in `start..end` that is tracked by a userfaultfd of the kind that [`super::userfaultfd::enable`] makes, by whomever, whether
/// pages are there or not. Ranges come by rising address; those that touch come as one.
///
/// # Errors
/// ENOTTY on kernels before 6.7.
pub fn scan_tracked(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    mut found: impl FnMut(u64, u64),
) -> nix::Result<()> {
    let wanted = Wanted { flags: 0, all: page::WPALLOWED, inverted: 0, any: 0, told: page::WPALLOWED };
    let mut last: Option<(u64, u64)> = None;
    scan(pagemap, start, end, wanted, |start, end, _| match &mut last {
        Some((_, until)) if *until == start => *until = end,
        _ => {
            if let Some((start, end)) = last.replace((start, end)) {
                found(start, end);
            }
        }
    })?;
    if let Some((start, end)) = last {
        found(start, end);
    }
    Ok(())
}

/// As [`scan_and_protect`], those pages that have not been written since they were protected.
///
/// # Errors
/// ENOTTY on kernels before 6.7.
pub fn scan_unwritten(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    mut found: impl FnMut(u64, u64),
) -> nix::Result<()> {
    let wanted = Wanted {
        all: PRIVATE.all | page::WPALLOWED | page::WRITTEN,
        inverted: PRIVATE.inverted | page::WRITTEN,
        ..PRIVATE
    };
    scan(pagemap, start, end, wanted, |start, end, _| found(start, end))
}

fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    wanted: Wanted,
    mut found: impl FnMut(u64, u64, u64),
) -> nix::Result<()> {
    fault::point(Point::Pagemap)?;
    if is_disabled(Switch::PagemapScan) {
        return Err(Errno::ENOTTY);
    }
    let mut regions = [Region::default(); 1024];
    let mut from = start;
    let guards = if wanted.any == 0 { 0 } else { page::PRESENT | page::GUARD };
    let mut return_mask = wanted.told | guards;
    while from < end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: wanted.flags,
            start: from,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: wanted.inverted,
            category_mask: wanted.all,
            category_anyof_mask: wanted.any,
            return_mask,
        };
        // SAFETY: `arg` and the regions it names live across the call.
        let n = match check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) }) {
            // A kernel that does not tell them. A dump of one fails then: it cannot be read.
            Err(Errno::EINVAL) if return_mask & page::GUARD != 0 => {
                return_mask &= !page::GUARD;
                continue;
            }
            other => other?,
        };
        let found_now = &regions[..usize::try_from(n).unwrap_or(0)];
        for region in found_now {
            found(region.start, region.end, region.categories);
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
